package ledger

import (
	"fmt"
	"slices"
	"strings"
	"unique"

	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/placement"
)

// published is a Capacity prepared for subtraction. It never changes.
type published struct {
	// disks are all of the node's, sorted by id, also those that take no volumes. They are kept when problem is set,
	// too: dropping the volumes of an invalid capacity could only free space.
	disks []*publishedDisk
	// wiping are the partitions that become free by themselves.
	wiping map[string]struct{}
	// diskIDs are the ids of the disks, sorted, each once.
	diskIDs []string
	// deviceMapper is true when the kernel of the node has the device mapper.
	deviceMapper bool
	// problem says what is wrong with the capacity.
	problem string
}

// publishedDisk is a disk prepared for subtraction. It never changes. So a publication shares with the one before it
// all disks that are the same in both: most publications change one disk.
type publishedDisk struct {
	Disk
	// volumes are the indices of Allocations, by partition.
	volumes map[string]int
	free    extent.Set
	// wiping are the partitions that become free by themselves.
	wiping []string
	// usable is how many bytes volumes could have if the disk had none.
	usable int64
	// problem says what is wrong with the disk alone.
	problem string
}

// newPublished prepares a capacity. before is what the node published until now, or nil.
func newPublished(c *Capacity, before *published) *published {
	p := &published{disks: make([]*publishedDisk, len(c.Disks)), deviceMapper: c.DeviceMapper}
	for i := range c.Disks {
		d := &c.Disks[i]
		if p.disks[i] = before.disk(d.ID); p.disks[i] == nil || !p.disks[i].equals(d) {
			p.disks[i] = newPublishedDisk(d)
		}
		for _, partition := range p.disks[i].wiping {
			if p.wiping == nil {
				p.wiping = map[string]struct{}{}
			}
			p.wiping[partition] = struct{}{}
		}
	}
	slices.SortStableFunc(p.disks, func(a, b *publishedDisk) int { return strings.Compare(a.ID, b.ID) })
	p.diskIDs = p.sortedIDs(before)
	// A capacity that contradicts itself does not say what is free. So nothing is free on the node until it publishes
	// another one. Its volumes stay recorded.
	p.problem = p.contradiction(before)
	return p
}

// sortedIDs returns the ids of the disks. It shares the slice with the publication before, which usually has the same
// disks.
func (p *published) sortedIDs(before *published) []string {
	if before != nil && slices.EqualFunc(p.disks, before.diskIDs, func(d *publishedDisk, id string) bool { return d.ID == id }) {
		return before.diskIDs
	}
	if len(p.disks) == 0 {
		return nil
	}
	ids := make([]string, len(p.disks))
	for i, d := range p.disks {
		ids[i] = d.ID
	}
	return slices.Compact(ids)
}

// sameDisks reports whether a publication that was prepared after this one has the same disks, and takes pieces on them
// as before.
func (p *published) sameDisks(next *published) bool {
	return p != nil && p.deviceMapper == next.deviceMapper && slices.Equal(p.disks, next.disks)
}

// newPublishedDisk prepares one disk.
func newPublishedDisk(from *Disk) *publishedDisk {
	d := &publishedDisk{Disk: *from, volumes: make(map[string]int, len(from.Allocations)), free: extent.NewSet(from.Free...)}
	if err := d.validate(); err != nil {
		d.problem = err.Error()
	}
	// All disks of a class share one string: searches read it on thousands of nodes.
	d.Class = unique.Make(from.Class).Value()
	d.usable = d.free.Total()
	for i := range d.Allocations {
		v := &d.Allocations[i]
		if _, twice := d.volumes[v.Partition]; twice && d.problem == "" {
			d.problem = fmt.Sprintf("partition %s is listed twice", v.Partition)
		}
		d.volumes[v.Partition] = i
		d.usable += v.Extent.Len()
		if v.Wiping {
			d.wiping = append(d.wiping, v.Partition)
		}
	}
	return d
}

// equals reports whether the disk was prepared from an equal one.
func (d *publishedDisk) equals(other *Disk) bool {
	return d.ID == other.ID && d.Class == other.Class && d.Ready == other.Ready && d.Size == other.Size && d.SectorSize == other.SectorSize &&
		slices.Equal(d.Free, other.Free) && slices.Equal(d.Allocations, other.Allocations)
}

// contradiction says what is wrong with the disks, each by itself and together. Disks that before has, too, are not
// checked again, if before was valid.
func (p *published) contradiction(before *published) string {
	for i, d := range p.disks {
		switch {
		case d.ID == "":
			return "a disk has no id"
		case i > 0 && p.disks[i-1].ID == d.ID:
			return fmt.Sprintf("disk %s is listed twice", d.ID)
		case d.problem != "":
			return fmt.Sprintf("disk %s: %s", d.ID, d.problem)
		}
	}
	if before != nil && before.problem != "" {
		before = nil
	}
	for _, d := range p.disksNotIn(before) {
		was := before.disk(d.ID)
		for i := range d.Allocations {
			partition := d.Allocations[i].Partition
			// If two disks had it before, before was invalid.
			if was.volume(partition) != nil {
				continue
			}
			for _, other := range p.disks {
				if other != d && other.volume(partition) != nil {
					return fmt.Sprintf("disk %s: partition %s is listed twice, also on disk %s", d.ID, partition, other.ID)
				}
			}
		}
	}
	return ""
}

