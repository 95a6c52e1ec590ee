package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/units"
)

// TestExpandInUse asserts that an ext4 volume of a running pod grows at once where the kernel allows the agent to grow
// it. Elsewhere the claim has a condition, the pod runs on, and the next pod has the new size.
func TestExpandInUse(t *testing.T) {
	e := newTenant(t, sharedCluster(t))
	pvc := e.claim("data", hdd, "200Mi")
	pod := e.podOf("first", claimed("data", pvc))
	e.make(pvc)
	e.create(pod)
	e.ready(pod)
	mark := canary(e)
	e.write(pod, mark)
	e.expand(pvc, "600Mi")
	if e.waitsForMount(pattern{"ext4", hdd, v1alpha1.FSTypeExt4}, pvc) {
		if capacity := pvc.Status.Capacity[corev1.ResourceStorage]; capacity.Value() != 200*units.MiB {
			t.Errorf("the claim says that it has %s", capacity.String())
		}
		e.holds(pod, mark)
		if n := restarts(pod); n != 0 {
			t.Errorf("the container was restarted %d times", n)
		}
		e.delete(pod)
		e.gone(pod)
		pod = e.podOf("second", claimed("data", pvc))
		e.create(pod)
		e.ready(pod)
	}
	e.hasGrown(pvc, 600*units.MiB)
	e.holds(pod, mark)
	if _, size := e.mounted(pod); size < 500*units.MiB {
		t.Errorf("the pod has %d bytes", size)
	}
	for _, c := range pvc.Status.Conditions {
		if c.Status == corev1.ConditionTrue {
			t.Errorf("the claim still says %+v", c)
		}
	}
}

// mayGrowMounted reports whether the kernel allows the processes of this test, including the agents, to grow a mounted
// ext4.
func mayGrowMounted(t *testing.T) bool {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	var capabilities uint64
	for line := range strings.Lines(string(status)) {
		if _, err := fmt.Sscanf(line, "CapEff: %x", &capabilities); err == nil {
			break
		}
	}
	const capSysResource = 24
	return capabilities&(1<<capSysResource) != 0
}
