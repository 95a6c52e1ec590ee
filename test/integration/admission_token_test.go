package integration

import (
	"context"
	"os"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/cluster"
)

// stolen is a cluster in which Berth's accounts are in a namespace of their own, with names of their own, and a client
// with the token of each.
type stolen struct {
	*cluster.Cluster
	t *testing.T
	// own and other are Nodes; agent has a token for a pod on own, and nowhere one for no node.
	agent, nowhere, scheduler, jane client.Client
}

const (
	stolenNode  = "own"
	stolenOther = "other"
	stolenSpace = "storage"
)

// TestAdmissionByToken asserts what a stolen token can and cannot write, with nothing but the rights of Berth's own
// roles: in a namespace and with names that no file in config has. It asserts the same when the ClusterRoleBindings
// that the policies take the accounts from are missing. What others write of their own objects goes on then.
func TestAdmissionByToken(t *testing.T) {
	c, err := cluster.Start(t.Context(), cluster.Options{
		Name: "integration-tokens", Log: os.Stderr,
		Manifests: []string{"config/crd", "config/nodeagent/rbac.yaml", "config/scheduler/rbac.yaml", "config/admission"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	s := &stolen{Cluster: c, t: t}
	s.rename()
	s.objects()
	uid := func(name string) types.UID {
		node := &corev1.Node{}
		if err := c.Client().Get(t.Context(), client.ObjectKey{Name: name}, node); err != nil {
			t.Fatal(err)
		}
		return node.UID
	}
	s.agent = s.token("disk-agent", &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Node", Name: stolenNode, UID: uid(stolenNode)})
	s.nowhere = s.token("disk-agent", nil)
	s.scheduler = s.token("disk-scheduler", nil)
	allowAll(t.Context(), t, c)
	s.jane = as(t, c, "jane", "")

	// Policies are in force some time after they were made.
	for policy, try := range map[string]func(context.Context) error{
		"nodediskcapacities.disk.berth.dev": s.status(s.agent, stolenOther),
		"owners.disk.berth.dev":             s.patch(s.jane, capacityOf(stolenNode), ownDisk),
		"status.disk.berth.dev":             s.status(s.jane, stolenNode),
		"volumes.disk.berth.dev":            s.patch(s.agent, volumeOf("elsewhere"), unfinalize),
		"nodes.disk.berth.dev":              s.patch(s.scheduler, nodeOf(stolenNode), addLabel),
		"scheduler.disk.berth.dev":          s.patch(s.scheduler, volumeOf("host"), grow),
	} {
		inForce(t.Context(), t, func() error { return try(t.Context()) }, policy)
	}
	t.Run("accounts", func(t *testing.T) { s.on(t).tryAll(false) })
	for _, name := range []string{"berth-nodeagent", "berth-scheduler", "berth-scheduler-as-volume-scheduler", "berth-status"} {
		if err := c.Client().Delete(t.Context(), &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: name}}); err != nil {
			t.Fatal(err)
		}
	}
	inForce(t.Context(), t, func() error { return s.patch(s.jane, capacityOf(stolenNode), addLabel)(t.Context()) }, "no params found")
	t.Run("no parameters", func(t *testing.T) { s.on(t).tryAll(true) })
}

const (
	unfinalize = `{"metadata":{"finalizers":[]}}`
	addLabel   = `{"metadata":{"labels":{"a":"b"}}}`
	grow       = `{"spec":{"capacity":{"storage":"2Gi"}}}`
	ownDisk    = `{"spec":{"ownedDisks":["11111111-2222-4333-8444-555555555555"]}}`
	adoptDisk  = `{"spec":{"adopt":[{"serial":"s","class":"ssd","fingerprint":"0123456789abcdef"}]}}`
	drainDisk  = `{"spec":{"disks":[{"id":"11111111-2222-4333-8444-555555555555","drain":{}}]}}`
	noTaint    = `{"spec":{"taints":[]}}`
	claimed    = `{"spec":{"claimRef":{"namespace":"default","name":"data"}}}`
)

// tryAll tries what each token may and may not write. Without the bindings it may write nothing.
func (s *stolen) tryAll(missing bool) {
	t := s.t
	ours := volumeOf("new")
	ours.Spec = volumeSpec(corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: diskv1alpha1.DriverName, VolumeHandle: "v"}}, stolenNode)
	host := volumeOf("new")
	host.Spec = volumeSpec(corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/etc"}}, "")
	for name, try := range map[string]func(context.Context) error{
		"agent: status of its node":         s.status(s.agent, stolenNode),
		"agent: finalizer of its node's":    s.patch(s.agent, volumeOf("own"), unfinalize),
		"agent: deletes its node's":         s.delete(s.agent, volumeOf("own")),
		"scheduler: owns a disk":            s.patch(s.scheduler, capacityOf(stolenNode), ownDisk),
		"scheduler: makes a volume":         s.create(s.scheduler, ours),
		"scheduler: binds a foreign volume": s.patch(s.scheduler, volumeOf("foreign"), claimed),
		"scheduler: removes the taint":      s.patch(s.scheduler, nodeOf(stolenNode), noTaint),
	} {
		switch err := try(t.Context()); {
		case missing && err == nil:
			t.Errorf("%s: permitted, but no binding gives the right", name)
		case !missing && err != nil:
			t.Errorf("%s: refused: %v", name, err)
		}
	}
	for name, try := range map[string]func(context.Context) error{
		"agent: status of another node":       s.status(s.agent, stolenOther),
		"agent: approves a device":            s.patch(s.agent, capacityOf(stolenNode), adoptDisk),
		"agent: drains a disk":                s.patch(s.agent, capacityOf(stolenNode), drainDisk),
		"agent: owns a disk":                  s.patch(s.agent, capacityOf(stolenNode), ownDisk),
		"agent: label":                        s.patch(s.agent, capacityOf(stolenNode), addLabel),
		"agent: deletes a NodeDiskCapacity":   s.delete(s.agent, capacityOf(stolenNode)),
		"agent: finalizer of another node's":  s.patch(s.agent, volumeOf("elsewhere"), unfinalize),
		"agent: finalizer of a foreign one":   s.patch(s.agent, volumeOf("foreign"), unfinalize),
		"agent: deletes a foreign one":        s.delete(s.agent, volumeOf("foreign")),
		"agent: deletes a hostPath":           s.delete(s.agent, volumeOf("host")),
		"agent: grows its node's":             s.patch(s.agent, volumeOf("own"), grow),
		"agent: makes a volume":               s.create(s.agent, ours),
		"agent: labels a Node":                s.patch(s.agent, nodeOf(stolenNode), addLabel),
		"agent: evicts a pod":                 s.evict(s.agent),
		"agent: reads a Secret":               s.secret(s.agent),
		"no node: status":                     s.status(s.nowhere, stolenNode),
		"no node: finalizer":                  s.patch(s.nowhere, volumeOf("own"), unfinalize),
		"scheduler: makes a hostPath":         s.create(s.scheduler, host),
		"scheduler: grows a foreign one":      s.patch(s.scheduler, volumeOf("foreign"), grow),
		"scheduler: finalizer of a hostPath":  s.patch(s.scheduler, volumeOf("host"), unfinalize),
		"scheduler: deletes a foreign one":    s.delete(s.scheduler, volumeOf("foreign")),
		"scheduler: approves a device":        s.patch(s.scheduler, capacityOf(stolenNode), adoptDisk),
		"scheduler: drains a disk":            s.patch(s.scheduler, capacityOf(stolenNode), drainDisk),
		"scheduler: labels a Node":            s.patch(s.scheduler, nodeOf(stolenNode), addLabel),
		"scheduler: reads a Secret":           s.secret(s.scheduler),
		"jane: status of a NodeDiskCapacity":  s.status(s.jane, stolenNode),
		"jane: owner of a NodeDiskCapacity's": s.patch(s.jane, capacityOf(stolenNode), ownDisk),
	} {
		if err := try(t.Context()); err == nil || !apierrors.IsForbidden(err) && !apierrors.IsInvalid(err) {
			t.Errorf("%s: got error %v, want a refusal", name, err)
		}
	}
	if err := s.status(s.nowhere, stolenNode)(t.Context()); !missing && !strings.Contains(err.Error(), "a token without a node may not write") {
		t.Errorf("a token without a node gets the error %v", err)
	}
	// Nothing of others depends on Berth's bindings.
	for name, try := range map[string]func(context.Context) error{
		"a volume of another driver": s.patch(s.jane, volumeOf("foreign"), unfinalize),
		"a hostPath":                 s.create(s.jane, host),
		"deleting a hostPath":        s.delete(s.jane, volumeOf("host")),
		"a Node":                     s.patch(s.jane, nodeOf(stolenNode), addLabel),
		"a pod":                      s.create(s.jane, podOf("other")),
	} {
		if err := try(t.Context()); err != nil {
			t.Errorf("another user may not write %s: %v", name, err)
		}
	}
}

// on is the same for a subtest.
func (s *stolen) on(t *testing.T) *stolen {
	out := *s
	out.t = t
	return &out
}

// rename gives Berth's rights to accounts of another namespace, with other names.
func (s *stolen) rename() {
	bindings := &rbacv1.ClusterRoleBindingList{}
	if err := s.Client().List(s.t.Context(), bindings); err != nil {
		s.t.Fatal(err)
	}
	for i := range bindings.Items {
		binding := &bindings.Items[i]
		renamed := false
		for j := range binding.Subjects {
			subject := &binding.Subjects[j]
			for from, to := range map[string]string{"berth-nodeagent": "disk-agent", "berth-scheduler": "disk-scheduler"} {
				if subject.Kind == rbacv1.ServiceAccountKind && subject.Name == from {
					subject.Namespace, subject.Name, renamed = stolenSpace, to, true
				}
			}
		}
		if renamed {
			if err := s.Client().Update(s.t.Context(), binding); err != nil {
				s.t.Fatal(err)
			}
		}
	}
}

// objects makes what the tokens are tried on.
func (s *stolen) objects() {
	pv := func(name, driver, node string) *corev1.PersistentVolume {
		out := volumeOf(name)
		out.Finalizers = []string{"example.com/held"}
		out.Spec = volumeSpec(corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: driver, VolumeHandle: name}}, node)
		return out
	}
	host := volumeOf("host")
	host.Finalizers = []string{"example.com/held"}
	host.Spec = volumeSpec(corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/etc"}}, "")
	tainted := nodeOf(stolenNode)
	tainted.Spec.Taints = []corev1.Taint{{Key: diskv1alpha1.TaintNotReady, Effect: corev1.TaintEffectNoSchedule}}
	account := func(name string) *corev1.ServiceAccount {
		return &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: stolenSpace, Name: name}}
	}
	for _, object := range []client.Object{
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: stolenSpace}}, account("disk-agent"), account("disk-scheduler"),
		tainted, nodeOf(stolenOther), capacityOf(stolenNode), capacityOf(stolenOther), podOf("pod"),
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "secret"}},
		pv("own", diskv1alpha1.DriverName, stolenNode), pv("elsewhere", diskv1alpha1.DriverName, stolenOther), pv("foreign", "other.example.com", stolenNode), host,
	} {
		if err := s.Client().Create(s.t.Context(), object); err != nil {
			s.t.Fatal(err)
		}
	}
	// The API server has given the Node a taint of its own.
	tainted.Spec.Taints = []corev1.Taint{{Key: diskv1alpha1.TaintNotReady, Effect: corev1.TaintEffectNoSchedule}}
	if err := s.Client().Update(s.t.Context(), tainted); err != nil {
		s.t.Fatal(err)
	}
}

