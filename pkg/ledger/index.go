package ledger

import (
	"cmp"
	"iter"
	"slices"

	"github.com/berthdev/berth/pkg/placement"
)

// kind is by what the entries of a class are ordered.
type kind int

const (
	// extents are free extents, by their length: for BestFit.
	extents kind = iota
	// disks are disks with free space, by the sum of it, the most first: for Spread.
	disks
	kinds
)

// piece is the size of at least one free extent, or disk, of a node, in bytes.
type piece struct {
	// size is negative for disks, so that the emptiest disk is the first.
	size int64
	// reach is the largest volume that fits there.
	reach int64
}

func comparePieces(a, b piece) int {
	if a.size != b.size {
		return cmp.Compare(a.size, b.size)
	}
	return cmp.Compare(a.reach, b.reach)
}

// stock is what a node has free of one class.
type stock struct {
	class string
	// largest free extent, in bytes.
	largest int64
	// pieces are sorted, and each occurs once.
	pieces [kinds][]piece
	// shape is equal for nodes with the same free lengths.
	shape uint64
}

// stocksOf returns what the node has free, by class. Classes of which nothing is free are left out.
func stocksOf(n *placement.Node) []stock {
	var stocks []stock
	for i := range n.Disks {
		// The first disk of a class handles the others, which come after it.
		if d := &n.Disks[i]; d.Free.Len() > 0 && find(stocks, d.Class) == nil {
			s := newStock(d.Class, n.Disks[i:])
			s.shape = shapeOf(n.Disks, d.Class)
			stocks = append(stocks, s)
		}
	}
	return stocks
}

// newStock is what the disks of the class have free, among others.
func newStock(class string, of []placement.Disk) stock {
	// Extents are sorted as plain numbers: this is most of the cost of a node's change.
	var buffer [64]int64
	lengths := buffer[:0]
	emptiest := make([]piece, 0, len(of))
	for i := range of {
		d := &of[i]
		if d.Class != class || d.Free.Len() == 0 {
			continue
		}
		var free, largest int64
		for _, e := range d.Free.All() {
			lengths = append(lengths, e.Len())
			free, largest = free+e.Len(), max(largest, e.Len())
		}
		emptiest = append(emptiest, piece{-free, largest})
	}
	slices.Sort(lengths)
	lengths = slices.Compact(lengths)
	slices.SortFunc(emptiest, comparePieces)
	s := stock{class: class}
	s.pieces[disks] = slices.Compact(emptiest)
	s.pieces[extents] = make([]piece, len(lengths))
	for i, length := range lengths {
		s.pieces[extents][i], s.largest = piece{length, length}, length
	}
	return s
}

// find returns the stock of the class, or nil. A node has a few classes.
func find(stocks []stock, class string) *stock {
	for i := range stocks {
		if stocks[i].class == class {
			return &stocks[i]
		}
	}
	return nil
}

// isFirst reports whether the offer is the node's first of its kind with that reach. A node has many extents and
// several disks, and is returned once, where it is found first.
func (s *stock) isFirst(kind kind, reach int64, o offer) bool {
	pieces := s.pieces[kind]
	if kind == extents {
		at, _ := slices.BinarySearchFunc(pieces, piece{reach, reach}, comparePieces)
		pieces = pieces[at:]
	}
	for _, p := range pieces {
		if p.reach >= reach {
			return p.size == o.size && p.reach == o.reach
		}
	}
	return false
}

// index finds the nodes that have a free extent or a disk of a class, by its size.
type index map[string]*catalog

// catalog has the entries of one class, in each order.
type catalog [kinds]offers

// update replaces the node's entries from before by those from after.
func (x index) update(n *node, before, after []stock) {
	for i := range before {
		class := before[i].class
		if s := find(after, class); s != nil {
			x[class].update(n, &before[i], s)
			continue
		}
		if x[class].update(n, &before[i], &stock{}); len(x[class][extents].runs) == 0 {
			delete(x, class)
		}
	}
	for i := range after {
		class := after[i].class
		if find(before, class) != nil {
			continue
		}
		if x[class] == nil {
			x[class] = &catalog{}
		}
		x[class].update(n, &stock{}, &after[i])
	}
}

// update changes only the entries that differ. A change of a node is usually one extent less and another one more.
func (c *catalog) update(n *node, before, after *stock) {
	for kind := range c {
		was, is := before.pieces[kind], after.pieces[kind]
		for len(was) > 0 || len(is) > 0 {
			var order int
			switch {
			case len(was) == 0:
				order = 1
			case len(is) == 0:
				order = -1
			default:
				order = comparePieces(was[0], is[0])
			}
			if order < 0 {
				c[kind].remove(offer{was[0].size, was[0].reach, n})
			}
			if order > 0 {
				c[kind].insert(offer{is[0].size, is[0].reach, n})
			}
			if order <= 0 {
				was = was[1:]
			}
			if order >= 0 {
				is = is[1:]
			}
		}
	}
}

const (
	// maxVisits is how many offers are visited under the lock at once, which takes some hundred microseconds.
	maxVisits = 1000
	// maxWalk is how many offers are visited in all.
	maxWalk = 100_000
)

// Nearest yields the nodes that have room for the largest of the requests, the best first. It stops after maxWalk
// offers: then some nodes may be missing. The lock is held only to find the next of them.
//
// The largest request decides, by its policy. With BestFit the nodes come first that have the smallest extent for it.
// With Spread those come first that have the most free bytes on a disk with room for it. Equal nodes come in the order
// of placement.NodeRank. For a single request, the first node is therefore the one that the policy chooses of all nodes.
//
// A node may have changed by the time the caller reads its snapshot.
func (l *Ledger) Nearest(requests []placement.Request) iter.Seq2[string, *Snapshot] {
	return func(yield func(string, *Snapshot) bool) {
		if len(requests) == 0 {
			return
		}
		leading := &requests[placement.LargestRequest(requests)]
		var last *offer
		for visits := 0; visits < maxWalk; visits += maxVisits {
			nodes, next := l.nearest(leading, last)
			for _, n := range nodes {
				if !yield(n.name, n.snapshot.Load()) {
					return
				}
			}
			if last = next; next == nil {
				return
			}
		}
	}
}

// nearest returns the next nodes after the offer, or the first ones. next is the offer after which to go on, nil at the
// end.
func (l *Ledger) nearest(leading *placement.Request, after *offer) (nodes []*node, next *offer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	of := l.index[leading.Class]
	if of == nil {
		return nil, nil
	}
	visits := 0
	for o, first := range of.best(leading, after) {
		if first {
			nodes = append(nodes, o.node)
		}
		if visits++; visits == maxVisits || after == nil && len(nodes) == firstNodes {
			// Of o itself, each step would allocate one.
			last := o
			return nodes, &last
		}
	}
	return nodes, nil
}

// firstNodes is how many nodes the first batch has: usually they are enough.
const firstNodes = 64