// disk returns the disk with the id, or nil.
func (p *published) disk(id string) *publishedDisk {
	if p == nil {
		return nil
	}
	i, ok := slices.BinarySearchFunc(p.disks, id, func(d *publishedDisk, id string) int { return strings.Compare(d.ID, id) })
	if !ok {
		return nil
	}
	return p.disks[i]
}

// volume returns the disk's allocation of a partition, or nil.
func (d *publishedDisk) volume(partition string) *Allocation {
	if d == nil {
		return nil
	}
	i, ok := d.volumes[partition]
	if !ok {
		return nil
	}
	return &d.Allocations[i]
}

// volume returns the allocation of a partition, nil if there is none, and its disk. guess is the disk to look at first.
func (p *published) volume(partition, guess string) (disk string, v *Allocation) {
	if p == nil {
		return "", nil
	}
	if v := p.disk(guess).volume(partition); v != nil {
		return guess, v
	}
	for _, d := range p.disks {
		if v := d.volume(partition); v != nil {
			return d.ID, v
		}
	}
	return "", nil
}

// changedPartitions returns the partitions whose allocations differ between the two, or that only one of them has,
// sorted. Disks that both share are skipped.
func (p *published) changedPartitions(next *published) []string {
	var changed []string
	for _, d := range p.disksNotIn(next) {
		now := next.disk(d.ID)
		for i := range d.Allocations {
			was := &d.Allocations[i]
			if is := now.volume(was.Partition); is == nil || *is != *was {
				changed = append(changed, was.Partition)
			}
		}
	}
	for _, d := range next.disksNotIn(p) {
		before := p.disk(d.ID)
		for i := range d.Allocations {
			partition := d.Allocations[i].Partition
			if before.volume(partition) != nil {
				continue
			}
			if _, was := p.volume(partition, ""); was == nil {
				changed = append(changed, partition)
			}
		}
	}
	slices.Sort(changed)
	return changed
}

// disksNotIn returns the disks that the other publication has not, or not with the same content.
func (p *published) disksNotIn(other *published) []*publishedDisk {
	if p == nil {
		return nil
	}
	if other == nil {
		return p.disks
	}
	var differ []*publishedDisk
	theirs := other.disks
	for _, d := range p.disks {
		for len(theirs) > 0 && theirs[0] != d && theirs[0].ID < d.ID {
			theirs = theirs[1:]
		}
		if len(theirs) == 0 || theirs[0] != d {
			differ = append(differ, d)
		}
	}
	return differ
}

// unpublishedPart returns the part of a record that the capacity does not show; false if it shows all. Of a volume that
// may grow it is the tail. A volume that is being wiped is no longer the record's: if it has a record, the volume is to
// be made again at the record's place.
func (p *published) unpublishedPart(r Record) (Record, bool) {
	disk, v := p.volume(r.Partition, r.Disk)
	if v == nil || v.Wiping {
		return r, true
	}
	if p.problem != "" || v.Extent.Len() >= r.Extent.Len() {
		return Record{}, false
	}
	r.Disk, r.Extent = disk, extent.Extent{Start: v.Extent.End, End: v.Extent.Start + r.Extent.Len()}
	return r, true
}

// node subtracts the records from what is published. gone are partitions to treat as if they were no longer there, and
// withheld are disks that other nodes own. Records are sorted by disk.
func (p *published) node(records []Record, gone, withheld map[string]struct{}) *placement.Node {
	if p.problem != "" {
		return &placement.Node{}
	}
	node := &placement.Node{Disks: make([]placement.Disk, 0, len(p.disks)), Pieces: p.deviceMapper}
	for _, d := range p.disks {
		if !d.Ready || d.Class == "" {
			continue
		}
		if _, is := withheld[d.ID]; is {
			continue
		}
		free := d.free
		if len(gone) > 0 {
			var back []extent.Extent
			for i := range d.Allocations {
				if _, ok := gone[d.Allocations[i].Partition]; ok {
					back = append(back, d.Allocations[i].Extent)
				}
			}
			if len(back) > 0 {
				free = free.Union(extent.NewSet(back...))
			}
		}
		var taken []extent.Extent
		from, _ := slices.BinarySearchFunc(records, d.ID, func(r Record, id string) int { return strings.Compare(r.Disk, id) })
		for _, r := range records[from:] {
			if r.Disk != d.ID {
				break
			}
			if _, ok := gone[r.Partition]; !ok {
				taken = append(taken, r.Extent)
			}
		}
		if len(taken) > 0 {
			free = free.Subtract(extent.NewSet(taken...))
		}
		node.Disks = append(node.Disks, placement.Disk{ID: d.ID, Class: d.Class, Free: free, Usable: d.usable})
	}
	return node
}
