package disk

import (
	"context"
	"errors"
	"fmt"

	"k8s.io/klog/v2"

	"github.com/berthdev/berth/pkg/extent"
)

// MoveToOptions say which volume is moved to another disk, and where to.
type MoveToOptions struct {
	// Partition is the volume's GUID in lower case.
	Partition string
	// Copy is the GUID of the target until it is the volume. Left is the GUID of the place that the volume has left.
	// The caller chooses both, the same for each try.
	Copy, Left string
	// Extent is the target, on the other disk. It is free, aligned to 1 MiB, and at least as long as the volume. In a
	// longer one the volume has grown: the new bytes are zero.
	Extent extent.Extent
	// Rate and TargetRate are how many bytes a second all zeroing and copying of the two disks may read and write. 0
	// means no limit.
	Rate, TargetRate int64
	// Progress is that of MoveOptions.
	Progress func(done int64)
}

// MoveTo brings a Formatted volume to another disk, in this order:
//
//  1. The kernel removes the volume's device. It refuses while a process has the device open: then the error is
//     ErrInUse, and nothing was changed.
//  2. The target has an entry in phase Arriving, with the GUID Copy.
//  3. The bytes are copied, flushed, and read back from the target. What is kept of the volume is, too.
//  4. One write of this disk's table brings the volume's entry to phase Moved, with the GUID Left. From here on the
//     target is the volume.
//  5. One write of the target's table makes its entry the volume, which is attached.
//
// The target's sectors must not be larger than this disk's.
//
// Then the caller calls Wipe with the GUID Left. This disk alone decides what a crash leaves: the volume is here until
// step 4, and on the target after it. So never wipe Copy before the volume was seen in phase Formatted, and never wipe
// Left before the target has the volume.
//
// If ctx, an error or a crash cuts MoveTo short before step 4, the volume is attached in its old place. Call MoveTo
// again with the same arguments, or give the move up by a Wipe of Copy. After step 4, call MoveTo again: only step 5 is
// left. A volume that the target already has is returned as it is.
//
// Only its caller waits. Errors are those of Move, of either disk.
func (d *Disk) MoveTo(ctx context.Context, target *Disk, o MoveToOptions) (Volume, error) {
	v, err := d.moveToAlone(ctx, target, o)
	if err != nil {
		return Volume{}, fmt.Errorf("moving volume to disk %s: %w", target.Snapshot().ID, err)
	}
	return v, nil
}

// moveToAlone is MoveTo while no other call does long work on the volume or on its copy, on either disk.
func (d *Disk) moveToAlone(ctx context.Context, target *Disk, o MoveToOptions) (Volume, error) {
	switch {
	case o.Rate < 0 || o.TargetRate < 0:
		return Volume{}, fmt.Errorf("a rate of %d or %d bytes a second is negative", o.Rate, o.TargetRate)
	case o.Partition == o.Copy || o.Partition == o.Left || o.Copy == o.Left:
		return Volume{}, fmt.Errorf("volume %s needs other GUIDs for its copy and for the place that it leaves", o.Partition)
	case d == target || d.Snapshot().ID == target.Snapshot().ID:
		return Volume{}, fmt.Errorf("volume %s is on that disk", o.Partition)
	case target.device.sector > d.device.sector:
		// A file system of smaller sectors cannot be mounted there.
		return Volume{}, fmt.Errorf("volume %s is on a disk with sectors of %d bytes, and that one has %d: a volume moves to a disk with sectors of its size, or smaller ones",
			o.Partition, d.device.sector, target.device.sector)
	}
	// Source and target in this order. A move of the same volume in the other direction has nothing to move.
	for _, call := range []struct {
		disk *Disk
		guid string
	}{{d, o.Partition}, {d, o.Left}, {target, o.Copy}, {target, o.Partition}} {
		release, err := call.disk.startLongCall(ctx, call.guid)
		if err != nil {
			return Volume{}, err
		}
		defer release()
	}
	defer d.checkPeriodically()()
	defer target.checkPeriodically()()
	hasLeft, err := d.hasLeft(ctx, target, o)
	if err != nil {
		return Volume{}, err
	}
	if !hasLeft {
		if err := d.depart(ctx, target, o); err != nil {
			return Volume{}, err
		}
	}
	// From here on only the target can serve the volume, so a caller that gives up does not end this.
	var v Volume
	err = target.runInWorker(context.WithoutCancel(ctx), func(ctx context.Context) (err error) {
		v, err = target.arrive(ctx, o)
		return err
	})
	return v, err
}

