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

// open is Open with the device. Without an error the disk serves, or is out of service.
func (d *Disk) open(ctx context.Context, known func(string) bool) error {
	if err := d.device.readLayout(); err != nil {
		return err
	}
	if err := d.device.lock(ctx); err != nil {
		return err
	}
	defer d.device.unlock()
	// The disk is examined twice: once before its meta partition is attached, to see whether it is ours at all. The
	// second time no other agent can be writing any more.
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
	if d.owner, err = ownerOf(d.device, d.device.path, d.device.layout, f.current); err != nil {
		return err
	}
	if f.truncated(d.device.layout) {
		d.fail(ctx, errors.New(f.describeResize(d.device.layout)))
		return nil
	}
	if err := d.chooseAttacher(ctx, d.store.table); err != nil {
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
	if f.mustBeSeenBefore && (known == nil || !known(f.current.id)) {
		return fmt.Errorf("the beginning of the disk is lost, and the backup of its table names the disk %s, which was not seen here before; restore it with sgdisk if it is to be kept, or zero the last MiB too", f.current.id)
	}
	if d.store, err = load(d.device, d.device.layout, f); err != nil {
		return err
	}
	if err := d.findDevices(); err != nil {
		return err
	}
	d.readSlots(ctx)
	if err := d.prepareService(ctx, f); err != nil {
		d.fail(ctx, err)
		return nil
	}
	d.publish()
	return nil
}

// findDevices finds the devices of volumes that an earlier agent left, but for partitions and those of a mapped disk.
func (d *Disk) findDevices() (err error) {
	if d.loops, err = d.device.findLoops(); err != nil {
		return err
	}
	if d.mapped == nil && !d.noMapper {
		d.linear, err = d.device.findLinear(d.loops)
	}
	return err
}

// prepareService prepares a disk for service. With an error it is out of service, but its volumes are known.
func (d *Disk) prepareService(ctx context.Context, f findings) error {
	if f.grown(d.device.layout) {
		if err := extend(ctx, d.device, d.device.layout, f); err != nil {
			return err
		}
		var err error
		if f, err = examine(d.device, d.device.layout); err != nil {
			return err
		}
		if !f.ours || f.madeFor.size != 0 {
			return fmt.Errorf("the table was extended, and yet there is: %s", f)
		}
		if d.store, err = load(d.device, d.device.layout, f); err != nil {
			return err
		}
	}
	if err := d.linear.removeUnexpected(d.store.table); err != nil {
		return err
	}
	if err := d.detachUnexpected(ctx); err != nil {
		return err
	}
	if err := errors.Join(d.loops.checkTable(d.store.table), d.mapped.checkTable(d.store.table)); err != nil {
		return err
	}
	if err := d.store.repair(ctx, f); err != nil {
		return err
	}
	if err := d.store.probe(ctx); err != nil {
		return err
	}
	volumes, orphans := d.store.table.sets()
	for _, e := range orphans {
		volumes = append(volumes, set{first: e})
	}
	for _, v := range volumes {
		if err := d.showAtOpen(ctx, v); err != nil {
			return err
		}
	}
	return nil
}

// detachUnexpected removes the partitions from the kernel that are not the table's. A write of the table was lost after
// the kernel got the partition, or another tool added it. The kernel keeps a partition that is in use, and its users
// must not see another volume's bytes. So that is an error.
func (d *Disk) detachUnexpected(ctx context.Context) error {
	attached, err := d.device.partitions()
	if err != nil {
		return err
	}
	for _, p := range d.store.table.unexpected(attached) {
		if err := d.device.detach(ctx, p.index, busyTimeout); err != nil {
			// Not an ErrInUse for callers: it is not their volume that is in use.
			return fmt.Errorf("%w (%s)", p.reason, err.Error())
		}
		klog.FromContext(ctx).Info("The kernel had a partition that was not in use and that the table does not have, or has elsewhere; it was detached",
			"device", d.device.path, "disk", d.store.table.id, "partition", p.name, "extent", p.extent)
	}
	return nil
}

// unexpectedPartition is a partition that the kernel has and the table does not.
type unexpectedPartition struct {
	partition
	reason error
}

// unexpected are the partitions that are not in the table, or not in their place, by number.
func (t table) unexpected(attached map[int]partition) []unexpectedPartition {
	var found []unexpectedPartition
	for _, p := range slices.SortedFunc(maps.Values(attached), func(a, b partition) int { return cmp.Compare(a.index, b.index) }) {
		i := slices.IndexFunc(t.entries, func(e entry) bool { return e.index == p.index })
		switch {
		case i < 0:
			found = append(found, unexpectedPartition{p, fmt.Errorf("the kernel has a partition %s at %v, the table has no entry %d: detach it with delpart, or reboot", p.name, p.extent, p.index)})
		case !t.entries[i].matchesKernel(p.extent):
			found = append(found, unexpectedPartition{p, fmt.Errorf("the kernel has the partition %s at %v, the table at %v: detach it with delpart, or reboot", p.name, p.extent, t.entries[i].extent)})
		}
	}
	return found
}

// matchesKernel reports whether the kernel may have the entry's partition at the extent. A volume may be shorter in the
// kernel than in the table: an agent ended while the volume grew.
func (e entry) matchesKernel(attached extent.Extent) bool {
	return attached == e.extent || (e.isVolume() || e.isPiece()) && attached.Start == e.extent.Start && attached.End < e.extent.End
}
