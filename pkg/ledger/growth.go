package ledger

import (
	"slices"

	"github.com/berthdev/berth/pkg/placement"
)

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

// Grow allows a PersistentVolume to become length bytes long, if the bytes behind it are free, and takes them. The
// caller then raises the PersistentVolume's capacity, or calls WithdrawGrowth. If they are not free, it returns the
// possible length. A length that the volume already has is granted. A volume that is moved does not grow before it is,
// and one of several pieces grows by PlanPieces alone.
func (l *Ledger) Grow(pvUID string, length int64) (granted bool, possible int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.holders[volumeKey(pvUID)]
	if h == nil {
		return false, 0
	}
	r := h.records[0]
	if l.holders[moveKey(pvUID)] != nil || l.holders[piecesKey(pvUID)] != nil {
		// It gets its size at its new place, or its last piece does.
		return false, r.Extent.Len()
	}
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
	if g.lengths = nil; length > g.observed.Extent.Len() {
		g.lengths = []int64{length}
	}
	l.replaceGrant(pvUID, g)
}

// WithdrawGrowth takes back the last length that Grow allowed: the write was not done and never will be.
func (l *Ledger) WithdrawGrowth(pvUID string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	g, ok := l.grants[pvUID]
	if !ok {
		return
	}
	g.lengths = g.lengths[:len(g.lengths)-1]
	l.replaceGrant(pvUID, g)
}

// replaceGrant records fewer lengths of a volume that may grow. Without any the volume is as it was observed. The lock
// is held.
func (l *Ledger) replaceGrant(pvUID string, g grant) {
	node := l.holders[volumeKey(pvUID)].node
	if len(g.lengths) == 0 {
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
