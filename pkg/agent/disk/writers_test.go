package disk

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// TestWriterDuringWipe asserts that a volume that a process has open for writing is not wiped, in any number of tries.
// It is wiped once and clean when it is closed.
func TestWriterDuringWipe(t *testing.T) {
	bothSectors(t, func(t *testing.T, sector int) {
		l := initialized(t, 64*units.MiB, sector)
		d := l.open(t)
		v, err := d.Create(withoutLogs(t), CreateOptions{Partition: guidA, Extent: extentMiB(3, 40)})
		if err != nil {
			t.Fatal(err)
		}
		writeCanary(t, l, v)
		d.waitIdle(t)
		writer, err := os.OpenFile(v.Device, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		before := l.writtenBytes(t)
		for range 2 {
			if _, err := d.Wipe(withoutLogs(t), guidA, WipeOptions{Policy: WipeOverwrite}); !errors.Is(err, ErrInUse) {
				t.Errorf("Wipe of a volume that is open for writing: %v", err)
			}
		}
		if n := l.writtenBytes(t) - before; n != 0 {
			t.Errorf("%d bytes were written to the disk while the volume was open", n)
		}
		if s := d.Snapshot(); s.Volumes[0].Phase != Reserved || s.Volumes[0].Device != v.Device {
			t.Errorf("meanwhile: %+v", s.Volumes)
		}
		if _, err := writer.WriteAt(bytes.Repeat([]byte("late"), 1024), 8*units.MiB); err != nil {
			t.Fatal(err)
		}
		if err := writer.Close(); err != nil {
			t.Fatal(err)
		}
		before = l.writtenBytes(t)
		opened := 0
		w, err := d.Wipe(withoutLogs(t), guidA, WipeOptions{Policy: WipeOverwrite, Progress: func(int64) {
			// No process can open it any more.
			if f, err := os.OpenFile(v.Device, os.O_RDWR, 0); err == nil {
				f.Close()
				opened++
			}
		}})
		if err != nil || !w.Verified || opened > 0 {
			t.Errorf("%+v, %v, opened %d times while it was wiped", w, err, opened)
		}
		if n := l.writtenBytes(t) - before; n < 40*units.MiB || n > 41*units.MiB {
			t.Errorf("%d bytes were written for a volume of %d", n, 40*units.MiB)
		}
		raw, err := os.ReadFile(l.image)
		if e := extentMiB(3, 40); err != nil || !allZero(raw[e.Start:e.End]) {
			t.Errorf("the extent is not zero: %v", err)
		}
		if again, err := d.Create(withoutLogs(t), CreateOptions{Partition: guidB, Extent: extentMiB(3, 40), Raw: true}); err != nil || !allZero(readContent(t, again)) {
			t.Errorf("a raw volume in its place: %v", err)
		}
	})
}

// TestLeakedLoopDevice asserts that with a loop device left over a volume each try returns ErrInUse and writes nothing.
func TestLeakedLoopDevice(t *testing.T) {
	l := initialized(t, 64*units.MiB, 512)
	d := l.open(t)
	v, err := d.Create(withoutLogs(t), CreateOptions{Partition: guidA, Extent: extentMiB(3, 40)})
	if err != nil {
		t.Fatal(err)
	}
	d.waitIdle(t)
	leaked := strings.TrimSpace(testenv.Run(t, "losetup", "--find", "--show", v.Device))
	detached := false
	t.Cleanup(func() {
		if !detached {
			_ = tryProgram("losetup", "--detach", leaked)
		}
	})
	before := l.writtenBytes(t)
	for range 2 {
		if err := wipeVolume(withoutLogs(t), d, guidA); !errors.Is(err, ErrInUse) {
			t.Errorf("Wipe of a volume with a loop device over it: %v", err)
		}
	}
	if n := l.writtenBytes(t) - before; n != 0 {
		t.Errorf("%d bytes were written to the disk", n)
	}
	testenv.Run(t, "losetup", "--detach", leaked)
	detached = true
	if err := wipeVolume(t.Context(), d, guidA); err != nil {
		t.Error(err)
	}
}

// writtenBytes is what the kernel has written to the disk so far, or had it drop.
func (l *loopDisk) writtenBytes(t *testing.T) int64 {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(l.path), "stat"))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(b))
	const written, discarded = 6, 13
	sum := int64(0)
	for _, i := range []int{written, discarded} {
		n, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		sum += n * 512
	}
	return sum
}
