package diskcapacity

import (
	"context"
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"

	"github.com/berthdev/berth/pkg/placement"
)

// PostFilter stops preemption from going on while the space it made is being wiped. What
// the stock preemption waits for is the end of its victims; the space of ours comes later,
// for a large and slow disk many minutes later, and until then every look at the pending
// pod would cost other pods their lives. It must come before DefaultPreemption.
//
// It also ends the cycle of a pod that was tried on a part of the nodes only, before anybody
// is preempted for it.
//
// Otherwise it only adds to the message what the nodes of a large cluster do not say one by
// one: how near the nearest of them came.
func (p *Plugin) PostFilter(ctx context.Context, cycle fwk.CycleState, pod *corev1.Pod, statuses fwk.NodeToStatusReader) (*fwk.PostFilterResult, *fwk.Status) {
	nominated := pod.Status.NominatedNodeName
	s, err := readState(cycle)
	if err != nil {
		return nil, fwk.NewStatus(fwk.Unschedulable)
	}
	if s.narrowed {
		p.widen(klog.FromContext(ctx), pod)
		return nil, fwk.NewStatus(fwk.UnschedulableAndUnresolvable, reasonNarrowed)
	}
	if nominated == "" {
		if nearest := s.rejections.nearest.Load(); nearest != nil {
			return nil, fwk.NewStatus(fwk.Unschedulable, "at best, "+nearest.Error())
		}
		return nil, fwk.NewStatus(fwk.Unschedulable)
	}
	// If there is another obstacle on that node, wiping will not help.
	if status := statuses.Get(nominated); status.Code() != fwk.Unschedulable || status.Plugin() != Name {
		return nil, fwk.NewStatus(fwk.Unschedulable)
	}
	snapshot := p.ledger.Snapshot(nominated)
	if len(snapshot.Wiping()) == 0 {
		return nil, fwk.NewStatus(fwk.Unschedulable)
	}
	gone := maps.Clone(snapshot.Wiping())
	maps.Copy(gone, s.gone)
	if _, err := placement.Plan(nil, snapshot.Without(gone), s.requests); err != nil {
		return nil, fwk.NewStatus(fwk.Unschedulable)
	}
	// This status ends the preemption and leaves the nomination as it is.
	return nil, fwk.NewStatus(fwk.UnschedulableAndUnresolvable,
		fmt.Sprintf("waiting for node %s to wipe volumes that are gone; nothing more is preempted meanwhile", nominated))
}
