package placement

import (
	"math/bits"

	"github.com/berthdev/berth/pkg/extent"
)

// MaxScore is the score of a plan that leaves nothing over.
const MaxScore int64 = 100

// Score says how tightly the plan, made by Plan for these requests on this node,
// fits: from 0 to 100, higher is tighter.
//
// It depends only on the leftover, the part that the plan leaves of the free extents
// it cuts into, and never rises with it. No leftover scores 100, 1 MiB scores 99, and
// every doubling costs 4 more (with steps in between), down to 0 for 32 TiB:
//
//	100 − (1 + ⌊4·log2 leftover⌋), leftover in MiB, each octave cut into 4 equal parts
//
// The scale is logarithmic so that nodes are told apart whether they differ by a few
// MiB or by a few TiB. For the same requests, a smaller leftover is the same as
// smaller extents cut into: the largest extents are kept whole.
//
// A plan that does not lie in the node's free space scores 0.
func Score(node *Node, _ []Request, plan []Assignment) int64 {
	var leftover int64
	for i := range plan {
		e, ok := node.holding(&plan[i])
		if !ok {
			return 0
		}
		if !sharesExtent(e, plan[i].Disk, plan[:i]) {
			leftover = addCapped(leftover, e.Len())
		}
		leftover -= plan[i].Extent.Len()
	}
	return scoreOf(leftover)
}

func scoreOf(leftover int64) int64 {
	mib := uint64(max(leftover, 0)) / uint64(Alignment)
	if mib == 0 {
		return MaxScore
	}
	octave := bits.Len64(mib) - 1
	// The two bits behind the leading one say in which quarter of the octave it lies.
	quarter := mib << 2 >> octave & 3
	return max(0, MaxScore-1-int64(4*octave)-int64(quarter))
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
