package disk

import (
	"fmt"
	"slices"

	guids "github.com/berthdev/berth/apis/disk/partition"
	"github.com/berthdev/berth/pkg/extent"
)

// set is a volume with its pieces. The first piece is the volume's own entry. Its phase is the phase of all. The GUID
// of a further piece follows from the volume's GUID and from the number of the piece.
//
// A set is complete if the first piece says that there are c further ones, and the table has the pieces 1 to c, each
// with its number, and no other. Every change leads from a complete set to a complete one in one write of the table. So
// a set is incomplete only if another program changed the table. Then nothing of it is free, and it is neither attached
// nor formatted, grown or moved.
type set struct {
	first entry
	// pieces are the further ones that are there, by ascending number.
	pieces []piece
}

// piece is a further piece of a volume. Its number follows from its GUID.
type piece struct {
	entry
	number int
}

// pieceField is what pieceBits of the entry say.
func (e entry) pieceField() int { return int(e.attributes & pieceBits >> pieceShift) }

// withPieceField returns the entry with other pieceBits.
func (e entry) withPieceField(n int) entry {
	e.attributes = e.attributes&^pieceBits | uint64(n)<<pieceShift
	return e
}

// set returns a volume with its pieces. The error wraps ErrNotFound.
func (t table) set(guid string) (set, error) {
	first, err := t.volume(guid)
	if err != nil {
		return set{}, err
	}
	return t.setOf(first), nil
}

// setOf returns the volume of a first piece.
func (t table) setOf(first entry) set { return newSet(first, t.pieces()) }

// pieces are the entries of pieces in the table, by GUID.
func (t table) pieces() map[string]entry {
	var found map[string]entry
	for _, e := range t.entries {
		if !e.isPiece() {
			continue
		}
		if found == nil {
			found = map[string]entry{}
		}
		found[e.guid] = e
	}
	return found
}

// newSet finds the pieces of a volume.
func newSet(first entry, pieces map[string]entry) set {
	s := set{first: first}
	if len(pieces) == 0 {
		return s
	}
	for number := 1; number < guids.MaxPieces; number++ {
		if e, found := pieces[guids.PieceID(first.guid, number)]; found {
			s.pieces = append(s.pieces, piece{e, number})
		}
	}
	return s
}

// sets are the volumes of the table, and the pieces of which the first one is not there.
func (t table) sets() (volumes []set, orphans []entry) {
	pieces := t.pieces()
	for _, e := range t.entries {
		if !e.isVolume() {
			continue
		}
		v := newSet(e, pieces)
		volumes = append(volumes, v)
		for _, p := range v.pieces {
			delete(pieces, p.guid)
		}
	}
	for _, e := range t.entries {
		if _, left := pieces[e.guid]; left {
			orphans = append(orphans, e)
		}
	}
	return volumes, orphans
}

// entries are those of the pieces, the first one included, in the order of the volume's bytes.
func (s set) entries() []entry {
	all := make([]entry, 1, 1+len(s.pieces))
	all[0] = s.first
	for _, p := range s.pieces {
		all = append(all, p.entry)
	}
	return all
}

// piecesOf are the entries of the further pieces with the GUIDs of the pieces of another volume.
func (s set) piecesOf(guid string) []entry {
	var all []entry
	for _, p := range s.pieces {
		p.guid = guids.PieceID(guid, p.number)
		all = append(all, p.entry)
	}
	return all
}

// last is the entry of the last piece.
func (s set) last() entry {
	if len(s.pieces) == 0 {
		return s.first
	}
	return s.pieces[len(s.pieces)-1].entry
}

// extents are the pieces' places, in the order of the volume's bytes.
func (s set) extents() []extent.Extent {
	var all []extent.Extent
	for _, e := range s.entries() {
		all = append(all, e.extent)
	}
	return all
}

// length of all pieces together.
func (s set) length() int64 {
	total := int64(0)
	for _, e := range s.extents() {
		total += e.Len()
	}
	return total
}

