package ledger

import (
	"cmp"
	"slices"

	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/placement"
)

// volumeKey is the key of a PersistentVolume among the holders, apart from those of pods.
func volumeKey(pvUID string) string { return "volume/" + pvUID }

// grant is what Grow allowed, until the PersistentVolume says the same.
type grant struct {
	// said is the record as the PersistentVolume has it.
	said Record
	// lengths were allowed beyond it, the last one last.
	lengths []int64
}

// record is what is taken: as much as was said, or allowed.
func (g *grant) record() Record {
	r := g.said
	r.Extent.End = r.Extent.Start + max(r.Extent.Len(), slices.Max(g.lengths))
	return r
}

// SetVolume folds in that a PersistentVolume exists, with the place and the length that it
// has in the API. One that was deleted exists again when the API server was restored from a backup.
func (l *Ledger) SetVolume(pvUID, nodeName string, r Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.deleted.remove(pvUID)
	delete(l.unseen, pvUID)
	l.setVolume(pvUID, nodeName, r)
}

// AddVolume is SetVolume for who made a PersistentVolume. It says nothing new about one that
// is known, whose present state may be a later one, nor about one that was deleted already: the event of its
// deletion may come before the answer to its creation. Until SetVolume or DeleteVolume is called, it is unseen.
func (l *Ledger) AddVolume(pvUID, pvName, nodeName string, r Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.deleted.has(pvUID) && l.holders[volumeKey(pvUID)] == nil {
		l.unseen[pvUID] = pvName
		l.setVolume(pvUID, nodeName, r)
	}
}

// Unseen is a PersistentVolume that its maker has added, and of which there was no event. If it was deleted while the
// watch was interrupted, there will never be one: the list that follows does not have it, nor did the one before.
type Unseen struct{ UID, Name, Node string }

// Unseen returns them, sorted by UID.
func (l *Ledger) Unseen() []Unseen {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []Unseen
	for uid, name := range l.unseen {
		all = append(all, Unseen{uid, name, l.holders[volumeKey(uid)].node})
	}
	slices.SortFunc(all, func(a, b Unseen) int { return cmp.Compare(a.UID, b.UID) })
	return all
}

func (l *Ledger) setVolume(pvUID, nodeName string, r Record) {
	if g, ok := l.grants[pvUID]; ok {
		// Events of the PersistentVolume that were sent before it was made larger do not
		// take the grant back.
		g.said = r
		g.lengths = slices.DeleteFunc(g.lengths, func(length int64) bool { return length <= r.Extent.Len() })
		if len(g.lengths) == 0 {
			delete(l.grants, pvUID)
		} else {
			l.grants[pvUID] = g
			r = g.record()
		}
	}
	l.record(pvUID, nodeName, r)
}

// record writes down the place of a PersistentVolume. The lock is held.
func (l *Ledger) record(pvUID, nodeName string, r Record) {
	key := volumeKey(pvUID)
	if h := l.holders[key]; h == nil || h.node != nodeName || h.records[0] != r {
		l.put(&holder{key: key, node: nodeName, source: observed, records: []Record{r}})
	}
}

// DeleteVolume folds in that a PersistentVolume is gone. The partition, if the node
// publishes it, stays taken until the node publishes its bytes as free.
func (l *Ledger) DeleteVolume(pvUID string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.deleted.add(pvUID)
	delete(l.unseen, pvUID)
	delete(l.grants, pvUID)
	l.drop(volumeKey(pvUID))
}

// Grow allows a PersistentVolume to become length bytes long, if the bytes behind it are
// free, and takes them: the caller then makes the PersistentVolume's capacity as large, or
// calls Withdraw. Otherwise it returns the length that would be possible. A length that the
// volume has already is granted.
func (l *Ledger) Grow(pvUID string, length int64) (granted bool, possible int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.holders[volumeKey(pvUID)]
	if h == nil {
		return false, 0
	}
	r := h.records[0]
	possible = l.room(h.node, r)
	if length > possible {
		return false, possible
	}
	if length = (length + placement.Alignment - 1) / placement.Alignment * placement.Alignment; length > possible {
		return false, possible
	}
	g, ok := l.grants[pvUID]
	if !ok {
		g.said = r
	}
	if length > g.said.Extent.Len() {
		g.lengths = append(g.lengths, length)
		l.grants[pvUID] = g
		l.record(pvUID, h.node, g.record())
	}
	return true, possible
}

