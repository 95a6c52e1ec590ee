package ledger

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/placement"
)

// Capacity is what a node has published.
//
// Invariants, held by Validate:
//  1. Disk ids are not empty and no two are the same.
//  2. Extents are aligned to 1 MiB, not empty, and lie inside their disk.
//  3. On a disk, neither free extents nor allocations overlap each other or themselves.
//  4. Partitions are not empty and no two on the node are the same.
type Capacity struct {
	// Revision grows with every change; it comes from the object's resourceVersion.
	Revision uint64
	Disks    []Disk
}

// Disk is a disk of a node, as published.
type Disk struct {
	ID    string
	Class string
	// Ready is true when the disk takes new volumes.
	Ready bool
	// Size in bytes.
	Size        int64
	Free        []extent.Extent
	Allocations []Allocation
}

// Allocation is a volume that the node has published.
type Allocation struct {
	// Partition is the GUID of the volume's partition.
	Partition string
	Extent    extent.Extent
	// Wiping is true when nobody uses the volume any more, and its bytes become free
	// as soon as they are zeroed.
	Wiping bool
}

// Validate checks the invariants.
func (c *Capacity) Validate() error {
	ids := make(map[string]struct{}, len(c.Disks))
	partitions := map[string]struct{}{}
	for i := range c.Disks {
		d := &c.Disks[i]
		if d.ID == "" {
			return fmt.Errorf("disk %d has no id", i)
		}
		if _, twice := ids[d.ID]; twice {
			return fmt.Errorf("disk %s is listed twice", d.ID)
		}
		ids[d.ID] = struct{}{}
		if err := d.validate(partitions); err != nil {
			return fmt.Errorf("disk %s: %w", d.ID, err)
		}
	}
	return nil
}

// validate checks one disk and adds its partitions to those of the node.
func (d *Disk) validate(partitions map[string]struct{}) error {
	type piece struct {
		extent.Extent
		what string
	}
	pieces := make([]piece, 0, len(d.Free)+len(d.Allocations))
	for _, e := range d.Free {
		pieces = append(pieces, piece{e, "free extent"})
	}
	for _, a := range d.Allocations {
		if a.Partition == "" {
			return fmt.Errorf("the allocation at %d names no partition", a.Extent.Start)
		}
		if _, twice := partitions[a.Partition]; twice {
			return fmt.Errorf("partition %s is listed twice", a.Partition)
		}
		partitions[a.Partition] = struct{}{}
		pieces = append(pieces, piece{a.Extent, "partition " + a.Partition})
	}
	slices.SortFunc(pieces, func(a, b piece) int { return cmp.Compare(a.Start, b.Start) })
	for i, p := range pieces {
		switch {
		case p.Start < placement.Alignment || p.Start%placement.Alignment != 0 || p.End%placement.Alignment != 0:
			return fmt.Errorf("%s %v is not aligned to 1 MiB", p.what, p.Extent)
		case p.Empty():
			return fmt.Errorf("%s %v is empty", p.what, p.Extent)
		case p.End > d.Size:
			return fmt.Errorf("%s %v ends behind the disk, which has %d bytes", p.what, p.Extent, d.Size)
		case i > 0 && pieces[i-1].End > p.Start:
			return fmt.Errorf("%s %v overlaps %s %v", p.what, p.Extent, pieces[i-1].what, pieces[i-1].Extent)
		}
	}
	return nil
}

// published is a Capacity made ready for subtraction. It never changes.
type published struct {
	// disks are those that take volumes, sorted by id; none when problem is set.
	disks []publishedDisk
	// places are all of the node's volumes by partition, on whatever disk, also when problem
	// is set: to believe less of an invalid capacity could only free space.
	places map[string]publishedPlace
	// wiping are those that become free by themselves.
	wiping map[string]struct{}
	// problem says what is wrong with the capacity.
	problem string
}

type publishedPlace struct {
	disk   string
	extent extent.Extent
	wiping bool
}

type publishedDisk struct {
	id, class string
	free      extent.Set
	volumes   []Allocation
	// usable is what volumes could have if there were none, in bytes.
	usable int64
}

func publish(c *Capacity) *published {
	p := &published{places: map[string]publishedPlace{}, wiping: map[string]struct{}{}}
	for i := range c.Disks {
		for _, a := range c.Disks[i].Allocations {
			p.places[a.Partition] = publishedPlace{disk: c.Disks[i].ID, extent: a.Extent, wiping: a.Wiping}
			if a.Wiping {
				p.wiping[a.Partition] = struct{}{}
			}
		}
	}
	// A capacity that contradicts itself says nothing about what is free, so the
	// node offers nothing until it is put right. Its volumes stay where they are.
	if err := c.Validate(); err != nil {
		p.problem = err.Error()
		return p
	}
	for i := range c.Disks {
		d := &c.Disks[i]
		if !d.Ready || d.Class == "" {
			continue
		}
		disk := publishedDisk{id: d.ID, class: d.Class, free: extent.NewSet(d.Free...), volumes: slices.Clone(d.Allocations)}
		disk.usable = disk.free.Total()
		for _, v := range disk.volumes {
			disk.usable += v.Extent.Len()
		}
		p.disks = append(p.disks, disk)
	}
	slices.SortFunc(p.disks, func(a, b publishedDisk) int { return cmp.Compare(a.id, b.id) })
	return p
}

// missing is the part of a record that the capacity does not show; false if there is none.
// A volume that may grow is shown, and its tail is not. A volume that is being wiped is not
// the record's any more: whoever has a record of it all the same is to get it anew, in the
// record's place.
func (p *published) missing(r Record) (Record, bool) {
	place, shown := p.places[r.Partition]
	if !shown || place.wiping {
		return r, true
	}
	if p.problem != "" || place.extent.Len() >= r.Extent.Len() {
		return Record{}, false
	}
	r.Disk, r.Extent = place.disk, extent.Extent{Start: place.extent.End, End: place.extent.Start + r.Extent.Len()}
	return r, true
}

// node subtracts the records from what is published. gone are partitions to treat as
// if they were no longer there. Records are sorted by disk.
func (p *published) node(records []Record, gone map[string]struct{}) *placement.Node {
	node := &placement.Node{Disks: make([]placement.Disk, len(p.disks))}
	for i := range p.disks {
		d := &p.disks[i]
		free := d.free
		if len(gone) > 0 {
			var back []extent.Extent
			for _, v := range d.volumes {
				if _, ok := gone[v.Partition]; ok {
					back = append(back, v.Extent)
				}
			}
			if len(back) > 0 {
				free = free.Union(extent.NewSet(back...))
			}
		}
		var taken []extent.Extent
		from, _ := slices.BinarySearchFunc(records, d.id, func(r Record, id string) int { return cmp.Compare(r.Disk, id) })
		for _, r := range records[from:] {
			if r.Disk != d.id {
				break
			}
			if _, ok := gone[r.Partition]; !ok {
				taken = append(taken, r.Extent)
			}
		}
		if len(taken) > 0 {
			free = free.Subtract(extent.NewSet(taken...))
		}
		node.Disks[i] = placement.Disk{ID: d.id, Class: d.class, Free: free, Usable: d.usable}
	}
	return node
}
