package disk

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/berthdev/berth/pkg/extent"
)

// Grow makes a volume longer in place, mounted or not, and returns it. length is in bytes, a multiple of Alignment. A
// volume of that length or more is returned as it is: volumes never shrink. The new bytes are zeroed first, at the rate
// kept with the volume. Errors: ErrNotFound, ErrInUse (the volume is being wiped), ErrOutOfService, and ErrOverlap if
// the space behind it is taken. Its message says how far the volume could grow.
func (d *Disk) Grow(ctx context.Context, partition string, length int64) (Volume, error) {
	var v Volume
	err := d.afterZeroing(ctx, partition,
		func() (extent.Extent, int64, error) {
			tail, err := d.growthExtent(partition, length)
			return tail, d.slots[partition].wipe.Rate, err
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
	e, err := d.store.table.volume(partition)
	if err != nil {
		return extent.Extent{}, err
	}
	if err := e.phase().checkUsable(partition); err != nil {
		return extent.Extent{}, err
	}
	if length <= e.extent.Len() {
		return extent.Extent{}, nil
	}
	next, grown, err := d.store.table.withLength(partition, length)
	if err != nil {
		return extent.Extent{}, err
	}
	if err := next.validate(); err != nil {
		return extent.Extent{}, err
	}
	return extent.Extent{Start: e.extent.End, End: grown.extent.End}, nil
}

// grow is Grow after the zeroing, in the worker.
func (d *Disk) grow(ctx context.Context, partition string, length int64) (Volume, error) {
	tail, err := d.growthExtent(partition, length)
	if err != nil {
		return Volume{}, err
	}
	e, err := d.store.table.volume(partition)
	if err != nil {
		return Volume{}, err
	}
	if !tail.Empty() {
		if err := d.checkNotBeingZeroed(partition, tail); err != nil {
			return Volume{}, err
		}
		var next table
		if next, e, err = d.store.table.withLength(partition, length); err != nil {
			return Volume{}, err
		}
		if err := d.store.put(ctx, next, e); err != nil {
			return Volume{}, err
		}
		d.zeroed = d.zeroed.Remove(tail)
	}
	// Also if the table has that length already: the kernel may not know it.
	err = d.reattach(ctx, e)
	d.publish()
	if err != nil {
		return Volume{}, err
	}
	return d.volume(e), nil
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
