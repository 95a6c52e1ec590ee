package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/google/uuid"

	guids "github.com/berthdev/berth/apis/disk/partition"
	"github.com/berthdev/berth/test/units"
)

// FuzzEntries gives a disk any entries, with correct headers and checksums. It asserts that they are refused or are a
// valid table. In a valid table a change changes one entry, and the table reads back the same. data is a sequence of
// two bytes for an entry's index, and the entry.
func FuzzEntries(f *testing.F) {
	record := func(index int, e entry, sector int64) []byte {
		l, err := newLayout(64*units.MiB, sector)
		if err != nil {
			f.Fatal(err)
		}
		b, err := encodeEntry(l, e)
		if err != nil {
			f.Fatal(err)
		}
		return append(binary.LittleEndian.AppendUint16(nil, uint16(index)), b...)
	}
	for _, sector := range []int64{512, 4096} {
		l, err := newLayout(64*units.MiB, sector)
		if err != nil {
			f.Fatal(err)
		}
		meta := record(MetaEntry, newTable(l, diskID, metaID).entries[0], sector)
		reserved := record(1, entry{typeGUID: TypeReserved, guid: guidA, extent: extentMiB(2, 3), name: "x", attributes: AttributeEphemeral}, sector)
		wiping := record(2, entry{typeGUID: TypeWiping, guid: guidB, extent: extentMiB(5, 3)}, sector)
		raw := record(1000, entry{typeGUID: TypeFormatted, guid: guidC, extent: extentMiB(8, 3), attributes: AttributeRaw}, sector)
		copying := record(3, entry{typeGUID: TypeCopying, guid: c3, extent: extentMiB(12, 3), attributes: AttributeRaw}, sector)
		inPieces := record(4, entry{typeGUID: TypeFormatted, guid: c4, extent: extentMiB(16, 1)}.withPieceField(2), sector)
		piece1 := record(5, entry{typeGUID: TypePiece, guid: guids.PieceID(c4, 1), extent: extentMiB(18, 1)}.withPieceField(1), sector)
		piece2 := record(6, entry{typeGUID: TypePiece, guid: guids.PieceID(c4, 2), extent: extentMiB(20, 1)}.withPieceField(2), sector)
		f.Add(bytes.Join([][]byte{meta, inPieces, piece1, piece2}, nil), sector == 4096)
		f.Add(bytes.Join([][]byte{meta, inPieces, piece2}, nil), sector == 4096)
		f.Add(bytes.Join([][]byte{meta, piece1, piece2}, nil), sector == 4096)
		other := record(300, foreignEntry(l, 300, 60*units.MiB/sector, 61*units.MiB/sector), sector)
		f.Add(meta, sector == 4096)
		f.Add(bytes.Join([][]byte{meta, reserved, wiping, raw, copying, other}, nil), sector == 4096)
		f.Add(bytes.Join([][]byte{meta, reserved, record(7, entry{typeGUID: TypeFormatted, guid: guidC, extent: extentMiB(4, 2)}, sector)}, nil), sector == 4096)
		f.Add(bytes.Join([][]byte{meta, meta[:2], make([]byte, entrySize)}, nil), sector == 4096)
	}
	f.Fuzz(func(t *testing.T, data []byte, large bool) {
		sector := int64(512)
		if large {
			sector = 4096
		}
		l, err := newLayout(64*units.MiB, sector)
		if err != nil {
			t.Fatal(err)
		}
		c := tableCopy{id: diskID, array: make([]byte, arrayBytes)}
		for len(data) >= 2+entrySize {
			index := int(binary.LittleEndian.Uint16(data))%EntryCount + 1
			copy(c.entryBytes(index), data[2:])
			data = data[2+entrySize:]
		}
		m := newMemDisk()
		m.write(0, encodeMBR(l))
		m.writeTable(l, c)
		var s *store
		var found findings
		withinMemory(t, func() { s, found, err = m.openTable(t, l, false) })
		if err != nil {
			if found.ours && errors.Is(err, ErrOutOfService) {
				t.Fatal(err)
			}
			return
		}
		if len(m.log) > 0 {
			t.Fatal("an intact table was written to")
		}
		if err := s.table.validate(); err != nil {
			t.Fatal(err)
		}
		changes := []step{reserve(c2, 40, 1), prepareFormat(c2), setPhase(c2, Formatted), growVolume(c2, 2), setPhase(c2, Wiping), removeVolume(c2)}
		most := map[string]int{}
		volumes, orphans := s.table.sets()
		for _, v := range volumes {
			guid, phase := v.first.guid, v.first.phase()
			changes = append(changes, addPiece(guid, len(v.pieces)+1, 55, 1), dropPiece(guid))
			if phase == Formatted {
				changes = append(changes, copyVolume(guid, 50, v.length()/units.MiB), switchVolume(guid), dropPiece(copyOf(guid)), removeVolume(copyOf(guid)))
				most["switch"] = max(most["switch"], 3+len(v.pieces))
			}
			if phase != Wiping {
				changes = append(changes, setPhase(guid, Wiping))
			}
		}
		for _, e := range orphans {
			if _, _, err := s.table.withOrphanWiping(e.guid); err != nil {
				t.Fatal(err)
			}
		}
		most["add piece"], most["drop piece"] = 2, 2
		for _, change := range changes {
			before := bytes.Clone(s.current().array)
			if err := change.do(t, s); err != nil {
				if errors.Is(err, ErrOutOfService) {
					t.Fatalf("%s: %v", change.name, err)
				}
				continue
			}
			changed := 0
			for i := 1; i <= EntryCount; i++ {
				if !bytes.Equal(s.current().entryBytes(i), before[(i-1)*entrySize:i*entrySize]) {
					changed++
				}
			}
			if changed > max(1, most[change.name]) {
				t.Fatalf("%s changed %d entries", change.name, changed)
			}
			again, _, err := m.clone().openTable(t, l, false)
			if err != nil || !sameNames(again.table.entries, s.table.entries) {
				t.Fatalf("%s: %v; reads back as %v instead of %v", change.name, err, describeEntries(again.table.entries), describeEntries(s.table.entries))
			}
		}
	})
}

// sameNames compares the names of entries, and asserts that every GUID is valid.
func sameNames(x, y []entry) bool {
	if len(x) != len(y) {
		return false
	}
	for i := range x {
		if x[i] != y[i] || uuid.Validate(x[i].guid) != nil {
			return false
		}
	}
	return true
}
