package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"runtime"
	"testing"

	"github.com/google/uuid"

	"github.com/berthdev/berth/test/units"
)

// damage is a way to damage a copy of the table.
type damage struct {
	name string
	do   func(m *memDisk, l layout, s location)
	// intact: the copy is not damaged, but another program's.
	intact bool
}

// editHeader changes the header of a copy, and corrects its checksum.
func editHeader(change func(h []byte)) func(m *memDisk, l layout, s location) {
	return func(m *memDisk, l layout, s location) {
		h := make([]byte, l.sector)
		m.ReadAt(h, l.offset(s.headerLBA))
		change(h)
		binary.LittleEndian.PutUint32(h[16:], headerCRC(h))
		m.write(l.offset(s.headerLBA), h)
	}
}

var damages = []damage{
	{"none", func(*memDisk, layout, location) {}, false},
	{"header zeroed", func(m *memDisk, l layout, s location) { m.write(l.offset(s.headerLBA), make([]byte, l.sector)) }, false},
	{"header overwritten", func(m *memDisk, l layout, s location) {
		m.write(l.offset(s.headerLBA), bytes.Repeat([]byte{0xa5}, int(l.sector)))
	}, false},
	{"a bit of the header flipped", func(m *memDisk, l layout, s location) {
		h := make([]byte, l.sector)
		m.ReadAt(h, l.offset(s.headerLBA))
		h[60] ^= 4
		m.write(l.offset(s.headerLBA), h)
	}, false},
	{"a bit of the entries flipped", func(m *memDisk, l layout, s location) {
		b := make([]byte, l.sector)
		m.ReadAt(b, l.offset(s.arrayLBA))
		b[33] ^= 4
		m.write(l.offset(s.arrayLBA), b)
	}, false},
	{"entries zeroed", func(m *memDisk, l layout, s location) { m.write(l.offset(s.arrayLBA), make([]byte, arrayBytes)) }, false},
	{"all zeroed", func(m *memDisk, l layout, s location) { m.write(l.copyOffset(s), make([]byte, l.copyBytes())) }, false},
	{"2^32-1 entries", editHeader(func(h []byte) { binary.LittleEndian.PutUint32(h[80:], 0xffffffff) }), true},
	{"128 entries", editHeader(func(h []byte) { binary.LittleEndian.PutUint32(h[80:], 128) }), true},
	{"entries of 0 bytes", editHeader(func(h []byte) { binary.LittleEndian.PutUint32(h[84:], 0) }), true},
	{"entries far away", editHeader(func(h []byte) { binary.LittleEndian.PutUint64(h[72:], 1<<63) }), true},
	{"another size of disk", editHeader(func(h []byte) {
		binary.LittleEndian.PutUint64(h[32:], binary.LittleEndian.Uint64(h[32:])^2)
	}), true},
	{"another revision", editHeader(func(h []byte) { h[8] = 1 }), true},
	{"no GUID", editHeader(func(h []byte) { clear(h[56:72]) }), true},
	{"a longer header", editHeader(func(h []byte) { h[12] = 96 }), false},
}

// TestDamageMatrix damages both copies in every combination, and asserts these rules. The primary wins. Only what is
// damaged is replaced, never what another program wrote. Without either copy the disk is not ours.
func TestDamageMatrix(t *testing.T) {
	for _, l := range crashLayouts(t) {
		for _, p := range damages {
			for _, b := range damages {
				m, _ := newFormattedDisk(t, l)
				s, _, err := m.openTable(t, l, false)
				if err != nil {
					t.Fatal(err)
				}
				if err := reserve(guidA, 2, 3).do(t, s); err != nil {
					t.Fatal(err)
				}
				p.do(m, l, l.primary())
				b.do(m, l, l.backup())
				before := m.clone()
				m.log = nil
				got, f, err := m.openTable(t, l, true)

				primaryGood, backupGood := p.name == "none", b.name == "none"
				want := primaryGood || !p.intact && backupGood
				if (err == nil) != want {
					t.Errorf("primary %s, backup %s: %v", p.name, b.name, err)
					continue
				}
				if err != nil {
					if len(m.log) > 0 {
						t.Errorf("primary %s, backup %s: refused, but written to", p.name, b.name)
					}
					continue
				}
				if f.badPrimary == primaryGood || f.badBackup != (primaryGood && !backupGood) {
					t.Errorf("primary %s, backup %s: %+v", p.name, b.name, f)
				}
				if e, err := got.table.volume(guidA); err != nil || e.extent != extentMiB(2, 3) {
					t.Errorf("primary %s, backup %s: %+v, %v", p.name, b.name, e, err)
				}
				if again, err := examine(m, l); err != nil || again.badPrimary || again.badBackup {
					t.Errorf("primary %s, backup %s: not repaired: %+v, %v", p.name, b.name, again, err)
				}
				// The disk is proven to be the same by its header, or by a caller that knows it.
				headerLost := p.name != "none" && p.name != "a bit of the entries flipped" && p.name != "entries zeroed"
				if _, _, err := before.openTable(t, l, false); (err != nil) != headerLost {
					t.Errorf("primary %s, backup %s: unknown disk: %v", p.name, b.name, err)
				}
			}
		}
	}
}

