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

// makeSuccessor is a pod whose volume is recorded at the extent that a partition still has.
func (f *fixture) makeSuccessor(partition string) (pod *corev1.Pod, own string) {
	f.t.Helper()
	d, on, found := f.node.findVolume(partition)
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
	f.addPod(pod)
	return pod, own
}

// TestSuccessorWaits asserts that a volume waits for its recorded extent while it is in use. It is in use by a pod
// whose end the node has not seen. The volume gets the extent as soon as that pod's volume is wiped.
func TestSuccessorWaits(t *testing.T) {
	f := newFixture(t)
	f.loopDisk()
	pods, partitions := f.makePods("gone")
	_, at, _ := f.node.findVolume(partitions[0])
	pod, own := f.makeSuccessor(partitions[0])
	id := diskv1alpha1.InlineVolumeID(pod.UID, "data")
	before := f.events.with()
	f.syncPod(pod)
	f.checkPhase(own, "")
	if err := f.Publish(t.Context(), PodRef{Namespace: "ns", Name: pod.Name, UID: pod.UID}, id, nil); !errors.Is(err, ErrWaiting) {
		t.Errorf("the kubelet is answered %v", err)
	}
	if got := f.events.with(); !slices.Equal(got, before) {
		t.Errorf("reported is %q", got)
	}
	f.api.set(func(s *apiServer) { delete(s.pods, "ns/gone") })
	f.deletePod(pods[0], false)
	f.waitIdle()
	f.checkPhase(partitions[0], "")
	f.syncPod(pod)
	f.checkPhase(own, disk.Formatted)
	if _, got, _ := f.node.findVolume(own); got.Extent != at.Extent {
		t.Errorf("the volume is at %v, recorded at %v", got.Extent, at.Extent)
	}
}

// TestSuccessorGoesElsewhere asserts that a volume whose recorded extent stays in use is put elsewhere on the node.
// That happens when recordTimeout is over, and the volume is queued for that moment.
func TestSuccessorGoesElsewhere(t *testing.T) {
	f := newFixture(t)
	f.loopDisk()
	_, partitions := f.makePods("stays")
	pod, own := f.makeSuccessor(partitions[0])
	for f.inlineController.queue.Len() > 0 {
		key, _ := f.inlineController.queue.Get()
		f.inlineController.queue.Done(key)
	}
	f.syncPod(pod)
	f.clock.Step(recordTimeout - 1)
	f.syncPod(pod)
	f.checkPhase(own, "")
	f.clock.Step(1)
	key, _ := f.inlineController.queue.Get() // Get blocks until a key is queued.
	f.inlineController.queue.Done(key)
	if key != keyOf(pod) {
		t.Errorf("queued is %s", key)
	}
	f.syncPod(pod)
	f.checkPhase(own, disk.Formatted)
	if got := f.events.with("Pod VolumeReplaced", "is not free"); len(got) != 1 {
		t.Errorf("reported is %q", f.events.with())
	}
}

// TestRecordWaits asserts how long a volume waits for a recorded extent that is in use, and that it does not wait
// twice.
func TestRecordWaits(t *testing.T) {
	begin := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	inUse, other := unplaced("v", 10, "a", 1), unplaced("w", 10, "a", 1)
	inUse.recordInUse = true
	for _, test := range []struct {
		name string
		rest []unplacedVolume
		// after are the times of the calls of check since the beginning, left the answer of the last one.
		after []time.Duration
		left  time.Duration
	}{
		{name: "first", rest: []unplacedVolume{inUse}, after: []time.Duration{0}, left: recordTimeout},
		{name: "later", rest: []unplacedVolume{inUse}, after: []time.Duration{0, time.Second}, left: recordTimeout - time.Second},
		{name: "over", rest: []unplacedVolume{inUse}, after: []time.Duration{0, recordTimeout}},
		{name: "over for good", rest: []unplacedVolume{inUse}, after: []time.Duration{0, recordTimeout, recordWaitTTL}},
		{name: "forgotten", rest: []unplacedVolume{inUse}, after: []time.Duration{0, recordWaitTTL + 1}, left: recordTimeout},
		{name: "for another reason", rest: []unplacedVolume{other}, after: []time.Duration{0}},
		{name: "one of two", rest: []unplacedVolume{other, inUse}, after: []time.Duration{0}, left: recordTimeout},
	} {
		c, err := recordWaits{}, error(nil)
		for _, after := range test.after {
			err = c.check(test.rest, begin.Add(after))
		}
		if left, waits := waitsForRecord(err); left != test.left || waits != (test.left > 0) {
			t.Errorf("%s: waits %v for %v, want %v", test.name, waits, left, test.left)
		}
	}
}
