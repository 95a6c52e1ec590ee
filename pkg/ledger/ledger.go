package ledger

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"

	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/placement"
)

// ErrBound is returned by Reserve for a pod that the API server has already bound.
var ErrBound = errors.New("the pod is already bound")

// ErrNotPublished is returned by Reserve for a node that has published no capacity, or
// one that is not believed.
var ErrNotPublished = errors.New("the node publishes no disk space")

// Record is the place of one volume.
type Record struct {
	// Partition is the GUID of the volume's partition: the volume's identity.
	Partition string
	// Disk is the disk's id. A record of a disk that the node does not publish is
	// kept, and takes effect when the disk appears.
	Disk   string
	Extent extent.Extent
}

// Want is a volume that is to be placed.
type Want struct {
	// Partition is the GUID that the volume's partition will have.
	Partition string
	Request   placement.Request
	// Room is how many bytes must be free behind the volume when it is placed. They are
	// not reserved.
	Room int64
	// Persistent is true for a volume that outlives a pod and may be shared by several:
	// another pod may have placed it already.
	Persistent bool
}

// Planned is the request that finds a place with the room that is wanted.
func (w *Want) Planned() placement.Request {
	r := w.Request
	if r.Size = addCapped(r.Size, w.Room); r.Size == math.MaxInt64 {
		// No disk has as much, but placement is to say so.
		r.Size -= r.Size % placement.Alignment
	}
	return r
}

// Elsewhere is returned by Reserve for a persistent volume that already has its place on
// another node.
type Elsewhere struct{ Partition, Node string }

func (e *Elsewhere) Error() string {
	return fmt.Sprintf("the volume of partition %s is on node %s already", e.Partition, e.Node)
}

// Ledger is the memory. Use New.
//
// Invariants, held by Validate:
//  1. A holder has records on one node at most, apart from those in doubt.
//  2. Every node's snapshot is what its last capacity and its records give.
//  3. The revision of a node never falls, but by a list.
//  4. A node of which nothing is published or recorded, without an agent, is not kept.
//  5. The index has the free extents and disks of every node's snapshot, and nothing else.
//  6. Every partition that is recorded or published is found by Where.
//  7. A disk is free on its owner alone, of all nodes that publish it.
type Ledger struct {
	// nodes maps a name to a *node.
	nodes sync.Map

	mu sync.Mutex
	// holders by key: the UID of a pod, volumeKey of a PersistentVolume, or what the
	// caller of Reserve likes.
	holders map[string]*holder
	index   index
	// places has the holders that record a partition, by partition.
	places map[string][]*holder
	// shown has the node that publishes a partition, by partition; of several the one that
	// came last, the others are in superseded.
	shown      map[string]*node
	superseded map[string][]*node
	owners     owners
	// doubts has the nodes where earlier tries of a pod may have bound it, by pod.
	doubts map[string]map[string]struct{}
	// grants are volumes that may grow, by the UID of the PersistentVolume.
	grants map[string]grant
	// unseen are the names of PersistentVolumes that their makers have added and no event has shown, by UID.
	unseen map[string]string
	// deleted are the PersistentVolumes that went last.
	deleted recentUIDs
	// forgotten is the highest revision at which a node was that is not kept. Whatever
	// was published up to then was known then, because revisions grow over all nodes
	// and a watch tells them in order; so an event about an unknown node that is not
	// newer is a late one, about a capacity that has been deleted.
	forgotten uint64
	// refusals by pod and node.
	refusals map[string]map[string]refusal
}

// New returns an empty ledger.
func New() *Ledger {
	return &Ledger{
		holders: map[string]*holder{}, index: index{}, places: map[string][]*holder{}, shown: map[string]*node{}, superseded: map[string][]*node{}, owners: newOwners(),
		doubts: map[string]map[string]struct{}{}, grants: map[string]grant{},
		unseen: map[string]string{}, refusals: map[string]map[string]refusal{},
	}
}

// nothing is the snapshot of a node that the ledger does not know.
var nothing = &Snapshot{Node: &placement.Node{}}

// Snapshot returns the node at this moment, without a lock; an empty one, that is not
// published, for a node that the ledger does not know. Never nil.
func (l *Ledger) Snapshot(name string) *Snapshot {
	if n, ok := l.nodes.Load(name); ok {
		return n.(*node).snapshot.Load()
	}
	return nothing
}

// SetCapacity folds in what a node has published. It reports whether that was news: a
// revision that is not newer than the last one changes nothing. The price is that of the disks
// that have changed: mostly one, by one volume. The capacity is kept and must not be changed.
func (l *Ledger) SetCapacity(name string, c *Capacity) bool {
	_, after, _ := l.ReplaceCapacity(name, c)
	return after != nil
}

// ReplaceCapacity is SetCapacity, and returns the node as it was before and as it is after,
// with the same records; nil if it was no news. Served are other nodes whose disks came into
// service because this one publishes or owns them no more.
func (l *Ledger) ReplaceCapacity(name string, c *Capacity) (before, after *Snapshot, served []string) {
	return l.replaceCapacity(name, c, false)
}

// ListCapacity is ReplaceCapacity for what a list has. A list is what there is: also with a lower revision, which is
// what an API server has that was restored from a backup.
func (l *Ledger) ListCapacity(name string, c *Capacity) (before, after *Snapshot, served []string) {
	return l.replaceCapacity(name, c, true)
}

