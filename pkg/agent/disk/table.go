package disk

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"

	"github.com/berthdev/berth/pkg/extent"
)

// entry is one used entry of the table.
type entry struct {
	index      int    // from 1
	typeGUID   string // type GUID, lower case
	guid       string // lower case
	extent     extent.Extent
	name       string
	attributes uint64
}

// phaseOf maps the types of volumes to phases, typeOf the other way.
var (
	phaseOf = map[string]Phase{
		TypeReserved: Reserved, TypeFormatted: Formatted, TypeWiping: Wiping, TypeCopying: Copying, TypeArriving: Arriving, TypeMoved: Moved,
	}
	typeOf = map[Phase]string{
		Reserved: TypeReserved, Formatted: TypeFormatted, Wiping: TypeWiping, Copying: TypeCopying, Arriving: TypeArriving, Moved: TypeMoved,
	}
)

func (e entry) phase() Phase   { return phaseOf[e.typeGUID] }
func (e entry) isVolume() bool { return e.phase() != "" }
func (e entry) isMeta() bool   { return e.typeGUID == TypeMeta }
func (e entry) isPiece() bool  { return e.typeGUID == TypePiece }

// table is the content of a disk's table, without a disk. It never changes: the methods that plan a change return a new
// one.
//
// Invariants, checked by validate:
//  1. Entries have ascending indexes from 1 to EntryCount.
//  2. Every extent lies between the two copies of the table, and no two overlap.
//  3. No two entries share a GUID, and none is without.
//  4. Entry MetaEntry is the meta partition, in its place, and there is no other.
//  5. Volumes and their pieces are aligned.
//
// Whether a volume has all of its pieces is no invariant, see set: other tools may take one away.
type table struct {
	layout
	id      string
	entries []entry
}

// newTable returns the table of a disk without volumes.
func newTable(l layout, id, metaGUID string) table {
	return table{layout: l, id: id, entries: []entry{{
		index: MetaEntry, typeGUID: TypeMeta, guid: metaGUID, extent: l.meta(), name: metaName,
	}}}
}

// validate checks the invariants.
func (t table) validate() error {
	guids := make(map[string]int, len(t.entries))
	last, hasMeta := 0, false
	for _, e := range t.entries {
		if e.index <= last || e.index > EntryCount {
			return fmt.Errorf("entry %d comes after entry %d", e.index, last)
		}
		last = e.index
		if e.extent.Empty() || !t.usable().Contains(e.extent) {
			return fmt.Errorf("entry %d: %v is not between the copies of the table, %v", e.index, e.extent, t.usable())
		}
		if e.guid == "" || e.guid == uuid.Nil.String() {
			return fmt.Errorf("entry %d has no GUID", e.index)
		}
		if other, taken := guids[e.guid]; taken {
			return fmt.Errorf("entries %d and %d share the GUID %s", other, e.index, e.guid)
		}
		guids[e.guid] = e.index
		switch {
		case e.isMeta():
			if e.index != MetaEntry || e.extent != t.meta() {
				return fmt.Errorf("entry %d is a meta partition at %v; it belongs into entry %d at %v", e.index, e.extent, MetaEntry, t.meta())
			}
			hasMeta = true
		case e.isVolume(), e.isPiece():
			if !aligned(e.extent) || !t.managed().Contains(e.extent) {
				return fmt.Errorf("entry %d: volume at %v is not aligned to %d bytes within %v", e.index, e.extent, Alignment, t.managed())
			}
		}
	}
	if !hasMeta {
		return errors.New("there is no meta partition")
	}
	byStart := slices.SortedFunc(slices.Values(t.entries), func(a, b entry) int { return cmp.Compare(a.extent.Start, b.extent.Start) })
	for i := 1; i < len(byStart); i++ {
		if a, b := byStart[i-1], byStart[i]; a.extent.Overlaps(b.extent) {
			return fmt.Errorf("entries %d at %v and %d at %v overlap", a.index, a.extent, b.index, b.extent)
		}
	}
	return nil
}

// free is what no entry holds. Foreign entries need not be aligned: every 1 MiB that they touch is theirs.
func (t table) free() extent.Set {
	taken := make([]extent.Extent, 0, len(t.entries))
	for _, e := range t.entries {
		taken = append(taken, extent.Extent{Start: alignDown(e.extent.Start), End: alignUp(e.extent.End)})
	}
	return extent.NewSet(t.managed()).Subtract(extent.NewSet(taken...))
}

