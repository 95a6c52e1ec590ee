package disk

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/berthdev/berth/pkg/extent"
)

// Grow makes a volume longer in place, mounted or not, and returns it. length is that of all pieces in bytes, a
// multiple of Alignment: the last piece gets longer. A volume of that length or more is returned as it is: volumes
// never shrink. The new bytes are zeroed first, at the rate kept with the volume. Errors: ErrNotFound, ErrInUse (the
// volume is being wiped), ErrIncomplete, ErrOutOfService, and ErrOverlap if the space behind it is taken. Its message
// says how far the volume could grow.
func (d *Disk) Grow(ctx context.Context, partition string, length int64) (Volume, error) {
	var v Volume
	err := d.afterZeroing(ctx, partition,
		func() (extent.Set, int64, error) {
			tail, err := d.growthExtent(partition, length)
			return extent.NewSet(tail), d.slots[partition].wipe.Rate, err
		},
		func(ctx context.Context) (err error) {
			v, err = d.grow(ctx, partition, length)
			return err
		})
	if err != nil {
		return Volume{}, fmt.Errorf("growing volume: %w", err)
	}
	return v, nil
}

// growthExtent is the extent that the volume still needs to have that length.
func (d *Disk) growthExtent(partition string, length int64) (extent.Extent, error) {
	v, err := d.usableSet(partition)
	if err != nil {
		return extent.Extent{}, err
	}
	if length <= v.length() {
		return extent.Extent{}, nil
	}
	next, grown, err := d.store.table.withLength(partition, length)
	if err != nil {
		return extent.Extent{}, err
	}
	if err := next.validate(); err != nil {
		return extent.Extent{}, err
	}
	return extent.Extent{Start: v.last().extent.End, End: grown.extent.End}, nil
}

// usableSet returns a volume with all of its pieces. Errors: ErrNotFound, ErrInUse (the volume is being wiped, or a
// copy), ErrIncomplete.
func (d *Disk) usableSet(partition string) (set, error) {
	v, err := d.store.table.set(partition)
	if err != nil {
		return set{}, err
	}
	if err := v.first.phase().checkUsable(partition); err != nil {
		return set{}, err
	}
	return v, v.checkComplete()
}

// grow is Grow after the zeroing, in the worker.
func (d *Disk) grow(ctx context.Context, partition string, length int64) (Volume, error) {
	tail, err := d.growthExtent(partition, length)
	if err != nil {
		return Volume{}, err
	}
	if !tail.Empty() {
		if err := d.checkNotBeingZeroed(partition, tail); err != nil {
			return Volume{}, err
		}
		next, last, err := d.store.table.withLength(partition, length)
		if err != nil {
			return Volume{}, err
		}
		if err := d.store.put(ctx, next, last); err != nil {
			return Volume{}, err
		}
		d.zeroed = d.zeroed.Remove(tail)
	}
	return d.showGrown(ctx, partition)
}

// showGrown makes the device as long as the volume, and returns the volume. It is called also if the table had that
// length already: the kernel may not know it.
func (d *Disk) showGrown(ctx context.Context, partition string) (Volume, error) {
	e, err := d.store.table.volume(partition)
	if err != nil {
		return Volume{}, err
	}
	err = d.reattach(ctx, e)
	d.publish()
	if err != nil {
		return Volume{}, err
	}
	return d.volume(d.store.table.setOf(e)), nil
}

// AddPiece gives a volume one more piece, its last, and returns the volume. number is the new piece's: one more than
// the further pieces that the volume has. A volume that has that piece, from the same start on, is returned as it is.
// The piece is zeroed first, at the rate kept with the volume. Then one write of the table adds the piece, and raises
// the count in the first one.
//
// A volume that is attached by the device mapper can be in use: reads and writes wait for a moment, and then the device
// is longer. One that is attached as a partition must not be: it is attached by the device mapper from here on. Errors:
// ErrNotFound, ErrInUse (also if the volume is being wiped), ErrNoMapper, ErrIncomplete, ErrOverlap, ErrNoEntry (also
// if the volume has the most pieces), ErrOutOfService.
func (d *Disk) AddPiece(ctx context.Context, partition string, number int, at extent.Extent) (Volume, error) {
	v, err := d.addPieceAlone(ctx, partition, number, at)
	if err != nil {
		return Volume{}, fmt.Errorf("adding a piece to volume: %w", err)
	}
	return v, nil
}

