package disk

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// TestGrownTable asserts that every volume stays when the disk grows and the power is cut while the table is extended.
// In the end nothing of the old size is left.
func TestGrownTable(t *testing.T) {
	random := rand.New(rand.NewPCG(11, 12))
	states := 0
	for _, l := range crashLayouts(t) {
		for _, by := range []int64{l.sector, 128 << 10, units.MiB, 1 << 40} {
			for _, ahead := range []bool{false, true} {
				disk, strange := newFormattedDisk(t, l)
				s, _, err := disk.openTable(t, l, false)
				if err != nil {
					t.Fatal(err)
				}
				for _, step := range volumeLife() {
					step.run(t, disk, s)
				}
				if ahead {
					// The backup is lost, or was prepared: it is not needed.
					disk.write(s.onDisk.backup.off, make([]byte, l.copyBytes()))
				}
				want := slices.Clone(s.table.entries)
				now, err := newLayout(l.size+by, l.sector)
				if err != nil {
					t.Fatal(err)
				}
				before := disk.clone()
				disk.log = nil
				check := func(m *memDisk) []loggedWrite {
					states++
					m.log = nil
					s, _, err := m.openTable(t, now, false)
					if err != nil || s.table.size != now.size || !sameVolumes(s.table.entries, want) || !slices.Equal(s.current().entryBytes(300), strange) {
						t.Fatalf("grown by %d: %v", by, err)
					}
					if f, err := examine(m, now); err != nil || !f.ours || f.madeFor.size != 0 || f.badMBR || f.badPrimary || f.badBackup {
						t.Fatalf("grown by %d: not repaired: %v, %v", by, f, err)
					}
					return m.log
				}
				if f, err := examine(disk, now); err != nil || !f.grown(now) || !strings.Contains(f.describeResize(now), "grown") {
					t.Fatalf("grown by %d: %v, %v", by, f, err)
				}
				check(disk)
				if _, _, found, err := findResized(disk, l); err != nil || !found {
					t.Errorf("shrunk again, it is not recognized: %v", err)
				}
				if f, err := examine(disk, l); err != nil || !f.truncated(l) {
					t.Errorf("shrunk again, it is not truncated: %v, %v", f, err)
				}
				// A sample: one state in eight, and one in fifty of the cuts in its recovery.
				powerCuts(before, disk.log, random, func(cut *memDisk, _ int) {
					if random.IntN(8) != 0 {
						return
					}
					again := cut.clone()
					repairs := check(again)
					powerCuts(cut, repairs, random, func(cut *memDisk, _ int) {
						if random.IntN(50) == 0 {
							check(cut.clone())
						}
					})
				})
			}
		}
	}
	t.Logf("%d states", states)
	if states < 500 {
		t.Errorf("%d states are too few", states)
	}
}

// TestGrownOverSomething asserts that a disk that grew is not extended over foreign data at its new end.
func TestGrownOverSomething(t *testing.T) {
	for _, l := range crashLayouts(t) {
		for _, by := range []int64{units.MiB / 2, 64 * units.MiB} {
			now, err := newLayout(l.size+by, l.sector)
			if err != nil {
				t.Fatal(err)
			}
			for _, off := range []int64{now.size - chunkBytes, now.size - min(by, units.MiB)} {
				m, _ := newFormattedDisk(t, l)
				m.write(off, bytes.Repeat([]byte{7}, chunkBytes))
				m.log = nil
				if _, _, err := m.openTable(t, now, false); err == nil || !strings.Contains(err.Error(), "there is something at") || len(m.log) > 0 {
					t.Errorf("something at %d of %d: %v, %d writes", off, now.size, err, len(m.log))
				}
			}
		}
	}
}

// TestOtherSectors asserts that a disk with sectors of another size than before is neither blank nor foreign, and that
// the reason names the cause.
func TestOtherSectors(t *testing.T) {
	for _, l := range crashLayouts(t) {
		m, _ := newFormattedDisk(t, l)
		now, err := newLayout(l.size, map[int64]int64{512: 4096, 4096: 512}[l.sector])
		if err != nil {
			t.Fatal(err)
		}
		m.log = nil
		_, f, err := m.openTable(t, now, true)
		if err == nil || !f.unusable || !strings.Contains(f.reason, "connect it as it was before") || len(m.log) > 0 {
			t.Errorf("%v, %v", f, err)
		}
	}
}

// TestProbe asserts that a disk that takes no writes does not serve.
func TestProbe(t *testing.T) {
	for _, l := range crashLayouts(t) {
		m, _ := newFormattedDisk(t, l)
		s, _, err := m.openTable(t, l, false)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.probe(withoutLogs(t)); err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(m.log, func(w loggedWrite) bool { return w.data != nil }) {
			t.Error("nothing was written")
		}
		m.fault = func(_ int, op string) (error, bool) {
			if op == "write" {
				return errInjected, false
			}
			return nil, false
		}
		if err := s.probe(withoutLogs(t)); !errors.Is(err, ErrOutOfService) || !errors.Is(err, errInjected) {
			t.Errorf("a disk that only reads: %v", err)
		}
		if _, f, err := m.openTable(t, l, false); err != nil || f.badPrimary {
			t.Errorf("afterwards: %v, %v", f, err)
		}
	}
}

// resize gives the disk another size, as a hypervisor does.
func (l *loopDisk) resize(t *testing.T, size int64) {
	t.Helper()
	if err := os.Truncate(l.image, size); err != nil {
		t.Fatal(err)
	}
	testenv.Run(t, "losetup", "--set-capacity", l.path)
}

