package disk

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// oldSlot is the slot of a volume as earlier versions wrote it.
func oldSlot(t *testing.T, partition, text string) []byte {
	t.Helper()
	b, err := encodeSlot(oldSlotMagic, partition, []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestSlotCoding asserts that a slot is read back, and that a damaged one, or one of another volume, counts as empty.
func TestSlotCoding(t *testing.T) {
	longest := strings.Repeat("x", MaxNote)
	for _, want := range []slot{
		{},
		{note: "shop/data-db-0"},
		{note: longest, wipe: WipeSettings{WipeOverwrite, 1 << 40}, progress: progress{methodOverwrite, 20 << 40, 10 << 40}},
		{wipe: WipeSettings{WipeNone, 0}},
		{note: "n", wipe: WipeSettings{WipeSecureDiscard, 1}, progress: progress{methodSecureDiscard, units.MiB, 0}},
		{note: "n", wipe: WipeSettings{WipeZero, 0}, progress: progress{methodZeroOut, units.MiB, 0}},
	} {
		b1, err := want.encode(guidA)
		if err != nil {
			t.Fatal(err)
		}
		if got := decodeVolumeSlot(b1, guidA); got != want {
			t.Errorf("%+v reads back as %+v", want, got)
		}
		if got := decodeVolumeSlot(b1, guidB); got != (slot{}) {
			t.Errorf("a slot of %s was read as one of %s: %+v", guidA, guidB, got)
		}
		for at := range b1[:slotContentsAt+slotFieldBytes+len(want.note)] {
			b1[at] ^= 0x10
			if got := decodeVolumeSlot(b1, guidA); got != (slot{}) {
				t.Errorf("%.20q: damaged at byte %d it reads as %+v", want.note, at, got)
			}
			b1[at] ^= 0x10
		}
	}
	if _, err := (slot{note: longest + "x"}).encode(guidA); err == nil {
		t.Error("a note was taken that does not fit")
	}
	if _, err := (slot{wipe: WipeSettings{Policy: "Shred"}}).encode(guidA); err == nil {
		t.Error("a policy was taken that does not exist")
	}
	if got := decodeVolumeSlot(make([]byte, slotBytes), guidA); got != (slot{}) {
		t.Errorf("an empty slot reads as %+v", got)
	}
	old := strings.Repeat("x", int(slotBytes)-slotContentsAt)
	if got := decodeVolumeSlot(oldSlot(t, guidA, old), guidA); got != (slot{note: old}) {
		t.Errorf("a slot of an earlier version reads as %+v", got)
	}
}

// TestSlotOfANewerAgent asserts that codes that this agent does not know count as not given.
func TestSlotOfANewerAgent(t *testing.T) {
	contents := make([]byte, slotFieldBytes, slotFieldBytes+1)
	contents[0], contents[1] = 200, 201
	for i := range contents[2:] {
		contents[2+i] = 0xff
	}
	b1, err := encodeSlot(slotMagic, guidA, append(contents, 'n'))
	if err != nil {
		t.Fatal(err)
	}
	if got := decodeVolumeSlot(b1, guidA); got != (slot{note: "n"}) {
		t.Errorf("it reads as %+v", got)
	}
}

// TestSlots asserts that a note stays with its volume when other notes in the same sector change, and is gone with it.
func TestSlots(t *testing.T) {
	bothSectors(t, func(t *testing.T, sector int) {
		l := initialized(t, 64*units.MiB, sector)
		d := l.open(t)
		create := func(partition string, start int64, note string) {
			t.Helper()
			v, err := d.Create(t.Context(), CreateOptions{Partition: partition, Name: "n", Extent: extentMiB(start, 2), Note: note})
			if err != nil {
				t.Fatal(err)
			}
			if v.Note != note {
				t.Fatalf("made with note %q, it has %q", note, v.Note)
			}
		}
		create(guidA, 4, "of a")
		create(guidB, 8, "")
		create(guidC, 12, strings.Repeat("c", MaxNote))
		want := map[string]string{guidA: "of a", guidB: "", guidC: strings.Repeat("c", MaxNote)}
		check := func(s Snapshot) {
			t.Helper()
			if len(s.Volumes) != len(want) {
				t.Errorf("the disk has %d volumes, want %d", len(s.Volumes), len(want))
			}
			for _, v := range s.Volumes {
				if v.Note != want[v.Partition] {
					t.Errorf("volume %s has the note %.20q, want %.20q", v.Partition, v.Note, want[v.Partition])
				}
			}
		}
		again := func() {
			t.Helper()
			check(d.Snapshot())
			if s, err := Read(l.path); err != nil {
				t.Fatal(err)
			} else {
				check(s)
			}
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
			l.removePartitions(t)
			d = l.open(t)
			check(d.Snapshot())
		}
		again()
		// The next volume in the entry of the first has none.
		if err := wipeVolume(t.Context(), d, guidA); err != nil {
			t.Fatal(err)
		}
		create(c2, 4, "")
		delete(want, guidA)
		want[c2] = ""
		again()
		// Damage in the meta partition affects the notes only.
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(l.image, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte(strings.Repeat("?", int(units.MiB))), units.MiB); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		testenv.Run(t, "blockdev", "--flushbufs", l.path)
		want = map[string]string{guidB: "", guidC: "", c2: ""}
		d = l.open(t)
		check(d.Snapshot())
		create(c3, 20, "of c3")
		want[c3] = "of c3"
		again()
	})
}

// TestSlotsOnBadSectors asserts that volumes are made without notes where these can be neither written nor read. If the
// table cannot be read either, the disk is out of service.
func TestSlotsOnBadSectors(t *testing.T) {
	for _, l := range crashLayouts(t) {
		m, _ := newFormattedDisk(t, l)
		s, _, err := m.openTable(t, l, false)
		if err != nil {
			t.Fatal(err)
		}
		d := &Disk{device: &blockDevice{path: "a disk in memory"}, store: s, slots: map[string]slot{}}
		next, made, err := s.table.withNew(CreateOptions{Partition: guidA, Extent: extentMiB(2, 3)})
		if err != nil {
			t.Fatal(err)
		}
		faults := 0
		m.operations, m.fault = 0, func(n int, _ string) (error, bool) {
			if n == 0 {
				faults++
				return errInjected, false
			}
			return nil, false
		}
		if err := d.writeNewSlot(withoutLogs(t), made, slot{note: "lost"}); err != nil || faults != 1 || d.slots[guidA] != (slot{}) {
			t.Errorf("a bad sector among the notes: %v, %d faults, %+v", err, faults, d.slots[guidA])
		}
		m.operations, m.fault = 0, nil
		if err := s.put(withoutLogs(t), next, made); err != nil {
			t.Error(err)
		}
		m.fault = func(int, string) (error, bool) { return errInjected, false }
		if err := d.writeNewSlot(withoutLogs(t), made, slot{note: "lost"}); !errors.Is(err, ErrOutOfService) {
			t.Errorf("a disk that does not answer: %v", err)
		}
		d.readSlots(withoutLogs(t))
		if len(d.slots) > 0 {
			t.Errorf("notes were read: %v", d.slots)
		}
	}
}
