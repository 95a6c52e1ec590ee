package disk

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

const (
	guidA = "a0000000-0000-5000-8000-00000000000a"
	guidB = "b0000000-0000-5000-8000-00000000000b"
	guidC = "c0000000-0000-5000-8000-00000000000c"
	c2    = "c2000000-0000-5000-8000-00000000000c"
	c4    = "c4000000-0000-5000-8000-00000000000c"
	c5    = "c5000000-0000-5000-8000-00000000000c"
	c6    = "c6000000-0000-5000-8000-00000000000c"
	c3    = "c3000000-0000-5000-8000-00000000000c"
)

// bothSectors runs a test with both common sector sizes.
func bothSectors(t *testing.T, f func(t *testing.T, sector int)) {
	for _, sector := range []int{512, 4096} {
		t.Run(strconv.Itoa(sector), func(t *testing.T) { f(t, sector) })
	}
}

// initialized makes a loop device that is ours.
func initialized(t testing.TB, size int64, sector int) *loopDisk {
	t.Helper()
	l := newLoopDisk(t, size, sector)
	if _, err := Initialize(t.Context(), l.path, Owner{}); err != nil {
		t.Fatal(err)
	}
	return l
}

// open opens the disk, and closes it when the test ends unless that was done.
func (l *loopDisk) open(t testing.TB) *Disk {
	t.Helper()
	d, err := Open(t.Context(), l.path, Options{wipeMethods: l.wipeMethods, copyWindow: 8 * units.MiB})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	s := d.Snapshot()
	if s.Err != nil {
		t.Fatal(s.Err)
	}
	if err := s.Validate(); err != nil {
		t.Fatal(err)
	}
	return d
}

func extentMiB(start, length int64) extent.Extent {
	return extent.New(start*units.MiB, length*units.MiB)
}

// TestVolumeLife asserts the result of each call in the life of a volume, from a blank disk to a wiped volume, with
// both sector sizes.
func TestVolumeLife(t *testing.T) {
	bothSectors(t, func(t *testing.T, sector int) {
		l := newLoopDisk(t, 256*units.MiB, sector)
		ctx := t.Context()
		found, err := Inspect(ctx, l.path)
		if err != nil || found.State != Blank {
			t.Fatalf("Inspect of a new disk: %+v, %v", found, err)
		}
		id, err := Initialize(ctx, l.path, Owner{})
		if err != nil {
			t.Fatal(err)
		}
		found, err = Inspect(ctx, l.path)
		if err != nil || found.State != Ours || found.ID != id || found.Reason != "" {
			t.Fatalf("Inspect after Initialize: %+v, %v", found, err)
		}
		if _, err := Initialize(ctx, l.path, Owner{}); err == nil {
			t.Fatal("Initialize of a disk of ours succeeded")
		}

		changes := 0
		d, err := Open(ctx, l.path, Options{OnChange: func() { changes++ }})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		s := d.Snapshot()
		if want := extent.NewSet(extentMiB(2, 253)); s.ID != id || !s.Free.Equal(want) || s.Overhead != 3*units.MiB {
			t.Fatalf("new disk: %+v", s)
		}

		v, err := d.Create(ctx, CreateOptions{Partition: guidA, Name: "default/web data", Extent: extentMiB(2, 100), Ephemeral: true})
		if err != nil {
			t.Fatal(err)
		}
		want := Volume{Partition: guidA, Name: "default/web data", Extent: extentMiB(2, 100), Phase: Reserved, Ephemeral: true, Index: 1, Device: l.path + "p1", Attachment: Partition}
		if !reflect.DeepEqual(v, want) {
			t.Fatalf("Create returned %+v, want %+v", v, want)
		}
		if again, err := d.Create(ctx, CreateOptions{Partition: guidA, Name: "default/web data", Extent: extentMiB(2, 100), Ephemeral: true}); err != nil || !reflect.DeepEqual(again, want) {
			t.Fatalf("second Create returned %+v, %v", again, err)
		}
		if _, err := d.Create(ctx, CreateOptions{Partition: guidA, Extent: extentMiB(110, 100), Ephemeral: true}); !errors.Is(err, ErrOverlap) {
			t.Fatalf("Create of the same volume elsewhere: %v", err)
		}
		if _, err := d.Create(ctx, CreateOptions{Partition: guidB, Extent: extentMiB(101, 2), Ephemeral: true}); !errors.Is(err, ErrOverlap) {
			t.Fatalf("Create over another volume: %v", err)
		}

		testenv.Run(t, "mkfs.ext4", "-q", "-F", v.Device)
		if err := d.MarkFormatted(ctx, guidA); err != nil {
			t.Fatal(err)
		}
		if err := d.MarkFormatted(ctx, guidA); err != nil {
			t.Fatal(err)
		}
		mnt := t.TempDir()
		if err := unix.Mount(v.Device, mnt, "ext4", 0, ""); err != nil {
			t.Fatal(err)
		}
		canary := bytes.Repeat([]byte("my bonnie lies over the ocean;"), 1<<16)
		if err := os.WriteFile(filepath.Join(mnt, "canary"), canary, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := wipeVolume(ctx, d, guidA); !errors.Is(err, ErrInUse) {
			t.Fatalf("Wipe of a mounted volume: %v", err)
		}
		if got, _ := ptr(d.Snapshot()).Volume(guidA); got.Phase != Formatted {
			t.Fatalf("after a refused Wipe: %+v", got)
		}
		// Other volumes come and go meanwhile.
		if _, err := d.Create(ctx, CreateOptions{Partition: guidB, Name: "other", Extent: extentMiB(150, 10)}); err != nil {
			t.Fatal(err)
		}
		if err := unix.Unmount(mnt, 0); err != nil {
			t.Fatal(err)
		}
		testenv.Run(t, "sync", l.image)
		if raw, err := os.ReadFile(l.image); err != nil || !bytes.Contains(raw, canary[:30]) {
			t.Fatalf("the canary is not on the disk: %v", err)
		}
		if err := wipeVolume(ctx, d, guidA); err != nil {
			t.Fatal(err)
		}
		if err := wipeVolume(ctx, d, guidA); !errors.Is(err, ErrNotFound) {
			t.Fatalf("second Wipe: %v", err)
		}
		raw, err := os.ReadFile(l.image)
		if err != nil {
			t.Fatal(err)
		}
		if e := extentMiB(2, 100); !allZero(raw[e.Start:e.End]) || bytes.Contains(raw, canary[:30]) {
			t.Fatal("something is left of a wiped volume")
		}
		s = d.Snapshot()
		if want := extent.NewSet(extentMiB(2, 148), extentMiB(160, 95)); !s.Free.Equal(want) || s.Validate() != nil {
			t.Fatalf("after Wipe: %+v, %v", s, s.Validate())
		}
		if v, err = d.Create(ctx, CreateOptions{Partition: guidC, Name: "next", Extent: extentMiB(2, 50), Ephemeral: true}); err != nil || !v.Prezeroed || v.Index != 1 {
			t.Fatalf("Create on wiped space: %+v, %v", v, err)
		}
		if changes == 0 {
			t.Error("OnChange was never called")
		}
		d.waitIdle(t)
		verifyTable(t, l.path)
	})
}

// waitIdle waits until the worker has finished what Create left over.
func (d *Disk) waitIdle(t *testing.T) {
	t.Helper()
	if err := d.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func ptr[T any](v T) *T { return &v }
