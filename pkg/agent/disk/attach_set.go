package disk

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/berthdev/berth/pkg/extent"
)

// A volume is attached in one of these ways:
//
//  1. The disk is mapped as a whole: by a linear device over the volume's extents, see dmAttacher.
//  2. As a partition of the kernel, or a loop device where the numbers end. That is possible for one piece only.
//  3. By a linear device over the devices of its pieces, which are attached as in 2, see linearAttacher. Volumes of
//     several pieces have no other way, and those of one piece have it on request.
//
// While a volume is attached its way stays the same, because its user knows the device. Attach changes it.

// Attach attaches a volume in the way that is wanted for it, and returns the volume. If the volume is in use, or cannot
// be attached in that way, it stays as it is, and Volume.Attachment says how. want applies to later attachments as
// well, until the disk is closed. Errors: ErrNotFound, ErrInUse (the volume is being wiped or moved), ErrIncomplete,
// ErrNoMapper (it has several pieces), ErrOutOfService.
func (d *Disk) Attach(ctx context.Context, partition string, want Attachment) (Volume, error) {
	v, err := d.attachAgain(ctx, partition, want)
	if err != nil {
		return Volume{}, fmt.Errorf("attaching volume: %w", err)
	}
	return v, nil
}

func (d *Disk) attachAgain(ctx context.Context, partition string, want Attachment) (v Volume, err error) {
	if want != Partition && want != DeviceMapper {
		return Volume{}, fmt.Errorf("volume %s: the attachment %.64q does not exist", partition, want)
	}
	changes := false
	show := func(ctx context.Context, e entry) error {
		err := d.reattach(ctx, e)
		d.publish()
		v = d.volume(d.store.table.setOf(e))
		return err
	}
	err = d.runInWorker(ctx, func(ctx context.Context) error {
		s, err := d.usableSet(partition)
		if err != nil {
			return err
		}
		d.wanted[partition] = want
		// Without the device mapper nothing changes.
		now := d.attachment(partition)
		if changes = now != "" && now != d.wayOf(s) && d.checkMapper() == nil; changes {
			return nil
		}
		return show(ctx, s.first)
	})
	if !changes || err != nil {
		return v, err
	}
	err = d.afterDetaching(ctx, partition, func(entry) error { return nil }, show)
	if !errors.Is(err, ErrInUse) {
		return v, err
	}
	err = d.runInWorker(ctx, func(ctx context.Context) error {
		s, err := d.usableSet(partition)
		if err != nil {
			return err
		}
		return show(ctx, s.first)
	})
	return v, err
}

// attachment is the way in which a volume is attached. It is empty if it is not.
func (d *Disk) attachment(partition string) Attachment {
	switch {
	case d.devices[partition] == "":
		return ""
	case d.mapped != nil || d.linear.shows(partition):
		return DeviceMapper
	}
	return Partition
}

// wayOf is the way in which a volume is attached when it is not attached yet.
func (d *Disk) wayOf(s set) Attachment {
	if d.mapped != nil || len(s.pieces) > 0 {
		return DeviceMapper
	}
	if want := d.wanted[s.first.guid]; want != "" {
		return want
	}
	return d.attachAs
}

// attach makes the volume's device known, unless it is known.
func (d *Disk) attach(ctx context.Context, e entry) error {
	if d.devices[e.guid] != "" {
		return nil
	}
	return d.reattach(ctx, e)
}

// reattach makes the volume's device match the table.
func (d *Disk) reattach(ctx context.Context, e entry) error {
	if d.moving[e.guid] {
		return fmt.Errorf("volume %s is being moved: %w", e.guid, ErrInUse)
	}
	s := d.store.table.setOf(e)
	if err := s.checkComplete(); err != nil {
		return err
	}
	node, err := d.show(ctx, s)
	if mayBeGone(err) {
		return errors.Join(err, d.recheck(ctx))
	}
	if err != nil {
		return err
	}
	d.devices[e.guid] = node
	delete(d.unshown, e.guid)
	return nil
}

// show makes the kernel show a volume, in the way in which it does so already, or else as wanted.
func (d *Disk) show(ctx context.Context, s set) (string, error) {
	if d.mapped != nil {
		return d.mapped.attach(ctx, s)
	}
	way := d.wayOf(s)
	if len(s.pieces) == 0 {
		switch {
		case d.linear.shows(s.first.guid):
			way = DeviceMapper
		case d.devices[s.first.guid] != "":
			way = Partition
		}
	}
	if way == Partition {
		return d.attacherOf(s.first).attach(ctx, s.first)
	}
	if err := d.checkMapper(); err != nil {
		if len(s.pieces) > 0 {
			return "", fmt.Errorf("volume %s has %d pieces: %w", s.first.guid, 1+len(s.pieces), err)
		}
		return d.attacherOf(s.first).attach(ctx, s.first)
	}
	return d.showLinear(ctx, s)
}

