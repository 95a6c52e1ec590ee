package disk

import (
	"errors"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

var (
	ownerOne = Owner{NodeUID: "1c3a4d8e-0000-4000-8000-000000000001", NodeName: "node-1", MachineID: "0123456789abcdef0123456789abcdef"}
	ownerTwo = Owner{NodeUID: "1c3a4d8e-0000-4000-8000-000000000002", NodeName: strings.Repeat("n", 253), MachineID: "fedcba9876543210fedcba9876543210"}
)

// TestOwnerCoding asserts that an owner is read back, and that a damaged one, or one of another table, counts as none.
func TestOwnerCoding(t *testing.T) {
	for _, o := range []Owner{{}, ownerOne, ownerTwo} {
		slot, err := encodeOwner(guidA, o)
		if err != nil {
			t.Fatal(err)
		}
		if got := decodeOwner(slot, guidA); got != o {
			t.Errorf("%+v reads back as %+v", o, got)
		}
		if got := decodeOwner(slot, guidB); got != (Owner{}) {
			t.Errorf("another table's owner was read: %+v", got)
		}
		if got := decodeVolumeSlot(slot, guidA); got.note != "" {
			t.Errorf("an owner was read as a note: %+v", got)
		}
		for at := range slot[:slotContentsAt] {
			slot[at] ^= 0x10
			if got := decodeOwner(slot, guidA); got != (Owner{}) {
				t.Errorf("damaged at byte %d it reads as %+v", at, got)
			}
			slot[at] ^= 0x10
		}
	}
	if _, err := encodeOwner(guidA, Owner{NodeName: strings.Repeat("n", int(slotBytes))}); err == nil {
		t.Error("an owner was taken that does not fit")
	}
}

// TestOwner asserts that Inspect, Read and Open return a disk's owner, and that it can be set later. Notes in the same
// sector stay, and damage to the owner affects nothing else.
func TestOwner(t *testing.T) {
	bothSectors(t, func(t *testing.T, sector int) {
		l := newLoopDisk(t, 64*units.MiB, sector)
		ctx := t.Context()
		check := func(want Owner) {
			t.Helper()
			c, err := Inspect(ctx, l.path)
			if err != nil || c.State != Ours || c.Owner != want {
				t.Errorf("Inspect: %+v, %v, want the owner %+v", c, err, want)
			}
			s, err := Read(l.path)
			if err != nil || s.Owner != want {
				t.Errorf("Read: %+v, %v, want the owner %+v", s.Owner, err, want)
			}
		}
		if _, err := Initialize(ctx, l.path, Owner{NodeName: strings.Repeat("n", int(slotBytes))}); err == nil {
			t.Error("an owner was taken that does not fit")
		}
		if c, err := Inspect(ctx, l.path); err != nil || c.State != Blank || c.Owner != (Owner{}) {
			t.Errorf("a disk that was refused: %+v, %v", c, err)
		}
		if _, err := Initialize(ctx, l.path, ownerOne); err != nil {
			t.Fatal(err)
		}
		check(ownerOne)
		d := l.open(t)
		if _, err := d.Create(ctx, CreateOptions{Partition: guidA, Extent: extentMiB(4, 2), Note: "of a"}); err != nil {
			t.Fatal(err)
		}
		if got := d.Snapshot().Owner; got != ownerOne {
			t.Errorf("opened: %+v", got)
		}
		// The note of entry 254 shares the owner's sector on a disk with large sectors.
		beside, err := (slot{note: "beside"}).encode(guidB)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.store.writeSlot(MetaEntry-1, beside); err != nil {
			t.Fatal(err)
		}
		if err := d.SetOwner(ctx, ownerTwo); err != nil {
			t.Fatal(err)
		}
		if got := d.Snapshot().Owner; got != ownerTwo {
			t.Errorf("set: %+v", got)
		}
		check(ownerTwo)
		slots := make([]byte, units.MiB)
		if _, err := d.device.ReadAt(slots, units.MiB); err != nil {
			t.Fatal(err)
		}
		if got := decodeVolumeSlot(slots[(MetaEntry-2)*slotBytes:][:slotBytes], guidB); got.note != "beside" {
			t.Errorf("the note beside the owner is %q now", got.note)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(l.image, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte("?"), units.MiB+(MetaEntry-1)*slotBytes+slotContentsAt); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		testenv.Run(t, "blockdev", "--flushbufs", l.path)
		check(Owner{})
		d = l.open(t)
		if got := d.Snapshot(); got.Owner != (Owner{}) || len(got.Volumes) != 1 || got.Volumes[0].Note != "of a" {
			t.Errorf("with a damaged owner: %+v", got)
		}
		if err := d.SetOwner(ctx, ownerOne); err != nil {
			t.Fatal(err)
		}
		check(ownerOne)
	})
}

// TestPowerCutsInOwner asserts that a new disk of ours has its owner from the start. A power cut during a change of the
// owner leaves the old one, the new one, or none.
func TestPowerCutsInOwner(t *testing.T) {
	random := rand.New(rand.NewPCG(9, 10))
	for _, l := range crashLayouts(t) {
		// ownerNow returns the disk's owner, and whether the disk is ours.
		ownerNow := func(m *memDisk) (Owner, bool) {
			f, err := examine(m, l)
			if err != nil {
				t.Fatal(err)
			}
			if !f.ours {
				return Owner{}, false
			}
			o, err := readOwner(m, l, decodeGUID(f.current.entryBytes(MetaEntry)[16:32]).String())
			if err != nil {
				t.Fatal(err)
			}
			return o, true
		}
		m := newMemDisk()
		before := m.clone()
		if _, err := format(withoutLogs(t), m, l, ownerOne); err != nil {
			t.Fatal(err)
		}
		powerCuts(before, m.log, random, func(cut *memDisk, _ int) {
			if o, ours := ownerNow(cut); ours && o != ownerOne {
				t.Fatalf("a disk became ours without its owner: %+v", o)
			}
		})
		for _, next := range []Owner{ownerTwo, ownerOne} {
			old, _ := ownerNow(m)
			s, _, err := m.openTable(t, l, false)
			if err != nil {
				t.Fatal(err)
			}
			before, m.log = m.clone(), nil
			if err := s.writeOwner(next); err != nil {
				t.Fatal(err)
			}
			powerCuts(before, m.log, random, func(cut *memDisk, _ int) {
				if o, ours := ownerNow(cut); !ours || o != old && o != next && o != (Owner{}) {
					t.Fatalf("from %+v to %+v a power cut left %+v", old, next, o)
				}
			})
			if o, _ := ownerNow(m); o != next {
				t.Fatalf("the owner is %+v, not %+v", o, next)
			}
		}
	}
}

// TestOwnerOfAnEarlierTable asserts that an owner that an earlier table left counts as none.
func TestOwnerOfAnEarlierTable(t *testing.T) {
	for _, l := range crashLayouts(t) {
		m := newOwnDisk(t, l, ownerOne)
		m.write(0, make([]byte, units.MiB))
		m.write(l.size-units.MiB, make([]byte, units.MiB))
		if _, err := format(withoutLogs(t), m, l, Owner{}); err != nil {
			t.Fatal(err)
		}
		s, _, err := m.openTable(t, l, false)
		if err != nil {
			t.Fatal(err)
		}
		if o, err := readOwner(m, l, s.table.metaGUID()); err != nil || o != (Owner{}) {
			t.Errorf("the disk names the owner in its earlier table: %+v, %v", o, err)
		}
	}
}

// TestOwnerOnBadSectors asserts that an owner that cannot be written is an error, and that the disk stays in service if
// its table is intact.
func TestOwnerOnBadSectors(t *testing.T) {
	for _, l := range crashLayouts(t) {
		for _, op := range []string{"write", "sync"} {
			m, _ := newFormattedDisk(t, l)
			s, _, err := m.openTable(t, l, false)
			if err != nil {
				t.Fatal(err)
			}
			m.fault = func(_ int, now string) (error, bool) {
				if now == op {
					return errInjected, false
				}
				return nil, false
			}
			if err := s.writeOwner(ownerOne); !errors.Is(err, errInjected) {
				t.Errorf("%s fails: %v", op, err)
			}
			m.fault = func(_ int, now string) (error, bool) { return nil, now == "write" }
			if err := s.writeOwner(ownerTwo); err == nil {
				t.Error("a write that was dropped was not noticed")
			}
		}
	}
}

// TestOwnerUnreadable asserts that a disk whose owner cannot be read is an error that names the disk, the device and
// the place. The disk may be another node's.
func TestOwnerUnreadable(t *testing.T) {
	for _, l := range crashLayouts(t) {
		m := newOwnDisk(t, l, ownerOne)
		f, err := examine(m, l)
		if err != nil {
			t.Fatal(err)
		}
		if o, err := ownerOf(m, "/dev/sdx", l, f.current); err != nil || o != ownerOne {
			t.Errorf("%+v, %v", o, err)
		}
		_, err = ownerOf(unreadableDevice{}, "/dev/sdx", l, f.current)
		if !errors.Is(err, errInjected) || !strings.Contains(err.Error(), f.current.id) || !strings.Contains(err.Error(), "of /dev/sdx") {
			t.Errorf("unreadable: %v", err)
		}
	}
}

// unreadableDevice fails all reads.
type unreadableDevice struct{}

func (unreadableDevice) ReadAt([]byte, int64) (int, error) { return 0, errInjected }
