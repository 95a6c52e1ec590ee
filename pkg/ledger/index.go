package ledger

import (
	"cmp"
	"iter"
	"slices"

	"github.com/berthdev/berth/pkg/placement"
)

// ordering is one of the two orders in which the free space of a class is indexed.
type ordering int

const (
	// byLength has free extents, by their length: for BestFit.
	byLength ordering = iota
	// byDiskFree has disks with free space, by the sum of it, the most first: for Spread.
	byDiskFree
	numOrderings
)

// freeSize is the size of at least one free extent, or disk, of a node, in bytes.
type freeSize struct {
	// size is negative for disks, so that the emptiest disk is the first.
	size int64
	// largest is the largest volume that fits there.
	largest int64
}

func compareFreeSizes(a, b freeSize) int {
	if a.size != b.size {
		return cmp.Compare(a.size, b.size)
	}
	return cmp.Compare(a.largest, b.largest)
}

// classFree is what a node has free of one class.
type classFree struct {
	class string
	// largest free extent, in bytes.
	largest int64
	// sizes are sorted, and each occurs once.
	sizes [numOrderings][]freeSize
	// lengthsHash is equal for nodes with the same free lengths.
	lengthsHash uint64
}

// freeByClass returns what the node has free, by class. Classes of which nothing is free are left out.
func freeByClass(n *placement.Node) []classFree {
	var free []classFree
	for i := range n.Disks {
		// The first disk of a class handles the others, which come after it.
		if d := &n.Disks[i]; d.Free.Len() > 0 && findClass(free, d.Class) == nil {
			c := newClassFree(d.Class, n.Disks[i:])
			c.lengthsHash = lengthsHashOf(n.Disks, d.Class)
			free = append(free, c)
		}
	}
	return free
}

// newClassFree is what is free on those of the disks that are of the class.
func newClassFree(class string, disks []placement.Disk) classFree {
	// The lengths are sorted as plain numbers, because sorting is most of the cost of a node's change.
	var buffer [64]int64
	lengths := buffer[:0]
	emptiest := make([]freeSize, 0, len(disks))
	for i := range disks {
		d := &disks[i]
		if d.Class != class || d.Free.Len() == 0 {
			continue
		}
		var free, largest int64
		for _, e := range d.Free.All() {
			lengths = append(lengths, e.Len())
			free, largest = free+e.Len(), max(largest, e.Len())
		}
		emptiest = append(emptiest, freeSize{-free, largest})
	}
	slices.Sort(lengths)
	lengths = slices.Compact(lengths)
	slices.SortFunc(emptiest, compareFreeSizes)
	c := classFree{class: class}
	c.sizes[byDiskFree] = slices.Compact(emptiest)
	c.sizes[byLength] = make([]freeSize, len(lengths))
	for i, length := range lengths {
		c.sizes[byLength][i], c.largest = freeSize{length, length}, length
	}
	return c
}

// findClass returns what is free of the class, or nil. A node has a few classes.
func findClass(free []classFree, class string) *classFree {
	for i := range free {
		if free[i].class == class {
			return &free[i]
		}
	}
	return nil
}

// mostOnDisk is how many bytes are free on the emptiest disk.
func (c *classFree) mostOnDisk() int64 {
	if len(c.sizes[byDiskFree]) == 0 {
		return 0
	}
	return -c.sizes[byDiskFree][0].size
}

// isFirst reports whether the entry is the node's first in that order with room for the size. A node has many extents
// and several disks, and is returned once, where it is found first.
func (c *classFree) isFirst(by ordering, size int64, e indexEntry) bool {
	sizes := c.sizes[by]
	if by == byLength {
		at, _ := slices.BinarySearchFunc(sizes, freeSize{size, size}, compareFreeSizes)
		sizes = sizes[at:]
	}
	for _, first := range sizes {
		if first.largest >= size {
			return first.size == e.size && first.largest == e.largest
		}
	}
	return false
}

