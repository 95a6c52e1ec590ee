package main

import (
	"math/rand/v2"
	"slices"

	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/placement"
	"github.com/berthdev/berth/test/units"
)

// candidates are other policies, which are compared in search of a better one.
var candidates = []policy{
	{"tightest within a fifth, of equals any", anyByScore},
	{"any of up to 5 % more", anyWithin(5)},
	{"first of up to 5 % more", firstWithin(5)},
	{"first of up to 10 % more", firstWithin(10)},
	{"first of the two tightest", firstOfTwo},
	{"fullest disk", fullestDisk},
}

// firstWithin takes the first extent, in the order of nodes and disks, of those that are at most that many percent
// larger than the volume. If there is none it takes the first of the tightest.
func firstWithin(percent int32) func(*cluster, *rand.Rand, int32) (place, bool) {
	return func(c *cluster, _ *rand.Rand, size int32) (place, bool) {
		tightest := c.extents.from(int(size))
		if tightest < 0 {
			return place{}, false
		}
		first := c.extents.buckets[tightest][0]
		for s := c.extents.from(tightest + 1); s >= 0 && s <= int(size*(100+percent)/100); s = c.extents.from(s + 1) {
			first = min(first, c.extents.buckets[s][0])
		}
		return at(first, size), true
	}
}

// firstOfTwo takes, of the two tightest extents in the cluster, the first in the order.
func firstOfTwo(c *cluster, _ *rand.Rand, size int32) (place, bool) {
	tightest := c.extents.from(int(size))
	if tightest < 0 {
		return place{}, false
	}
	first := c.extents.buckets[tightest][0]
	if next := c.extents.from(tightest + 1); next >= 0 && len(c.extents.buckets[tightest]) == 1 {
		first = min(first, c.extents.buckets[next][0])
	}
	return at(first, size), true
}

// anyWithin is firstWithin without an order: it takes a random one of the extents that are equally good.
func anyWithin(percent int32) func(*cluster, *rand.Rand, int32) (place, bool) {
	return func(c *cluster, r *rand.Rand, size int32) (place, bool) {
		tightest := c.extents.from(int(size))
		if tightest < 0 {
			return place{}, false
		}
		equals := slices.Clone(c.extents.buckets[tightest])
		for s := c.extents.from(tightest + 1); s >= 0 && s <= int(size*(100+percent)/100); s = c.extents.from(s + 1) {
			equals = append(equals, c.extents.buckets[s]...)
		}
		return at(equals[r.IntN(len(equals))], size), true
	}
}

// anyByScore takes a random node of those with the highest score. A step of the score is a fifth of the leftover.
func anyByScore(c *cluster, r *rand.Rand, size int32) (place, bool) {
	tightest := c.extents.from(int(size))
	if tightest < 0 {
		return place{}, false
	}
	score := func(length int) int64 { return placement.Score(int64(int(size)-length) * units.GiB) }
	equals := slices.Clone(c.extents.buckets[tightest])
	for s := c.extents.from(tightest + 1); s >= 0 && score(s) == score(tightest); s = c.extents.from(s + 1) {
		equals = append(equals, c.extents.buckets[s]...)
	}
	return at(equals[r.IntN(len(equals))], size), true
}

// at is the start of the extent with that key.
func at(key uint64, size int32) place {
	return place{int32(key >> 32), extent.New(int64(uint32(key))*units.GiB, int64(size)*units.GiB)}
}

// fullestDisk takes the disk with the least free bytes that has room, and its smallest extent that fits.
func fullestDisk(c *cluster, _ *rand.Rand, size int32) (place, bool) {
	if c.firstDisk.max() < size {
		return place{}, false
	}
	want := int64(size) * units.GiB
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