// Granted says that the PersistentVolume has the length now, and that no write which was sent earlier can still
// change it: other lengths that were allowed are free again. The length stays taken until an event of the
// PersistentVolume has it.
func (l *Ledger) Granted(pvUID string, length int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	g, ok := l.grants[pvUID]
	if !ok {
		return
	}
	node := l.holders[volumeKey(pvUID)].node
	if length <= g.said.Extent.Len() {
		delete(l.grants, pvUID)
		l.record(pvUID, node, g.said)
		return
	}
	g.lengths = []int64{length}
	l.grants[pvUID] = g
	l.record(pvUID, node, g.record())
}

// Withdraw takes the last grant back, which did not become the PersistentVolume's capacity,
// and surely will not.
func (l *Ledger) Withdraw(pvUID string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	g, ok := l.grants[pvUID]
	if !ok {
		return
	}
	node := l.holders[volumeKey(pvUID)].node
	if g.lengths = g.lengths[:len(g.lengths)-1]; len(g.lengths) == 0 {
		delete(l.grants, pvUID)
		l.record(pvUID, node, g.said)
		return
	}
	l.grants[pvUID] = g
	l.record(pvUID, node, g.record())
}

// room is how long the volume could be where it is. The lock is held.
func (l *Ledger) room(nodeName string, r Record) int64 {
	s := l.Snapshot(nodeName)
	if !s.Published || s.Problem != "" {
		return r.Extent.Len()
	}
	at := s.published.place(r)
	// As if the volume were not there: it lies in a free extent then, whose end is as far as
	// it can grow. Its place is the shorter one if the record is longer than the partition.
	for _, d := range s.Without(map[string]struct{}{r.Partition: {}}).Disks {
		if d.ID != at.Disk {
			continue
		}
		at.Extent.End = at.Extent.Start + placement.Alignment
		if e, ok := d.Free.Holding(at.Extent); ok {
			return max(r.Extent.Len(), e.End-at.Extent.Start)
		}
	}
	return r.Extent.Len()
}

// place is where the record's volume is: what the node says, if it says something. The
// length is the longer one.
func (p *published) place(r Record) Record {
	if disk, v := p.volume(r.Partition, r.Disk); v != nil && !v.Wiping {
		r.Disk, r.Extent = disk, extent.New(v.Extent.Start, max(v.Extent.Len(), r.Extent.Len()))
	}
	return r
}

// Where finds the volume that has the partition: by a PersistentVolume's record, by a
// reservation, or by what a node publishes and is not wiping. A reservation that is
// in doubt is not found: the volume may as well be elsewhere.
func (l *Ledger) Where(partition string) (nodeName string, r Record, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.where(partition, nil)
}

// Share lets another holder keep a volume that has a place, so that it stays held whatever
// becomes of whom it was reserved for; until Forget, or until it is in doubt and settled.
// It returns what Where does.
func (l *Ledger) Share(partition, with string) (nodeName string, r Record, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if nodeName, r, ok = l.where(partition, nil); ok {
		l.put(&holder{key: with, node: nodeName, source: assumed, records: []Record{r}})
	}
	return nodeName, r, ok
}

// where leaves out a holder, which may be nil. The lock is held.
func (l *Ledger) where(partition string, without *holder) (nodeName string, r Record, ok bool) {
	if nodeName, r, ok = l.recorded(partition, without); ok {
		return nodeName, r, true
	}
	n := l.shownBy(partition)
	if n == nil {
		return "", Record{}, false
	}
	disk, v := n.published.volume(partition, "")
	return n.name, Record{Partition: partition, Disk: disk, Extent: v.Extent}, !v.Wiping
}

