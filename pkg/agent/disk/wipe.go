package disk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/berthdev/berth/pkg/extent"
)

// WipePolicy says what must have happened to a volume's bytes before its extent is free.
type WipePolicy string

const (
	// WipeZero means that every byte reads as zero. The fastest way of the device is used, and samples and both ends
	// are read back. It is the default.
	WipeZero WipePolicy = "Zero"
	// WipeOverwrite means that zeros were written to every byte, and all of them read back. It is for devices whose
	// other ways to zero only change what is read.
	WipeOverwrite WipePolicy = "Overwrite"
	// WipeSecureDiscard means that the device was requested to erase every byte and all its copies. Bytes that do not
	// read as zero afterwards are zeroed. A device that cannot do that gets WipeOverwrite.
	WipeSecureDiscard WipePolicy = "SecureDiscard"
	// WipeNone means that nothing happens to the bytes. UNSAFE: the next volume there can contain the bytes of this
	// one, and a process that opens its device can read them.
	WipeNone WipePolicy = "None"
)

// WipeSettings say how a volume is wiped. They are kept beside it on the disk: its class may be deleted when it is
// wiped.
type WipeSettings struct {
	// Policy to satisfy; empty if none was given.
	Policy WipePolicy
	// Rate is how many bytes a second all zeroing of the disk together may zero and read back. 0 means no limit.
	Rate int64
}

// validate refuses a policy that does not exist, and a negative rate.
func (w WipeSettings) validate() error {
	if w.Policy != "" {
		if _, err := wipeFuncFor(w.Policy); err != nil {
			return err
		}
	}
	if w.Rate < 0 {
		return fmt.Errorf("a wipe rate of %d bytes a second is negative", w.Rate)
	}
	return nil
}

// WipeOptions say how a volume is wiped now.
type WipeOptions struct {
	// Policy to satisfy. If it is empty, policy and rate are those kept with the volume, or
	// WipeZero without limit.
	Policy WipePolicy
	// Rate is how many bytes a second all zeroing of the disk together may zero and read back, by any method. 0 means
	// no limit.
	Rate int64
	// Progress, if set, is called from time to time with the number of bytes done, from the goroutine that wipes. It
	// must not block. If a policy goes over the extent twice, each pass counts half. When a method does not work the
	// number returns to 0.
	Progress func(done int64)
}

// WipeResult says what a wipe did.
type WipeResult struct {
	// Partition, Name and Extent are the volume's, and Pieces is how many it had when the wipe began.
	Partition, Name string
	Extent          extent.Extent
	Pieces          int
	// Policy that was satisfied.
	Policy WipePolicy
	// Method that satisfied it: PUNCH_HOLE, BLKZEROOUT, overwrite, BLKSECDISCARD or none. Of a volume of several pieces
	// it is the first one's.
	Method string
	// Verified means that the result was read back from the medium. Under WipeZero only samples and both ends were.
	Verified bool
	// Began is when the last try began, and Took how long it took.
	Began time.Time
	Took  time.Duration
}

// Wipe ends a volume, in this order:
//
//  1. The kernel removes the volume's device. It refuses while a process has the device open: then the error is
//     ErrInUse, and nothing was changed. So no process can write to the volume from here on.
//  2. The volume is in phase Wiping, with its policy.
//  3. The policy is satisfied for every byte, through the disk's own descriptor, and that is verified.
//  4. The entry is dropped, and the extent is free.
//
// Of a volume of several pieces, all devices are removed in step 1. Steps 3 and 4 are done for each piece, the last one
// first. So at any time the pieces that are left are a complete volume in phase Wiping.
//
// If ctx or a crash cuts it short, the volume stays in phase Wiping, and Wipe must be called again. It continues where
// it was if the policy is the same. It starts from the volume's beginning if not, or if a method failed. Only its
// caller waits. Other volumes go on. Errors: ErrNotFound (it is done), ErrInUse, ErrOutOfService. With an error the
// result has what is known.
func (d *Disk) Wipe(ctx context.Context, partition string, o WipeOptions) (WipeResult, error) {
	w := WipeResult{Partition: partition, Policy: o.Policy, Began: time.Now()}
	if err := (WipeSettings{o.Policy, o.Rate}).validate(); err != nil {
		return w, fmt.Errorf("wiping volume %s: %w", partition, err)
	}
	release, err := d.startLongCall(ctx, partition)
	if err != nil {
		return w, fmt.Errorf("wiping volume: %w", err)
	}
	defer release()
	defer d.checkPeriodically()()
	w.Began = time.Now()
	err = d.wipe(ctx, &w, o)
	w.Took = time.Since(w.Began)
	if err != nil {
		return w, fmt.Errorf("wiping volume: %w", err)
	}
	return w, nil
}

