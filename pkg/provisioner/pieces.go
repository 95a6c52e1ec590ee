package provisioner

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/pkg/ledger"
	"github.com/berthdev/berth/pkg/plugins/diskcapacity"
)

// A claim grows in one of three ways, the first that is possible: its volume becomes longer where it is, it gets
// further pieces, or it is moved. The capacity and the annotation that says how are written together.

// plannedGrowth is what the ledger has reserved for a volume.
type plannedGrowth struct {
	// annotations are written with the capacity.
	annotations map[string]any
	// withdraw takes back what was reserved: the write was not done and never will be.
	withdraw func(pv *corev1.PersistentVolume)
}

// planGrowth reserves what the volume needs to become that large. It returns nil if nothing is possible, and then how
// large the volume could become. A volume that is stuck can only be moved.
func (c *Controllers) planGrowth(pv *corev1.PersistentVolume, v *claim.Volume, node string, want int64, stuck bool) (planned *plannedGrowth, possible int64, err error) {
	uid, possible := string(pv.UID), v.Size
	if !stuck && len(v.Pieces) == 0 {
		var granted bool
		if granted, possible = c.ledger.Grow(uid, want); granted {
			return &plannedGrowth{withdraw: c.withdrawGrowth}, possible, nil
		}
	}
	if !stuck {
		pieces, inPieces, err := c.planPieces(pv, v, node, want)
		if err != nil {
			return nil, 0, err
		}
		if pieces != nil {
			return &plannedGrowth{annotations: map[string]any{diskv1alpha1.AnnotationPieces: diskv1alpha1.JoinPieces(pieces)}, withdraw: c.withdrawPieces}, inPieces, nil
		}
		possible = max(possible, inPieces)
	}
	move, err := c.planMove(pv, v, want)
	if err != nil {
		// A claim that was granted a move already would be said to be infeasible.
		return nil, 0, err
	}
	if move != nil {
		return &plannedGrowth{annotations: map[string]any{diskv1alpha1.AnnotationMoveTo: move.String()}, withdraw: c.withdrawMove}, want, nil
	}
	return nil, possible, nil
}

// planPieces reserves further pieces for the volume, or a longer last one, and returns all further pieces; nil if that
// is not enough. possible is how large the volume could become.
func (c *Controllers) planPieces(pv *corev1.PersistentVolume, v *claim.Volume, node string, want int64) (pieces []diskv1alpha1.Place, possible int64, err error) {
	further := c.furtherPieces(c.ledger.Snapshot(node), v)
	if further == 0 {
		return nil, v.Size, nil
	}
	version, err := diskcapacity.RevisionOf(pv.ResourceVersion)
	if err != nil {
		return nil, 0, err
	}
	growth := ledger.Growth{Version: version, First: diskcapacity.RecordOf(*v), Pieces: diskcapacity.PiecesOf(*v), Length: want}
	for n := 1; n <= further; n++ {
		growth.Partitions = append(growth.Partitions, diskv1alpha1.PieceID(v.Partition, n))
	}
	records, possible, err := c.ledger.PlanPieces(string(pv.UID), growth)
	if err != nil || possible < want {
		return nil, possible, err
	}
	return diskcapacity.PlacesOf(records), possible, nil
}

// furtherPieces is how many further pieces the volume may have. What it has already stays, whatever its class says now.
func (c *Controllers) furtherPieces(snapshot *ledger.Snapshot, v *claim.Volume) int {
	if !snapshot.DeviceMapper() {
		return len(v.Pieces)
	}
	return max(len(v.Pieces), c.cluster.MaxPieces(v.Class)-1)
}

// piecesProblem says why the volume does not get what it needs in further pieces.
func (c *Controllers) piecesProblem(snapshot *ledger.Snapshot, v *claim.Volume) string {
	limit := c.cluster.MaxPieces(v.Class)
	switch {
	case limit <= 1:
		return fmt.Sprintf("it gets no further pieces, because its class %s does not allow them", v.Class)
	case !snapshot.DeviceMapper():
		return "it gets no further pieces, because the kernel of the node has no device mapper"
	}
	return fmt.Sprintf("it has %d of at most %d pieces, and the free extents of the disk do not add up to more in those that are left", len(v.Pieces)+1, limit)
}

// needsRemount reports whether the node has not made a piece of the volume, and cannot make it while the volume is
// used.
func needsRemount(snapshot *ledger.Snapshot, v *claim.Volume) bool {
	if snapshot.IsMapped(v.Partition) {
		return false
	}
	for _, partition := range partitionsOf(v)[1:] {
		if snapshot.Length(partition) == 0 {
			return true
		}
	}
	return false
}

// endPieces removes the annotation of further pieces from a PersistentVolume whose volume has all of its size in one
// piece. The volume was moved, and the annotation of the move was removed before the node published the new place.
// Otherwise the places would be withheld, and the volume could not grow.
func (c *Controllers) endPieces(ctx context.Context, pv *corev1.PersistentVolume, v *claim.Volume, node string) (ended bool, err error) {
	snapshot := c.ledger.Snapshot(node)
	if len(v.Pieces) == 0 || snapshot.Length(partitionsOf(v)[1:]...) > 0 || snapshot.Length(v.Partition) < v.Size {
		return false, nil
	}
	if err := c.writeMoveTo(ctx, pv, nil, true); err != nil && !apierrors.IsNotFound(err) {
		return true, err
	}
	klog.FromContext(ctx).V(2).Info("A volume lies in one piece since a move that was ended", "volume", klog.KObj(pv), "node", klog.KRef("", node))
	return true, nil
}

// partitionsOf are the GUIDs of all pieces of the volume.
func partitionsOf(v *claim.Volume) []string {
	partitions := []string{v.Partition}
	for i := range v.Pieces {
		partitions = append(partitions, diskv1alpha1.PieceID(v.Partition, i+1))
	}
	return partitions
}

func piecesOf(pv *corev1.PersistentVolume) string {
	return pv.Annotations[diskv1alpha1.AnnotationPieces]
}

// settle folds in a PersistentVolume that no earlier write can change any more. was is the version that the write
// named. The ledger may have seen the later version before the plan was made: then no event ends the plan.
func (c *Controllers) settle(was, now *corev1.PersistentVolume) {
	v, err := claim.ReadVolume(now)
	if err != nil {
		return
	}
	if piecesOf(now) == piecesOf(was) {
		c.withdrawPieces(was)
	}
	if v.MoveTo == nil {
		c.withdrawMove(was)
	}
	// The move of a drain leaves the capacity as it was.
	if v.MoveTo == nil || capacitySize(now).Equal(*capacitySize(was)) {
		c.ledger.SettleGrowth(string(was.UID), v.FirstLength())
	}
}

func (c *Controllers) withdrawGrowth(pv *corev1.PersistentVolume) {
	c.ledger.WithdrawGrowth(string(pv.UID))
}

// withdrawPieces takes back pieces that were planned for that version of a PersistentVolume.
func (c *Controllers) withdrawPieces(pv *corev1.PersistentVolume) {
	if version, err := diskcapacity.RevisionOf(pv.ResourceVersion); err == nil {
		c.ledger.WithdrawPieces(string(pv.UID), version)
	}
}