// hasLeft reports whether the volume has left this disk: it is in phase Moved, or the target has it.
func (d *Disk) hasLeft(ctx context.Context, target *Disk, o MoveToOptions) (has bool, err error) {
	isHere := false
	err = d.runInWorker(ctx, func(context.Context) error {
		left, leftErr := d.store.table.volume(o.Left)
		_, hereErr := d.store.table.volume(o.Partition)
		has, isHere = leftErr == nil && left.phase() == Moved, hereErr == nil
		if leftErr == nil && !has && isHere {
			return fmt.Errorf("the place that volume %s has left before is %s: %w", o.Partition, left.phase(), ErrInUse)
		}
		return nil
	})
	if err != nil {
		return false, err
	}
	_, isThere := target.volumeNow(o.Partition)
	if isHere && (has || isThere) {
		return false, fmt.Errorf("volume %s is on the disks %s and %s: one must be a copy", o.Partition, d.Snapshot().ID, target.Snapshot().ID)
	}
	return has || isThere, nil
}

// depart is the steps 1 to 4 of MoveTo.
func (d *Disk) depart(ctx context.Context, target *Disk, o MoveToOptions) error {
	// Before the device is removed: the target may have no room.
	err := d.withVolume(ctx, o.Partition, func(v set) error {
		return target.runInWorker(ctx, func(context.Context) error {
			_, _, _, err := target.planArrival(v, o)
			return err
		})
	})
	if err != nil {
		return err
	}
	from, kept, err := d.startDeparture(ctx, o)
	if err != nil {
		return err
	}
	defer d.copying.Done()
	job, err := target.startArrival(ctx, d, from, kept, o)
	if err == nil {
		klog.FromContext(ctx).V(2).Info("Volume is being moved to another disk", "partition", o.Partition, "device", d.device.path, "from", from.extents(),
			"disk", d.Snapshot().ID, "to", job.target.extent, "targetDisk", target.Snapshot().ID, "resumed", job.compareFirst)
		err = target.runUntilClosed(ctx, job, d.stop)
	}
	if err == nil {
		// How it is wiped may have changed meanwhile.
		err = d.runInWorker(ctx, func(context.Context) error { kept = d.slots[o.Partition]; return nil })
	}
	if err == nil {
		err = target.runInWorker(ctx, func(ctx context.Context) error { return target.proveArrival(ctx, kept, o) })
	}
	if err == nil {
		err = d.runInWorker(ctx, func(ctx context.Context) error { return d.commitDeparture(ctx, kept, o) })
	}
	if err == nil {
		return nil
	}
	cut := d.cutMove(ctx, MoveOptions{Partition: o.Partition}, &copyJob{}, err)
	if job != nil {
		cut = errors.Join(cut, target.cutArrival(ctx, job, o, err))
	}
	return errors.Join(err, cut)
}

// withVolume calls do with a volume that can be moved, in the caller's goroutine: a worker never waits for
// another disk.
func (d *Disk) withVolume(ctx context.Context, partition string, do func(set) error) error {
	var v set
	err := d.runInWorker(ctx, func(context.Context) error {
		e, err := d.store.table.movable(partition)
		v = d.store.table.setOf(e)
		return err
	})
	if err != nil {
		return err
	}
	return do(v)
}

