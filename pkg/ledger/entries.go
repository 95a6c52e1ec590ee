package ledger

import (
	"cmp"
	"iter"
	"math"
	"slices"
	"sort"

	"github.com/berthdev/berth/pkg/placement"
)

// indexEntry is an entry of the index: a freeSize, and the node that has it.
type indexEntry struct {
	size, largest int64
	node          *node
}

// compareEntries orders by size, and equal sizes by the rank of their nodes.
func compareEntries(a, b indexEntry) int {
	if a.size != b.size {
		return cmp.Compare(a.size, b.size)
	}
	return cmp.Or(cmp.Compare(a.node.rank, b.node.rank), cmp.Compare(a.node.name, b.node.name), cmp.Compare(a.largest, b.largest))
}

// maxChunk is how many entries one change moves at most.
const maxChunk = 256

// sortedEntries is a sorted set, cut into chunks that are not empty. So a change moves no more than one chunk.
type sortedEntries struct {
	chunks []chunk
}

// chunk is a part of the set.
type chunk struct {
	entries []indexEntry
	// largest is the highest value of largest in the entries.
	largest int64
}

// chunkOf returns the chunk that has e, or to which it belongs.
func (s *sortedEntries) chunkOf(e indexEntry) int {
	behind := sort.Search(len(s.chunks), func(i int) bool { return compareEntries(s.chunks[i].entries[0], e) > 0 })
	return max(0, behind-1)
}

// insert adds an entry, unless it is there, and splits its chunk if that becomes too long.
func (s *sortedEntries) insert(e indexEntry) {
	if len(s.chunks) == 0 {
		s.chunks = append(s.chunks, newChunk(e))
		return
	}
	i := s.chunkOf(e)
	c := &s.chunks[i]
	at, there := slices.BinarySearchFunc(c.entries, e, compareEntries)
	if there {
		return
	}
	c.entries = slices.Insert(c.entries, at, e)
	c.largest = max(c.largest, e.largest)
	if len(c.entries) > maxChunk {
		upper := newChunk(c.entries[maxChunk/2:]...)
		c.entries = slices.Delete(c.entries, maxChunk/2, len(c.entries))
		c.updateLargest()
		s.chunks = slices.Insert(s.chunks, i+1, upper)
	}
}

func newChunk(entries ...indexEntry) chunk {
	c := chunk{entries: slices.Clone(entries)}
	c.updateLargest()
	return c
}

func (c *chunk) updateLargest() {
	c.largest = 0
	for i := range c.entries {
		c.largest = max(c.largest, c.entries[i].largest)
	}
}

// remove removes an entry, and its chunk if that becomes empty.
func (s *sortedEntries) remove(e indexEntry) {
	if len(s.chunks) == 0 {
		return
	}
	i := s.chunkOf(e)
	c := &s.chunks[i]
	at, there := slices.BinarySearchFunc(c.entries, e, compareEntries)
	if !there {
		return
	}
	if c.entries = slices.Delete(c.entries, at, at+1); len(c.entries) == 0 {
		s.chunks = slices.Delete(s.chunks, i, i+1)
		return
	}
	if c.largest == e.largest {
		c.updateLargest()
	}
}

// best yields the entries that have room for the request, the best first, after the given one if there is one. The bool
// reports whether the entry is the first of its node.
func (c *classIndex) best(r *placement.Request, after *indexEntry) iter.Seq2[indexEntry, bool] {
	of, from := byLength, indexEntry{size: r.Size}
	if r.Policy == placement.Spread {
		of, from = byDiskFree, indexEntry{size: math.MinInt64}
	}
	if after != nil {
		from = *after
	}
	return func(yield func(indexEntry, bool) bool) {
		for e := range c[of].from(from, r.Size) {
			free := findClass(e.node.snapshot.Load().free, r.Class)
			if !yield(e, free != nil && free.isFirst(of, r.Size, e)) {
				return
			}
		}
	}
}

// bestInPieces is best for nodes that have no extent for the request, but as many bytes on a disk, and take pieces.
func (c *classIndex) bestInPieces(r *placement.Request, after *indexEntry) iter.Seq2[indexEntry, bool] {
	from := indexEntry{size: math.MinInt64}
	if after != nil {
		from = *after
	}
	return func(yield func(indexEntry, bool) bool) {
		for e := range c[byDiskFree].from(from, 0) {
			if -e.size < r.Size {
				return
			}
			s := e.node.snapshot.Load()
			free := findClass(s.free, r.Class)
			if !yield(e, s.Node.Pieces && free != nil && free.largest < r.Size && free.isFirst(byDiskFree, 0, e)) {
				return
			}
		}
	}
}

// from yields the entries with room for at least this size, in order. If the given entry has a node, it begins after
// that entry, else at its size.
func (s *sortedEntries) from(from indexEntry, size int64) iter.Seq[indexEntry] {
	before := func(e indexEntry) bool { return e.size < from.size }
	if from.node != nil {
		before = func(e indexEntry) bool { return compareEntries(e, from) <= 0 }
	}
	return func(yield func(indexEntry) bool) {
		// The chunk before the first that begins behind the entry can end with some that qualify.
		first := sort.Search(len(s.chunks), func(i int) bool { return !before(s.chunks[i].entries[0]) })
		for _, c := range s.chunks[max(0, first-1):] {
			if c.largest < size {
				continue
			}
			at := sort.Search(len(c.entries), func(i int) bool { return !before(c.entries[i]) })
			for _, e := range c.entries[at:] {
				if e.largest >= size && !yield(e) {
					return
				}
			}
		}
	}
}
