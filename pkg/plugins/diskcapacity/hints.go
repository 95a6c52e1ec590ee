package diskcapacity

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"

	"github.com/berthdev/berth/pkg/placement"
)

// EventsToRegister names the events after which a pod that this plugin rejected may fit. The scheduler's handlers and
// ours run in no particular order. So a pod that is woken by an event could be tried with a ledger that does not have
// the event yet. It would be rejected again, and wait for an event that has already passed. Therefore a hint first
// folds the event's object into the ledger, and then checks whether the pod fits. To fold it in twice changes nothing.
//
// Hints run under the scheduling queue's lock, for every pending pod. So there is none for what nodes publish, see
// waitingPods, nor for DiskClasses, which the same reflectors deliver.
func (p *Plugin) EventsToRegister(context.Context) ([]fwk.ClusterEventWithHint, error) {
	// The scheduler calls this before it starts, when all plugins of the profile exist.
	if err := p.checkProfile(); err != nil {
		return nil, err
	}
	return append([]fwk.ClusterEventWithHint{
		{Event: fwk.ClusterEvent{Resource: fwk.Pod, ActionType: fwk.Delete}, QueueingHintFn: p.afterPodDeleted},
		{Event: fwk.ClusterEvent{Resource: fwk.CSINode, ActionType: fwk.Add | fwk.Update}, QueueingHintFn: p.afterCSINode},
		// A node that joins can publish before the scheduler knows it. The taint update is named because the scheduler
		// would otherwise add it with a hint that wakes all pods.
		{Event: fwk.ClusterEvent{Resource: fwk.Node, ActionType: fwk.Add | fwk.UpdateNodeLabel | fwk.UpdateNodeTaint}, QueueingHintFn: p.afterNode},
	}, p.claimEvents()...), nil
}

// afterPodDeleted is also called for pods that have ended, for pods that could not be bound, and for nominated pods
// that were placed elsewhere.
func (p *Plugin) afterPodDeleted(logger klog.Logger, pod *corev1.Pod, obj, _ any) (fwk.QueueingHint, error) {
	deleted, ok := obj.(*corev1.Pod)
	if !ok {
		return fwk.Queue, fmt.Errorf("deletion of a pod has %T, want *Pod", obj)
	}
	if !mayHoldSpace(deleted) {
		return fwk.QueueSkip, nil
	}
	end := p.feed.foldPodEndOnce(logger, deleted)
	if !end.freed {
		return fwk.QueueSkip, nil
	}
	return p.queueIfFits(pod, end.node), nil
}

// podEnd is the end of a pod, or of its nomination.
type podEnd struct {
	event *corev1.Pod
	node  string
	// freed is false when all that the pod had is still to be wiped. The pods that fit then are woken when the node has
	// wiped it.
	freed bool
}

// foldPodEndOnce folds in the end of a pod when it is called for the first waiting pod, and not for the others.
func (f *feed) foldPodEndOnce(logger klog.Logger, deleted *corev1.Pod) *podEnd {
	if last := f.lastPodEnd.Load(); last != nil && last.event == deleted {
		return last
	}
	f.foldPod(logger, deleted)
	e := &podEnd{event: deleted, node: deleted.Spec.NodeName}
	if e.node == "" {
		e.node = deleted.Status.NominatedNodeName
	}
	ephemeral, snapshot := f.ephemeralPartitions(deleted), f.ledger.Snapshot(e.node)
	e.freed = len(ephemeral) == 0 || slices.ContainsFunc(ephemeral, func(partition string) bool { return snapshot.Length(partition) == 0 })
	f.lastPodEnd.Store(e)
	return e
}

// afterCSINode wakes pods only if our driver was not registered before. The event is folded in for the first waiting
// pod.
func (p *Plugin) afterCSINode(_ klog.Logger, pod *corev1.Pod, old, obj any) (fwk.QueueingHint, error) {
	csiNode, ok := obj.(*storagev1.CSINode)
	if !ok {
		return fwk.Queue, fmt.Errorf("event of a CSINode has %T, want *CSINode", obj)
	}
	if before, ok := old.(*storagev1.CSINode); ok && hasDriver(before) {
		return fwk.QueueSkip, nil
	}
	if !p.feed.hasAgent(csiNode.Name) {
		p.feed.foldAgent(csiNode.Name)
	}
	return p.queueIfFits(pod, csiNode.Name), nil
}

// afterNode wakes a pod that fits a node which is new, or has the label that claims need only now.
func (p *Plugin) afterNode(_ klog.Logger, pod *corev1.Pod, old, obj any) (fwk.QueueingHint, error) {
	node, ok := obj.(*corev1.Node)
	if !ok {
		return fwk.Queue, fmt.Errorf("event of a node has %T, want *Node", obj)
	}
	if before, ok := old.(*corev1.Node); ok && (hasNodeLabel(before) || !hasNodeLabel(node)) {
		// Other changes of a known node do not change what this plugin rejected.
		return fwk.QueueSkip, nil
	}
	return p.queueIfFits(pod, node.Name), nil
}

// queueIfFits wakes a pod that now fits the node, as far as this plugin is concerned.
func (p *Plugin) queueIfFits(pod *corev1.Pod, nodeName string) fwk.QueueingHint {
	snapshot := p.ledger.Snapshot(nodeName)
	// The cheap checks come first: most events are about nodes where nothing has changed for most pods.
	if len(snapshot.Node.Disks) == 0 || !p.feed.hasAgent(nodeName) {
		return fwk.QueueSkip
	}
	a := p.feed.waiting.attemptOf(pod.UID)
	if a == nil {
		if p.fitsNode(pod, snapshot.Node) {
			return fwk.Queue
		}
		return fwk.QueueSkip
	}
	now := p.feed.spaceGainOn(snapshot.Node)
	if now.spent() {
		// The scheduling queue is locked, and no plans are left. The other pods are checked without that lock.
		if now.handedOver.CompareAndSwap(false, true) {
			p.feed.requeueFittingAsync(klog.Background(), []string{nodeName})
		}
		return fwk.QueueSkip
	}
	if now.mayFit(a) {
		return fwk.Queue
	}
	return fwk.QueueSkip
}

// spaceGainOn is the space gain of the node after an event. Hints for all waiting pods share it.
func (f *feed) spaceGainOn(node *placement.Node) *spaceGain {
	if last := f.lastSpaceGain.Load(); last != nil && last.after == node {
		return last
	}
	g := newSpaceGain(nil, node, maxPlansPerEvent)
	f.lastSpaceGain.Store(g)
	return g
}

// fitsNode reads the pod and reports whether it fits the node, for a pod without an attempt.
func (p *Plugin) fitsNode(pod *corev1.Pod, node *placement.Node) bool {
	req, err := p.feed.requestOf(pod)
	if err != nil || req.isEmpty() {
		return false
	}
	// Such claims are rare, so the pod is tried without a check.
	return len(p.feed.bindableVolumes.of(req.claims)) > 0 || fits(node, req.requests())
}

// fits reports whether the requests fit on the node.
func fits(node *placement.Node, requests []placement.Request) bool {
	var buffer [4]placement.Assignment
	_, err := placement.Plan(buffer[:0], node, requests)
	return err == nil
}
