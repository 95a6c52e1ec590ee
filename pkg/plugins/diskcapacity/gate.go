package diskcapacity

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/component-helpers/storage/ephemeral"
	"k8s.io/component-helpers/storage/volume"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/claim"
)

// PreEnqueue gates a pod until its generic ephemeral claims exist, which kube-controller-manager creates after the pod.
// A try before that would only cost the pod its backoff.
//
// Claims of other drivers are left to the stock plugins, because no condition says what a gated pod waits for.
//
// A claim of that name that is not the pod's own does not gate the pod. It may stay for ever, and only a pod that was
// tried gets an event that says so.
func (p *Plugin) PreEnqueue(_ context.Context, pod *corev1.Pod) *fwk.Status {
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if v.Ephemeral == nil || !p.feed.claims.willBeOurs(v.Ephemeral.VolumeClaimTemplate) {
			continue
		}
		name := ephemeral.VolumeClaimName(pod, v)
		if _, err := p.feed.claims.claims.PersistentVolumeClaims(pod.Namespace).Get(name); err != nil {
			return fwk.NewStatus(fwk.UnschedulableAndUnresolvable, fmt.Sprintf("waiting for the claim %s/%s of its ephemeral volume %q to be created", pod.Namespace, name, v.Name))
		}
	}
	return nil
}

// willBeOurs reports whether the claim that is made of a template will be of a StorageClass of ours. If the template
// names none, that is not known before the API server has set the default class.
func (c *claims) willBeOurs(template *corev1.PersistentVolumeClaimTemplate) bool {
	return template != nil && c.ours(&corev1.PersistentVolumeClaim{ObjectMeta: template.ObjectMeta, Spec: template.Spec}) != nil
}

// claimEvents are the events that can help a pod because of its claims.
func (p *Plugin) claimEvents() []fwk.ClusterEventWithHint {
	return []fwk.ClusterEventWithHint{
		{Event: fwk.ClusterEvent{Resource: fwk.PersistentVolumeClaim, ActionType: fwk.Add | fwk.Update}, QueueingHintFn: p.afterClaim},
		{Event: fwk.ClusterEvent{Resource: fwk.StorageClass, ActionType: fwk.Add}, QueueingHintFn: p.afterStorageClass},
		{Event: fwk.ClusterEvent{Resource: fwk.PersistentVolume, ActionType: fwk.Add | fwk.Update | fwk.Delete}, QueueingHintFn: p.afterVolume},
	}
}

// afterClaim wakes the pods of a claim that is new or requests something else now. A claim that names a volume requests
// nothing any more.
func (p *Plugin) afterClaim(_ klog.Logger, pod *corev1.Pod, old, obj any) (fwk.QueueingHint, error) {
	pvc, ok := obj.(*corev1.PersistentVolumeClaim)
	if !ok {
		return fwk.Queue, fmt.Errorf("event of a claim has %T, want *PersistentVolumeClaim", obj)
	}
	if !refersTo(pod, pvc) {
		return fwk.QueueSkip, nil
	}
	before, ok := old.(*corev1.PersistentVolumeClaim)
	if !ok || before.UID != pvc.UID || before.Spec.VolumeName != pvc.Spec.VolumeName ||
		claim.ClassName(before) != claim.ClassName(pvc) {
		return fwk.Queue, nil
	}
	return fwk.QueueSkip, nil
}

// afterStorageClass wakes the pods with an unbound claim of a new class. Nothing that matters can change in an existing
// class.
func (p *Plugin) afterStorageClass(_ klog.Logger, pod *corev1.Pod, _, obj any) (fwk.QueueingHint, error) {
	class, ok := obj.(*storagev1.StorageClass)
	if !ok {
		return fwk.Queue, fmt.Errorf("event of a StorageClass has %T, want *StorageClass", obj)
	}
	if p.feed.refersToClass(pod, class.Name) {
		return fwk.Queue, nil
	}
	return fwk.QueueSkip, nil
}

// refersToClass reports whether the pod has an unbound claim of the StorageClass.
func (f *feed) refersToClass(pod *corev1.Pod, class string) bool {
	for i := range pod.Spec.Volumes {
		pvc := f.claims.of(pod, &pod.Spec.Volumes[i])
		if pvc != nil && pvc.Spec.VolumeName == "" && claim.ClassName(pvc) == class {
			return true
		}
	}
	return false
}

// afterVolume wakes the pods whose claim may be bound to a volume that has become free for it. After the end of a
// volume it wakes those that fit where it was, or that were limited to its node.
func (p *Plugin) afterVolume(logger klog.Logger, pod *corev1.Pod, old, obj any) (fwk.QueueingHint, error) {
	pv, ok := obj.(*corev1.PersistentVolume)
	if !ok {
		if pv, ok = old.(*corev1.PersistentVolume); !ok {
			return fwk.Queue, fmt.Errorf("event of a PersistentVolume has %T, want *PersistentVolume", obj)
		}
	}
	node := p.feed.foldVolumeOnce(logger, pv)
	switch {
	case obj != nil && isBindable(pv):
		if p.feed.refersToClass(pod, volume.GetPersistentVolumeClass(pv)) {
			return fwk.Queue, nil
		}
	case obj == nil && claim.IsOurs(pv):
		if ref := pv.Spec.ClaimRef; ref != nil && refersTo(pod, claimOf(ref)) {
			return fwk.Queue, nil
		}
		return p.queueIfFits(pod, node), nil
	}
	return fwk.QueueSkip, nil
}

// labelled reports whether the node has the label by which PersistentVolumes name it.
func labelled(node *corev1.Node) bool {
	return node.Labels[diskv1alpha1.LabelNode] == diskv1alpha1.NodeLabel(node.Name)
}

// Irrelevant reports that an event helps none of the waiting pods that the plugin has rejected. Then no hint has to be
// called for each of them. It knows this of events about pods, claims and volumes: otherwise each pod that comes or
// goes would call the hints of all waiting pods. The arguments are those of the hints. A pod that was tried meanwhile
// must not begin to wait before all hints are called.
func (p *Plugin) Irrelevant(logger klog.Logger, old, obj any) bool {
	if obj == nil {
		return p.irrelevantEnd(logger, old)
	}
	switch o := obj.(type) {
	case *corev1.PersistentVolumeClaim:
		return !p.feed.waiting.referTo(o)
	case *corev1.PersistentVolume:
		return !isBindable(o)
	}
	return false
}

// irrelevantEnd is Irrelevant for an object that is gone.
func (p *Plugin) irrelevantEnd(logger klog.Logger, gone any) bool {
	switch o := gone.(type) {
	case *corev1.Pod:
		if !mayHold(o) {
			return true
		}
		end := p.feed.foldEndOnce(logger, o)
		return !end.freed || !p.anyFits(end.node)
	case *corev1.PersistentVolume:
		if !claim.IsOurs(o) {
			return true
		}
		node, ref := p.feed.foldVolumeOnce(logger, o), o.Spec.ClaimRef
		return (ref == nil || !p.feed.waiting.referTo(claimOf(ref))) && !p.anyFits(node)
	}
	return false
}

// anyFits is queueIfFits for all waiting pods at once.
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
