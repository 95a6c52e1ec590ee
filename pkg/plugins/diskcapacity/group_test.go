package diskcapacity

import (
	"testing"

	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/framework"
)

// TestReserveOfGroup asserts that in the cycle of a pod group, Reserve of a pod that preempts others accepts the
// nominated node and reserves nothing there. In such a cycle Reserve runs before the victims are gone.
func TestReserveOfGroup(t *testing.T) {
	for name, test := range map[string]struct {
		group, refused bool
		want           fwk.Code
	}{
		"a group that preempts":       {true, true, fwk.Success},
		"a group that lost its room":  {true, false, fwk.Error},
		"a pod that lost its room":    {false, false, fwk.Error},
		"a pod, after its PostFilter": {false, true, fwk.Error},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, nil, "n1")
			b.publish(t, "n1", 10)
			b.reserve(t, podOf("victim", 8), "n1")
			pod := podOf("member", 5)
			cycle := framework.NewCycleState()
			if test.group {
				cycle.SetPodGroupSchedulingCycle(framework.NewCycleState())
			}
			if _, status := b.plugin.PreFilter(b.ctx, cycle, pod, b.nodes); !status.IsSuccess() {
				t.Fatal(status)
			}
			if test.refused {
				status := b.plugin.Filter(b.ctx, cycle, pod, b.nodes[0])
				nodes := framework.NewDefaultNodeToStatus()
				nodes.Set("n1", status)
				b.plugin.PostFilter(b.ctx, cycle, pod, nodes)
			}
			if status := b.plugin.Reserve(b.ctx, cycle, pod, "n1"); status.Code() != test.want {
				t.Errorf("got %v", status)
			}
			if on, records := b.plugin.ledger.Records(string(pod.UID)); len(records) > 0 {
				t.Errorf("%v is reserved on node %s, beside the victim", records, on)
			}
			b.plugin.Unreserve(b.ctx, cycle, pod, "n1")
			if free := b.freeGiB("n1"); free != 2 {
				t.Errorf("%d GiB are free after it was undone, want 2", free)
			}
		})
	}
}
