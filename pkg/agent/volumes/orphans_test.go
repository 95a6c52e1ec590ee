package volumes

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/disk"
)

// podWith is a pod with one volume, and the partition of that.
func podWith(uid types.UID, change func(*corev1.Pod)) (pod *corev1.Pod, partition string) {
	pod = &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "pod", UID: uid}}
	pod.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{Driver: diskv1alpha1.DriverName}}}}
	if change != nil {
		change(pod)
	}
	return pod, diskv1alpha1.PartitionID(diskv1alpha1.InlineVolumeID(uid, "data"))
}

func managerOfPods(t *testing.T) *Manager {
	t.Helper()
	m := managerOf(t)
	m.owners, m.waiting, m.noRoomSince, m.told = map[string]owner{}, map[types.NamespacedName]struct{}{}, map[types.UID]time.Time{}, map[types.UID]string{}
	m.orphans = orphans{found: map[string]orphan{}, suspected: map[string]struct{}{}}
	m.pods = queue[types.NamespacedName]("")
	t.Cleanup(m.pods.ShutDown)
	return m
}

// What the watch showed of a pod's end decides whether its volume is wiped at once.
func TestEndSeen(t *testing.T) {
	now := metav1.Now()
	deleting := func(p *corev1.Pod) { p.DeletionTimestamp = &now }
	for name, tc := range map[string]struct {
		events func(m *Manager)
		seen   bool
	}{
		"nothing":       {func(*Manager) {}, false},
		"running":       {func(m *Manager) { p, _ := podWith("1", nil); m.podSeen(p) }, false},
		"being deleted": {func(m *Manager) { p, _ := podWith("1", deleting); m.podSeen(p) }, true},
		"ended": {func(m *Manager) {
			p, _ := podWith("1", func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed })
			m.podSeen(p)
		}, true},
		"deleted": {func(m *Manager) { p, _ := podWith("1", nil); m.podSeen(p); m.podDeleted(p) }, true},
		"not there after a pause": {func(m *Manager) {
			p, _ := podWith("1", nil)
			m.podSeen(p)
			m.podDeleted(cache.DeletedFinalStateUnknown{Obj: p})
		}, false},
		"was being deleted before a pause": {func(m *Manager) {
			p, _ := podWith("1", deleting)
			m.podSeen(p)
			m.podDeleted(cache.DeletedFinalStateUnknown{Obj: p})
		}, true},
		"another of its name after a pause": {func(m *Manager) {
			before, _ := podWith("1", nil)
			now, _ := podWith("2", nil)
			m.podSeen(before)
			m.podUpdated(before, now)
		}, false},
		"back from a backup in which it ran": {func(m *Manager) {
			before, _ := podWith("1", deleting)
			now, _ := podWith("1", nil)
			m.podSeen(before)
			m.podUpdated(before, now)
		}, false},
	} {
		m := managerOfPods(t)
		tc.events(m)
		_, partition := podWith("1", nil)
		if got := m.endSeen(partition, nil, "1"); got != tc.seen {
			t.Errorf("%s: seen is %v", name, got)
		}
	}
	m := managerOfPods(t)
	pod, partition := podWith("1", nil)
	if !m.endSeen(partition, pod, "1") {
		t.Error("what the API server still shows as going counts as vanished")
	}
	if other, _ := podWith("2", nil); m.endSeen(partition, other, "1") {
		t.Error("another pod of the name is taken for the end of this one")
	}
}

// A volume whose pod is there again is no orphan.
func TestClaimBack(t *testing.T) {
	m := managerOfPods(t)
	pod, partition := podWith("1", nil)
	v := disk.Volume{Partition: partition, Ephemeral: true, Phase: disk.Formatted}
	since := time.Now().Add(-time.Minute)
	m.orphans.found[partition] = orphan{since: since, allowed: true}
	if got, orphaned := m.OrphanedSince(v); !orphaned || !got.Equal(since) {
		t.Errorf("orphaned since %v, %v", got, orphaned)
	}
	wiped := v
	wiped.Phase = disk.Wiping
	if _, orphaned := m.OrphanedSince(wiped); orphaned {
		t.Error("what is being wiped is listed as an orphan")
	}
	m.podSeen(pod)
	if _, orphaned := m.OrphanedSince(v); orphaned {
		t.Error("it is an orphan although its pod is there")
	}
	if key, _ := m.releases.Get(); key != sweepKey {
		t.Errorf("looked at is %q", key)
	}
}

func TestProgress(t *testing.T) {
	m := managerOfPods(t)
	kicks := 0
	m.options.OwnersChanged = func() { kicks++ }
	m.wiping = map[string]*wiping{"a": {length: 100}, "b": {length: 100, policy: disk.WipeZero}}
	m.progress("c", 1) // nobody is at it
	if _, _, is := m.Wiping("a"); is {
		t.Error("a wipe that waits for its turn shows progress")
	}
	m.wiping["a"].policy = disk.WipeOverwrite
	for done := range int64(200) {
		m.progress("a", done)
	}
	if policy, done, is := m.Wiping("a"); !is || policy != disk.WipeOverwrite || done != 0 || kicks != 1 {
		t.Errorf("shown are %d of %s, published %d times: it changes all the time", done, policy, kicks)
	}
	m.progressShown = time.Now().Add(-progressEvery)
	m.progress("b", 7)
	_, a, _ := m.Wiping("a")
	_, b, _ := m.Wiping("b")
	if a != 100 || b != 7 || kicks != 2 {
		t.Errorf("shown are %d and %d, published %d times", a, b, kicks)
	}
}

// The record says what was done and what it is worth.
func TestRecordOfWipe(t *testing.T) {
	for _, tc := range []struct {
		wiped     disk.Wiped
		eventType string
		says      string
	}{
		{disk.Wiped{Policy: disk.WipeZero, Method: "PUNCH_HOLE", Verified: true}, corev1.EventTypeNormal, "by PUNCH_HOLE, samples and both ends read back as zeros"},
		{disk.Wiped{Policy: disk.WipeOverwrite, Method: "overwrite", Verified: true}, corev1.EventTypeNormal, "by overwrite, read back as zeros"},
		{disk.Wiped{Policy: disk.WipeSecureDiscard, Method: methodSecureDiscard, Verified: true}, corev1.EventTypeNormal, "by BLKSECDISCARD, read back as zeros"},
		{disk.Wiped{Policy: disk.WipeSecureDiscard, Method: "overwrite", Verified: true}, corev1.EventTypeNormal, "by overwrite (the device has no secure discard), read"},
		{disk.Wiped{Policy: disk.WipeNone, Method: "none"}, corev1.EventTypeWarning, "NOT wiped (policy None, which is unsafe)"},
		{disk.Wiped{Policy: disk.WipeZero, Method: "x"}, corev1.EventTypeNormal, "not read back"},
	} {
		eventType, message := recordOfWipe(tc.wiped)
		if eventType != tc.eventType || !strings.Contains(message, tc.says) {
			t.Errorf("%+v: %s %s", tc.wiped, eventType, message)
		}
	}
}