// token is a client with the token of one of Berth's accounts, as the kubelet gives it to a pod.
func (s *stolen) token(account string, bound *authenticationv1.BoundObjectReference) client.Client {
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: bound}}
	who := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: stolenSpace, Name: account}}
	if err := s.Client().SubResource("token").Create(s.t.Context(), who, request); err != nil {
		s.t.Fatal(err)
	}
	config := rest.AnonymousClientConfig(s.RESTConfig())
	config.BearerToken = request.Status.Token
	out, err := client.New(config, client.Options{Scheme: s.Client().Scheme(), Mapper: s.Client().RESTMapper()})
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

func (s *stolen) status(who client.Client, node string) func(context.Context) error {
	return func(ctx context.Context) error {
		return who.Status().Patch(ctx, capacityOf(node), client.RawPatch(types.MergePatchType, []byte(`{"status":{"summary":{"disks":1,"volumes":0}}}`)), client.DryRunAll)
	}
}

func (s *stolen) patch(who client.Client, object client.Object, body string) func(context.Context) error {
	return func(ctx context.Context) error {
		return who.Patch(ctx, object, client.RawPatch(types.MergePatchType, []byte(body)), client.DryRunAll)
	}
}

func (s *stolen) create(who client.Client, object client.Object) func(context.Context) error {
	return func(ctx context.Context) error {
		return who.Create(ctx, object.DeepCopyObject().(client.Object), client.DryRunAll)
	}
}

