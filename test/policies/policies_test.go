// Package policies evaluates the admission policies of config/admission with the API server's own library, without a
// cluster. TestAdmission in test/integration uses a real API server.
package policies

import (
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/cel-go/cel"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	admissioncel "k8s.io/apiserver/pkg/admission/plugin/cel"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/cel/environment"
	"sigs.k8s.io/yaml"
)

// expression is one expression of a policy.
type expression struct {
	name, text string
	types      []*cel.Type
}

func (e *expression) GetExpression() string    { return e.text }
func (e *expression) GetName() string          { return e.name }
func (e *expression) ReturnTypes() []*cel.Type { return e.types }

var (
	isBool   = []*cel.Type{cel.BoolType}
	isString = []*cel.Type{cel.StringType}
	isAny    = []*cel.Type{cel.AnyType, cel.DynType}
)

// evaluated is a policy that can be evaluated.
type evaluated struct {
	compiler    *admissioncel.CompositedCompiler
	rules       []admissionv1.NamedRuleWithOperations
	hasParams   bool
	conditions  admissioncel.ConditionEvaluator
	validations admissioncel.ConditionEvaluator
}

// evaluate reads the policy of a file, and compiles all of its expressions.
func evaluate(t *testing.T, path string) *evaluated {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var p admissionv1.ValidatingAdmissionPolicy
	first, _, _ := bytes.Cut(data, []byte("\n---\n"))
	if err := yaml.UnmarshalStrict(first, &p); err != nil {
		t.Fatal(err)
	}
	compiler, err := admissioncel.NewCompositedCompiler(environment.MustBaseEnvSet(environment.DefaultCompatibilityVersion()))
	if err != nil {
		t.Fatal(err)
	}
	declared := admissioncel.OptionalVariableDeclarations{HasAuthorizer: true, HasParams: p.Spec.ParamKind != nil}
	compile := func(what, text string, types []*cel.Type) {
		t.Helper()
		if r := compiler.CompileCELExpression(&expression{what, text, types}, declared, environment.NewExpressions); r.Error != nil {
			t.Errorf("%s: %s %q: %v", p.Name, what, text, r.Error)
		}
	}
	var conditions, validations []admissioncel.ExpressionAccessor
	for _, m := range p.Spec.MatchConditions {
		compile("match condition", m.Expression, isBool)
		conditions = append(conditions, &expression{"match condition", m.Expression, isBool})
	}
	for _, v := range p.Spec.Variables {
		if r := compiler.CompileAndStoreVariable(&expression{v.Name, v.Expression, isAny}, declared, environment.NewExpressions); r.Error != nil {
			t.Errorf("%s: variable %s: %v", p.Name, v.Name, r.Error)
		}
	}
	for _, v := range p.Spec.Validations {
		compile("validation", v.Expression, isBool)
		if v.MessageExpression != "" {
			compile("message", v.MessageExpression, isString)
		}
		validations = append(validations, &expression{"validation", v.Expression, isBool})
	}
	return &evaluated{
		compiler: compiler, rules: p.Spec.MatchConstraints.ResourceRules, hasParams: p.Spec.ParamKind != nil,
		conditions:  compiler.CompileCondition(conditions, declared, environment.StoredExpressions),
		validations: compiler.CompileCondition(validations, declared, environment.StoredExpressions),
	}
}

// input is a request to a policy. A creation has no object before, and a deletion none now.
type input struct {
	kind                schema.GroupVersionKind
	plural, subresource string
	who                 user.Info
	// params is the ClusterRoleBinding of a policy that has one.
	params      runtime.Object
	now, before *unstructured.Unstructured
}

