package ledger

import (
	"cmp"
	"iter"
	"math"
	"slices"
	"sort"

	"github.com/berthdev/berth/pkg/placement"
)

// indexEntry is an entry of the index: a free size, and the node that has it.
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
	// largest is the largest of its entries'.
	largest int64
}

// chunkOf returns the chunk that has o, or to which it belongs.
func (s *sortedEntries) chunkOf(o indexEntry) int {
	behind := sort.Search(len(s.chunks), func(i int) bool { return compareEntries(s.chunks[i].entries[0], o) > 0 })
	return max(0, behind-1)
}

func (s *sortedEntries) insert(o indexEntry) {
	if len(s.chunks) == 0 {
		s.chunks = append(s.chunks, newChunk(o))
		return
	}
	i := s.chunkOf(o)
	r := &s.chunks[i]
	at, there := slices.BinarySearchFunc(r.entries, o, compareEntries)
	if there {
		return
	}
	r.entries = slices.Insert(r.entries, at, o)
	r.largest = max(r.largest, o.largest)
	if len(r.entries) > maxChunk {
		upper := newChunk(r.entries[maxChunk/2:]...)
		r.entries = slices.Delete(r.entries, maxChunk/2, len(r.entries))
		r.updateLargest()
		s.chunks = slices.Insert(s.chunks, i+1, upper)
	}
}

func newChunk(offers ...indexEntry) chunk {
	r := chunk{entries: slices.Clone(offers)}
	r.updateLargest()
	return r
}

func (r *chunk) updateLargest() {
	r.largest = 0
	for i := range r.entries {
		r.largest = max(r.largest, r.entries[i].largest)
	}
}

func (s *sortedEntries) remove(o indexEntry) {
	if len(s.chunks) == 0 {
		return
	}
	i := s.chunkOf(o)
	r := &s.chunks[i]
	at, there := slices.BinarySearchFunc(r.entries, o, compareEntries)
	if !there {
		return
	}
	if r.entries = slices.Delete(r.entries, at, at+1); len(r.entries) == 0 {
		s.chunks = slices.Delete(s.chunks, i, i+1)
		return
	}
	if r.largest == o.largest {
		r.updateLargest()
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
		for o := range c[of].from(from, r.Size) {
			free := findClass(o.node.snapshot.Load().free, r.Class)
			if !yield(o, free != nil && free.isFirst(of, r.Size, o)) {
				return
			}
		}
	}
}

// from yields the entries with room for at least this size, in order. If the given entry has a node, it begins after
// that entry, else at its size.
func (s *sortedEntries) from(from indexEntry, size int64) iter.Seq[indexEntry] {
	before := func(o indexEntry) bool { return o.size < from.size }
	if from.node != nil {
		before = func(o indexEntry) bool { return compareEntries(o, from) <= 0 }
	}
	return func(yield func(indexEntry) bool) {
		// The chunk before the first that begins behind the entry can end with some that qualify.
		first := sort.Search(len(s.chunks), func(i int) bool { return !before(s.chunks[i].entries[0]) })
		for _, r := range s.chunks[max(0, first-1):] {
			if r.largest < size {
				continue
			}
			at := sort.Search(len(r.entries), func(i int) bool { return !before(r.entries[i]) })
			for _, o := range r.entries[at:] {
				if o.largest >= size && !yield(o) {
					return
				}
			}
		}
	}
}
