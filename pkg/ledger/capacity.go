package ledger

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/placement"
)

// Capacity is what a node has published. The ledger keeps it, so it must not be changed.
//
// Invariants, checked by Validate:
//  1. Disk ids are not empty and no two are the same.
//  2. Extents are aligned to 1 MiB, not empty, and lie inside their disk.
//  3. On a disk, neither free extents nor allocations overlap each other or themselves.
//  4. Partitions are not empty and no two on the node are the same.
type Capacity struct {
	// Revision grows with every change; it comes from the object's resourceVersion.
	Revision uint64
	Disks    []Disk
	// DeviceMapper is true when the kernel of the node has the device mapper.
	DeviceMapper bool
	// Owned is spec.ownedDisks: the ids of the disks that the node owns. The node itself does not write it.
	Owned []string
}

// Disk is a disk of a node, as published.
type Disk struct {
	ID    string
	Class string
	// Ready is true when the disk takes new volumes.
	Ready bool
	// Size in bytes.
	Size int64
	// SectorSize in bytes. No volume moves to a disk of larger sectors.
	SectorSize  int32
	Free        []extent.Extent
	Allocations []Allocation
}

// Allocation is a volume that the node has published, or a piece of one.
type Allocation struct {
	// Partition is the GUID of the volume's partition.
	Partition string
	Extent    extent.Extent
	// Wiping is true when the volume has no owner any more, and its bytes become free as soon as they are zeroed.
	Wiping bool
	// Mapped is true while the volume is attached by the device mapper.
	Mapped bool
}

// Validate checks the invariants.
func (c *Capacity) Validate() error {
	if p := newPublished(c, nil); p.problem != "" {
		return errors.New(p.problem)
	}
	return nil
}

// validate checks the disk by itself.
func (d *Disk) validate() error {
	// pieces are free extents, and with a partition allocations.
	type piece struct {
		extent.Extent
		partition string
	}
	what := func(p piece) string {
		if p.partition == "" {
			return "free extent"
		}
		return "partition " + p.partition
	}
	pieces := make([]piece, 0, len(d.Free)+len(d.Allocations))
	for _, e := range d.Free {
		pieces = append(pieces, piece{Extent: e})
	}
	for _, a := range d.Allocations {
		if a.Partition == "" {
			return fmt.Errorf("the allocation at %d names no partition", a.Extent.Start)
		}
		pieces = append(pieces, piece{a.Extent, a.Partition})
	}
	slices.SortFunc(pieces, func(a, b piece) int { return cmp.Compare(a.Start, b.Start) })
	for i, p := range pieces {
		switch {
		case p.Start < placement.Alignment || p.Start%placement.Alignment != 0 || p.End%placement.Alignment != 0:
			return fmt.Errorf("%s %v is not aligned to 1 MiB", what(p), p.Extent)
		case p.Empty():
			return fmt.Errorf("%s %v is empty", what(p), p.Extent)
		case p.End > d.Size:
			return fmt.Errorf("%s %v ends behind the disk, which has %d bytes", what(p), p.Extent, d.Size)
		case i > 0 && pieces[i-1].End > p.Start:
			return fmt.Errorf("%s %v overlaps %s %v", what(p), p.Extent, what(pieces[i-1]), pieces[i-1].Extent)
		}
	}
	return nil
}