// broken are the numbers of the rules that the request breaks. A request that the policy does not match breaks none.
func (p *evaluated) broken(t *testing.T, in *input) string {
	t.Helper()
	operation, object, old := admission.Update, runtime.Object(nil), runtime.Object(nil)
	if in.now != nil {
		object = in.now
	} else {
		operation = admission.Delete
	}
	if in.before != nil {
		old = in.before
	} else {
		operation = admission.Create
	}
	if !p.matches(operation, in) {
		return ""
	}
	resource := schema.GroupVersionResource{Group: in.kind.Group, Version: in.kind.Version, Resource: in.plural}
	attributes := admission.NewAttributesRecord(object, old, in.kind, "", "n", resource, in.subresource, operation, nil, false, in.who)
	versioned := &admission.VersionedAttributes{Attributes: attributes, VersionedKind: in.kind, VersionedObject: object, VersionedOldObject: old}
	request := admissioncel.CreateAdmissionRequest(attributes, metav1.GroupVersionResource(resource), metav1.GroupVersionKind(in.kind))
	variables := admissioncel.OptionalVariableBindings{}
	if p.hasParams {
		variables.VersionedParams = in.params
	}
	numbers := func(expressions admissioncel.ConditionEvaluator) string {
		results, _, err := expressions.ForInput(p.compiler.CreateContext(t.Context()), versioned, request, variables, nil, celconfig.RuntimeCELCostBudget)
		if err != nil {
			t.Fatal(err)
		}
		out := ""
		for i, r := range results {
			if r.Error != nil {
				t.Errorf("rule %d: %v", i, r.Error)
			} else if r.EvalResult.Value() != true {
				out += string(rune('0' + i))
			}
		}
		return out
	}
	if numbers(p.conditions) != "" {
		return ""
	}
	return numbers(p.validations)
}

// matches says whether the policy is for that resource and operation.
func (p *evaluated) matches(operation admission.Operation, in *input) bool {
	name := in.plural
	if in.subresource != "" {
		name += "/" + in.subresource
	}
	return slices.ContainsFunc(p.rules, func(r admissionv1.NamedRuleWithOperations) bool {
		return slices.Contains(r.Resources, name) && slices.Contains(r.Operations, admissionv1.OperationType(operation))
	})
}

// TestCompile asserts that every expression of every policy compiles.
func TestCompile(t *testing.T) {
	files, err := filepath.Glob("../../config/admission/*.yaml")
	if err != nil || len(files) < 5 {
		t.Fatalf("found %v, %v", files, err)
	}
	for _, path := range files {
		if filepath.Base(path) != "kustomization.yaml" {
			evaluate(t, path)
		}
	}
}