// wipe is Wipe while no other call does long work on the volume. It fills in the result.
func (d *Disk) wipe(ctx context.Context, w *WipeResult, o WipeOptions) error {
	v, err := d.beginWipe(ctx, w, o)
	if err != nil {
		return err
	}
	// Logged only here: a volume that is held is tried again and again.
	if w.Policy != WipeNone {
		klog.FromContext(ctx).V(2).Info("Volume is being wiped", "partition", w.Partition, "name", w.Name, "device", d.device.path, "disk", d.store.table.id,
			"extent", w.Extent, "pieces", w.Pieces, "policy", w.Policy, "rate", v.settings.Rate)
	}
	w.Verified = true
	done := int64(0)
	for _, e := range slices.Backward(v.entries) {
		var progress func(int64)
		if o.Progress != nil {
			progress = func(n int64) { o.Progress(done + n) }
		}
		if err := d.wipePiece(ctx, w, e, v.settings, progress); err != nil {
			return err
		}
		done += e.extent.Len()
	}
	return nil
}

// wiping is a volume that is being wiped: its pieces, and how.
type wiping struct {
	entries  []entry
	settings WipeSettings
}

// wipePiece wipes one piece of a volume in phase Wiping, and drops its entry.
func (d *Disk) wipePiece(ctx context.Context, w *WipeResult, e entry, settings WipeSettings, onProgress func(int64)) error {
	var work *zeroJob
	err := d.runInWorker(ctx, func(ctx context.Context) (err error) {
		work, err = d.newWipeJob(ctx, e, settings, onProgress)
		return err
	})
	if err != nil {
		return err
	}
	// beginWipe has checked the policy.
	wipe, _ := wipeFuncFor(settings.Policy)
	method, verified, err := wipe(ctx, work)
	w.Method, w.Verified = method, w.Verified && verified
	if err != nil {
		work.saveAtEnd(ctx, ctx.Err() != nil)
	}
	if err = errors.Join(err, work.device.Close()); err != nil {
		w.Verified = false
		if mayBeGone(err) {
			// The error may be of the volume's own bytes, or of the whole disk. The table shows which.
			err = errors.Join(err, d.Check(ctx))
		}
		return err
	}
	return d.runInWorker(ctx, func(ctx context.Context) error {
		return d.removeWiped(ctx, w.Partition, e, settings.Policy != WipeNone)
	})
}

// beginWipe removes the volume's device and brings the volume into phase Wiping.
func (d *Disk) beginWipe(ctx context.Context, w *WipeResult, o WipeOptions) (begun wiping, err error) {
	if err := d.runInWorker(ctx, func(ctx context.Context) error { return d.adoptOrphan(ctx, w.Partition) }); err != nil {
		return wiping{}, err
	}
	err = d.afterDetaching(ctx, w.Partition,
		func(found entry) error {
			w.Name, w.Extent, w.Pieces = found.name, found.extent, len(d.store.table.setOf(found).entries())
			return nil
		},
		func(ctx context.Context, e entry) (err error) {
			begun, err = d.markWiping(ctx, e, w, o)
			return err
		})
	return begun, err
}

// adoptOrphan makes a piece without a first piece a volume of its own in phase Wiping. For any other GUID it does
// nothing.
func (d *Disk) adoptOrphan(ctx context.Context, partition string) error {
	next, e, err := d.store.table.withOrphanWiping(partition)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err == nil {
		err = d.recheck(ctx)
	}
	if err == nil {
		// Its slot is on the medium before its phase. Progress of a wipe that the first piece has not seen is none.
		d.tryWriteSlot(ctx, e, slot{wipe: d.slots[partition].wipe})
		err = d.store.put(ctx, next, e)
	}
	d.publish()
	return err
}

// afterDetaching has the worker remove the volume's device, and call do in the same command. Before, it calls check
// with the volume's entry. It waits for a program that only looks at the device (udev, blkid). The disk's other volumes
// do not wait.
func (d *Disk) afterDetaching(ctx context.Context, partition string, check func(entry) error, do func(context.Context, entry) error) error {
	var inUse error
	err := await(ctx, busyTimeout, func() (bool, error) {
		looking := false
		err := d.runInWorker(ctx, func(ctx context.Context) error {
			e, err := d.store.table.volume(partition)
			if err == nil {
				err = check(e)
			}
			if err != nil {
				return err
			}
			if err = d.detachVolume(ctx, e); err != nil {
				looking = errors.Is(err, ErrInUse) && !d.heldExclusively(e)
				return err
			}
			return do(ctx, e)
		})
		if looking {
			inUse = err
			return false, nil
		}
		return err == nil, err
	})
	if errors.Is(err, errTimeout) {
		err = inUse
	}
	return err
}

