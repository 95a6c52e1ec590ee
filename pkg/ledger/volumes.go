package ledger

import (
	"cmp"
	"slices"
)

// volumeKey is the holder's key of a PersistentVolume, which differs from those of pods.
func volumeKey(pvUID string) string { return "volume/" + pvUID }

// Version is what one version of a PersistentVolume says about its places.
type Version struct {
	// Number of the version: a later one is higher.
	Number uint64
	// First is the record of the volume, or of its first piece. Pieces are those of its further pieces, in their order.
	First  Record
	Pieces []Record
	// Move is where it is to be moved; nil if it is not.
	Move *Move
}

// SetVolume folds in that a PersistentVolume exists, with its places in the API. One that was deleted exists again when
// the API server was restored from a backup.
func (l *Ledger) SetVolume(pvUID, nodeName string, v Version) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.setExisting(pvUID, nodeName, v.First)
	l.setPieces(pvUID, nodeName, v.Number, v.Pieces)
	l.setMove(pvUID, nodeName, v.Number, v.Move)
}

// setExisting sets the record of a PersistentVolume that was read from the API. The lock is held.
func (l *Ledger) setExisting(pvUID, nodeName string, r Record) {
	l.deleted.remove(pvUID)
	delete(l.unseen, pvUID)
	l.setVolume(pvUID, nodeName, r)
}

// AddVolume is SetVolume for the component that created the PersistentVolume. It changes nothing for a known one, whose
// record may be newer. It changes nothing for a deleted one either: the event of its deletion may come before the
// response to its creation. The PersistentVolume is unseen until SetVolume or DeleteVolume is called. pieces are the
// records of its further pieces.
func (l *Ledger) AddVolume(pvUID, pvName, nodeName string, r Record, pieces []Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.deleted.has(pvUID) && l.holders[volumeKey(pvUID)] == nil {
		l.unseen[pvUID] = pvName
		l.setVolume(pvUID, nodeName, r)
		l.setFurtherPieces(pvUID, nodeName, pieces)
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

// setVolume sets the record of a PersistentVolume that exists, with what it may grow to. The lock is held.
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
	l.endMove(pvUID)
	l.setFurtherPieces(pvUID, "", nil)
	l.removeHolder(volumeKey(pvUID))
}

// maxRecentUIDs is how many deleted PersistentVolumes are remembered. AddVolume comes at most milliseconds after the
// deletion.
const maxRecentUIDs = 4096

// recentUIDs remembers the last UIDs that were added.
type recentUIDs struct {
	// uids has the place of each UID in ring.
	uids map[string]int
	// ring has them in the order in which they were added, and also those that were removed. When it is full, the next
	// one replaces ring[next].
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
		r.uids = map[string]int{}
	}
	at := len(r.ring)
	if at < maxRecentUIDs {
		r.ring = append(r.ring, uid)
	} else {
		at = r.next
		// One that was removed and added again has another place by now.
		oldest := r.ring[at]
		if place, known := r.uids[oldest]; known && place == at {
			delete(r.uids, oldest)
		}
		r.ring[at], r.next = uid, (at+1)%maxRecentUIDs
	}
	r.uids[uid] = at
}
