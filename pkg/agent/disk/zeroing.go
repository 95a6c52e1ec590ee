package disk

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/berthdev/berth/pkg/extent"
)

// claimLong waits until no other call does long work on the volume: zeroes it, or zeroes the space that it will get.
func (d *Disk) claimLong(ctx context.Context, partition string) (release func(), err error) {
	for {
		d.longMu.Lock()
		other, taken := d.long[partition]
		if !taken {
			mine := make(chan struct{})
			d.long[partition] = mine
			d.longMu.Unlock()
			return func() {
				d.longMu.Lock()
				defer d.longMu.Unlock()
				delete(d.long, partition)
				close(mine)
			}, nil
		}
		d.longMu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// onZeros has the owner do something that gives free space to a volume, after that space reads as zeros. The owner
// calls plan, which returns the space and the rate at which it may be zeroed. Then the owner calls do. do must plan
// again, because the table may change meanwhile: only the caller waits for the zeroing. Free space may hold anything,
// because only wiped volumes were ever zeroed.
func (d *Disk) onZeros(
	ctx context.Context, partition string, plan func() (extent.Extent, int64, error), do func(context.Context) error,
) error {
	if v, found := d.volumeNow(partition); found && v.Phase == Wiping {
		return fmt.Errorf("volume %s is being wiped: %w", partition, ErrInUse)
	}
	release, err := d.claimLong(ctx, partition)
	if err != nil {
		return err
	}
	defer release()
	var device *blockDevice
	var e extent.Extent
	var rate int64
	err = d.run(ctx, func(ctx context.Context) (err error) {
		if e, rate, err = plan(); err != nil {
			return err
		}
		if e.Empty() || d.zeroed.Contains(e) {
			return do(ctx)
		}
		if err := d.notBeingZeroed(partition, e); err != nil {
			return err
		}
		// The disk must still be there, and the table ours, before anything is zeroed.
		if err := d.recheck(ctx); err != nil {
			return err
		}
		if device, err = d.device.duplicate(); err != nil {
			return err
		}
		d.zeroing[partition] = e
		return nil
	})
	if err != nil || device == nil {
		return err
	}
	stop := d.askMeanwhile()
	_, zeroErr := (&work{device: device, extent: e, limit: limit{&d.pace, rate}, config: d.wiping}).zero(ctx)
	zeroErr = errors.Join(zeroErr, device.Close())
	stop()
	err = d.run(context.WithoutCancel(ctx), func(ctx context.Context) error {
		delete(d.zeroing, partition)
		if zeroErr != nil {
			if isGone(zeroErr) {
				return errors.Join(zeroErr, d.recheck(ctx))
			}
			return zeroErr
		}
		d.zeroed = d.zeroed.Add(e)
		return do(ctx)
	})
	return err
}

func (d *Disk) volumeNow(partition string) (Volume, bool) {
	s := d.Snapshot()
	return s.Volume(partition)
}

// notBeingZeroed returns an error if the extent is about to be another volume's.
func (d *Disk) notBeingZeroed(partition string, e extent.Extent) error {
	for other, its := range d.zeroing {
		if other != partition && its.Overlaps(e) {
			return fmt.Errorf("volume %s at %v: %v is being zeroed for volume %s: %w", partition, e, its, other, ErrOverlap)
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
