// Package policies evaluates the admission policies of config/admission with the API server's own library, without a
// cluster. TestAdmission in test/integration uses a real API server.
package policies

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/cel-go/cel"
	requestv1 "k8s.io/api/admission/v1"
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
	declared = admissioncel.OptionalVariableDeclarations{HasAuthorizer: true}
)

// policy reads the policy of a file, and compiles all of its expressions.
func policy(t *testing.T, path string) (*admissioncel.CompositedCompiler, []admissioncel.ExpressionAccessor) {
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
	compile := func(what, text string, types []*cel.Type) {
		t.Helper()
		if r := compiler.CompileCELExpression(&expression{what, text, types}, declared, environment.NewExpressions); r.Error != nil {
			t.Errorf("%s: %s %q: %v", p.Name, what, text, r.Error)
		}
	}
	for _, m := range p.Spec.MatchConditions {
		compile("match condition", m.Expression, isBool)
	}
	for _, v := range p.Spec.Variables {
		if r := compiler.CompileAndStoreVariable(&expression{v.Name, v.Expression, isAny}, declared, environment.NewExpressions); r.Error != nil {
			t.Errorf("%s: variable %s: %v", p.Name, v.Name, r.Error)
		}
	}
	var validations []admissioncel.ExpressionAccessor
	for _, v := range p.Spec.Validations {
		compile("validation", v.Expression, isBool)
		if v.MessageExpression != "" {
			compile("message", v.MessageExpression, isString)
		}
		validations = append(validations, &expression{"validation", v.Expression, isBool})
	}
	return compiler, validations
}

// TestCompile asserts that every expression of every policy compiles.
func TestCompile(t *testing.T) {
	files, err := filepath.Glob("../../config/admission/*.yaml")
	if err != nil || len(files) < 5 {
		t.Fatalf("found %v, %v", files, err)
	}
	for _, path := range files {
		if filepath.Base(path) != "kustomization.yaml" {
			policy(t, path)
		}
	}
}

// TestWriters asserts which of the rules of a NodeDiskCapacity each writer breaks. An error in an expression, which
// refuses an allowed request, is not among the outcomes.
func TestWriters(t *testing.T) {
	compiler, validations := policy(t, "../../config/admission/capacity.yaml")
	evaluator := compiler.CompileCondition(validations, declared, environment.StoredExpressions)
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
		agent     = "system:serviceaccount:storage:berth-nodeagent"
		scheduler = "system:serviceaccount:storage:berth-scheduler"
		operator  = "jane"
		renamed   = "system:serviceaccount:storage:agent"
		status    = "status"
	)
	for name, test := range map[string]struct {
		user, node, subresource string
		now, before             *unstructured.Unstructured
		// broken has the numbers of the rules that are broken.
		broken string
	}{
		"agent: status":                   {agent, "n", status, noted, noted, ""},
		"agent of another node: status":   {agent, "m", status, noted, noted, "1"},
		"agent without a node: status":    {agent, "", status, noted, noted, "1"},
		"agent: removes an annotation":    {agent, "n", "", bare, noted, ""},
		"agent: adds an annotation":       {agent, "n", "", noted, bare, "6"},
		"agent: owns a disk":              {agent, "n", "", owned, noted, "4"},
		"agent: approves a device":        {agent, "n", "", adopt, noted, "3"},
		"agent: creates":                  {agent, "n", "", bare, nil, ""},
		"agent: creates, and owns a disk": {agent, "n", "", owned, nil, "46"},
		"agent: deletes":                  {agent, "n", "", nil, noted, "2"},
		"renamed agent: status":           {renamed, "n", status, noted, noted, "0"},
		"scheduler: owner":                {scheduler, "m", "", owned, noted, ""},
		"scheduler: status":               {scheduler, "m", status, noted, noted, ""},
		"scheduler: approves a device":    {scheduler, "m", "", adopt, noted, "5"},
		"scheduler: adds an annotation":   {scheduler, "m", "", noted, bare, "5"},
		"scheduler: takes an annotation":  {scheduler, "m", "", bare, noted, "5"},
		"stock name: approves a device":   {"system:kube-scheduler", "", "", adopt, noted, "5"},
		"scheduler: deletes":              {scheduler, "m", "", nil, owned, ""},
		"stock name: owner":               {"system:kube-scheduler", "", "", owned, noted, ""},
		"operator: approves a device":     {operator, "", "", adopt, noted, ""},
		"operator: status":                {operator, "", status, noted, noted, "0"},
		"operator: owner":                 {operator, "", "", owned, noted, "4"},
		"operator: deletes":               {operator, "", "", nil, owned, ""},
	} {
		t.Run(name, func(t *testing.T) {
			kind := schema.GroupVersionKind{Group: "disk.berth.dev", Version: "v1alpha1", Kind: "NodeDiskCapacity"}
			resource := schema.GroupVersionResource{Group: kind.Group, Version: kind.Version, Resource: "nodediskcapacities"}
			who := &user.DefaultInfo{Name: test.user, Groups: []string{"system:authenticated"}}
			if test.node != "" {
				who.Extra = map[string][]string{"authentication.kubernetes.io/node-name": {test.node}}
			}
			operation := admission.Update
			var now, before runtime.Object
			if test.now == nil {
				operation = admission.Delete
			} else {
				now = test.now
			}
			if test.before == nil {
				operation = admission.Create
			} else {
				before = test.before
			}
			attributes := admission.NewAttributesRecord(now, before, kind, "", "n", resource, test.subresource, operation, nil, false, who)
			versioned := &admission.VersionedAttributes{Attributes: attributes, VersionedKind: kind, VersionedObject: now, VersionedOldObject: before}
			request := admissioncel.CreateAdmissionRequest(attributes, metav1.GroupVersionResource(resource), metav1.GroupVersionKind(kind))
			if broken := brokenRules(t, compiler, evaluator, versioned, request); broken != test.broken {
				t.Errorf("the broken rules are %q, want %q", broken, test.broken)
			}
		})
	}
}

