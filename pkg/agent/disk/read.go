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
	// Only the fields of a Disk that volume needs.
	reader := &Disk{devices: map[string]string{}, slots: slots}
	s := Snapshot{ID: t.id, Owner: owner, Path: d.path, Size: t.size, SectorSize: t.sector}
	for _, e := range t.entries {
		if !e.isVolume() {
			continue
		}
		if p, ok := attached[e.index]; ok && p.extent == e.extent {
			reader.devices[e.guid] = filepath.Join(filepath.Dir(d.path), p.name)
		}
		if l, ok := loops.found[e.guid]; ok && l.extent == e.extent {
			reader.devices[e.guid] = l.path
		}
		if mapped != nil && mapped.found[e.guid].extent == e.extent {
			reader.devices[e.guid] = mapped.found[e.guid].path
		}
		s.Volumes = append(s.Volumes, reader.volume(e))
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
