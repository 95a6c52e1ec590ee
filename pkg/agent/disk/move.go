package disk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"k8s.io/klog/v2"

	"github.com/berthdev/berth/pkg/extent"
)

// MoveOptions say which volume is moved, and where to.
type MoveOptions struct {
	// Partition is the volume's GUID in lower case.
	Partition string
	// Copy is the GUID of the target while the copy is incomplete, and then of the place that the volume has left. The
	// caller chooses it, the same for each try.
	Copy string
	// Extent is the target. It is free, aligned to 1 MiB, and at least as long as the volume. In a longer
	// one the volume has grown: the new bytes are zero.
	Extent extent.Extent
	// Rate is how many bytes a second all zeroing and copying of the disk together may read and write. 0 means no
	// limit. A byte that is copied is read, written and read back.
	Rate int64
	// Progress, if set, is called from time to time with the number of the target's bytes that are done, from the
	// goroutine that copies. It must not block.
	Progress func(done int64)
}

// Move brings a Formatted volume to another place of the disk, in this order. A volume of several pieces has one
// afterwards:
//
//  1. The kernel removes the volume's device. It refuses while a process has the device open: then the error is
//     ErrInUse, and nothing was changed. So no process can write to the volume until Move returns.
//  2. The target is in phase Copying, with the GUID Copy.
//  3. The bytes are copied, flushed, and read back from the target.
//  4. One write of the table makes the target the volume. The place that the volume has left is in phase Wiping, with
//     the GUID Copy.
//  5. The volume is attached at its new place.
//
// Then the caller calls Wipe with the GUID Copy. If ctx, an error or a crash cuts Move short, the volume is attached in
// its old place, and the target stays in phase Copying. Call Move again with the same arguments: it compares what the
// target holds, and writes what differs. Or give the move up by a Wipe of Copy. A volume that already is at Extent is
// returned as it is.
//
// Only its caller waits. Other volumes go on; calls for this one wait, or get ErrInUse. Errors: ErrNotFound, ErrInUse
// (also if either volume is being wiped), ErrNoEntry, ErrOutOfService, and ErrOverlap if Extent is not free or not the
// one of the copy.
func (d *Disk) Move(ctx context.Context, o MoveOptions) (Volume, error) {
	v, err := d.moveAlone(ctx, o)
	if err != nil {
		return Volume{}, fmt.Errorf("moving volume: %w", err)
	}
	return v, nil
}

// moveAlone is Move while no other call does long work on the volume or on the copy.
func (d *Disk) moveAlone(ctx context.Context, o MoveOptions) (Volume, error) {
	if o.Rate < 0 {
		return Volume{}, fmt.Errorf("a rate of %d bytes a second is negative", o.Rate)
	}
	// Always in the same order, so that two calls cannot wait for each other.
	for _, guid := range []string{min(o.Partition, o.Copy), max(o.Partition, o.Copy)} {
		release, err := d.startLongCall(ctx, guid)
		if err != nil {
			return Volume{}, err
		}
		defer release()
		if o.Partition == o.Copy {
			return Volume{}, fmt.Errorf("volume %s needs another GUID for its copy", guid)
		}
	}
	defer d.checkPeriodically()()
	if v, moved, err := d.movedBefore(ctx, o); moved || err != nil {
		return v, err
	}
	return d.move(ctx, o)
}

// movedBefore returns the volume if it is at its target.
func (d *Disk) movedBefore(ctx context.Context, o MoveOptions) (v Volume, moved bool, err error) {
	err = d.runInWorker(ctx, func(ctx context.Context) error {
		e, err := d.store.table.movable(o.Partition)
		if err != nil || e.extent != o.Extent {
			return err
		}
		moved = true
		err = d.attach(ctx, e)
		d.publish()
		v = d.volume(d.store.table.setOf(e))
		return err
	})
	return v, moved, err
}

// move is the five steps of Move.
func (d *Disk) move(ctx context.Context, o MoveOptions) (v Volume, err error) {
	job, err := d.beginMove(ctx, o)
	if err != nil {
		return Volume{}, err
	}
	klog.FromContext(ctx).V(2).Info("Volume is being moved", "partition", o.Partition, "device", d.device.path, "disk", d.Snapshot().ID,
		"from", job.source.extent, "to", job.target.extent, "rate", o.Rate, "resumed", job.compareFirst)
	err = d.runUntilClosed(ctx, job, nil)
	if err == nil {
		err = d.runInWorker(ctx, func(ctx context.Context) (err error) {
			v, err = d.switchToCopy(ctx, o)
			return err
		})
	}
	if err != nil {
		return Volume{}, errors.Join(err, d.cutMove(ctx, o, job, err))
	}
	return v, nil
}

