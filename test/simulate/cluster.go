package main

import (
	"fmt"

	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/placement"
	"github.com/berthdev/berth/test/units"
)

// class is the class of all disks.
const class = "ssd"

// place is where a volume lies.
type place struct {
	disk   int32 // of the cluster; those of node n are 2n and 2n+1
	extent extent.Extent
}

// cluster is the free space of all disks under one policy, with indexes of it.
type cluster struct {
	nodes []placement.Node
	// extents indexes free extents by length (key: disk, start), and largest disks by their largest extent. free
	// indexes nodes by their free bytes, and freeDisks disks by theirs.
	extents, largest, free, freeDisks *bySize
	firstDisk                         *firstOf // disks by their largest extent
	freeOf                            []int32  // GiB of each disk
	used                              int64    // GiB of all
	// hours is the lifetime of the volume that is being placed. Only an oracle reads it.
	hours float64
}

func newCluster(disks int) *cluster {
	c := &cluster{
		nodes:   make([]placement.Node, disks/disksPerNode),
		extents: newBySize(diskSize), largest: newBySize(diskSize), free: newBySize(disksPerNode * diskSize), freeDisks: newBySize(diskSize),
		firstDisk: newFirstOf(disks), freeOf: make([]int32, disks),
	}
	for n := range c.nodes {
		for d := range disksPerNode {
			c.nodes[n].Disks = append(c.nodes[n].Disks, placement.Disk{
				ID: string(rune('a' + d)), Class: class, Usable: diskSize * units.GiB,
			})
			c.change(int32(n*disksPerNode+d), extent.NewSet(extent.New(0, diskSize*units.GiB)))
		}
	}
	return c
}

func (c *cluster) disk(d int32) *placement.Disk {
	return &c.nodes[d/disksPerNode].Disks[d%disksPerNode]
}

// keyOf is a free extent's key in the index.
func keyOf(d int32, e extent.Extent) uint64 { return uint64(d)<<32 | uint64(e.Start/units.GiB) }

func (c *cluster) freeOfNode(d int32) int {
	first := d / disksPerNode * disksPerNode
	sum := 0
	for i := range int32(disksPerNode) {
		sum += int(c.freeOf[first+i])
	}
	return sum
}

// change replaces the free space of the disk where the two differ.
func (c *cluster) change(d int32, now extent.Set) {
	disk := c.disk(d)
	before := disk.Free
	node := uint64(d / disksPerNode)
	if free := c.freeOfNode(d); free > 0 {
		c.free.remove(free, node)
	}
	c.index(d, before, now, false)
	c.index(d, now, before, true)
	was, is := int(before.Largest().Len()/units.GiB), int(now.Largest().Len()/units.GiB)
	if was != is {
		if was > 0 {
			c.largest.remove(was, uint64(d))
		}
		if is > 0 {
			c.largest.insert(is, uint64(d))
		}
		c.firstDisk.set(int(d), int32(is))
	}
	disk.Free = now
	if c.freeOf[d] > 0 {
		c.freeDisks.remove(int(c.freeOf[d]), uint64(d))
	}
	if c.freeOf[d] = int32(now.Total() / units.GiB); c.freeOf[d] > 0 {
		c.freeDisks.insert(int(c.freeOf[d]), uint64(d))
	}
	if free := c.freeOfNode(d); free > 0 {
		c.free.insert(free, node)
	}
}

// index adds or removes the extents that are in one set and not in the other.
func (c *cluster) index(d int32, these, others extent.Set, add bool) {
	j := 0
	for _, e := range these.All() {
		for j < others.Len() && others.At(j).Start < e.Start {
			j++
		}
		if j < others.Len() && others.At(j) == e {
			continue
		}
		if size := int(e.Len() / units.GiB); add {
			c.extents.insert(size, keyOf(d, e))
		} else {
			c.extents.remove(size, keyOf(d, e))
		}
	}
}

// take puts a volume there. It fails if the policy chose space that is not free.
func (c *cluster) take(p place) error {
	free := c.disk(p.disk).Free
	if p.extent.Empty() || !free.Contains(p.extent) {
		return fmt.Errorf("the policy placed a volume at %v of disk %d, which is not free", p.extent, p.disk)
	}
	c.change(p.disk, free.Remove(p.extent))
	c.used += p.extent.Len() / units.GiB
	return nil
}

func (c *cluster) release(p place) {
	c.change(p.disk, c.disk(p.disk).Free.Add(p.extent))
	c.used -= p.extent.Len() / units.GiB
}

// freeOn is the free space of the node's disks.
func (c *cluster) freeOn(node int32) []extent.Set {
	free := make([]extent.Set, disksPerNode)
	for d := range free {
		free[d] = c.nodes[node].Disks[d].Free
	}
	return free
}

// exchange replaces the pieces of a volume on a node. It fails if what the volume gains is not free.
func (c *cluster) exchange(node int32, before, after []piece) error {
	for d := range disksPerNode {
		was, is := onDisk(before, d), onDisk(after, d)
		gained, lost := is.Subtract(was), was.Subtract(is)
		if gained.Len() == 0 && lost.Len() == 0 {
			continue
		}
		disk := node*disksPerNode + int32(d)
		free := c.disk(disk).Free
		if gained.Subtract(free).Len() > 0 {
			return fmt.Errorf("a volume got %v of disk %d, of which %v is free", gained, disk, free)
		}
		c.change(disk, free.Subtract(gained).Union(lost))
		c.used += (gained.Total() - lost.Total()) / units.GiB
	}
	return nil
}

// onDisk is what the pieces take of that disk of the node.
func onDisk(pieces []piece, disk int) extent.Set {
	var extents []extent.Extent
	for _, p := range pieces {
		if p.disk == disk {
			extents = append(extents, p.extent)
		}
	}
	return extent.NewSet(extents...)
}
