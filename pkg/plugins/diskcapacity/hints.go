package diskcapacity

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/placement"
	"github.com/berthdev/berth/pkg/request"
)

// Resources of ours whose events the scheduler follows, in the form it wants them.
const (
	capacityEvents fwk.EventResource = capacityResource + ".v1alpha1." + diskv1alpha1.GroupName
	classEvents    fwk.EventResource = classResource + ".v1alpha1." + diskv1alpha1.GroupName
)

// EventsToRegister names the events that can make room for a pod that this plugin
// rejected. The scheduler's informers and ours have no order among themselves, so that a
// pod woken by an event could meet a ledger that has not heard of it, be rejected again,
// and wait for an event that has already passed. Therefore every hint first folds the
// event's object into the ledger, which does no harm if it is there already, and only
// then asks whether the pod fits.
//
// Hints run under the scheduling queue's lock, for every pending pod.
func (p *Plugin) EventsToRegister(context.Context) ([]fwk.ClusterEventWithHint, error) {
	if p.complete != nil {
		if err := p.complete(); err != nil {
			return nil, err
		}
	}
	return append([]fwk.ClusterEventWithHint{
		{Event: fwk.ClusterEvent{Resource: capacityEvents, ActionType: fwk.Add | fwk.Update}, QueueingHintFn: p.afterCapacity},
		{Event: fwk.ClusterEvent{Resource: classEvents, ActionType: fwk.Add}, QueueingHintFn: p.afterClass},
		{Event: fwk.ClusterEvent{Resource: fwk.Pod, ActionType: fwk.Delete}, QueueingHintFn: p.afterPodDeleted},
		{Event: fwk.ClusterEvent{Resource: fwk.CSINode, ActionType: fwk.Add | fwk.Update}, QueueingHintFn: p.afterCSINode},
		// A node that joins can publish before the scheduler knows it. The taint update
		// is named because the scheduler would otherwise add it with a hint that wakes
		// everybody.
		{Event: fwk.ClusterEvent{Resource: fwk.Node, ActionType: fwk.Add | fwk.UpdateNodeLabel | fwk.UpdateNodeTaint}, QueueingHintFn: p.afterNode},
	}, p.claimEvents()...), nil
}

// afterCapacity wakes the pods for which the node's own publication made room: those that
// fit now and, with the same records, did not fit what it published before. The rest of
// its publications, a few for every volume, must not wake pods that have room there but
// are kept away by other plugins.
//
// No wake-up is lost: what makes room is either a publication or the end of a record. After
// the end of a record the other hints wake every pod that fits. Of publications, the first
// after which the pod fits has one before it with which it did not.
func (p *Plugin) afterCapacity(_ klog.Logger, pod *corev1.Pod, old, obj any) (fwk.QueueingHint, error) {
	object, ok := obj.(*unstructured.Unstructured)
	if !ok {
		return fwk.Queue, fmt.Errorf("event of %s has %T, want *unstructured.Unstructured", capacityEvents, obj)
	}
	if err := p.feed.capacities.foldUnstructured(object); err != nil {
		return fwk.Queue, err
	}
	if p.queueIfFits(pod, object.GetName()) == fwk.QueueSkip {
		return fwk.QueueSkip, nil
	}
	earlier, ok := old.(*unstructured.Unstructured)
	if !ok || earlier.GetUID() != object.GetUID() {
		return fwk.Queue, nil
	}
	node, err := p.feed.capacities.before(earlier)
	if err != nil {
		return fwk.Queue, err
	}
	if p.fitsNode(pod, node) {
		return fwk.QueueSkip, nil
	}
	return fwk.Queue, nil
}

