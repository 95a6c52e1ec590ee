package main

import (
	"math/rand/v2"
	"slices"

	"github.com/berthdev/berth/pkg/extent"
)

// ideas are policies that use more than a volume's size and the free extents, or that choose the end of an extent.
var ideas = []policy{
	{"256 GiB and more at the ends of extents", largeAtEnd},
	{"less than 256 GiB on disks of their own", bySizeClass},
	{"less than an hour on disks of their own (oracle)", byLifetime(1, 5)},
	{"less than a week on disks of their own (oracle)", byLifetime(7*24, 60)},
}

// largeAtEnd takes the tightest extent like BestFit, and places large volumes at its end. Small volumes then have small
// ones as neighbors.
func largeAtEnd(c *cluster, r *rand.Rand, size int32) (place, bool) {
	p, ok := bestFit(c, r, size)
	if !ok || size < 256 {
		return p, ok
	}
	for _, e := range c.disk(p.disk).Free.All() {
		if e.Contains(p.extent) {
			p.extent = extent.New(e.End-p.extent.Len(), p.extent.Len())
		}
	}
	return p, true
}

// bySizeClass keeps small volumes on the first 30 % of the disks, about their part of all bytes, and the others off
// them, as long as either finds room there.
func bySizeClass(c *cluster, r *rand.Rand, size int32) (place, bool) {
	disks := len(c.freeOf)
	return c.onPart(r, size, disks*30/100, size < 256)
}

// byLifetime keeps volumes with at most that lifetime on a part of the disks, as long as they find room there.
func byLifetime(hours float64, percent int) func(*cluster, *rand.Rand, int32) (place, bool) {
	return func(c *cluster, r *rand.Rand, size int32) (place, bool) {
		return c.onPart(r, size, len(c.freeOf)*percent/100, c.hours < hours)
	}
}

// onPart takes the tightest extent on the first so many disks, or on the others; on any disk if there is none.
func (c *cluster) onPart(r *rand.Rand, size int32, first int, onFirst bool) (place, bool) {
	from, to := 0, first
	if !onFirst {
		from, to = first, len(c.freeOf)
	}
	for s := c.extents.from(int(size)); s >= 0; s = c.extents.from(s + 1) {
		bucket := c.extents.buckets[s]
		i, _ := slices.BinarySearch(bucket, uint64(from)<<32)
		if i < len(bucket) && bucket[i] < uint64(to)<<32 {
			return at(bucket[i], size), true
		}
	}
	return bestFit(c, r, size)
}
