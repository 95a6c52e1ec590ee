package integration

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/objects"
	"github.com/berthdev/berth/test/testenv"
)

// alone runs one scheduler until the test ends.
func (a *agents) alone(t *testing.T) *schedulerProcess {
	t.Helper()
	return runScheduler(t, a.cluster, "system:serviceaccount:kube-system:berth-scheduler", "leaderElect: true", "leaderElect: false")
}

// on makes the pod one that can only run on that node.
func on(node string, pod *corev1.Pod) *corev1.Pod {
	pod.Spec.NodeSelector = map[string]string{corev1.LabelHostname: node}
	return pod
}

// refusal: a policy forbids bindings to the node that fits best. Each pod tries it once, goes
// elsewhere if it can, and comes back only when the node has published something new. The
// next leader, too, has to be refused once.
func refusal(t *testing.T, a *agents) {
	run := schedulerProgram(t, a.cluster, "", "leaderElect: true", "leaderElect: false")
	scheduler := run()
	// What it leaves is the tightest place there is.
	filler := on("agent1", a.wholePod("filler"))
	filler.Spec.Volumes[0].CSI.VolumeAttributes[diskv1alpha1.AttributeSize] = strconv.FormatInt(a.whole-smallVolume, 10)
	a.create(t, filler)
	a.waitBound(t, 1)
	a.asRecorded(t)
	allow := a.forbidBindings(t, "agent1")
	before := a.writes(t)["POST pods/binding (422)"]
	tries := func() int { return int(a.writes(t)["POST pods/binding (422)"] - before) }

	anywhere := smallPod("anywhere")
	a.create(t, anywhere)
	a.waitNode(t, anywhere)
	if anywhere.Spec.NodeName == "agent1" || tries() != 1 {
		t.Errorf("the pod is on %s after %d bindings that were refused", anywhere.Spec.NodeName, tries())
	}
	there := on("agent1", smallPod("there"))
	a.create(t, there)
	const says = "the API server refused to bind the pod to this node"
	a.waitCondition(t, there.Name, says)
	// Others come and go.
	for i := range 3 {
		pod := on("agent2", smallPod(fmt.Sprintf("passer-by-%d", i)))
		a.create(t, pod)
		a.waitNode(t, pod)
		if err := a.client.Delete(t.Context(), pod, client.GracePeriodSeconds(0)); err != nil {
			t.Fatal(err)
		}
	}
	if n := tries(); n != 2 {
		t.Errorf("%d bindings were refused, want one of each pod", n)
	}

	scheduler.kill()
	scheduler = run()
	a.eventually(t, func(context.Context) error {
		for line := range strings.Lines(scheduler.log()) {
			if strings.Contains(line, there.Name) && strings.Contains(line, says) {
				return nil
			}
		}
		return errors.New("the next scheduler has not been refused")
	})
	if n := tries(); n != 3 {
		t.Errorf("%d bindings were refused, want one more", n)
	}

	allow()
	// Whatever the node publishes: here, that there is more room.
	if err := a.client.Delete(t.Context(), filler, client.GracePeriodSeconds(0)); err != nil {
		t.Fatal(err)
	}
	a.waitNode(t, there)
	a.asRecorded(t)
}