// addPieceAlone is AddPiece while no other call does long work on the volume.
func (d *Disk) addPieceAlone(ctx context.Context, partition string, number int, at extent.Extent) (v Volume, err error) {
	release, err := d.startLongCall(ctx, partition)
	if err != nil {
		return Volume{}, err
	}
	defer release()
	err = d.afterZeroingAlone(ctx, partition,
		func() (extent.Set, int64, error) {
			missing, err := d.planPiece(partition, number, at)
			if err == nil && !missing.Empty() {
				err = d.checkMayGetPiece(partition)
			}
			return extent.NewSet(missing), d.slots[partition].wipe.Rate, err
		},
		func(context.Context) error { return nil })
	if err != nil {
		return Volume{}, err
	}
	// Only now, because a program that looks at the device is waited for, and the other volumes do not wait.
	err = d.whenExtensible(ctx, partition, func(ctx context.Context) (err error) {
		v, err = d.addPiece(ctx, partition, number, at)
		return err
	})
	return v, err
}

// planPiece is the extent that the volume still needs to have that piece.
func (d *Disk) planPiece(partition string, number int, at extent.Extent) (extent.Extent, error) {
	v, err := d.usableSet(partition)
	if err != nil {
		return extent.Extent{}, err
	}
	if number >= 1 && number <= len(v.pieces) {
		if has := v.pieces[number-1].extent; has.Start != at.Start || has.End < at.End {
			return extent.Extent{}, fmt.Errorf("piece %d of volume %s already is at %v, not at %v: %w", number, partition, has, at, ErrOverlap)
		}
		return extent.Extent{}, nil
	}
	next, _, err := d.store.table.withPiece(partition, number, at)
	if err != nil {
		return extent.Extent{}, err
	}
	if err := next.validate(); err != nil {
		return extent.Extent{}, err
	}
	return at, nil
}

// checkMayGetPiece refuses a piece before its space is zeroed, if it is known that the volume cannot get one.
func (d *Disk) checkMayGetPiece(partition string) error {
	if err := d.checkMapper(); err != nil {
		return fmt.Errorf("volume %s cannot get another piece: %w", partition, err)
	}
	e, err := d.store.table.volume(partition)
	if err != nil {
		return err
	}
	if d.attachment(partition) == Partition && d.heldExclusively(e) {
		return errNotExtensible(partition)
	}
	return nil
}

func errNotExtensible(partition string) error {
	return fmt.Errorf("volume %s is in use and attached as a partition: it can get another piece when it is not in use: %w", partition, ErrInUse)
}

// whenExtensible has the worker call do while the volume can get a piece: it is attached by the device mapper, or not
// attached.
func (d *Disk) whenExtensible(ctx context.Context, partition string, do func(context.Context) error) error {
	mapped := false
	err := d.runInWorker(ctx, func(ctx context.Context) error {
		if mapped = d.attachment(partition) != Partition; mapped {
			return do(ctx)
		}
		return nil
	})
	if mapped || err != nil {
		return err
	}
	err = d.afterDetaching(ctx, partition, func(entry) error { return nil }, func(ctx context.Context, e entry) error {
		err := do(ctx)
		if err != nil && !errors.Is(err, ErrOutOfService) {
			err = errors.Join(err, d.giveDeviceBack(ctx, e.guid))
		}
		return err
	})
	if errors.Is(err, ErrInUse) {
		return fmt.Errorf("%w (%w)", errNotExtensible(partition), err)
	}
	return err
}

// addPiece is AddPiece after the zeroing, in the worker.
func (d *Disk) addPiece(ctx context.Context, partition string, number int, at extent.Extent) (Volume, error) {
	missing, err := d.planPiece(partition, number, at)
	if err != nil {
		return Volume{}, err
	}
	if !missing.Empty() {
		if err := d.checkMapper(); err != nil {
			return Volume{}, err
		}
		if err := d.checkNotBeingZeroed(partition, at); err != nil {
			return Volume{}, err
		}
		if !d.zeroed.Contains(at) {
			return Volume{}, fmt.Errorf("%v was given to another volume while it was zeroed: %w", at, ErrOverlap)
		}
		next, changed, err := d.store.table.withPiece(partition, number, at)
		if err != nil {
			return Volume{}, err
		}
		// A slot that an earlier volume left does not count, as it bears another GUID.
		if err := d.store.put(ctx, next, changed...); err != nil {
			return Volume{}, err
		}
		d.zeroed = d.zeroed.Remove(at)
	}
	return d.showGrown(ctx, partition)
}

// lengthen makes the kernel's partition as long as the entry.
func (d *blockDevice) lengthen(p partition, e extent.Extent) error {
	if p.index == MetaEntry || p.extent.Start != e.Start || p.extent.End >= e.End {
		return fmt.Errorf("the kernel has partition %d of %s at %v, the table at %v: detach it with delpart", p.index, d.path, p.extent, e)
	}
	if err := d.blkpg(unix.BLKPG_RESIZE_PARTITION, p.index, e); err != nil {
		return fmt.Errorf("lengthening partition %d of %s from %v to %v: %w", p.index, d.path, p.extent, e, err)
	}
	return nil
}