// TestWriters asserts which of the rules of a NodeDiskCapacity each writer breaks. An error in an expression, which
// refuses an allowed request, is not among the outcomes.
func TestWriters(t *testing.T) {
	policies := map[string]*evaluated{
		"agent":  evaluate(t, "../../config/admission/capacity.yaml"),
		"owner":  evaluate(t, "../../config/admission/capacity-scheduler.yaml"),
		"status": evaluate(t, "../../config/admission/capacity-status.yaml"),
	}
	account := func(name string) map[string]any {
		return map[string]any{"kind": "ServiceAccount", "namespace": "storage", "name": name}
	}
	bindings := map[string]runtime.Object{
		"agent":  clusterRoleBinding(account("disk-agent")),
		"owner":  clusterRoleBinding(account("disk-scheduler")),
		"status": clusterRoleBinding(account("disk-agent"), account("disk-scheduler")),
	}
	object := func(annotations, spec map[string]any) *unstructured.Unstructured {
		return &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "disk.berth.dev/v1alpha1", "kind": "NodeDiskCapacity", "metadata": map[string]any{"name": "n", "annotations": annotations}, "spec": spec,
		}}
	}
	var (
		noted = object(map[string]any{"k": "v"}, map[string]any{})
		owned = object(map[string]any{"k": "v"}, map[string]any{"ownedDisks": []any{"d"}})
		adopt = object(map[string]any{"k": "v"}, map[string]any{"adopt": []any{map[string]any{"serial": "s"}}})
		bare  = object(nil, nil)
	)
	const (
		agent     = "system:serviceaccount:storage:disk-agent"
		scheduler = "system:serviceaccount:storage:disk-scheduler"
		operator  = "jane"
		renamed   = "system:serviceaccount:kube-system:disk-agent"
		status    = "status"
	)
	for name, test := range map[string]struct {
		user, node, subresource string
		now, before             *unstructured.Unstructured
		// broken has the policies, with the numbers of the rules that are broken.
		broken string
	}{
		"agent: status":                   {agent, "n", status, noted, noted, ""},
		"agent of another node: status":   {agent, "m", status, noted, noted, "agent0"},
		"agent without a node: status":    {agent, "", status, noted, noted, "agent0"},
		"agent: removes an annotation":    {agent, "n", "", bare, noted, ""},
		"agent: adds an annotation":       {agent, "n", "", noted, bare, "agent3"},
		"agent: owns a disk":              {agent, "n", "", owned, noted, "agent2 owner0"},
		"agent: approves a device":        {agent, "n", "", adopt, noted, "agent2"},
		"agent: creates":                  {agent, "n", "", bare, nil, ""},
		"agent: creates, and owns a disk": {agent, "n", "", owned, nil, "agent23 owner0"},
		"agent: deletes":                  {agent, "n", "", nil, noted, "agent1"},
		"renamed agent: status":           {renamed, "n", status, noted, noted, "status0"},
		"scheduler: owner":                {scheduler, "m", "", owned, noted, ""},
		"scheduler: status":               {scheduler, "m", status, noted, noted, ""},
		"scheduler: approves a device":    {scheduler, "m", "", adopt, noted, "owner1"},
		"scheduler: adds an annotation":   {scheduler, "m", "", noted, bare, "owner1"},
		"scheduler: takes an annotation":  {scheduler, "m", "", bare, noted, "owner1"},
		"stock name: approves a device":   {"system:kube-scheduler", "", "", adopt, noted, "owner1"},
		"scheduler: deletes":              {scheduler, "m", "", nil, owned, ""},
		"stock name: owner":               {"system:kube-scheduler", "", "", owned, noted, ""},
		"operator: approves a device":     {operator, "", "", adopt, noted, ""},
		"operator: status":                {operator, "", status, noted, noted, "status0"},
		"operator: owner":                 {operator, "", "", owned, noted, "owner0"},
		"operator: deletes":               {operator, "", "", nil, owned, ""},
	} {
		t.Run(name, func(t *testing.T) {
			kind := schema.GroupVersionKind{Group: "disk.berth.dev", Version: "v1alpha1", Kind: "NodeDiskCapacity"}
			who := &user.DefaultInfo{Name: test.user, Groups: []string{"system:authenticated"}}
			if test.node != "" {
				who.Extra = map[string][]string{"authentication.kubernetes.io/node-name": {test.node}}
			}
			var broken []string
			for _, name := range slices.Sorted(maps.Keys(policies)) {
				if numbers := policies[name].broken(t, &input{kind, "nodediskcapacities", test.subresource, who, bindings[name], test.now, test.before}); numbers != "" {
					broken = append(broken, name+numbers)
				}
			}
			if have := strings.Join(broken, " "); have != test.broken {
				t.Errorf("the broken rules are %q, want %q", have, test.broken)
			}
		})
	}
}

// clusterRoleBinding is the parameter of a policy: its subjects are the accounts that the policy restricts.
func clusterRoleBinding(subjects ...any) runtime.Object {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": map[string]any{"name": "b"}, "subjects": subjects,
	}}
}

var (
	// theScheduler is who the binding of the scheduler names.
	theScheduler   = &user.DefaultInfo{Name: "system:serviceaccount:storage:disk-scheduler"}
	ofTheScheduler = clusterRoleBinding(map[string]any{"kind": "ServiceAccount", "namespace": "storage", "name": "disk-scheduler"})
)