// forbidBindings prevents pods from being bound to the node until allow is called.
func (a *agents) forbidBindings(t *testing.T, node string) (allow func()) {
	t.Helper()
	fail := admissionv1.Fail
	policy := &admissionv1.ValidatingAdmissionPolicy{ObjectMeta: metav1.ObjectMeta{Name: "not-there"}}
	policy.Spec.FailurePolicy = &fail
	policy.Spec.MatchConstraints = &admissionv1.MatchResources{ResourceRules: []admissionv1.NamedRuleWithOperations{{
		RuleWithOperations: admissionv1.RuleWithOperations{
			Operations: []admissionv1.OperationType{admissionv1.Create},
			Rule:       admissionv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods/binding"}},
		},
	}}}
	policy.Spec.Validations = []admissionv1.Validation{{Expression: fmt.Sprintf("object.target.name != %q", node), Message: "not there"}}
	binding := &admissionv1.ValidatingAdmissionPolicyBinding{ObjectMeta: policy.ObjectMeta}
	binding.Spec.PolicyName, binding.Spec.ValidationActions = policy.Name, []admissionv1.ValidationAction{admissionv1.Deny}
	probe := plainPod("probe", "none")
	a.make(t, policy, binding, probe)
	set, err := kubernetes.NewForConfig(a.cluster.RESTConfig())
	if err != nil {
		t.Fatal(err)
	}
	forbidden := func(ctx context.Context) error {
		b := &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Namespace: probe.Namespace, Name: probe.Name}, Target: corev1.ObjectReference{Kind: "Node", Name: node}}
		return set.CoreV1().Pods(probe.Namespace).Bind(ctx, b, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	}
	a.eventually(t, func(ctx context.Context) error {
		if err := forbidden(ctx); !apierrors.IsInvalid(err) {
			return fmt.Errorf("a binding ends with %w, want a refusal", err)
		}
		return nil
	})
	allow = func() {
		ctx := context.WithoutCancel(t.Context())
		for _, o := range []client.Object{binding, policy} {
			if err := client.IgnoreNotFound(a.client.Delete(ctx, o)); err != nil {
				t.Error(err)
			}
		}
		a.eventually(t, forbidden)
		if err := client.IgnoreNotFound(a.client.Delete(ctx, probe, client.GracePeriodSeconds(0))); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(func() {
		for _, o := range []client.Object{binding, policy} {
			if err := client.IgnoreNotFound(a.client.Delete(context.WithoutCancel(t.Context()), o)); err != nil {
				t.Error(err)
			}
		}
	})
	return allow
}

// agentStopped: pods are placed on what a node published last, and no more than that. The agent
// makes what was placed meanwhile when it is back, all where it was recorded.
func agentStopped(t *testing.T, a *agents) {
	a.alone(t)
	if err := a.cluster.KillAgent("agent1"); err != nil {
		t.Fatal(err)
	}
	before := len(a.events(t, refused...))
	// The first has no event: it is gone before its node knew of it, and its place is free at once.
	for i := range disksEach + 1 {
		pod := on("agent1", a.wholePod(fmt.Sprintf("meanwhile-%d", i)))
		a.create(t, pod)
		a.waitNode(t, pod)
		if i == 0 {
			if err := a.client.Delete(t.Context(), pod, client.GracePeriodSeconds(0)); err != nil {
				t.Fatal(err)
			}
		}
	}
	surplus := on("agent1", smallPod("surplus"))
	a.create(t, surplus)
	a.waitCondition(t, surplus.Name, "free space of class ssd")
	if err := a.cluster.StartAgent(t.Context(), "agent1"); err != nil {
		t.Fatal(err)
	}
	a.asRecorded(t)
	if notes := a.events(t, refused...); len(notes) > before {
		t.Errorf("the agent refused what was placed without it: %q", notes)
	}
	// And it takes part again.
	pod := &a.bound(t)[0]
	if err := a.client.Delete(t.Context(), pod, client.GracePeriodSeconds(0)); err != nil {
		t.Fatal(err)
	}
	a.waitNode(t, surplus)
	a.asRecorded(t)
}