// startDeparture removes the volume's device. From here on nothing attaches the volume before cutMove or
// commitDeparture. Close waits until copying is done. It returns the volume, and what is kept of it.
func (d *Disk) startDeparture(ctx context.Context, o MoveToOptions) (from set, kept slot, err error) {
	err = d.afterDetaching(ctx, o.Partition,
		func(entry) error {
			_, err := d.store.table.movable(o.Partition)
			return err
		},
		func(ctx context.Context, e entry) error {
			// The disk must still be there, and the table ours.
			if err := d.recheck(ctx); err != nil {
				if !errors.Is(err, ErrOutOfService) {
					err = errors.Join(err, d.giveDeviceBack(ctx, e.guid))
				}
				return err
			}
			from, kept = d.store.table.setOf(e), d.slots[e.guid]
			d.moving[e.guid] = true
			d.copying.Add(1)
			d.publish()
			return nil
		})
	return from, kept, err
}

// planArrival plans the target of a move from another disk, unless it is there.
func (d *Disk) planArrival(from set, o MoveToOptions) (next table, target entry, isNew bool, err error) {
	now := d.store.table
	target, err = now.volume(o.Copy)
	switch {
	case errors.Is(err, ErrNotFound):
		if next, target, err = now.withArrival(from, o.Copy, o.Extent); err == nil {
			err = d.checkNotBeingZeroed(o.Copy, o.Extent)
		}
		return next, target, true, err
	case err != nil:
	case target.phase() == Wiping:
		err = target.phase().checkUsable(o.Copy)
	case target.phase() != Arriving:
		err = fmt.Errorf("volume %s is %s, and not the target of a move from another disk", o.Copy, target.phase())
	case target.extent != o.Extent:
		err = fmt.Errorf("volume %s is being moved to %v, not to %v: continue, or wipe the copy %s first: %w", o.Partition, target.extent, o.Extent, o.Copy, ErrOverlap)
	case target.extent.Len() < from.length():
		err = fmt.Errorf("volume %s has grown to %d bytes since its move to %v began: wipe the copy %s first: %w", o.Partition, from.length(), target.extent, o.Copy, ErrOverlap)
	}
	return now, target, false, err
}

// startArrival makes the target, and returns the job that copies to it.
func (d *Disk) startArrival(ctx context.Context, source *Disk, from set, kept slot, o MoveToOptions) (job *copyJob, err error) {
	err = d.runInWorker(ctx, func(ctx context.Context) error {
		if err := d.recheck(ctx); err != nil {
			return err
		}
		target, resumed, tailIsZero, err := d.ensureArrival(ctx, from, kept, o)
		if err == nil && resumed {
			// Another program may have made the kernel show it.
			err = d.detachVolume(ctx, target)
		}
		if err != nil {
			return err
		}
		reads, err := source.device.duplicate()
		if err != nil {
			return err
		}
		writes, err := d.device.duplicate()
		if err != nil {
			return errors.Join(err, reads.Close())
		}
		d.copying.Add(1)
		job = newCopyJob(
			copySide{"source", directDevice{reads}, reads.path, from.first.extent, rateLimit{&source.pacer, o.Rate}, from.extents()[1:]},
			copySide{"target", directDevice{writes}, writes.path, target.extent, rateLimit{&d.pacer, o.TargetRate}, nil}, d.copyWindow)
		job.close, job.onProgress = func() error { return errors.Join(reads.Close(), writes.Close()) }, o.Progress
		job.compareFirst, job.rewriteAll = resumed, d.unflushed[o.Copy]
		job.zeroOn(writes, d.wipeMethods, tailIsZero)
		d.publish()
		return nil
	})
	return job, err
}