func (p *Plugin) afterClass(_ klog.Logger, pod *corev1.Pod, _, obj any) (fwk.QueueingHint, error) {
	object, ok := obj.(*unstructured.Unstructured)
	if !ok {
		return fwk.Queue, fmt.Errorf("event of %s has %T, want *unstructured.Unstructured", classEvents, obj)
	}
	policy, _, _ := unstructured.NestedString(object.Object, "spec", "placementPolicy")
	p.feed.classes.learn(object.GetName(), diskv1alpha1.PlacementPolicy(policy))
	for i := range pod.Spec.Volumes {
		csi := pod.Spec.Volumes[i].CSI
		if csi != nil && csi.Driver == diskv1alpha1.DriverName && csi.VolumeAttributes[diskv1alpha1.AttributeClass] == object.GetName() {
			return fwk.Queue, nil
		}
	}
	if asks, err := p.feed.ask(pod); err == nil && slices.ContainsFunc(asks.volumes, func(v request.Volume) bool { return v.Request.Class == object.GetName() }) {
		return fwk.Queue, nil
	}
	return fwk.QueueSkip, nil
}

// afterPodDeleted also hears of pods that have ended, of pods that could not be bound, and
// of nominated pods that went elsewhere.
func (p *Plugin) afterPodDeleted(logger klog.Logger, pod *corev1.Pod, obj, _ any) (fwk.QueueingHint, error) {
	deleted, ok := obj.(*corev1.Pod)
	if !ok {
		return fwk.Queue, fmt.Errorf("deletion of a pod has %T, want *Pod", obj)
	}
	if !mayHold(deleted) {
		return fwk.QueueSkip, nil
	}
	p.feed.foldPod(logger, deleted)
	node := deleted.Spec.NodeName
	if node == "" {
		node = deleted.Status.NominatedNodeName
	}
	// Mostly the space is still to be wiped, and the pod is woken when the node says so.
	return p.queueIfFits(pod, node), nil
}

// afterCSINode: what matters is that our driver was not there before.
func (p *Plugin) afterCSINode(_ klog.Logger, pod *corev1.Pod, old, obj any) (fwk.QueueingHint, error) {
	csiNode, ok := obj.(*storagev1.CSINode)
	if !ok {
		return fwk.Queue, fmt.Errorf("event of a CSINode has %T, want *CSINode", obj)
	}
	if before, ok := old.(*storagev1.CSINode); ok && hasDriver(before) {
		return fwk.QueueSkip, nil
	}
	return p.queueIfFits(pod, csiNode.Name), nil
}

func (p *Plugin) afterNode(_ klog.Logger, pod *corev1.Pod, old, obj any) (fwk.QueueingHint, error) {
	node, ok := obj.(*corev1.Node)
	if !ok {
		return fwk.Queue, fmt.Errorf("event of a node has %T, want *Node", obj)
	}
	if before, ok := old.(*corev1.Node); ok && (labelled(before) || !labelled(node)) {
		// Whatever else changed about a node that was known, it was not for it that we rejected.
		return fwk.QueueSkip, nil
	}
	return p.queueIfFits(pod, node.Name), nil
}

// queueIfFits wakes a pod that now fits the node, as far as this plugin is concerned.
func (p *Plugin) queueIfFits(pod *corev1.Pod, nodeName string) fwk.QueueingHint {
	snapshot := p.ledger.Snapshot(nodeName)
	// The cheap questions first: most events are about nodes where nothing has changed
	// for most pods.
	if len(snapshot.Node.Disks) == 0 || !p.feed.hasAgent(nodeName) {
		return fwk.QueueSkip
	}
	if !p.fitsNode(pod, snapshot.Node) {
		return fwk.QueueSkip
	}
	return fwk.Queue
}

func (p *Plugin) fitsNode(pod *corev1.Pod, node *placement.Node) bool {
	asks, err := p.feed.ask(pod)
	if err != nil || asks.none() {
		return false
	}
	// Rare enough to try it and see.
	return len(p.feed.loose.of(asks.claims)) > 0 || fits(node, asks.requests())
}

func fits(node *placement.Node, requests []placement.Request) bool {
	var buffer [4]placement.Assignment
	_, err := placement.Plan(buffer[:0], node, requests)
	return err == nil
}