// incomplete says what is wrong with a set. It is empty if the set is complete.
func (s set) incomplete() string {
	count := s.first.pieceField()
	for i := range max(count, len(s.pieces)) {
		number := i + 1
		switch {
		case i >= len(s.pieces) || number <= count && s.pieces[i].number != number:
			return fmt.Sprintf("piece %d of the %d that its first one names is not in the table", number, count)
		case number > count:
			return fmt.Sprintf("the table has a piece %d, and the first one names %d", s.pieces[i].number, count)
		case s.pieces[i].pieceField() != number:
			return fmt.Sprintf("the GUID of entry %d is that of piece %d, and its attributes are those of piece %d", s.pieces[i].index, number, s.pieces[i].pieceField())
		}
	}
	return ""
}

// checkComplete returns an error that wraps ErrIncomplete unless the set is complete.
func (s set) checkComplete() error {
	if why := s.incomplete(); why != "" {
		return fmt.Errorf("volume %s: %s: %w", s.first.guid, why, ErrIncomplete)
	}
	return nil
}

// showsPart reports whether a device with these extents shows a beginning of the set. An agent may have ended while the
// volume grew: then a device has fewer pieces, or a shorter last one.
func (s set) showsPart(shown []extent.Extent) bool {
	all := s.extents()
	if len(shown) == 0 || len(shown) > len(all) {
		return false
	}
	last := len(shown) - 1
	return slices.Equal(shown[:last], all[:last]) && shown[last].Start == all[last].Start && shown[last].End <= all[last].End
}

// withPiece plans one more piece of a volume, in the lowest free entry. The entries that change are the new one and the
// first piece's.
func (t table) withPiece(guid string, number int, at extent.Extent) (next table, changed []entry, err error) {
	v, err := t.growable(guid)
	if err != nil {
		return table{}, nil, err
	}
	if number != len(v.pieces)+1 {
		return table{}, nil, fmt.Errorf("volume %s has %d further pieces: the next one is not number %d", guid, len(v.pieces), number)
	}
	if number >= guids.MaxPieces {
		return table{}, nil, fmt.Errorf("volume %s has %d pieces, which is the most: %w", guid, guids.MaxPieces, ErrNoEntry)
	}
	made := entry{typeGUID: TypePiece, guid: guids.PieceID(guid, number), extent: at, name: v.first.name}.withPieceField(number)
	next, made, err = t.withEntry(made)
	if err != nil {
		return table{}, nil, err
	}
	first := v.first.withPieceField(number)
	return next.withChanged(first), []entry{first, made}, nil
}

// withoutPiece plans the end of the last piece of a volume, which must be Wiping. The first piece's entry changes as
// well, if it names the piece.
func (t table) withoutPiece(guid string) (next table, gone entry, first entry, err error) {
	v, err := t.set(guid)
	if err != nil {
		return table{}, entry{}, entry{}, err
	}
	if v.first.phase() != Wiping || len(v.pieces) == 0 {
		return table{}, entry{}, entry{}, fmt.Errorf("volume %s is %s and has %d further pieces: none can be dropped", guid, v.first.phase(), len(v.pieces))
	}
	last := v.pieces[len(v.pieces)-1]
	first = v.first.withPieceField(min(v.first.pieceField(), last.number-1))
	next = t.withChanged(first)
	next.entries = slices.DeleteFunc(next.entries, func(e entry) bool { return e.index == last.index })
	return next, last.entry, first, nil
}

// withOrphanWiping plans the wipe of a piece whose volume has no first piece. Its entry becomes a volume of its own.
func (t table) withOrphanWiping(guid string) (table, entry, error) {
	_, orphans := t.sets()
	i := slices.IndexFunc(orphans, func(e entry) bool { return e.guid == guid })
	if i < 0 {
		return table{}, entry{}, fmt.Errorf("piece %s: %w", guid, ErrNotFound)
	}
	e := orphans[i].withPieceField(0)
	e.typeGUID = TypeWiping
	return t.withChanged(e), e, nil
}