// TestNodes asserts that the scheduler can remove Berth's taint from a Node, and change nothing else.
func TestNodes(t *testing.T) {
	p := evaluate(t, "../../config/admission/nodes.yaml")
	taint := func(key string) any { return map[string]any{"key": key, "effect": "NoSchedule"} }
	node := func(labels map[string]any, unschedulable bool, taints ...any) *unstructured.Unstructured {
		spec := map[string]any{"taints": taints}
		if unschedulable {
			spec["unschedulable"] = true
		}
		return &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "Node", "metadata": map[string]any{"name": "n", "labels": labels}, "spec": spec}}
	}
	ours, other, third := taint("disk.berth.dev/not-ready"), taint("node.kubernetes.io/not-ready"), taint("other")
	before := node(map[string]any{"a": "b"}, false, other, ours, third)
	for name, test := range map[string]struct {
		now    *unstructured.Unstructured
		broken string
	}{
		"removes our taint": {node(map[string]any{"a": "b"}, false, other, third), ""},
		"removes all":       {node(map[string]any{"a": "b"}, false), "0"},
		"removes another":   {node(map[string]any{"a": "b"}, false, ours, third), "0"},
		"adds one":          {node(map[string]any{"a": "b"}, false, other, third, taint("new")), "0"},
		"cordons":           {node(map[string]any{"a": "b"}, true, other, third), "0"},
		"changes a label":   {node(map[string]any{"a": "c"}, false, other, third), "0"},
	} {
		t.Run(name, func(t *testing.T) {
			kind := schema.GroupVersionKind{Version: "v1", Kind: "Node"}
			if broken := p.broken(t, &input{kind, "nodes", "", theScheduler, ofTheScheduler, test.now, before}); broken != test.broken {
				t.Errorf("the broken rules are %q, want %q", broken, test.broken)
			}
			// Others change Nodes as they like.
			if broken := p.broken(t, &input{kind, "nodes", "", &user.DefaultInfo{Name: "jane"}, ofTheScheduler, test.now, before}); broken != "" {
				t.Errorf("another user breaks the rules %q", broken)
			}
		})
	}
}

// TestVolumesOfTheScheduler asserts that the scheduler makes, changes and deletes PersistentVolumes of Berth's driver
// only. It may bind those of others.
func TestVolumesOfTheScheduler(t *testing.T) {
	p := evaluate(t, "../../config/admission/scheduler.yaml")
	volume := func(change map[string]any, source string, details map[string]any) *unstructured.Unstructured {
		spec := map[string]any{"capacity": map[string]any{"storage": "1Gi"}, "persistentVolumeReclaimPolicy": "Retain", source: details}
		for k, v := range change {
			spec[k] = v
		}
		return &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "PersistentVolume", "metadata": map[string]any{"name": "pv"}, "spec": spec}}
	}
	ours := func(change map[string]any) *unstructured.Unstructured {
		return volume(change, "csi", map[string]any{"driver": "disk.berth.dev", "volumeHandle": "v"})
	}
	other := func(change map[string]any) *unstructured.Unstructured {
		return volume(change, "csi", map[string]any{"driver": "other.example.com", "volumeHandle": "v"})
	}
	host := volume(nil, "hostPath", map[string]any{"path": "/etc"})
	labeled := other(nil)
	labeled.SetLabels(map[string]string{"a": "b"})
	held := other(nil)
	held.SetFinalizers([]string{"kubernetes.io/pv-protection"})
	noted := other(map[string]any{"claimRef": map[string]any{"name": "data"}})
	noted.SetAnnotations(map[string]string{"pv.kubernetes.io/bound-by-controller": "yes"})
	larger := map[string]any{"capacity": map[string]any{"storage": "2Gi"}}
	for name, test := range map[string]struct {
		now, before *unstructured.Unstructured
		broken      string
	}{
		"makes ours":                      {ours(nil), nil, ""},
		"makes a hostPath":                {host, nil, "0"},
		"makes one of another driver":     {other(nil), nil, "0"},
		"grows ours":                      {ours(larger), ours(nil), ""},
		"deletes ours":                    {nil, ours(nil), ""},
		"deletes a hostPath":              {nil, host, "0"},
		"deletes one of another driver":   {nil, other(nil), "0"},
		"binds one of another driver":     {noted, other(nil), ""},
		"grows one of another driver":     {other(larger), other(nil), "0"},
		"has another's bytes deleted":     {other(map[string]any{"persistentVolumeReclaimPolicy": "Delete"}), other(nil), "0"},
		"moves one of another driver":     {other(map[string]any{"nodeAffinity": map[string]any{}}), other(nil), "0"},
		"gives it another class":          {other(map[string]any{"storageClassName": "c"}), other(nil), "0"},
		"gives it other mount options":    {other(map[string]any{"mountOptions": []any{"suid"}}), other(nil), "0"},
		"gives it another access mode":    {other(map[string]any{"accessModes": []any{"ReadWriteMany"}}), other(nil), "0"},
		"labels one of another driver":    {labeled, other(nil), "0"},
		"finalizes one of another driver": {other(nil), held, "0"},
	} {
		t.Run(name, func(t *testing.T) {
			if broken := p.broken(t, &input{schema.GroupVersionKind{Version: "v1", Kind: "PersistentVolume"}, "persistentvolumes", "", theScheduler, ofTheScheduler, test.now, test.before}); broken != test.broken {
				t.Errorf("the broken rules are %q, want %q", broken, test.broken)
			}
		})
	}
}

