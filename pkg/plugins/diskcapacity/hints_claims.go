package diskcapacity

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/component-helpers/storage/volume"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/claim"
)

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
	if !usesClaim(pod, pvc) {
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
	if p.feed.usesStorageClass(pod, class.Name) {
		return fwk.Queue, nil
	}
	return fwk.QueueSkip, nil
}

// usesStorageClass reports whether the pod has an unbound claim of the StorageClass.
func (f *feed) usesStorageClass(pod *corev1.Pod, class string) bool {
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
		if p.feed.usesStorageClass(pod, volume.GetPersistentVolumeClass(pv)) {
			return fwk.Queue, nil
		}
	case obj == nil && claim.IsOurs(pv):
		if ref := pv.Spec.ClaimRef; ref != nil && usesClaim(pod, claimOf(ref)) {
			return fwk.Queue, nil
		}
		return p.queueIfFits(pod, node), nil
	}
	return fwk.QueueSkip, nil
}

// hasNodeLabel reports whether the node has the label by which PersistentVolumes name it.
func hasNodeLabel(node *corev1.Node) bool {
	return node.Labels[diskv1alpha1.LabelNode] == diskv1alpha1.NodeLabel(node.Name)
}
