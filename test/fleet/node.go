package fleet

import (
	"fmt"
	"slices"
	"strings"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/units"
)

// node is the disks of a node, as its agent knows them.
//
// Invariants:
//  1. A disk's free extents and its volumes share no byte, and together they are its initial free space.
type node struct {
	disks []disk
	// where has the disk of each volume.
	where map[string]int
}

type disk struct {
	// empty is the disk without volumes.
	empty   diskv1alpha1.Disk
	free    extent.Set
	volumes map[string]diskv1alpha1.Allocation
}

func newNode(i int) *node {
	n := &node{where: map[string]int{}}
	for _, d := range disksOf(i) {
		var free []extent.Extent
		for _, e := range d.Free {
			free = append(free, extent.New(e.Start, e.Length))
		}
		n.disks = append(n.disks, disk{empty: d, free: extent.NewSet(free...), volumes: map[string]diskv1alpha1.Allocation{}})
	}
	return n
}

// hold makes the volume where it was placed. It returns an error if that place is not free.
func (n *node) hold(volume, owner string, place diskv1alpha1.Place) error {
	if _, ok := n.where[volume]; ok {
		return nil
	}
	at := slices.IndexFunc(n.disks, func(d disk) bool { return d.empty.ID == place.Disk })
	if at < 0 {
		return fmt.Errorf("volume %s of %s was placed on disk %s, which the node does not have", volume, owner, place.Disk)
	}
	d := &n.disks[at]
	e := extent.New(place.Start, place.Length)
	if !d.free.Contains(e) {
		return fmt.Errorf("volume %s of %s was placed at %v of disk %s, which is not free: %s", volume, owner, e, place.Disk, d.rivals(e))
	}
	d.free = d.free.Remove(e)
	d.volumes[volume] = diskv1alpha1.Allocation{
		Volume: volume, Partition: diskv1alpha1.PartitionID(volume), Extent: place.Extent, Phase: diskv1alpha1.PhaseFormatted, Owner: owner,
	}
	n.where[volume] = at
	return nil
}

// rivals names the volumes in the extent.
func (d *disk) rivals(e extent.Extent) string {
	var rivals []string
	for _, a := range d.volumes {
		if extent.New(a.Start, a.Length).Overlaps(e) {
			rivals = append(rivals, a.Volume+" of "+a.Owner)
		}
	}
	if len(rivals) == 0 {
		return "no volume can be there"
	}
	slices.Sort(rivals)
	return "there is " + strings.Join(rivals, ", ")
}

// release frees the volume's extent as if it was wiped, and reports whether there was one.
func (n *node) release(volume string) bool {
	at, ok := n.where[volume]
	if !ok {
		return false
	}
	d := &n.disks[at]
	a := d.volumes[volume]
	d.free = d.free.Add(extent.New(a.Start, a.Length))
	delete(d.volumes, volume)
	delete(n.where, volume)
	return true
}

// status is the status that the agent publishes.
func (n *node) status() diskv1alpha1.NodeDiskCapacityStatus {
	s := diskv1alpha1.NodeDiskCapacityStatus{}
	free, size, largest := int64(0), int64(0), int64(0)
	for _, d := range n.disks {
		out := d.empty
		out.Free, out.Allocations = nil, nil
		for _, e := range d.free.All() {
			out.Free = append(out.Free, diskv1alpha1.Extent{Start: e.Start, Length: e.Len()})
		}
		for _, a := range d.volumes {
			out.Allocations = append(out.Allocations, a)
		}
		slices.SortFunc(out.Allocations, func(a, b diskv1alpha1.Allocation) int { return int((a.Start - b.Start) / diskv1alpha1.Alignment) })
		s.Disks = append(s.Disks, out)
		free, size, largest = free+d.free.Total(), size+out.Size, max(largest, d.free.Largest().Len())
	}
	s.Summary = diskv1alpha1.Summary{
		Disks: int32(len(n.disks)), Volumes: int32(len(n.where)),
		Size: inGi(size), Free: inGi(free), Largest: inGi(largest),
	}
	return s
}

func inGi(bytes int64) string { return fmt.Sprintf("%s=%dGi", Class, bytes/units.GiB) }
