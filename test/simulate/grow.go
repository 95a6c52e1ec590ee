package main

import (
	"cmp"
	"math"
	"slices"

	"github.com/berthdev/berth/pkg/extent"
)

// maxPieces is how many pieces a volume may have in the plan for volumes that grow.
const maxPieces = 16

// piece is an extent of a volume, on a disk of its node. The disks of every node are counted from 0.
type piece struct {
	disk   int
	extent extent.Extent
}

// way is how volumes grow: by the first of the steps that gives all bytes. If none does, the volume stays as it is.
type way struct {
	name  string
	steps []step
	// headroom must be free behind a new volume, in percent of its size.
	headroom int32
	// hasTarget is set for the way that is compared with growthTarget.
	hasTarget bool
}

// step returns the pieces of the volume, in the order of its bytes, after it has grown by that many bytes. It returns
// false if it cannot give all of them. free is the free space of the node's disks, all of the volume's class. Neither
// is changed.
//
// Invariants of what it returns:
//  1. The pieces are not empty and do not overlap. They start and end at multiples of placement.Alignment if the input
//     does.
//  2. Together they are as long as the volume was, and by.
//  3. What the volume gains was free. Its old place is not free before the volume has left it.
type step func(free []extent.Set, volume []piece, by int64) ([]piece, bool)

// today is the index of what Berth does.
const today = 1

// ways in the order of the tables. The first two differ in the move on the disk, and the second is what Berth does. The
// last is the bound, and the others are a plan.
var ways = []way{
	{name: "in place", steps: []step{inPlace}},
	{name: "in place, move on its disk (today)", steps: []step{inPlace, byMovingOnDisk}},
	{name: "in place, pieces on its disk", steps: []step{inPlace, piecesOnDisk(maxPieces)}},
	{name: "in place, pieces", steps: []step{inPlace, piecesOnDisk(maxPieces), piecesOnNode(maxPieces)}, hasTarget: true},
	{name: "in place, move", steps: []step{inPlace, byMoving}},
	{name: "in place, pieces, move", steps: []step{inPlace, piecesOnDisk(maxPieces), piecesOnNode(maxPieces), byMoving}},
	{name: "in place, move, pieces", steps: []step{inPlace, byMoving, piecesOnDisk(maxPieces), piecesOnNode(maxPieces)}},
	{name: "in place, pieces on its disk, move, pieces", steps: []step{inPlace, piecesOnDisk(maxPieces), byMoving, piecesOnNode(maxPieces)}},
	{name: "any free bytes of the node (the bound)", steps: []step{inPlace, piecesOnDisk(math.MaxInt), piecesOnNode(math.MaxInt)}},
}

// withHeadroom is what Berth does, too, if a StorageClass asks for headroom.
var withHeadroom = way{name: "in place, move on its disk, headroom 100 % (today)", steps: ways[today].steps, headroom: 100}

func (w *way) grow(free []extent.Set, volume []piece, by int64) ([]piece, bool) {
	for _, s := range w.steps {
		if grown, ok := s(free, volume, by); ok {
			return grown, true
		}
	}
	return nil, false
}

// inPlace takes free bytes right behind the volume's last piece.
func inPlace(free []extent.Set, volume []piece, by int64) ([]piece, bool) {
	if behind(free, volume).Len() < by {
		return nil, false
	}
	return extend(volume, by), true
}

// piecesOnDisk takes all bytes right behind the last piece, and for the rest further pieces on the same disk. The
// volume has at most that many pieces then.
func piecesOnDisk(most int) step {
	return func(free []extent.Set, volume []piece, by int64) ([]piece, bool) {
		return inPieces(sameDisk(free, volume), volume, by, most)
	}
}

// piecesOnNode is piecesOnDisk with further pieces on any disk.
func piecesOnNode(most int) step {
	return func(free []extent.Set, volume []piece, by int64) ([]piece, bool) {
		return inPieces(slices.Clone(free), volume, by, most)
	}
}

// inPieces may change the slice of free space.
func inPieces(free []extent.Set, volume []piece, by int64, most int) ([]piece, bool) {
	next := behind(free, volume)
	next.End = min(next.End, next.Start+by)
	longer := extend(volume, next.Len())
	if next.Len() == by {
		return longer, true
	}
	last := volume[len(volume)-1].disk
	free[last] = free[last].Remove(next)
	more, ok := fewest(free, by-next.Len(), most-len(volume))
	return append(longer, more...), ok
}

// byMoving copies the volume to the smallest free extent that holds all of it.
func byMoving(free []extent.Set, volume []piece, by int64) ([]piece, bool) {
	return fewest(free, bytesOf(volume)+by, 1)
}

// byMovingOnDisk is byMoving on the disk of the last piece.
func byMovingOnDisk(free []extent.Set, volume []piece, by int64) ([]piece, bool) {
	return byMoving(sameDisk(free, volume), volume, by)
}

// sameDisk is the free space of the disk of the last piece. The other disks have none.
func sameDisk(free []extent.Set, volume []piece) []extent.Set {
	last := volume[len(volume)-1].disk
	same := make([]extent.Set, len(free))
	same[last] = free[last]
	return same
}

// behind is the free bytes right behind the last piece.
func behind(free []extent.Set, volume []piece) extent.Extent {
	last := volume[len(volume)-1]
	e, _ := free[last.disk].Holding(extent.New(last.extent.End, 1))
	return e
}

// extend makes the last piece longer.
func extend(volume []piece, by int64) []piece {
	longer := slices.Clone(volume)
	longer[len(longer)-1].extent.End += by
	return longer
}

// fewest returns the fewest pieces that hold the size: the largest extents, and for the rest the smallest that holds
// it. Of equal extents it takes those on the first disk, and there the first. It returns false if that many pieces are
// not enough.
func fewest(free []extent.Set, size int64, most int) ([]piece, bool) {
	longest := longestFirst(free)
	for n := range min(most, len(longest)) {
		if longest[n].extent.Len() < size {
			size -= longest[n].extent.Len()
			continue
		}
		tightest := n
		for i := n + 1; i < len(longest) && longest[i].extent.Len() >= size; i++ {
			if longest[i].extent.Len() < longest[tightest].extent.Len() {
				tightest = i
			}
		}
		rest := longest[tightest]
		rest.extent = extent.New(rest.extent.Start, size)
		return append(longest[:n:n], rest), true
	}
	return nil, false
}

func longestFirst(free []extent.Set) []piece {
	var all []piece
	for d := range free {
		for _, e := range free[d].All() {
			all = append(all, piece{d, e})
		}
	}
	slices.SortFunc(all, func(a, b piece) int {
		return cmp.Or(cmp.Compare(b.extent.Len(), a.extent.Len()), cmp.Compare(a.disk, b.disk), cmp.Compare(a.extent.Start, b.extent.Start))
	})
	return all
}

func bytesOf(pieces []piece) (bytes int64) {
	for _, p := range pieces {
		bytes += p.extent.Len()
	}
	return bytes
}
