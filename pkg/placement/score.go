package placement

import (
	"math"
	"math/bits"

	"github.com/berthdev/berth/pkg/extent"
)

// MaxScore is the highest score.
const MaxScore int64 = 100

// Merit is how well the plan, made by Plan for these requests on this node, suits them: the higher the better. It
// compares nodes for the same requests, and nothing else.
//
// The policy of the largest request decides. With BestFit the merit is minus the leftover: the bytes that remain of the
// free extents into which the plan puts volumes with BestFit. With Spread it is how many bytes were free on the disk of
// the largest volume.
//
// A plan without further pieces is better than one with them, and fewer pieces are better than more.
//
// A plan that does not lie in the node's free space has the least possible merit.
func Merit(node *Node, requests []Request, plan []Assignment) int64 {
	if len(plan) == 0 {
		return 0
	}
	further := 0
	for i := range plan {
		further += len(plan[i].Further)
	}
	merit := meritOfPlaces(node, requests, plan)
	if further == 0 || merit == math.MinInt64 {
		return merit
	}
	return merit - int64(min(further, maxPiecesCounted))*pieceCost
}

const (
	// pieceCost is more than any disk has, and more than any plan leaves over.
	pieceCost int64 = 1 << 52
	// maxPiecesCounted keeps the sum in an int64.
	maxPiecesCounted = 1 << 10
)

// meritOfPlaces is Merit without the cost of pieces.
func meritOfPlaces(node *Node, requests []Request, plan []Assignment) int64 {
	leading := LargestRequest(requests)
	if requests[leading].Policy == Spread {
		return node.freeOnDisk(&plan[leading])
	}
	var length, size int64
	for i := range plan {
		if requests[i].Policy != BestFit {
			continue
		}
		for n := range plan[i].numPieces() {
			piece := plan[i].piece(n)
			e, ok := node.freeExtentOf(plan[i].Disk, piece)
			if !ok {
				return math.MinInt64
			}
			if !sharesExtent(e, plan[i].Disk, plan[:i]) {
				length = AddCapped(length, e.Len())
			}
			size += piece.Len()
		}
	}
	return size - length
}

// numPieces is of how many pieces the volume consists.
func (a *Assignment) numPieces() int { return 1 + len(a.Further) }

// piece returns a piece by its number; 0 is the first one.
func (a *Assignment) piece(n int) extent.Extent {
	if n == 0 {
		return a.Extent
	}
	return a.Further[n-1]
}

// Score maps a merit to a scale from 0 to 100.
//
// With BestFit, a leftover of nothing scores 100, and one of 1 MiB scores 99. Every doubling of the leftover costs 4
// more, with steps in between, down to 0 for 32 TiB:
//
//	100 − (1 + ⌊4·log2 leftover⌋), leftover in MiB, each octave cut into 4 equal parts
//
// With Spread, every doubling of the free bytes of the disk adds 4, up to 100 for 32 TiB.
//
// The scale is logarithmic so that nodes are distinguished whether they differ by a few MiB or by a few TiB. Nodes that
// differ in merit may have the same score.
func Score(merit int64) int64 {
	switch {
	case merit == math.MinInt64:
		return 0
	case merit > 0:
		return min(MaxScore, steps(merit))
	}
	return max(0, MaxScore-steps(-merit))
}

// steps counts quarters of doublings, from 1 at 1 MiB on.
func steps(size int64) int64 {
	mib := uint64(size) / uint64(Alignment)
	if mib == 0 {
		return 0
	}
	octave := bits.Len64(mib) - 1
	// The two bits behind the leading one are the quarter of the octave.
	quarter := mib << 2 >> octave & 3
	return 1 + int64(4*octave) + int64(quarter)
}

// freeOnDisk is how many bytes are free on the disk of a place.
func (n *Node) freeOnDisk(place *Assignment) int64 {
	for d := range n.Disks {
		if n.Disks[d].ID == place.Disk && n.Disks[d].Free.Contains(place.Extent) {
			return n.Disks[d].Free.Total()
		}
	}
	return math.MinInt64
}

// freeExtentOf returns the free extent of the disk that holds the piece.
func (n *Node) freeExtentOf(disk string, piece extent.Extent) (extent.Extent, bool) {
	for d := range n.Disks {
		if n.Disks[d].ID == disk {
			return n.Disks[d].Free.Holding(piece)
		}
	}
	return extent.Extent{}, false
}

// sharesExtent reports whether an earlier place lies in the same free extent.
func sharesExtent(e extent.Extent, disk string, earlier []Assignment) bool {
	for i := range earlier {
		if earlier[i].Disk != disk {
			continue
		}
		for n := range earlier[i].numPieces() {
			if e.Contains(earlier[i].piece(n)) {
				return true
			}
		}
	}
	return false
}
