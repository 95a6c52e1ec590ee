package main

import (
	"math/rand/v2"
	"slices"

	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/placement"
)

// policy chooses where in the cluster a volume of so many GiB goes; false if nowhere.
type policy struct {
	name   string
	choose func(*cluster, *rand.Rand, int32) (place, bool)
}

// policies in the order of the tables. The first is Berth's.
var policies = []policy{
	{"BestFit (Berth)", bestFit},
	{"first fit", firstFit},
	{"most free (upstream, TopoLVM)", mostFree},
	{"largest extent (Carina)", largestExtent},
	{"random", randomFit},
}

// As in the scheduler's plugin: of more than narrowFrom nodes it scores the narrowTo that the volume fits
// most tightly.
const (
	narrowFrom = 100
	narrowTo   = 50
)

// bestFit is what Berth's scheduler does: of the nodes that the volume fits most tightly,
// the one with the best score, of equals any; on it, the place that Plan gives.
func bestFit(c *cluster, r *rand.Rand, size int32) (place, bool) {
	limit := narrowTo
	if len(c.nodes) <= narrowFrom {
		limit = narrowFrom
	}
	var nodes [narrowFrom]int32
	found := nodes[:0]
	var best int64 = -1
	request := []placement.Request{{Class: class, Size: int64(size) * gib}}
	var buffer [1]placement.Assignment
candidates:
	for s := c.extents.from(int(size)); s >= 0; s = c.extents.from(s + 1) {
		for _, key := range c.extents.buckets[s] {
			node := int32(key>>32) / disksPerNode
			if slices.Contains(found, node) {
				continue
			}
			plan, err := placement.Plan(buffer[:0], &c.nodes[node], request)
			if err != nil {
				panic(err)
			}
			// They come from the tightest on, so the score only falls.
			score := placement.Score(&c.nodes[node], request, plan)
			if score < best || len(found) == limit {
				break candidates
			}
			best = score
			found = append(found, node)
		}
	}
	if len(found) == 0 {
		return place{}, false
	}
	return c.planOn(found[r.IntN(len(found))], request), true
}

// planOn is where Berth puts the volume on a node that has room for it.
func (c *cluster) planOn(node int32, request []placement.Request) place {
	var buffer [1]placement.Assignment
	plan, err := placement.Plan(buffer[:0], &c.nodes[node], request)
	if err != nil {
		panic(err)
	}
	return place{node*disksPerNode + int32(plan[0].Disk[0]-'a'), plan[0].Extent}
}

// firstFit takes the first extent that is large enough, of the first disk of the first node.
func firstFit(c *cluster, _ *rand.Rand, size int32) (place, bool) {
	d := c.firstDisk.atLeast(size)
	if d < 0 {
		return place{}, false
	}
	return c.firstOn(int32(d), size), true
}

// firstOn takes the first extent of a disk that is large enough.
func (c *cluster) firstOn(d, size int32) place {
	want := int64(size) * gib
	for _, e := range c.disk(d).Free.All() {
		if e.Len() >= want {
			return place{d, extent.New(e.Start, want)}
		}
	}
	panic("the disk has no extent that is large enough")
}

// mostFree is what scores by free capacity come to: of the nodes where the volume fits, the one with
// the most free bytes, there the disk with the most, there the first extent.
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

// largestExtent knows of each disk its largest extent only, and spreads: it cuts from the largest of all.
func largestExtent(c *cluster, _ *rand.Rand, size int32) (place, bool) {
	s := c.largest.upTo(diskSize)
	if s < int(size) {
		return place{}, false
	}
	d := int32(c.largest.buckets[s][0])
	return place{d, extent.New(c.disk(d).Free.Largest().Start, int64(size)*gib)}, true
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
	want := int64(size) * gib
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
