package volumes

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/testenv"
)

// TestVerdictForPod asserts what becomes of a volume, by the state of its pod and by whether it is mounted.
func TestVerdictForPod(t *testing.T) {
	pod := func(change func(*corev1.Pod)) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "1"}}
		change(p)
		return p
	}
	now := metav1.Now()
	running := pod(func(p *corev1.Pod) { p.Status.Phase = corev1.PodRunning })
	for name, tc := range map[string]struct {
		pod              *corev1.Pod
		mounted, without verdict
	}{
		"running":        {running, verdictKeep, verdictKeep},
		"pending":        {pod(func(*corev1.Pod) {}), verdictKeep, verdictKeep},
		"gone":           {nil, verdictInUse, verdictWipe},
		"another by now": {pod(func(p *corev1.Pod) { p.UID = "2" }), verdictInUse, verdictWipe},
		"succeeded":      {pod(func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }), verdictInUse, verdictWipe},
		"failed":         {pod(func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }), verdictInUse, verdictWipe},
		"being deleted":  {pod(func(p *corev1.Pod) { p.DeletionTimestamp = &now }), verdictEnding, verdictWipe},
	} {
		if got := verdictForPod(tc.pod, "1", true); got != tc.mounted {
			t.Errorf("%s and mounted: %v, want %v", name, got, tc.mounted)
		}
		if got := verdictForPod(tc.pod, "1", false); got != tc.without {
			t.Errorf("%s and not mounted: %v, want %v", name, got, tc.without)
		}
	}
}

// TestLocks asserts that a lock is exclusive by name, that waiting ends with the context, and that unused locks are
// dropped.
func TestLocks(t *testing.T) {
	var l locks
	unlock, err := l.lock(t.Context(), "v")
	if err != nil {
		t.Fatal(err)
	}
	other, err := l.lock(t.Context(), "w")
	if err != nil {
		t.Fatalf("another name waits: %v", err)
	}
	other()
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := l.lock(ctx, "v"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waiting for a held lock: %v", err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if unlock, err := l.lock(t.Context(), "v"); err == nil {
			unlock()
		}
	}()
	unlock()
	testenv.Receive(t, "the lock", done)
	if len(l.held) != 0 {
		t.Errorf("%d locks are remembered", len(l.held))
	}
}

// TestPodReplacedUnseen asserts that the first pod's volumes are released when, after a pause, the watch shows another
// pod of the same name.
func TestPodReplacedUnseen(t *testing.T) {
	f := newFixture(t)
	before := boundPod(t, 20, 10)
	before.Spec.Volumes = before.Spec.Volumes[1:]
	now := before.DeepCopy()
	now.UID = "2"
	f.inlineController.onPodUpdate(before, before)
	if got := f.queued(); len(got) != 0 {
		t.Fatalf("a pod that is there is released: %v", got)
	}
	f.inlineController.onPodUpdate(before, now)
	want := []string{diskv1alpha1.PartitionID(diskv1alpha1.InlineVolumeID("1", "data"))}
	if got := f.queued(); !slices.Equal(got, want) {
		t.Errorf("released are %v, want %v", got, want)
	}
}