// indexOf returns the position of the entry with the given GUID, or -1.
func (t table) indexOf(guid string) int {
	return slices.IndexFunc(t.entries, func(e entry) bool { return e.guid == guid })
}

// volume returns the entry of a volume. The error wraps ErrNotFound.
func (t table) volume(guid string) (entry, error) {
	i := t.indexOf(guid)
	if i < 0 || !t.entries[i].isVolume() {
		return entry{}, fmt.Errorf("volume %s: %w", guid, ErrNotFound)
	}
	return t.entries[i], nil
}

// volumeOrPiece returns the entry of a volume or of a further piece. The error wraps ErrNotFound.
func (t table) volumeOrPiece(guid string) (entry, error) {
	if i := t.indexOf(guid); i >= 0 && t.entries[i].isPiece() {
		return t.entries[i], nil
	}
	return t.volume(guid)
}

// withNew plans a new volume in the lowest free entries.
func (t table) withNew(o CreateOptions) (table, entry, error) {
	made := entry{typeGUID: TypeReserved, guid: o.Partition, extent: o.Extent, name: o.Name}
	if o.Ephemeral {
		made.attributes |= AttributeEphemeral
	}
	if o.Raw {
		made.attributes |= AttributeRaw
		made.typeGUID = TypeFormatted
	}
	next, made, err := t.withEntry(made)
	for i, at := range o.Pieces {
		if err != nil {
			break
		}
		next, _, err = next.withPiece(o.Partition, i+1, at)
	}
	if err != nil || len(o.Pieces) == 0 {
		return next, made, err
	}
	made, err = next.volume(o.Partition)
	return next, made, err
}

// withEntry plans an entry for a volume, in the lowest free place of the table.
func (t table) withEntry(made entry) (table, entry, error) {
	if err := checkVolume(made.guid, made.name, made.extent); err != nil {
		return table{}, entry{}, err
	}
	if i := t.indexOf(made.guid); i >= 0 {
		return table{}, entry{}, fmt.Errorf("entry %d already has the GUID %s, at %v", t.entries[i].index, made.guid, t.entries[i].extent)
	}
	if !t.free().Contains(made.extent) {
		return table{}, entry{}, fmt.Errorf("volume %s at %v: %w", made.guid, made.extent, ErrOverlap)
	}
	at := 0
	made.index = 1
	for at < len(t.entries) && t.entries[at].index == made.index {
		made.index, at = made.index+1, at+1
	}
	if made.index > EntryCount {
		return table{}, entry{}, fmt.Errorf("volume %s: all %d entries are taken: %w", made.guid, EntryCount, ErrNoEntry)
	}
	t.entries = slices.Insert(slices.Clone(t.entries), at, made)
	return t, made, nil
}

// withLength plans the growth of a volume in place. Its last piece, whose entry is returned, gets longer.
func (t table) withLength(guid string, length int64) (table, entry, error) {
	v, err := t.growable(guid)
	if err != nil {
		return table{}, entry{}, err
	}
	now, e := v.length(), v.last()
	if length%Alignment != 0 || length < now {
		return table{}, entry{}, fmt.Errorf("volume %s of %d bytes cannot get %d: a volume only grows, to a multiple of %d", guid, now, length, Alignment)
	}
	room := now
	for _, free := range t.free().All() {
		if free.Start == e.extent.End {
			room += free.Len()
		}
	}
	if length > room {
		return table{}, entry{}, fmt.Errorf("volume %s at %v of %d bytes cannot grow to %d: %d is the most that it could get: %w", guid, e.extent, now, length, room, ErrOverlap)
	}
	e.extent.End += length - now
	return t.withChanged(e), e, nil
}

// growable returns a volume that may get longer.
func (t table) growable(guid string) (set, error) {
	v, err := t.set(guid)
	if err != nil {
		return set{}, err
	}
	if !v.first.phase().HasDevice() {
		return set{}, fmt.Errorf("volume %s is %s and cannot grow", guid, v.first.phase())
	}
	return v, v.checkComplete()
}

// withChanged returns the table with entries that have changed, each in its place.
func (t table) withChanged(changed ...entry) table {
	t.entries = slices.Clone(t.entries)
	for _, c := range changed {
		t.entries[slices.IndexFunc(t.entries, func(e entry) bool { return e.index == c.index })] = c
	}
	return t
}

