package volumes

import (
	"context"
	"errors"
	"fmt"

	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/claim"
)

// grower makes persistent volumes longer: their last piece, and then by further pieces, see persistent_pieces.go.
type grower struct {
	node    *node
	volumes volumeStore
	placer  *placer
	maker   *partitionMaker
	mover   *mover
}

// growToGranted grows the volume to the size that its PersistentVolume was granted.
func (g *grower) growToGranted(ctx context.Context, v claim.Volume) error {
	if _, onDisk, err := g.node.usable(v.Partition); err != nil || onDisk.Length() >= v.Size {
		return err
	}
	unlock, err := g.node.locks.lock(ctx, v.Partition)
	if err != nil {
		return err
	}
	defer unlock()
	return g.growAll(ctx, v)
}

// growAll is growToGranted for a caller that holds the volume's lock.
func (g *grower) growAll(ctx context.Context, v claim.Volume) error {
	d, onDisk, err := g.node.usable(v.Partition)
	if err != nil || onDisk.Length() >= v.Size {
		return err
	}
	if err := checkPieces(v, d.ID(), onDisk); err != nil {
		return err
	}
	if err := g.grow(ctx, v.ID, lengthInPlace(v, onDisk), reservations{}); err != nil {
		return err
	}
	return g.addPieces(ctx, v)
}

// grow makes the last piece longer, so that the volume has that size, if the bytes behind it are free and not reserved
// for others. The caller holds the volume's lock.
func (g *grower) grow(ctx context.Context, volumeID string, size int64, others reservations) error {
	partition := diskv1alpha1.PartitionID(volumeID)
	d, onDisk, err := g.node.usable(partition)
	if err != nil || onDisk.Length() >= size {
		return err
	}
	if err := g.placer.holdGrowth(onDisk, size, others); err != nil {
		return fmt.Errorf("volume %s: %w", volumeID, err)
	}
	defer g.placer.releaseHeld(partition)
	e, err := engineOf(&d)
	if err != nil {
		return fmt.Errorf("volume %s: %w", volumeID, err)
	}
	if _, err := e.Grow(ctx, partition, size); err != nil {
		if errors.Is(err, disk.ErrOverlap) {
			return fmt.Errorf("%w: volume %s: %w", ErrNotGrown, volumeID, err)
		}
		return fmt.Errorf("cannot grow volume %s to %d bytes: %w", volumeID, size, err)
	}
	klog.FromContext(ctx).Info("Volume has grown", "volume", volumeID, "partition", partition, "from", onDisk.Length(), "to", size)
	return nil
}

// Expand grows the partition to the size that its PersistentVolume was granted, which must be at least atLeast. Then it
// calls grow for the file system, under the volume's lock.
func (g *grower) Expand(ctx context.Context, volumeID string, atLeast int64, grow func(ctx context.Context, v Volume) error) (Volume, error) {
	partition := diskv1alpha1.PartitionID(volumeID)
	unlock, err := g.node.locks.lock(ctx, partition)
	if err != nil {
		return Volume{}, err
	}
	defer unlock()
	_, onDisk, err := g.node.usable(partition)
	if err != nil {
		return Volume{}, err
	}
	atLeast = diskv1alpha1.AlignUp(atLeast)
	if _, v, to := g.mover.pendingByPartition(partition); to != nil && onDisk.Length() < atLeast {
		return Volume{}, fmt.Errorf("%w: volume %s gets its %d bytes when it is moved, while no pod uses it: delete the pod and start it again", ErrNotGrown, volumeID, v.Size)
	}
	granted, err := g.granted(ctx, volumeID, atLeast, onDisk)
	if err != nil {
		return Volume{}, err
	}
	if granted != nil {
		err := g.growAll(ctx, *granted)
		if errors.Is(err, errPieceWaits) {
			err = fmt.Errorf("%w: volume %s gets its %d bytes in another piece, which it gets while no pod uses it: delete the pod and start it again", ErrNotGrown, volumeID, granted.Size)
		}
		if err != nil {
			return Volume{}, err
		}
	}
	d, onDisk, err := g.node.usable(partition)
	if err != nil {
		return Volume{}, err
	}
	v := volumeOn(&d, onDisk, volumeID)
	if v.Size < atLeast {
		return v, fmt.Errorf("%w: volume %s has %d bytes, %d are wanted, and no PersistentVolume grants them", ErrNotGrown, volumeID, v.Size, atLeast)
	}
	return v, grow(ctx, v)
}

// granted is what the volume's PersistentVolume says, or nil if there is none. If the watch does not show enough, it is
// read from the API server.
func (g *grower) granted(ctx context.Context, volumeID string, atLeast int64, onDisk disk.Volume) (*claim.Volume, error) {
	for _, pv := range g.volumes.of(onDisk.Partition) {
		if v, err := g.volumes.read(pv); err == nil && v.Size >= atLeast {
			return &v, nil
		}
	}
	if onDisk.Length() >= atLeast {
		return nil, nil
	}
	pv, _, err := g.maker.volumeFor(ctx, volumeID)
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	v, err := g.volumes.read(pv)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return &v, nil
}

// GrowVolume makes a persistent volume's partition at least size bytes long, for a CSI call. It does not use extents
// that the scheduler reserved for others.
func (g *grower) GrowVolume(ctx context.Context, volumeID string, size, limit int64) (Volume, error) {
	size = diskv1alpha1.AlignUp(size)
	if limit > 0 && size > limit {
		return Volume{}, fmt.Errorf("%w: volume %s: sizes are multiples of %d bytes, and %d is above the limit", ErrInvalid, volumeID, diskv1alpha1.Alignment, size)
	}
	partition := diskv1alpha1.PartitionID(volumeID)
	others := g.placer.reservationsExcept(partition)
	unlock, err := g.node.locks.lock(ctx, partition)
	if err != nil {
		return Volume{}, err
	}
	defer unlock()
	if err := g.grow(ctx, volumeID, size, others); err != nil {
		return Volume{}, err
	}
	v, found := g.node.Lookup(volumeID)
	if !found {
		return Volume{}, fmt.Errorf("%w: %s", ErrNotFound, volumeID)
	}
	return v, nil
}
