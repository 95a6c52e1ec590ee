package ledger

import (
	"cmp"
	"maps"
	"slices"
)

// Contents is what the ledger keeps besides what nodes have published. Tests compare it with the objects of the API
// server, to find what the ledger should have forgotten. Everything is sorted.
type Contents struct {
	// Observed are the records that the API server has shown, Assumed those of reservations.
	Observed, Assumed []HolderRecords
	// Doubts are the records of writes that failed, and may have been done.
	Doubts []HolderRecords
	// Grants are the UIDs of PersistentVolumes that may become larger than the API server said last.
	Grants []string
	// Refusals are the nodes that refused a pod, by the pod's UID.
	Refusals map[string][]string
}

// HolderRecords are the records of one holder on one node: of a pod, a PersistentVolume or a reservation.
type HolderRecords struct {
	Key, Node string
	Records   []Record
}

// Contents returns a copy of what the ledger keeps now.
func (l *Ledger) Contents() Contents {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := Contents{Grants: slices.Sorted(maps.Keys(l.grants)), Refusals: map[string][]string{}}
	for _, h := range l.holders {
		held := HolderRecords{h.key, h.node, slices.Clone(h.records)}
		if h.source == observed {
			c.Observed = append(c.Observed, held)
		} else {
			c.Assumed = append(c.Assumed, held)
		}
	}
	l.nodes.Range(func(_, value any) bool {
		n, _ := value.(*node)
		for key, records := range n.doubts {
			c.Doubts = append(c.Doubts, HolderRecords{key, n.name, slices.Clone(records)})
		}
		return true
	})
	for _, held := range [][]HolderRecords{c.Observed, c.Assumed, c.Doubts} {
		slices.SortFunc(held, func(a, b HolderRecords) int { return cmp.Or(cmp.Compare(a.Key, b.Key), cmp.Compare(a.Node, b.Node)) })
	}
	for uid, nodes := range l.refusals {
		c.Refusals[uid] = slices.Sorted(maps.Keys(nodes))
	}
	return c
}
