package disk

import (
	"bytes"
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// fillWithData fills space that no volume has with data, as on a disk that was used before.
func fillWithData(t *testing.T, l *loopDisk, e extent.Extent) {
	t.Helper()
	l.writeAt(t, bytes.Repeat([]byte("old data"), int(e.Len()/8)), e.Start)
}

// readContent reads a volume through its device.
func readContent(t *testing.T, v Volume) []byte {
	t.Helper()
	b, err := os.ReadFile(v.Device)
	if err != nil {
		t.Fatal(err)
	}
	if int64(len(b)) != v.Extent.Len() {
		t.Fatalf("%s has %d bytes, the volume %d", v.Device, len(b), v.Extent.Len())
	}
	return b
}

// TestGrow asserts that a volume grows in place up to the next one, keeps its data, and gets zeros behind it.
func TestGrow(t *testing.T) {
	bothSectors(t, func(t *testing.T, sector int) {
		l := initialized(t, 64*units.MiB, sector)
		fillWithData(t, l, extentMiB(2, 61))
		d := l.open(t)
		ctx := t.Context()
		v, err := d.Create(ctx, CreateOptions{Partition: guidA, Name: "a", Extent: extentMiB(2, 4), Ephemeral: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := d.MarkFormatted(ctx, guidA); err != nil {
			t.Fatal(err)
		}
		data := bytes.Repeat([]byte("its own "), 4<<17)
		testenv.WriteDevice(t, v.Device, data)
		if _, err := d.Create(ctx, CreateOptions{Partition: guidB, Extent: extentMiB(20, 4)}); err != nil {
			t.Fatal(err)
		}
		most := strconv.FormatInt(18*units.MiB, 10)
		for _, test := range []struct {
			guid   string
			length int64
			want   error
			says   string
			then   int64
		}{
			{guidC, 8 * units.MiB, ErrNotFound, "", 4},
			{guidA, 4 * units.MiB, nil, "", 4},
			{guidA, units.MiB, nil, "", 4},
			{guidA, -units.MiB, nil, "", 4},
			{guidA, 5*units.MiB + 512, nil, "multiple", 4},
			{guidA, 6 * units.MiB, nil, "", 6},
			{guidA, 19 * units.MiB, ErrOverlap, most, 6},
			{guidA, maxDiskSize, ErrOverlap, most, 6},
			{guidA, math.MaxInt64 / units.MiB * units.MiB, ErrOverlap, most, 6},
			{guidA, 18 * units.MiB, nil, "", 18},
			{guidA, 18 * units.MiB, nil, "", 18},
		} {
			v, err := d.Grow(ctx, test.guid, test.length)
			ok := err == nil && test.want == nil && test.says == ""
			if err != nil && (test.want != nil || test.says != "") {
				ok = (test.want == nil || errors.Is(err, test.want)) && strings.Contains(err.Error(), test.says)
			}
			if !ok || err == nil && v.Extent.Len() != test.then*units.MiB {
				t.Errorf("Grow of %c to %d: %+v, %v", test.guid[0], test.length, v, err)
			}
			s := d.Snapshot()
			now, _ := s.Volume(guidA)
			if now.Extent != extentMiB(2, test.then) || now.Phase != Formatted || s.Validate() != nil {
				t.Fatalf("Grow of %c to %d: then %+v, %v", test.guid[0], test.length, now, s.Validate())
			}
			if got, want := readContent(t, now), append(slices.Clone(data), make([]byte, now.Extent.Len()-4*units.MiB)...); !bytes.Equal(got, want) {
				t.Fatalf("Grow of %c to %d: the volume holds something else than its data and zeros", test.guid[0], test.length)
			}
		}
		verifyTable(t, l.path)
		d.Close()
		l.removePartitions(t)
		d = l.open(t)
		if got := volumes(d.Snapshot()); !slices.Equal(got, []string{"a:Formatted@2+18", "b:Reserved@20+4"}) {
			t.Errorf("after a restart: %v", got)
		}
		if err := wipeVolume(ctx, d, guidA); err != nil {
			t.Fatal(err)
		}
		if raw, err := os.ReadFile(l.image); err != nil || !allZero(raw[2*units.MiB:20*units.MiB]) {
			t.Errorf("something is left of a volume that grew: %v", err)
		}
	})
}

// growTable writes a volume's new length to the table only, like an agent that ends before the kernel knows of it.
func (d *Disk) growTable(t *testing.T, guid string, length int64) {
	t.Helper()
	err := d.runInWorker(t.Context(), func(ctx context.Context) error {
		next, e, err := d.store.table.withLength(guid, length)
		if err != nil {
			return err
		}
		return d.store.put(ctx, next, e)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestGrowCutShort asserts that the next agent lengthens the kernel's partition when an agent ended after the table had
// the new length. The volume is mounted.
func TestGrowCutShort(t *testing.T) {
	l := initialized(t, 64*units.MiB, 512)
	d := l.open(t)
	ctx := t.Context()
	v, err := d.Create(ctx, CreateOptions{Partition: guidA, Extent: extentMiB(2, 4)})
	if err != nil {
		t.Fatal(err)
	}
	testenv.Run(t, "mkfs.ext4", "-q", "-F", v.Device)
	mnt := mountVolume(t, v, "ext4")
	d.growTable(t, guidA, 8*units.MiB)
	d.Close()
	d = l.open(t)
	if p := l.partitions(t)[1]; p.extent != extentMiB(2, 8) {
		t.Errorf("the kernel has %v", p.extent)
	}
	if v, err := d.Grow(ctx, guidA, 8*units.MiB); err != nil || v.Extent != extentMiB(2, 8) {
		t.Errorf("Grow once more: %+v, %v", v, err)
	}
	if err := unix.Unmount(mnt, 0); err != nil {
		t.Error(err)
	}
}

// TestGrowWhileWiped asserts that a volume that is being wiped does not grow.
func TestGrowWhileWiped(t *testing.T) {
	l := initialized(t, 64*units.MiB, 512)
	d := l.open(t)
	ctx := t.Context()
	if _, err := d.Create(ctx, CreateOptions{Partition: guidA, Extent: extentMiB(2, 4)}); err != nil {
		t.Fatal(err)
	}
	all := l.wipeMethods.zero
	var during error
	l.useMethods(method{"asking", units.MiB, func(dev *blockDevice, off, n int64) error {
		_, during = d.Grow(ctx, guidA, 8*units.MiB)
		return all[0].do(dev, off, n)
	}})
	if err := wipeVolume(ctx, d, guidA); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(during, ErrInUse) {
		t.Errorf("Grow during a wipe: %v", during)
	}
}

// TestZeroingReservesSpace asserts that no other volume gets space that is being zeroed for one. A zeroing that fails
// or is given up releases the space.
func TestZeroingReservesSpace(t *testing.T) {
	l := initialized(t, 64*units.MiB, 512)
	fillWithData(t, l, extentMiB(2, 61))
	d := l.open(t)
	ctx := withoutLogs(t)
	if _, err := d.Create(ctx, CreateOptions{Partition: guidA, Extent: extentMiB(2, 4)}); err != nil {
		t.Fatal(err)
	}
	all := l.wipeMethods.zero
	var others [3]error
	stopped, cancel := context.WithCancel(ctx)
	l.useMethods(method{"asking", units.MiB, func(dev *blockDevice, off, n int64) error {
		_, others[0] = d.Create(ctx, CreateOptions{Partition: guidB, Extent: extentMiB(7, 1)})
		_, others[1] = d.Create(ctx, CreateOptions{Partition: guidB, Extent: extentMiB(7, 4), Raw: true})
		_, others[2] = d.Create(ctx, CreateOptions{Partition: guidC, Extent: extentMiB(40, 1)})
		cancel()
		return all[0].do(dev, off, n)
	}})
	if _, err := d.Grow(stopped, guidA, 8*units.MiB); !errors.Is(err, context.Canceled) {
		t.Errorf("Grow that was given up: %v", err)
	}
	if !errors.Is(others[0], ErrOverlap) || !errors.Is(others[1], ErrOverlap) || others[2] != nil {
		t.Errorf("meanwhile: %v", others)
	}
	l.useMethods(method{"lies", units.MiB, func(*blockDevice, int64, int64) error { return nil }})
	if _, err := d.Grow(ctx, guidA, 12*units.MiB); err == nil || errors.Is(err, ErrOutOfService) {
		t.Errorf("Grow into what could not be zeroed: %v", err)
	}
	l.useMethods(all...)
	if _, err := d.Create(ctx, CreateOptions{Partition: guidB, Extent: extentMiB(7, 1)}); err != nil {
		t.Errorf("Create where a Grow was given up: %v", err)
	}
	if got := volumes(d.Snapshot()); !slices.Equal(got, []string{"a:Reserved@2+4", "b:Reserved@7+1", "c:Reserved@40+1"}) {
		t.Errorf("in the end: %v", got)
	}
}

// TestRaw asserts that a raw block volume is zeroed before it exists, and is ready at once.
func TestRaw(t *testing.T) {
	bothSectors(t, func(t *testing.T, sector int) {
		l := initialized(t, 64*units.MiB, sector)
		fillWithData(t, l, extentMiB(2, 61))
		d := l.open(t)
		ctx := t.Context()
		o := CreateOptions{Partition: guidA, Name: "raw", Extent: extentMiB(5, 7), Raw: true}
		v, err := d.Create(ctx, o)
		if err != nil {
			t.Fatal(err)
		}
		if v.Phase != Formatted || !v.Raw || v.Ephemeral || !allZero(readContent(t, v)) {
			t.Errorf("made: %+v, all zeros: %v", v, allZero(readContent(t, v)))
		}
		writeCanary(t, l, v)
		again, err := d.Create(ctx, o)
		if err != nil || again.Extent != v.Extent || countCanaries(t, l) == 0 {
			t.Errorf("Create once more: %+v, %v, %d canaries", again, err, countCanaries(t, l))
		}
		if v, err = d.Grow(ctx, guidA, 9*units.MiB); err != nil || !allZero(readContent(t, v)[7*units.MiB:]) || allZero(readContent(t, v)[:7*units.MiB]) {
			t.Errorf("Grow: %+v, %v", v, err)
		}
		raw, err := os.ReadFile(l.image)
		if err != nil || bytes.Count(raw, []byte("old data")) != int(61-9)*(1<<17) {
			t.Errorf("more was zeroed than the volume: %v", err)
		}
		d.Close()
		l.removePartitions(t)
		if v, _ := ptr(l.open(t).Snapshot()).Volume(guidA); !v.Raw || v.Phase != Formatted || v.Extent != extentMiB(5, 9) {
			t.Errorf("after a restart: %+v", v)
		}
		verifyTable(t, l.path)
	})
}

// TestRawRace asserts that concurrent calls for the same volume all get it.
func TestRawRace(t *testing.T) {
	l := initialized(t, 64*units.MiB, 512)
	fillWithData(t, l, extentMiB(2, 61))
	d := l.open(t)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			v, err := d.Create(t.Context(), CreateOptions{Partition: guidA, Extent: extentMiB(5, 7), Raw: true})
			if err != nil || v.Extent != extentMiB(5, 7) {
				t.Errorf("%+v, %v", v, err)
			}
		})
	}
	all.Wait()
}

// mountVolume mounts a volume until the test ends, or is unmounted earlier.
func mountVolume(t *testing.T, v Volume, fsType string) string {
	t.Helper()
	mnt := t.TempDir()
	if err := unix.Mount(v.Device, mnt, fsType, 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(mnt, unix.MNT_DETACH) })
	return mnt
}

// TestGrowFileSystem asserts that volumes grow while mounted, and keep their files. xfs grows while it is mounted. ext4
// grows after it is unmounted: online it needs CAP_SYS_RESOURCE.
func TestGrowFileSystem(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.NeedProgram(t, "mkfs.ext4", "mkfs.xfs", "xfs_growfs", "resize2fs", "e2fsck")
	bothSectors(t, func(t *testing.T, sector int) {
		l := initialized(t, 2048*units.MiB, sector)
		d := l.open(t)
		ctx := t.Context()
		for i, fsType := range []string{"xfs", "ext4"} {
			guid := []string{guidA, guidB}[i]
			v, err := d.Create(ctx, CreateOptions{Partition: guid, Extent: extentMiB(2+1000*int64(i), 400)})
			if err != nil {
				t.Fatal(err)
			}
			testenv.Run(t, "mkfs."+fsType, v.Device)
			mnt := mountVolume(t, v, fsType)
			file := filepath.Join(mnt, "file")
			data := bytes.Repeat([]byte("kept"), 1<<20)
			if err := os.WriteFile(file, data, 0o600); err != nil {
				t.Fatal(err)
			}
			if v, err = d.Grow(ctx, guid, 900*units.MiB); err != nil {
				t.Fatal(err)
			}
			if fsType == "xfs" {
				testenv.Run(t, "xfs_growfs", mnt)
			} else {
				if err := unix.Unmount(mnt, 0); err != nil {
					t.Fatal(err)
				}
				testenv.Run(t, "e2fsck", "-f", "-y", v.Device)
				testenv.Run(t, "resize2fs", v.Device)
				file = filepath.Join(mountVolume(t, v, fsType), "file")
			}
			var st unix.Statfs_t
			if err := unix.Statfs(filepath.Dir(file), &st); err != nil {
				t.Fatal(err)
			}
			if size := int64(st.Blocks) * st.Bsize; size < 750*units.MiB {
				t.Errorf("%s has %d MiB after it grew", fsType, size/units.MiB)
			}
			if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%s: the data is not what it was: %v", fsType, err)
			}
			if err := unix.Unmount(filepath.Dir(file), 0); err != nil {
				t.Error(err)
			}
		}
	})
}