// heldExclusively distinguishes a lasting user, such as a mount, from a program that may only be looking.
func (d *Disk) heldExclusively(e entry) bool {
	device, err := openDevice(d.devices[e.guid], os.O_RDONLY|unix.O_EXCL)
	if err != nil {
		return errors.Is(err, ErrInUse)
	}
	return device.Close() != nil
}

// markWiping brings a volume that the kernel does not show into phase Wiping, unless it is, and keeps the policy. The
// progress of an earlier wipe counts if it was under the same policy.
func (d *Disk) markWiping(ctx context.Context, e entry, w *WipeResult, o WipeOptions) (wiping, error) {
	kept := d.slots[e.guid]
	now := slot{note: kept.note, wipe: WipeSettings{o.Policy, o.Rate}}
	if o.Policy == "" {
		now.wipe = kept.wipe
	}
	if now.wipe.Policy == "" {
		now.wipe.Policy = WipeZero
	}
	w.Policy = now.wipe.Policy
	begun := e.phase() == Wiping
	if begun && kept.wipe.Policy == now.wipe.Policy && kept.progress.fits(e.extent.Len()) {
		now.progress = kept.progress
	}
	// The disk must still be there, and the table ours, before anything is written or zeroed.
	err := d.recheck(ctx)
	if err == nil {
		if !begun || now != kept {
			d.tryWriteSlot(ctx, e, now)
		}
		// What an earlier wipe of the same GUID left in a piece's slot must not count as progress of this one.
		for _, p := range d.store.table.setOf(e).pieces {
			if !begun {
				d.tryWriteSlot(ctx, p.entry, slot{wipe: now.wipe})
			}
		}
		if begun {
			err = d.store.dev.Sync()
			d.publish()
		} else {
			// Its first flush is also for the slot, which is on the medium before the phase.
			err = d.setPhase(ctx, e.guid, Wiping)
		}
	}
	if err != nil {
		if !begun && !errors.Is(err, ErrOutOfService) {
			err = errors.Join(err, d.giveDeviceBack(ctx, e.guid))
		}
		return wiping{}, err
	}
	return wiping{d.store.table.setOf(e).entries(), now.wipe}, nil
}

// newWipeJob prepares the wipe of one piece. The slot of the piece has its progress, which counts if it was made under
// the same policy.
func (d *Disk) newWipeJob(ctx context.Context, e entry, settings WipeSettings, onProgress func(int64)) (*zeroJob, error) {
	if s := d.slots[e.guid]; s.wipe != settings {
		if s.wipe.Policy != settings.Policy {
			s.progress = progress{}
		}
		s.wipe = settings
		d.tryWriteSlot(ctx, e, s)
		if err := d.store.dev.Sync(); err != nil {
			return nil, err
		}
	}
	device, err := d.device.duplicate()
	if err != nil {
		return nil, err
	}
	begun := &zeroJob{device: device, extent: e.extent, rateLimit: rateLimit{&d.pacer, settings.Rate}, methods: d.wipeMethods, onProgress: onProgress}
	begun.progressKeeper = &progressKeeper{interval: d.wipeMethods.saveInterval, since: time.Now(), write: func(ctx context.Context, p progress) error {
		return d.runInWorker(ctx, func(context.Context) error {
			s := d.slots[e.guid]
			s.progress = p
			return d.writeSlot(e, s)
		})
	}}
	// Read from the disk's slots: what could not be kept does not count.
	if s := d.slots[e.guid]; s.wipe.Policy == settings.Policy && s.progress.fits(e.extent.Len()) {
		begun.progress, begun.progressKeeper.onDisk = s.progress, s.progress
	}
	return begun, nil
}

// tryWriteSlot is keep at the beginning of a wipe. The wipe goes on even if the slot cannot be written.
func (d *Disk) tryWriteSlot(ctx context.Context, e entry, s slot) {
	err := d.writeSlot(e, s)
	if err == nil {
		return
	}
	klog.FromContext(ctx).Error(err, "The progress of a wipe cannot be kept, after a restart it starts from the volume's beginning",
		"device", d.device.path, "disk", d.store.table.id, "partition", e.guid)
	s.progress = progress{}
	d.slots[e.guid] = s
}

