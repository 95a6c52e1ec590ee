package diskcapacity

import (
	"context"
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/claim"
)

const reasonNarrowed = "Only the nodes that the volumes fit best were tried, the pod is tried on all of them next"

// PostFilter stops preemption while the space of earlier victims is being wiped. DefaultPreemption waits only for the
// end of its victims. Their disk space is free later, for a large and slow disk many minutes later. Until then each
// retry of the pending pod would preempt more pods. So PostFilter must come before DefaultPreemption.
//
// It also ends the cycle of a pod that was tried on a part of the nodes only, before any pod is preempted for it.
//
// Otherwise it only adds to the message how near the nearest nodes came. In a large cluster the nodes' own statuses do
// not say that.
func (p *Plugin) PostFilter(ctx context.Context, cycle fwk.CycleState, pod *corev1.Pod, statuses fwk.NodeToStatusReader) (*fwk.PostFilterResult, *fwk.Status) {
	if _, err := cycle.Read(invalidKey); err == nil {
		// The end of no pod would make its request valid. Plugins whose PreFilter did not run have nothing useful to
		// add.
		return nil, fwk.NewStatus(fwk.UnschedulableAndUnresolvable)
	}
	s, err := readState(cycle)
	if err != nil {
		return nil, p.postFilterWithoutState(cycle, statuses)
	}
	s.refusedEverywhere = true
	status := p.postFilterWithState(ctx, s, pod, statuses)
	s.countNoNode(status)
	return nil, status
}

// postFilterWithoutState is PostFilter of a pod without a state: it has no disk volumes, or another plugin's PreFilter
// refused it first. Then no eviction helps, and plugins whose PreFilter did not run return an error if they are called.
func (p *Plugin) postFilterWithoutState(cycle fwk.CycleState, statuses fwk.NodeToStatusReader) *fwk.Status {
	if !cycle.GetSkipFilterPlugins().Has(Name) {
		if helped, err := statuses.NodesForStatusCode(p.handle.SnapshotSharedLister().NodeInfos(), fwk.Unschedulable); err == nil && len(helped) == 0 {
			return fwk.NewStatus(fwk.UnschedulableAndUnresolvable)
		}
	}
	return fwk.NewStatus(fwk.Unschedulable)
}

// postFilterWithState is PostFilter of a pod with disk volumes. It nominates no node.
func (p *Plugin) postFilterWithState(ctx context.Context, s *state, pod *corev1.Pod, statuses fwk.NodeToStatusReader) *fwk.Status {
	nominated := pod.Status.NominatedNodeName
	if s.narrowed {
		p.widen(klog.FromContext(ctx), pod)
		return fwk.NewStatus(fwk.UnschedulableAndUnresolvable, reasonNarrowed)
	}
	if s.rejections.isEmpty() {
		// The pod waits for something else than disk space.
		p.feed.waiting.forget(pod.UID)
	}
	if nominated == "" {
		return s.noNodeStatus()
	}
	// If the node refuses the pod for another reason, wiping will not help.
	if status := statuses.Get(nominated); status.Code() != fwk.Unschedulable || status.Plugin() != Name {
		return fwk.NewStatus(fwk.Unschedulable)
	}
	snapshot := p.ledger.Snapshot(nominated)
	gone := p.feed.releasedPartitions(nominated)
	maps.Copy(gone, snapshot.Wiping())
	if len(gone) == 0 {
		return fwk.NewStatus(fwk.Unschedulable)
	}
	maps.Copy(gone, s.gone)
	others, err := p.withNominated(s, pod, nominated)
	if err != nil {
		return fwk.AsStatus(err)
	}
	if _, err := s.search.FitOn(snapshot.Usable(gone, others.nominationsOn(nominated))); err != nil {
		return fwk.NewStatus(fwk.Unschedulable)
	}
	// This status ends the preemption and leaves the nomination as it is.
	return fwk.NewStatus(fwk.UnschedulableAndUnresolvable,
		fmt.Sprintf("waiting for node %s to wipe volumes that are gone; nothing more is preempted meanwhile", nominated))
}

// releasedPartitions returns the partitions on the node of volumes that no pod will use any more and that the agent
// will wipe: their claims ended with their pod, or are about to. The volume of a generic ephemeral claim ends a while
// after its pod.
func (f *feed) releasedPartitions(nodeName string) map[string]struct{} {
	partitions := map[string]struct{}{}
	for _, pv := range f.persistentVolumesOn(diskv1alpha1.NodeLabel(nodeName)) {
		if pv.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimDelete || pv.Spec.ClaimRef == nil {
			continue
		}
		v, err := claim.ReadVolume(pv)
		if err != nil {
			continue
		}
		if pv.DeletionTimestamp != nil || pv.Status.Phase == corev1.VolumeReleased || f.claimTerminating(pv) {
			partitions[v.Partition] = struct{}{}
		}
	}
	return partitions
}

// claimTerminating reports whether the volume's claim is gone or is being deleted, or is about to be, because its pod
// is gone.
func (f *feed) claimTerminating(pv *corev1.PersistentVolume) bool {
	pvc, err := f.claims.pvcs.PersistentVolumeClaims(pv.Spec.ClaimRef.Namespace).Get(pv.Spec.ClaimRef.Name)
	if err != nil || !claim.IsFor(pv, pvc) || pvc.DeletionTimestamp != nil {
		return true
	}
	owner := metav1.GetControllerOf(pvc)
	if owner == nil || owner.Kind != "Pod" {
		return false
	}
	return f.storedPod(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: pvc.Namespace, Name: owner.Name, UID: owner.UID}}) == nil
}
