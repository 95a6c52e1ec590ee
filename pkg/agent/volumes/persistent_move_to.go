package volumes

import (
	"context"
	"fmt"
	"slices"
	"time"

	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/discovery"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/pkg/extent"
)

// A volume that moves to another disk may be on neither for a moment: its disk has it in phase Moved, and the other one
// in phase Arriving. Such a move is ended whatever the PersistentVolume says by then.

// departure is where a volume is that has left its disk.
type departure struct {
	// source has the place that the volume has left.
	source discovery.Disk
	left   disk.Volume
	// target has the copy, which is complete. It is not set if no disk in service has the copy.
	target    discovery.Disk
	copied    disk.Volume
	hasTarget bool
}

// departed returns where the volume of a partition is, if it has left its disk and no disk has it.
func departed(disks []discovery.Disk, partition string) (departure, bool) {
	if _, _, found := findVolume(disks, partition); found {
		return departure{}, false
	}
	var d departure
	var found bool
	if d.source, d.left, found = findVolume(disks, diskv1alpha1.LeftID(partition)); !found || !d.source.Ready() || d.left.Phase != disk.Moved {
		return departure{}, false
	}
	d.target, d.copied, d.hasTarget = findVolume(disks, diskv1alpha1.CopyID(partition))
	d.hasTarget = d.hasTarget && d.target.Ready() && d.copied.Phase == disk.Arriving
	return d, true
}

// place is where the copy is.
func (d departure) place() diskv1alpha1.Place {
	return diskv1alpha1.Place{Disk: d.target.ID(), Extent: diskv1alpha1.Extent{Start: d.copied.Extent.Start, Length: d.copied.Extent.Len()}}
}

// moveToOther has the engines move the volume to another disk. The caller holds the locks of the volume and its copy.
func (m *mover) moveToOther(ctx context.Context, d discovery.Disk, onDisk disk.Volume, to diskv1alpha1.Place) error {
	target, err := m.node.diskInService(to.Disk)
	if err != nil {
		return err
	}
	if d.Class != "" && target.Class != d.Class {
		return fmt.Errorf("volume %s is on a disk of class %q, and disk %s is of class %q: volumes move within their class only", onDisk.Partition, d.Class, to.Disk, target.Class)
	}
	if err := m.checkLeft(onDisk.Partition); err != nil {
		return err
	}
	e, err := engineOf(&d)
	if err != nil {
		return err
	}
	targetDisk, err := openDiskOf(&target)
	if err != nil {
		return err
	}
	// In one order, so that two moves in opposite directions do not wait for each other.
	ids := []string{d.ID(), target.ID()}
	slices.Sort(ids)
	for _, id := range ids {
		leave, err := m.semaphores.acquire(ctx, id, movesPerDisk)
		if err != nil {
			return err
		}
		defer leave()
	}
	begin := time.Now()
	_, err = e.MoveTo(ctx, targetDisk, m.optionsTo(onDisk.Partition, d, target, extent.New(to.Start, to.Length)))
	took := time.Since(begin)
	if ctx.Err() == nil {
		countMove(target.Class, onDisk.Length(), took, err)
	}
	if err != nil {
		return fmt.Errorf("cannot move volume %s from %v of disk %s to %v of disk %s: %w", onDisk.Partition, onDisk.Extents(), d.ID(), extent.New(to.Start, to.Length), to.Disk, err)
	}
	klog.FromContext(ctx).Info("Volume is moved to another disk", "partition", onDisk.Partition, "disk", d.ID(), "from", onDisk.Extents(), "targetDisk", to.Disk, "to", to.Extent, "duration", took)
	return nil
}

// optionsTo are the engine's options to move a volume from one disk to another.
func (m *mover) optionsTo(partition string, source, target discovery.Disk, to extent.Extent) disk.MoveToOptions {
	return disk.MoveToOptions{
		Partition: partition, Copy: diskv1alpha1.CopyID(partition), Left: diskv1alpha1.LeftID(partition), Extent: to,
		Rate: m.rate(source.Class), TargetRate: m.rate(target.Class),
		Progress: func(done int64) { m.progress.set(partition, done) },
	}
}

// checkLeft fails if the place that the volume has left at its last move to another disk is still there: it is wiped
// first.
func (m *mover) checkLeft(partition string) error {
	leftID := diskv1alpha1.LeftID(partition)
	if d, _, found := m.node.findVolume(leftID); found {
		m.reclaim.enqueue(leftID, 0)
		return fmt.Errorf("the place that volume %s has left on disk %s is wiped first: %w", partition, d.ID(), ErrWaiting)
	}
	return nil
}

