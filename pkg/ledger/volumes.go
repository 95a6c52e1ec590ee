package ledger

import (
	"cmp"
	"slices"

	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/placement"
)

// volumeKey is the holder's key of a PersistentVolume, which differs from those of pods.
func volumeKey(pvUID string) string { return "volume/" + pvUID }

// grant is what Grow allowed, until the PersistentVolume's capacity says the same.
type grant struct {
	// observed is the record as it is in the API.
	observed Record
	// lengths were allowed beyond it, the last one last.
	lengths []int64
}

// record has the longest of the lengths that are in the API or allowed.
func (g *grant) record() Record {
	r := g.observed
	r.Extent.End = r.Extent.Start + max(r.Extent.Len(), slices.Max(g.lengths))
	return r
}

// SetVolume folds in that a PersistentVolume exists, with its place and length in the API. One that was deleted exists
// again when the API server was restored from a backup.
func (l *Ledger) SetVolume(pvUID, nodeName string, r Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.deleted.remove(pvUID)
	delete(l.unseen, pvUID)
	l.setVolume(pvUID, nodeName, r)
}

// AddVolume is SetVolume for the component that created the PersistentVolume. It changes nothing for a known one, whose
// record may be newer. It changes nothing for a deleted one either: the event of its deletion may come before the
// response to its creation. The PersistentVolume is unseen until SetVolume or DeleteVolume is called.
func (l *Ledger) AddVolume(pvUID, pvName, nodeName string, r Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.deleted.has(pvUID) && l.holders[volumeKey(pvUID)] == nil {
		l.unseen[pvUID] = pvName
		l.setVolume(pvUID, nodeName, r)
	}
}

// UnseenVolume is a PersistentVolume that was added by AddVolume and that no event has shown. If it was deleted while
// the watch was interrupted, there will be no event: neither the list before nor the list after has it.
type UnseenVolume struct{ UID, Name, Node string }

// UnseenVolumes returns the unseen PersistentVolumes, sorted by UID.
func (l *Ledger) UnseenVolumes() []UnseenVolume {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []UnseenVolume
	for uid, name := range l.unseen {
		all = append(all, UnseenVolume{uid, name, l.holders[volumeKey(uid)].node})
	}
	slices.SortFunc(all, func(a, b UnseenVolume) int { return cmp.Compare(a.UID, b.UID) })
	return all
}

func (l *Ledger) setVolume(pvUID, nodeName string, r Record) {
	if g, ok := l.grants[pvUID]; ok {
		// Events that were sent before the PersistentVolume's capacity was raised do not take the grant back.
		g.observed = r
		g.lengths = slices.DeleteFunc(g.lengths, func(length int64) bool { return length <= r.Extent.Len() })
		if len(g.lengths) == 0 {
			delete(l.grants, pvUID)
		} else {
			l.grants[pvUID] = g
			r = g.record()
		}
	}
	l.setVolumeRecord(pvUID, nodeName, r)
}

// setVolumeRecord replaces the record of a PersistentVolume. The lock is held.
func (l *Ledger) setVolumeRecord(pvUID, nodeName string, r Record) {
	key := volumeKey(pvUID)
	if h := l.holders[key]; h == nil || h.node != nodeName || h.records[0] != r {
		l.setHolder(&holder{key: key, node: nodeName, source: observed, records: []Record{r}})
	}
}

// DeleteVolume folds in that a PersistentVolume is gone. If the node publishes the partition, it stays taken until the
// node publishes its bytes as free.
func (l *Ledger) DeleteVolume(pvUID string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.deleted.add(pvUID)
	delete(l.unseen, pvUID)
	delete(l.grants, pvUID)
	l.removeHolder(volumeKey(pvUID))
}

// Grow allows a PersistentVolume to become length bytes long, if the bytes behind it are free, and takes them. The
// caller then raises the PersistentVolume's capacity, or calls WithdrawGrowth. If they are not free, it returns the
// possible length. A length that the volume already has is granted.
func (l *Ledger) Grow(pvUID string, length int64) (granted bool, possible int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.holders[volumeKey(pvUID)]
	if h == nil {
		return false, 0
	}
	r := h.records[0]
	possible = l.maxLength(h.node, r)
	if length > possible {
		return false, possible
	}
	if length = (length + placement.Alignment - 1) / placement.Alignment * placement.Alignment; length > possible {
		return false, possible
	}
	g, ok := l.grants[pvUID]
	if !ok {
		g.observed = r
	}
	if length > g.observed.Extent.Len() {
		g.lengths = append(g.lengths, length)
		l.grants[pvUID] = g
		l.setVolumeRecord(pvUID, h.node, g.record())
	}
	return true, possible
}