// runUntilClosed copies, but ends when the disk is closed, or the one whose stop that is. Close waits for it: a write
// that comes later could overwrite what the next Disk has copied.
func (d *Disk) runUntilClosed(ctx context.Context, job *copyJob, stop <-chan struct{}) error {
	defer d.copying.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-d.stop:
			cancel()
		case <-stop:
			cancel()
		case <-ctx.Done():
		}
	}()
	return errors.Join(job.run(ctx), job.close())
}

// beginMove removes the volume's device, and makes the target unless it is there.
func (d *Disk) beginMove(ctx context.Context, o MoveOptions) (job *copyJob, err error) {
	err = d.afterDetaching(ctx, o.Partition,
		func(entry) error {
			_, _, _, err := d.planCopy(o)
			return err
		},
		func(ctx context.Context, e entry) (err error) {
			if job, err = d.startCopy(ctx, e, o); err != nil && !errors.Is(err, ErrOutOfService) {
				err = errors.Join(err, d.giveDeviceBack(ctx, e.guid))
			}
			return err
		})
	return job, err
}

// planCopy plans the target of a move, unless it is there.
func (d *Disk) planCopy(o MoveOptions) (next table, target entry, isNew bool, err error) {
	now := d.store.table
	e, err := now.movable(o.Partition)
	if err != nil {
		return table{}, entry{}, false, err
	}
	target, err = now.volume(o.Copy)
	switch {
	case errors.Is(err, ErrNotFound):
		if next, target, err = now.withCopy(o.Partition, o.Copy, o.Extent); err == nil {
			err = d.checkNotBeingZeroed(o.Copy, o.Extent)
		}
		return next, target, true, err
	case err != nil:
	case target.phase() == Wiping:
		err = target.phase().checkUsable(o.Copy)
	case target.phase() != Copying:
		err = fmt.Errorf("volume %s is %s, and not the target of a move", o.Copy, target.phase())
	case target.extent != o.Extent:
		err = fmt.Errorf("volume %s is being moved to %v, not to %v: continue, or wipe the copy %s first: %w", o.Partition, target.extent, o.Extent, o.Copy, ErrOverlap)
	case target.extent.Len() < now.setOf(e).length():
		err = fmt.Errorf("volume %s has grown to %d bytes since its move to %v began: wipe the copy %s first: %w", o.Partition, now.setOf(e).length(), target.extent, o.Copy, ErrOverlap)
	}
	return now, target, false, err
}

// startCopy makes the target of a volume that the kernel does not show. From here on nothing attaches the volume before
// cutMove or switchToCopy.
func (d *Disk) startCopy(ctx context.Context, e entry, o MoveOptions) (*copyJob, error) {
	// The disk must still be there, and the table ours, before anything is written.
	if err := d.recheck(ctx); err != nil {
		return nil, err
	}
	target, resumed, tailIsZero, err := d.ensureTarget(ctx, e, o)
	if err == nil && resumed {
		// Another program may have made the kernel show it.
		err = d.detachVolume(ctx, target)
	}
	if err != nil {
		return nil, err
	}
	device, err := d.device.duplicate()
	if err != nil {
		return nil, err
	}
	d.moving[e.guid] = true
	d.copying.Add(1)
	d.publish()
	limit := rateLimit{&d.pacer, o.Rate}
	job := newCopyJob(
		copySide{"source", directDevice{device}, d.device.path, e.extent, limit, d.store.table.setOf(e).extents()[1:]},
		copySide{"target", directDevice{device}, d.device.path, target.extent, limit, nil}, d.copyWindow)
	job.close, job.onProgress = device.Close, o.Progress
	job.compareFirst, job.rewriteAll = resumed, d.unflushed[o.Copy]
	job.zeroOn(device, d.wipeMethods, tailIsZero)
	return job, nil
}