// TestMBR asserts which contents of sector 0 are accepted, which are repaired, and which are refused without a
// write.
func TestMBR(t *testing.T) {
	l := crashLayouts(t)[0]
	mbr := func(change func(b []byte)) []byte {
		b := encodeMBR(l)
		change(b)
		return b
	}
	for _, test := range []struct {
		name    string
		sector0 []byte
		want    mbrState
	}{
		{"ours", encodeMBR(l), mbrProtective},
		{"zero", make([]byte, 512), mbrMissing},
		{"boot code and another length", mbr(func(b []byte) { b[0], b[458] = 0xeb, 9 }), mbrProtective},
		{"DOS partition", mbr(func(b []byte) { b[450] = 0x83 }), mbrForeign},
		{"hybrid", mbr(func(b []byte) { b[466] = 0x83 }), mbrForeign},
		{"no signature", mbr(func(b []byte) { b[511] = 0 }), mbrForeign},
		{"FAT", []byte(string(append([]byte("\xeb\x3c\x90mkfs.fat"), make([]byte, 501)...))), mbrForeign},
	} {
		if got := checkMBR(test.sector0); got != test.want {
			t.Errorf("%s: %d, want %d", test.name, got, test.want)
		}
		m, _ := newFormattedDisk(t, l)
		m.write(0, test.sector0)
		m.log = nil
		_, _, err := m.openTable(t, l, true)
		if (err != nil) != (test.want == mbrForeign) {
			t.Errorf("%s: opening: %v", test.name, err)
		}
		if err != nil && len(m.log) > 0 {
			t.Errorf("%s: refused, but written to", test.name)
		}
		if f, err := examine(m, l); test.want != mbrForeign && (err != nil || f.badMBR) {
			t.Errorf("%s: not repaired", test.name)
		}
	}
}

// TestForeignTable asserts that tables which are intact but not ours are neither used nor replaced.
func TestForeignTable(t *testing.T) {
	l := crashLayouts(t)[0]
	m, _ := newFormattedDisk(t, l)
	s, _, err := m.openTable(t, l, false)
	if err != nil {
		t.Fatal(err)
	}
	bare := s.current().without(MetaEntry)
	m.writeTable(l, bare)
	if f, err := examine(m, l); err != nil || f.ours || !f.foreign {
		t.Errorf("a table without meta partition: %+v, %v", f, err)
	}
	// Ours by its meta partition, but invalid: neither used nor replaced.
	m, _ = newFormattedDisk(t, l)
	volume := entry{index: 7, typeGUID: TypeFormatted, guid: guidA, extent: extentMiB(1, 3)}
	broken, err := s.current().withEntry(l, volume)
	if err != nil {
		t.Fatal(err)
	}
	m.writeTable(l, broken)
	m.log = nil
	if _, f, err := m.openTable(t, l, true); err == nil || !f.ours || len(m.log) > 0 {
		t.Errorf("an overlap on the disk: %+v, %v", f, err)
	}
}

// TestUncleanHeader asserts that bytes which no checksum covers are repaired, and do not stop the disk.
func TestUncleanHeader(t *testing.T) {
	for _, l := range crashLayouts(t) {
		for _, at := range []location{l.primary(), l.backup()} {
			m, _ := newFormattedDisk(t, l)
			h := make([]byte, l.sector)
			m.ReadAt(h, l.offset(at.headerLBA))
			h[headerBytes] = 1
			m.write(l.offset(at.headerLBA), h)
			s, f, err := m.openTable(t, l, false)
			if err != nil || f.badPrimary == f.badBackup {
				t.Fatalf("%s: %v, %v", at.name, f, err)
			}
			if err := reserve(guidA, 2, 3).do(t, s); err != nil {
				t.Errorf("%s: %v", at.name, err)
			}
		}
	}
}

