package ledger

import (
	"slices"

	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/placement"
)

// A volume that must grow and cannot where it is may be moved to a free extent of its disk. If its disk is drained, it
// may be moved to one of another disk of its class on the node. Both places are taken until the node publishes the
// volume at the new one, and the earlier one until it is wiped. The new place is a record of its own: that of the
// partition to which the node copies the volume. It holds all pieces of the volume.

// moveKey is the holder's key of a PersistentVolume's move.
func moveKey(pvUID string) string { return "move/" + pvUID }

// Move is where a PersistentVolume is moved.
type Move struct {
	// Copy is the GUID of the partition to which the volume is copied.
	Copy   string
	Disk   string
	Extent extent.Extent
}

func (m Move) record() Record { return Record{Partition: m.Copy, Disk: m.Disk, Extent: m.Extent} }

// plannedMove is a move that PlanMove has reserved. It ends with the first version of the PersistentVolume after the
// one that it was planned for: that version has the move, or the move was not written and never will be.
type plannedMove struct{ version uint64 }

// MoveRequest says which move PlanMove plans.
type MoveRequest struct {
	// Copy is the GUID of the partition to which the volume is copied, Left that of the place that it leaves for
	// another disk.
	Copy, Left string
	// Version is the version of the PersistentVolume that the caller has read, and that its write names.
	Version uint64
	// Length is how long the volume must be, with all its pieces. 0 means as long as it is, or was granted.
	Length int64
	// Elsewhere means that it must leave its disk for another one of the class. Otherwise it stays there.
	Elsewhere bool
	Class     string
	// To is the place that the volume is to have on its disk, to compact the disk. It is empty if PlanMove chooses.
	To extent.Extent
}

// PlanMove reserves an extent to which a PersistentVolume can be moved: the smallest that holds it, on the disk where
// the volume is, or on the others of the class on its node. Disks that take no volumes get none. The caller then writes
// the move, or calls WithdrawMove. PlanMove returns false if there is no such extent, if the volume is about to grow
// where it is, or if its last place is still there. A place that the request names must be free, as long as the volume,
// and before it. The error is ErrUnsettled if the ledger has a move of the volume already, or a plan of pieces: the
// caller has another version of the PersistentVolume.
func (l *Ledger) PlanMove(pvUID string, o MoveRequest) (Move, bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, planned := l.plannedPieces[pvUID]; planned || l.holders[moveKey(pvUID)] != nil {
		return Move{}, false, ErrUnsettled
	}
	m, ok := l.planMove(pvUID, o)
	return m, ok, nil
}

// planMove is PlanMove for a volume without a move. The lock is held.
func (l *Ledger) planMove(pvUID string, o MoveRequest) (Move, bool) {
	h := l.holders[volumeKey(pvUID)]
	if h == nil || o.Length < 0 || o.Length%placement.Alignment != 0 {
		return Move{}, false
	}
	s, r := l.Snapshot(h.node), h.records[0]
	if !s.Published || s.Problem != "" || s.Absent {
		return Move{}, false
	}
	disk, v := s.published.volume(r.Partition, r.Disk)
	if v == nil || v.Wiping {
		return Move{}, false
	}
	granted := int64(0)
	all := append([]Record{r}, l.furtherPieces(pvUID)...)
	for i, r := range all {
		if !o.Elsewhere && s.isShort(r) && s.mayGrow(all, i) {
			return Move{}, false
		}
		granted += s.published.locate(r).Extent.Len()
	}
	// The earlier place of the last move is still there.
	for _, earlier := range []string{o.Copy, o.Left} {
		if _, there := s.published.volume(earlier, disk); there != nil {
			return Move{}, false
		}
	}
	target, to, ok := s.moveTarget(disk, v.Extent.Start, granted, o)
	if !ok {
		return Move{}, false
	}
	m := Move{Copy: o.Copy, Disk: target, Extent: to}
	l.plannedMoves[pvUID] = plannedMove{o.Version}
	l.setHolder(&holder{key: moveKey(pvUID), node: h.node, source: assumed, records: []Record{m.record()}})
	return m, true
}

// moveTarget chooses the place of a move of a volume that starts there on a disk. granted is the length of all pieces
// of the volume.
func (s *Snapshot) moveTarget(from string, start, granted int64, o MoveRequest) (disk string, to extent.Extent, ok bool) {
	if !o.To.Empty() {
		return from, o.To, o.To.Len() == granted && o.To.Start < start && s.isFree(from, o.To)
	}
	if !o.Elsewhere {
		to, ok = smallestFree(s.Node, from, o.Length)
		return from, to, ok && o.Length > 0
	}
	length := max(o.Length, granted)
	// The tightest of the other disks. Of several the one with the first id.
	left := int64(-1)
	for i := range s.Node.Disks {
		d := &s.Node.Disks[i]
		if d.ID == from || d.Class != o.Class || s.published.disk(d.ID).SectorSize > s.published.disk(from).SectorSize {
			continue
		}
		for _, e := range d.Free.All() {
			if e.Len() >= length && (left < 0 || e.Len()-length < left) {
				disk, to, left = d.ID, extent.New(e.Start, length), e.Len()-length
			}
		}
	}
	return disk, to, left >= 0
}

