package main

import (
	"math"
	"testing"

	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/units"
)

// pieceWitness is a store that checks another one after every step, with its own list of the volumes' pieces.
type pieceWitness struct {
	t *testing.T
	*pieceStore
	used    []extent.Set // by disk
	refused int
}

// fewestOn is the smallest number of free extents of the node, or of one disk of it, that hold the size, by trying all
// choices.
func (w *pieceWitness) fewestOn(node int32, size int32) int {
	var runs []int
	fewest := math.MaxInt
	for d := range int32(disksPerNode) {
		if w.onOneDisk {
			runs = nil
		}
		for _, e := range w.disk(node*disksPerNode + d).Free.All() {
			runs = append(runs, int(e.Len()/units.GiB))
		}
		fewest = min(fewest, fewestOf(runs, int(size)))
	}
	return fewest
}

func (w *pieceWitness) place(size int32, hours float64) (place, bool, error) {
	fewest := math.MaxInt
	for n := range int32(len(w.nodes)) {
		fewest = min(fewest, w.fewestOn(n, size))
	}
	single, _ := bestFit(w.cluster, nil, size)
	placed, inPieces := w.placed, w.placedInPieces
	p, ok, err := w.pieceStore.place(size, hours)
	if err != nil {
		return p, ok, err
	}
	if ok != (fewest <= w.most) {
		w.t.Fatalf("%d GiB placed: %t, but %d pieces would do", size, ok, fewest)
	}
	switch {
	case !ok:
		w.refused++
		return p, ok, err
	case fewest == 1:
		if p != single || w.placed != placed+1 || w.placedInPieces != inPieces {
			w.t.Fatalf("%d GiB placed at %v, want %v, as BestFit does", size, p, single)
		}
	case len(w.volumes[p].pieces) != fewest || w.placed != placed+1 || w.placedInPieces != inPieces+1:
		w.t.Fatalf("%d GiB placed in %d pieces, want %d", size, len(w.volumes[p].pieces), fewest)
	}
	var got int64
	for _, on := range w.places(p) {
		if w.used[on.disk].Overlaps(on.extent) {
			w.t.Fatalf("%d GiB placed at %v of disk %d, which is not free", size, on.extent, on.disk)
		}
		w.used[on.disk] = w.used[on.disk].Add(on.extent)
		got += on.extent.Len()
	}
	if got != int64(size)*units.GiB {
		w.t.Fatalf("%d bytes for %d GiB", got, size)
	}
	w.check(p)
	return p, ok, nil
}

// places are all places of a volume, by that of its first piece.
func (w *pieceWitness) places(first place) []place {
	v, ok := w.volumes[first]
	if !ok {
		return []place{first}
	}
	var all []place
	for _, on := range v.pieces {
		all = append(all, place{v.node*disksPerNode + int32(on.disk), on.extent})
	}
	return all
}

func (w *pieceWitness) release(p place) {
	for _, on := range w.places(p) {
		w.used[on.disk] = w.used[on.disk].Remove(on.extent)
	}
	w.pieceStore.release(p)
	w.check(p)
}

// check asserts that what is not used of the node's disks is free.
func (w *pieceWitness) check(p place) {
	for d := p.disk / disksPerNode * disksPerNode; d < (p.disk/disksPerNode+1)*disksPerNode; d++ {
		want := extent.NewSet(extent.New(0, diskSize*units.GiB)).Subtract(w.used[d])
		if free := w.disk(d).Free; !free.Equal(want) {
			w.t.Fatalf("disk %d has %v free, want %v", d, free, want)
		}
	}
}

// TestPlaceInPieces asserts that a volume is placed as BestFit does if an extent holds it, otherwise in the fewest
// pieces on one node, or on one disk. It is refused only if no node has it in that many.
func TestPlaceInPieces(t *testing.T) {
	for _, onOneDisk := range []bool{true, false} {
		s := scenario{&workloads[0], 3, 1.1, 0.5, 5}
		trace := s.record()
		w := &pieceWitness{t: t, pieceStore: newPieceStore(trace.disks, &policies[0], piecesWay{3, onOneDisk}, 1), used: make([]extent.Set, trace.disks)}
		if _, err := run(trace, "pieces", w); err != nil {
			t.Fatal(err)
		}
		t.Logf("on one disk %t: %d placed, %d in pieces, %d refused", onOneDisk, w.placed, w.placedInPieces, w.refused)
		if w.placedInPieces < 10 || w.refused < 10 {
			t.Error("this shows little")
		}
	}
}

// TestNodeForPieces asserts which node is chosen for pieces on several disks. For those on one disk that is a rule of
// package placement.
func TestNodeForPieces(t *testing.T) {
	for name, test := range map[string]struct {
		free [3][disksPerNode]int64 // GiB at the start of each disk
		size int32
		want int32 // -1 for none
	}{
		"the fewest pieces":           {[3][disksPerNode]int64{{10, 5}, {30, 0}, {16, 15}}, 18, 1},
		"of equals the least is left": {[3][disksPerNode]int64{{10, 9}, {11, 7}, {10, 10}}, 18, 1},
		"of equals the first":         {[3][disksPerNode]int64{{9, 8}, {10, 8}, {10, 8}}, 18, 1},
		"not on two nodes":            {[3][disksPerNode]int64{{9, 8}, {9, 8}, {9, 8}}, 18, -1},
	} {
		c := newCluster(3 * disksPerNode)
		for n := range test.free {
			for d, free := range test.free[n] {
				if err := c.exchange(int32(n), nil, []piece{{d, gibs(free, diskSize-free)}}); err != nil {
					t.Fatal(err)
				}
			}
		}
		if v, ok := c.placeInPieces(test.size, 4); ok != (test.want >= 0) || ok && v.node != test.want {
			t.Errorf("%s: node %d (%t), want %d", name, v.node, ok, test.want)
		}
	}
}
