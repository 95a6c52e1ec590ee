package placement

import (
	"math"
	"math/bits"

	"github.com/berthdev/berth/pkg/extent"
)

// MaxScore is the highest score.
const MaxScore int64 = 100

// Merit says how well the plan, made by Plan for these requests on this node, suits them:
// the higher the better. It compares nodes for the same requests, and nothing else.
//
// The policy of the largest request decides. With BestFit the merit is the leftover, below
// zero: what the plan leaves of the free extents that it cuts into for volumes with BestFit.
// With Spread it is how many bytes were free of the disk that the largest volume goes to.
//
// A plan that does not lie in the node's free space has the least merit there is.
func Merit(node *Node, requests []Request, plan []Assignment) int64 {
	if len(plan) == 0 {
		return 0
	}
	leading := Leading(requests)
	if requests[leading].Policy == Spread {
		return node.freeAround(&plan[leading])
	}
	var length, size int64
	for i := range plan {
		if requests[i].Policy != BestFit {
			continue
		}
		e, ok := node.holding(&plan[i])
		if !ok {
			return math.MinInt64
		}
		if !sharesExtent(e, plan[i].Disk, plan[:i]) {
			length = addCapped(length, e.Len())
		}
		size += plan[i].Extent.Len()
	}
	return size - length
}

// Score puts a merit on a scale from 0 to 100.
//
// With BestFit, leaving nothing over scores 100. 1 MiB over scores 99, and every doubling of the leftover costs 4 more (with steps in between), down to 0 for 32 TiB:
//
//	100 − (1 + ⌊4·log2 leftover⌋), leftover in MiB, each octave cut into 4 equal parts
//
// With Spread it is the other way round: every doubling of what is free on the disk is worth
// 4 more, up to 100 for 32 TiB.
//
// The scale is logarithmic so that nodes are distinguished whether they differ by a few
// MiB or by a few TiB. Nodes that differ in merit may have the same score.
func Score(merit int64) int64 {
	switch {
	case merit == math.MinInt64:
		return 0
	case merit > 0:
		return min(MaxScore, steps(merit))
	}
	return max(0, MaxScore-steps(-merit))
}

// steps counts quarters of doublings from 1 MiB on, which is 1.
func steps(size int64) int64 {
	mib := uint64(size) / uint64(Alignment)
	if mib == 0 {
		return 0
	}
	octave := bits.Len64(mib) - 1
	// The two bits behind the leading one say in which quarter of the octave it lies.
	quarter := mib << 2 >> octave & 3
	return 1 + int64(4*octave) + int64(quarter)
}

// freeAround is how many bytes are free on the disk of a place.
func (n *Node) freeAround(place *Assignment) int64 {
	for d := range n.Disks {
		if n.Disks[d].ID == place.Disk && n.Disks[d].Free.Contains(place.Extent) {
			return n.Disks[d].Free.Total()
		}
	}
	return math.MinInt64
}

// holding returns the free extent that holds the place.
func (n *Node) holding(place *Assignment) (extent.Extent, bool) {
	for d := range n.Disks {
		if n.Disks[d].ID == place.Disk {
			return n.Disks[d].Free.Holding(place.Extent)
		}
	}
	return extent.Extent{}, false
}

// sharesExtent reports whether an earlier place lies in the same free extent.
func sharesExtent(e extent.Extent, disk string, earlier []Assignment) bool {
	for i := range earlier {
		if earlier[i].Disk == disk && e.Contains(earlier[i].Extent) {
			return true
		}
	}
	return false
}
