package provisioner

import (
	"context"
	"encoding/json"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/pkg/ledger"
	"github.com/berthdev/berth/pkg/plugins/diskcapacity"
)

// A volume that can grow neither where it is nor in pieces can be moved: to an extent of its disk that holds all of it.
// The capacity and the annotation AnnotationMoveTo are written together, so that the space is reserved before anything
// changes on the disk. The node's agent moves the volume when no pod uses it. When the node publishes the volume at its
// new place, the annotation is removed.

// planMove reserves a place for the volume at its new size, and returns it; nil if there is none.
func (c *Controllers) planMove(pv *corev1.PersistentVolume, v *claim.Volume, want int64) (*diskv1alpha1.Place, error) {
	if v.MoveTo != nil {
		// One move at a time.
		return nil, nil
	}
	version, err := diskcapacity.RevisionOf(pv.ResourceVersion)
	if err != nil {
		return nil, err
	}
	return c.planMoveFor(pv, ledger.MoveRequest{Version: version, Length: want}, v)
}

// planMoveFor plans a move of a volume.
func (c *Controllers) planMoveFor(pv *corev1.PersistentVolume, o ledger.MoveRequest, v *claim.Volume) (*diskv1alpha1.Place, error) {
	o.Copy, o.Left, o.Class = diskv1alpha1.CopyID(v.Partition), diskv1alpha1.LeftID(v.Partition), v.Class
	move, ok, err := c.ledger.PlanMove(string(pv.UID), o)
	if !ok {
		return nil, err
	}
	return &diskv1alpha1.Place{Disk: move.Disk, Extent: diskv1alpha1.Extent{Start: move.Extent.Start, Length: move.Extent.Len()}}, nil
}

func moveTo(pv *corev1.PersistentVolume) string { return pv.Annotations[diskv1alpha1.AnnotationMoveTo] }

// withdrawMove takes back a move that was planned for that version of a PersistentVolume.
func (c *Controllers) withdrawMove(pv *corev1.PersistentVolume) {
	if version, err := diskcapacity.RevisionOf(pv.ResourceVersion); err == nil {
		c.ledger.WithdrawMove(string(pv.UID), version)
	}
}

// endMove removes the annotation of a move that is done, or whose place another volume has. Then the volume gets
// another place. It also removes that of pieces which the volume does not have since a move.
func (c *Controllers) endMove(ctx context.Context, pvc *corev1.PersistentVolumeClaim) error {
	pv, err := c.volumes.Get(pvc.Spec.VolumeName)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if !claim.IsFor(pv, pvc) {
		return nil
	}
	return c.endMoveOf(ctx, pv, keyOf(pvc))
}

// endMoveOf is endMove for a PersistentVolume. key is that of its claim, or another one that syncs it.
func (c *Controllers) endMoveOf(ctx context.Context, pv *corev1.PersistentVolume, key string) error {
	if moveTo(pv) == "" && piecesOf(pv) == "" || !hasRecordedPlace(pv) {
		return nil
	}
	v, err := claim.ReadVolume(pv)
	if err != nil || v.MoveTo == nil && moveTo(pv) != "" {
		// The agent reports what is wrong.
		return nil //nolint:nilerr // see above
	}
	node, _, ok := c.ledger.Where(v.Partition)
	if !ok {
		return fmt.Errorf("moving claim %s: the place of PersistentVolume %s is not known yet", key, pv.Name)
	}
	c.memory.addWaiting(node, key)
	if v.MoveTo == nil {
		_, err := c.endPieces(ctx, pv, &v, node)
		return err
	}
	move, snapshot := *diskcapacity.MoveOf(v), c.ledger.Snapshot(node)
	isTaken := snapshot.IsTaken(v.Partition, move)
	if !snapshot.IsMoved(v.Partition, move) && !isTaken {
		return nil
	}
	// The new place holds all of the volume.
	if err := c.writeMoveTo(ctx, pv, nil, snapshot.IsMoved(v.Partition, move)); err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	message := "A volume has been moved"
	if isTaken {
		message = "A volume cannot be moved: another volume has its place, and it gets another one"
	}
	klog.FromContext(ctx).V(2).Info(message, "claim", key, "volume", klog.KObj(pv), "node", klog.KRef("", node), "to", v.MoveTo)
	return nil
}

// writeMoveTo writes the annotation of a move into a PersistentVolume, in the version that was read; nil removes it.
// That of the pieces is removed with it if the volume is moved.
func (c *Controllers) writeMoveTo(ctx context.Context, pv *corev1.PersistentVolume, to *diskv1alpha1.Place, isMoved bool) error {
	annotations := map[string]any{diskv1alpha1.AnnotationMoveTo: nil}
	if to != nil {
		annotations[diskv1alpha1.AnnotationMoveTo] = to.String()
	}
	if isMoved {
		annotations[diskv1alpha1.AnnotationPieces] = nil
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"uid": pv.UID, "resourceVersion": pv.ResourceVersion, "annotations": annotations,
	}})
	if err != nil {
		return err
	}
	if _, err = c.client.CoreV1().PersistentVolumes().Patch(ctx, pv.Name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		return fmt.Errorf("writing the annotation %s of PersistentVolume %s: %w", diskv1alpha1.AnnotationMoveTo, pv.Name, err)
	}
	return nil
}
