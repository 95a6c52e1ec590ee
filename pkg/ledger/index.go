package ledger

import (
	"cmp"
	"math"
	"slices"

	"github.com/berthdev/berth/pkg/placement"
)

// kind is what is found by its size.
type kind int

const (
	// extents are free extents, by their length.
	extents kind = iota
	// disks are disks with free space, by how much, the most first.
	disks
	kinds
)

// piece says that a node has at least one free extent, or disk, of this size in bytes.
type piece struct {
	class string
	kind  kind
	// size is below zero with disks, so that the emptiest is the first.
	size int64
	// reach is the largest volume that it could take.
	reach int64
}

func comparePieces(a, b piece) int {
	switch {
	case a.class != b.class:
		return cmp.Compare(a.class, b.class)
	case a.kind != b.kind:
		return cmp.Compare(a.kind, b.kind)
	case a.size != b.size:
		return cmp.Compare(a.size, b.size)
	}
	return cmp.Compare(a.reach, b.reach)
}

// piecesOf are the snapshot's, sorted, of equals one.
func piecesOf(s *Snapshot) []piece {
	count, classes := 0, make([]string, 0, 4)
	for i := range s.Node.Disks {
		count += s.Node.Disks[i].Free.Len()
		if class := s.Node.Disks[i].Class; !slices.Contains(classes, class) {
			classes = append(classes, class)
		}
	}
	slices.Sort(classes)
	pieces := make([]piece, 0, count+len(s.Node.Disks))
	// Extents are sorted as bare numbers: this is most of what a change of a node costs.
	sizes := make([]int64, 0, count)
	for _, class := range classes {
		sizes = sizes[:0]
		for i := range s.Node.Disks {
			if d := &s.Node.Disks[i]; d.Class == class {
				for _, e := range d.Free.All() {
					sizes = append(sizes, e.Len())
				}
			}
		}
		slices.Sort(sizes)
		for _, size := range slices.Compact(sizes) {
			pieces = append(pieces, piece{class, extents, size, size})
		}
		emptiest := len(pieces)
		for i := range s.Node.Disks {
			if d := &s.Node.Disks[i]; d.Class == class && d.Free.Len() > 0 {
				pieces = append(pieces, piece{class, disks, -d.Free.Total(), d.Free.Largest().Len()})
			}
		}
		slices.SortFunc(pieces[emptiest:], comparePieces)
	}
	return slices.Compact(pieces)
}

// isFirst reports whether the offer is the node's first of its kind with that reach: a node
// has many extents and several disks, and counts where it is found first.
func (n *node) isFirst(class string, kind kind, reach int64, o offer) bool {
	from := piece{class: class, kind: kind, size: reach}
	if kind == disks {
		from.size = math.MinInt64
	}
	at, _ := slices.BinarySearchFunc(n.pieces, from, comparePieces)
	for _, p := range n.pieces[at:] {
		if p.reach >= reach {
			return p.size == o.size && p.reach == o.reach
		}
	}
	return false
}

// index finds the nodes that have a free extent or a disk of a class, by its size.
type index map[string]*catalog

// catalog is what there is of one class.
type catalog [kinds]offers

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
			p := before[0]
			of := x[p.class]
			of[p.kind].remove(offer{p.size, p.reach, n})
			if len(of[extents].runs) == 0 && len(of[disks].runs) == 0 {
				delete(x, p.class)
			}
		}
		if order > 0 {
			p := pieces[0]
			if x[p.class] == nil {
				x[p.class] = &catalog{}
			}
			x[p.class][p.kind].insert(offer{p.size, p.reach, n})
		}
		if order <= 0 {
			before = before[1:]
		}
		if order >= 0 {
			pieces = pieces[1:]
		}
	}
}

// Best returns up to k nodes that take all of the requests together, the best first. Fewer
// than k are all there are. Nodes that accept returns false for do not count; it must not
// call the ledger.
//
// The largest request decides, by its policy. With BestFit the nodes come first that have the
// smallest extent for it, with Spread those with the most free bytes on a disk that has room for
// it; equals in the order of placement.Order. For a single request, the first is therefore the
// node that the policy would choose of all.
//
// It is as consistent as any reader: the node may have changed when the caller looks.
func (l *Ledger) Best(requests []placement.Request, k int, accept func(nodeName string) bool) []string {
	if len(requests) == 0 || k <= 0 {
		return nil
	}
	leading := &requests[placement.Leading(requests)]
	l.mu.Lock()
	defer l.mu.Unlock()
	of := l.index[leading.Class]
	if of == nil {
		return nil
	}
	names := make([]string, 0, min(k, 64))
	for n := range of.best(leading) {
		if len(requests) > 1 {
			// A single one fits by its extent.
			if _, err := n.snapshot.Load().Fit(requests); err != nil {
				continue
			}
		}
		if !accept(n.name) {
			continue
		}
		if names = append(names, n.name); len(names) == k {
			break
		}
	}
	return names
}
