package integration

import (
	"testing"

	corev1 "k8s.io/api/core/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/claim"
)

// TestSchedulerClaims runs the real scheduler against a real API server and the real
// controllers of claims.
func TestSchedulerClaims(t *testing.T) {
	s := claimSchedulers(t)
	for _, test := range []struct {
		name string
		run  func(*testing.T, *schedulers)
	}{
		{"one plan", onePlan},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Cleanup(func() { s.clearClaims(t) })
			test.run(t, s)
		})
	}
}

// onePlan: two claims and an inline volume of a pod are placed together, on the only node
// that has room for all of them.
func onePlan(t *testing.T, s *schedulers) {
	small := newSimNode(t, s.client, "sim-0", 9, diskv1alpha1.DriverName)
	large := newSimNode(t, s.client, "sim-1", 10, diskv1alpha1.DriverName)
	followClaims(t, s.client, small, large)
	s.pvc(t, "data", "ssd", 4)
	s.pvc(t, "log", "ssd", 3)
	pod := withClaims(diskPod("db", 3), "data", "log")
	s.create(t, pod)
	s.waitNode(t, pod)
	if pod.Spec.NodeName != large.name {
		t.Errorf("the pod is on %s", pod.Spec.NodeName)
	}
	for _, name := range []string{"data", "log"} {
		pv, v := s.volumeOf(t, name)
		if v.Node != large.name || v.Place.Disk != simDisk(large.name) || pv.Annotations[claim.AnnotationProvisionedBy] != diskv1alpha1.DriverName ||
			pv.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimDelete {
			t.Errorf("the volume of claim %s is %+v", name, pv.Spec)
		}
	}
	if total := s.holdApart(t); total != 10*gib {
		t.Errorf("%d GiB are recorded, want 10", total/gib)
	}
	large.check(t)
}
