package disk

import (
	"context"
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// hash is the sum of all bytes of the disk. It reads the file behind it, because the device's own cache does not show
// what is written through a partition's device.
func (l *loopDisk) hash(t testing.TB) [sha256.Size]byte {
	t.Helper()
	testenv.Run(t, "sync", l.path)
	f, err := os.Open(l.image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// writeAt writes into the device, in or behind its table.
func (l *loopDisk) writeAt(t testing.TB, b []byte, off int64) {
	t.Helper()
	f, err := os.OpenFile(l.path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

// TestForeignIsLeftAlone asserts that no disk with content is blank, that the reason names the content, and that no
// byte of it changes.
func TestForeignIsLeftAlone(t *testing.T) {
	testenv.NeedProgram(t, "mkfs.ext4", "mkfs.xfs", "mkswap", "sgdisk", "sfdisk")
	const size = 16 << 20
	random := make([]byte, units.MiB)
	for i := range random {
		random[i] = byte(rand.Uint32())
	}
	lvm := make([]byte, 512)
	copy(lvm, "LABELONE\x01\x00\x00\x00\x00\x00\x00\x00\x4e\xb3\x10\xbc\x20\x00\x00\x00LVM2 001")
	for _, test := range []struct {
		name   string
		make   func(t *testing.T, l *loopDisk)
		reason string // part of it
	}{
		{"ext4", func(t *testing.T, l *loopDisk) { testenv.Run(t, "mkfs.ext4", "-q", "-F", l.path) }, "ext4"},
		{"xfs", func(t *testing.T, l *loopDisk) { testenv.Run(t, "mkfs.xfs", "-q", "-f", l.path) }, "xfs"},
		{"swap", func(t *testing.T, l *loopDisk) { testenv.Run(t, "mkswap", l.path) }, "swap"},
		{"LVM label", func(t *testing.T, l *loopDisk) { l.writeAt(t, lvm, 512) }, ""},
		{"DOS table", func(t *testing.T, l *loopDisk) {
			testenv.Run(t, "sh", "-c", "echo ',,83' | sfdisk --no-reread --no-tell-kernel -q "+l.path)
		}, "dos"},
		{"GPT", func(t *testing.T, l *loopDisk) { testenv.Run(t, "sgdisk", "-n", "1:0:0", l.path) }, "gpt"},
		{"empty GPT", func(t *testing.T, l *loopDisk) { testenv.Run(t, "sgdisk", "-o", l.path) }, "gpt"},
		{"GPT of 1024 entries", func(t *testing.T, l *loopDisk) {
			testenv.Run(t, "sgdisk", "-o", "-S", "1024", "-n", "255:0:+1M", l.path)
		}, "gpt"},
		{"backup GPT alone", func(t *testing.T, l *loopDisk) {
			testenv.Run(t, "sgdisk", "-o", l.path)
			l.writeAt(t, make([]byte, units.MiB), 0)
		}, ""},
		{"random first MiB", func(t *testing.T, l *loopDisk) { l.writeAt(t, random, 0) }, ""},
		{"one byte in the first MiB", func(t *testing.T, l *loopDisk) { l.writeAt(t, []byte{1}, units.MiB-1) }, "not zero"},
		{"one byte in the last MiB", func(t *testing.T, l *loopDisk) { l.writeAt(t, []byte{1}, size-units.MiB) }, "not zero"},
	} {
		t.Run(test.name, func(t *testing.T) {
			bothSectors(t, func(t *testing.T, sector int) {
				size := int64(size)
				if test.name == "xfs" {
					size = 320 << 20 // mkfs.xfs needs 300 MiB
				}
				l := newLoopDisk(t, size, sector)
				test.make(t, l)
				l.removePartitions(t) // removes partitions that the tools may have added to the kernel
				l.checkRefused(t, test.reason)
				l.checkClearing(t)
			})
		})
	}
}

// checkClearing asserts that the command in the last reason makes the device blank.
func (l *loopDisk) checkClearing(t *testing.T) {
	t.Helper()
	found, err := Inspect(t.Context(), l.path)
	if err != nil {
		t.Fatal(err)
	}
	command, names := strings.CutPrefix(found.Reasons[len(found.Reasons)-1], clearHint)
	if !names {
		t.Fatalf("the reasons name no command: %q", found.Reasons)
	}
	testenv.Run(t, "sh", "-c", command)
	if found, err = Inspect(t.Context(), l.path); err != nil || found.State != Blank {
		t.Errorf("after %s: %+v, %v", command, found, err)
	}
}

func (l *loopDisk) partitions(t testing.TB) map[int]partition {
	t.Helper()
	d, err := openDevice(l.path, os.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	parts, err := d.partitions()
	if err != nil {
		t.Fatal(err)
	}
	return parts
}

// TestBusyIsLeftAlone asserts that a blank disk in use is not changed.
func TestBusyIsLeftAlone(t *testing.T) {
	busy := func(t *testing.T, l *loopDisk, reason string) {
		t.Helper()
		before := l.hash(t)
		found, err := Inspect(t.Context(), l.path)
		if err != nil || found.State != Busy || !strings.Contains(found.Reason, reason) {
			t.Errorf("Inspect: %+v, %v, want %q", found, err, reason)
		}
		if _, err := Initialize(t.Context(), l.path, Owner{}); err == nil {
			t.Error("Initialize succeeded")
		}
		if l.hash(t) != before {
			t.Error("the disk was written to")
		}
		if strings.Contains(found.Reason, clearHint) {
			t.Errorf("a device in use is to be cleared: %q", found.Reason)
		}
	}
	t.Run("open exclusively", func(t *testing.T) {
		l := newLoopDisk(t, 64*units.MiB, 512)
		f, err := os.OpenFile(l.path, os.O_RDONLY|unix.O_EXCL, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		busy(t, l, "exclusively")
	})
	t.Run("partitions", func(t *testing.T) {
		l := newLoopDisk(t, 64*units.MiB, 512)
		l.addPartition(t, 3, extentMiB(5, 5))
		busy(t, l, "partition")
	})
	t.Run("mounted partition", func(t *testing.T) {
		testenv.NeedProgram(t, "mkfs.ext4", "sgdisk")
		l := newLoopDisk(t, 64*units.MiB, 512)
		testenv.Run(t, "sgdisk", "-n", "1:2048:+20M", l.path)
		l.removePartitions(t)
		l.addPartition(t, 1, extentMiB(1, 20))
		testenv.Run(t, "mkfs.ext4", "-q", "-F", l.path+"p1")
		mnt := t.TempDir()
		if err := unix.Mount(l.path+"p1", mnt, "ext4", unix.MS_RDONLY, "noload"); err != nil {
			t.Fatal(err)
		}
		defer unix.Unmount(mnt, 0)
		busy(t, l, "mounted at "+mnt)
	})
	t.Run("mounted", func(t *testing.T) {
		testenv.NeedProgram(t, "mkfs.ext4")
		l := newLoopDisk(t, 64*units.MiB, 512)
		testenv.Run(t, "mkfs.ext4", "-q", "-F", l.path)
		mnt := t.TempDir()
		if err := unix.Mount(l.path, mnt, "ext4", unix.MS_RDONLY, "noload"); err != nil {
			t.Fatal(err)
		}
		defer unix.Unmount(mnt, 0)
		busy(t, l, "mounted at "+mnt)
	})
}

// TestDamagedIsNotCleared asserts that no command is named that would clear a disk of ours whose table is damaged: its
// volumes may be there.
func TestDamagedIsNotCleared(t *testing.T) {
	l := initialized(t, 64*units.MiB, 512)
	for _, entries := range []int64{2 * 512, 64*units.MiB - 512 - 131072} {
		l.writeAt(t, []byte{1}, entries+40)
	}
	found, err := Inspect(t.Context(), l.path)
	if err != nil || found.State != Foreign || !strings.Contains(found.Reason, "are damaged") || strings.Contains(found.Reason, clearHint) {
		t.Errorf("%+v, %v", found, err)
	}
}

// TestWhyNoDisk asserts that anything other than a disk is refused without a panic.
func TestWhyNoDisk(t *testing.T) {
	testenv.NeedRoot(t)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, make([]byte, 8*units.MiB), 0o600); err != nil {
		t.Fatal(err)
	}
	tiny := newLoopDisk(t, units.MiB, 512)
	for _, path := range []string{file, "/dev/null", "/dev/does-not-exist", t.TempDir(), "", tiny.path} {
		if found, err := Inspect(t.Context(), path); err == nil && found.State != Foreign {
			t.Errorf("Inspect of %q: %+v", path, found)
		}
		if _, err := Initialize(t.Context(), path, Owner{}); err == nil {
			t.Errorf("Initialize of %q succeeded", path)
		}
		if _, err := Open(t.Context(), path, Options{}); err == nil {
			t.Errorf("Open of %q succeeded", path)
		}
	}
}

// TestProbesMustAnswer asserts that a device is not blank because a program is missing.
func TestProbesMustAnswer(t *testing.T) {
	l := newLoopDisk(t, 64*units.MiB, 512)
	t.Setenv("PATH", t.TempDir())
	if found, err := Inspect(context.Background(), l.path); err == nil {
		t.Errorf("Inspect without blkid: %+v", found)
	}
}

// TestSkipExclusive asserts that a shared look opens nothing exclusively.
func TestSkipExclusive(t *testing.T) {
	l := newLoopDisk(t, 64*units.MiB, 512)
	// Looked at before the other program has it open.
	seen, err := Inspector{}.ReadHolders(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(l.path, os.O_RDONLY|unix.O_EXCL, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for shared, want := range map[bool]State{false: Busy, true: Blank} {
		if c, err := (Inspector{Holders: seen, SkipExclusive: shared}).Inspect(t.Context(), l.path); err != nil || c.State != want {
			t.Errorf("shared %v: %+v, %v, want %s", shared, c, err, want)
		}
	}
}
