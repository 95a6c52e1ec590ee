// Package space checks that the state of a disk accounts for all bytes of the disk. Only tests use it.
package space

import (
	"fmt"

	"github.com/berthdev/berth/pkg/extent"
)

// alignment of volumes and free extents, in bytes.
const alignment = 1 << 20

// Volume is a volume on a disk, or a piece of one.
type Volume struct {
	Partition string
	Index     int
	Extent    extent.Extent
	// Further is true for a further piece of a volume. It stands behind its first piece, wherever it lies.
	Further bool
}

// Disk is the space of a disk. Its invariants are those of Snapshot in package pkg/agent/disk, whose tests import this
// package.
type Disk struct {
	Size     int64
	Overhead int64
	Free     extent.Set
	Volumes  []Volume
}

// Validate checks the invariants.
func (d Disk) Validate() error {
	taken := d.Free
	sum := d.Overhead + d.Free.Total()
	for i, v := range d.Volumes {
		if !aligned(v.Extent) || taken.Overlaps(v.Extent) {
			return fmt.Errorf("volume %s at %v is not aligned or not alone", v.Partition, v.Extent)
		}
		taken = taken.Add(v.Extent)
		sum += v.Extent.Len()
		for _, other := range d.Volumes[:i] {
			if other.Partition == v.Partition || other.Index == v.Index || !v.Further && !other.Further && other.Extent.Start > v.Extent.Start {
				return fmt.Errorf("volumes %s and %s are the same, or out of order", other.Partition, v.Partition)
			}
		}
	}
	for _, e := range d.Free.All() {
		if !aligned(e) {
			return fmt.Errorf("free extent %v is not aligned", e)
		}
	}
	if sum != d.Size {
		return fmt.Errorf("overhead, free space and volumes are %d bytes, the disk has %d", sum, d.Size)
	}
	return nil
}

func aligned(e extent.Extent) bool {
	return !e.Empty() && e.Start%alignment == 0 && e.End%alignment == 0
}
