package ledger

import (
	"errors"
	"fmt"
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
	// somebody else may have placed it already.
	Persistent bool
}

// Planned is the request that finds a place with the room that is wanted.
func (w *Want) Planned() placement.Request {
	r := w.Request
	r.Size += w.Room
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
//  3. The revision of a node never falls.
//  4. A node of which nothing is published or recorded, without an agent, is not kept.
//  5. The index has the free extents and disks of every node's snapshot, and nothing else.
//  6. Every partition that is recorded or published is found by Where.
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
	// came last, the others are in eclipsed.
	shown    map[string]*node
	eclipsed map[string][]*node
	// doubts has the nodes where earlier tries of a pod may have bound it, by pod.
	doubts map[string]map[string]struct{}
	// grants are volumes that may grow, by the UID of the PersistentVolume.
	grants map[string]grant
	// deleted are the PersistentVolumes that went last.
	deleted graveyard
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
		holders: map[string]*holder{}, index: index{}, places: map[string][]*holder{}, shown: map[string]*node{}, eclipsed: map[string][]*node{},
		doubts: map[string]map[string]struct{}{}, grants: map[string]grant{}, refusals: map[string]map[string]refusal{},
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
	_, after := l.ReplaceCapacity(name, c)
	return after != nil
}

// ReplaceCapacity is SetCapacity, and returns the node as it was before and as it is after,
// with the same records; nil if it was no news.
func (l *Ledger) ReplaceCapacity(name string, c *Capacity) (before, after *Snapshot) {
	// Checking and sorting needs no lock, and is the larger part of the work.
	p := publish(c, l.Snapshot(name).published)
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.Revision <= l.revision(name) {
		return nil, nil
	}
	n := l.node(name)
	before = n.snapshot.Load()
	changed := n.published.changes(p)
	pending := l.pendingAfter(n, p, changed)
	l.publish(n, p, changed)
	n.revision = c.Revision
	after = n.with(pending)
	l.store(n, after)
	return before, after
}

// DeleteCapacity folds in that a node's capacity was deleted, at a revision not older
// than the capacity's own.
func (l *Ledger) DeleteCapacity(name string, revision uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if revision < l.revision(name) {
		return
	}
	n := l.node(name)
	l.publish(n, nil, n.published.changes(nil))
	n.revision = revision
	l.refresh(n)
	l.tidy(name, n)
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

// Reserve plans the volumes on the node once more, this time under the lock, and records
// the result for the holder, with a record for each of them in their order. It may be
// repeated, for the same node or another: the last call counts, and what the holder itself
// holds there is no obstacle to it, nor what anybody holds there in doubt for these volumes.
//
// A persistent volume that has a place already keeps it: the holder shares in it, so that
// it stays held when the other lets go, and asks for nothing. With its place on another node
// the error is *Elsewhere. Other errors are placement's when the volumes do not fit (any
// more), ErrBound and ErrNotPublished.
func (l *Ledger) Reserve(key, nodeName string, wants []Want) ([]Record, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	earlier := l.holders[key]
	if earlier != nil && earlier.source == observed {
		return nil, ErrBound
	}
	s := l.Snapshot(nodeName)
	if !s.Published || s.Problem != "" {
		return nil, ErrNotPublished
	}
	records := make([]Record, len(wants))
	var planned []int
	for i := range wants {
		if !wants[i].Persistent {
			planned = append(planned, i)
			continue
		}
		where, r, ok := l.where(wants[i].Partition, earlier)
		switch {
		case !ok:
			planned = append(planned, i)
		case where != nodeName:
			return nil, &Elsewhere{Partition: wants[i].Partition, Node: where}
		default:
			records[i] = r
		}
	}
	own := make(map[string]struct{}, len(planned))
	requests := make([]placement.Request, len(planned))
	for i, at := range planned {
		own[wants[at].Partition] = struct{}{}
		requests[i] = wants[at].Planned()
	}
	view := s.Node
	if earlier != nil && earlier.node == nodeName || l.doubted(nodeName, own) {
		view = s.Without(own)
	}
	plan, err := placement.Plan(make([]placement.Assignment, 0, len(requests)), view, requests)
	if err != nil {
		return nil, err
	}
	for i, at := range planned {
		records[at] = Record{
			Partition: wants[at].Partition, Disk: plan[i].Disk,
			Extent: extent.New(plan[i].Extent.Start, wants[at].Request.Size),
		}
	}
	l.put(&holder{key: key, node: nodeName, source: assumed, records: records})
	return slices.Clone(records), nil
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
// volume it is, or for a claim whose volume may have been made. A try to place the volume
// anew must not be kept out by what an earlier one has left.
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
