package diskcapacity

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"
	st "k8s.io/kubernetes/pkg/scheduler/testing"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
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

func unstructuredOf(t testing.TB, obj runtime.Object) *unstructured.Unstructured {
	t.Helper()
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(obj)
	if err != nil {
		t.Fatal(err)
	}
	return &unstructured.Unstructured{Object: content}
}

// TestHintFoldsTheCapacity: the scheduler's event comes before our own watch's.
func TestHintFoldsTheCapacity(t *testing.T) {
	b := newBench(t, nil, "n1")
	pod := podOf("a", 6)
	b.publish(t, "n1", 2)
	if hint := b.hint(t, capacityEvents, fwk.Update, pod, nil, unstructuredOf(t, b.capacity("n1", 5))); hint != fwk.QueueSkip {
		t.Error("woken by 5 GiB for 6")
	}
	old := unstructuredOf(t, b.capacity("n1", 7))
	if hint := b.hint(t, capacityEvents, fwk.Update, pod, nil, unstructuredOf(t, b.capacity("n1", 6))); hint != fwk.Queue {
		t.Error("not woken by 6 GiB for 6")
	}
	if _, statuses := b.filter(t, pod); !statuses["n1"].IsSuccess() {
		t.Errorf("woken, but the ledger has not heard: %v", statuses["n1"])
	}
	if hint := b.hint(t, capacityEvents, fwk.Update, podOf("b", 7), nil, old); hint != fwk.QueueSkip {
		t.Error("woken by a capacity that is older than what is known")
	}
	b.agent(t, "n1")
	if hint := b.hint(t, capacityEvents, fwk.Update, pod, nil, unstructuredOf(t, b.capacity("n1", 10))); hint != fwk.QueueSkip {
		t.Error("woken by a node without an agent")
	}
}

// TestHintOnlyWhenRoomWasMade: a pod that has room on a node, but is kept away from it by
// another plugin, is not woken by whatever that node publishes.
func TestHintOnlyWhenRoomWasMade(t *testing.T) {
	two := func(name string, sizeGiB int64) *corev1.Pod {
		return withVolume(podOf(name, sizeGiB), "more", fmt.Sprintf("%dGi", sizeGiB), "ssd")
	}
	other := podOf("other", 4)
	tests := map[string]struct {
		pod      *corev1.Pod
		old, now func(b *bench) *diskv1alpha1.NodeDiskCapacity
		prepare  func(t *testing.T, b *bench)
		want     fwk.QueueingHint
	}{
		"nothing changed":         {podOf("a", 6), free(10), free(10), nil, fwk.QueueSkip},
		"less":                    {podOf("a", 6), free(10), free(8), nil, fwk.QueueSkip},
		"more, but enough before": {podOf("a", 6), free(6), free(10), nil, fwk.QueueSkip},
		"grown to the request":    {podOf("a", 6), free(5), free(6), nil, fwk.Queue},
		"not yet":                 {podOf("a", 6), free(2), free(5), nil, fwk.QueueSkip},
		"grown for one of two":    {two("a", 3), free(3), free(5), nil, fwk.QueueSkip},
		"grown for both":          {two("a", 3), free(5), free(6), nil, fwk.Queue},
		"a node that is new":      {podOf("a", 6), nil, free(10), nil, fwk.Queue},
		"made anew": {podOf("a", 6), func(b *bench) *diskv1alpha1.NodeDiskCapacity {
			ndc := b.capacity("n1", 10)
			ndc.UID = "earlier"
			return ndc
		}, free(10), nil, fwk.Queue},
		"was nonsense": {podOf("a", 6), func(b *bench) *diskv1alpha1.NodeDiskCapacity {
			ndc := b.capacity("n1", 10)
			ndc.Status.Disks[0].Size = 1
			return ndc
		}, free(10), nil, fwk.Queue},
		"taken by a record before and now": {podOf("a", 7), free(8), free(10), func(t *testing.T, b *bench) { record(t, b, other, 0) }, fwk.QueueSkip},
		"the record's place, which the node did not use": {podOf("a", 6), free(8), func(b *bench) *diskv1alpha1.NodeDiskCapacity {
			ndc := b.capacity("n1", 8)
			ndc.Status.Disks[0].Allocations = []diskv1alpha1.Allocation{volumeOf(other, 20, 4)}
			return ndc
		}, func(t *testing.T, b *bench) { record(t, b, other, 0) }, fwk.Queue},
		"of a class that is gone": {withVolume(st.MakePod().Name("a").UID("a").Obj(), "data", "1Gi", "gone"), nil, func(b *bench) *diskv1alpha1.NodeDiskCapacity {
			ndc := b.capacity("n1", 10)
			ndc.Status.Disks[0].Class = "gone"
			return ndc
		}, nil, fwk.QueueSkip},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			for _, ahead := range []bool{false, true} {
				b := newBench(t, nil, "n1")
				var old any
				if test.old != nil {
					ndc := test.old(b)
					if err := b.plugin.feed.capacities.Add(ndc); err != nil {
						t.Fatal(err)
					}
					old = unstructuredOf(t, ndc)
				}
				if test.prepare != nil {
					test.prepare(t, b)
				}
				now := test.now(b)
				if ahead { // our own watch was quicker
					if err := b.plugin.feed.capacities.Add(now); err != nil {
						t.Fatal(err)
					}
				}
				for range 2 { // the second time from the memory
					if hint := b.hint(t, capacityEvents, fwk.Update, test.pod, old, unstructuredOf(t, now)); hint != test.want {
						t.Errorf("our watch ahead: %v: got %v, want %v", ahead, hint, test.want)
					}
				}
			}
		})
	}
}

