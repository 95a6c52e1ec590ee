package main

import (
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/units"
)

// pool is the bound: the same disks, none of which is ever fragmented. A volume goes to the disk with the least free
// bytes that suffice.
type pool struct {
	free *bySize // disks by free GiB
	of   []int32
	used int64
}

func newPool(disks int) *pool {
	p := &pool{free: newBySize(diskSize), of: make([]int32, disks)}
	for d := range p.of {
		p.of[d] = diskSize
		p.free.insert(diskSize, uint64(d))
	}
	return p
}

func (p *pool) add(d, size int32) {
	p.free.remove(int(p.of[d]), uint64(d))
	p.of[d] += size
	p.free.insert(int(p.of[d]), uint64(d))
	p.used -= int64(size)
}

func (p *pool) place(size int32) (place, bool) {
	s := p.free.from(int(size))
	if s < 0 {
		return place{}, false
	}
	d := int32(p.free.buckets[s][0])
	p.add(d, -size)
	// The place on the disk does not matter: only the size is needed to free it.
	return place{d, extent.New(0, int64(size)*units.GiB)}, true
}