// showLinear attaches a volume by a linear device. A partition that the kernel has already may be in use without being
// claimed. So before a volume gets its linear device, the kernel must have removed its partitions once.
func (d *Disk) showLinear(ctx context.Context, s set) (string, error) {
	if !d.linear.shows(s.first.guid) {
		for _, e := range s.entries() {
			err := d.attacherOf(e).detach(ctx, e, 0)
			if errors.Is(err, ErrInUse) && len(s.pieces) == 0 {
				return d.attacherOf(e).attach(ctx, e)
			}
			if err != nil {
				return "", err
			}
		}
	}
	return d.stack(ctx, s)
}

// stack attaches the pieces, and a linear device over them.
func (d *Disk) stack(ctx context.Context, s set) (string, error) {
	var parts []linear
	for _, e := range s.entries() {
		node, err := d.attacherOf(e).attach(ctx, e)
		if err != nil {
			return "", err
		}
		var st unix.Stat_t
		if err := unix.Stat(node, &st); err != nil {
			return "", fmt.Errorf("device %s: %w", node, err)
		}
		parts = append(parts, linear{st.Rdev, extent.New(0, e.extent.Len())})
	}
	return d.linear.attach(ctx, s.first.guid, parts)
}

// detachVolume removes the devices of the volume and of its pieces from the kernel, if it has them. ErrInUse means that
// one of them is open. Then the progress of a wipe does not count any more, because the volume may have been written
// to.
func (d *Disk) detachVolume(ctx context.Context, e entry) error {
	s := d.store.table.setOf(e)
	err := d.hide(ctx, s)
	switch {
	case err == nil:
		delete(d.devices, e.guid)
	case errors.Is(err, ErrInUse):
		for _, p := range s.entries() {
			if kept := d.slots[p.guid]; kept.progress != (progress{}) {
				kept.progress = progress{}
				d.tryWriteSlot(ctx, p, kept)
			}
		}
	case mayBeGone(err):
		err = errors.Join(err, d.recheck(ctx))
	}
	return err
}

// hide removes all devices of a volume, the linear one first. If one of a piece is open, the volume is shown again.
func (d *Disk) hide(ctx context.Context, s set) error {
	if d.mapped != nil {
		return d.mapped.detach(ctx, s.first, 0)
	}
	guid := s.first.guid
	stacked := d.linear.shows(guid)
	if err := d.linear.detach(guid); err != nil {
		return err
	}
	for _, e := range slices.Backward(s.entries()) {
		err := d.attacherOf(e).detach(ctx, e, 0)
		if errors.Is(err, ErrInUse) && stacked && d.devices[guid] != "" {
			var again error
			if d.devices[guid], again = d.stack(ctx, s); again != nil {
				delete(d.devices, guid)
			}
			err = errors.Join(err, again)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// showAtOpen attaches a volume when the disk is opened, or removes the devices that an earlier agent or the boot left.
// A volume that cannot be attached is listed with the reason, and the disk serves.
func (d *Disk) showAtOpen(ctx context.Context, s set) error {
	if !s.first.phase().HasDevice() {
		// No process may use it. A device that an earlier agent left is removed, unless it is open. Then it is shown, and
		// Wipe tries again.
		err := d.detachVolume(ctx, s.first)
		if !errors.Is(err, ErrInUse) || s.first.isPiece() {
			return ignoreInUse(err)
		}
		d.devices[s.first.guid], err = d.show(ctx, s)
		return err
	}
	err := d.attach(ctx, s.first)
	if d.mapped != nil && !errors.Is(err, ErrIncomplete) {
		return err
	}
	if !errors.Is(err, ErrIncomplete) && !errors.Is(err, ErrNoMapper) && !errors.Is(err, ErrInUse) {
		return err
	}
	d.unshown[s.first.guid] = err.Error()
	klog.FromContext(ctx).Error(err, "Volume is not attached", "device", d.device.path, "disk", d.store.table.id, "partition", s.first.guid)
	// The kernel shows partitions after a boot. A part of a volume is of no use for anyone.
	return ignoreInUse(d.detachVolume(ctx, s.first))
}

func ignoreInUse(err error) error {
	if errors.Is(err, ErrInUse) {
		return nil
	}
	return err
}

// checkMapper returns an error that wraps ErrNoMapper unless the kernel has the device mapper.
func (d *Disk) checkMapper() error {
	if d.mapped != nil || d.linear != nil {
		return nil
	}
	var err error
	if !d.noMapper {
		// The module may have been loaded since.
		d.linear, err = d.device.findLinear(d.loops)
	}
	if err != nil {
		return err
	}
	if d.linear == nil {
		return errNoMapper()
	}
	return nil
}

// CheckMapper returns an error that wraps ErrNoMapper unless the kernel has the device mapper. Without it volumes have
// one piece only.
func CheckMapper() error {
	m, err := openMapper()
	if isNoMapper(err) {
		return errNoMapper()
	}
	if err != nil {
		return err
	}
	return m.Close()
}

func errNoMapper() error {
	return fmt.Errorf("%w: %s is missing, load the module dm_mod", ErrNoMapper, mapperControl)
}