// ensureArrival makes the entry of the copy, unless it is there. Its slot has how the volume is wiped, and no note.
func (d *Disk) ensureArrival(ctx context.Context, from set, kept slot, o MoveToOptions) (target entry, resumed, tailIsZero bool, err error) {
	next, target, isNew, err := d.planArrival(from, o)
	if err != nil {
		return entry{}, false, false, err
	}
	if !isNew {
		return target, true, false, nil
	}
	keep := func() error { return d.writeNewSlot(ctx, target, slot{wipe: kept.wipe}) }
	if err := d.store.putNew(ctx, next, target, false, keep); err != nil {
		return entry{}, false, false, err
	}
	tail := extent.Extent{Start: target.extent.Start + from.length(), End: target.extent.End}
	tailIsZero = d.zeroed.Contains(tail)
	d.zeroed = d.zeroed.Remove(target.extent)
	return target, false, tailIsZero, nil
}

// proveArrival prepares the target for becoming the volume: the disk is still there, the kernel has not shown the
// target, and what is kept of the volume is on the medium.
func (d *Disk) proveArrival(ctx context.Context, kept slot, o MoveToOptions) error {
	target, err := d.store.table.volume(o.Copy)
	if err != nil {
		return err
	}
	if target.phase() != Arriving {
		return fmt.Errorf("the target %s of a move is %s: %w", o.Copy, target.phase(), ErrInUse)
	}
	if err := d.checkNotShown(ctx, target); err != nil {
		return err
	}
	if err := d.recheck(ctx); err != nil {
		return err
	}
	return d.writeSlotProven(target, slot{note: kept.note, wipe: kept.wipe})
}

// checkNotShown fails if another program made the kernel show a volume that is copied: a process may have written to it
// since.
func (d *Disk) checkNotShown(ctx context.Context, e entry) error {
	if !d.device.showsPartition(e.index) {
		return nil
	}
	shown := fmt.Errorf("another program made the kernel show the partition %d of volume %s while it was copied: what was copied may be old: %w", e.index, e.guid, ErrInUse)
	return errors.Join(shown, d.device.detach(ctx, e.index, 0))
}

// commitDeparture is the write from which on the volume is on the other disk.
func (d *Disk) commitDeparture(ctx context.Context, kept slot, o MoveToOptions) error {
	e, err := d.store.table.movable(o.Partition)
	if err != nil {
		return err
	}
	for _, part := range d.store.table.setOf(e).entries() {
		if err := d.checkNotShown(ctx, part); err != nil {
			return err
		}
	}
	next, left, err := d.store.table.withLeft(o.Partition, o.Left)
	if err != nil {
		return err
	}
	old := next.setOf(left)
	keep := func() error { return d.writePieceSlots(old, kept.wipe) }
	if err := d.store.putSet(ctx, next, old.entries(), false, keep); err != nil {
		return err
	}
	delete(d.moving, o.Partition)
	delete(d.slots, o.Partition)
	d.tryWriteSlot(ctx, left, slot{wipe: kept.wipe})
	d.publish()
	return nil
}

// arrive makes the complete copy the volume, and attaches it. The source has it in phase Moved.
func (d *Disk) arrive(ctx context.Context, o MoveToOptions) (Volume, error) {
	e, err := d.store.table.volume(o.Partition)
	if errors.Is(err, ErrNotFound) {
		e, err = d.commitArrival(ctx, o)
	}
	if err == nil {
		err = e.phase().checkUsable(o.Partition)
	}
	if err != nil {
		return Volume{}, err
	}
	err = d.attach(ctx, e)
	d.publish()
	return d.volume(d.store.table.setOf(e)), err
}

// commitArrival makes the copy the volume.
func (d *Disk) commitArrival(ctx context.Context, o MoveToOptions) (entry, error) {
	copied, err := d.store.table.volume(o.Copy)
	if err != nil {
		return entry{}, err
	}
	// Another program may have made the kernel show it.
	if err := d.detachVolume(ctx, copied); err != nil {
		return entry{}, err
	}
	return d.writeArrived(ctx, copied, o)
}