func (s *stolen) delete(who client.Client, object client.Object) func(context.Context) error {
	return func(ctx context.Context) error { return who.Delete(ctx, object, client.DryRunAll) }
}

func (s *stolen) evict(who client.Client) func(context.Context) error {
	return func(ctx context.Context) error {
		return who.SubResource("eviction").Create(ctx, podOf("pod"), &policyv1.Eviction{}, client.DryRunAll)
	}
}

func (s *stolen) secret(who client.Client) func(context.Context) error {
	return func(ctx context.Context) error {
		return who.Get(ctx, client.ObjectKey{Namespace: "default", Name: "secret"}, &corev1.Secret{})
	}
}

func nodeOf(name string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
}

func capacityOf(name string) *diskv1alpha1.NodeDiskCapacity {
	return &diskv1alpha1.NodeDiskCapacity{ObjectMeta: metav1.ObjectMeta{Name: name}}
}

func volumeOf(name string) *corev1.PersistentVolume {
	return &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name}}
}

// podOf is a pod that Berth has nothing to do with.
func podOf(name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: "pause"}}},
	}
}

// volumeSpec is the spec of a volume, maybe of one that is on a node.
func volumeSpec(source corev1.PersistentVolumeSource, node string) corev1.PersistentVolumeSpec {
	out := corev1.PersistentVolumeSpec{
		Capacity:    corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")},
		AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, PersistentVolumeSource: source,
	}
	if node != "" {
		out.NodeAffinity = &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
			MatchExpressions: []corev1.NodeSelectorRequirement{{Key: diskv1alpha1.LabelNode, Operator: corev1.NodeSelectorOpIn, Values: []string{node}}},
		}}}}
	}
	return out
}
