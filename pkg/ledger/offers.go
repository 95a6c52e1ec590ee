package ledger

import (
	"cmp"
	"iter"
	"math"
	"slices"
	"sort"

	"github.com/berthdev/berth/pkg/placement"
)

// offer is an entry of the index: a piece, and the node that has it.
type offer struct {
	size, reach int64
	node        *node
}

// compareOffers orders by size, and equal sizes by the order of their nodes.
func compareOffers(a, b offer) int {
	if a.size != b.size {
		return cmp.Compare(a.size, b.size)
	}
	return cmp.Or(cmp.Compare(a.node.order, b.node.order), cmp.Compare(a.node.name, b.node.name), cmp.Compare(a.reach, b.reach))
}

// maxRun is how many offers one change moves at most.
const maxRun = 256

// offers is a sorted set, cut into runs that are not empty. So a change moves no more than one run.
type offers struct {
	runs []run
}

// run is a part of the set.
type run struct {
	offers []offer
	// reach is the largest of its offers'.
	reach int64
}

// runOf returns the run that has o, or to which it belongs.
func (s *offers) runOf(o offer) int {
	behind := sort.Search(len(s.runs), func(i int) bool { return compareOffers(s.runs[i].offers[0], o) > 0 })
	return max(0, behind-1)
}

func (s *offers) insert(o offer) {
	if len(s.runs) == 0 {
		s.runs = append(s.runs, newRun(o))
		return
	}
	i := s.runOf(o)
	r := &s.runs[i]
	at, there := slices.BinarySearchFunc(r.offers, o, compareOffers)
	if there {
		return
	}
	r.offers = slices.Insert(r.offers, at, o)
	r.reach = max(r.reach, o.reach)
	if len(r.offers) > maxRun {
		upper := newRun(r.offers[maxRun/2:]...)
		r.offers = slices.Delete(r.offers, maxRun/2, len(r.offers))
		r.measure()
		s.runs = slices.Insert(s.runs, i+1, upper)
	}
}

func newRun(offers ...offer) run {
	r := run{offers: slices.Clone(offers)}
	r.measure()
	return r
}

func (r *run) measure() {
	r.reach = 0
	for i := range r.offers {
		r.reach = max(r.reach, r.offers[i].reach)
	}
}

func (s *offers) remove(o offer) {
	if len(s.runs) == 0 {
		return
	}
	i := s.runOf(o)
	r := &s.runs[i]
	at, there := slices.BinarySearchFunc(r.offers, o, compareOffers)
	if !there {
		return
	}
	if r.offers = slices.Delete(r.offers, at, at+1); len(r.offers) == 0 {
		s.runs = slices.Delete(s.runs, i, i+1)
		return
	}
	if r.reach == o.reach {
		r.measure()
	}
}

// best yields the offers that have room for the request, the best first, after the given one if there is one. The bool
// reports whether the offer is the first of its node.
func (c *catalog) best(r *placement.Request, after *offer) iter.Seq2[offer, bool] {
	of, from := extents, offer{size: r.Size}
	if r.Policy == placement.Spread {
		of, from = disks, offer{size: math.MinInt64}
	}
	if after != nil {
		from = *after
	}
	return func(yield func(offer, bool) bool) {
		for o := range c[of].from(from, r.Size) {
			stock := find(o.node.snapshot.Load().stocks, r.Class)
			if !yield(o, stock != nil && stock.isFirst(of, r.Size, o)) {
				return
			}
		}
	}
}

// from yields the offers of at least this reach, in order. If the given offer has a node, it begins after that offer,
// else at its size.
func (s *offers) from(from offer, reach int64) iter.Seq[offer] {
	before := func(o offer) bool { return o.size < from.size }
	if from.node != nil {
		before = func(o offer) bool { return compareOffers(o, from) <= 0 }
	}
	return func(yield func(offer) bool) {
		// The run before the first that begins behind the offer can end with some that qualify.
		first := sort.Search(len(s.runs), func(i int) bool { return !before(s.runs[i].offers[0]) })
		for _, r := range s.runs[max(0, first-1):] {
			if r.reach < reach {
				continue
			}
			at := sort.Search(len(r.offers), func(i int) bool { return !before(r.offers[i]) })
			for _, o := range r.offers[at:] {
				if o.reach >= reach && !yield(o) {
					return
				}
			}
		}
	}
}
