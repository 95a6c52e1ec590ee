package volumes

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/client"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/claim"
)

// releaser ends the life of persistent volumes. It wipes the volume of a released PersistentVolume, and then removes
// the PersistentVolume. It keeps a volume without a PersistentVolume as an orphan.
type releaser struct {
	node      *node
	volumes   volumeStore
	reclaim   reclaimer
	orphans   *orphans
	blocked   *blockedVolumes
	queue     workqueue.TypedRateLimitingInterface[string]
	waiters   *waiters[string]
	finalized *finalizedVolumes
}

// release wipes the volume of a PersistentVolume whose claim is gone, and then finalizes the PersistentVolume. It acts
// on a live read from the API server. An error means that nothing is known, and then nothing is wiped.
func (r *releaser) release(ctx context.Context, pv *corev1.PersistentVolume) error {
	partition := diskv1alpha1.PartitionID(pv.Spec.CSI.VolumeHandle)
	if r.reclaim.isWiping(partition) {
		// The end of the wipe has the PersistentVolume synced again.
		return nil
	}
	unlock, err := r.node.locks.lock(ctx, partition)
	if err != nil {
		return err
	}
	begun := false
	defer func() {
		if !begun {
			unlock()
		}
	}()
	live, err := r.node.client.Volume(ctx, pv.Name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot ask the API server for PersistentVolume %s, its volume is kept: %w", pv.Name, err)
	}
	if live.UID != pv.UID || !claim.IsOurs(live) || live.Spec.CSI.VolumeHandle != pv.Spec.CSI.VolumeHandle {
		// It is another PersistentVolume now. The watch will show it, and then it is synced.
		return nil
	}
	next := actionFor(live)
	if next != actionFinalize && next != actionReclaim {
		return nil
	}
	v, err := r.volumes.read(live)
	if err != nil {
		r.node.reports.warnVolume(live, eventNotReleased, fmt.Sprintf("%v; if no disk holds its volume, remove the finalizer %s", err, diskv1alpha1.FinalizerVolume))
		return nil
	}
	if next == actionFinalize {
		return r.finalize(ctx, live, "its reclaim policy is "+string(live.Spec.PersistentVolumeReclaimPolicy))
	}
	begun, err = r.wipeOrFinalize(ctx, live, v, unlock)
	if client.IsGoneOrChanged(err) {
		// It has changed since it was read, so it is read again.
		r.queue.AddRateLimited(live.Name)
		return nil
	}
	return err
}

// wipeOrFinalize wipes the partition, or finishes when there is none. The caller holds the volume's lock. If begun is
// true, the wipe unlocks it.
func (r *releaser) wipeOrFinalize(ctx context.Context, live *corev1.PersistentVolume, v claim.Volume, unlock func()) (begun bool, err error) {
	if others, err := r.findOtherVolume(ctx, live, v); err != nil {
		return false, err
	} else if others != "" {
		if live.DeletionTimestamp != nil {
			return false, r.finalize(ctx, live, "PersistentVolume "+others+" has the same volumeHandle, and its volume")
		}
		r.node.reports.warnVolume(live, eventNotReleased, "PersistentVolume "+others+" has the same volumeHandle: nothing is wiped. Delete the one that is wrong")
		return false, nil
	}
	seen := r.waiters.changeCount()
	disks := r.node.inventory.Disks()
	d, onDisk, found := findVolume(disks, v.Partition)
	if r.movesFirst(live.Name, v.Partition) {
		r.waiters.add(live.Name, seen)
		return false, nil
	}
	switch {
	case !found:
		if at, _, isCopied := findVolume(disks, diskv1alpha1.CopyID(v.Partition)); isCopied && at.Ready() {
			// A part of a move. It has the volume's data, too.
			r.reclaim.enqueue(diskv1alpha1.CopyID(v.Partition), 0)
			r.waiters.add(live.Name, seen)
			return false, nil
		}
		if _, ok := inService(disks, diskFor(live, v)); !ok {
			r.node.reports.warnVolume(live, eventDiskMissing, fmt.Sprintf("disk %s, which the volume was put on, is not in service on node %s: it cannot be wiped. If the disk is gone for good, remove the finalizer %s", diskFor(live, v), r.node.name, diskv1alpha1.FinalizerVolume))
			r.waiters.add(live.Name, seen)
			return false, nil
		}
		return false, r.finalizeWiped(ctx, live)
	case !d.Ready():
		// When a disk comes back, all PersistentVolumes are queued.
		r.node.reports.warnVolume(live, eventDiskMissing, fmt.Sprintf("the volume is on disk %s (%s), which is out of service: %s. It is wiped when the disk is back", d.ID(), d.Device.Name, d.Problem))
		return false, nil
	}
	if err := checkSameVolume(disks, onDisk, v); err != nil {
		r.node.reports.warnVolume(live, eventNotReleased, err.Error())
		return false, nil
	}
	if onDisk.Phase != disk.Wiping {
		why, err := describeUse(onDisk.Device)
		if err != nil {
			return false, err
		}
		if why != "" {
			r.node.reports.warnVolume(live, eventNotReleased, "the volume is wiped once it is not in use: "+why)
			r.queue.AddAfter(live.Name, inUseRetry)
			r.blocked.recordHeld(ctx, d, onDisk, why)
			return false, nil
		}
		if err := r.deleteWithFinalizer(ctx, live); err != nil {
			return false, err
		}
	}
	r.reclaim.begin(ctx, d, onDisk, unlock)
	return true, nil
}

