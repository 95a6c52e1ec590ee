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

// shelf is a disk's free space while many volumes are placed on it one by one.
type shelf struct {
	disk   int
	free   int64
	apart  bool // holds a volume with Apart
	pieces []piece
}

// piece is a free extent, or the rest of one. The pieces of a shelf are sorted by length and start.
type piece struct{ length, start int64 }

func comparePieces(a, b piece) int {
	return cmp.Or(cmp.Compare(a.length, b.length), cmp.Compare(a.start, b.start))
}

// many is greedy for many volumes. It has the same result, but does not visit every extent for each volume.
func (p *planner) many(budget *Budget) outcome {
	if o := p.shelve(false, budget); o != impossible || p.requests[p.order[0]].Policy == BestFit {
		return o
	}
	// The policy must not decide whether volumes fit, so best fit is tried as well.
	return p.shelve(true, budget)
}

func (p *planner) shelve(tightly bool, budget *Budget) outcome {
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
	shelves, pieces := make([]shelf, 0, disks), make([]piece, 0, extents)
	for d := range p.node.Disks {
		disk := &p.node.Disks[d]
		if disk.Class != p.class {
			continue
		}
		s, from := shelf{disk: d}, len(pieces)
		for i := range disk.Free.Len() {
			e := disk.Free.At(i)
			s.free += e.Len()
			if e.Len() >= smallest {
				pieces = append(pieces, piece{e.Len(), e.Start})
			}
		}
		s.pieces = pieces[from:len(pieces):len(pieces)]
		slices.SortFunc(s.pieces, comparePieces)
		shelves = append(shelves, s)
	}
	for _, i := range p.order {
		r := &p.requests[i]
		s, at := roomOn(shelves, r, r.Policy == Spread && !tightly)
		if s == nil {
			return impossible
		}
		p.places[i] = Assignment{Disk: p.node.Disks[s.disk].ID, Extent: extent.New(s.pieces[at].start, r.Size)}
		s.take(at, r)
	}
	return found
}

// roomOn returns the shelf, and the index of the piece on it, that the request gets. The shelf is nil if none has room.
func roomOn(shelves []shelf, r *Request, spread bool) (on *shelf, at int) {
	for i := range shelves {
		s := &shelves[i]
		if r.Apart && s.apart || len(s.pieces) == 0 || s.pieces[len(s.pieces)-1].length < r.Size {
			continue
		}
		if spread && on != nil && s.free <= on.free {
			continue
		}
		fits, _ := slices.BinarySearchFunc(s.pieces, r.Size, func(p piece, size int64) int { return cmp.Compare(p.length, size) })
		if spread || on == nil || s.pieces[fits].length < on.pieces[at].length {
			on, at = s, fits
		}
	}
	return on, at
}

func (s *shelf) take(at int, r *Request) {
	rest := piece{s.pieces[at].length - r.Size, s.pieces[at].start + r.Size}
	s.pieces = slices.Delete(s.pieces, at, at+1)
	if rest.length > 0 {
		to, _ := slices.BinarySearchFunc(s.pieces, rest, comparePieces)
		s.pieces = slices.Insert(s.pieces, to, rest)
	}
	s.free, s.apart = s.free-r.Size, s.apart || r.Apart
}
