package main

import (
	"math/rand/v2"

	"github.com/berthdev/berth/pkg/extent"
)

// candidates are policies that nobody uses, tried in search of a better one.
var candidates = []policy{
	{"tightest extent, of equals the first", firstWithin(0)},
	{"first extent of up to 5 % more", firstWithin(5)},
	{"first extent of up to 10 % more", firstWithin(10)},
	{"fullest disk", fullestDisk},
}

// firstWithin takes, of the extents that are at most so many percent larger than the volume, the first in
// the order of nodes and disks, and without any such the tightest, of equals the first. With 0 it is best
// fit without the steps of the score, which let the scheduler choose at random among nodes that
// fit nearly as tightly. Taking the first leaves what lies behind to grow together.
func firstWithin(percent int) func(*cluster, *rand.Rand, int32) (place, bool) {
	return func(c *cluster, _ *rand.Rand, size int32) (place, bool) {
		tightest := c.extents.from(int(size))
		if tightest < 0 {
			return place{}, false
		}
		first := c.extents.buckets[tightest][0]
		for s := c.extents.from(tightest + 1); s >= 0 && s*100 <= int(size)*(100+percent); s = c.extents.from(s + 1) {
			first = min(first, c.extents.buckets[s][0])
		}
		return at(first, size), true
	}
}

// at is the start of the extent with that key.
func at(key uint64, size int32) place {
	return place{int32(key >> 32), extent.New(int64(uint32(key))*gib, int64(size)*gib)}
}

// fullestDisk takes the disk with the least free bytes that has room, there the smallest extent.
func fullestDisk(c *cluster, _ *rand.Rand, size int32) (place, bool) {
	if c.firstDisk.max() < size {
		return place{}, false
	}
	want := int64(size) * gib
	best := int32(-1)
	for s := c.largest.from(int(size)); s >= 0; s = c.largest.from(s + 1) {
		if best >= 0 && int32(s) > c.freeOf[best] {
			break
		}
		for _, d := range c.largest.buckets[s] {
			if best < 0 || c.freeOf[d] < c.freeOf[best] {
				best = int32(d)
			}
		}
	}
	var tightest extent.Extent
	for _, e := range c.disk(best).Free.All() {
		if e.Len() >= want && (tightest.Empty() || e.Len() < tightest.Len()) {
			tightest = e
		}
	}
	return place{best, extent.New(tightest.Start, want)}, true
}
