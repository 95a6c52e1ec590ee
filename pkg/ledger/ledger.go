package ledger

import (
	"maps"
	"slices"
	"sync"

	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/placement"
)

// Record is the place of one volume.
type Record struct {
	// Partition is the GUID of the volume's partition: the volume's identity.
	Partition string
	// Disk is the disk's id. A record of a disk that the node does not publish is kept. It takes effect when the node
	// publishes the disk.
	Disk   string
	Extent extent.Extent
}

// Ledger is the record of disk space on all nodes. Use New.
//
// Invariants, checked by Validate:
//  1. A holder has records on one node at most, apart from those in doubt.
//  2. Every node's snapshot is what its last capacity and its records give.
//  3. The revision of a node never falls, except by a list.
//  4. A node without a capacity, without records and without an agent is not kept.
//  5. The index has the free extents and disks of every node's snapshot, and nothing else.
//  6. Every partition that is recorded or published is found by Where.
//  7. A disk is free on its owner alone, of all nodes that publish it.
type Ledger struct {
	// nodes maps a name to a *node.
	nodes sync.Map

	mu sync.Mutex
	// holders by key: the UID of a pod, volumeKey of a PersistentVolume, or any key that the caller of Reserve chooses.
	holders map[string]*holder
	index   index
	// recordedBy has the holders that record a partition, by partition.
	recordedBy map[string][]*holder
	// publishedBy has the node that publishes a partition, by partition. Of several nodes it has the one that published
	// it last; the others are in alsoPublishedBy.
	publishedBy     map[string]*node
	alsoPublishedBy map[string][]*node
	owners          owners
	// doubts has the nodes where earlier tries of a pod may have bound it, by pod.
	doubts map[string]map[string]struct{}
	// grants are volumes that may grow, by the UID of the PersistentVolume.
	grants map[string]grant
	// plannedMoves are moves of PersistentVolumes that PlanMove has reserved, by UID.
	plannedMoves map[string]plannedMove
	// plannedPieces are pieces of PersistentVolumes that PlanPieces has reserved, by UID.
	plannedPieces map[string]plannedPieces
	// unseen are the names of PersistentVolumes that were added by AddVolume and not yet seen in an event, by UID.
	unseen map[string]string
	// deleted are the UIDs of the PersistentVolumes that were deleted last.
	deleted recentUIDs
	// forgotten is the highest revision of the nodes that are no longer kept. Revisions grow over all nodes, and a
	// watch delivers them in order. So an event about an unknown node with a revision that is not higher is late: it is
	// about a capacity that has been deleted.
	forgotten uint64
	// refusals by pod and node.
	refusals map[string]map[string]refusal
}

// New returns an empty ledger.
func New() *Ledger {
	return &Ledger{
		holders: map[string]*holder{}, index: index{}, recordedBy: map[string][]*holder{}, publishedBy: map[string]*node{}, alsoPublishedBy: map[string][]*node{}, owners: newOwners(),
		doubts: map[string]map[string]struct{}{}, grants: map[string]grant{}, plannedMoves: map[string]plannedMove{}, plannedPieces: map[string]plannedPieces{},
		unseen: map[string]string{}, refusals: map[string]map[string]refusal{},
	}
}

// emptySnapshot is the snapshot of a node that the ledger does not know.
var emptySnapshot = &Snapshot{Node: &placement.Node{}}

// Snapshot returns the node at this moment, without a lock. For an unknown node it returns an empty snapshot, which is
// not published. It never returns nil.
func (l *Ledger) Snapshot(name string) *Snapshot {
	if n, ok := l.nodes.Load(name); ok {
		return n.(*node).snapshot.Load()
	}
	return emptySnapshot
}

// SetCapacity folds in what a node has published. It reports whether anything changed: a revision that is not higher
// than the last one changes nothing. It costs as much as the disks that have changed: usually one disk, by one volume.
// The ledger keeps the capacity, so it must not be changed.
func (l *Ledger) SetCapacity(name string, c *Capacity) bool {
	_, after, _ := l.ReplaceCapacity(name, c)
	return after != nil
}

// ReplaceCapacity is SetCapacity, and returns the node as it was before and as it is after, with the same records. Both
// are nil if nothing changed. served are other nodes whose disks came into service, because this node no longer
// publishes or owns them.
func (l *Ledger) ReplaceCapacity(name string, c *Capacity) (before, after *Snapshot, served []string) {
	return l.replaceCapacity(name, c, false)
}