// TestDiskGrows asserts that a volume stays mounted while its disk grows, and that the disk has more room.
func TestDiskGrows(t *testing.T) {
	testenv.NeedProgram(t, "mkfs.ext4")
	bothSectors(t, func(t *testing.T, sector int) {
		l := initialized(t, 64*units.MiB, sector)
		d := l.open(t)
		ctx := t.Context()
		v, err := d.Create(ctx, CreateOptions{Partition: guidA, Name: "a", Extent: extentMiB(2, 20)})
		if err != nil {
			t.Fatal(err)
		}
		testenv.Run(t, "mkfs.ext4", "-q", "-F", v.Device)
		if err := d.MarkFormatted(ctx, guidA); err != nil {
			t.Fatal(err)
		}
		mnt := t.TempDir()
		if err := unix.Mount(v.Device, mnt, "ext4", 0, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(mnt, 0) })
		file := filepath.Join(mnt, "file")
		if err := os.WriteFile(file, []byte("mine"), 0o600); err != nil {
			t.Fatal(err)
		}
		id := d.Snapshot().ID
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		l.resize(t, 100*units.MiB)
		before := l.hash(t)
		if found, err := Inspect(ctx, l.path); err != nil || found.State != Ours || found.ID != id || !strings.Contains(found.Reason, "grown") {
			t.Errorf("Inspect: %+v, %v", found, err)
		}
		if s, err := Read(l.path); err != nil || !slices.Equal(volumes(s), []string{"a:Formatted@2+20"}) {
			t.Errorf("Read: %+v, %v", s, err)
		}
		if l.hash(t) != before {
			t.Error("looking at the disk changed it")
		}
		d = l.open(t)
		s := d.Snapshot()
		if s.ID != id || s.Size != 100*units.MiB || !slices.Equal(volumes(s), []string{"a:Formatted@2+20"}) || !s.Free.Contains(extentMiB(22, 77)) {
			t.Fatalf("opened again: %+v", s)
		}
		if err := os.WriteFile(file, []byte("still mine"), 0o600); err != nil {
			t.Error(err)
		}
		if _, err := d.Create(ctx, CreateOptions{Partition: guidB, Extent: extentMiB(60, 39), Raw: true}); err != nil {
			t.Error(err)
		}
		d.waitIdle(t)
		verifyTable(t, l.path)
	})
}

// TestDiskIsTruncated asserts that the volumes of a truncated disk are shown and nothing is written to it. It serves
// again when it has its old size.
func TestDiskIsTruncated(t *testing.T) {
	bothSectors(t, func(t *testing.T, sector int) {
		l := initialized(t, 64*units.MiB, sector)
		d := l.open(t)
		ctx := withoutLogs(t)
		for i, guid := range []string{guidA, guidB} {
			if _, err := d.Create(ctx, CreateOptions{Partition: guid, Extent: extentMiB(2+int64(i)*30, 20)}); err != nil {
				t.Fatal(err)
			}
		}
		id := d.Snapshot().ID
		d.Close()
		l.removePartitions(t)
		for _, size := range []int64{32 * units.MiB, 64*units.MiB - int64(sector)} {
			l.resize(t, size)
			before := l.hash(t)
			if found, err := Inspect(ctx, l.path); err != nil || found.State != Ours || found.ID != id || !strings.Contains(found.Reason, "truncated") {
				t.Errorf("Inspect: %+v, %v", found, err)
			}
			if _, err := Initialize(ctx, l.path, Owner{}); err == nil {
				t.Error("Initialize succeeded")
			}
			d, err := Open(ctx, l.path, Options{SeenBefore: func(string) bool { return true }})
			if err != nil {
				t.Fatal(err)
			}
			s := d.Snapshot()
			if !errors.Is(s.Err, ErrOutOfService) || !strings.Contains(s.Err.Error(), "truncated") || s.ID != id || len(s.Volumes) != 2 {
				t.Errorf("of %d bytes: %+v", size, s)
			}
			if err := wipeVolume(ctx, d, guidA); !errors.Is(err, ErrOutOfService) {
				t.Errorf("Wipe: %v", err)
			}
			if err := d.Close(); err != nil {
				t.Error(err)
			}
			if l.hash(t) != before {
				t.Error("a truncated disk was written to")
			}
		}
		l.resize(t, 64*units.MiB)
		d = l.open(t)
		if got := volumes(d.Snapshot()); !slices.Equal(got, []string{"a:Reserved@2+20", "b:Reserved@32+20"}) {
			t.Errorf("of its old size: %v", got)
		}
		d.waitIdle(t)
		verifyTable(t, l.path)
	})
}

// TestDiskIsSwapped asserts that an open disk whose device becomes another disk of ours is out of service.
func TestDiskIsSwapped(t *testing.T) {
	l, other := initialized(t, 64*units.MiB, 512), initialized(t, 64*units.MiB, 512)
	d := l.open(t)
	ctx := withoutLogs(t)
	if _, err := d.Create(ctx, CreateOptions{Partition: guidA, Extent: extentMiB(2, 10)}); err != nil {
		t.Fatal(err)
	}
	d.waitIdle(t)
	theirs, err := os.Open(other.image)
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	image, err := os.OpenFile(l.image, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	if _, err := io.Copy(image, theirs); err != nil {
		t.Fatal(err)
	}
	before := l.hash(t)
	if _, err := d.Create(ctx, CreateOptions{Partition: guidB, Extent: extentMiB(20, 10)}); !errors.Is(err, ErrOutOfService) {
		t.Errorf("Create: %v", err)
	}
	if err := wipeVolume(ctx, d, guidA); !errors.Is(err, ErrOutOfService) {
		t.Errorf("Wipe: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if l.hash(t) != before {
		t.Error("the other disk was written to")
	}
}
