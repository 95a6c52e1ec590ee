package provisioner

import (
	"context"

	corev1 "k8s.io/api/core/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/ledger"
	"github.com/berthdev/berth/pkg/plugins/diskcapacity"
)

// A disk that is to be compacted: its agent plans the moves, because it knows which volumes are in use. It publishes
// the next move, and what all of them bring. The leader reserves the place and writes it into the PersistentVolume, as
// for a drain.

// compact plans the move of a volume, if it is the next one of its disk. It reports whether the volume is being moved.
func (c *Controllers) compact(ctx context.Context, node string, pv *corev1.PersistentVolume, v *claim.Volume, decision diskv1alpha1.DiskDecision, next diskv1alpha1.CompactionMove) (moving bool, err error) {
	if !decision.Compact || decision.IsCordoned() || next.Partition != v.Partition || pv.Status.Phase == corev1.VolumeReleased {
		return false, nil
	}
	return true, c.planDrain(ctx, node, pv, v, ledger.MoveRequest{To: extent.New(next.To.Start, next.To.Length)})
}

// isVoidCompaction reports whether a move on the volume's disk must not be done any more: the disk is not to be
// compacted any more. A move of a volume that grows has more bytes than the volume has now.
func (c *Controllers) isVoidCompaction(node string, v *claim.Volume, at ledger.Record, decisions map[string]diskv1alpha1.DiskDecision) bool {
	decision, snapshot := decisions[at.Disk], c.ledger.Snapshot(node)
	if at.Disk != v.MoveTo.Disk || decision.Compact && !decision.IsCordoned() || snapshot.IsMoved(v.Partition, *diskcapacity.MoveOf(*v)) {
		return false
	}
	return snapshot.Length(partitionsOf(v)...) == v.MoveTo.Length
}
