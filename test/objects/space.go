package objects

import (
	"fmt"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

// CheckSpace returns an error unless a disk's overhead, free and allocated space add up to the disk, and nothing
// overlaps.
func CheckSpace(d *diskv1alpha1.Disk) error {
	total := d.Overhead
	all := append([]diskv1alpha1.Extent(nil), d.Free...)
	for _, a := range d.Allocations {
		all = append(all, a.Extent)
	}
	for i, x := range all {
		total += x.Length
		for _, y := range all[:i] {
			if x.Start < y.Start+y.Length && y.Start < x.Start+x.Length {
				return fmt.Errorf("disk %s: %v overlaps %v", d.Device, x, y)
			}
		}
	}
	if total != d.Size {
		return fmt.Errorf("disk %s: overhead, free and allocated are %d of %d bytes", d.Device, total, d.Size)
	}
	return nil
}