// agentNotRegistered: the kubelet has lost the driver. Pods that are there keep their volumes,
// none is sent there, and those that wait for the node are woken when the driver is back.
func agentNotRegistered(t *testing.T, a *agents) {
	a.alone(t)
	staying := on("agent2", smallPod("staying"))
	a.create(t, staying)
	a.waitNode(t, staying)
	a.asRecorded(t)
	setDrivers := func(drivers ...storagev1.CSINodeDriver) {
		t.Helper()
		csiNode := &storagev1.CSINode{ObjectMeta: metav1.ObjectMeta{Name: "agent2"}}
		a.reload(t, csiNode)
		csiNode.Spec.Drivers = append([]storagev1.CSINodeDriver{}, drivers...)
		if err := a.client.Update(t.Context(), csiNode); err != nil {
			t.Fatal(err)
		}
	}
	setDrivers()
	waiting := on("agent2", smallPod("waiting"))
	a.create(t, waiting)
	a.waitCondition(t, waiting.Name, "the agent of Berth is not registered with the kubelet of this node")
	// Its hole is the tightest there is.
	elsewhere := smallPod("elsewhere")
	a.create(t, elsewhere)
	a.waitNode(t, elsewhere)
	if elsewhere.Spec.NodeName == "agent2" {
		t.Error("a pod was sent to the node without the driver")
	}
	setDrivers(storagev1.CSINodeDriver{Name: diskv1alpha1.DriverName, NodeID: "agent2"})
	a.waitNode(t, waiting)
	a.asRecorded(t)
}