// withinMemory asserts that reading a table takes no more memory than a few copies of it, for any size in its header.
func withinMemory(t *testing.T, read func()) {
	t.Helper()
	const most = 16 << 20
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	read()
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > most {
		t.Fatalf("reading a table took %d bytes, which is more than %d", n, most)
	}
}

// FuzzHeaders gives both copies any contents, with correct checksums. It asserts that they are refused or are a valid
// table. There must be no panic, and no more memory than two copies take.
func FuzzHeaders(f *testing.F) {
	l, err := newLayout(minDiskSize+2*units.MiB, 512)
	if err != nil {
		f.Fatal(err)
	}
	_, c, err := newCopy(l, diskID, metaID)
	if err != nil {
		f.Fatal(err)
	}
	full, err := c.withEntry(l, entry{index: 1, typeGUID: TypeReserved, guid: guidA, extent: extentMiB(2, 1), name: "x"})
	if err != nil {
		f.Fatal(err)
	}
	p, b := encodeCopy(l, l.primary(), full), encodeCopy(l, l.backup(), full)
	header, array := l.split(l.primary(), p)
	backupHeader, _ := l.split(l.backup(), b)
	f.Add(header[:headerBytes], array[:entrySize], 1, backupHeader[:headerBytes], true)
	f.Add(header[:headerBytes], array[:entrySize], 2, []byte{}, true)
	f.Add([]byte{}, array[:entrySize], 300, backupHeader[:headerBytes], false)
	for _, size := range []int64{minDiskSize + units.MiB, 1 << 40} {
		other, err := newLayout(size, l.sector)
		if err != nil {
			f.Fatal(err)
		}
		h, _ := other.split(other.primary(), encodeCopy(other, other.primary(), full))
		f.Add(h[:headerBytes], array[:entrySize], 1, []byte{}, true)
	}
	foreignEntry, err := encodeEntry(l, foreignEntry(l, 256, 7000, 7001))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(header[:headerBytes], foreignEntry, 256, backupHeader[:headerBytes], true)
	f.Fuzz(func(t *testing.T, header, entry []byte, index int, backupHeader []byte, fix bool) {
		m := newMemDisk()
		array := bytes.Clone(full.array)
		if index >= 1 && index <= EntryCount {
			copy(array[(index-1)*entrySize:index*entrySize], entry)
		}
		m.write(0, encodeMBR(l))
		for _, s := range []struct {
			location
			header []byte
		}{{l.primary(), header}, {l.backup(), backupHeader}} {
			h := make([]byte, l.sector)
			copy(h, s.header)
			if fix {
				copy(h, headerSignature)
				binary.LittleEndian.PutUint32(h[12:], headerBytes)
				binary.LittleEndian.PutUint32(h[88:], crc32.ChecksumIEEE(array))
				binary.LittleEndian.PutUint32(h[16:], headerCRC(h))
			}
			m.write(l.offset(s.arrayLBA), array)
			m.write(l.offset(s.headerLBA), h)
		}
		var found findings
		var s *store
		var err error
		withinMemory(t, func() {
			if found, err = examine(m, l); err == nil && found.ours {
				s, err = load(m, l, found)
			}
		})
		if err != nil && !found.ours {
			t.Fatal(err)
		}
		if err != nil || !found.ours || found.truncated(l) {
			return
		}
		if found.grown(l) {
			if s, _, err = m.openTable(t, l, false); err != nil {
				return
			}
		}
		if err := s.table.validate(); err != nil {
			t.Fatal(err)
		}
		if _, err := uuid.Parse(s.table.id); err != nil {
			t.Fatal(err)
		}
		before := bytes.Clone(s.current().array)
		if err := reserve(c2, 2, 1).do(t, s); err != nil {
			if errors.Is(err, ErrOutOfService) {
				t.Fatal(err)
			}
			return
		}
		changes := 0
		for i := 1; i <= EntryCount; i++ {
			if !bytes.Equal(s.current().entryBytes(i), before[(i-1)*entrySize:i*entrySize]) {
				changes++
			}
		}
		if changes != 1 {
			t.Fatalf("a new volume changed %d entries", changes)
		}
	})
}