// withPhase plans a change of a volume's phase, if the state machine has that step. The phase is in the first piece.
func (t table) withPhase(guid string, to Phase) (table, entry, error) {
	e, err := t.volume(guid)
	if err != nil {
		return table{}, entry{}, err
	}
	from := e.phase()
	if from == Wiping || to != Wiping && (!from.HasDevice() || !to.HasDevice()) || to == Reserved {
		return table{}, entry{}, fmt.Errorf("volume %s cannot go from %s to %s", guid, from, to)
	}
	if to != Wiping {
		if err := t.setOf(e).checkComplete(); err != nil {
			return table{}, entry{}, err
		}
	}
	e.typeGUID = typeOf[to]
	return t.withChanged(e), e, nil
}

// withCopy plans the target of a move: a place for a copy of the volume, in one piece.
func (t table) withCopy(guid, copyGUID string, target extent.Extent) (table, entry, error) {
	e, err := t.movable(guid)
	if err != nil {
		return table{}, entry{}, err
	}
	if length := t.setOf(e).length(); target.Len() < length {
		return table{}, entry{}, fmt.Errorf("volume %s of %d bytes cannot move to %v: a volume never shrinks", guid, length, target)
	}
	return t.withEntry(entry{typeGUID: TypeCopying, guid: copyGUID, extent: target, name: e.name, attributes: e.attributes}.withPieceField(0))
}

// withMoved plans the end of a move. The entry of the copy becomes the volume. The volume's entry becomes a volume to
// be wiped, with the copy's GUID. The volume's further pieces become pieces of that one.
func (t table) withMoved(guid, copyGUID string) (next table, volume, old entry, err error) {
	old, err = t.movable(guid)
	if err != nil {
		return table{}, entry{}, entry{}, err
	}
	volume, err = t.volume(copyGUID)
	if err != nil {
		return table{}, entry{}, entry{}, err
	}
	source := t.setOf(old)
	if volume.phase() != Copying || volume.extent.Len() < source.length() {
		return table{}, entry{}, entry{}, fmt.Errorf("volume %s at %v cannot move to the volume %s at %v, which is %s", guid, source.extents(), copyGUID, volume.extent, volume.phase())
	}
	volume.guid, volume.typeGUID, volume.name, volume.attributes = guid, old.typeGUID, old.name, old.withPieceField(0).attributes
	old.guid, old.typeGUID = copyGUID, TypeWiping
	changed := append([]entry{volume, old}, source.piecesOf(copyGUID)...)
	return t.withChanged(changed...), volume, old, nil
}

// movable returns the first piece of a volume that can be moved. Only phase Formatted has anything to move.
func (t table) movable(guid string) (entry, error) {
	e, err := t.volume(guid)
	if err != nil {
		return entry{}, err
	}
	if e.phase() == Reserved {
		return entry{}, fmt.Errorf("volume %s is Reserved: it holds nothing yet that could be moved", guid)
	}
	if err := e.phase().checkUsable(guid); err != nil {
		return entry{}, err
	}
	return e, t.setOf(e).checkComplete()
}

// without plans the end of a volume, which must have been wiped.
func (t table) without(guid string) (table, error) {
	e, err := t.volume(guid)
	if err != nil {
		return table{}, err
	}
	if e.phase() != Wiping {
		return table{}, fmt.Errorf("volume %s is %s: it must be wiped before its entry goes", guid, e.phase())
	}
	if n := len(t.setOf(e).pieces); n > 0 {
		return table{}, fmt.Errorf("volume %s still has %d further pieces: they must be wiped before its first one", guid, n)
	}
	i := t.indexOf(guid)
	t.entries = slices.Delete(slices.Clone(t.entries), i, i+1)
	return t, nil
}

// checkVolume refuses a volume that no table could hold.
func checkVolume(guid, name string, e extent.Extent) error {
	if id, err := uuid.Parse(guid); err != nil || id == uuid.Nil || id.String() != guid {
		return fmt.Errorf("partition %q is not a GUID in lower case", guid)
	}
	if len(name) > 36 {
		return fmt.Errorf("volume %s: name %q is longer than 36 characters", guid, name)
	}
	for _, c := range []byte(name) {
		if c < ' ' || c > '~' {
			return fmt.Errorf("volume %s: name %q is not printable ASCII", guid, name)
		}
	}
	if !aligned(e) || e.Start < 0 {
		return fmt.Errorf("volume %s: %v is not aligned to %d bytes: %w", guid, e, Alignment, ErrOverlap)
	}
	return nil
}