// SettleGrowth folds in that the PersistentVolume has the length, and that no earlier write can still change it. Other
// lengths that were allowed are free again. The length stays taken until an event of the PersistentVolume has it.
func (l *Ledger) SettleGrowth(pvUID string, length int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	g, ok := l.grants[pvUID]
	if !ok {
		return
	}
	node := l.holders[volumeKey(pvUID)].node
	if length <= g.observed.Extent.Len() {
		delete(l.grants, pvUID)
		l.setVolumeRecord(pvUID, node, g.observed)
		return
	}
	g.lengths = []int64{length}
	l.grants[pvUID] = g
	l.setVolumeRecord(pvUID, node, g.record())
}

// WithdrawGrowth takes back the last length that Grow allowed: the write was not done and never will be.
func (l *Ledger) WithdrawGrowth(pvUID string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	g, ok := l.grants[pvUID]
	if !ok {
		return
	}
	node := l.holders[volumeKey(pvUID)].node
	if g.lengths = g.lengths[:len(g.lengths)-1]; len(g.lengths) == 0 {
		delete(l.grants, pvUID)
		l.setVolumeRecord(pvUID, node, g.observed)
		return
	}
	l.grants[pvUID] = g
	l.setVolumeRecord(pvUID, node, g.record())
}

// maxLength returns how long the volume could be at its place. The lock is held.
func (l *Ledger) maxLength(nodeName string, r Record) int64 {
	s := l.Snapshot(nodeName)
	if !s.Published || s.Problem != "" {
		return r.Extent.Len()
	}
	at := s.published.locate(r)
	// Without the volume, its place lies in a free extent, and the volume can grow to the end of that extent. Its place
	// is the shorter one if the record is longer than the partition.
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

// locate returns where the record's volume is: where the node publishes it, if it does. The length is the longer one.
func (p *published) locate(r Record) Record {
	if disk, v := p.volume(r.Partition, r.Disk); v != nil && !v.Wiping {
		r.Disk, r.Extent = disk, extent.New(v.Extent.Start, max(v.Extent.Len(), r.Extent.Len()))
	}
	return r
}

// Where finds the volume that has the partition: by a PersistentVolume's record, by a reservation, or by what a node
// publishes and is not wiping. A reservation in doubt is not found, because the volume may be elsewhere.
func (l *Ledger) Where(partition string) (nodeName string, r Record, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.where(partition, nil)
}

// Share adds another holder to a volume that has a place. The place stays held when the first holder gives it up, until
// Forget of the other holder, or until it is in doubt and settled. Share returns what Where does.
func (l *Ledger) Share(partition, with string) (nodeName string, r Record, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if nodeName, r, ok = l.where(partition, nil); ok {
		l.setHolder(&holder{key: with, node: nodeName, source: assumed, records: []Record{r}})
	}
	return nodeName, r, ok
}

// where is Where without a holder, which may be nil. The lock is held.
func (l *Ledger) where(partition string, without *holder) (nodeName string, r Record, ok bool) {
	if nodeName, r, ok = l.whereRecorded(partition, without); ok {
		return nodeName, r, true
	}
	n := l.publisherOf(partition)
	if n == nil {
		return "", Record{}, false
	}
	disk, v := n.published.volume(partition, "")
	return n.name, Record{Partition: partition, Disk: disk, Extent: v.Extent}, !v.Wiping
}

// whereRecorded is where for volumes with a record only. The lock is held.
func (l *Ledger) whereRecorded(partition string, without *holder) (nodeName string, r Record, ok bool) {
	var found *holder
	for _, h := range l.recordedBy[partition] {
		if h != without && (found == nil || h.source > found.source) {
			found = h
		}
	}
	if found != nil {
		for _, r := range found.records {
			if r.Partition == partition {
				return found.node, l.Snapshot(found.node).published.locate(r), true
			}
		}
	}
	return "", Record{}, false
}

// reassigned reports whether the place of a volume without a record is recorded for another volume, which the node has
// not published yet. The volume has ended then, and the node publishes an earlier state.
func (s *Snapshot) reassigned(r Record) bool {
	return slices.ContainsFunc(s.unpublished, func(other Record) bool {
		return other.Partition != r.Partition && other.Disk == r.Disk && other.Extent.Overlaps(r.Extent)
	})
}

// publisherOf returns the node that publishes the partition; of several, one on which its disk is in service. It is nil
// if no node does. The lock is held.
func (l *Ledger) publisherOf(partition string) *node {
	last := l.publishedBy[partition]
	if len(l.alsoPublishedBy[partition]) == 0 {
		return last
	}
	serves := func(n *node) bool {
		disk, _ := n.published.volume(partition, "")
		return n.inService(disk)
	}
	if serves(last) {
		return last
	}
	for _, n := range slices.Backward(l.alsoPublishedBy[partition]) {
		if serves(n) {
			return n
		}
	}
	return last
}

// removeRecords removes a holder's records from those that Where finds. The lock is held.
func (l *Ledger) removeRecords(h *holder) {
	for _, r := range h.records {
		holders := l.recordedBy[r.Partition]
		if i := slices.Index(holders, h); i >= 0 {
			holders = slices.Delete(holders, i, i+1)
		}
		if len(holders) == 0 {
			delete(l.recordedBy, r.Partition)
		} else {
			l.recordedBy[r.Partition] = holders
		}
	}
}

// setPublished replaces what the node publishes, and updates which partitions Where finds. changed are the partitions
// that may have come or gone. The lock is held; the caller makes the snapshot.
func (l *Ledger) setPublished(n *node, p *published, changed []string) {
	before := n.published
	n.published = p
	for _, partition := range changed {
		_, had := before.volume(partition, "")
		_, has := p.volume(partition, "")
		switch {
		case had == nil && has != nil:
			l.addPublisher(partition, n)
		case had != nil && has == nil:
			l.removePublisher(partition, n)
		}
	}
}

// addPublisher adds a node that publishes the partition and did not before. A disk that is moved is published by two
// nodes for a while: the last one counts.
func (l *Ledger) addPublisher(partition string, n *node) {
	if other := l.publishedBy[partition]; other != nil && other != n {
		l.alsoPublishedBy[partition] = append(l.alsoPublishedBy[partition], other)
	}
	l.publishedBy[partition] = n
}

// removePublisher undoes addPublisher. If other nodes publish the partition, the last of them counts.
func (l *Ledger) removePublisher(partition string, n *node) {
	others := slices.DeleteFunc(l.alsoPublishedBy[partition], func(other *node) bool { return other == n })
	if l.publishedBy[partition] == n {
		delete(l.publishedBy, partition)
		if last := len(others) - 1; last >= 0 {
			l.publishedBy[partition], others = others[last], others[:last]
		}
	}
	if len(others) > 0 {
		l.alsoPublishedBy[partition] = others
	} else {
		delete(l.alsoPublishedBy, partition)
	}
}

// maxRecentUIDs is how many deleted PersistentVolumes are remembered. AddVolume comes at most milliseconds after the
// deletion.
const maxRecentUIDs = 4096

// recentUIDs remembers the last UIDs that were added.
type recentUIDs struct {
	uids map[string]struct{}
	ring []string
	next int
}

func (r *recentUIDs) has(uid string) bool {
	_, ok := r.uids[uid]
	return ok
}

func (r *recentUIDs) remove(uid string) { delete(r.uids, uid) }

func (r *recentUIDs) add(uid string) {
	if r.has(uid) {
		return
	}
	if r.uids == nil {
		r.uids = map[string]struct{}{}
	}
	if len(r.ring) < maxRecentUIDs {
		r.ring = append(r.ring, uid)
	} else {
		delete(r.uids, r.ring[r.next])
		r.ring[r.next], r.next = uid, (r.next+1)%maxRecentUIDs
	}
	r.uids[uid] = struct{}{}
}