// giveDeviceBack attaches a volume whose wipe has not begun, or whose move has ended.
func (d *Disk) giveDeviceBack(ctx context.Context, partition string) error {
	e, err := d.store.table.volume(partition)
	if err != nil || !e.phase().HasDevice() {
		return err
	}
	err = d.attach(ctx, e)
	d.publish()
	return err
}

// removeWiped frees the extent of a piece that has been wiped, the last one of its volume. If a tool made the kernel
// show the volume again meanwhile, it is detached again: a partition without entry would have no owner. An extent that
// was not zeroed may hold anything. Its next user must clear it.
func (d *Disk) removeWiped(ctx context.Context, volume string, e entry, zeroed bool) error {
	first, err := d.store.table.volume(volume)
	if err != nil {
		return err
	}
	var next table
	var changed []entry
	if e.guid == volume {
		next, err = d.store.table.without(volume)
	} else {
		var gone entry
		next, gone, first, err = d.store.table.withoutPiece(volume)
		changed = []entry{first}
		if err == nil && gone.guid != e.guid {
			err = fmt.Errorf("piece %s of volume %s is not the last one", e.guid, volume)
		}
	}
	if err != nil {
		return err
	}
	if err := d.detachVolume(ctx, first); err != nil {
		return err
	}
	if err := d.store.drop(ctx, next, e.index, changed...); err != nil {
		return err
	}
	delete(d.slots, e.guid)
	delete(d.unflushed, e.guid)
	delete(d.wanted, e.guid)
	if zeroed {
		d.zeroed = d.zeroed.Add(e.extent)
	}
	d.publish()
	return nil
}

// wipeFunc satisfies a policy for an extent. It returns the method, and whether the result was read back.
type wipeFunc func(ctx context.Context, w *zeroJob) (method string, verified bool, err error)

// wipeFuncFor returns the function that satisfies the policy.
func wipeFuncFor(p WipePolicy) (wipeFunc, error) {
	switch p {
	case WipeZero:
		return wipeByZeroing, nil
	case WipeOverwrite:
		return wipeByOverwriting, nil
	case WipeSecureDiscard:
		return wipeByDiscarding, nil
	case WipeNone:
		return func(context.Context, *zeroJob) (string, bool, error) { return "none", false, nil }, nil
	}
	return nil, fmt.Errorf("the wipe policy %.64q does not exist", p)
}

func wipeByZeroing(ctx context.Context, w *zeroJob) (string, bool, error) {
	name, err := w.zero(ctx)
	return name, err == nil, err
}

// wipeByOverwriting has one method only: if that fails no other one satisfies the policy.
func wipeByOverwriting(ctx context.Context, w *zeroJob) (string, bool, error) {
	w.verifiesAll = true
	m := w.methods.overwrite
	if err := w.runMethod(ctx, m); err != nil {
		return m.name, false, fmt.Errorf("overwriting %s: %w", w.device.path, err)
	}
	left, err := w.findNonZero(ctx)
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("%v does not read as zeros though it was overwritten", left[0])
	}
	if err != nil {
		return m.name, false, fmt.Errorf("reading back %s: %w", w.device.path, err)
	}
	return m.name, true, nil
}

// wipeByDiscarding overwrites where the device has no secure discard. Reads after a discard may return anything, so all
// of the extent is read.
func wipeByDiscarding(ctx context.Context, w *zeroJob) (string, bool, error) {
	w.verifiesAll = true
	log := klog.FromContext(ctx)
	m := w.methods.secureDiscard
	if w.progress.method == methodOverwrite {
		return wipeByOverwriting(ctx, w) // found out before a restart
	}
	err := w.runMethod(ctx, m)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EINVAL) {
		log.Info("The device has no secure discard, it is overwritten", "device", w.device.path, "reason", err.Error())
		return wipeByOverwriting(ctx, w)
	}
	if err != nil {
		return m.name, false, fmt.Errorf("discarding %s: %w", w.device.path, err)
	}
	left, err := w.findNonZero(ctx)
	if err != nil {
		return m.name, false, fmt.Errorf("reading back %s: %w", w.device.path, err)
	}
	if len(left) == 0 {
		return m.name, true, nil
	}
	log.V(2).Info("Discarded bytes do not read as zeros and are zeroed", "device", w.device.path, "extents", len(left), "first", left[0])
	for _, part := range left {
		if _, err := w.forPart(part).zero(ctx); err != nil {
			return m.name, false, err
		}
		still, err := w.forPart(part).findNonZero(ctx)
		if err == nil && len(still) > 0 {
			err = fmt.Errorf("%v of %s does not read as zeros though it was zeroed", still[0], w.device.path)
		}
		if err != nil {
			return m.name, false, err
		}
	}
	return m.name, true, nil
}
