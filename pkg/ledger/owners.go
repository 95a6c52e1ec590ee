package ledger

import (
	"slices"
	"strings"
)

// A disk serves on one node. When several nodes publish a disk of one id, its owner is
//
//	the present node with it in Owned, of several the first by name;
//	without one, the present node that published it first.
//
// Owned is written by the scheduler's leader, never by a node. So a node that publishes a disk of another node takes
// nothing from it, once Owned is written. A node without a Node object is not present: its disks may be in the machine
// that replaces it.
//
// On all other nodes, and on one that is not present, the disk is withheld: nothing is free on it.

// owners has the nodes that may own a disk, by its id.
type owners struct {
	// publishers publish the disk, in the order in which they began to.
	publishers map[string][]*node
	// assigned are the nodes that have the disk in Owned, in no order.
	assigned map[string][]*node
}

func newOwners() owners {
	return owners{publishers: map[string][]*node{}, assigned: map[string][]*node{}}
}

// of returns the owner of the disk, nil if there is none.
func (o *owners) of(disk string) *node {
	var owner *node
	for _, n := range o.assigned[disk] {
		if !n.absent && (owner == nil || n.name < owner.name) {
			owner = n
		}
	}
	if owner != nil {
		return owner
	}
	for _, n := range o.publishers[disk] {
		if !n.absent {
			return n
		}
	}
	return nil
}

// replaceDisks records that the node now publishes or owns other disks than before, and returns the disks that differ.
// Both slices are sorted.
func replaceDisks(index map[string][]*node, n *node, before, after []string) (changed []string) {
	if slices.Equal(before, after) {
		return nil
	}
	for _, disk := range before {
		if _, still := slices.BinarySearch(after, disk); still {
			continue
		}
		changed = append(changed, disk)
		if left := slices.DeleteFunc(index[disk], func(other *node) bool { return other == n }); len(left) > 0 {
			index[disk] = left
		} else {
			delete(index, disk)
		}
	}
	for _, disk := range after {
		if _, had := slices.BinarySearch(before, disk); !had {
			changed = append(changed, disk)
			index[disk] = append(index[disk], n)
		}
	}
	return changed
}

// ids returns the ids of the disks, sorted, each once.
func (p *published) ids() []string {
	if p == nil {
		return nil
	}
	return p.diskIDs
}

// setOwned records what the node owns and publishes now, and updates all nodes that this affects. before is what the
// node published until now. It returns the other nodes whose disks came into service. The lock is held; the caller
// makes the node's own snapshot.
func (l *Ledger) setOwned(n *node, before *published, owned []string) (served []string) {
	changed := replaceDisks(l.owners.publishers, n, before.ids(), n.published.ids())
	changed = append(changed, replaceDisks(l.owners.assigned, n, n.owned, owned)...)
	n.owned = owned
	return l.updateWithheld(n, changed)
}

// updateWithheld updates all nodes after the owners of these disks may have changed. It returns the nodes other than n
// whose disks came into service. The lock is held; the caller makes n's snapshot.
func (l *Ledger) updateWithheld(n *node, disks []string) (served []string) {
	var losing, gaining []*node
	for _, disk := range disks {
		owner := l.owners.of(disk)
		// A node that no longer publishes the disk has nothing to withhold.
		if !slices.Contains(l.owners.publishers[disk], n) {
			n.setWithheld(disk, false)
		}
		for _, p := range l.owners.publishers[disk] {
			withheld := p != owner
			if !p.setWithheld(disk, withheld) || p == n {
				continue
			}
			if withheld {
				losing = append(losing, p)
			} else {
				gaining = append(gaining, p)
			}
		}
	}
	// Nodes that lose a disk come first: a reader between the two sees no space twice.
	for _, p := range losing {
		l.refresh(p)
	}
	if len(gaining) > 0 {
		l.refresh(n)
	}
	for _, p := range gaining {
		l.refresh(p)
		if !slices.Contains(served, p.name) {
			served = append(served, p.name)
		}
	}
	return served
}

// setWithheld reports whether that changed. Snapshots share the map, so it is replaced.
func (n *node) setWithheld(disk string, withheld bool) bool {
	if _, is := n.withheld[disk]; is == withheld {
		return false
	}
	next := make(map[string]struct{}, len(n.withheld)+1)
	for d := range n.withheld {
		next[d] = struct{}{}
	}
	if withheld {
		next[disk] = struct{}{}
	} else {
		delete(next, disk)
	}
	if n.withheld = next; len(next) == 0 {
		n.withheld = nil
	}
	return true
}

// inService reports whether the node owns the disk and is present.
func (n *node) inService(disk string) bool {
	_, withheld := n.withheld[disk]
	return !n.absent && !withheld
}

// SetNode folds in whether the Node exists. Until the first call a node is taken to exist. Nothing is free on one that
// does not. It reports whether that changed, and the other nodes whose disks came into service.
func (l *Ledger) SetNode(name string, exists bool) (changed bool, served []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	known, ok := l.nodes.Load(name)
	if !ok {
		// The caller calls it again when the node publishes.
		return false, nil
	}
	n := known.(*node)
	if n.absent != exists {
		return false, nil
	}
	n.absent = !exists
	served = l.updateWithheld(n, slices.Concat(n.published.ids(), n.owned))
	l.refresh(n)
	return true, served
}

// Ownership says which disks of a node it owns, and which other nodes publish them.
type Ownership struct {
	// Owned is what spec.ownedDisks of the node should be, sorted. Assigned is what it is.
	Owned, Assigned []string
	// Shared are the node's disks that other nodes publish, too, sorted.
	Shared []SharedDisk
}

// SharedDisk is a disk that several nodes publish.
type SharedDisk struct {
	ID string
	// Owner is the node on which the disk serves.
	Owner string
	// Others are the other nodes that publish the disk, sorted.
	Others []string
}

// Ownership returns which disks the node owns: those in Owned that it publishes, and those that are in no node's Owned
// and that it published first.
func (l *Ledger) Ownership(nodeName string) Ownership {
	l.mu.Lock()
	defer l.mu.Unlock()
	known, ok := l.nodes.Load(nodeName)
	if !ok {
		return Ownership{}
	}
	n := known.(*node)
	out := Ownership{Assigned: n.owned}
	for _, disk := range n.published.ids() {
		owner := l.owners.of(disk)
		if _, written := slices.BinarySearch(n.owned, disk); written || owner == n && len(l.owners.assigned[disk]) == 0 {
			out.Owned = append(out.Owned, disk)
		}
		if len(l.owners.publishers[disk]) < 2 {
			continue
		}
		shared := SharedDisk{ID: disk}
		if owner != nil {
			shared.Owner = owner.name
		}
		for _, other := range l.owners.publishers[disk] {
			if other != n {
				shared.Others = append(shared.Others, other.name)
			}
		}
		slices.SortFunc(shared.Others, strings.Compare)
		out.Shared = append(out.Shared, shared)
	}
	return out
}
