package disk

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/berthdev/berth/pkg/extent"
)

// startLongCall waits until no other call does long work on the volume: zeroes it, or zeroes the space that it will
// get.
func (d *Disk) startLongCall(ctx context.Context, partition string) (release func(), err error) {
	for {
		d.longCallsMu.Lock()
		other, taken := d.longCalls[partition]
		if !taken {
			mine := make(chan struct{})
			d.longCalls[partition] = mine
			d.longCallsMu.Unlock()
			return func() {
				d.longCallsMu.Lock()
				defer d.longCallsMu.Unlock()
				delete(d.longCalls, partition)
				close(mine)
			}, nil
		}
		d.longCallsMu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// afterZeroing has the worker do something that gives free space to a volume, after that space reads as zeros. Without
// that the volume may show what the space held before: only the space of wiped volumes was ever zeroed.
//
// The worker calls plan, which returns the space and the rate at which it may be zeroed. The caller zeroes it, while
// the worker does other work. Then the worker calls do, which must plan again: the table may have changed meanwhile.
func (d *Disk) afterZeroing(
	ctx context.Context, partition string, plan func() (extent.Set, int64, error), do func(context.Context) error,
) error {
	if v, found := d.volumeNow(partition); found {
		if err := v.Phase.checkUsable(partition); err != nil {
			return err
		}
	}
	release, err := d.startLongCall(ctx, partition)
	if err != nil {
		return err
	}
	defer release()
	return d.afterZeroingAlone(ctx, partition, plan, do)
}

// afterZeroingAlone is afterZeroing while no other call does long work on the volume.
func (d *Disk) afterZeroingAlone(
	ctx context.Context, partition string, plan func() (extent.Set, int64, error), do func(context.Context) error,
) error {
	var device *blockDevice
	var space extent.Set
	var rate int64
	err := d.runInWorker(ctx, func(ctx context.Context) (err error) {
		if space, rate, err = plan(); err != nil {
			return err
		}
		for _, e := range space.All() {
			if err := d.checkNotBeingZeroed(partition, e); err != nil {
				return err
			}
		}
		if space = space.Subtract(d.zeroed); space.Len() == 0 {
			return do(ctx)
		}
		// The disk must still be there, and the table ours, before anything is zeroed.
		if err := d.recheck(ctx); err != nil {
			return err
		}
		if device, err = d.device.duplicate(); err != nil {
			return err
		}
		d.zeroing[partition] = space
		return nil
	})
	if err != nil || device == nil {
		return err
	}
	stop := d.checkPeriodically()
	var zeroErr error
	for _, e := range space.All() {
		if zeroErr == nil {
			_, zeroErr = (&zeroJob{device: device, extent: e, rateLimit: rateLimit{&d.pacer, rate}, methods: d.wipeMethods}).zero(ctx)
		}
	}
	zeroErr = errors.Join(zeroErr, device.Close())
	stop()
	return d.runInWorker(context.WithoutCancel(ctx), func(ctx context.Context) error {
		delete(d.zeroing, partition)
		if zeroErr != nil {
			if mayBeGone(zeroErr) {
				return errors.Join(zeroErr, d.recheck(ctx))
			}
			return zeroErr
		}
		d.zeroed = d.zeroed.Union(space)
		return do(ctx)
	})
}

// volumeNow returns the volume from the present snapshot.
func (d *Disk) volumeNow(partition string) (Volume, bool) {
	s := d.Snapshot()
	return s.Volume(partition)
}

// checkNotBeingZeroed returns an error if the extent is about to be another volume's.
func (d *Disk) checkNotBeingZeroed(partition string, e extent.Extent) error {
	for other, zeroing := range d.zeroing {
		if other != partition && zeroing.Overlaps(e) {
			return fmt.Errorf("volume %s at %v: %v is being zeroed for volume %s: %w", partition, e, zeroing, other, ErrOverlap)
		}
	}
	return nil
}

// duplicate duplicates the open descriptor, so that it can be used while the first is closed.
func (d *blockDevice) duplicate() (*blockDevice, error) {
	fd, err := unix.FcntlInt(d.f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.path, err)
	}
	return &blockDevice{layout: d.layout, path: d.path, name: d.name, sys: d.sys, f: os.NewFile(uintptr(fd), d.path)}, nil
}