// finish makes the complete copy of a volume that has left its disk the volume. The caller holds the locks of the
// volume and its copy.
func (m *mover) finish(ctx context.Context, partition string, d departure) error {
	if !d.hasTarget {
		return fmt.Errorf("volume %s has left disk %s, and no disk in service has it: %w", partition, d.source.ID(), ErrOutOfService)
	}
	e, err := engineOf(&d.source)
	if err != nil {
		return err
	}
	target, err := openDiskOf(&d.target)
	if err != nil {
		return err
	}
	if _, err := e.MoveTo(ctx, target, m.optionsTo(partition, d.source, d.target, d.copied.Extent)); err != nil {
		return fmt.Errorf("cannot end the move of volume %s to disk %s: %w", partition, d.target.ID(), err)
	}
	klog.FromContext(ctx).Info("Move of a volume to another disk is ended after an interruption", "partition", partition, "disk", d.source.ID(), "targetDisk", d.target.ID())
	return nil
}

// settle ends the move of a volume to which a partition belongs, if the volume has left its disk and is on no other. It
// reports whether it has ended one.
func (m *mover) settle(ctx context.Context, v disk.Volume) (settled bool, err error) {
	_, partition, ok := volumeOfCopy(v)
	if d, has := departed(m.node.inventory.Disks(), partition); !ok || !has || !d.hasTarget {
		return false, nil
	}
	for _, p := range []string{partition, diskv1alpha1.CopyID(partition)} {
		unlock, err := m.node.locks.lock(ctx, p)
		if err != nil {
			return false, err
		}
		defer unlock()
	}
	d, has := departed(m.node.inventory.Disks(), partition)
	if !has || !d.hasTarget {
		return false, nil
	}
	if err := m.finish(ctx, partition, d); err != nil {
		return false, err
	}
	m.checkCopy(partition)
	for _, pv := range m.volumes.of(partition) {
		m.queue.Add(pv.Name)
	}
	return true, nil
}

// mayWipeArriving reports whether the copy of a volume of another disk must be wiped. Only while the volume itself is
// seen, whole, on that disk, is the copy certainly not the volume.
func (m *mover) mayWipeArriving(d discovery.Disk, v disk.Volume) bool {
	_, partition, ok := volumeOfCopy(v)
	if !ok {
		return false
	}
	at, onDisk, found := m.node.findVolume(partition)
	return found && at.Ready() && at.ID() != d.ID() && onDisk.Phase == disk.Formatted && !m.wants(d, v)
}

// mayWipeLeft reports whether the place that a volume has left must be wiped: another disk has the volume, and its
// PersistentVolume names that disk. Otherwise, if that disk were lost, another volume could be made in its place. A
// PersistentVolume that does not name it yet is changed, and its event comes back here.
func (m *mover) mayWipeLeft(ctx context.Context, d discovery.Disk, v disk.Volume) (bool, error) {
	_, partition, ok := volumeOfCopy(v)
	if !ok {
		return false, nil
	}
	at, onDisk, found := m.node.findVolume(partition)
	if !found || !at.Ready() || at.ID() == d.ID() || onDisk.Phase != disk.Formatted {
		return false, nil
	}
	for _, pv := range m.volumes.of(partition) {
		of, err := m.volumes.read(pv)
		if err != nil {
			return false, nil //nolint:nilerr // it is reported elsewhere, and the place stays
		}
		if diskFor(pv, of) != at.ID() {
			return false, m.node.recordDisk(ctx, pv, of, at.ID())
		}
	}
	return true, nil
}

// errAway returns an error if the volume has left its disk, and no disk has it: nothing may be made in its place.
func errAway(disks []discovery.Disk, v claim.Volume) error {
	d, has := departed(disks, v.Partition)
	switch {
	case !has:
		return nil
	case d.hasTarget:
		return fmt.Errorf("volume %s is being moved from disk %s to disk %s: %w", v.ID, d.source.ID(), d.target.ID(), ErrWaiting)
	}
	to := "another disk"
	if v.MoveTo != nil {
		to = "disk " + v.MoveTo.Disk
	}
	return fmt.Errorf("%w: volume %s was moved from disk %s to %s, which is not in service on this node: it is served when that disk is back", errDiskMissing, v.ID, d.source.ID(), to)
}
