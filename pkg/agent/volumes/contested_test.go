package volumes

import (
	"errors"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/disk"
)

// successor is a pod whose volume is recorded at the extent that a partition still has.
func (f *fixture) successor(partition string) (pod *corev1.Pod, own string) {
	f.t.Helper()
	d, on, found := f.node.find(partition)
	if !found {
		f.t.Fatalf("there is no partition %s", partition)
	}
	record, err := diskv1alpha1.EncodeRecord([]diskv1alpha1.RecordVolume{{
		Name: "data", Disk: d.ID(), Extent: diskv1alpha1.Extent{Start: on.Extent.Start, Length: on.Extent.Len()},
	}})
	if err != nil {
		f.t.Fatal(err)
	}
	pod, own = inlinePod("successor")
	metav1.SetMetaDataAnnotation(&pod.ObjectMeta, diskv1alpha1.AnnotationAllocation, record)
	f.api.put(pod)
	f.watchedPod(pod)
	return pod, own
}

// TestSuccessorWaits asserts that a volume waits for its recorded extent while it is in use. It is in use by a pod
// whose end the node has not seen. The volume gets the extent as soon as that pod's volume is wiped.
func TestSuccessorWaits(t *testing.T) {
	f := newFixture(t)
	f.loopDisk()
	pods, partitions := f.running("gone")
	_, at, _ := f.node.find(partitions[0])
	pod, own := f.successor(partitions[0])
	id := diskv1alpha1.InlineVolumeID(pod.UID, "data")
	before := f.events.with()
	f.realize(pod)
	f.phase(own, "")
	if err := f.Publish(t.Context(), PodRef{Namespace: "ns", Name: pod.Name, UID: pod.UID}, id, nil); !errors.Is(err, ErrWaiting) {
		t.Errorf("the kubelet is answered %v", err)
	}
	if got := f.events.with(); !slices.Equal(got, before) {
		t.Errorf("reported is %q", got)
	}
	f.api.set(func(s *apiServer) { delete(s.pods, "ns/gone") })
	f.unwatchPod(pods[0], false)
	f.settle()
	f.phase(partitions[0], "")
	f.realize(pod)
	f.phase(own, disk.Formatted)
	if _, got, _ := f.node.find(own); got.Extent != at.Extent {
		t.Errorf("the volume is at %v, recorded at %v", got.Extent, at.Extent)
	}
}

// TestSuccessorGoesElsewhere asserts that a volume whose recorded extent stays in use is put elsewhere on the node.
// That happens when recordPatience is over, and the volume is queued for that moment.
func TestSuccessorGoesElsewhere(t *testing.T) {
	f := newFixture(t)
	f.loopDisk()
	_, partitions := f.running("stays")
	pod, own := f.successor(partitions[0])
	for f.inline.queue.Len() > 0 {
		key, _ := f.inline.queue.Get()
		f.inline.queue.Done(key)
	}
	f.realize(pod)
	f.clock.Step(recordPatience - 1)
	f.realize(pod)
	f.phase(own, "")
	f.clock.Step(1)
	key, _ := f.inline.queue.Get() // Get blocks until a key is queued.
	f.inline.queue.Done(key)
	if key != keyOf(pod) {
		t.Errorf("queued is %s", key)
	}
	f.realize(pod)
	f.phase(own, disk.Formatted)
	if got := f.events.with("Pod VolumeReplaced", "is not free"); len(got) != 1 {
		t.Errorf("reported is %q", f.events.with())
	}
}

// TestContested asserts how long a volume waits for a recorded extent that is in use, and that it does not wait twice.
func TestContested(t *testing.T) {
	begin := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	inUse, other := want("v", 10, "a", 1), want("w", 10, "a", 1)
	inUse.inUse = true
	for _, test := range []struct {
		name string
		rest []wanted
		// after are the times of the calls of check since the beginning, left the answer of the last one.
		after []time.Duration
		left  time.Duration
	}{
		{name: "first", rest: []wanted{inUse}, after: []time.Duration{0}, left: recordPatience},
		{name: "later", rest: []wanted{inUse}, after: []time.Duration{0, time.Second}, left: recordPatience - time.Second},
		{name: "over", rest: []wanted{inUse}, after: []time.Duration{0, recordPatience}},
		{name: "over for good", rest: []wanted{inUse}, after: []time.Duration{0, recordPatience, recordMemory}},
		{name: "forgotten", rest: []wanted{inUse}, after: []time.Duration{0, recordMemory + 1}, left: recordPatience},
		{name: "for another reason", rest: []wanted{other}, after: []time.Duration{0}},
		{name: "one of two", rest: []wanted{other, inUse}, after: []time.Duration{0}, left: recordPatience},
	} {
		c, err := contested{}, error(nil)
		for _, after := range test.after {
			err = c.check(test.rest, begin.Add(after))
		}
		if left, waits := waitsForRecord(err); left != test.left || waits != (test.left > 0) {
			t.Errorf("%s: waits %v for %v, want %v", test.name, waits, left, test.left)
		}
	}
}
