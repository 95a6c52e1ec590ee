package volumes

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/discovery"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/pkg/extent"
)

// The PersistentVolume names the places of the further pieces of a volume, in their order. The agent adds one after the
// other. Only the last piece that a volume has can become longer.

// errPieceWaits: the volume gets its next piece when it is not in use.
var errPieceWaits = errors.New("it gets its next piece when it is not in use")

// hasPieces reports whether a PersistentVolume names further pieces of its volume. Those of a volume that is moved do
// not count: at its new place it has one piece.
func hasPieces(v claim.Volume) bool { return len(v.Pieces) > 0 && v.MoveTo == nil }

// lastOf is the place of a volume's last piece.
func lastOf(v disk.Volume) extent.Extent {
	extents := v.Extents()
	return extents[len(extents)-1]
}

// firstLength is how long the first piece of a volume must be, as long as it has no other.
func firstLength(v claim.Volume) int64 {
	if !hasPieces(v) {
		return v.Size
	}
	return v.Size - piecesLength(v.Pieces)
}

// lengthInPlace is how long a volume gets where it is, by its last piece.
func lengthInPlace(v claim.Volume, onDisk disk.Volume) int64 {
	n := min(len(onDisk.Pieces), len(v.Pieces))
	if n == 0 {
		return firstLength(v)
	}
	// The first piece cannot get longer any more.
	return onDisk.Extent.Len() + piecesLength(v.Pieces[:n])
}

// missingOf are the places that a PersistentVolume was granted, and that are not its volume's yet.
func missingOf(v claim.Volume, diskID string, onDisk disk.Volume) []heldExtent {
	if v.MoveTo != nil && isAt(diskID, onDisk, *v.MoveTo) || onDisk.Length() >= v.Size {
		return nil
	}
	var missing []heldExtent
	further := min(len(onDisk.Pieces), len(v.Pieces))
	if short := lengthInPlace(v, onDisk) - onDisk.Length(); v.MoveTo == nil && short > 0 {
		missing = append(missing, heldExtent{diskID, extent.New(lastOf(onDisk).End, short)})
	}
	for _, p := range v.Pieces[further:] {
		missing = append(missing, heldExtent{p.Disk, extent.New(p.Start, p.Length)})
	}
	return missing
}

// isAt reports whether a volume lies at the place to which it was moved.
func isAt(diskID string, onDisk disk.Volume, to diskv1alpha1.Place) bool {
	return diskID == to.Disk && onDisk.Extent.Start == to.Start
}

// checkPieces fails unless the pieces on the disk are those that the PersistentVolume names, from the first one on, in
// their order and with their lengths. The last one may still be shorter.
func checkPieces(v claim.Volume, diskID string, onDisk disk.Volume) error {
	if onDisk.Incomplete != "" {
		return fmt.Errorf("%w: volume %s on disk %s is incomplete: %s. Another program has changed the partition table: restore its entry, or, if the data may be lost, delete the claim", errMismatch, v.ID, diskID, onDisk.Incomplete)
	}
	if len(onDisk.Pieces) == 0 {
		return nil
	}
	if len(onDisk.Pieces) > len(v.Pieces) {
		return fmt.Errorf("%w: volume %s has %d further pieces on disk %s, and PersistentVolume %s names %d: its annotation %s must name all", errMismatch, v.ID, len(onDisk.Pieces), diskID, v.Name, len(v.Pieces), diskv1alpha1.AnnotationPieces)
	}
	last := len(onDisk.Pieces) - 1
	for i, p := range onDisk.Pieces {
		want := v.Pieces[i]
		if want.Disk != diskID || want.Start != p.Extent.Start || p.Extent.Len() > want.Length || i < last && p.Extent.Len() < want.Length {
			return fmt.Errorf("%w: piece %d of volume %s is %v of disk %s, and PersistentVolume %s has it at %s: its annotation %s must name the places that the volume has", errMismatch, i+1, v.ID, p.Extent, diskID, v.Name, want, diskv1alpha1.AnnotationPieces)
		}
	}
	// A volume that must be moved to have its size may have a shorter one.
	if first, most := onDisk.Extent.Len(), v.Size-piecesLength(v.Pieces); v.MoveTo == nil && (first > most || first < v.Place.Length) {
		return fmt.Errorf("%w: the first piece of volume %s has %d bytes on disk %s, and by PersistentVolume %s it has %d to %d", errMismatch, v.ID, first, diskID, v.Name, v.Place.Length, most)
	}
	return nil
}

func piecesLength(pieces []diskv1alpha1.Place) (sum int64) {
	for i := range pieces {
		sum += pieces[i].Length
	}
	return sum
}

// addPieces adds the pieces that the volume does not have yet. The last one that it has must have its length. The
// caller holds the volume's lock.
func (g *grower) addPieces(ctx context.Context, v claim.Volume) error {
	if !hasPieces(v) {
		return nil
	}
	for {
		d, onDisk, err := g.node.usable(v.Partition)
		if err != nil {
			return err
		}
		if err := checkPieces(v, d.ID(), onDisk); err != nil {
			return err
		}
		further := len(onDisk.Pieces)
		if further == len(v.Pieces) {
			return nil
		}
		next := v.Pieces[further]
		if next.Disk != d.ID() {
			return fmt.Errorf("%w: piece %d of volume %s is to be on disk %s, and the volume is on disk %s: all pieces lie on one disk", errMismatch, further+1, v.ID, next.Disk, d.ID())
		}
		if err := g.addPiece(ctx, d, v, onDisk, further+1, extent.New(next.Start, next.Length)); err != nil {
			return err
		}
	}
}

