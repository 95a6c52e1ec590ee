package main

import (
	"math/bits"
	"slices"
)

// bySize finds things by their size in GiB. It has a sorted bucket of keys for each size, and a bit for each bucket
// that is not empty.
type bySize struct {
	buckets [][]uint64
	used    []uint64
}

func newBySize(largest int) *bySize {
	return &bySize{buckets: make([][]uint64, largest+1), used: make([]uint64, largest/64+1)}
}

func (x *bySize) insert(size int, key uint64) {
	b := x.buckets[size]
	at, _ := slices.BinarySearch(b, key)
	x.buckets[size] = slices.Insert(b, at, key)
	x.used[size/64] |= 1 << (size % 64)
}

func (x *bySize) remove(size int, key uint64) {
	b := x.buckets[size]
	at, there := slices.BinarySearch(b, key)
	if !there {
		panic("the index does not have what is to be removed")
	}
	if b = slices.Delete(b, at, at+1); len(b) == 0 {
		x.used[size/64] &^= 1 << (size % 64)
	}
	x.buckets[size] = b
}

// from is the smallest size in use that is at least this, or -1.
func (x *bySize) from(size int) int {
	if size >= len(x.buckets) {
		return -1
	}
	word := x.used[size/64] >> (size % 64) << (size % 64)
	for i := size / 64; ; {
		if word != 0 {
			return 64*i + bits.TrailingZeros64(word)
		}
		if i++; i == len(x.used) {
			return -1
		}
		word = x.used[i]
	}
}

// upTo is the largest size in use that is at most this, or -1.
func (x *bySize) upTo(size int) int {
	word := x.used[size/64] << (63 - size%64) >> (63 - size%64)
	for i := size / 64; ; {
		if word != 0 {
			return 64*i + 63 - bits.LeadingZeros64(word)
		}
		if i--; i < 0 {
			return -1
		}
		word = x.used[i]
	}
}

// firstOf finds the first of many numbers that is at least a given one: a tree of maxima.
type firstOf struct {
	leaves int
	tree   []int32
}

func newFirstOf(n int) *firstOf {
	leaves := 1
	for leaves < n {
		leaves *= 2
	}
	return &firstOf{leaves: leaves, tree: make([]int32, 2*leaves)}
}

func (x *firstOf) set(i int, value int32) {
	i += x.leaves
	x.tree[i] = value
	for i /= 2; i > 0; i /= 2 {
		x.tree[i] = max(x.tree[2*i], x.tree[2*i+1])
	}
}

// max is the largest of all.
func (x *firstOf) max() int32 { return x.tree[1] }

// atLeast is the index of the first that is at least value, or -1.
func (x *firstOf) atLeast(value int32) int {
	if x.tree[1] < value {
		return -1
	}
	i := 1
	for i < x.leaves {
		i *= 2
		if x.tree[i] < value {
			i++
		}
	}
	return i - x.leaves
}
