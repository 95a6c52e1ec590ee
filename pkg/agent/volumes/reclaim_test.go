package volumes

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/request"
)

// TestEngineOnlyByAccessor asserts that only engineOf reads a disk's engine. Anywhere else a disk that has gone would
// cause a crash.
func TestEngineOnlyByAccessor(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil || len(files) == 0 {
		t.Fatal(err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		want := 0
		if file == "disks.go" {
			want = 1
		}
		if got := strings.Count(string(source), ".Engine"); got != want {
			t.Errorf("%s uses a disk's engine %d times, want %d: use engineOf", file, got, want)
		}
	}
}

// TestDeleteVolumeOfLostDisk asserts that deleting a volume whose disk went during its wipe fails without a crash.
func TestDeleteVolumeOfLostDisk(t *testing.T) {
	pv := volumeAt(t, 20, nil)
	for _, phase := range []disk.Phase{disk.Reserved, disk.Formatted, disk.Wiping} {
		f := newFixture(t)
		d := onDisk(diskID, pv, extentMiB(20, 10), func(v *disk.Volume) { v.Phase = phase })
		d.Engine, d.Problem = nil, "device sdx is gone"
		f.disks.set(d)
		if err := f.DeleteVolume(t.Context(), pv.Spec.CSI.VolumeHandle); !errors.Is(err, ErrOutOfService) || !strings.Contains(err.Error(), "sdx is gone") {
			t.Errorf("in phase %s: %v", phase, err)
		}
		// The disk may also go while the wipe waits.
		v := d.Snapshot.Volumes[0]
		unlock, err := f.node.locks.lock(t.Context(), v.Partition)
		if err != nil {
			t.Fatal(err)
		}
		f.reclaim.begin(t.Context(), d, v, unlock)
		f.reclaim.wiper.running.Wait()
		if got := f.queued(); len(got) != 0 {
			t.Errorf("in phase %s: what waits for a disk is tried again at once: %v", phase, got)
		}
	}
}

// TestSeenEndIsReclaimedAtOnce asserts that the volume of a pod whose end was seen is wiped without a grace period.
func TestSeenEndIsReclaimedAtOnce(t *testing.T) {
	f := newFixture(t)
	f.loopDisk()
	pods, partitions := f.makePods("a", "b")
	f.api.set(func(s *apiServer) { delete(s.pods, "ns/a") })
	f.deletePod(pods[0], false)
	f.waitIdle()
	f.checkPhase(partitions[0], "")
	f.checkPhase(partitions[1], disk.Formatted)
	if got := f.events.with("VolumeWiped", partitions[0]); len(got) != 1 {
		t.Errorf("recorded is %q", f.events.with())
	}
}

// TestUnseenEndWaits asserts that the volume of a pod whose end was not seen is kept for the
// grace period, listed, and then reclaimed.
func TestUnseenEndWaits(t *testing.T) {
	f := newFixture(t)
	f.loopDisk()
	pods, partitions := f.makePods("a")
	f.dropPods(pods...)
	f.waitIdle()
	f.checkPhase(partitions[0], disk.Formatted)
	f.sweep()
	f.checkPhase(partitions[0], disk.Formatted)
	_, v, _ := f.node.findVolume(partitions[0])
	if since, orphaned := f.OrphanedSince(v); !orphaned || !since.Equal(f.clock.Now()) {
		t.Errorf("orphaned since %v, %v", since, orphaned)
	}
	if got := f.Orphans().Ephemeral; len(got) != 1 || !strings.Contains(got[0], partitions[0]) {
		t.Errorf("listed are %q", got)
	}
	f.clock.Step(f.options.OrphanGrace - time.Second)
	f.sweep()
	f.checkPhase(partitions[0], disk.Formatted)
	f.clock.Step(time.Second)
	f.sweep()
	f.checkPhase(partitions[0], "")
}

// sweep checks all suspects now, and waits until their wipes have ended.
func (f *fixture) sweep() {
	f.t.Helper()
	if err := f.reclaim.release(f.t.Context(), sweepKey); err != nil {
		f.t.Logf("sweep: %v", err)
	}
	f.waitIdle()
}

// TestAPIErrorKeeps asserts that only the API server's "not found" ends a volume, and no other answer.
func TestAPIErrorKeeps(t *testing.T) {
	f := newFixture(t)
	f.loopDisk()
	pods, partitions := f.makePods("a", "b")
	pv, partition := f.boundVolume(f.disks.Disks()[0], 1, func(pv *corev1.PersistentVolume) { pv.Status.Phase = corev1.VolumeReleased })
	// The first pod's end was seen, the second pod is suspected to be gone.
	f.deletePod(pods[0], false)
	f.dropPods(pods[1])
	for _, key := range f.queued() {
		if key == partitions[1] {
			if err := f.reclaim.release(t.Context(), key); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, status := range []int{http.StatusInternalServerError, http.StatusForbidden, http.StatusNotFound, http.StatusServiceUnavailable, http.StatusGone} {
		f.api.set(func(s *apiServer) { s.status = status })
		f.reclaim.enqueue(partitions[0], 0)
		f.waitIdle()
		f.sweep()
		f.clock.Step(2 * f.options.OrphanGrace)
		f.sweep()
		f.checkPhase(partitions[0], disk.Formatted)
		f.checkPhase(partitions[1], disk.Formatted)
		if err := f.persistent.sync(t.Context(), pv.Name); err == nil {
			t.Errorf("%d: the PersistentVolume is not tried again", status)
		}
		f.reclaim.wiper.running.Wait()
		f.checkPhase(partition, disk.Formatted)
		if err := f.DeleteVolume(t.Context(), pv.Spec.CSI.VolumeHandle); err == nil {
			t.Errorf("%d: the volume is deleted", status)
		}
		f.checkPhase(partition, disk.Formatted)
	}
}

// TestManyOrphansStopReclaiming asserts that more orphans than the limit are all kept until an operator confirms their
// number. A restart does not change that.
func TestManyOrphansStopReclaiming(t *testing.T) {
	f := newFixture(t)
	f.loopDisk()
	pods, partitions := f.makePods("a", "b", "c")
	all := func(want disk.Phase) {
		t.Helper()
		for _, p := range partitions {
			f.checkPhase(p, want)
		}
	}
	f.dropPods(pods...)
	f.waitIdle()
	f.sweep()
	f.clock.Step(2 * f.options.OrphanGrace)
	f.sweep()
	all(disk.Formatted)
	if o := f.Orphans(); !o.Stopped || len(o.Ephemeral) != 3 {
		t.Errorf("orphans are %+v", o)
	}
	if got := f.events.with("ReclaimStopped", "3 volumes"); len(got) != 1 {
		t.Errorf("reported is %q", f.events.with())
	}
	// One pod that is back does not prove that the others exist.
	f.api.put(pods[0])
	f.addPod(pods[0])
	f.waitIdle()
	f.sweep()
	all(disk.Formatted)

	f.options.ReclaimStopped = true
	f.restart()
	f.sweep()
	f.clock.Step(2 * f.options.OrphanGrace)
	f.sweep()
	all(disk.Formatted)

	allow := func(count string) {
		t.Helper()
		ndc := f.api.capacity(map[string]string{"disk.berth.dev/reclaim-orphans": count})
		if err := f.options.Capacities.GetStore().Add(ndc); err != nil {
			t.Fatal(err)
		}
		f.reclaim.sweeper.onCapacity(ndc)
		f.waitIdle()
		if err := f.options.Capacities.GetStore().Add(f.api.capacity(nil)); err != nil {
			t.Fatal(err)
		}
	}
	for _, wrong := range []string{"1", "all", "-2", ""} {
		allow(wrong)
		all(disk.Formatted)
	}
	allow("2")
	f.checkPhase(partitions[0], disk.Formatted)
	f.checkPhase(partitions[1], "")
	f.checkPhase(partitions[2], "")
	if f.Orphans().Stopped {
		t.Error("reclaiming is still stopped")
	}
}

// capacity gives the server a NodeDiskCapacity with the annotations, and returns a copy.
func (s *apiServer) capacity(annotations map[string]string) *diskv1alpha1.NodeDiskCapacity {
	ndc := &diskv1alpha1.NodeDiskCapacity{ObjectMeta: metav1.ObjectMeta{Name: "n", UID: "ndc", ResourceVersion: "5", Annotations: annotations}}
	s.set(func(s *apiServer) { s.ndc = ndc.DeepCopy() })
	return ndc
}

// TestMountedIsNotReclaimed asserts that no loop begins to wipe a volume that is mounted.
func TestMountedIsNotReclaimed(t *testing.T) {
	f := newFixture(t)
	d := f.loopDisk()
	pods, partitions := f.makePods("seen", "lost")
	released, claimed := f.boundVolume(d, 1, func(pv *corev1.PersistentVolume) { pv.Status.Phase = corev1.VolumeReleased })
	untouched := func(why string) {
		t.Helper()
		f.waitIdle()
		for _, p := range []string{partitions[0], partitions[1], claimed} {
			f.checkPhase(p, disk.Formatted)
		}
		// A wipe that the engine refused would have been reported.
		f.node.reports.mu.Lock()
		defer f.node.reports.mu.Unlock()
		for about, message := range f.node.reports.last {
			if strings.Contains(message, "wiping volume") {
				t.Errorf("%s: the engine was asked to wipe %s: %s", why, about, message)
			}
		}
	}
	unmountSeen, unmountLost, unmountClaimed := f.mount(partitions[0]), f.mount(partitions[1]), f.mount(claimed)

	f.api.set(func(s *apiServer) { delete(s.pods, "ns/seen") })
	f.deletePod(pods[0], false)
	untouched("a pod that ended")
	f.dropPods(pods[1])
	untouched("a pod that vanished")
	f.sweep()
	f.clock.Step(2 * f.options.OrphanGrace)
	f.sweep()
	untouched("an orphan")
	if err := f.persistent.sync(t.Context(), released.Name); err != nil {
		t.Error(err)
	}
	untouched("a released PersistentVolume")
	if got := f.api.asked("DELETE"); got != 0 {
		t.Errorf("the PersistentVolume of a mounted volume is deleted")
	}
	if err := f.DeleteVolume(t.Context(), released.Spec.CSI.VolumeHandle); !errors.Is(err, ErrInUse) {
		t.Errorf("a CSI call: %v", err)
	}
	untouched("a CSI call")

	unmountSeen()
	unmountLost()
	unmountClaimed()
	f.reclaim.enqueue(partitions[0], 0)
	f.sweep()
	if err := f.persistent.sync(t.Context(), released.Name); err != nil {
		t.Error(err)
	}
	f.waitIdle()
	for _, p := range []string{partitions[0], partitions[1], claimed} {
		f.checkPhase(p, "")
	}
}

// TestReservedIsReleased asserts that a pod whose volumes do not all fit keeps none.
func TestReservedIsReleased(t *testing.T) {
	f := newFixture(t)
	f.loopDisk()
	pod, partition := inlinePod("a")
	f.api.put(pod)
	f.addPod(pod)
	volumes, err := request.FromPod(pod)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.inlineController.placeVolumes(t.Context(), pod, volumes, fromWatch); err != nil {
		t.Fatal(err)
	}
	f.checkPhase(partition, disk.Reserved)
	big := pod.Spec.Volumes[0].DeepCopy()
	big.Name, big.CSI.VolumeAttributes[diskv1alpha1.AttributeSize] = "big", "10Gi"
	pod.Spec.Volumes = append(pod.Spec.Volumes, *big)
	if volumes, err = request.FromPod(pod); err != nil {
		t.Fatal(err)
	}
	if err := f.inlineController.placeVolumes(t.Context(), pod, volumes, fromWatch); !errors.Is(err, ErrNoRoom) {
		t.Errorf("what does not fit: %v", err)
	}
	f.reclaim.wiper.running.Wait()
	f.waitIdle()
	f.checkPhase(partition, "")
	if got := f.queued(); slices.Contains(got, partition) {
		t.Errorf("left to do are %q", got)
	}
}
