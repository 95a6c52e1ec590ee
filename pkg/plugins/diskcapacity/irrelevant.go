package diskcapacity

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"

	"github.com/berthdev/berth/pkg/claim"
)

// Irrelevant reports whether an event helps none of the waiting pods that the plugin has rejected. Then the queue need
// not call a hint for each of them. It is for events about pods, claims and volumes: otherwise each pod that comes or
// goes would call the hints of all waiting pods. The arguments are those of the hints.
//
// The caller allows no pod to begin to wait between Irrelevant and the hints: Irrelevant would not have counted it.
func (p *Plugin) Irrelevant(logger klog.Logger, old, obj any) bool {
	if obj == nil {
		return p.irrelevantEnd(logger, old)
	}
	switch o := obj.(type) {
	case *corev1.PersistentVolumeClaim:
		return !p.feed.waiting.anyUsesClaim(o)
	case *corev1.PersistentVolume:
		return !isBindable(o)
	}
	return false
}

// irrelevantEnd is Irrelevant for an object that is gone.
func (p *Plugin) irrelevantEnd(logger klog.Logger, gone any) bool {
	switch o := gone.(type) {
	case *corev1.Pod:
		if !mayHoldSpace(o) {
			return true
		}
		end := p.feed.foldPodEndOnce(logger, o)
		return !end.freed || !p.anyFits(end.node)
	case *corev1.PersistentVolume:
		if !claim.IsOurs(o) {
			return true
		}
		node, ref := p.feed.foldVolumeOnce(logger, o), o.Spec.ClaimRef
		return (ref == nil || !p.feed.waiting.anyUsesClaim(claimOf(ref))) && !p.anyFits(node)
	}
	return false
}

// anyFits reports whether any waiting pod fits on the node now. It is queueIfFits for all of them at once.
func (p *Plugin) anyFits(nodeName string) bool {
	node := p.ledger.Snapshot(nodeName).Node
	if len(node.Disks) == 0 || !p.feed.hasAgent(nodeName) {
		return false
	}
	fit, unclear := p.feed.waiting.anyFits(node)
	return fit || slices.ContainsFunc(unclear, func(pod *corev1.Pod) bool { return p.fitsNode(pod, node) })
}

// claimOf returns a claim with the fields that a reference to it has.
func claimOf(ref *corev1.ObjectReference) *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: ref.Namespace, Name: ref.Name}}
}
