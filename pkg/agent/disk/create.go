package disk

import (
	"context"
	"errors"
	"fmt"
	"slices"

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
	// Pieces are the places of its further pieces, in the order of the volume's bytes. A volume with pieces is attached
	// by the device mapper.
	Pieces []extent.Extent
	// Attachment is the way in which it is attached. Empty is Options.Attachment.
	Attachment Attachment
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

// Create makes a volume in phase Reserved, or Formatted if it is raw, and attaches it. If the volume exists at the same
// extents, it is returned as it is, so the caller may call Create again after any doubt. Errors: ErrOverlap,
// ErrNoEntry, ErrInUse (the volume is being wiped), ErrNoMapper (it has pieces), ErrIncomplete, ErrOutOfService.
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
		err = d.afterZeroing(ctx, o.Partition, func() (extent.Set, int64, error) {
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

// extents are the places of all pieces.
func (o CreateOptions) extents() []extent.Extent {
	return append([]extent.Extent{o.Extent}, o.Pieces...)
}

// extentToZero is what must be zero before the volume can be made. It is empty if the volume exists.
func (d *Disk) extentToZero(o CreateOptions) (extent.Set, error) {
	if _, err := d.store.table.volume(o.Partition); err == nil {
		return extent.Set{}, nil
	}
	_, _, err := d.store.table.withNew(o)
	return extent.NewSet(o.extents()...), err
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
		prezeroed = true
		for _, at := range o.extents() {
			prezeroed = prezeroed && d.zeroed.Contains(at)
			d.zeroed = d.zeroed.Remove(at)
		}
	case err != nil:
		return Volume{}, err
	default:
		v := d.store.table.setOf(e)
		if err := v.checkComplete(); err != nil {
			return Volume{}, err
		}
		if at := v.extents(); !slices.Equal(at, o.extents()) {
			return Volume{}, fmt.Errorf("volume %s already is at %v, not at %v: %w", o.Partition, at, o.extents(), ErrOverlap)
		}
	}
	if o.Attachment != "" {
		d.wanted[o.Partition] = o.Attachment
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
	v := d.volume(d.store.table.setOf(e))
	v.Prezeroed = prezeroed
	return v, nil
}

// addEntry writes the entries of a new volume, and returns the first.
func (d *Disk) addEntry(ctx context.Context, o CreateOptions) (entry, error) {
	next, made, err := d.store.table.withNew(o)
	if err != nil {
		return entry{}, err
	}
	for _, at := range o.extents() {
		if err := d.checkNotBeingZeroed(o.Partition, at); err != nil {
			return entry{}, err
		}
	}
	if len(o.Pieces) > 0 {
		if err := d.checkMapper(); err != nil {
			return entry{}, fmt.Errorf("volume %s has %d pieces: %w", o.Partition, 1+len(o.Pieces), err)
		}
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
	return made, d.store.putSet(ctx, next, next.setOf(made).entries(), !o.Raw, keep)
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
