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
		if n.published == nil && len(n.holders) == 0 && len(n.doubts) == 0 {
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
	if have.Revision != want.Revision || have.Published != want.Published || have.Problem != want.Problem {
		return fmt.Errorf("node %s: the snapshot is of another capacity", name)
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
	if !slices.Equal(have.pending, want.pending) {
		return fmt.Errorf("node %s: the snapshot subtracts %v, want %v", name, have.pending, want.pending)
	}
	return nil
}

// validatePlaces holds what Where looks up against the records and capacities. The lock is
// held.
func (l *Ledger) validatePlaces() error {
	recorded := 0
	for _, h := range l.holders {
		for _, r := range h.records {
			recorded++
			if !slices.Contains(l.places[r.Partition], h) {
				return fmt.Errorf("the record of partition %s by %s is not found", r.Partition, h.key)
			}
		}
	}
	for partition, holders := range l.places {
		recorded -= len(holders)
		if len(holders) == 0 {
			return fmt.Errorf("partition %s is kept for nothing", partition)
		}
	}
	if recorded != 0 {
		return fmt.Errorf("there are %d more records than are found by partition", recorded)
	}
	for partition, name := range l.shown {
		n, ok := l.nodes.Load(name)
		if !ok || n.(*node).published == nil {
			return fmt.Errorf("partition %s is said to be published by node %s, which publishes nothing", partition, name)
		}
		if _, ok := n.(*node).published.places[partition]; !ok {
			return fmt.Errorf("partition %s is said to be published by node %s, which does not", partition, name)
		}
	}
	var err error
	l.nodes.Range(func(key, value any) bool {
		if p := value.(*node).published; p != nil {
			for partition := range p.places {
				if _, ok := l.shown[partition]; !ok {
					err = fmt.Errorf("partition %s, published by node %s, is not found", partition, key)
				}
			}
		}
		return err == nil
	})
	return err
}

// validateIndex holds the index against all snapshots. The lock is held.
func (l *Ledger) validateIndex() error {
	want := map[string]map[offer]struct{}{}
	l.nodes.Range(func(_, value any) bool {
		n := value.(*node)
		for _, d := range n.snapshot.Load().Node.Disks {
			for _, e := range d.Free.All() {
				if want[d.Class] == nil {
					want[d.Class] = map[offer]struct{}{}
				}
				want[d.Class][offer{e.Len(), n}] = struct{}{}
			}
		}
		return true
	})
	if len(l.index) != len(want) {
		return fmt.Errorf("the index has %d classes, want %d", len(l.index), len(want))
	}
	for class, offers := range l.index {
		all := slices.Concat(offers.runs...)
		if len(all) != len(want[class]) {
			return fmt.Errorf("the index has %d free extents of class %s, want %d", len(all), class, len(want[class]))
		}
		for i, o := range all {
			if _, ok := want[class][o]; !ok {
				return fmt.Errorf("the index has %d bytes of class %s on node %s, which has not", o.size, class, o.node.name)
			}
			if i > 0 && compareOffers(all[i-1], o) >= 0 {
				return fmt.Errorf("the index of class %s is not sorted at %d", class, i)
			}
		}
		for _, run := range offers.runs {
			if len(run) == 0 || len(run) > maxRun {
				return fmt.Errorf("the index of class %s has a run of %d", class, len(run))
			}
		}
	}
	return nil
}
