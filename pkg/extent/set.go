package extent

import (
	"cmp"
	"fmt"
	"iter"
	"slices"
	"sort"
)

// Set is a set of bytes, kept as extents. The zero Set is empty and ready to use. A Set never changes: every operation
// returns a new one, so that sets may be shared between goroutines and kept in snapshots.
//
// Invariants, checked by Validate:
//  1. Extents are not empty and do not start below zero.
//  2. They are sorted by start.
//  3. They neither overlap nor touch: neighbors are one extent.
type Set struct {
	extents []Extent
}

// NewSet returns the set of all bytes of the given extents, which may be in any order, overlap and be empty. The slice
// is not kept.
func NewSet(extents ...Extent) Set {
	sorted := make([]Extent, 0, len(extents))
	for _, e := range extents {
		if !e.Empty() {
			sorted = append(sorted, e)
		}
	}
	slices.SortFunc(sorted, func(a, b Extent) int { return cmp.Compare(a.Start, b.Start) })
	merged := sorted[:0]
	for _, e := range sorted {
		if n := len(merged); n > 0 && e.Start <= merged[n-1].End {
			merged[n-1].End = max(merged[n-1].End, e.End)
			continue
		}
		merged = append(merged, e)
	}
	return Set{merged}
}

// Len is the number of extents.
func (s Set) Len() int { return len(s.extents) }

// At returns the i-th extent in order of start.
func (s Set) At(i int) Extent { return s.extents[i] }

// All yields the extents in order of start.
func (s Set) All() iter.Seq2[int, Extent] { return slices.All(s.extents) }

// Total is the number of bytes in the set.
func (s Set) Total() int64 {
	var total int64
	for _, e := range s.extents {
		total += e.Len()
	}
	return total
}

// Largest returns the longest extent, and the first of several. It is empty if the set is empty.
func (s Set) Largest() Extent {
	var largest Extent
	for _, e := range s.extents {
		if e.Len() > largest.Len() {
			largest = e
		}
	}
	return largest
}

// Contains reports whether every byte of e is in the set.
func (s Set) Contains(e Extent) bool {
	if e.Empty() {
		return true
	}
	i := s.search(e.Start)
	return i < len(s.extents) && s.extents[i].Contains(e)
}

// Holding returns the extent of the set that contains every byte of e. It returns false if none does, or if e is empty.
func (s Set) Holding(e Extent) (Extent, bool) {
	i := s.search(e.Start)
	if e.Empty() || i == len(s.extents) || !s.extents[i].Contains(e) {
		return Extent{}, false
	}
	return s.extents[i], true
}

// Overlaps reports whether the set and e share a byte.
func (s Set) Overlaps(e Extent) bool {
	if e.Empty() {
		return false
	}
	i := s.search(e.Start)
	return i < len(s.extents) && s.extents[i].Overlaps(e)
}

// search returns the index of the first extent that ends behind the byte at.
func (s Set) search(at int64) int {
	return sort.Search(len(s.extents), func(i int) bool { return s.extents[i].End > at })
}

// Add returns the set with the bytes of e.
func (s Set) Add(e Extent) Set { return s.Union(Set{[]Extent{e}}) }

// Remove returns the set without the bytes of e.
func (s Set) Remove(e Extent) Set {
	if !s.Overlaps(e) {
		return s
	}
	return s.Subtract(Set{[]Extent{e}})
}

// Union returns the bytes that are in either set.
func (s Set) Union(other Set) Set {
	return NewSet(slices.Concat(s.extents, other.extents)...)
}

// Subtract returns the bytes of s that are not in other.
func (s Set) Subtract(other Set) Set {
	out := make([]Extent, 0, len(s.extents)+len(other.extents))
	i := 0
	for _, e := range s.extents {
		for i < len(other.extents) && other.extents[i].End <= e.Start {
			i++
		}
		// other may hold an extent that reaches into the next one of s, so i stays on it.
		for j := i; j < len(other.extents) && other.extents[j].Start < e.End; j++ {
			if cut := (Extent{e.Start, other.extents[j].Start}); !cut.Empty() {
				out = append(out, cut)
			}
			e.Start = max(e.Start, other.extents[j].End)
		}
		if !e.Empty() {
			out = append(out, e)
		}
	}
	return Set{out}
}

// Intersect returns the bytes that are in both sets.
func (s Set) Intersect(other Set) Set { return s.Subtract(s.Subtract(other)) }

// Equal reports whether both sets hold the same bytes.
func (s Set) Equal(other Set) bool { return slices.Equal(s.extents, other.extents) }

// Validate checks the invariants.
func (s Set) Validate() error {
	for i, e := range s.extents {
		if e.Empty() || e.Start < 0 {
			return fmt.Errorf("extent %v is empty or starts below zero", e)
		}
		if i > 0 && e.Start <= s.extents[i-1].End {
			return fmt.Errorf("extent %v does not lie behind %v", e, s.extents[i-1])
		}
	}
	return nil
}
