package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/cluster"
)

// TestSchedulerBatches: kube-scheduler takes for a pod the next best node of the one before, if
// the two are alike and all plugins of the profile can say so. Ours do not keep it from that, and
// keep their own pods out of it.
func TestSchedulerBatches(t *testing.T) {
	s := startSchedulers(t)
	t.Cleanup(func() { s.clear(t) })
	const count = 10
	for i := range count {
		node := newSimNode(t, s.client, fmt.Sprintf("sim-%d", i), 10, diskv1alpha1.DriverName)
		node.limitCPU(t, "1")
	}
	batched := func() float64 {
		t.Helper()
		return s.counted(t, "scheduler_batch_attempts_total", map[string]string{"profile": "berth", "result": "hint_used"})
	}
	// It is done only for pods that fill a node, one right after the other.
	together := func(kind string, pod func(name string) *corev1.Pod) {
		t.Helper()
		if err := s.cluster.KillScheduler(); err != nil {
			t.Fatal(err)
		}
		for i := range count {
			s.create(t, withCPU(pod(fmt.Sprintf("%s-%d", kind, i)), "1"))
		}
		if err := s.cluster.StartSchedulerConfigured(t.Context(), "scheduler", batchingConfig(t)); err != nil {
			t.Fatal(err)
		}
		s.waitBound(t, count)
	}
	together("disk", func(name string) *corev1.Pod { return diskPod(name, 1) })
	if n := batched(); n > 0 {
		t.Errorf("%v of %d disk pods were put on the node that was next best for another", n, count)
	}
	places(t, s.bound(t), 1)
	s.clear(t)
	together("plain", func(name string) *corev1.Pod { return plainPod(name, "berth") })
	n := batched()
	t.Logf("%v of %d pods without disks were placed without trying nodes anew", n, count)
	if n < count/2 {
		t.Errorf("%v of %d pods without disks were batched", n, count)
	}
}

// batchingConfig is the configuration as it is delivered, without the default spreading of pods:
// with that, kube-scheduler batches nothing at all.
func batchingConfig(t *testing.T) string {
	t.Helper()
	repository, err := cluster.Repository()
	if err != nil {
		t.Fatal(err)
	}
	shipped, err := os.ReadFile(filepath.Join(repository, "config/scheduler/kube-scheduler-config-beside.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	before, after, found := strings.Cut(string(shipped), "  pluginConfig:\n")
	if !found {
		t.Fatal("the shipped configuration has no pluginConfig")
	}
	path := filepath.Join(t.TempDir(), "config.yaml")
	changed := before + "  pluginConfig:\n  - name: PodTopologySpread\n    args: {defaultingType: List}\n" + after
	if err := os.WriteFile(path, []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
