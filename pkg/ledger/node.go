package ledger

import (
	"cmp"
	"maps"
	"slices"
	"sync/atomic"

	"github.com/berthdev/berth/pkg/placement"
)

type node struct {
	name string
	// order is the node's rank among equally good nodes.
	order    uint64
	snapshot atomic.Pointer[Snapshot]

	// Below, guarded by the ledger's mutex.

	published *published
	// registered is true while an agent is registered with the kubelet.
	registered bool
	// absent is true while there is no Node of that name.
	absent bool
	// owned is Owned of the capacity, sorted.
	owned []string
	// withheld are disks that the node publishes and another node owns. The map is replaced, never changed.
	withheld map[string]struct{}
	revision uint64
	// news is the revision of the last capacity that changed something about the node's disks.
	news    uint64
	holders map[string]*holder
	// doubts are records of tries whose outcome is not known, by pod.
	doubts map[string][]Record
}

// holder is a pod, a PersistentVolume, or another key that has records.
type holder struct {
	key     string
	node    string
	source  source
	records []Record
}

// source is where a holder's records come from. The higher one replaces the lower one.
type source int

const (
	// assumed by Reserve, and forgotten by Forget.
	assumed source = iota
	// observed in the API. Only an event of the API takes it back.
	observed
)

// node returns the node's entry, a new one if there is none. The lock is held.
func (l *Ledger) node(name string) *node {
	if n, ok := l.nodes.Load(name); ok {
		return n.(*node)
	}
	n := &node{name: name, order: placement.NodeRank(name), revision: l.forgotten, news: l.forgotten, holders: map[string]*holder{}, doubts: map[string][]Record{}}
	l.refresh(n)
	l.nodes.Store(name, n)
	return n
}

// revision is the revision up to which the node's capacity is known. The lock is held.
func (l *Ledger) revision(name string) uint64 {
	if n, ok := l.nodes.Load(name); ok {
		return n.(*node).revision
	}
	return l.forgotten
}

// news is the revision at which the node's disks last changed. Other fields of its NodeDiskCapacity may have changed
// since. The lock is held.
func (l *Ledger) news(name string) uint64 {
	if n, ok := l.nodes.Load(name); ok {
		return n.(*node).news
	}
	return l.forgotten
}

// idle reports whether nothing is known about the node.
func (n *node) idle() bool {
	return n.published == nil && !n.registered && len(n.holders) == 0 && len(n.doubts) == 0
}

// tidy forgets the node if nothing is known about it. The lock is held.
func (l *Ledger) tidy(name string, n *node) {
	if n.idle() {
		l.forgotten = max(l.forgotten, n.revision)
		l.nodes.Delete(name)
	}
}

// put replaces the records of a holder. The lock is held.
func (l *Ledger) put(h *holder) {
	n := l.node(h.node)
	earlier := l.holders[h.key]
	there := n.holders[h.key]
	// The new records count before the earlier ones are removed: a reader between the two sees less free space, not
	// more.
	n.holders[h.key] = h
	for _, r := range h.records {
		l.places[r.Partition] = append(l.places[r.Partition], h)
	}
	switch {
	case there != nil && slices.Equal(there.records, h.records):
		// The space is taken already, by the same records from another source.
	case there == nil && n.published != nil:
		l.store(n, n.snapshot.Load().with(h.records))
	default:
		l.refresh(n)
	}
	if earlier != nil && earlier.node != h.node {
		l.drop(h.key)
	} else if earlier != nil {
		l.unplace(earlier)
	}
	l.holders[h.key] = h
}

// drop removes a holder and its records. The lock is held.
func (l *Ledger) drop(key string) {
	h := l.holders[key]
	if h == nil {
		return
	}
	delete(l.holders, key)
	l.unplace(h)
	n := l.node(h.node)
	delete(n.holders, key)
	l.refresh(n)
	l.tidy(h.node, n)
}

// settle drops what is in doubt about a pod, because its outcome is known. The lock is held.
func (l *Ledger) settle(uid string) []string {
	nodes := slices.Collect(maps.Keys(l.doubts[uid]))
	delete(l.doubts, uid)
	for _, name := range nodes {
		n := l.node(name)
		delete(n.doubts, uid)
		l.refresh(n)
		l.tidy(name, n)
	}
	return nodes
}

// refresh makes a new snapshot of the node from its capacity and its records. The lock is held.
func (l *Ledger) refresh(n *node) { l.store(n, n.compute()) }

// store is the only function that replaces a snapshot. The lock is held.
func (l *Ledger) store(n *node, s *Snapshot) {
	s.Registered, s.stocks = n.registered, stocksOf(s.Node)
	var before []stock
	if last := n.snapshot.Swap(s); last != nil {
		before = last.stocks
	}
	l.index.update(n, before, s.stocks)
}

func (n *node) compute() *Snapshot {
	if n.published == nil {
		return &Snapshot{Node: &placement.Node{}, Revision: n.revision}
	}
	return n.with(n.pending(n.published))
}

// with is the snapshot of the node with these pending records.
func (n *node) with(pending []Record) *Snapshot {
	return &Snapshot{
		Node: n.published.node(pending, nil, n.withheld), Revision: n.revision, Published: true, Absent: n.absent, Problem: n.published.problem,
		published: n.published, pending: pending, withheld: n.withheld,
	}
}

// pending returns the node's records as far as the capacity does not show them, sorted by disk.
func (n *node) pending(p *published) []Record {
	var pending []Record
	add := func(records []Record) {
		for _, r := range records {
			if missing, ok := p.missing(r); ok {
				pending = append(pending, missing)
			}
		}
	}
	for _, h := range n.holders {
		add(h.records)
	}
	for _, records := range n.doubts {
		add(records)
	}
	slices.SortFunc(pending, compareRecords)
	return pending
}

// pendingAfter is pending for the node's next capacity, in which these partitions differ from the last one. For all
// other partitions the result is the same as before. The lock is held.
func (l *Ledger) pendingAfter(n *node, next *published, changed []string) []Record {
	if n.published == nil || n.published.problem != "" || next.problem != "" {
		return n.pending(next)
	}
	var pending []Record
	for _, r := range n.snapshot.Load().pending {
		if _, ok := slices.BinarySearch(changed, r.Partition); !ok {
			pending = append(pending, r)
		}
	}
	for _, partition := range changed {
		add := func(records []Record) {
			for _, r := range records {
				if missing, ok := next.missing(r); ok && r.Partition == partition {
					pending = append(pending, missing)
				}
			}
		}
		for i, h := range l.places[partition] {
			// A holder occurs once for each of its records.
			if h.node == n.name && !slices.Contains(l.places[partition][:i], h) {
				add(h.records)
			}
		}
		for _, records := range n.doubts {
			add(records)
		}
	}
	slices.SortFunc(pending, compareRecords)
	return pending
}

func compareRecords(a, b Record) int {
	if order := cmp.Compare(a.Disk, b.Disk); order != 0 {
		return order
	}
	return cmp.Or(cmp.Compare(a.Extent.Start, b.Extent.Start), cmp.Compare(a.Extent.End, b.Extent.End),
		cmp.Compare(a.Partition, b.Partition))
}
