package provisioner

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/answer"
	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/pkg/controller"
	"github.com/berthdev/berth/pkg/placement"
)

// wantsGrowth reports whether a bound claim requests more than it has.
func wantsGrowth(pvc *corev1.PersistentVolumeClaim) bool {
	return pvc.Status.Phase == corev1.ClaimBound && requestedSize(pvc).Cmp(*statusSize(pvc)) > 0
}

func requestedSize(pvc *corev1.PersistentVolumeClaim) *resource.Quantity {
	return pvc.Spec.Resources.Requests.Storage()
}

func statusSize(pvc *corev1.PersistentVolumeClaim) *resource.Quantity {
	return pvc.Status.Capacity.Storage()
}

func capacitySize(pv *corev1.PersistentVolume) *resource.Quantity { return pv.Spec.Capacity.Storage() }

// grow takes a bound claim one step further, if it requests more than it has. The first step is the PersistentVolume's
// capacity, which the agent follows, and the second is the claim's status. The API server only accepts a larger request
// if the class allows it, and none below what the claim has.
func (c *Controllers) grow(ctx context.Context, state *claimState, pvc *corev1.PersistentVolumeClaim) error {
	if !wantsGrowth(pvc) {
		c.forget(keyOf(pvc))
		return nil
	}
	pv, err := c.volumes.Get(pvc.Spec.VolumeName)
	switch {
	case apierrors.IsNotFound(err):
		// The event of the PersistentVolume queues the claim.
		return nil
	case err != nil:
		return err
	case !hasRecordedPlace(pv) || !claim.IsFor(pv, pvc) || pv.DeletionTimestamp != nil:
		c.forget(keyOf(pvc))
		return nil
	}
	v, err := claim.ReadVolume(pv)
	if err == nil {
		// Without its pieces the volume would get others in their place.
		_, err = claim.ReadPieces(pv)
	}
	if err != nil {
		c.emitEvent(state, pvc, corev1.EventTypeWarning, reasonResizeFailed, actionResize, err.Error())
		return nil
	}
	quantity := requestedSize(pvc)
	if quantity.CmpInt64(diskv1alpha1.MaxVolumeSize) > 0 {
		return c.setInfeasible(ctx, state, pvc, pv, &v, fmt.Sprintf("no disk is larger than %s", sizeOf(diskv1alpha1.MaxVolumeSize)))
	}
	want, stuck := diskv1alpha1.AlignUp(quantity.Value()), c.ledger.IsStuck(string(pv.UID))
	if stuck {
		want = max(want, capacitySize(pv).Value())
	}
	if want > capacitySize(pv).Value() || stuck {
		if want > capacitySize(pv).Value() && resizeState(pvc) == corev1.PersistentVolumeClaimNodeResizeInProgress {
			// The kubelet writes the size that it is at now into the status. Its write comes first.
			return nil
		}
		granted, err := c.grant(ctx, state, pvc, pv, &v, want, stuck)
		if err != nil || granted == nil {
			return err
		}
		pv = granted
		if v, err = claim.ReadVolume(pv); err != nil {
			return err
		}
	}
	return c.updateClaimStatus(ctx, state, pvc, pv, &v)
}

// hasRecordedPlace reports whether the volume has a place that the ledger knows. One that a CSI sidecar made has none:
// another sidecar grows it.
func hasRecordedPlace(pv *corev1.PersistentVolume) bool {
	return claim.IsOurs(pv) && pv.Spec.CSI.VolumeAttributes[diskv1alpha1.AttributeDisk] != ""
}

// grant raises the PersistentVolume's capacity, if the ledger finds the space: behind the volume, in further pieces, or
// elsewhere on its disk. Then the node moves the volume there while no pod uses it. Otherwise it returns neither a
// PersistentVolume nor an error. A volume that is stuck can only be moved.
func (c *Controllers) grant(ctx context.Context, state *claimState, pvc *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume, v *claim.Volume, want int64, stuck bool) (*corev1.PersistentVolume, error) {
	node, record, ok := c.ledger.Where(v.Partition)
	if !ok {
		// The ledger has not seen the volume yet, which the informer has.
		return nil, fmt.Errorf("growing claim %s: the place of PersistentVolume %s is not known yet", keyOf(pvc), pv.Name)
	}
	// The claim waits for the node before Grow is called, so that no change in between is missed.
	c.memory.addWaiting(node, keyOf(pvc))
	if v.MoveTo != nil {
		// It is moved for an earlier request. This one is next.
		return nil, c.updateClaimStatus(ctx, state, pvc, pv, v)
	}
	planned, possible, err := c.planGrowth(pv, v, node, want, stuck)
	if err != nil {
		return nil, fmt.Errorf("growing claim %s, PersistentVolume %s: %w", keyOf(pvc), pv.Name, err)
	}
	if planned == nil {
		// Space that was only reserved may become free without a change of the node.
		c.claimQueue.AddAfter(keyOf(pvc), controller.LastRetry)
		return nil, c.setInfeasible(ctx, state, pvc, pv, v, c.growthProblem(node, record.Disk, v, want, possible))
	}
	size := sizeOf(want)
	// The patch names the version that was read. A write since then may have made the PersistentVolume larger, and this
	// one must not shrink it.
	metadata := map[string]any{"uid": pv.UID, "resourceVersion": pv.ResourceVersion}
	if len(planned.annotations) > 0 {
		metadata["annotations"] = planned.annotations
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": metadata,
		"spec":     map[string]any{"capacity": map[string]any{string(corev1.ResourceStorage): size}},
	})
	if err != nil {
		return nil, err
	}
	larger, err := c.client.CoreV1().PersistentVolumes().Patch(ctx, pv.Name, types.MergePatchType, patch, metav1.PatchOptions{})
	if err != nil {
		if answer.Of(err).NotDone() {
			planned.withdraw(pv)
		} else {
			c.memory.addUnsettled(keyOf(pvc), pv)
		}
		return nil, fmt.Errorf("raising the capacity of PersistentVolume %s to %s: %w", pv.Name, size, err)
	}
	klog.FromContext(ctx).V(2).Info("Granted a claim more space", "claim", klog.KObj(pvc), "volume", klog.KObj(pv), "node", klog.KRef("", node), "from", v.Size, "to", want, "pieces", piecesOf(larger), "moveTo", moveTo(larger))
	return larger, nil
}

