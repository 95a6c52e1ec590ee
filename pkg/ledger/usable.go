package ledger

import (
	"maps"
	"slices"

	"github.com/berthdev/berth/pkg/placement"
)

// Nominations are the pods that are nominated for a node and have no place there yet. They wait for the space of pods
// that are evicted for them, and space is kept for them.
type Nominations struct {
	// Requests are the requests of each of the pods, in the order in which they get their places.
	Requests [][]placement.Request
	// Terminating are the partitions on the node whose pods are being deleted.
	Terminating map[string]struct{}
}

// Usable is what a pod may use on the node. Filter, Score, Reserve and preemption all use it, so that they agree.
//
// gone are partitions to treat as if their volumes were no longer there: those of pods that would be evicted, and the
// pod's own from an earlier try.
//
// A nominated pod gets its place from what is free now. If it does not fit there, it gets it from what will be free
// when all that is ending there has ended. What is free of that place is kept for it, because small pods would
// otherwise take it piece by piece.
func (s *Snapshot) Usable(gone map[string]struct{}, nominations Nominations) *placement.Node {
	now := s.Without(gone)
	if len(nominations.Requests) == 0 {
		return now
	}
	ended := make(map[string]struct{}, len(gone)+len(nominations.Terminating))
	maps.Copy(ended, gone)
	maps.Copy(ended, nominations.Terminating)
	maps.Copy(ended, s.Wiping())
	later := s.Without(ended)
	for _, requests := range nominations.Requests {
		plan, err := placement.Plan(nil, now, requests)
		if err != nil {
			plan, err = placement.Plan(nil, later, requests)
		}
		if err == nil {
			now, later = SubtractPlan(now, plan), SubtractPlan(later, plan)
		}
	}
	return now
}

// SubtractPlan returns the node without what is planned on it.
func SubtractPlan(node *placement.Node, plan []placement.Assignment) *placement.Node {
	out := &placement.Node{Disks: slices.Clone(node.Disks), Pieces: node.Pieces}
	for _, a := range plan {
		for i := range out.Disks {
			d := &out.Disks[i]
			if d.ID != a.Disk {
				continue
			}
			d.Free = d.Free.Remove(a.Extent)
			for _, e := range a.Further {
				d.Free = d.Free.Remove(e)
			}
		}
	}
	return out
}
