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
	// rank is the node's rank among equally good nodes.
	rank     uint64
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
	// disksRevision is the revision of the last capacity that changed something about the node's disks.
	disksRevision uint64
	holders       map[string]*holder
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
	n := &node{name: name, rank: placement.NodeRank(name), revision: l.forgotten, disksRevision: l.forgotten, holders: map[string]*holder{}, doubts: map[string][]Record{}}
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

// disksRevision is the revision at which the node's disks last changed. Other fields of its NodeDiskCapacity may have
// changed since. The lock is held.
func (l *Ledger) disksRevision(name string) uint64 {
	if n, ok := l.nodes.Load(name); ok {
		return n.(*node).disksRevision
	}
	return l.forgotten
}

// idle reports whether nothing is known about the node.
func (n *node) idle() bool {
	return n.published == nil && !n.registered && len(n.holders) == 0 && len(n.doubts) == 0
}

// removeIfIdle forgets the node if nothing is known about it. The lock is held.
func (l *Ledger) removeIfIdle(name string, n *node) {
	if n.idle() {
		l.forgotten = max(l.forgotten, n.revision)
		l.nodes.Delete(name)
	}
}

// setHolder replaces the records of a holder. The lock is held.
func (l *Ledger) setHolder(h *holder) {
	n := l.node(h.node)
	earlier := l.holders[h.key]
	there := n.holders[h.key]
	// The new records count before the earlier ones are removed: a reader between the two sees less free space, not
	// more.
	n.holders[h.key] = h
	for _, r := range h.records {
		l.recordedBy[r.Partition] = append(l.recordedBy[r.Partition], h)
	}
	switch {
	case there != nil && slices.Equal(there.records, h.records):
		// The space is taken already, by the same records from another source.
	case there == nil && n.published != nil:
		l.storeSnapshot(n, n.snapshot.Load().withRecords(h.records))
	default:
		l.refresh(n)
	}
	if earlier != nil && earlier.node != h.node {
		l.removeHolder(h.key)
	} else if earlier != nil {
		l.removeRecords(earlier)
	}
	l.holders[h.key] = h
}

// removeHolder removes a holder and its records. The lock is held.
func (l *Ledger) removeHolder(key string) {
	h := l.holders[key]
	if h == nil {
		return
	}
	delete(l.holders, key)
	l.removeRecords(h)
	n := l.node(h.node)
	delete(n.holders, key)
	l.refresh(n)
	l.removeIfIdle(h.node, n)
}

// settle drops what is in doubt about a pod, because its outcome is known. The lock is held.
func (l *Ledger) settle(uid string) []string {
	nodes := slices.Collect(maps.Keys(l.doubts[uid]))
	delete(l.doubts, uid)
	for _, name := range nodes {
		n := l.node(name)
		delete(n.doubts, uid)
		l.refresh(n)
		l.removeIfIdle(name, n)
	}
	return nodes
}

// refresh makes a new snapshot of the node from its capacity and its records. The lock is held.
func (l *Ledger) refresh(n *node) { l.storeSnapshot(n, n.compute()) }

// storeSnapshot is the only function that replaces a snapshot. The lock is held.
func (l *Ledger) storeSnapshot(n *node, s *Snapshot) {
	s.Registered, s.free = n.registered, freeByClass(s.Node)
	var before []classFree
	if last := n.snapshot.Swap(s); last != nil {
		before = last.free
	}
	l.index.update(n, before, s.free)
}

func (n *node) compute() *Snapshot {
	if n.published == nil {
		return &Snapshot{Node: &placement.Node{}, Revision: n.revision, Absent: n.absent}
	}
	return n.snapshotWith(n.unpublished(n.published))
}

// snapshotWith returns the snapshot of the node with these unpublished records.
func (n *node) snapshotWith(unpublished []Record) *Snapshot {
	return &Snapshot{
		Node: n.published.node(unpublished, nil, n.withheld), Revision: n.revision, Published: true, Absent: n.absent, Problem: n.published.problem,
		published: n.published, unpublished: unpublished, withheld: n.withheld,
	}
}

// unpublished returns the node's records as far as the capacity does not show them, sorted by disk.
func (n *node) unpublished(p *published) []Record {
	var unpublished []Record
	add := func(records []Record) {
		for _, r := range records {
			if missing, ok := p.unpublishedPart(r); ok {
				unpublished = append(unpublished, missing)
			}
		}
	}
	for _, h := range n.holders {
		add(h.records)
	}
	for _, records := range n.doubts {
		add(records)
	}
	slices.SortFunc(unpublished, compareRecords)
	return unpublished
}

// unpublishedAfter is unpublished for the node's next capacity, in which these partitions differ from the last one. For
// all other partitions the result is the same as before. The lock is held.
func (l *Ledger) unpublishedAfter(n *node, next *published, changed []string) []Record {
	if n.published == nil || n.published.problem != "" || next.problem != "" {
		return n.unpublished(next)
	}
	var unpublished []Record
	for _, r := range n.snapshot.Load().unpublished {
		if _, ok := slices.BinarySearch(changed, r.Partition); !ok {
			unpublished = append(unpublished, r)
		}
	}
	for _, partition := range changed {
		add := func(records []Record) {
			for _, r := range records {
				if missing, ok := next.unpublishedPart(r); ok && r.Partition == partition {
					unpublished = append(unpublished, missing)
				}
			}
		}
		for i, h := range l.recordedBy[partition] {
			// A holder occurs once for each of its records.
			if h.node == n.name && !slices.Contains(l.recordedBy[partition][:i], h) {
				add(h.records)
			}
		}
		for _, records := range n.doubts {
			add(records)
		}
	}
	slices.SortFunc(unpublished, compareRecords)
	return unpublished
}

func compareRecords(a, b Record) int {
	if order := cmp.Compare(a.Disk, b.Disk); order != 0 {
		return order
	}
	return cmp.Or(cmp.Compare(a.Extent.Start, b.Extent.Start), cmp.Compare(a.Extent.End, b.Extent.End),
		cmp.Compare(a.Partition, b.Partition))
}
