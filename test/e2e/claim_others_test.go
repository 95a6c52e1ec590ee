package e2e

import "testing"

// TestClaimPlacedByOthers: the pod is one of the stock profile, which knows nothing of our
// disks, and so has its claim placed on whatever node it likes.
func TestClaimPlacedByOthers(t *testing.T) {
	e := newTenant(t, sharedCluster(t))
	pvc := e.claim("data", ssd, "300Mi")
	pod := e.podOf("pod", claimed("data", pvc))
	pod.Spec.SchedulerName = "default-scheduler"
	e.make(pvc)
	e.create(pod)
	e.ready(pod)
	v := e.findVolume(e.boundTo(pvc))
	if v.allocation.Length != 300*mib {
		t.Errorf("the volume is %+v", v.allocation)
	}
	mark := canary(e)
	e.write(pod, mark)
	e.holds(pod, mark)
	e.delete(pod)
	e.unmake(pvc)
	e.gone(pod)
	e.wiped(e.volumeOf(pvc), v, mark)
}
