package disk

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/berthdev/berth/pkg/extent"
)

// WipePolicy says what must have happened to a volume's bytes before its extent is free.
type WipePolicy string

const (
	// WipeZero means that every byte reads as zero: the fastest way that the device has is
	// taken, and samples and both ends are read back. The default.
	WipeZero WipePolicy = "Zero"
	// WipeOverwrite means that zeros were written to every byte, and all of them read back:
	// for devices whose other ways to zero only change what is read.
	WipeOverwrite WipePolicy = "Overwrite"
	// WipeSecureDiscard means that the device was told to erase every byte and all copies that
	// it has of it; what it does not read as zeros then is zeroed. A device that cannot do
	// that gets WipeOverwrite.
	WipeSecureDiscard WipePolicy = "SecureDiscard"
	// WipeNone means that nothing happens to the bytes. UNSAFE: the next volume there can hold
	// what this one held, and whoever gets at its device can read it.
	WipeNone WipePolicy = "None"
)

// WipeOptions say how a volume is wiped.
type WipeOptions struct {
	// Policy to satisfy; empty means WipeZero.
	Policy WipePolicy
	// Rate is how many bytes a second may be written and read, of all wipes of the disk
	// together; 0 means no limit. Telling the device to drop bytes is not limited.
	Rate int64
	// Progress, if set, is called now and then from the goroutine that wipes, with the number
	// of bytes done, and must not block. Of a way that goes over the extent twice each counts
	// half; when a way turns out not to work the number falls back to 0.
	Progress func(done int64)
}

// Wiped is the record of a wipe.
type Wiped struct {
	// Partition, Name and Extent are the volume's.
	Partition, Name string
	Extent          extent.Extent
	// Policy that was asked for.
	Policy WipePolicy
	// Method that satisfied it: PUNCH_HOLE, BLKZEROOUT, overwrite, BLKSECDISCARD or none.
	Method string
	// Verified means that the result was read back from the medium: all of it, but under
	// WipeZero samples and both ends.
	Verified bool
	// Began is when the last try began, and Took how long it took.
	Began time.Time
	Took  time.Duration
}

// Wipe ends a volume: it records the phase Wiping, satisfies the policy for every byte, and
// only then frees the extent. Cut short by ctx or a crash, it leaves the volume in the phase
// Wiping, and is to be called again, maybe with another policy: it starts from the volume's
// beginning. Only its caller waits; other volumes go on. Errors: ErrNotFound (it is done),
// ErrInUse (mounted or held open; nothing was changed unless the volume was Wiping
// already), ErrOutOfService. With an error the record holds what is known.
func (d *Disk) Wipe(ctx context.Context, partition string, o WipeOptions) (Wiped, error) {
	if o.Policy == "" {
		o.Policy = WipeZero
	}
	w := Wiped{Partition: partition, Policy: o.Policy, Began: time.Now()}
	way, err := wayOf(o.Policy)
	if err != nil {
		return w, fmt.Errorf("wiping volume %s: %w", partition, err)
	}
	release, err := d.claimLong(ctx, partition)
	if err != nil {
		return w, fmt.Errorf("wiping volume: %w", err)
	}
	defer release()
	defer d.askMeanwhile()()
	w.Began = time.Now()
	err = d.wipe(ctx, &w, way, effort{&d.pace, o.Rate, o.Progress})
	w.Took = time.Since(w.Began)
	if err != nil {
		return w, fmt.Errorf("wiping volume: %w", err)
	}
	return w, nil
}

func (d *Disk) wipe(ctx context.Context, w *Wiped, way wipeWay, by effort) error {
	var e entry
	var device *blockDevice
	err := d.run(ctx, func(ctx context.Context) (err error) {
		if e, err = d.store.table.volume(w.Partition); err != nil {
			return err
		}
		w.Name, w.Extent = e.name, e.extent
		if err := d.attach(ctx, e); err != nil {
			return err
		}
		// Held from before the first change to the end of the zeroing: nobody can
		// mount the volume meanwhile, and whoever has it mounted keeps it.
		if device, err = d.openVolume(e); err != nil {
			return err
		}
		if phaseOf[e.kind] == Wiping {
			// The disk must still be there, and the table ours, before anything is zeroed.
			return d.recheck(ctx)
		}
		return d.setPhase(ctx, w.Partition, Wiping)
	})
	if err == nil {
		w.Method, w.Verified, err = way(ctx, device, extent.New(0, device.size), by)
	}
	if device != nil {
		err = errors.Join(err, device.Close())
	}
	if err != nil {
		if isGone(err) {
			// The volume's own bytes, or the whole disk? The table tells.
			err = errors.Join(err, d.Check(ctx))
		}
		return err
	}
	return d.run(ctx, func(ctx context.Context) error { return d.remove(ctx, e, w.Policy != WipeNone) })
}