// addPiece adds the next piece.
func (g *grower) addPiece(ctx context.Context, d discovery.Disk, v claim.Volume, onDisk disk.Volume, number int, at extent.Extent) error {
	if onDisk.Attachment == disk.Partition {
		// A raw block volume is published by its device node, which keeps nothing open.
		why, err := describeUse(onDisk.Device)
		if err != nil {
			return err
		}
		if why != "" {
			return fmt.Errorf("%w: volume %s: %s", errPieceWaits, v.ID, why)
		}
	}
	e, err := engineOf(&d)
	if err != nil {
		return fmt.Errorf("volume %s: %w", v.ID, err)
	}
	switch _, err = e.AddPiece(ctx, v.Partition, number, at); {
	case errors.Is(err, ErrInUse):
		return fmt.Errorf("%w: volume %s: %w", errPieceWaits, v.ID, err)
	case errors.Is(err, disk.ErrOverlap), errors.Is(err, disk.ErrNoEntry), errors.Is(err, disk.ErrNoMapper):
		return fmt.Errorf("%w: volume %s: %w", ErrNotGrown, v.ID, err)
	case err != nil:
		return fmt.Errorf("cannot add piece %d at %v to volume %s: %w", number, at, v.ID, err)
	}
	klog.FromContext(ctx).Info("Volume has another piece", "volume", v.ID, "partition", v.Partition, "disk", d.ID(), "piece", number, "extent", at)
	return nil
}

// beforeUse gives a persistent volume what it can only get while it is not in use: its missing pieces, and the
// attachment of its class. A volume that cannot get them is served as it is, unless it has no file system yet.
func (s *stager) beforeUse(ctx context.Context, volumeID string) error {
	partition := diskv1alpha1.PartitionID(volumeID)
	d, onDisk, err := s.node.usable(partition)
	if err != nil {
		// makeReady says so.
		return nil //nolint:nilerr // see above
	}
	for _, pv := range s.volumes.of(partition) {
		v, err := s.volumes.read(pv)
		if err != nil || v.ID != volumeID || actionFor(pv) != actionServe {
			continue
		}
		if err := checkPieces(v, d.ID(), onDisk); err != nil {
			return err
		}
		if !hasPieces(v) || len(onDisk.Pieces) == len(v.Pieces) {
			continue
		}
		if err := s.completePieces(ctx, pv, v, onDisk); err != nil {
			return err
		}
	}
	if s.isAttachedAsWanted(d.Class, onDisk) {
		// Without the volume's lock: what has it may be making the file system.
		return nil
	}
	return s.reattach(ctx, d.Class, partition)
}

// completePieces adds the missing pieces of a volume.
func (s *stager) completePieces(ctx context.Context, pv *corev1.PersistentVolume, v claim.Volume, onDisk disk.Volume) error {
	err := s.grower.growToGranted(ctx, v)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errPieceWaits):
		// It is staged again, and in use already.
		return nil
	case ctx.Err() != nil, onDisk.Phase == disk.Reserved:
		return err
	}
	s.node.reports.warnVolume(pv, eventNotGrown, fmt.Sprintf("the volume is served with the %d bytes that it has: %v", onDisk.Length(), err))
	return nil
}

// isAttachedAsWanted reports whether a volume is attached in the way that its class wants. One of several pieces has
// one way only, and one without file system was made in that way.
func (s *stager) isAttachedAsWanted(class string, onDisk disk.Volume) bool {
	if checkAttached(onDisk) != nil {
		// The reason may be over.
		return false
	}
	return onDisk.Attachment == s.attachment(class) || len(onDisk.Pieces) > 0 || onDisk.Phase == disk.Reserved
}

// reattach attaches a volume in the way that its class wants.
func (s *stager) reattach(ctx context.Context, class, partition string) error {
	unlock, err := s.node.locks.lock(ctx, partition)
	if err != nil {
		return err
	}
	defer unlock()
	d, onDisk, err := s.node.usable(partition)
	if err != nil || s.isAttachedAsWanted(class, onDisk) {
		// makeReady says what is wrong.
		return nil
	}
	want := s.attachment(class)
	e, err := engineOf(&d)
	if err != nil {
		return err
	}
	// A raw block volume is published by its device node, which keeps nothing open.
	if why, err := describeUse(onDisk.Device); err != nil || why != "" {
		return err
	}
	now, err := e.Attach(ctx, partition, want)
	switch {
	case err != nil && checkAttached(onDisk) != nil && ctx.Err() == nil:
		// makeReady says that it is not attached.
		klog.FromContext(ctx).Error(err, "Volume cannot be attached", "partition", partition, "disk", d.ID())
	case err != nil:
		return fmt.Errorf("cannot attach volume %s as class %s wants it: %w", partition, class, err)
	case now.Attachment != want:
		// The node's condition says that the device mapper is missing.
		klog.FromContext(ctx).V(1).Info("Volume is not attached as its class wants it", "partition", partition, "class", class, "attachment", now.Attachment, "wanted", want)
	}
	return nil
}

// checkAttached fails for a volume that the kernel does not show, with the reason.
func checkAttached(v disk.Volume) error {
	if v.Device != "" || v.NotAttached == "" {
		return nil
	}
	return fmt.Errorf("%w: %s", ErrNotAttached, v.NotAttached)
}