// isFree reports whether an extent of a disk that takes volumes is free.
func (s *Snapshot) isFree(disk string, e extent.Extent) bool {
	return slices.ContainsFunc(s.Node.Disks, func(d placement.Disk) bool { return d.ID == disk && d.Free.Contains(e) })
}

// smallestFree is the beginning of the smallest free extent of a disk that has that length; of several the first.
func smallestFree(node *placement.Node, disk string, length int64) (extent.Extent, bool) {
	var best extent.Extent
	for i := range node.Disks {
		if node.Disks[i].ID != disk {
			continue
		}
		for _, e := range node.Disks[i].Free.All() {
			if e.Len() >= length && (best.Empty() || e.Len() < best.Len()) {
				best = e
			}
		}
	}
	return extent.New(best.Start, length), !best.Empty()
}

// WithdrawMove ends a move that PlanMove has reserved for that version of the PersistentVolume: the write was not done
// and never will be.
func (l *Ledger) WithdrawMove(pvUID string, version uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if planned, is := l.plannedMoves[pvUID]; is && planned.version == version {
		l.endMove(pvUID)
	}
}

// setMove sets the move of a PersistentVolume in that version; nil if it has none. The lock is held.
func (l *Ledger) setMove(pvUID, nodeName string, version uint64, m *Move) {
	planned, isPlanned := l.plannedMoves[pvUID]
	switch h := l.holders[moveKey(pvUID)]; {
	case m != nil:
		delete(l.plannedMoves, pvUID)
		if h == nil || h.node != nodeName || h.source != observed || h.records[0] != m.record() {
			l.setHolder(&holder{key: moveKey(pvUID), node: nodeName, source: observed, records: []Record{m.record()}})
		}
	case isPlanned && version <= planned.version:
		// The event was sent before the write.
	case h != nil:
		l.endMove(pvUID)
	}
}

// endMove removes the reservation of a move. The lock is held.
func (l *Ledger) endMove(pvUID string) {
	delete(l.plannedMoves, pvUID)
	l.removeHolder(moveKey(pvUID))
}

// hasRoom reports whether the volume can have the length of its record where it is.
func (s *Snapshot) hasRoom(r Record) bool {
	at := s.published.locate(r)
	for _, d := range s.Without(map[string]struct{}{r.Partition: {}}).Disks {
		if d.ID == at.Disk {
			return d.Free.Contains(at.Extent)
		}
	}
	return false
}

// IsStuck reports whether a PersistentVolume was granted a length that it cannot have where it is, and has no move: its
// move was removed, or the place of a piece was taken by another volume.
func (l *Ledger) IsStuck(pvUID string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.holders[volumeKey(pvUID)]
	if _, planned := l.plannedPieces[pvUID]; h == nil || planned || l.holders[moveKey(pvUID)] != nil {
		return false
	}
	s, r := l.Snapshot(h.node), h.records[0]
	if !s.Published || s.Problem != "" {
		return false
	}
	if _, v := s.published.volume(r.Partition, r.Disk); v == nil || v.Wiping {
		return false
	}
	all := append([]Record{r}, l.furtherPieces(pvUID)...)
	for i, r := range all {
		if s.isShort(r) && !s.mayGrow(all, i) {
			return true
		}
	}
	return false
}

// mayGrow reports whether a piece of a volume can have the length of its record where it is. A piece that others follow
// does not grow any more.
func (s *Snapshot) mayGrow(all []Record, i int) bool {
	if i+1 < len(all) {
		if _, next := s.published.volume(all[i+1].Partition, all[i+1].Disk); next != nil {
			return false
		}
	}
	return s.hasRoom(all[i])
}

// isShort reports whether the node has not made all of a record.
func (s *Snapshot) isShort(r Record) bool {
	_, v := s.published.volume(r.Partition, r.Disk)
	return v == nil || v.Extent.Len() < r.Extent.Len()
}

// IsTaken reports whether the node publishes another volume where the volume with that partition is to be moved.
func (s *Snapshot) IsTaken(partition string, m Move) bool {
	d := s.published.disk(m.Disk)
	if d == nil {
		return false
	}
	return slices.ContainsFunc(d.Allocations, func(a Allocation) bool {
		return a.Partition != partition && a.Partition != m.Copy && a.Extent.Overlaps(m.Extent)
	})
}

// Largest is the length of the largest free extent of a disk, in bytes.
func (s *Snapshot) Largest(disk string) int64 {
	for i := range s.Node.Disks {
		if s.Node.Disks[i].ID == disk {
			return s.Node.Disks[i].Free.Largest().Len()
		}
	}
	return 0
}

// IsMoved reports whether the node publishes the volume with that partition at the beginning of the move's extent.
func (s *Snapshot) IsMoved(partition string, m Move) bool {
	disk, v := s.published.volume(partition, m.Disk)
	return v != nil && !v.Wiping && disk == m.Disk && v.Extent.Start == m.Extent.Start
}