// recorded is where without what nodes publish of volumes that have no record. The lock is held.
func (l *Ledger) recorded(partition string, without *holder) (nodeName string, r Record, ok bool) {
	var found *holder
	for _, h := range l.places[partition] {
		if h != without && (found == nil || h.source > found.source) {
			found = h
		}
	}
	if found != nil {
		for _, r := range found.records {
			if r.Partition == partition {
				return found.node, l.Snapshot(found.node).published.place(r), true
			}
		}
	}
	return "", Record{}, false
}

// reassigned reports whether the place of a volume without a record is recorded for another one, which the node has not
// published yet. The volume has ended then, and the node publishes an earlier state.
func (s *Snapshot) reassigned(r Record) bool {
	return slices.ContainsFunc(s.pending, func(other Record) bool {
		return other.Partition != r.Partition && other.Disk == r.Disk && other.Extent.Overlaps(r.Extent)
	})
}

// shownBy is the node that publishes the partition; of several, one where its disk is in service.
// It is nil if no node does. The lock is held.
func (l *Ledger) shownBy(partition string) *node {
	last := l.shown[partition]
	if len(l.superseded[partition]) == 0 {
		return last
	}
	serves := func(n *node) bool {
		disk, _ := n.published.volume(partition, "")
		return n.serves(disk)
	}
	if serves(last) {
		return last
	}
	for _, n := range slices.Backward(l.superseded[partition]) {
		if serves(n) {
			return n
		}
	}
	return last
}

// unplace makes a holder's records no longer found. The lock is held.
func (l *Ledger) unplace(h *holder) {
	for _, r := range h.records {
		holders := l.places[r.Partition]
		if i := slices.Index(holders, h); i >= 0 {
			holders = slices.Delete(holders, i, i+1)
		}
		if len(holders) == 0 {
			delete(l.places, r.Partition)
		} else {
			l.places[r.Partition] = holders
		}
	}
}

// publish makes the node's partitions found, and those that it no longer has not any more;
// changed are those of which one or the other may be true. The lock is held; the caller
// makes the snapshot.
func (l *Ledger) publish(n *node, p *published, changed []string) {
	before := n.published
	n.published = p
	for _, partition := range changed {
		_, had := before.volume(partition, "")
		_, has := p.volume(partition, "")
		switch {
		case had == nil && has != nil:
			l.show(partition, n)
		case had != nil && has == nil:
			l.hide(partition, n)
		}
	}
}

// show makes a partition found on a node that has not published it before. A disk that is
// moved is published by two nodes for a while: the one that came last counts.
func (l *Ledger) show(partition string, n *node) {
	if other := l.shown[partition]; other != nil && other != n {
		l.superseded[partition] = append(l.superseded[partition], other)
	}
	l.shown[partition] = n
}

// hide takes back show. If the node was not the only one, the other counts again.
func (l *Ledger) hide(partition string, n *node) {
	others := slices.DeleteFunc(l.superseded[partition], func(other *node) bool { return other == n })
	if l.shown[partition] == n {
		delete(l.shown, partition)
		if last := len(others) - 1; last >= 0 {
			l.shown[partition], others = others[last], others[:last]
		}
	}
	if len(others) > 0 {
		l.superseded[partition] = others
	} else {
		delete(l.superseded, partition)
	}
}

// maxRecentUIDs is how many deleted PersistentVolumes are remembered. What is folded in after the
// deletion comes from the maker of the volume, milliseconds late.
const maxRecentUIDs = 4096

// recentUIDs remembers the last UIDs that were added.
type recentUIDs struct {
	known map[string]struct{}
	ring  []string
	next  int
}

func (g *recentUIDs) has(uid string) bool {
	_, ok := g.known[uid]
	return ok
}

func (g *recentUIDs) remove(uid string) { delete(g.known, uid) }

func (g *recentUIDs) add(uid string) {
	if g.has(uid) {
		return
	}
	if g.known == nil {
		g.known = map[string]struct{}{}
	}
	if len(g.ring) < maxRecentUIDs {
		g.ring = append(g.ring, uid)
	} else {
		delete(g.known, g.ring[g.next])
		g.ring[g.next], g.next = uid, (g.next+1)%maxRecentUIDs
	}
	g.known[uid] = struct{}{}
}
