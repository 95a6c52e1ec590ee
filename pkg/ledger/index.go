package ledger

import (
	"cmp"
	"iter"
	"slices"
	"sort"

	"github.com/berthdev/berth/pkg/placement"
)

// piece says that a node has at least one free extent of this size in bytes.
type piece struct {
	class string
	size  int64
}

func comparePieces(a, b piece) int {
	return cmp.Or(cmp.Compare(a.class, b.class), cmp.Compare(a.size, b.size))
}

// piecesOf are the snapshot's free extents, sorted, each class and size once.
func piecesOf(s *Snapshot) []piece {
	var pieces []piece
	for i := range s.Node.Disks {
		d := &s.Node.Disks[i]
		for _, e := range d.Free.All() {
			pieces = append(pieces, piece{d.Class, e.Len()})
		}
	}
	slices.SortFunc(pieces, comparePieces)
	return slices.Compact(pieces)
}

// index finds the nodes that have a free extent of a class, by its size.
type index map[string]*offers

// update replaces what the node offered by what it offers now. Most of it is the same,
// mostly: a change of a node is one extent less and another instead.
func (x index) update(n *node, pieces []piece) {
	before := n.pieces
	n.pieces = pieces
	for len(before) > 0 || len(pieces) > 0 {
		var order int
		switch {
		case len(before) == 0:
			order = 1
		case len(pieces) == 0:
			order = -1
		default:
			order = comparePieces(before[0], pieces[0])
		}
		if order < 0 {
			x[before[0].class].remove(offer{before[0].size, n})
			if len(x[before[0].class].runs) == 0 {
				delete(x, before[0].class)
			}
		}
		if order > 0 {
			if x[pieces[0].class] == nil {
				x[pieces[0].class] = &offers{}
			}
			x[pieces[0].class].insert(offer{pieces[0].size, n})
		}
		if order <= 0 {
			before = before[1:]
		}
		if order >= 0 {
			pieces = pieces[1:]
		}
	}
}

// offer is a free extent's size and the node that has it.
type offer struct {
	size int64
	node *node
}

// compareOffers orders by size. Among equals it is a hash of the name that decides: names
// often tell the zone or the rack, and the first hundred of a thousand equal nodes shall not
// all be of one.
func compareOffers(a, b offer) int {
	return cmp.Or(cmp.Compare(a.size, b.size), cmp.Compare(a.node.order, b.node.order), cmp.Compare(a.node.name, b.node.name))
}

// maxRun is how many offers one change moves at most.
const maxRun = 256

// offers is a sorted set, cut into runs that are not empty, so that a change moves no more
// than a run of it.
type offers struct {
	runs [][]offer
}

// runOf is the run where o is or belongs.
func (s *offers) runOf(o offer) int {
	behind := sort.Search(len(s.runs), func(i int) bool { return compareOffers(s.runs[i][0], o) > 0 })
	return max(0, behind-1)
}

func (s *offers) insert(o offer) {
	if len(s.runs) == 0 {
		s.runs = append(s.runs, []offer{o})
		return
	}
	r := s.runOf(o)
	at, there := slices.BinarySearchFunc(s.runs[r], o, compareOffers)
	if there {
		return
	}
	run := slices.Insert(s.runs[r], at, o)
	if len(run) > maxRun {
		s.runs = slices.Insert(s.runs, r+1, slices.Clone(run[maxRun/2:]))
		run = slices.Delete(run, maxRun/2, len(run))
	}
	s.runs[r] = run
}

func (s *offers) remove(o offer) {
	if len(s.runs) == 0 {
		return
	}
	r := s.runOf(o)
	at, there := slices.BinarySearchFunc(s.runs[r], o, compareOffers)
	if !there {
		return
	}
	if s.runs[r] = slices.Delete(s.runs[r], at, at+1); len(s.runs[r]) == 0 {
		s.runs = slices.Delete(s.runs, r, r+1)
	}
}

// from yields the offers that are at least this large, the smallest first.
func (s *offers) from(size int64) iter.Seq[offer] {
	return func(yield func(offer) bool) {
		smaller := func(o offer, size int64) int {
			if o.size < size {
				return -1
			}
			return 1
		}
		// The run before the first that begins large enough can end with some that are.
		first := sort.Search(len(s.runs), func(i int) bool { return s.runs[i][0].size >= size })
		for r := max(0, first-1); r < len(s.runs); r++ {
			at, _ := slices.BinarySearchFunc(s.runs[r], size, smaller)
			for _, o := range s.runs[r][at:] {
				if !yield(o) {
					return
				}
			}
		}
	}
}

// Tightest returns up to k nodes that take all of the requests together: those whose free
// extents are the smallest that hold the largest request. Fewer than k are all there are.
// Nodes that accept returns false for do not count; it must not call the ledger.
//
// It is as consistent as any reader: the node may have changed when the caller looks.
func (l *Ledger) Tightest(requests []placement.Request, k int, accept func(nodeName string) bool) []string {
	if len(requests) == 0 {
		return nil
	}
	largest := slices.MaxFunc(requests, func(a, b placement.Request) int {
		return cmp.Or(cmp.Compare(a.Size, b.Size), cmp.Compare(a.Class, b.Class))
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	all := l.index[largest.Class]
	if all == nil {
		return nil
	}
	var names []string
	// A node has many extents, and is asked once.
	asked := map[*node]struct{}{}
	for o := range all.from(largest.Size) {
		if len(names) >= k {
			break
		}
		if _, again := asked[o.node]; again {
			continue
		}
		asked[o.node] = struct{}{}
		if _, err := o.node.snapshot.Load().Fit(requests); err == nil && accept(o.node.name) {
			names = append(names, o.node.name)
		}
	}
	return names
}