// index finds the nodes that have a free extent or a disk of a class, by its size.
type index map[string]*classIndex

// classIndex has the entries of one class, in each order.
type classIndex [numOrderings]sortedEntries

// update replaces the node's entries from before by those from after.
func (x index) update(n *node, before, after []classFree) {
	for i := range before {
		class := before[i].class
		if now := findClass(after, class); now != nil {
			x[class].update(n, &before[i], now)
			continue
		}
		if x[class].update(n, &before[i], &classFree{}); len(x[class][byLength].chunks) == 0 {
			delete(x, class)
		}
	}
	for i := range after {
		class := after[i].class
		if findClass(before, class) != nil {
			continue
		}
		if x[class] == nil {
			x[class] = &classIndex{}
		}
		x[class].update(n, &classFree{}, &after[i])
	}
}

// update changes only the entries that differ. A change of a node is usually one extent less and another one more.
func (c *classIndex) update(n *node, before, after *classFree) {
	for by := range c {
		was, is := before.sizes[by], after.sizes[by]
		for len(was) > 0 || len(is) > 0 {
			var order int
			switch {
			case len(was) == 0:
				order = 1
			case len(is) == 0:
				order = -1
			default:
				order = compareFreeSizes(was[0], is[0])
			}
			if order < 0 {
				c[by].remove(indexEntry{was[0].size, was[0].largest, n})
			}
			if order > 0 {
				c[by].insert(indexEntry{is[0].size, is[0].largest, n})
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
	// visitsPerLock is how many entries are visited under the lock at once, which takes some hundred microseconds.
	visitsPerLock = 1000
	// maxVisits is how many entries are visited in all.
	maxVisits = 100_000
)

// BestNodes yields the nodes that have room for the largest of the requests, the best first. It stops after maxVisits
// entries: then some nodes may be missing. The lock is held only to find the next of them.
//
// The largest request decides, by its policy. With BestFit the nodes come first that have the smallest extent for it.
// With Spread those come first that have the most free bytes on a disk with room for it. Equal nodes come in the order
// of placement.NodeRank. For a single request, the first node is therefore the one that the policy chooses of all
// nodes.
//
// If the largest request may have pieces, nodes follow on which only the sum of a disk's extents suffices. Those with
// the emptiest disks come first. Whether the request fits there, its plan says.
//
// A node may have changed by the time the caller reads its snapshot.
func (l *Ledger) BestNodes(requests []placement.Request) iter.Seq2[string, *Snapshot] {
	return func(yield func(string, *Snapshot) bool) {
		if len(requests) == 0 {
			return
		}
		largest := &requests[placement.LargestRequest(requests)]
		find, inPieces := (*classIndex).best, false
		var last *indexEntry
		for visits := 0; visits < maxVisits; visits += visitsPerLock {
			nodes, next := l.bestNodes(find, largest, last)
			for _, n := range nodes {
				if !yield(n.name, n.snapshot.Load()) {
					return
				}
			}
			if last = next; next != nil {
				continue
			}
			if inPieces || !largest.Splits() {
				return
			}
			find, inPieces = (*classIndex).bestInPieces, true
		}
	}
}

// bestNodes returns the next nodes that find yields after the entry, or the first ones. next is the entry after which
// to go on, nil at the end.
func (l *Ledger) bestNodes(find func(*classIndex, *placement.Request, *indexEntry) iter.Seq2[indexEntry, bool], largest *placement.Request, after *indexEntry) (nodes []*node, next *indexEntry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	of := l.index[largest.Class]
	if of == nil {
		return nil, nil
	}
	visits := 0
	for e, first := range find(of, largest, after) {
		if first {
			nodes = append(nodes, e.node)
		}
		if visits++; visits == visitsPerLock || after == nil && len(nodes) == firstBatch {
			// A pointer to e itself would allocate one in each step.
			last := e
			return nodes, &last
		}
	}
	return nodes, nil
}

// firstBatch is how many nodes the first batch has: usually they are enough.
const firstBatch = 64
