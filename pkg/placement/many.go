package placement

import (
	"cmp"
	"slices"
	"sync/atomic"

	"github.com/berthdev/berth/pkg/extent"
)

// Budget bounds the steps of several plans together, for pods with more than eight volumes. Concurrent plans may share
// it. With a nil Budget each plan is bounded only by itself.
type Budget struct{ left atomic.Int64 }

// NewBudget is a budget of that many steps, which take some nanoseconds each.
func NewBudget(steps int64) *Budget {
	b := &Budget{}
	b.left.Store(steps)
	return b
}

// take reports whether that many steps are left. Once there were too few, all later plans give up.
func (b *Budget) take(steps int) bool { return b == nil || b.left.Add(-int64(steps)) >= 0 }

// Spent reports whether plans give up because the budget is spent.
func (b *Budget) Spent() bool { return b != nil && b.left.Load() < 0 }

// diskSpace is a disk's free space while many volumes are placed on it one by one.
type diskSpace struct {
	disk    int
	free    int64
	apart   bool // holds a volume with Apart
	extents []freeExtent
}

// freeExtent is a free extent, or the rest of one. Those of a disk are sorted by length and start.
type freeExtent struct{ length, start int64 }

func compareFreeExtents(a, b freeExtent) int {
	return cmp.Or(cmp.Compare(a.length, b.length), cmp.Compare(a.start, b.start))
}

// greedyMany is greedy for many volumes. It has the same result, but does not visit every extent for each volume.
func (p *planner) greedyMany(budget *Budget) outcome {
	if o := p.greedyByDisk(false, budget); o != impossible || p.requests[p.order[0]].Policy == BestFit {
		return o
	}
	// The policy must not decide whether volumes fit, so best fit is tried as well.
	return p.greedyByDisk(true, budget)
}

// greedyByDisk places each volume on the disk, and in the free extent, that its policy prefers. With tightly it is best
// fit for all.
func (p *planner) greedyByDisk(tightly bool, budget *Budget) outcome {
	smallest := p.requests[p.order[len(p.order)-1]].Size
	extents, disks := 0, 0
	for d := range p.node.Disks {
		if p.node.Disks[d].Class == p.class {
			extents, disks = extents+p.node.Disks[d].Free.Len(), disks+1
		}
	}
	if !budget.take(4*extents + 2*disks*len(p.order)) {
		return gaveUp
	}
	spaces, pieces := make([]diskSpace, 0, disks), make([]freeExtent, 0, extents)
	for d := range p.node.Disks {
		disk := &p.node.Disks[d]
		if disk.Class != p.class {
			continue
		}
		s, from := diskSpace{disk: d}, len(pieces)
		for i := range disk.Free.Len() {
			e := disk.Free.At(i)
			s.free += e.Len()
			if e.Len() >= smallest {
				pieces = append(pieces, freeExtent{e.Len(), e.Start})
			}
		}
		s.extents = pieces[from:len(pieces):len(pieces)]
		slices.SortFunc(s.extents, compareFreeExtents)
		spaces = append(spaces, s)
	}
	for _, i := range p.order {
		r := &p.requests[i]
		s, at := findDisk(spaces, r, r.Policy == Spread && !tightly)
		if s == nil {
			return impossible
		}
		p.places[i] = Assignment{Disk: p.node.Disks[s.disk].ID, Extent: extent.New(s.extents[at].start, r.Size)}
		s.take(at, r)
	}
	return found
}

// findDisk returns the disk, and the index of the free extent on it, that the request gets. The disk is nil if none has
// room.
func findDisk(spaces []diskSpace, r *Request, spread bool) (on *diskSpace, at int) {
	for i := range spaces {
		s := &spaces[i]
		if r.Apart && s.apart || len(s.extents) == 0 || s.extents[len(s.extents)-1].length < r.Size {
			continue
		}
		if spread && on != nil && s.free <= on.free {
			continue
		}
		fits, _ := slices.BinarySearchFunc(s.extents, r.Size, func(p freeExtent, size int64) int { return cmp.Compare(p.length, size) })
		if spread || on == nil || s.extents[fits].length < on.extents[at].length {
			on, at = s, fits
		}
	}
	return on, at
}

// take places the request at the beginning of a free extent.
func (s *diskSpace) take(at int, r *Request) {
	rest := freeExtent{s.extents[at].length - r.Size, s.extents[at].start + r.Size}
	s.extents = slices.Delete(s.extents, at, at+1)
	if rest.length > 0 {
		to, _ := slices.BinarySearchFunc(s.extents, rest, compareFreeExtents)
		s.extents = slices.Insert(s.extents, to, rest)
	}
	s.free, s.apart = s.free-r.Size, s.apart || r.Apart
}