// movesFirst reports whether something of a move to another disk must end before the volume is wiped: that of its place
// which is not the volume is wiped only while another disk has the volume.
func (r *releaser) movesFirst(name, partition string) (waits bool) {
	for _, p := range []string{diskv1alpha1.CopyID(partition), diskv1alpha1.LeftID(partition)} {
		if at, v, found := r.node.findVolume(p); found && at.Ready() && (v.Phase == disk.Arriving || v.Phase == disk.Moved) {
			r.reclaim.enqueue(p, 0)
			// The place may wait for what this PersistentVolume says.
			r.queue.AddAfter(name, inUseRetry)
			waits = true
		}
	}
	return waits
}

// deleteWithFinalizer deletes the PersistentVolume in the version that was read. Our finalizer keeps it until the
// volume is wiped. From here on it cannot be bound again.
func (r *releaser) deleteWithFinalizer(ctx context.Context, live *corev1.PersistentVolume) error {
	if live.DeletionTimestamp != nil {
		return nil
	}
	held, err := r.node.client.AddFinalizer(ctx, live)
	if err == nil {
		err = r.node.client.DeleteVolume(ctx, held)
	}
	if err != nil {
		return fmt.Errorf("cannot delete PersistentVolume %s, its volume is kept: %w", live.Name, err)
	}
	return nil
}

// finalizeWiped removes a PersistentVolume whose volume is on no disk any more.
func (r *releaser) finalizeWiped(ctx context.Context, live *corev1.PersistentVolume) error {
	if live.DeletionTimestamp == nil {
		if err := r.deleteWithFinalizer(ctx, live); err != nil {
			return err
		}
		// The watch shows the deletion, and then it is finalized.
		return nil
	}
	return r.finalize(ctx, live, "its volume is wiped")
}

// finalize removes our finalizer from the PersistentVolume in the version that was read.
func (r *releaser) finalize(ctx context.Context, live *corev1.PersistentVolume, why string) error {
	r.finalized.add(live.UID)
	err := r.node.client.RemoveFinalizer(ctx, live)
	if err == nil || apierrors.IsNotFound(err) {
		klog.FromContext(ctx).Info("Finalizer of the PersistentVolume is removed", "why", why)
		return nil
	}
	r.finalized.remove(live.UID)
	if client.IsGoneOrChanged(err) {
		r.queue.AddRateLimited(live.Name)
		return nil
	}
	return fmt.Errorf("cannot remove the finalizer of PersistentVolume %s: %w", live.Name, err)
}

// findOtherVolume names another PersistentVolume with the same volumeHandle. While there is one, the partition is not
// wiped for this one.
func (r *releaser) findOtherVolume(ctx context.Context, live *corev1.PersistentVolume, v claim.Volume) (string, error) {
	for _, other := range r.volumes.of(v.Partition) {
		if other.Name != live.Name {
			return other.Name, nil
		}
	}
	if live.Name == v.ID {
		return "", nil
	}
	// The one that was made with the volume may have lost its label.
	other, err := r.node.client.Volume(ctx, v.ID)
	switch {
	case apierrors.IsNotFound(err):
		return "", nil
	case err != nil:
		return "", fmt.Errorf("cannot ask the API server for PersistentVolume %s, the volume is kept: %w", v.ID, err)
	case claim.IsOurs(other) && other.Spec.CSI.VolumeHandle == v.ID:
		return other.Name, nil
	}
	return "", nil
}

