package disk

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// maxReadTries bounds how often a table is read again, because an agent may be writing it.
const maxReadTries = 5

// Read returns the content of the table of a disk of ours, without taking the disk into service. It only reads, and
// works beside an agent that has the disk open. Free is not set, and a volume has a Device only if the kernel has its
// partition.
func Read(path string) (Snapshot, error) {
	d, err := openDevice(path, os.O_RDONLY)
	if err != nil {
		return Snapshot{}, fmt.Errorf("reading: %w", err)
	}
	defer d.Close()
	s, err := d.read()
	if err != nil {
		return Snapshot{}, fmt.Errorf("reading %s: %w", path, err)
	}
	return s, nil
}

// read is Read for a device that is open.
func (d *blockDevice) read() (Snapshot, error) {
	if err := d.readLayout(); err != nil {
		return Snapshot{}, err
	}
	t, err := d.readTable()
	if err != nil {
		return Snapshot{}, err
	}
	owner, err := readOwner(d, t.layout, t.metaGUID())
	if err != nil {
		return Snapshot{}, err
	}
	slots, err := readSlots(d, t)
	if err != nil {
		return Snapshot{}, err
	}
	s := Snapshot{ID: t.id, Owner: owner, Path: d.path, Size: t.size, SectorSize: t.sector}
	if s.Volumes, err = d.readVolumes(t, slots); err != nil {
		return Snapshot{}, err
	}
	slices.SortFunc(s.Volumes, func(a, b Volume) int { return cmp.Compare(a.Extent.Start, b.Extent.Start) })
	return s, nil
}

// readVolumes returns the volumes of a table, with the devices by which the kernel shows them.
func (d *blockDevice) readVolumes(t table, slots map[string]slot) ([]Volume, error) {
	attached, err := d.partitions()
	if err != nil {
		return nil, err
	}
	loops, err := d.findLoops()
	if err != nil {
		return nil, err
	}
	mapped, err := d.findMapped()
	if err != nil {
		return nil, err
	}
	if mapped != nil {
		defer mapped.mapper.Close()
	}
	linear, err := d.findLinear(loops)
	if err != nil {
		return nil, err
	}
	if linear != nil {
		defer linear.mapper.Close()
	}
	// Only the fields of a Disk that volume needs.
	reader := &Disk{device: d, devices: map[string]string{}, slots: slots, loops: loops, linear: linear}
	if mapped != nil && len(mapped.found) > 0 {
		reader.mapped = mapped
	}
	sets, orphans := t.sets()
	for _, e := range orphans {
		sets = append(sets, set{first: e})
	}
	var volumes []Volume
	for _, v := range sets {
		if path := reader.shownAs(v, attached); path != "" {
			reader.devices[v.first.guid] = path
		}
		volumes = append(volumes, reader.volume(v))
	}
	return volumes, nil
}

// shownAs returns the device by which the kernel shows all of a volume. It is empty if there is none.
func (d *Disk) shownAs(v set, attached map[int]partition) string {
	guid, at := v.first.guid, v.first.extent
	switch {
	case d.linear.shows(guid):
		if slices.Equal(d.linear.places(guid), v.extents()) {
			return d.linear.found[guid].path
		}
	case d.mapped != nil:
		if slices.Equal(d.mapped.found[guid].extents(), v.extents()) {
			return d.mapped.found[guid].path
		}
	case len(v.pieces) > 0:
	case attached[v.first.index].extent == at:
		return filepath.Join(filepath.Dir(d.device.path), attached[v.first.index].name)
	case d.loops.found[guid].extent == at:
		return d.loops.found[guid].path
	}
	return ""
}

// readTable uses the copy that Open would use. Between the two reads an agent may have written both copies. Then
// neither looks intact, and the next try finds them intact.
func (d *blockDevice) readTable() (table, error) {
	for try := 1; ; try++ {
		f, err := examine(d, d.layout)
		if err != nil {
			return table{}, err
		}
		if f.ours {
			return decode(f.layoutOf(d.layout), f.current)
		}
		if f.foreign || try == maxReadTries {
			return table{}, fmt.Errorf("the disk is not ours: %s", f.reason)
		}
	}
}