// ListCapacity is ReplaceCapacity for a capacity from a list. A list is believed at a lower revision, too: an API
// server that was restored from a backup has lower revisions.
func (l *Ledger) ListCapacity(name string, c *Capacity) (before, after *Snapshot, served []string) {
	return l.replaceCapacity(name, c, true)
}

// replaceCapacity is ReplaceCapacity, or ListCapacity if listed is set.
func (l *Ledger) replaceCapacity(name string, c *Capacity, listed bool) (before, after *Snapshot, served []string) {
	// Checking and sorting is the larger part of the work, and needs no lock.
	p := newPublished(c, l.Snapshot(name).published)
	var owned []string
	if len(c.Owned) > 0 {
		owned = slices.Compact(slices.Sorted(slices.Values(c.Owned)))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if known := l.revision(name); c.Revision <= known && !listed {
		return nil, nil, nil
	}
	n := l.node(name)
	if c.Revision == n.revision && n.published.sameDisks(p) && slices.Equal(n.owned, owned) {
		return nil, nil, nil
	}
	before = n.snapshot.Load()
	changed := n.published.changedPartitions(p)
	unpublished := l.unpublishedAfter(n, p, changed)
	was, withheld := n.published, n.withheld
	l.setPublished(n, p, changed)
	n.revision = c.Revision
	served = l.setOwned(n, was, owned)
	if !was.sameDisks(p) || !maps.Equal(withheld, n.withheld) {
		n.disksRevision = c.Revision
	}
	after = n.snapshotWith(unpublished)
	l.storeSnapshot(n, after)
	return before, after, served
}

// DeleteCapacity folds in that a node's capacity was deleted, at a revision not older
// than the capacity's own. It returns the other nodes whose disks came into service.
func (l *Ledger) DeleteCapacity(name string, revision uint64) (served []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if revision < l.revision(name) {
		return nil
	}
	return l.deleteCapacity(name, revision)
}

// EndList folds in the end of a list at this revision. Each capacity in it was folded in by ListCapacity, and no other
// node publishes one. It returns what DeleteCapacity returns. What is known of nodes that do not publish becomes no
// newer than the list.
func (l *Ledger) EndList(publish map[string]struct{}, revision uint64) (served []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forgotten = min(l.forgotten, revision)
	var gone []string
	l.nodes.Range(func(key, value any) bool {
		name, _ := key.(string)
		n, _ := value.(*node)
		if _, listed := publish[name]; listed {
			return true
		}
		if n.published == nil {
			n.revision = min(n.revision, revision)
			return true
		}
		gone = append(gone, name)
		return true
	})
	for _, name := range gone {
		served = append(served, l.deleteCapacity(name, revision)...)
	}
	return served
}

// deleteCapacity removes what the node publishes. The lock is held.
func (l *Ledger) deleteCapacity(name string, revision uint64) (served []string) {
	n := l.node(name)
	was := n.published
	l.setPublished(n, nil, was.changedPartitions(nil))
	n.revision, n.disksRevision = revision, revision
	served = l.setOwned(n, was, nil)
	l.refresh(n)
	l.removeIfIdle(name, n)
	return served
}

// SetAgent folds in whether an agent is registered with the node's kubelet. Without one no volume is mounted there. It
// reports whether that changed.
func (l *Ledger) SetAgent(name string, registered bool) (changed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.Snapshot(name).Registered == registered {
		return false
	}
	n := l.node(name)
	n.registered = registered
	l.refresh(n)
	l.removeIfIdle(name, n)
	return true
}

// SetPod folds in that a pod is bound to a node with these records. There are none if the pod's own record is missing
// or not credible. They replace what was assumed for the pod and settle what was in doubt. SetPod returns the nodes
// where records were in doubt.
func (l *Ledger) SetPod(uid, nodeName string, records []Record) (settled []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	// The pod is bound, so there is no later try that reads its refusals.
	delete(l.refusals, uid)
	if h := l.holders[uid]; h == nil || h.source != observed || h.node != nodeName || !slices.Equal(h.records, records) {
		l.setHolder(&holder{key: uid, node: nodeName, source: observed, records: slices.Clone(records)})
	}
	return l.settle(uid)
}

// DeletePod folds in that a pod is gone or has ended. It returns the nodes where records of it were in doubt.
func (l *Ledger) DeletePod(uid string) (settled []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.refusals, uid)
	l.removeHolder(uid)
	return l.settle(uid)
}
