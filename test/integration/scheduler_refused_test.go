package integration

import (
	"context"
	"fmt"
	"testing"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/units"
)

// TestSchedulerCountsRefusals: what the API server refuses, and what a node does, shows in the
// metrics that docs/monitor.md advises to watch.
func TestSchedulerCountsRefusals(t *testing.T) {
	s := startSchedulers(t)
	t.Cleanup(func() { s.clear(t) })
	node := newSimNode(t, s.client, "sim-0", 10, diskv1alpha1.DriverName)
	allow := (&agents{schedulers: s}).forbidBindings(t, node.name)
	pod := diskPod("refused", 1)
	s.create(t, pod)
	s.waitCondition(t, pod.Name, "the API server refused to bind the pod to this node")
	s.metrics(t, "scheduler").want(t, map[string]float64{
		`bind_failures_total{outcome="refused"}`:                 1,
		`decisions_total{result="undone"}`:                       1,
		`decisions_total{result="unschedulable"}`:                1,
		`unschedulable_reasons_total{class="",reason="refused"}`: 1,
		`unpublished_volumes`:                                    0,
	})

	// Something is where the pod's volume is to be, and its node has not published it.
	allow()
	node.take(1)
	node.publishNow(t)
	node.mu.Lock()
	node.claimed[takenPartition] = extent.New(diskv1alpha1.Alignment, units.GiB)
	node.mu.Unlock()
	s.waitNode(t, pod)
	follow(t, s.client, node)
	s.eventually(t, func(context.Context) error {
		if have := s.metrics(t, "scheduler").byLabel["replaced_volumes_total"]; have != 1 {
			return fmt.Errorf("%v volumes are elsewhere than recorded, want 1", have)
		}
		return nil
	})
	if moved, evicted := node.counts(); moved != 1 || evicted != 0 {
		t.Errorf("the node moved %d volumes and evicted %d pods", moved, evicted)
	}
}