func (l *Ledger) replaceCapacity(name string, c *Capacity, listed bool) (before, after *Snapshot, served []string) {
	// Checking and sorting needs no lock, and is the larger part of the work.
	p := publish(c, l.Snapshot(name).published)
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
	if c.Revision == n.revision && n.published.like(p) && slices.Equal(n.owned, owned) {
		return nil, nil, nil
	}
	before = n.snapshot.Load()
	changed := n.published.changes(p)
	pending := l.pendingAfter(n, p, changed)
	was, withheld := n.published, n.withheld
	l.publish(n, p, changed)
	n.revision = c.Revision
	served = l.own(n, was, owned)
	if !was.like(p) || !maps.Equal(withheld, n.withheld) {
		n.news = c.Revision
	}
	after = n.with(pending)
	l.store(n, after)
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

// Listed folds in that a list at this revision was folded in by ListCapacity, and that the nodes in it are all that
// publish. It returns what DeleteCapacity does. What is known of nodes that do not publish is not newer than the list.
func (l *Ledger) Listed(publish map[string]struct{}, revision uint64) (served []string) {
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

// deleteCapacity takes back what the node publishes. The lock is held.
func (l *Ledger) deleteCapacity(name string, revision uint64) (served []string) {
	n := l.node(name)
	was := n.published
	l.publish(n, nil, was.changes(nil))
	n.revision, n.news = revision, revision
	served = l.own(n, was, nil)
	l.refresh(n)
	l.tidy(name, n)
	return served
}

// SetAgent folds in whether an agent is registered with the node's kubelet, without which no
// volume would be mounted there. It reports whether that was news.
func (l *Ledger) SetAgent(name string, registered bool) (news bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.Snapshot(name).Registered == registered {
		return false
	}
	n := l.node(name)
	n.registered = registered
	l.refresh(n)
	l.tidy(name, n)
	return true
}

// SetPod folds in that a pod is bound to a node with these records; none if its record
// is missing or not to be believed. It replaces whatever was assumed for the pod, and
// settles what was in doubt; it returns the nodes where anything was.
func (l *Ledger) SetPod(uid, nodeName string, records []Record) (settled []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	// The pod is bound: no later try will ask about refusals.
	delete(l.refusals, uid)
	if h := l.holders[uid]; h == nil || h.source != observed || h.node != nodeName || !slices.Equal(h.records, records) {
		l.put(&holder{key: uid, node: nodeName, source: observed, records: slices.Clone(records)})
	}
	return l.settle(uid)
}

// DeletePod folds in that a pod is gone, or has ended. It returns the nodes where anything
// of it was in doubt.
func (l *Ledger) DeletePod(uid string) (settled []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.refusals, uid)
	l.drop(uid)
	return l.settle(uid)
}

// Forget drops what was assumed for the pod, if anything was; it may be called twice, or
// without a Reserve. What is observed or in doubt stays.
func (l *Ledger) Forget(uid string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if h := l.holders[uid]; h != nil && h.source == assumed {
		l.drop(uid)
	}
}

// Release drops whatever is held for a key that is not a pod's, also what is in doubt.
func (l *Ledger) Release(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if h := l.holders[key]; h != nil && h.source == assumed {
		l.drop(key)
	}
	l.settle(key)
}

// Settle drops what is in doubt for a key: what was asked for then was not done, or its record is known. What is
// assumed stays.
func (l *Ledger) Settle(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.settle(key)
}

// Doubt says that a binding of the pod failed in a way that leaves open whether it
// happened. What was assumed is then held until the pod is observed as bound or gone,
// whatever else is reserved for it in between: the pod's next try may go to another
// node while it is bound to this one.
func (l *Ledger) Doubt(uid string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.holders[uid]
	if h == nil || h.source != assumed {
		return
	}
	n := l.node(h.node)
	for _, r := range h.records {
		// A pod that tries again gets the same place again, mostly.
		if !slices.Contains(n.doubts[uid], r) {
			n.doubts[uid] = append(n.doubts[uid], r)
		}
	}
	if l.doubts[uid] == nil {
		l.doubts[uid] = map[string]struct{}{}
	}
	l.doubts[uid][h.node] = struct{}{}
	l.drop(uid)
}

// Holds reports whether anything is held for the pod: assumed, in doubt or observed.
func (l *Ledger) Holds(uid string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.holders[uid] != nil || l.doubts[uid] != nil
}

// Doubted reports whether anything is held in doubt for the partition: by the pod whose
// volume it is, or for a claim whose volume may have been made. A new try to place the
// volume must not be kept out by what an earlier one has left.
func (l *Ledger) Doubted(partition string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	own := map[string]struct{}{partition: {}}
	for _, nodes := range l.doubts {
		for name := range nodes {
			if l.doubted(name, own) {
				return true
			}
		}
	}
	return false
}

// doubted reports whether one of the partitions is in doubt on the node. The lock is held.
func (l *Ledger) doubted(nodeName string, partitions map[string]struct{}) bool {
	n, ok := l.nodes.Load(nodeName)
	if !ok {
		return false
	}
	for _, records := range n.(*node).doubts {
		for _, r := range records {
			if _, ok := partitions[r.Partition]; ok {
				return true
			}
		}
	}
	return false
}

// Records returns the node and the records of a pod, without those in doubt; no node if
// there are none.
func (l *Ledger) Records(uid string) (nodeName string, records []Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if h := l.holders[uid]; h != nil {
		return h.node, slices.Clone(h.records)
	}
	return "", nil
}