// TestSchedulerName asserts which pods get a warning.
func TestSchedulerName(t *testing.T) {
	p := evaluate(t, "../../config/admission/schedulername.yaml")
	for name, broken := range map[string]string{"berth": "", "default-scheduler": "0", "": "0"} {
		spec := map[string]any{"volumes": []any{map[string]any{"name": "data", "csi": map[string]any{"driver": "disk.berth.dev"}}}}
		if name != "" {
			spec["schedulerName"] = name
		}
		pod := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"name": "n"}, "spec": spec}}
		if have := p.broken(t, &input{schema.GroupVersionKind{Version: "v1", Kind: "Pod"}, "pods", "", &user.DefaultInfo{Name: "jane"}, nil, pod, nil}); have != broken {
			t.Errorf("schedulerName %q: the broken rules are %q, want %q", name, have, broken)
		}
	}
}

// TestSubjects asserts whom a policy restricts: each subject of the ClusterRoleBinding that is its parameter, and no
// other. A binding without subjects restricts no account.
func TestSubjects(t *testing.T) {
	p := evaluate(t, "../../config/admission/scheduler.yaml")
	kind := schema.GroupVersionKind{Version: "v1", Kind: "PersistentVolume"}
	host := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "PersistentVolume", "metadata": map[string]any{"name": "pv"}, "spec": map[string]any{"hostPath": map[string]any{"path": "/etc"}},
	}}
	account := map[string]any{"kind": "ServiceAccount", "namespace": "storage", "name": "disk-scheduler"}
	someone := map[string]any{"kind": "User", "name": "jane"}
	group := map[string]any{"kind": "Group", "name": "schedulers"}
	for name, test := range map[string]struct {
		who        *user.DefaultInfo
		params     runtime.Object
		restricted bool
	}{
		"the account":                       {theScheduler, clusterRoleBinding(account), true},
		"the second subject":                {theScheduler, clusterRoleBinding(someone, account), true},
		"a user":                            {&user.DefaultInfo{Name: "jane"}, clusterRoleBinding(someone), true},
		"a member of a group":               {&user.DefaultInfo{Name: "joe", Groups: []string{"schedulers"}}, clusterRoleBinding(group), true},
		"an account of another namespace":   {&user.DefaultInfo{Name: "system:serviceaccount:default:disk-scheduler"}, clusterRoleBinding(account), false},
		"another account":                   {&user.DefaultInfo{Name: "system:serviceaccount:storage:other"}, clusterRoleBinding(account), false},
		"a user with the name of a group":   {&user.DefaultInfo{Name: "schedulers"}, clusterRoleBinding(group), false},
		"a user with the name of a subject": {&user.DefaultInfo{Name: "disk-scheduler"}, clusterRoleBinding(account), false},
		"no subjects":                       {theScheduler, clusterRoleBinding(), false},
	} {
		t.Run(name, func(t *testing.T) {
			if broken := p.broken(t, &input{kind, "persistentvolumes", "", test.who, test.params, host, nil}); (broken != "") != test.restricted {
				t.Errorf("the broken rules are %q, want restricted %v", broken, test.restricted)
			}
		})
	}
}
