package main

import (
	"math/rand/v2"

	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/placement"
	"github.com/berthdev/berth/test/units"
)

// policy chooses where in the cluster a volume of that many GiB goes. It returns false if there is no place.
type policy struct {
	name   string
	choose func(*cluster, *rand.Rand, int32) (place, bool)
}

// policies in the order of the tables. The first two are Berth's.
var policies = []policy{
	{"BestFit (Berth)", bestFit},
	{"Spread (Berth)", spread},
	{"first fit", firstFit},
	{"most free (upstream, TopoLVM)", mostFree},
	{"largest extent (Carina)", largestExtent},
	{"random", randomFit},
}

// bestFit takes the node that Berth's ledger returns first, and the place on it that Plan chooses. The nodes are
// numbered in the order in which equal ones are taken.
func bestFit(c *cluster, _ *rand.Rand, size int32) (place, bool) {
	tightest := c.extents.from(int(size))
	if tightest < 0 {
		return place{}, false
	}
	node := int32(c.extents.buckets[tightest][0]>>32) / disksPerNode
	return c.planOn(node, placement.Request{Class: class, Size: int64(size) * units.GiB}), true
}

// spread is the same for the policy Spread: the node of the disk with the most free bytes that has room.
func spread(c *cluster, _ *rand.Rand, size int32) (place, bool) {
	if c.firstDisk.max() < size {
		return place{}, false
	}
	request := placement.Request{Class: class, Size: int64(size) * units.GiB, Policy: placement.Spread}
	for free := c.freeDisks.upTo(diskSize); free >= int(size); free = c.freeDisks.upTo(free - 1) {
		for _, d := range c.freeDisks.buckets[free] {
			if c.firstDisk.tree[c.firstDisk.leaves+int(d)] >= size {
				return c.planOn(int32(d)/disksPerNode, request), true
			}
		}
	}
	return place{}, false
}

// planOn is where Berth puts the volume on a node that has room for it.
func (c *cluster) planOn(node int32, request placement.Request) place {
	var buffer [1]placement.Assignment
	plan, err := placement.Plan(buffer[:0], &c.nodes[node], []placement.Request{request})
	if err != nil {
		panic(err)
	}
	return place{node*disksPerNode + int32(plan[0].Disk[0]-'a'), plan[0].Extent}
}

// firstFit takes the first extent that is large enough, on the first such disk of the first such node.
func firstFit(c *cluster, _ *rand.Rand, size int32) (place, bool) {
	d := c.firstDisk.atLeast(size)
	if d < 0 {
		return place{}, false
	}
	return c.firstOn(int32(d), size), true
}

// firstOn takes the first extent of a disk that is large enough.
func (c *cluster) firstOn(d, size int32) place {
	want := int64(size) * units.GiB
	for _, e := range c.disk(d).Free.All() {
		if e.Len() >= want {
			return place{d, extent.New(e.Start, want)}
		}
	}
	panic("the disk has no extent that is large enough")
}

// mostFree is how scores by free capacity work. It takes the node with the most free bytes where the volume fits, there
// the disk with the most, and there the first extent.
func mostFree(c *cluster, _ *rand.Rand, size int32) (place, bool) {
	if c.firstDisk.max() < size {
		return place{}, false
	}
	for free := c.free.upTo(disksPerNode * diskSize); free >= int(size); free = c.free.upTo(free - 1) {
		for _, node := range c.free.buckets[free] {
			best := int32(-1)
			for d := int32(node) * disksPerNode; d < int32(node+1)*disksPerNode; d++ {
				if c.firstDisk.tree[c.firstDisk.leaves+int(d)] >= size && (best < 0 || c.freeOf[d] > c.freeOf[best]) {
					best = d
				}
			}
			if best >= 0 {
				return c.firstOn(best, size), true
			}
		}
	}
	return place{}, false
}

// largestExtent knows only the largest extent of each disk, and spreads: it takes the largest of all.
func largestExtent(c *cluster, _ *rand.Rand, size int32) (place, bool) {
	s := c.largest.upTo(diskSize)
	if s < int(size) {
		return place{}, false
	}
	d := int32(c.largest.buckets[s][0])
	return place{d, extent.New(c.disk(d).Free.Largest().Start, int64(size)*units.GiB)}, true
}

// randomFit takes any disk where the volume fits, and any extent of it that is large enough.
func randomFit(c *cluster, r *rand.Rand, size int32) (place, bool) {
	if c.firstDisk.max() < size {
		return place{}, false
	}
	disks := int32(len(c.freeOf))
	d := r.Int32N(disks)
	for tries := 0; c.firstDisk.tree[c.firstDisk.leaves+int(d)] < size; tries++ {
		if tries < 200 {
			d = r.Int32N(disks)
		} else {
			d = (d + 1) % disks
		}
	}
	want := int64(size) * units.GiB
	free := c.disk(d).Free
	fitting := 0
	for _, e := range free.All() {
		if e.Len() >= want {
			fitting++
		}
	}
	nth := r.IntN(fitting)
	for _, e := range free.All() {
		if e.Len() < want {
			continue
		}
		if nth == 0 {
			return place{d, extent.New(e.Start, want)}, true
		}
		nth--
	}
	panic("the disk has no extent that is large enough")
}