// zeroOn has the job zero parts of its target on that device.
func (j *copyJob) zeroOn(device *blockDevice, methods *wipeMethods, tailIsZero bool) {
	zeroing := &zeroJob{device: device, rateLimit: j.target.rateLimit, methods: methods}
	j.zero = func(ctx context.Context, part extent.Extent) error { return zeroing.forPart(part).zeroUnverified(ctx) }
	if tailIsZero {
		return
	}
	j.zeroTail = func(ctx context.Context, tail extent.Extent, progress func(int64)) error {
		whole := zeroing.forPart(tail)
		whole.onProgress = progress
		_, err := whole.zero(ctx)
		return err
	}
}

// ensureTarget makes the entry of the copy, unless it is there. Its slot has how the volume is wiped, and no note.
func (d *Disk) ensureTarget(ctx context.Context, e entry, o MoveOptions) (target entry, resumed, tailIsZero bool, err error) {
	next, target, isNew, err := d.planCopy(o)
	if err != nil {
		return entry{}, false, false, err
	}
	if !isNew {
		return target, true, false, nil
	}
	keep := func() error { return d.writeNewSlot(ctx, target, slot{wipe: d.slots[e.guid].wipe}) }
	if err := d.store.putNew(ctx, next, target, false, keep); err != nil {
		return entry{}, false, false, err
	}
	tail := extent.Extent{Start: target.extent.Start + next.setOf(e).length(), End: target.extent.End}
	tailIsZero = d.zeroed.Contains(tail)
	d.zeroed = d.zeroed.Remove(target.extent)
	return target, false, tailIsZero, nil
}

// switchToCopy makes the complete copy the volume, and attaches it. If another program made the kernel show one of the
// two, a process may have written to it since it was copied.
func (d *Disk) switchToCopy(ctx context.Context, o MoveOptions) (Volume, error) {
	for _, guid := range []string{o.Partition, o.Copy} {
		e, err := d.store.table.volume(guid)
		if err != nil {
			return Volume{}, err
		}
		for _, part := range d.store.table.setOf(e).entries() {
			if err := d.checkNotShown(ctx, part); err != nil {
				return Volume{}, err
			}
		}
	}
	e, err := d.commitMove(ctx, o)
	if err != nil {
		return Volume{}, err
	}
	delete(d.moving, o.Partition)
	delete(d.unflushed, o.Copy)
	err = d.attach(ctx, e)
	d.publish()
	return d.volume(d.store.table.setOf(e)), err
}

// showsPartition reports whether the kernel has a partition of that number. The other kinds of devices bear a mark of
// ours, and no other program makes them.
func (d *blockDevice) showsPartition(index int) bool {
	_, err := os.Stat(filepath.Join(d.sys, d.partitionName(index)))
	return !errors.Is(err, os.ErrNotExist)
}

// commitMove writes the table in which the copy is the volume. The volume's slot is on the medium before it, and the
// slot of the old place is written after it: until then it is the volume's.
func (d *Disk) commitMove(ctx context.Context, o MoveOptions) (entry, error) {
	next, volume, old, err := d.store.table.withMoved(o.Partition, o.Copy)
	if err != nil {
		return entry{}, err
	}
	kept := d.slots[o.Partition]
	err = d.store.putMoved(ctx, next, volume, old, func() error {
		if err := d.writePieceSlots(next.setOf(old), kept.wipe); err != nil {
			return err
		}
		return d.writeSlotProven(volume, slot{note: kept.note, wipe: kept.wipe})
	})
	if err != nil {
		return entry{}, err
	}
	d.tryWriteSlot(ctx, old, slot{wipe: kept.wipe})
	return volume, nil
}

// cutMove ends a move that failed: the volume is attached where it is. The target stays for the next try.
func (d *Disk) cutMove(ctx context.Context, o MoveOptions, job *copyJob, failed error) error {
	return d.runInWorker(context.WithoutCancel(ctx), func(ctx context.Context) error {
		delete(d.moving, o.Partition)
		if job.flushFailed {
			d.unflushed[o.Copy] = true
		}
		if mayBeGone(failed) {
			// The error may be of the volume's own bytes, or of the whole disk. The table shows which.
			if err := d.recheck(ctx); err != nil {
				return err
			}
		}
		return d.giveDeviceBack(ctx, o.Partition)
	})
}

// writePieceSlots writes the slots of the further pieces of a place that a volume is about to leave. An earlier move
// from there may have left progress of a wipe under the same GUIDs.
func (d *Disk) writePieceSlots(old set, w WipeSettings) error {
	for _, p := range old.pieces {
		if err := d.writeSlotProven(p.entry, slot{wipe: w}); err != nil {
			return err
		}
	}
	return nil
}
