//go:build vm

package disk

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berthdev/berth/pkg/agent/holders"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// scattered are the places of n pieces of 2 MiB, the later ones before the earlier ones on the disk.
func scattered(n int) []extent.Extent {
	var at []extent.Extent
	for i := range int64(n) {
		at = append(at, extentMiB(2+3*(int64(n)-1-i), 2))
	}
	return at
}

// newInPieces makes a raw volume a with these pieces, attached by the device mapper.
func newInPieces(t *testing.T, d *Disk, at []extent.Extent) Volume {
	t.Helper()
	v, err := d.Create(withoutLogs(t), CreateOptions{Partition: guidA, Name: "a", Extent: at[0], Pieces: at[1:], Raw: true, Attachment: DeviceMapper})
	if err != nil {
		t.Fatal(err)
	}
	if v.Attachment != DeviceMapper || !strings.HasPrefix(v.Device, "/dev/dm-") || v.Length() != totalOf(at) {
		t.Fatalf("%+v", v)
	}
	return v
}

func totalOf(at []extent.Extent) (total int64) {
	for _, e := range at {
		total += e.Len()
	}
	return total
}

// numbered is data in which each 16 bytes say where they are.
func numbered(n int64) []byte {
	b := make([]byte, 0, n)
	for i := int64(0); i < n; i += 16 {
		b = fmt.Appendf(b, "%016d", i)
	}
	return b
}

// whole reads all of the volume's device.
func whole(t *testing.T, v Volume) []byte {
	t.Helper()
	f, err := os.Open(v.Device)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, v.Length()+1)
	n, _ := f.ReadAt(b, 0)
	return b[:n]
}

// TestPiecesAttach asserts that volumes of 1, 2 and 16 pieces are shown by one device with their bytes in order, that a
// restart of the agent finds the same device though it is in use, that a boot attaches them again, and that a wipe
// frees all of it with all bytes zero.
func TestPiecesAttach(t *testing.T) {
	for _, sector := range []int{512, 4096} {
		for _, n := range []int{1, 2, 16} {
			t.Run(fmt.Sprint(n, " of ", sector), func(t *testing.T) {
				l := initialized(t, 128*units.MiB, sector)
				at := scattered(n)
				d := l.open(t)
				v := newInPieces(t, d, at)
				data := numbered(v.Length())
				if err := writeDevice(v.Device, data, 0); err != nil {
					t.Fatal(err)
				}
				off := int64(0)
				device, err := openDevice(l.path, os.O_RDONLY)
				if err != nil {
					t.Fatal(err)
				}
				for i, e := range at {
					b := make([]byte, e.Len())
					if _, err := device.ReadAt(b, e.Start); err != nil || !bytes.Equal(b, data[off:off+e.Len()]) {
						t.Errorf("piece %d is not at %v: %v", i, e, err)
					}
					off += e.Len()
				}
				device.Close()
				if s, err := Read(l.path); err != nil || s.Volumes[0].Device != v.Device || s.Volumes[0].Attachment != DeviceMapper {
					t.Errorf("Read: %+v, %v", s.Volumes, err)
				}
				user, err := os.OpenFile(v.Device, os.O_RDONLY|unix.O_EXCL, 0)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := d.Wipe(withoutLogs(t), guidA, WipeOptions{}); !errors.Is(err, ErrInUse) {
					t.Errorf("Wipe of a volume in use: %v", err)
				}
				d.Close()
				d = l.open(t)
				v.Prezeroed = false
				if again, _ := ptr(d.Snapshot()).Volume(guidA); !reflect.DeepEqual(again, v) {
					t.Errorf("after a restart: %+v, it was %+v", again, v)
				}
				user.Close()
				d.Close()
				l.removePartitions(t)
				d, err = Open(t.Context(), l.path, Options{Attachment: DeviceMapper})
				if err != nil {
					t.Fatal(err)
				}
				defer d.Close()
				again, _ := ptr(d.Snapshot()).Volume(guidA)
				if again.Attachment != DeviceMapper || !bytes.Equal(whole(t, again), data) {
					t.Errorf("after a boot: %+v", again)
				}
				if _, err := d.Wipe(withoutLogs(t), guidA, WipeOptions{Policy: WipeOverwrite}); err != nil {
					t.Fatal(err)
				}
				for _, e := range at {
					if !l.holdsZeros(t, e) || !d.Snapshot().Free.Contains(e) {
						t.Errorf("%v is not free, or not zero", e)
					}
				}
				if left, err := filepath.Glob("/sys/block/dm-*"); err != nil || len(left) > 0 {
					t.Errorf("devices are left: %v, %v", left, err)
				}
			})
		}
	}
}

