package ledger

import (
	"errors"
	"slices"

	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/placement"
)

// A volume that cannot grow where it is may get further pieces: free extents of its disk, each a partition of its own.
// The further pieces of a PersistentVolume are records of one holder, in their order. They are withheld from the moment
// they are planned. Only the last piece of a volume grows where it is.

// piecesKey is the holder's key of a PersistentVolume's further pieces.
func piecesKey(pvUID string) string { return "pieces/" + pvUID }

// plannedPieces are pieces that PlanPieces has reserved. They end as a plannedMove does.
type plannedPieces struct {
	version uint64
	// before are the further pieces that the PersistentVolume has without the plan.
	before []Record
}

// ErrUnsettled is returned by PlanPieces and PlanMove when the ledger has another version of the PersistentVolume than
// the caller, or an earlier plan or grant for it has not ended. An event of the PersistentVolume ends that.
var ErrUnsettled = errors.New("the last change of the volume's size is not known yet")

// Growth is what PlanPieces plans for.
type Growth struct {
	// Version is the version of the PersistentVolume that the caller has read, and that its write names.
	Version uint64
	// First is the record of the volume in that version, and Pieces are those of its further pieces.
	First  Record
	Pieces []Record
	// Length is how many bytes all pieces together must have.
	Length int64
	// Partitions are the GUIDs of the further pieces that the volume may have, in their order. So they also say how many.
	Partitions []string
}

// PlanPieces reserves what a PersistentVolume needs for a length, and returns its further pieces then, in their order.
// The first piece has what they leave of the length. The last piece gets the bytes behind it. What is missing then is
// one more piece, in the smallest free extent of the disk that holds it. If none does, the largest extents are taken
// whole, as few as possible. The caller then writes the pieces, or calls WithdrawPieces.
//
// If there is not enough, it returns no error, the length that is possible, and no pieces. The possible length is zero
// while it is not known. The error is ErrUnsettled if a later event must come first.
func (l *Ledger) PlanPieces(pvUID string, g Growth) (pieces []Record, possible int64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.holders[volumeKey(pvUID)]
	_, planned := l.plannedPieces[pvUID]
	if h == nil || planned || h.records[0] != g.First || !slices.Equal(l.furtherPieces(pvUID), g.Pieces) {
		return nil, 0, ErrUnsettled
	}
	s := l.Snapshot(h.node)
	if l.holders[moveKey(pvUID)] != nil || g.Length%placement.Alignment != 0 || !s.Published || s.Problem != "" || s.Absent {
		return nil, 0, nil
	}
	all, possible := s.planPieces(&g)
	if possible < g.Length {
		return nil, possible, nil
	}
	l.plannedPieces[pvUID] = plannedPieces{version: g.Version, before: g.Pieces}
	l.setHolder(&holder{key: piecesKey(pvUID), node: h.node, source: assumed, records: all})
	return slices.Clone(all[1:]), possible, nil
}

// furtherPieces are the further pieces of a PersistentVolume as the API has shown them. The lock is held.
func (l *Ledger) furtherPieces(pvUID string) []Record {
	if h := l.holders[piecesKey(pvUID)]; h != nil {
		return h.records
	}
	return nil
}

// planPieces returns all pieces of the volume when it has the length, the first one included, or as much of it as is
// possible.
func (s *Snapshot) planPieces(g *Growth) (all []Record, possible int64) {
	all, free, ok := s.pieces(g)
	if !ok {
		return nil, 0
	}
	missing := g.Length
	for _, r := range all {
		missing -= r.Extent.Len()
	}
	if missing < 0 {
		return nil, 0
	}
	// The bytes behind the last piece need no further one.
	last := &all[len(all)-1]
	if e, found := free.Holding(extent.New(last.Extent.End, placement.Alignment)); found {
		behind := min(missing, e.End-last.Extent.End)
		last.Extent.End += behind
		missing -= behind
		free = free.Remove(last.Extent)
	}
	for missing > 0 && len(all) <= len(g.Partitions) {
		e := bestPiece(free, missing)
		if e.Empty() {
			break
		}
		missing -= e.Len()
		free = free.Remove(e)
		all = append(all, Record{Partition: g.Partitions[len(all)-1], Disk: last.Disk, Extent: e})
	}
	return all, g.Length - missing
}

// pieces returns the pieces that the volume has, and what is free on its disk without them. It returns false if a piece
// cannot have its place, because another volume lies there.
func (s *Snapshot) pieces(g *Growth) (all []Record, free extent.Set, ok bool) {
	disk, v := s.published.volume(g.First.Partition, g.First.Disk)
	if v == nil || v.Wiping {
		return nil, extent.Set{}, false
	}
	all = append([]Record{g.First}, g.Pieces...)
	own := map[string]struct{}{}
	for _, r := range all {
		own[r.Partition] = struct{}{}
	}
	node := s.Without(own)
	i := slices.IndexFunc(node.Disks, func(d placement.Disk) bool { return d.ID == disk })
	if i < 0 {
		return nil, extent.Set{}, false
	}
	free = node.Disks[i].Free
	for i, r := range all {
		all[i] = s.published.locate(r)
		if all[i].Disk != disk || !free.Contains(all[i].Extent) {
			return nil, extent.Set{}, false
		}
		free = free.Remove(all[i].Extent)
	}
	return all, free, true
}

// bestPiece is the beginning of the smallest free extent that has the length, or the largest one if none has. Of equals
// it is the first.
func bestPiece(free extent.Set, length int64) extent.Extent {
	var best extent.Extent
	for _, e := range free.All() {
		switch {
		case best.Empty(),
			best.Len() < length && e.Len() > best.Len(),
			best.Len() >= length && e.Len() >= length && e.Len() < best.Len():
			best = e
		}
	}
	return extent.New(best.Start, min(best.Len(), length))
}

// WithdrawPieces ends a plan of PlanPieces for that version of the PersistentVolume: the write was not done and never
// will be.
func (l *Ledger) WithdrawPieces(pvUID string, version uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if planned, ok := l.plannedPieces[pvUID]; ok && planned.version == version {
		l.setFurtherPieces(pvUID, l.holders[piecesKey(pvUID)].node, planned.before)
	}
}

// setPieces sets the further pieces of a PersistentVolume in that version. The lock is held.
func (l *Ledger) setPieces(pvUID, nodeName string, version uint64, pieces []Record) {
	if planned, ok := l.plannedPieces[pvUID]; ok && version <= planned.version {
		// The event was sent before the write.
		return
	}
	l.setFurtherPieces(pvUID, nodeName, pieces)
}

// setFurtherPieces replaces the records of a PersistentVolume's further pieces, and ends a plan. The lock is held.
func (l *Ledger) setFurtherPieces(pvUID, nodeName string, pieces []Record) {
	delete(l.plannedPieces, pvUID)
	key := piecesKey(pvUID)
	switch h := l.holders[key]; {
	case len(pieces) == 0:
		l.removeHolder(key)
	case h == nil || h.node != nodeName || h.source != observed || !slices.Equal(h.records, pieces):
		l.setHolder(&holder{key: key, node: nodeName, source: observed, records: slices.Clone(pieces)})
	}
}