// settleGrowth finds out how large the claim's volumes are after failed writes whose outcome is unknown. Before that
// nothing else is done for the claim. The user may have lowered the request meanwhile, or deleted the claim, and then
// no later write would show the outcome.
func (c *Controllers) settleGrowth(ctx context.Context, key string) error {
	return c.settleWrites(ctx, key, c.settle)
}

// settleWrites folds in what has become of failed writes whose outcome is unknown. was is the version that a write
// named, and now is one that it can no longer change.
func (c *Controllers) settleWrites(ctx context.Context, key string, fold func(was, now *corev1.PersistentVolume)) error {
	for _, was := range c.memory.unsettled(key) {
		now, err := c.readSettled(ctx, was)
		if err != nil {
			return err
		}
		// The end of a PersistentVolume is an event for the ledger.
		if now != nil {
			fold(was, now)
		}
		c.memory.dropUnsettled(key, was)
	}
	return nil
}

// readSettled returns a PersistentVolume at a time when a write of an earlier version of it can no longer be done; nil
// if it is gone. Reading alone does not show that, because the write may still be on its way. Once the version is
// another, the write can only be refused.
func (c *Controllers) readSettled(ctx context.Context, was *corev1.PersistentVolume) (*corev1.PersistentVolume, error) {
	volumes := c.client.CoreV1().PersistentVolumes()
	now, err := volumes.Get(ctx, was.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err), err == nil && now.UID != was.UID:
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("reading PersistentVolume %s, whose capacity may have been raised: %w", was.Name, err)
	case now.ResourceVersion != was.ResourceVersion:
		return now, nil
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"uid": was.UID, "resourceVersion": was.ResourceVersion,
		"annotations": map[string]any{diskv1alpha1.AnnotationSettled: was.ResourceVersion},
	}})
	if err != nil {
		return nil, err
	}
	now, err = volumes.Patch(ctx, was.Name, types.MergePatchType, patch, metav1.PatchOptions{})
	if err != nil {
		return nil, fmt.Errorf("making another version of PersistentVolume %s, whose capacity may have been raised: %w", was.Name, err)
	}
	return now, nil
}

// growthProblem returns why the volume cannot grow, and how much space there is.
func (c *Controllers) growthProblem(node, disk string, v *claim.Volume, want, possible int64) string {
	snapshot := c.ledger.Snapshot(node)
	switch {
	case !snapshot.Published:
		return fmt.Sprintf("node %s publishes no disk space at the moment", node)
	case snapshot.Problem != "":
		return fmt.Sprintf("the NodeDiskCapacity of node %s contradicts itself: %s", node, snapshot.Problem)
	case !slices.ContainsFunc(snapshot.Node.Disks, func(d placement.Disk) bool { return d.ID == disk }):
		return fmt.Sprintf("the volume's disk %s of node %s takes no volumes at the moment", disk, node)
	}
	why, moved := "nothing is free behind it", "it cannot be moved, because nothing is free elsewhere on the disk"
	if possible > v.Size {
		why = "what follows is taken"
	}
	largest := snapshot.Largest(disk)
	if largest > 0 {
		moved = fmt.Sprintf("it cannot be moved, because the largest free extent of the disk has %s", sizeOf(largest))
	}
	most := ""
	if possible = max(possible, largest); possible > v.Size {
		most = fmt.Sprintf(", to %s at most", sizeOf(possible))
	}
	return fmt.Sprintf("the volume cannot grow to %s%s: %s on disk %s of node %s, %s, and %s", sizeOf(want), most, why, disk, node, c.piecesProblem(snapshot, v), moved)
}

// updateClaimStatus writes into the claim's status what follows from the larger PersistentVolume.
func (c *Controllers) updateClaimStatus(ctx context.Context, state *claimState, pvc *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume, v *claim.Volume) error {
	size := *capacitySize(pv)
	if size.Cmp(*statusSize(pvc)) <= 0 {
		return nil
	}
	node, _, ok := c.ledger.Where(v.Partition)
	snapshot := c.ledger.Snapshot(node)
	hasLength := ok && snapshot.Length(partitionsOf(v)...) >= size.Value()
	waits := ""
	switch {
	case hasLength:
	case v.MoveTo != nil:
		waits = messageMoves + adviceFor(pvc)
	case needsRemount(snapshot, v):
		waits = messagePieces + adviceFor(pvc)
	}
	if !v.Block {
		return c.setNodeResizePending(ctx, state, pvc, size, waits)
	}
	if ok {
		c.memory.addWaiting(node, keyOf(pvc))
		if hasLength {
			return c.setResized(ctx, state, pvc, size)
		}
	}
	return c.setResizing(ctx, pvc, size, waits)
}

// sizeOf writes a size exactly, in the form of a claim's request.
func sizeOf(bytes int64) string { return resource.NewQuantity(bytes, resource.BinarySI).String() }
