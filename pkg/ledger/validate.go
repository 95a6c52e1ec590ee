package ledger

import (
	"fmt"
	"slices"
)

// Validate checks the invariants. It is for tests: it recomputes every node.
func (l *Ledger) Validate() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var err error
	var held, doubted int
	l.nodes.Range(func(key, value any) bool {
		name, n := key.(string), value.(*node)
		for key, h := range n.holders {
			held++
			if l.holders[key] != h || h.node != name {
				err = fmt.Errorf("node %s has records of %s, which the ledger has elsewhere", name, key)
				return false
			}
		}
		for uid := range n.doubts {
			doubted++
			if _, ok := l.doubts[uid][name]; !ok {
				err = fmt.Errorf("node %s doubts about pod %s, the ledger does not", name, uid)
				return false
			}
		}
		if n.idle() {
			err = fmt.Errorf("node %s is kept for nothing", name)
			return false
		}
		err = n.validate(name)
		return err == nil
	})
	if err != nil {
		return err
	}
	if err := l.validateIndex(); err != nil {
		return err
	}
	if err := l.validatePlaces(); err != nil {
		return err
	}
	if err := l.validateOwners(); err != nil {
		return err
	}
	if held != len(l.holders) {
		return fmt.Errorf("%d holders are known, but nodes have the records of %d", len(l.holders), held)
	}
	for _, nodes := range l.doubts {
		doubted -= len(nodes)
	}
	if doubted != 0 {
		return fmt.Errorf("nodes have %d doubts about pods more than the ledger", doubted)
	}
	return nil
}

func (n *node) validate(name string) error {
	have, want := n.snapshot.Load(), n.compute()
	if have.Registered != n.registered {
		return fmt.Errorf("node %s: the snapshot does not say whether an agent is registered", name)
	}
	if have.Revision != want.Revision || have.Published != want.Published || have.Problem != want.Problem {
		return fmt.Errorf("node %s: the snapshot is of another capacity", name)
	}
	if have.Absent != n.absent {
		return fmt.Errorf("node %s: the snapshot does not say whether there is a Node", name)
	}
	if len(have.Node.Disks) != len(want.Node.Disks) {
		return fmt.Errorf("node %s: the snapshot has %d disks, want %d", name, len(have.Node.Disks), len(want.Node.Disks))
	}
	for i := range want.Node.Disks {
		if err := have.Node.Disks[i].Free.Validate(); err != nil {
			return fmt.Errorf("node %s, disk %s: %w", name, have.Node.Disks[i].ID, err)
		}
		if !have.Node.Disks[i].Free.Equal(want.Node.Disks[i].Free) {
			return fmt.Errorf("node %s, disk %s: the snapshot has %v free, want %v", name, want.Node.Disks[i].ID,
				have.Node.Disks[i].Free, want.Node.Disks[i].Free)
		}
	}
	if !slices.Equal(have.unpublished, want.unpublished) {
		return fmt.Errorf("node %s: the snapshot has %v unpublished, want %v", name, have.unpublished, want.unpublished)
	}
	return nil
}

// validateOwners compares the owners and the withheld disks with what is published. The lock is held.
func (l *Ledger) validateOwners() error {
	publishers, written := map[string]int{}, map[string]int{}
	free := map[string]string{}
	var err error
	l.nodes.Range(func(_, value any) bool {
		n := value.(*node)
		for _, disk := range n.owned {
			if written[disk]++; !slices.Contains(l.owners.assigned[disk], n) {
				err = fmt.Errorf("disk %s is not known to be assigned to node %s", disk, n.name)
			}
		}
		for _, disk := range n.published.ids() {
			if publishers[disk]++; !slices.Contains(l.owners.publishers[disk], n) {
				err = fmt.Errorf("disk %s is not known to be published by node %s", disk, n.name)
			}
			if _, withheld := n.withheld[disk]; withheld != (l.owners.of(disk) != n) {
				err = fmt.Errorf("disk %s on node %s: withheld is %v", disk, n.name, withheld)
			}
		}
		for disk := range n.withheld {
			if n.published.disk(disk) == nil {
				err = fmt.Errorf("node %s does not publish disk %s, which is withheld there", n.name, disk)
			}
		}
		for _, d := range n.snapshot.Load().Node.Disks {
			if other := free[d.ID]; other != "" {
				err = fmt.Errorf("disk %s is in service on %s and on %s", d.ID, n.name, other)
			}
			free[d.ID] = n.name
		}
		return err == nil
	})
	for disk, nodes := range l.owners.publishers {
		if len(nodes) != publishers[disk] {
			return fmt.Errorf("disk %s is said to be published by %d nodes, want %d", disk, len(nodes), publishers[disk])
		}
	}
	for disk, nodes := range l.owners.assigned {
		if len(nodes) != written[disk] {
			return fmt.Errorf("disk %s is said to be assigned to %d nodes, want %d", disk, len(nodes), written[disk])
		}
	}
	return err
}

