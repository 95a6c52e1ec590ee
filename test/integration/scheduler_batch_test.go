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
	defer s.killScheduler(t)()
	config := batchingConfig(t, s.cluster)
	// It is done only for pods that fill a node, one right after the other.
	batched := func(kind string, pod func(name string) *corev1.Pod) int {
		t.Helper()
		for i := range count {
			s.create(t, withCPU(pod(fmt.Sprintf("%s-%d", kind, i)), "1"))
		}
		// At this level it says which pods it does that for.
		scheduler := launch(t, filepath.Join(t.TempDir(), "log"), s.cluster.Program("scheduler"), "--config="+config, "--v=3", "--secure-port=0",
			"--authentication-kubeconfig="+s.cluster.Kubeconfig(), "--authorization-kubeconfig="+s.cluster.Kubeconfig())
		defer scheduler.output.Close()
		defer scheduler.kill()
		s.waitBound(t, count)
		return strings.Count(scheduler.log(), "OpportunisticBatch provided node hint")
	}
	if n := batched("disk", func(name string) *corev1.Pod { return diskPod(name, 1) }); n > 0 {
		t.Errorf("%d of %d disk pods were put on the node that was next best for another", n, count)
	}
	places(t, s.bound(t), 1)
	s.clear(t)
	if n := batched("plain", func(name string) *corev1.Pod { return plainPod(name, "berth") }); n < count/2 {
		t.Errorf("%d of %d pods without disks were batched", n, count)
	}
}

// batchingConfig is the configuration as it is delivered, without the default spreading of pods:
// with that, kube-scheduler batches nothing at all.
func batchingConfig(t *testing.T, c *cluster.Cluster) string {
	t.Helper()
	repository, err := cluster.Repository()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(repository, "config/scheduler/kube-scheduler-config-beside.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	changed := string(text)
	for place, more := range map[string]string{
		"clientConnection:\n": "  kubeconfig: " + c.Kubeconfig() + "\n",
		"  pluginConfig:\n":   "  - name: PodTopologySpread\n    args: {defaultingType: List}\n",
		"  leaderElect: ":     "false # ",
	} {
		before, after, found := strings.Cut(changed, place)
		if !found {
			t.Fatalf("the shipped configuration has no %q", place)
		}
		changed = before + place + more + after
	}
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
