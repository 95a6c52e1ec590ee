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
		for uid, p := range n.pods {
			held++
			if l.pods[uid] != p || p.node != name {
				err = fmt.Errorf("node %s holds pod %s, which the ledger has elsewhere", name, uid)
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
		if n.published == nil && len(n.pods) == 0 && len(n.doubts) == 0 {
			err = fmt.Errorf("node %s is kept for nothing", name)
			return false
		}
		err = n.validate(name)
		return err == nil
	})
	if err != nil {
		return err
	}
	if held != len(l.pods) {
		return fmt.Errorf("%d pods are known, but nodes hold %d", len(l.pods), held)
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