// validatePlaces compares what Where reads with the records and capacities. The lock is held.
func (l *Ledger) validatePlaces() error {
	recorded := 0
	for _, h := range l.holders {
		for _, r := range h.records {
			recorded++
			if !slices.Contains(l.recordedBy[r.Partition], h) {
				return fmt.Errorf("the record of partition %s by %s is not found", r.Partition, h.key)
			}
		}
	}
	for partition, holders := range l.recordedBy {
		recorded -= len(holders)
		if len(holders) == 0 {
			return fmt.Errorf("partition %s is kept for nothing", partition)
		}
	}
	if recorded != 0 {
		return fmt.Errorf("there are %d more records than are found by partition", recorded)
	}
	return l.validatePublishedBy()
}

// validatePublishedBy compares the nodes that publish each partition with the capacities. The lock is held.
func (l *Ledger) validatePublishedBy() error {
	by := map[string][]*node{}
	l.nodes.Range(func(_, value any) bool {
		n := value.(*node)
		if n.published == nil {
			return true
		}
		for _, d := range n.published.disks {
			for partition := range d.volumes {
				if !slices.Contains(by[partition], n) {
					by[partition] = append(by[partition], n)
				}
			}
		}
		return true
	})
	for partition, n := range l.publishedBy {
		others := l.alsoPublishedBy[partition]
		if !slices.Contains(by[partition], n) || slices.Contains(others, n) || len(others) != len(by[partition])-1 {
			return fmt.Errorf("partition %s is said to be published by node %s and %d others, want %d nodes", partition, n.name, len(others), len(by[partition]))
		}
		for _, other := range others {
			if !slices.Contains(by[partition], other) {
				return fmt.Errorf("partition %s is said to be published by node %s, which does not", partition, other.name)
			}
		}
	}
	if len(l.publishedBy) != len(by) {
		return fmt.Errorf("%d published partitions are found, want %d", len(l.publishedBy), len(by))
	}
	for partition := range l.alsoPublishedBy {
		if len(by[partition]) < 2 {
			return fmt.Errorf("partition %s is said to be published by several nodes, which it is not", partition)
		}
	}
	return nil
}

// validateIndex compares the index with all snapshots. The lock is held.
func (l *Ledger) validateIndex() error {
	want := map[string]*[numOrderings]map[indexEntry]struct{}{}
	l.nodes.Range(func(_, value any) bool {
		n := value.(*node)
		for _, s := range freeByClass(n.snapshot.Load().Node) {
			if want[s.class] == nil {
				want[s.class] = &[numOrderings]map[indexEntry]struct{}{{}, {}}
			}
			for by, sizes := range s.sizes {
				for _, p := range sizes {
					want[s.class][by][indexEntry{p.size, p.largest, n}] = struct{}{}
				}
			}
		}
		return true
	})
	if len(l.index) != len(want) {
		return fmt.Errorf("the index has %d classes, want %d", len(l.index), len(want))
	}
	for class, of := range l.index {
		for by := range of {
			if err := of[by].validate(want[class][by]); err != nil {
				return fmt.Errorf("the index of class %s: %w", class, err)
			}
		}
	}
	return nil
}

func (s *sortedEntries) validate(want map[indexEntry]struct{}) error {
	var all []indexEntry
	for _, c := range s.chunks {
		if len(c.entries) == 0 || len(c.entries) > maxChunk {
			return fmt.Errorf("a chunk has %d entries", len(c.entries))
		}
		if largest := newChunk(c.entries...).largest; c.largest != largest {
			return fmt.Errorf("the largest of the chunk from %d bytes on is %d, want %d", c.entries[0].size, c.largest, largest)
		}
		all = append(all, c.entries...)
	}
	if len(all) != len(want) {
		return fmt.Errorf("there are %d entries, want %d", len(all), len(want))
	}
	for i, o := range all {
		if _, ok := want[o]; !ok {
			return fmt.Errorf("node %s is said to have %d bytes, which it has not", o.node.name, o.size)
		}
		if i > 0 && compareEntries(all[i-1], o) >= 0 {
			return fmt.Errorf("it is not sorted at %d", i)
		}
	}
	return nil
}
