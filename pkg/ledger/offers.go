package ledger

import (
	"cmp"
	"iter"
	"math"
	"slices"
	"sort"

	"github.com/berthdev/berth/pkg/placement"
)

// offer is a piece and the node that has it.
type offer struct {
	size, reach int64
	node        *node
}

// compareOffers orders by size, and equals by their nodes.
func compareOffers(a, b offer) int {
	if a.size != b.size {
		return cmp.Compare(a.size, b.size)
	}
	return compareNodes(a, b)
}

// compareNodes orders by the place of the node among its equals.
func compareNodes(a, b offer) int {
	if a.node.order != b.node.order {
		return cmp.Compare(a.node.order, b.node.order)
	}
	return cmp.Or(cmp.Compare(a.node.name, b.node.name), cmp.Compare(a.size, b.size), cmp.Compare(a.reach, b.reach))
}

// maxRun is how many offers one change moves at most.
const maxRun = 256

// offers is a sorted set, cut into runs that are not empty, so that a change moves no more
// than a run of it.
type offers struct {
	runs []run
}

// run is a part of the set, twice: in the order of compareOffers, and in that of compareNodes.
type run struct {
	bySize, byNode []offer
	// reach is the largest of them.
	reach int64
}

// runOf is the run where o is or belongs.
func (s *offers) runOf(o offer) int {
	behind := sort.Search(len(s.runs), func(i int) bool { return compareOffers(s.runs[i].bySize[0], o) > 0 })
	return max(0, behind-1)
}

func (s *offers) insert(o offer) {
	if len(s.runs) == 0 {
		s.runs = append(s.runs, newRun([]offer{o}))
		return
	}
	i := s.runOf(o)
	r := &s.runs[i]
	at, there := slices.BinarySearchFunc(r.bySize, o, compareOffers)
	if there {
		return
	}
	r.bySize = slices.Insert(r.bySize, at, o)
	if len(r.bySize) > maxRun {
		lower, upper := slices.Clone(r.bySize[:maxRun/2]), slices.Clone(r.bySize[maxRun/2:])
		*r = newRun(lower)
		s.runs = slices.Insert(s.runs, i+1, newRun(upper))
		return
	}
	at, _ = slices.BinarySearchFunc(r.byNode, o, compareNodes)
	r.byNode = slices.Insert(r.byNode, at, o)
	r.reach = max(r.reach, o.reach)
}

func newRun(bySize []offer) run {
	r := run{bySize: bySize, byNode: slices.Clone(bySize)}
	slices.SortFunc(r.byNode, compareNodes)
	r.measure()
	return r
}

func (r *run) measure() {
	r.reach = 0
	for i := range r.bySize {
		r.reach = max(r.reach, r.bySize[i].reach)
	}
}

func (s *offers) remove(o offer) {
	if len(s.runs) == 0 {
		return
	}
	i := s.runOf(o)
	r := &s.runs[i]
	at, there := slices.BinarySearchFunc(r.bySize, o, compareOffers)
	if !there {
		return
	}
	if r.bySize = slices.Delete(r.bySize, at, at+1); len(r.bySize) == 0 {
		s.runs = slices.Delete(s.runs, i, i+1)
		return
	}
	at, _ = slices.BinarySearchFunc(r.byNode, o, compareNodes)
	r.byNode = slices.Delete(r.byNode, at, at+1)
	if r.reach == o.reach {
		r.measure()
	}
}

// best yields the nodes that have room for the request, the best first.
func (c *catalog) best(r *placement.Request) iter.Seq[*node] {
	return func(yield func(*node) bool) {
		if r.Policy == placement.Spread {
			for o := range c[disks].reaching(r.Size) {
				if o.node.isFirst(r.Class, disks, r.Size, o) && !yield(o.node) {
					return
				}
			}
			return
		}
		exact := r.Size + min(placement.Slack(r.Size), math.MaxInt64-1-r.Size)
		var last *node
		for o := range c[extents].within(r.Size, exact) {
			if o.node != last && !yield(o.node) {
				return
			}
			last = o.node
		}
		for o := range c[extents].from(exact + 1) {
			if o.node.isFirst(r.Class, extents, r.Size, o) && !yield(o.node) {
				return
			}
		}
	}
}

// from yields the offers that are at least this large, the smallest first.
func (s *offers) from(size int64) iter.Seq[offer] {
	return func(yield func(offer) bool) {
		for i := s.runFrom(size); i < len(s.runs); i++ {
			at := sort.Search(len(s.runs[i].bySize), func(j int) bool { return s.runs[i].bySize[j].size >= size })
			for _, o := range s.runs[i].bySize[at:] {
				if !yield(o) {
					return
				}
			}
		}
	}
}

// runFrom is the first run that may have offers of at least this size.
func (s *offers) runFrom(size int64) int {
	// The run before the first that begins large enough can end with some that are.
	return max(0, sort.Search(len(s.runs), func(i int) bool { return s.runs[i].bySize[0].size >= size })-1)
}

// reaching yields the offers with at least this reach, in their order.
func (s *offers) reaching(reach int64) iter.Seq[offer] {
	return func(yield func(offer) bool) {
		for i := range s.runs {
			if s.runs[i].reach < reach {
				continue
			}
			for _, o := range s.runs[i].bySize {
				if o.reach >= reach && !yield(o) {
					return
				}
			}
		}
	}
}

// within yields the offers from one size to another, in the order of their nodes: it merges the
// runs, which have them so.
func (s *offers) within(least, most int64) iter.Seq[offer] {
	return func(yield func(offer) bool) {
		var buffer [16][]offer
		heads := buffer[:0]
		in := func(rest []offer) []offer {
			for len(rest) > 0 && (rest[0].size < least || rest[0].size > most) {
				rest = rest[1:]
			}
			return rest
		}
		for i := s.runFrom(least); i < len(s.runs) && s.runs[i].bySize[0].size <= most; i++ {
			if rest := in(s.runs[i].byNode); len(rest) > 0 {
				heads = append(heads, rest)
			}
		}
		for i := len(heads)/2 - 1; i >= 0; i-- {
			sink(heads, i)
		}
		for len(heads) > 0 {
			if !yield(heads[0][0]) {
				return
			}
			if heads[0] = in(heads[0][1:]); len(heads[0]) == 0 {
				heads[0] = heads[len(heads)-1]
				heads = heads[:len(heads)-1]
			}
			sink(heads, 0)
		}
	}
}

// sink restores the heap, where the head at i may be behind those below it.
func sink(heads [][]offer, i int) {
	for {
		child := 2*i + 1
		if child >= len(heads) {
			return
		}
		if child+1 < len(heads) && compareNodes(heads[child+1][0], heads[child][0]) < 0 {
			child++
		}
		if compareNodes(heads[i][0], heads[child][0]) <= 0 {
			return
		}
		heads[i], heads[child] = heads[child], heads[i]
		i = child
	}
}
