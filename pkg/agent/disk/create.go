package disk

import (
	"context"
	"errors"
	"fmt"

	"k8s.io/klog/v2"

	"github.com/berthdev/berth/pkg/extent"
)

// CreateOptions say which volume is made.
type CreateOptions struct {
	// Partition is its GUID in lower case, which identifies the volume.
	Partition string
	// Name is shown by partition tools: ASCII, at most 36 characters.
	Name string
	// Extent is its place, aligned to 1 MiB.
	Extent extent.Extent
	// Ephemeral volumes end with their pod.
	Ephemeral bool
	// Raw makes a raw block volume. Its user reads it from the first byte on, so it is zeroed first. It is in phase
	// Formatted as soon as it exists.
	Raw bool
	// Note, of at most MaxNote bytes, is kept beside the volume and names its owner. It may be lost without the volume.
	Note string
	// Wipe is kept beside the volume as well, and says how the volume is wiped. Its rate also applies to the zeroing
	// that a raw or growing volume needs.
	Wipe WipeSettings
}

func (o CreateOptions) validate() error {
	if len(o.Note) > MaxNote {
		return fmt.Errorf("the note of volume %.64q has %d bytes, at most %d are possible", o.Partition, len(o.Note), MaxNote)
	}
	return o.Wipe.validate()
}

// Create makes a volume in phase Reserved, or Formatted if it is raw, and attaches its partition. If the volume exists
// at the same extent, it is returned as it is, so the caller may call Create again after any doubt. Errors: ErrOverlap,
// ErrNoEntry, ErrInUse (the volume is being wiped), ErrOutOfService.
//
// When Create returns a Reserved volume, its entry is on the medium in the primary copy. The backup is written, and
// both are read back, while a file system is made. If that fails the disk is out of service, so MarkFormatted, which
// comes after, never succeeds.
func (d *Disk) Create(ctx context.Context, o CreateOptions) (Volume, error) {
	if err := o.validate(); err != nil {
		return Volume{}, fmt.Errorf("creating volume: %w", err)
	}
	var v Volume
	create := func(ctx context.Context) (err error) {
		v, err = d.create(ctx, o)
		return err
	}
	var err error
	if o.Raw {
		err = d.afterZeroing(ctx, o.Partition, func() (extent.Extent, int64, error) {
			e, err := d.extentToZero(o)
			return e, o.Wipe.Rate, err
		}, create)
	} else {
		err = d.runInWorker(ctx, create)
	}
	if err != nil {
		return Volume{}, fmt.Errorf("creating volume: %w", err)
	}
	return v, nil
}

// extentToZero is what must be zero before the volume can be made. It is empty if the volume exists.
func (d *Disk) extentToZero(o CreateOptions) (extent.Extent, error) {
	if _, err := d.store.table.volume(o.Partition); err == nil {
		return extent.Extent{}, nil
	}
	_, _, err := d.store.table.withNew(o)
	return o.Extent, err
}

// create is Create after the checks and the zeroing, in the worker.
func (d *Disk) create(ctx context.Context, o CreateOptions) (Volume, error) {
	e, err := d.store.table.volume(o.Partition)
	prezeroed := false
	switch {
	case errors.Is(err, ErrNotFound):
		if e, err = d.addEntry(ctx, o); err != nil {
			return Volume{}, err
		}
		prezeroed = d.zeroed.Contains(o.Extent)
		d.zeroed = d.zeroed.Remove(o.Extent)
	case err != nil:
		return Volume{}, err
	case e.extent != o.Extent:
		return Volume{}, fmt.Errorf("volume %s already is at %v, not at %v: %w", o.Partition, e.extent, o.Extent, ErrOverlap)
	}
	if err := e.phase().checkUsable(o.Partition); err != nil {
		return Volume{}, err
	}
	// The entry stays if this fails: the next Create attaches it, or Wipe removes it.
	err = d.attach(ctx, e)
	d.publish()
	if err != nil {
		return Volume{}, err
	}
	v := d.volume(e)
	v.Prezeroed = prezeroed
	return v, nil
}

// addEntry writes the entry of a new volume.
func (d *Disk) addEntry(ctx context.Context, o CreateOptions) (entry, error) {
	next, made, err := d.store.table.withNew(o)
	if err != nil {
		return entry{}, err
	}
	if err := d.checkNotBeingZeroed(o.Partition, o.Extent); err != nil {
		return entry{}, err
	}
	// The slot is written before the volume's entry.
	keep := func() error {
		kept := slot{note: o.Note, wipe: o.Wipe}
		if kept == (slot{}) {
			return nil
		}
		return d.writeNewSlot(ctx, made, kept)
	}
	// The user of a raw volume may have it at once. The worker writes the backup when this command is done, before
	// the next one.
	return made, d.store.putNew(ctx, next, made, !o.Raw, keep)
}

// writeNewSlot writes the slot of a new volume. If the slot cannot be written, the volume is made without one, provided
// that the table on the medium has not changed.
func (d *Disk) writeNewSlot(ctx context.Context, made entry, s slot) error {
	err := d.writeSlot(made, s)
	if err == nil {
		return nil
	}
	klog.FromContext(ctx).Error(err, "Volume gets no note", "device", d.device.path, "disk", d.store.table.id, "partition", made.guid)
	return d.recheck(ctx)
}
