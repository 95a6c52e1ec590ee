package volumes

import (
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/clock"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/disk"
)

// podWith is a pod with one volume. It returns the volume's partition, too.
func podWith(uid types.UID, change func(*corev1.Pod)) (pod *corev1.Pod, partition string) {
	pod = &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "pod", UID: uid}}
	pod.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{Driver: diskv1alpha1.DriverName}}}}
	if change != nil {
		change(pod)
	}
	return pod, diskv1alpha1.PartitionID(diskv1alpha1.InlineVolumeID(uid, "data"))
}

// TestEndSeen asserts that a volume is wiped at once only if the watch showed its pod's end.
func TestEndSeen(t *testing.T) {
	now := metav1.Now()
	deleting := func(p *corev1.Pod) { p.DeletionTimestamp = &now }
	for name, tc := range map[string]struct {
		events func(m *fixture)
		seen   bool
	}{
		"nothing":       {func(*fixture) {}, false},
		"running":       {func(m *fixture) { p, _ := podWith("1", nil); m.inlineController.onPod(p) }, false},
		"being deleted": {func(m *fixture) { p, _ := podWith("1", deleting); m.inlineController.onPod(p) }, true},
		"ended": {func(m *fixture) {
			p, _ := podWith("1", func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed })
			m.inlineController.onPod(p)
		}, true},
		"deleted": {func(m *fixture) {
			p, _ := podWith("1", nil)
			m.inlineController.onPod(p)
			m.inlineController.onPodDelete(p)
		}, true},
		"not there after a pause": {func(m *fixture) {
			p, _ := podWith("1", nil)
			m.inlineController.onPod(p)
			m.inlineController.onPodDelete(cache.DeletedFinalStateUnknown{Obj: p})
		}, false},
		"was being deleted before a pause": {func(m *fixture) {
			p, _ := podWith("1", deleting)
			m.inlineController.onPod(p)
			m.inlineController.onPodDelete(cache.DeletedFinalStateUnknown{Obj: p})
		}, true},
		"another of its name after a pause": {func(m *fixture) {
			before, _ := podWith("1", nil)
			now, _ := podWith("2", nil)
			m.inlineController.onPod(before)
			m.inlineController.onPodUpdate(before, now)
		}, false},
		"back from a backup in which it ran": {func(m *fixture) {
			before, _ := podWith("1", deleting)
			now, _ := podWith("1", nil)
			m.inlineController.onPod(before)
			m.inlineController.onPodUpdate(before, now)
		}, false},
	} {
		m := newFixture(t)
		tc.events(m)
		_, partition := podWith("1", nil)
		if got := m.inlineController.owners.endSeen(partition, nil, "1"); got != tc.seen {
			t.Errorf("%s: seen is %v", name, got)
		}
	}
	m := newFixture(t)
	pod, partition := podWith("1", nil)
	if !m.inlineController.owners.endSeen(partition, pod, "1") {
		t.Error("what the API server still shows as going counts as vanished")
	}
	if other, _ := podWith("2", nil); m.inlineController.owners.endSeen(partition, other, "1") {
		t.Error("another pod of the name is taken for the end of this one")
	}
}

// TestClaimIsRestored asserts that a volume whose pod exists again is no orphan.
func TestClaimIsRestored(t *testing.T) {
	m := newFixture(t)
	pod, partition := podWith("1", nil)
	v := disk.Volume{Partition: partition, Ephemeral: true, Phase: disk.Formatted}
	since := time.Now().Add(-time.Minute)
	m.reclaim.orphans.restore(partition, since)
	m.reclaim.orphans.allow(partition)
	if got, orphaned := m.OrphanedSince(v); !orphaned || !got.Equal(since) {
		t.Errorf("orphaned since %v, %v", got, orphaned)
	}
	wiped := v
	wiped.Phase = disk.Wiping
	if _, orphaned := m.OrphanedSince(wiped); orphaned {
		t.Error("what is being wiped is listed as an orphan")
	}
	m.inlineController.onPod(pod)
	if _, orphaned := m.OrphanedSince(v); orphaned {
		t.Error("it is an orphan although its pod is there")
	}
	if got := m.queued(); !slices.Equal(got, []string{sweepKey}) {
		t.Errorf("looked at are %q", got)
	}
}

