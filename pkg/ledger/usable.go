package ledger

import (
	"maps"
	"slices"

	"github.com/berthdev/berth/pkg/placement"
)

// Kept is what is kept on a node for nominated pods that have no place there yet. They wait for the space of pods that
// are evicted for them.
type Kept struct {
	// Nominated are the requests of each of the pods, in the order in which they get their places.
	Nominated [][]placement.Request
	// Ending are the partitions on the node whose pods are being deleted.
	Ending map[string]struct{}
}

// Usable is what a pod may use on the node. Filter, Score, Reserve and preemption all use it, so that they agree.
//
// gone are partitions to treat as if their volumes were no longer there: those of pods that would be evicted, and the
// pod's own from an earlier try.
//
// A nominated pod gets its place from what is free now. If it does not fit there, it gets it from what will be free
// when all that is ending there has ended. What is free of that place is kept for it, because small pods would
// otherwise take it piece by piece.
func (s *Snapshot) Usable(gone map[string]struct{}, kept Kept) *placement.Node {
	now := s.Without(gone)
	if len(kept.Nominated) == 0 {
		return now
	}
	ended := make(map[string]struct{}, len(gone)+len(kept.Ending))
	maps.Copy(ended, gone)
	maps.Copy(ended, kept.Ending)
	maps.Copy(ended, s.Wiping())
	later := s.Without(ended)
	for _, requests := range kept.Nominated {
		plan, err := placement.Plan(nil, now, requests)
		if err != nil {
			plan, err = placement.Plan(nil, later, requests)
		}
		if err == nil {
			now, later = Less(now, plan), Less(later, plan)
		}
	}
	return now
}

// Less returns the node without what is planned on it.
func Less(node *placement.Node, plan []placement.Assignment) *placement.Node {
	out := &placement.Node{Disks: slices.Clone(node.Disks)}
	for _, a := range plan {
		for i := range out.Disks {
			if d := &out.Disks[i]; d.ID == a.Disk {
				d.Free = d.Free.Remove(a.Extent)
			}
		}
	}
	return out
}