// deviceSize is the length of the volume's device.
func deviceSize(t *testing.T, v Volume) int64 {
	t.Helper()
	device, err := openDevice(v.Device, os.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	size, _, err := device.geometry()
	if err != nil {
		t.Fatal(err)
	}
	return size
}

// writer writes blocks to a file of a mounted volume and flushes each, until stop is called.
type writer struct {
	path   string
	stop   chan struct{}
	done   chan error
	blocks int
}

func startWriter(path string) *writer {
	w := &writer{path: path, stop: make(chan struct{}), done: make(chan error, 1)}
	go func() { w.done <- w.run() }()
	return w
}

func (w *writer) block(i int) []byte { return bytes.Repeat(fmt.Appendf(nil, "%015d\n", i), 256) }

func (w *writer) run() error {
	f, err := os.Create(w.path)
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		select {
		case <-w.stop:
			return nil
		default:
		}
		// It stays within 4 MiB, so that the file system does not fill up.
		if _, err := f.WriteAt(w.block(w.blocks), int64(w.blocks%1024)*4096); err != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			return err
		}
		w.blocks++
	}
}

// finish ends the writer, and asserts that all blocks that it has flushed are there.
func (w *writer) finish(t *testing.T) {
	t.Helper()
	close(w.stop)
	if err := <-w.done; err != nil {
		t.Fatalf("the writer failed: %v", err)
	}
	got, err := os.ReadFile(w.path)
	if err != nil {
		t.Fatal(err)
	}
	for i := max(0, w.blocks-1024); i < w.blocks; i++ {
		if at := i % 1024 * 4096; !bytes.Equal(got[at:at+4096], w.block(i)) {
			t.Fatalf("block %d of %d is not what was written", i, w.blocks)
		}
	}
	if w.blocks == 0 {
		t.Error("nothing was written")
	}
}

