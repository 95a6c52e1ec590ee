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
	attached, err := d.partitions()
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
	loops, err := d.findLoops()
	if err != nil {
		return Snapshot{}, err
	}
	mapped, err := d.findMapped()
	if err != nil {
		return Snapshot{}, err
	}
	if mapped != nil {
		defer mapped.mapper.Close()
	}
	linear, err := d.findLinear(loops)
	if err != nil {
		return Snapshot{}, err
	}
	if linear != nil {
		defer linear.mapper.Close()
	}
	// Only the fields of a Disk that volume needs.
	reader := &Disk{devices: map[string]string{}, slots: slots, linear: linear}
	if mapped != nil && len(mapped.found) > 0 {
		reader.mapped = mapped
	}
	s := Snapshot{ID: t.id, Owner: owner, Path: d.path, Size: t.size, SectorSize: t.sector}
	volumes, orphans := t.sets()
	for _, e := range orphans {
		volumes = append(volumes, set{first: e})
	}
	for _, v := range volumes {
		guid, at := v.first.guid, v.first.extent
		switch {
		case linear.shows(guid):
			if slices.Equal(linear.places(guid), v.extents()) {
				reader.devices[guid] = linear.found[guid].path
			}
		case reader.mapped != nil:
			if slices.Equal(mapped.found[guid].extents(), v.extents()) {
				reader.devices[guid] = mapped.found[guid].path
			}
		case len(v.pieces) > 0:
		case attached[v.first.index].extent == at:
			reader.devices[guid] = filepath.Join(filepath.Dir(d.path), attached[v.first.index].name)
		case loops.found[guid].extent == at:
			reader.devices[guid] = loops.found[guid].path
		}
		s.Volumes = append(s.Volumes, reader.volume(v))
	}
	slices.SortFunc(s.Volumes, func(a, b Volume) int { return cmp.Compare(a.Extent.Start, b.Extent.Start) })
	return s, nil
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