// brokenRules are the numbers of the rules that the request breaks.
func brokenRules(t *testing.T, compiler *admissioncel.CompositedCompiler, evaluator admissioncel.ConditionEvaluator, object *admission.VersionedAttributes, request *requestv1.AdmissionRequest) string {
	t.Helper()
	results, _, err := evaluator.ForInput(compiler.CreateContext(t.Context()), object, request, admissioncel.OptionalVariableBindings{}, nil, celconfig.RuntimeCELCostBudget)
	if err != nil {
		t.Fatal(err)
	}
	broken := ""
	for i, r := range results {
		if r.Error != nil {
			t.Errorf("rule %d: %v", i, r.Error)
		} else if r.EvalResult.Value() != true {
			broken += string(rune('0' + i))
		}
	}
	return broken
}

// TestNodes asserts that the scheduler can remove Berth's taint from a Node, and change nothing else.
func TestNodes(t *testing.T) {
	compiler, validations := policy(t, "../../config/admission/nodes.yaml")
	evaluator := compiler.CompileCondition(validations, declared, environment.StoredExpressions)
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
			resource := schema.GroupVersionResource{Version: "v1", Resource: "nodes"}
			attributes := admission.NewAttributesRecord(test.now, before, kind, "", "n", resource, "", admission.Update, nil, false, &user.DefaultInfo{Name: "any"})
			versioned := &admission.VersionedAttributes{Attributes: attributes, VersionedKind: kind, VersionedObject: test.now, VersionedOldObject: before}
			request := admissioncel.CreateAdmissionRequest(attributes, metav1.GroupVersionResource(resource), metav1.GroupVersionKind(kind))
			if broken := brokenRules(t, compiler, evaluator, versioned, request); broken != test.broken {
				t.Errorf("the broken rules are %q, want %q", broken, test.broken)
			}
		})
	}
}

// request is a policy's input. A creation has no object before, and a deletion none now.
func (p *evaluated) request(t *testing.T, kind schema.GroupVersionKind, plural string, now, before *unstructured.Unstructured) string {
	t.Helper()
	operation, object, old := admission.Update, runtime.Object(nil), runtime.Object(nil)
	if now != nil {
		object = now
	} else {
		operation = admission.Delete
	}
	if before != nil {
		old = before
	} else {
		operation = admission.Create
	}
	resource := schema.GroupVersionResource{Group: kind.Group, Version: kind.Version, Resource: plural}
	attributes := admission.NewAttributesRecord(object, old, kind, "", "n", resource, "", operation, nil, false, &user.DefaultInfo{Name: "any"})
	versioned := &admission.VersionedAttributes{Attributes: attributes, VersionedKind: kind, VersionedObject: object, VersionedOldObject: old}
	return brokenRules(t, p.compiler, p.evaluator, versioned, admissioncel.CreateAdmissionRequest(attributes, metav1.GroupVersionResource(resource), metav1.GroupVersionKind(kind)))
}

// evaluated is a policy that can be evaluated.
type evaluated struct {
	compiler  *admissioncel.CompositedCompiler
	evaluator admissioncel.ConditionEvaluator
}

func evaluate(t *testing.T, path string) *evaluated {
	t.Helper()
	compiler, validations := policy(t, path)
	return &evaluated{compiler, compiler.CompileCondition(validations, declared, environment.StoredExpressions)}
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
			if broken := p.request(t, schema.GroupVersionKind{Version: "v1", Kind: "PersistentVolume"}, "persistentvolumes", test.now, test.before); broken != test.broken {
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
		if have := p.request(t, schema.GroupVersionKind{Version: "v1", Kind: "Pod"}, "pods", pod, nil); have != broken {
			t.Errorf("schedulerName %q: the broken rules are %q, want %q", name, have, broken)
		}
	}
}