// TestPiecesGrowOnline grows a mounted ext4 and a mounted xfs by pieces and in place while a writer runs, with a
// restart of the agent in between. It asserts that the device is longer at once, that the file system grows online,
// that no write fails, and that the mount and the device stay.
func TestPiecesGrowOnline(t *testing.T) {
	// The smallest that mkfs.xfs makes. What is written lies in the machine's memory.
	for fs, first := range map[string]int64{"ext4": 40, "xfs": 300} {
		t.Run(fs, func(t *testing.T) {
			l := initialized(t, 1024*units.MiB, 512)
			ctx := withoutLogs(t)
			d := l.open(t)
			v, err := d.Create(ctx, CreateOptions{Partition: guidA, Extent: extentMiB(500, first), Attachment: DeviceMapper})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := d.Create(ctx, CreateOptions{Partition: guidB, Extent: extentMiB(500+first, 2)}); err != nil {
				t.Fatal(err)
			}
			testenv.Run(t, "mkfs."+fs, v.Device)
			if err := d.MarkFormatted(ctx, guidA); err != nil {
				t.Fatal(err)
			}
			mnt := mountVolume(t, v, fs)
			w := startWriter(filepath.Join(mnt, "log"))
			if _, err := d.Grow(ctx, guidA, (first+10)*units.MiB); !errors.Is(err, ErrOverlap) {
				t.Errorf("growth beside a neighbour: %v", err)
			}
			for number, at := range []extent.Extent{extentMiB(2, 20), extentMiB(100, 30)} {
				grown, err := d.AddPiece(ctx, guidA, number+1, at)
				if err != nil {
					t.Fatal(err)
				}
				if grown, err = d.Grow(ctx, guidA, grown.Length()+10*units.MiB); err != nil {
					t.Fatal(err)
				}
				if size := deviceSize(t, grown); grown.Device != v.Device || size != grown.Length() {
					t.Errorf("%+v has %d bytes", grown, size)
				}
				if fs == "xfs" {
					testenv.Run(t, "xfs_growfs", "-d", mnt)
				} else {
					testenv.Run(t, "resize2fs", v.Device)
				}
				var st unix.Statfs_t
				if err := unix.Statfs(mnt, &st); err != nil {
					t.Fatal(err)
				}
				if size := int64(st.Blocks) * int64(st.Bsize); size < grown.Length()*7/10 {
					t.Errorf("the file system has %d MiB of %d", size/units.MiB, grown.Length()/units.MiB)
				}
				again, err := d.AddPiece(ctx, guidA, number+1, at)
				if err != nil || !reflect.DeepEqual(again, grown) {
					t.Errorf("the same piece again: %+v, %v", again, err)
				}
				// The new agent finds the device that is mounted.
				d.Close()
				d = l.open(t)
				if now, _ := ptr(d.Snapshot()).Volume(guidA); !reflect.DeepEqual(now, grown) {
					t.Errorf("after a restart: %+v, it was %+v", now, grown)
				}
			}
			w.finish(t)
			// The kernel's holders of the partitions lead to the linear device, and its to the mount.
			found, _, err := holders.OfDevice(t.Context(), v.Device)
			if err != nil || !slices.ContainsFunc(found, func(h holders.Holder) bool { return h.Kind == holders.Mount && h.Name == mnt }) {
				t.Errorf("the device is held by %v, %v", found, err)
			}
			// More than fits into the first piece of the ext4.
			fill := bytes.Repeat([]byte("full"), 10<<20/4)
			for i := range 7 {
				if err := os.WriteFile(filepath.Join(mnt, fmt.Sprint("fill", i)), fill, 0o600); err != nil {
					t.Fatalf("the space of the new pieces: %v", err)
				}
			}
			if err := unix.Unmount(mnt, 0); err != nil {
				t.Fatal(err)
			}
			d.Close()
			l.removePartitions(t)
			d = l.open(t)
			now, _ := ptr(d.Snapshot()).Volume(guidA)
			mnt = mountVolume(t, now, fs)
			for i := range 7 {
				got, err := os.ReadFile(filepath.Join(mnt, fmt.Sprint("fill", i)))
				if err != nil || sha256.Sum256(got) != sha256.Sum256(fill) {
					t.Errorf("after a boot the data is not what it was: %v", err)
				}
			}
			if err := unix.Unmount(mnt, 0); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestPiecesOfPartition asserts that a volume that is attached as a partition gets no piece while it is mounted, and
// that nothing is changed then. Unused it gets the piece and a linear device. A volume of one piece goes from one way
// to the other and back while it is not in use, and stays while it is.
func TestPiecesOfPartition(t *testing.T) {
	l := initialized(t, 128*units.MiB, 512)
	ctx := withoutLogs(t)
	d := l.open(t)
	v, err := d.Create(ctx, CreateOptions{Partition: guidA, Extent: extentMiB(20, 20)})
	if err != nil {
		t.Fatal(err)
	}
	testenv.Run(t, "mkfs.ext4", "-q", v.Device)
	if err := d.MarkFormatted(ctx, guidA); err != nil {
		t.Fatal(err)
	}
	v, _ = ptr(d.Snapshot()).Volume(guidA)
	mnt := mountVolume(t, v, "ext4")
	if err := os.WriteFile(filepath.Join(mnt, "file"), []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	d.waitIdle(t)
	table := l.tables(t)
	if _, err := d.AddPiece(ctx, guidA, 1, extentMiB(60, 10)); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "attached as a partition") {
		t.Errorf("a piece for a mounted partition: %v", err)
	}
	if now, err := d.Attach(ctx, guidA, DeviceMapper); err != nil || !reflect.DeepEqual(now, v) || !bytes.Equal(l.tables(t), table) {
		t.Errorf("while it is mounted: %+v, %v", now, err)
	}
	unmountVolume := func() {
		t.Helper()
		if err := unix.Unmount(mnt, 0); err != nil {
			t.Fatal(err)
		}
	}
	unmountVolume()
	for range 2 {
		for _, way := range []Attachment{DeviceMapper, Partition} {
			now, err := d.Attach(ctx, guidA, way)
			if err != nil || now.Attachment != way || strings.HasPrefix(now.Device, "/dev/dm-") != (way == DeviceMapper) {
				t.Fatalf("attached as %s: %+v, %v", way, now, err)
			}
			mnt = mountVolume(t, now, "ext4")
			if got, err := os.ReadFile(filepath.Join(mnt, "file")); err != nil || string(got) != "kept" {
				t.Errorf("attached as %s: %q, %v", way, got, err)
			}
			other := map[Attachment]Attachment{DeviceMapper: Partition, Partition: DeviceMapper}[way]
			if stays, err := d.Attach(ctx, guidA, other); err != nil || stays.Device != now.Device {
				t.Errorf("mounted as %s: %+v, %v", way, stays, err)
			}
			// A restart does not change it, whatever is wanted.
			d.Close()
			if d, err = Open(t.Context(), l.path, Options{Attachment: other}); err != nil {
				t.Fatal(err)
			}
			if stays, _ := ptr(d.Snapshot()).Volume(guidA); stays.Device != now.Device || stays.Attachment != way {
				t.Errorf("after a restart, mounted as %s: %+v", way, stays)
			}
			unmountVolume()
		}
	}
	grown, err := d.AddPiece(ctx, guidA, 1, extentMiB(60, 10))
	if err != nil || grown.Attachment != DeviceMapper || grown.Length() != 30*units.MiB {
		t.Fatalf("a piece for an unused partition: %+v, %v", grown, err)
	}
	if one, err := d.Attach(ctx, guidA, Partition); err != nil || one.Attachment != DeviceMapper {
		t.Errorf("a volume of two pieces as a partition: %+v, %v", one, err)
	}
	mnt = mountVolume(t, grown, "ext4")
	testenv.Run(t, "resize2fs", grown.Device)
	if got, err := os.ReadFile(filepath.Join(mnt, "file")); err != nil || string(got) != "kept" {
		t.Errorf("%q, %v", got, err)
	}
	unmountVolume()
	d.Close()
}

// TestPiecesLeftovers opens disks whose devices are not what the table has. A device that shows a beginning of its
// volume gets the rest, although it is in use. Any other is removed. If it is in use the disk is out of service, and
// nothing is changed.
func TestPiecesLeftovers(t *testing.T) {
	at := scattered(3)
	for _, test := range []struct {
		name    string
		change  func(t *testing.T, d *Disk)
		inUse   bool
		refused string
		length  int64
	}{
		{"a piece was added", func(t *testing.T, d *Disk) {
			t.Helper()
			d.changeTable(t, func(now table) (table, []entry, error) { return now.withPiece(guidA, 3, extentMiB(60, 4)) })
		}, true, "", 10 * units.MiB},
		{"the last piece grew", func(t *testing.T, d *Disk) {
			t.Helper()
			d.changeTable(t, func(now table) (table, []entry, error) {
				now, e, err := now.withLength(guidA, 7*units.MiB)
				return now, []entry{e}, err
			})
		}, true, "", 7 * units.MiB},
		{"a piece is gone", dropSecondPiece, false, "", 0},
		{"a piece is gone from a volume in use", dropSecondPiece, true, "the table does not have it like that", 0},
		{"the volume is being wiped", func(t *testing.T, d *Disk) {
			t.Helper()
			d.changeTable(t, func(now table) (table, []entry, error) {
				now, e, err := now.withPhase(guidA, Wiping)
				return now, []entry{e}, err
			})
		}, false, "", 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := initialized(t, 128*units.MiB, 512)
			d := l.open(t)
			v := newInPieces(t, d, at)
			if test.inUse {
				user, err := os.OpenFile(v.Device, os.O_RDONLY|unix.O_EXCL, 0)
				if err != nil {
					t.Fatal(err)
				}
				defer user.Close()
			}
			test.change(t, d)
			d.Close()
			d, err := Open(withoutLogs(t), l.path, Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			s := d.Snapshot()
			if (s.Err != nil) != (test.refused != "") || s.Err != nil && !strings.Contains(s.Err.Error(), test.refused) {
				t.Fatalf("the disk: %v", s.Err)
			}
			now, _ := s.Volume(guidA)
			if test.length > 0 && (now.Device != v.Device || int64(len(whole(t, now))) != test.length) {
				t.Errorf("%+v", now)
			}
			if test.length == 0 && test.refused == "" && now.Device != "" {
				t.Errorf("it has a device: %+v", now)
			}
			if _, err := os.Stat(v.Device); test.length == 0 && test.refused == "" && err == nil {
				t.Errorf("%s is left", v.Device)
			}
		})
	}
}

// changeTable writes a table, as an agent did that ended before the kernel had it.
func (d *Disk) changeTable(t *testing.T, plan func(table) (table, []entry, error)) {
	t.Helper()
	err := d.runInWorker(t.Context(), func(ctx context.Context) error {
		next, changed, err := plan(d.store.table)
		if err != nil {
			return err
		}
		return d.store.put(ctx, next, changed...)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func dropSecondPiece(t *testing.T, d *Disk) {
	t.Helper()
	err := d.runInWorker(t.Context(), func(ctx context.Context) error {
		s, err := d.store.table.set(guidA)
		if err != nil {
			return err
		}
		next, gone := d.store.table, s.pieces[0].index
		next.entries = slices.DeleteFunc(slices.Clone(next.entries), func(e entry) bool { return e.index == gone })
		return d.store.drop(ctx, next, gone)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestPiecesDetach asserts that a volume of which a process has one piece's device open is in use, and is attached
// again, and that its wipe does not begin.
func TestPiecesDetach(t *testing.T) {
	l := initialized(t, 128*units.MiB, 512)
	d := l.open(t)
	at := scattered(3)
	v := newInPieces(t, d, at)
	data := numbered(v.Length())
	if err := writeDevice(v.Device, data, 0); err != nil {
		t.Fatal(err)
	}
	for index, p := range l.partitions(t) {
		if index == MetaEntry {
			continue
		}
		user, err := os.Open("/dev/" + p.name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.Wipe(withoutLogs(t), guidA, WipeOptions{}); !errors.Is(err, ErrInUse) {
			t.Errorf("the wipe of a volume with %s open: %v", p.name, err)
		}
		user.Close()
		now, _ := ptr(d.Snapshot()).Volume(guidA)
		if now.Phase != Formatted || now.Attachment != DeviceMapper || !bytes.Equal(whole(t, now), data) {
			t.Fatalf("after a refused wipe: %+v", now)
		}
	}
	if _, err := d.Wipe(withoutLogs(t), guidA, WipeOptions{}); err != nil {
		t.Error(err)
	}
}

// TestPiecesWithoutNumbers asserts that pieces without a partition number are loop devices below the linear device.
func TestPiecesWithoutNumbers(t *testing.T) {
	l, n := diskWithManyVolumes(t, 512)
	// While a partition is in use the disk is not mapped as a whole.
	release := l.usePartition(t, unix.O_RDONLY)
	defer release()
	d := l.open(t)
	free := int64(2 + n + 40)
	at := []extent.Extent{extentMiB(free, 4), extentMiB(free+10, 4), extentMiB(free+20, 4)}
	v, err := d.Create(withoutLogs(t), CreateOptions{Partition: guidC, Extent: at[0], Pieces: at[1:], Raw: true})
	if err != nil {
		t.Fatal(err)
	}
	data := numbered(v.Length())
	if err := writeDevice(v.Device, data, 0); err != nil {
		t.Fatal(err)
	}
	if v.Index <= MetaEntry || v.Attachment != DeviceMapper {
		t.Errorf("%+v", v)
	}
	d.Close()
	d = l.open(t)
	if v, err = d.Grow(withoutLogs(t), guidC, 16*units.MiB); err != nil {
		t.Fatal(err)
	}
	if got := whole(t, v); !bytes.Equal(got[:len(data)], data) || len(got) != int(16*units.MiB) {
		t.Errorf("%d bytes, or others than were written", len(got))
	}
	if _, err := d.Wipe(withoutLogs(t), guidC, WipeOptions{}); err != nil {
		t.Error(err)
	}
}

// TestPiecesOfMappedDisk asserts that a disk that is mapped as a whole shows volumes of several pieces by one device,
// and that such a volume grows by a piece while it is in use.
func TestPiecesOfMappedDisk(t *testing.T) {
	below := newLoopDisk(t, 64*units.MiB, 512)
	l := mappedDisk(t, below, "pieces")
	if _, err := Initialize(t.Context(), l.path, Owner{}); err != nil {
		t.Fatal(err)
	}
	d := l.open(t)
	at := scattered(4)
	v := newInPieces(t, d, at)
	data := numbered(v.Length())
	if err := writeDevice(v.Device, data, 0); err != nil {
		t.Fatal(err)
	}
	user, err := os.OpenFile(v.Device, os.O_RDONLY|unix.O_EXCL, 0)
	if err != nil {
		t.Fatal(err)
	}
	below.writeAt(t, numbered(5*units.MiB), 40*units.MiB)
	grown, err := d.AddPiece(withoutLogs(t), guidA, 4, extentMiB(40, 5))
	if err != nil || grown.Device != v.Device {
		t.Fatalf("%+v, %v", grown, err)
	}
	d.Close()
	d = l.open(t)
	now, _ := ptr(d.Snapshot()).Volume(guidA)
	if got := whole(t, now); len(got) != int(13*units.MiB) || !bytes.Equal(got[:len(data)], data) || !allZero(got[len(data):]) {
		t.Errorf("after a restart: %+v", now)
	}
	user.Close()
	if _, err := d.Wipe(withoutLogs(t), guidA, WipeOptions{}); err != nil {
		t.Error(err)
	}
	d.Close()
	l.removePartitions(t)
}

// TestPiecesLeftoversOfLoading asserts that a volume is attached although an agent ended when it had loaded the table of
// its linear device, and had not made that active.
func TestPiecesLeftoversOfLoading(t *testing.T) {
	for name, hasActive := range map[string]bool{"a new device": false, "a device that was growing": true} {
		t.Run(name, func(t *testing.T) {
			l := initialized(t, 128*units.MiB, 512)
			d := l.open(t)
			newInPieces(t, d, scattered(3))
			shows := d.linear.found[guidA].shows
			d.Close()
			m, err := openMapper()
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			uuid := linearUUIDPrefix + guidA
			if !hasActive {
				if err := errors.Join(m.remove(uuid), m.create(uuid, dmNamePrefix+guidA)); err != nil {
					t.Fatal(err)
				}
			}
			if err := m.load(uuid, shows); err != nil {
				t.Fatal(err)
			}
			v, _ := ptr(l.open(t).Snapshot()).Volume(guidA)
			if v.Device == "" || v.NotAttached != "" || len(v.Pieces) != 2 {
				t.Errorf("%+v", v)
			}
			if now, err := m.status(uuid); err != nil || now.loaded || !now.active {
				t.Errorf("the device is %+v: %v", now, err)
			}
		})
	}
}