// remove frees the extent of a volume that has been wiped. The kernel forgets the
// partition first: an entry without partition is attached again by Open, a partition
// without entry would be nobody's. Of an extent that was not zeroed nothing is known: who
// gets it must clear it.
func (d *Disk) remove(ctx context.Context, e entry, zeroed bool) error {
	next, err := d.store.table.without(e.guid)
	if err != nil {
		return err
	}
	if err := d.attacherOf(e).detach(ctx, e); err != nil {
		return err
	}
	delete(d.devices, e.guid)
	delete(d.notes, e.guid)
	if err := d.store.drop(ctx, next, e.index); err != nil {
		return err
	}
	if zeroed {
		d.zeroed = d.zeroed.Add(e.extent)
	}
	d.publish()
	return nil
}

// wipeWay satisfies a policy for a part of a device. It says by which method, and whether
// what came of it was read back.
type wipeWay func(ctx context.Context, d *blockDevice, e extent.Extent, by effort) (method string, verified bool, err error)

func wayOf(p WipePolicy) (wipeWay, error) {
	switch p {
	case WipeZero:
		return wipeByZeroing, nil
	case WipeOverwrite:
		return wipeByOverwriting, nil
	case WipeSecureDiscard:
		return wipeByDiscarding, nil
	case WipeNone:
		return func(context.Context, *blockDevice, extent.Extent, effort) (string, bool, error) {
			return "none", false, nil
		}, nil
	}
	return nil, fmt.Errorf("the wipe policy %.64q does not exist", p)
}

func wipeByZeroing(ctx context.Context, d *blockDevice, e extent.Extent, by effort) (string, bool, error) {
	method, err := d.zero(ctx, e, by)
	return method, err == nil, err
}

// wipeByOverwriting has one way only: if that fails there is no other that would do.
func wipeByOverwriting(ctx context.Context, d *blockDevice, e extent.Extent, by effort) (string, bool, error) {
	r := overwriting
	if err := d.apply(ctx, r, e, by.half(0)); err != nil {
		return r.name, false, fmt.Errorf("overwriting %s: %w", d.path, err)
	}
	left, err := d.notZero(ctx, e, by.half(e.Len()))
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("%v does not read as zeros though it was overwritten", left[0])
	}
	if err != nil {
		return r.name, false, fmt.Errorf("reading back %s: %w", d.path, err)
	}
	return r.name, true, nil
}

// wipeByDiscarding goes on with overwriting where the device has no secure discard. What it
// reads after one is its own affair, so all of it is read.
func wipeByDiscarding(ctx context.Context, d *blockDevice, e extent.Extent, by effort) (string, bool, error) {
	log := klog.FromContext(ctx)
	r := secureDiscarding
	err := d.apply(ctx, r, e, by.half(0))
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EINVAL) {
		log.Info("The device has no secure discard, it is overwritten", "device", d.path, "reason", err.Error())
		return wipeByOverwriting(ctx, d, e, by)
	}
	if err != nil {
		return r.name, false, fmt.Errorf("discarding %s: %w", d.path, err)
	}
	left, err := d.notZero(ctx, e, by.half(e.Len()))
	if err != nil {
		return r.name, false, fmt.Errorf("reading back %s: %w", d.path, err)
	}
	if len(left) == 0 {
		return r.name, true, nil
	}
	log.V(2).Info("Discarded bytes do not read as zeros and are zeroed", "device", d.path, "extents", len(left), "first", left[0])
	silent := effort{by.pace, by.rate, nil}
	for _, part := range left {
		if _, err := d.zero(ctx, part, silent); err != nil {
			return r.name, false, err
		}
		still, err := d.notZero(ctx, part, silent)
		if err == nil && len(still) > 0 {
			err = fmt.Errorf("%v of %s does not read as zeros though it was zeroed", still[0], d.path)
		}
		if err != nil {
			return r.name, false, err
		}
	}
	return r.name, true, nil
}
