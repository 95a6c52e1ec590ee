package diskcapacity

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"
	st "k8s.io/kubernetes/pkg/scheduler/testing"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/units"
)

// hint calls the hint that is registered for the event.
func (b *bench) hint(t testing.TB, resource fwk.EventResource, action fwk.ActionType, pod *corev1.Pod, old, obj any) fwk.QueueingHint {
	t.Helper()
	events, err := b.plugin.EventsToRegister(b.ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events {
		if e.Event.Resource == resource && e.Event.ActionType&action != 0 {
			hint, err := e.QueueingHintFn(klog.Background(), pod, old, obj)
			if err != nil {
				t.Fatal(err)
			}
			return hint
		}
	}
	t.Fatalf("no hint for %s", resource)
	return fwk.QueueSkip
}

// record folds in a bound pod, with its volume at that start.
func record(t *testing.T, b *bench, pod *corev1.Pod, start int64) {
	t.Helper()
	at := volumeOf(pod, start, mustVolumes(t, pod)[0].Request.Size/units.GiB)
	value, err := diskv1alpha1.EncodeRecord([]diskv1alpha1.RecordVolume{{Name: "data", Disk: diskOf("n1"), Extent: at.Extent}})
	if err != nil {
		t.Fatal(err)
	}
	bound := pod.DeepCopy()
	bound.Spec.NodeName = "n1"
	bound.Annotations = map[string]string{diskv1alpha1.AnnotationAllocation: value}
	b.store(t, bound)
}

func TestHintForDeletedPods(t *testing.T) {
	b := newBench(t, nil, "n1")
	b.publish(t, "n1", 10)
	holder := podOf("holder", 8)
	state, _ := b.filter(t, holder)
	if status := b.framework.RunReservePluginsReserve(b.ctx, state, holder, "n1"); !status.IsSuccess() {
		t.Fatal(status)
	}
	value, err := b.plugin.encodeRecord(holder, "n1", mustVolumes(t, holder))
	if err != nil {
		t.Fatal(err)
	}
	bound := holder.DeepCopy()
	bound.Spec.NodeName = "n1"
	bound.Annotations = map[string]string{diskv1alpha1.AnnotationAllocation: value}
	b.store(t, bound)
	pod := podOf("a", 6)

	// The scheduler gives up a binding that was done: it reports the assumed pod as deleted, while the API server has
	// it bound.
	assumed := holder.DeepCopy()
	assumed.Spec.NodeName = "n1"
	if hint := b.hint(t, fwk.Pod, fwk.Delete, pod, assumed, nil); hint != fwk.QueueSkip {
		t.Error("woken by the deletion of a pod that exists")
	}
	if node, _ := b.plugin.ledger.Records(string(holder.UID)); node != "n1" {
		t.Error("the record of a bound pod was dropped")
	}
	plain := st.MakePod().Name("plain").UID("plain").Node("n1").Obj()
	if hint := b.hint(t, fwk.Pod, fwk.Delete, pod, plain, nil); hint != fwk.QueueSkip {
		t.Error("woken by the deletion of a pod without disks")
	}

	b.removeFromStore(t, bound)
	if hint := b.hint(t, fwk.Pod, fwk.Delete, pod, bound, nil); hint != fwk.Queue {
		t.Error("not woken by the deletion that freed space")
	}
	// The plugin's watch is late, and delivers an update from before the deletion.
	b.plugin.feed.foldPod(klog.Background(), bound)
	if _, statuses := b.filter(t, pod); !statuses["n1"].IsSuccess() {
		t.Errorf("a late event brought the record back: %v", statuses["n1"])
	}
}

// TestHintForAgent asserts that a pod that the hint wakes fits the node, although the plugin's handler has not seen the
// event. A late event of the state before does not undo that.
func TestHintForAgent(t *testing.T) {
	b := newBench(t, nil, "n1")
	b.publish(t, "n1", 10)
	b.agent(t, "n1")
	pod := podOf("a", 6)
	b.refuse(t, pod)
	before := b.csiNode(t, "n1")
	if hint := b.hint(t, fwk.CSINode, fwk.Update, pod, before, before); hint != fwk.QueueSkip {
		t.Error("woken without an agent")
	}
	after := b.csiNode(t, "n1", diskv1alpha1.DriverName)
	if hint := b.hint(t, fwk.CSINode, fwk.Update, pod, before, after); hint != fwk.Queue {
		t.Error("not woken by an agent that registered")
	}
	b.plugin.feed.foldCSINodeEvent(klog.Background(), before)
	if _, statuses := b.filter(t, pod); !statuses["n1"].IsSuccess() {
		t.Errorf("the agent is not known: %v", statuses["n1"])
	}
}

// TestAgentAfterPod asserts that a pod is woken that came after the scheduler's handler of the event and was tried
// before the plugin's handler.
func TestAgentAfterPod(t *testing.T) {
	b := newBench(t, nil, "n1")
	b.publish(t, "n1", 10)
	b.agent(t, "n1")
	after := b.csiNode(t, "n1", diskv1alpha1.DriverName)
	pod := podOf("a", 6)
	b.refuse(t, pod)
	b.plugin.feed.foldCSINodeEvent(klog.Background(), after)
	if !b.woken(pod) {
		t.Error("not woken")
	}
	if err := b.factory.Storage().V1().CSINodes().Informer().GetIndexer().Delete(after); err != nil {
		t.Fatal(err)
	}
	b.plugin.feed.foldCSINodeEvent(klog.Background(), cache.DeletedFinalStateUnknown{Key: "n1", Obj: after})
	if _, statuses := b.filter(t, pod); statuses["n1"].IsSuccess() {
		t.Error("fits a node without a CSINode")
	}
}

// TestHintForPublishedVolume asserts that the end of a pod whose volume is still to be wiped wakes no pod. The
// publication of the wiped space does.
func TestHintForPublishedVolume(t *testing.T) {
	b := newBench(t, nil, "n1")
	gone := podOf("gone", 8)
	gone.Spec.NodeName = "n1"
	b.publish(t, "n1", 2, volumeOf(gone, 0, 8))
	pod := podOf("a", 6)
	if hint := b.hint(t, fwk.Pod, fwk.Delete, pod, gone, nil); hint != fwk.QueueSkip {
		t.Error("woken before the volume is wiped")
	}
	b.refuse(t, pod)
	if b.publish(t, "n1", 10); !b.woken(pod) {
		t.Error("not woken by the wiped volume")
	}
}

func TestHintsForTheRest(t *testing.T) {
	b := newBench(t, nil, "n1")
	pod := podOf("a", 6)
	csiNode := &storagev1.CSINode{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}
	if hint := b.hint(t, fwk.CSINode, fwk.Update, pod, nil, csiNode); hint != fwk.QueueSkip {
		t.Error("woken by a node that has published nothing")
	}
	b.publish(t, "n1", 10)
	if hint := b.hint(t, fwk.CSINode, fwk.Update, pod, csiNode, csiNode); hint != fwk.Queue {
		t.Error("not woken by an agent that registered")
	}
	registered := csiNode.DeepCopy()
	registered.Spec.Drivers = []storagev1.CSINodeDriver{{Name: diskv1alpha1.DriverName}}
	if hint := b.hint(t, fwk.CSINode, fwk.Update, pod, registered, registered); hint != fwk.QueueSkip {
		t.Error("woken by another driver, or nothing new")
	}
	if hint := b.hint(t, fwk.Node, fwk.UpdateNodeTaint, pod, st.MakeNode().Name("n1").Obj(), st.MakeNode().Name("n1").Obj()); hint != fwk.QueueSkip {
		t.Error("woken by a taint, for which we reject no pod")
	}
	if hint := b.hint(t, fwk.Node, fwk.Add, pod, nil, st.MakeNode().Name("n1").Obj()); hint != fwk.Queue {
		t.Error("not woken by a node that joined")
	}
	if hint := b.hint(t, fwk.Node, fwk.Add, pod, nil, st.MakeNode().Name("n2").Obj()); hint != fwk.QueueSkip {
		t.Error("woken by a node without disks")
	}
}
