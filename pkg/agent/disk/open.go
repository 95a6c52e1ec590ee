package disk

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"k8s.io/klog/v2"

	"github.com/berthdev/berth/pkg/extent"
)

// open is Open with the device. Without error the disk serves, or is out of service.
func (d *Disk) open(ctx context.Context, known func(string) bool) error {
	if err := d.device.measure(); err != nil {
		return err
	}
	if err := d.device.lock(ctx); err != nil {
		return err
	}
	defer d.device.unlock()
	// Looked at twice: whether the disk is ours at all, before its meta partition is
	// attached, and then in earnest, when no other agent can be writing any more.
	f, err := examine(d.device, d.device.layout)
	if err != nil {
		return err
	}
	if !f.ours {
		return fmt.Errorf("the disk is not ours: %s", f.reason)
	}
	if d.store, err = load(d.device, d.device.layout, f); err != nil {
		return err
	}
	if f.truncated(d.device.layout) {
		d.fail(ctx, errors.New(f.resizing(d.device.layout)))
		return nil
	}
	if err := d.chooseWay(ctx, d.store.table); err != nil {
		return err
	}
	if err := d.holdMeta(ctx, d.store.table); err != nil {
		return err
	}
	if f, err = examine(d.device, d.device.layout); err != nil {
		return err
	}
	if !f.ours {
		return fmt.Errorf("the disk is not ours any more: %s", f.reason)
	}
	if f.needsKnown && (known == nil || !known(f.current.id)) {
		return fmt.Errorf("the beginning of the disk is lost, and the backup of its table names the disk %s, which was not seen here before; restore it with sgdisk if it is to be kept, or zero the last MiB too", f.current.id)
	}
	if d.store, err = load(d.device, d.device.layout, f); err != nil {
		return err
	}
	if d.loops, err = d.device.loops(); err != nil {
		return err
	}
	d.readNotes(ctx)
	if err := d.serve(ctx, f); err != nil {
		d.fail(ctx, err)
		return nil
	}
	d.publish()
	return nil
}

// serve makes a disk fit for service. With an error it is not, though its volumes are known.
func (d *Disk) serve(ctx context.Context, f findings) error {
	if f.grown(d.device.layout) {
		if err := extend(ctx, d.device, d.device.layout, f); err != nil {
			return err
		}
		var err error
		if f, err = examine(d.device, d.device.layout); err != nil {
			return err
		}
		if !f.ours || f.was.size != 0 {
			return fmt.Errorf("the table was extended, and yet there is: %s", f)
		}
		if d.store, err = load(d.device, d.device.layout, f); err != nil {
			return err
		}
	}
	if err := d.forgetStrangers(ctx); err != nil {
		return err
	}
	if err := errors.Join(d.loops.match(d.store.table), d.mapped.match(d.store.table)); err != nil {
		return err
	}
	if err := d.store.repair(ctx, f); err != nil {
		return err
	}
	if err := d.store.probe(ctx); err != nil {
		return err
	}
	for _, e := range d.store.table.entries {
		if !e.isVolume() {
			continue
		}
		if err := d.attach(ctx, e); err != nil {
			return err
		}
	}
	return nil
}

// readNotes reads the volumes' notes. A disk is not lost because some cannot be read.
func (d *Disk) readNotes(ctx context.Context) {
	var err error
	if d.notes, err = readNotes(d.device, d.store.table); err != nil {
		klog.FromContext(ctx).Error(err, "Volumes' notes are lost", "device", d.device.path, "disk", d.store.table.id)
		d.notes = map[string]string{}
	}
}

// forgetStrangers makes the kernel forget the partitions that are not the table's: a write of
// the table was lost after the kernel was told, or a person has used a tool. The kernel keeps
// one that is in use, whose users must not see another volume's bytes: that is an error.
func (d *Disk) forgetStrangers(ctx context.Context) error {
	attached, err := d.device.partitions()
	if err != nil {
		return err
	}
	for _, stranger := range d.store.table.strangers(attached) {
		if err := d.device.detach(ctx, stranger.index); err != nil {
			// Not an ErrInUse to callers: it is not their volume that is.
			return fmt.Errorf("%w (%s)", stranger.because, err.Error())
		}
		klog.FromContext(ctx).Info("The kernel had a partition that nobody used and the table does not have, or has elsewhere; it was detached",
			"device", d.device.path, "disk", d.store.table.id, "partition", stranger.name, "extent", stranger.extent)
	}
	return nil
}

// stranger is a partition that the kernel has and should not have.
type stranger struct {
	partition
	because error
}

// strangers are the partitions that are not in the table, or not in their place, by number.
func (t table) strangers(attached map[int]partition) []stranger {
	var found []stranger
	for _, p := range slices.SortedFunc(maps.Values(attached), func(a, b partition) int { return cmp.Compare(a.index, b.index) }) {
		i := slices.IndexFunc(t.entries, func(e entry) bool { return e.index == p.index })
		switch {
		case i < 0:
			found = append(found, stranger{p, fmt.Errorf("the kernel has a partition %s at %v, the table has no entry %d: detach it with delpart, or reboot", p.name, p.extent, p.index)})
		case !t.entries[i].mayBe(p.extent):
			found = append(found, stranger{p, fmt.Errorf("the kernel has the partition %s at %v, the table at %v: detach it with delpart, or reboot", p.name, p.extent, t.entries[i].extent)})
		}
	}
	return found
}

// mayBe reports whether the kernel may have the entry's partition at the extent. It may
// have a volume shorter than the table: somebody stopped while the volume grew.
func (e entry) mayBe(attached extent.Extent) bool {
	return attached == e.extent || e.isVolume() && attached.Start == e.extent.Start && attached.End < e.extent.End
}
