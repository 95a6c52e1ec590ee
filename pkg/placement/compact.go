package placement

import (
	"cmp"
	"slices"

	"github.com/berthdev/berth/pkg/extent"
)

// Resident is a volume that a disk holds.
type Resident struct {
	ID     string
	Extent extent.Extent
	// Fixed means that the volume stays where it is.
	Fixed bool
}

// Shift is one move of a compaction.
type Shift struct {
	ID string
	To extent.Extent
}

// Compact plans how volumes of a disk move towards its start, so that its largest free extent grows. It returns the
// moves in their order, and how long the largest free extent is after them. Without a gain there are no moves. Of the
// plans with the largest gain it takes the one that moves the fewest bytes.
//
// A move needs a free extent that holds all of the volume, before the volume. Each plan moves volumes that follow each
// other, the first one first, each to the first such extent. So what is left of a plan after its first move is a plan
// of the disk then. To plan again after each move leads to no worse end, with no more bytes. It ends, because no volume
// moves back.
//
// The plan is not always the best one possible. It is never worse than the best single move.
func Compact(free extent.Set, volumes []Resident) (moves []Shift, largest int64) {
	volumes = slices.SortedFunc(slices.Values(volumes), func(a, b Resident) int { return cmp.Compare(a.Extent.Start, b.Extent.Start) })
	largest = free.Largest().Len()
	fewest := int64(0)
	for first := range volumes {
		now, bytes, plan := free, int64(0), []Shift(nil)
		for _, v := range volumes[first:] {
			to, ok := firstBefore(now, v.Extent)
			if v.Fixed || !ok {
				continue
			}
			now, bytes, plan = now.Remove(to).Add(v.Extent), bytes+to.Len(), append(plan, Shift{v.ID, to})
			if n := now.Largest().Len(); n > largest || n == largest && moves != nil && bytes < fewest {
				moves, largest, fewest = slices.Clone(plan), n, bytes
			}
		}
	}
	return moves, largest
}

// firstBefore is the start of the first free extent before a volume that holds all of it.
func firstBefore(free extent.Set, v extent.Extent) (extent.Extent, bool) {
	for _, e := range free.All() {
		if e.Start >= v.Start {
			break
		}
		if e.Len() >= v.Len() {
			return extent.New(e.Start, v.Len()), true
		}
	}
	return extent.Extent{}, false
}