// TestProgress asserts that the progress of all wipes is published together, and at most once per progressEvery.
func TestProgress(t *testing.T) {
	m := newFixture(t)
	w := m.reclaim.wiper
	w.wipes = map[string]disk.WipePolicy{"a": "", "b": disk.WipeZero}
	w.progress.begin("a", 100)
	w.progress.begin("b", 100)
	w.progress.set("c", 1) // no wipe is running
	if _, _, is := m.Wiping("a"); is {
		t.Error("a wipe that has not begun shows progress")
	}
	w.wipes["a"] = disk.WipeOverwrite
	for done := range int64(200) {
		w.progress.set("a", done)
	}
	if policy, done, is := m.Wiping("a"); !is || policy != disk.WipeOverwrite || done != 0 || m.changes.Load() != 1 {
		t.Errorf("shown are %d of %s, published %d times: it changes all the time", done, policy, m.changes.Load())
	}
	m.clock.Step(progressEvery)
	w.progress.set("b", 7)
	_, a, _ := m.Wiping("a")
	_, b, _ := m.Wiping("b")
	if a != 100 || b != 7 || m.changes.Load() != 2 {
		t.Errorf("shown are %d and %d, published %d times", a, b, m.changes.Load())
	}
}

// TestRecordOfWipe asserts that the record says how a volume was wiped and what was verified.
func TestRecordOfWipe(t *testing.T) {
	for _, tc := range []struct {
		wiped     disk.WipeResult
		eventType string
		says      string
	}{
		{disk.WipeResult{Policy: disk.WipeZero, Method: "PUNCH_HOLE", Verified: true}, corev1.EventTypeNormal, "by PUNCH_HOLE, samples and both ends read back as zeros"},
		{disk.WipeResult{Policy: disk.WipeOverwrite, Method: "overwrite", Verified: true}, corev1.EventTypeNormal, "by overwrite, read back as zeros"},
		{disk.WipeResult{Policy: disk.WipeSecureDiscard, Method: methodSecureDiscard, Verified: true}, corev1.EventTypeNormal, "by BLKSECDISCARD, read back as zeros"},
		{disk.WipeResult{Policy: disk.WipeSecureDiscard, Method: "overwrite", Verified: true}, corev1.EventTypeNormal, "by overwrite (the device has no secure discard), read"},
		{disk.WipeResult{Policy: disk.WipeNone, Method: "none"}, corev1.EventTypeWarning, "NOT wiped (policy None, which is unsafe)"},
		{disk.WipeResult{Policy: disk.WipeZero, Method: "x"}, corev1.EventTypeNormal, "not read back"},
	} {
		eventType, message := describeWipe(tc.wiped)
		if eventType != tc.eventType || !strings.Contains(message, tc.says) {
			t.Errorf("%+v: %s %s", tc.wiped, eventType, message)
		}
	}
}

// TestGraceIsMonotonic asserts that the grace period depends neither on jumps of the wall clock nor on what was
// published before a restart. After a restart it begins again.
func TestGraceIsMonotonic(t *testing.T) {
	for name, jump := range map[string]time.Duration{"long ago": -1000 * time.Hour, "in the future": 1000 * time.Hour} {
		f := newFixture(t)
		d := f.loopDisk()
		pods, partitions := f.makePods("a")
		at := metav1.NewTime(f.clock.Now().Add(jump))
		f.options.Published = []diskv1alpha1.Disk{{ID: d.ID(), Allocations: []diskv1alpha1.Allocation{{Partition: partitions[0], OrphanedSince: &at}}}}
		f.removePods(pods...)
		f.sweep()
		_, v, _ := f.node.findVolume(partitions[0])
		if since, orphaned := f.OrphanedSince(v); !orphaned || !since.Equal(at.Time) {
			t.Errorf("%s: published is %v, %v", name, since, orphaned)
		}
		f.clock.Step(f.options.OrphanGrace - time.Second)
		f.sweep()
		f.checkPhase(partitions[0], disk.Formatted)
		f.clock.Step(time.Second)
		f.sweep()
		f.checkPhase(partitions[0], "")
	}
	// The machine's wall clock may jump. Its monotonic reading does not.
	f := newFixture(t)
	f.options.Clock = clock.RealClock{}
	f.restart()
	f.reclaim.orphans.setOrphaned(t.Context(), disk.Volume{Partition: "p", Ephemeral: true}, true)
	f.reclaim.orphans.restore("q", time.Unix(0, 0))
	for _, partition := range []string{"p", "q"} {
		if o, _ := f.reclaim.orphans.get(partition); !strings.Contains(o.graceBegin.String(), " m=") {
			t.Errorf("%s was found at %v, which is no monotonic moment", partition, o.graceBegin)
		}
	}
}