// verdict reads from the API server whether a partition has a PersistentVolume that the watch does not show. In either
// case the partition stays.
func (r *releaser) verdict(ctx context.Context, v disk.Volume) (verdict, error) {
	if r.enqueueVolumes(v.Partition) {
		return verdictKeep, nil
	}
	id, ok := persistentVolumeID(v)
	if !ok {
		return verdictKeep, nil
	}
	pv, err := r.node.client.Volume(ctx, id)
	if err != nil && !apierrors.IsNotFound(err) {
		return verdictKeep, fmt.Errorf("cannot ask the API server for PersistentVolume %s: %w", id, err)
	}
	orphaned := err != nil || !claim.IsOurs(pv) || pv.Spec.CSI.VolumeHandle != id
	r.orphans.setOrphaned(ctx, v, orphaned)
	if !orphaned {
		r.explainUnwatched(pv)
	}
	return verdictKeep, nil
}

// explainUnwatched reports why the watch does not show the PersistentVolume of a volume on this node: its label was
// changed, or the disk was moved. PersistentVolumes of a CSI sidecar have no label, which is right: the sidecar's call
// wipes them.
func (r *releaser) explainUnwatched(pv *corev1.PersistentVolume) {
	here, label := diskv1alpha1.NodeLabel(r.node.name), pv.Labels[diskv1alpha1.LabelNode]
	v, err := claim.ReadVolume(pv)
	switch {
	case err == nil && v.Node != here:
		r.node.reports.warnVolume(pv, eventOnOtherNode, fmt.Sprintf("the volume is on a disk of node %s, its PersistentVolume is for node %q: was the disk moved? The volume is kept", r.node.name, v.Node))
	case label != here && (label != "" || slices.Contains(pv.Finalizers, diskv1alpha1.FinalizerVolume)):
		r.node.reports.warnVolume(pv, eventMismatch, fmt.Sprintf("its label %s is %q, its volume is on node %s: nothing is done for it until the label is %q", diskv1alpha1.LabelNode, label, r.node.name, here))
	}
}

// enqueueUnwatched queues the persistent volumes for reclaim for which the watch shows no PersistentVolume.
func (r *releaser) enqueueUnwatched() {
	disks := r.node.inventory.Disks()
	for i := range disks {
		if !disks[i].Ready() {
			continue
		}
		for _, v := range disks[i].Snapshot.Volumes {
			if _, ok := persistentVolumeID(v); ok && len(r.volumes.of(v.Partition)) == 0 {
				r.reclaim.enqueue(v.Partition, 0)
			}
		}
	}
}

// enqueueVolumes queues the PersistentVolumes of a partition. It reports whether the watch shows any.
func (r *releaser) enqueueVolumes(partition string) (watched bool) {
	for _, pv := range r.volumes.of(partition) {
		r.queue.Add(pv.Name)
		watched = true
	}
	return watched
}

// partitionGone queues the PersistentVolumes of a partition that no disk has: they may be finalized, or get a new
// partition.
func (r *releaser) partitionGone(partition string) { r.enqueueVolumes(partition) }

// ownerOf names the volume by its CSI ID, and its claim by namespace/name, from the watch. The watch does not show the
// PersistentVolumes of CSI sidecars. For these it is the claim that the volume was made for.
func (r *releaser) ownerOf(v disk.Volume) (volume, owner string) {
	id, ok := persistentVolumeID(v)
	if !ok {
		return "", ""
	}
	pvs := r.volumes.of(v.Partition)
	for _, pv := range pvs {
		if owner := claim.Owner(pv); owner != "" {
			return id, owner
		}
	}
	if len(pvs) > 0 {
		return id, ""
	}
	if _, orphaned := r.orphans.OrphanedSince(v); orphaned {
		return id, ""
	}
	return id, claimInNote(v)
}

// Unstaged is called when the kubelet has unstaged the volume: its release may have waited for that, or its move.
func (r *releaser) Unstaged(volumeID string) {
	r.enqueueVolumes(diskv1alpha1.PartitionID(volumeID))
	r.node.useChanged()
}