// nodeRecreated: a Node is deleted and comes back under its name, first with its disks, then
// with others.
func nodeRecreated(t *testing.T, a *agents) {
	a.alone(t)
	const name = "agent3"
	pvc := objects.Claim(schedulerTests, "kept", "ssd", "0")
	pvc.Spec.Resources.Requests[corev1.ResourceStorage] = *quantity(smallVolume)
	a.make(t, pvc)
	first := on(name, withClaims(smallPod("first"), pvc.Name))
	a.create(t, first)
	a.waitNode(t, first)
	pv, v := a.volumeOf(t, pvc.Name)
	a.asRecorded(t)

	// With its disks: what it published outlives the Node, and the claim's volume is where it was.
	a.remake(t, name)
	// The agent's pod goes with its Node, and the next one has a token of the new Node. The old token is valid only
	// until the API server's cache of tokens, 10 s, ends.
	if err := errors.Join(a.cluster.KillAgent(name), a.cluster.StartAgent(t.Context(), name)); err != nil {
		t.Fatal(err)
	}
	second := on(name, withClaims(smallPod("second"), pvc.Name))
	a.create(t, second)
	a.waitNode(t, second)
	a.asRecorded(t)
	if _, now := a.volumeOf(t, pvc.Name); now.Place != v.Place {
		t.Errorf("the claim's volume is at %+v, it was at %+v", now.Place, v.Place)
	}

	// With other disks, in haste: what is published is of the old ones until the agent runs.
	if err := a.cluster.KillAgent(name); err != nil {
		t.Fatal(err)
	}
	a.replaceDisks(t, name)
	a.remake(t, name)
	hasty := on(name, smallPod("hasty"))
	a.create(t, hasty)
	a.waitNode(t, hasty)
	old := slices.Collect(maps.Values(a.recorded(t)))
	if err := a.cluster.StartAgent(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	a.waitSays(t, "VolumeReplaced", "Pod hasty", "")
	// Nothing that was recorded of the old disks takes space of the new ones: one has the hasty
	// pod's volume, the other is whole.
	whole := on(name, a.wholePod("whole"))
	a.create(t, whole)
	a.waitNode(t, whole)
	// The claim leads its pod here. Its volume was on a disk that is published as missing, and that
	// stays so until an operator says that it is gone for good.
	third := withClaims(plainPod("third", "berth"), pvc.Name)
	a.create(t, third)
	a.waitNode(t, third)
	if third.Spec.NodeName != name {
		t.Errorf("the pod of the claim is on %s", third.Spec.NodeName)
	}
	a.waitDisk(t, name, v.Place.Disk, diskv1alpha1.DiskFailed)
	ndc := &diskv1alpha1.NodeDiskCapacity{ObjectMeta: metav1.ObjectMeta{Name: name}}
	forget := fmt.Appendf(nil, `{"metadata":{"annotations":{%q:%q}}}`, diskv1alpha1.AnnotationForgetDisks, v.Place.Disk)
	if err := a.client.Patch(t.Context(), ndc, client.RawPatch(types.MergePatchType, forget)); err != nil {
		t.Fatal(err)
	}
	a.waitDisk(t, name, v.Place.Disk, "")
	// Nor is it made again then, empty, as long as its PersistentVolume says that it has been there.
	a.waitSays(t, "VolumeDiskMissing", "PersistentVolume "+pv.Name, v.Place.Disk)
	realized := a.realized(t)
	if is, there := realized[v.Partition]; there {
		t.Errorf("the volume of the old disk was made again at %+v", is)
	}
	for partition, is := range realized {
		for _, was := range old {
			if is.disk == was.disk {
				t.Errorf("volume %s is on disk %s, which is gone", partition, was.disk)
			}
		}
	}
	// As docs/operate/nodes.md says about volumes of nodes that are gone.
	for _, o := range []client.Object{third, pvc, pv} {
		if err := a.client.Delete(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.client.Delete(t.Context(), third, client.GracePeriodSeconds(0)); client.IgnoreNotFound(err) != nil {
		t.Fatal(err)
	}
	a.eventually(t, func(ctx context.Context) error {
		if err := a.client.Get(ctx, client.ObjectKeyFromObject(pv), pv); err != nil {
			return client.IgnoreNotFound(err)
		}
		controllerutil.RemoveFinalizer(pv, diskv1alpha1.FinalizerVolume)
		return errors.Join(errors.New("the volume is still there"), client.IgnoreNotFound(a.client.Update(ctx, pv)))
	})
}

// remake deletes a Node with its pods, as the cloud's controllers do, and makes one of that name.
// What the old one published stays.
func (a *agents) remake(t *testing.T, name string) {
	t.Helper()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	a.reload(t, node)
	if err := a.client.Delete(t.Context(), node); err != nil {
		t.Fatal(err)
	}
	for _, pod := range a.bound(t) {
		if pod.Spec.NodeName == name {
			if err := a.client.Delete(t.Context(), &pod, client.GracePeriodSeconds(0)); err != nil {
				t.Fatal(err)
			}
		}
	}
	recreated := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: node.Labels}}
	a.make(t, recreated)
	recreated.Status.Capacity, recreated.Status.Allocatable, recreated.Status.Conditions = node.Status.Capacity, node.Status.Allocatable, node.Status.Conditions
	if err := a.client.Status().Update(t.Context(), recreated); err != nil {
		t.Fatal(err)
	}
	// The API server taints every new node.
	recreated.Spec.Taints = nil
	if err := a.client.Update(t.Context(), recreated); err != nil {
		t.Fatal(err)
	}
}

// waitDisk waits until a node publishes the disk in that state; it does not publish it, if that
// is empty, but does others.
func (a *agents) waitDisk(t *testing.T, name, disk string, state diskv1alpha1.DiskState) {
	t.Helper()
	a.eventually(t, func(ctx context.Context) error {
		ndc := &diskv1alpha1.NodeDiskCapacity{}
		if err := a.client.Get(ctx, client.ObjectKey{Name: name}, ndc); err != nil {
			return err
		}
		var is diskv1alpha1.DiskState
		for _, d := range ndc.Status.Disks {
			if d.ID == disk {
				is = d.State
			}
		}
		if is != state || len(ndc.Status.Disks) == 0 {
			return fmt.Errorf("disk %s of node %s is %q among %d, want %q", disk, name, is, len(ndc.Status.Disks), state)
		}
		return nil
	})
}

// replaceDisks makes blank disks of those of a node whose agent is not running.
func (a *agents) replaceDisks(t *testing.T, name string) {
	t.Helper()
	node, err := a.cluster.Node(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range node.Disks {
		(&testDisk{path: d.Path}).forget(t)
		testenv.Run(t, "blkdiscard", "--zeroout", d.Path)
	}
}