func free(sizeGiB int64) func(*bench) *diskv1alpha1.NodeDiskCapacity {
	return func(b *bench) *diskv1alpha1.NodeDiskCapacity { return b.capacity("n1", sizeGiB) }
}

// record makes a bound pod known, with its volume at the start.
func record(t *testing.T, b *bench, pod *corev1.Pod, start int64) {
	t.Helper()
	at := volumeOf(pod, start, mustVolumes(t, pod)[0].Request.Size/gib)
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
	value, err := b.plugin.encode(holder, "n1", mustVolumes(t, holder))
	if err != nil {
		t.Fatal(err)
	}
	bound := holder.DeepCopy()
	bound.Spec.NodeName = "n1"
	bound.Annotations = map[string]string{diskv1alpha1.AnnotationAllocation: value}
	b.store(t, bound)
	pod := podOf("a", 6)

	// The scheduler gives up a binding that really happened: it reports the assumed pod
	// as deleted, while the API server has it bound.
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

	b.remove(t, bound)
	if hint := b.hint(t, fwk.Pod, fwk.Delete, pod, bound, nil); hint != fwk.Queue {
		t.Error("not woken by the deletion that made room")
	}
	// Our own watch is late, and delivers an update from before the deletion.
	b.plugin.feed.foldPod(klog.Background(), bound)
	if _, statuses := b.filter(t, pod); !statuses["n1"].IsSuccess() {
		t.Errorf("a late event brought the record back: %v", statuses["n1"])
	}
}

// TestHintForPublishedVolume: the pod is gone, but its volume is still to be wiped.
func TestHintForPublishedVolume(t *testing.T) {
	b := newBench(t, nil, "n1")
	gone := podOf("gone", 8)
	gone.Spec.NodeName = "n1"
	b.publish(t, "n1", 2, volumeOf(gone, 0, 8))
	pod := podOf("a", 6)
	if hint := b.hint(t, fwk.Pod, fwk.Delete, pod, gone, nil); hint != fwk.QueueSkip {
		t.Error("woken before the volume is wiped")
	}
	if hint := b.hint(t, capacityEvents, fwk.Update, pod, nil, unstructuredOf(t, b.capacity("n1", 10))); hint != fwk.Queue {
		t.Error("not woken by the wiped volume")
	}
}

func TestHintsForTheRest(t *testing.T) {
	b := newBench(t, nil, "n1")
	pod := podOf("a", 6)
	tape := withVolume(st.MakePod().Name("b").UID("b").Obj(), "data", "1Gi", "tape")
	class := unstructuredOf(t, &diskv1alpha1.DiskClass{ObjectMeta: metav1.ObjectMeta{Name: "tape"}})
	if hint := b.hint(t, classEvents, fwk.Add, pod, nil, class); hint != fwk.QueueSkip {
		t.Error("woken by a class that the pod does not want")
	}
	if hint := b.hint(t, classEvents, fwk.Add, tape, nil, class); hint != fwk.Queue {
		t.Error("not woken by the class it wants")
	}
	if _, known := b.plugin.feed.classes.policy("tape"); !known {
		t.Error("the class is not known")
	}
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
		t.Error("woken by a taint, for which we reject nobody")
	}
	if hint := b.hint(t, fwk.Node, fwk.Add, pod, nil, st.MakeNode().Name("n1").Obj()); hint != fwk.Queue {
		t.Error("not woken by a node that joined")
	}
	if hint := b.hint(t, fwk.Node, fwk.Add, pod, nil, st.MakeNode().Name("n2").Obj()); hint != fwk.QueueSkip {
		t.Error("woken by a node without disks")
	}
}

func BenchmarkHintForCapacity(b *testing.B) {
	env := newBench(b, nil, "n1")
	pod := podOf("a", 20)
	object := unstructuredOf(b, env.capacity("n1", 10))
	b.ReportAllocs()
	for b.Loop() {
		if hint, err := env.plugin.afterCapacity(klog.Background(), pod, nil, object); hint != fwk.QueueSkip || err != nil {
			b.Fatal(hint, err)
		}
	}
}