// writeArrived writes the table in which the copy is the volume. The volume's slot is on the medium before it.
func (d *Disk) writeArrived(ctx context.Context, copied entry, o MoveToOptions) (entry, error) {
	next, volume, err := d.store.table.withArrived(o.Copy, o.Partition)
	if err != nil {
		return entry{}, err
	}
	kept := d.slots[o.Copy]
	if kept == (slot{}) {
		// An earlier try has written the volume's slot, and not the table.
		kept = d.store.slotOf(copied.index, o.Partition)
	}
	if err := d.store.putNew(ctx, next, volume, false, func() error { return d.writeSlotProven(volume, slot{note: kept.note, wipe: kept.wipe}) }); err != nil {
		return entry{}, err
	}
	delete(d.slots, o.Copy)
	delete(d.unflushed, o.Copy)
	return volume, nil
}

// slotOf returns what the slot of an entry holds of that partition. It is empty if the slot cannot be read.
func (s *store) slotOf(index int, partition string) slot {
	b := make([]byte, slotBytes)
	unit, skip := s.table.slotUnit(index)
	whole := make([]byte, unit.Len())
	if _, err := s.dev.ReadAt(whole, unit.Start); err != nil {
		return slot{}
	}
	copy(b, whole[skip:])
	return decodeVolumeSlot(b, partition)
}

// cutArrival ends a move that failed on the target. The copy stays for the next try.
func (d *Disk) cutArrival(ctx context.Context, job *copyJob, o MoveToOptions, failed error) error {
	return d.runInWorker(context.WithoutCancel(ctx), func(ctx context.Context) error {
		if job.flushFailed {
			d.unflushed[o.Copy] = true
		}
		if mayBeGone(failed) {
			return d.recheck(ctx)
		}
		return nil
	})
}

// withArrival plans the target of a move from another disk, in one piece. The volume there is from.
func (t table) withArrival(from set, copyGUID string, target extent.Extent) (table, entry, error) {
	v := from.first
	if t.indexOf(v.guid) >= 0 {
		return table{}, entry{}, fmt.Errorf("volume %s is to be moved to a disk that has it", v.guid)
	}
	if target.Len() < from.length() {
		return table{}, entry{}, fmt.Errorf("volume %s of %d bytes cannot move to %v: a volume never shrinks", v.guid, from.length(), target)
	}
	return t.withEntry(entry{typeGUID: TypeArriving, guid: copyGUID, extent: target, name: v.name, attributes: v.attributes}.withPieceField(0))
}

// withLeft plans that a volume has left the disk for another one, which has all of it. Its pieces stay a set.
func (t table) withLeft(guid, leftGUID string) (table, entry, error) {
	e, err := t.movable(guid)
	if err != nil {
		return table{}, entry{}, err
	}
	next, left, err := t.withRole(guid, leftGUID, TypeMoved)
	if err != nil {
		return table{}, entry{}, err
	}
	return next.withChanged(t.setOf(e).piecesOf(leftGUID)...), left, nil
}

// withArrived plans that a copy is the volume that another disk had.
func (t table) withArrived(copyGUID, guid string) (table, entry, error) {
	e, err := t.volume(copyGUID)
	if err != nil {
		return table{}, entry{}, err
	}
	if e.phase() != Arriving {
		return table{}, entry{}, fmt.Errorf("volume %s is %s, and not a copy of a volume of another disk", copyGUID, e.phase())
	}
	return t.withRole(copyGUID, guid, TypeFormatted)
}

// withRole plans another GUID and another type for an entry.
func (t table) withRole(guid, newGUID, newType string) (table, entry, error) {
	if t.indexOf(newGUID) >= 0 {
		return table{}, entry{}, fmt.Errorf("volume %s cannot get the GUID %s, which another entry has", guid, newGUID)
	}
	i := t.indexOf(guid)
	t.entries = append([]entry(nil), t.entries...)
	t.entries[i].guid, t.entries[i].typeGUID = newGUID, newType
	return t, t.entries[i], nil
}
