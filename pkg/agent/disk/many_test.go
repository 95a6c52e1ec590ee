package disk

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/berthdev/berth/pkg/agent/mounts"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// TestThousandVolumes fills a disk of 1 TiB with volumes of 1 GiB, and then its table. It asserts that volumes without
// a partition number in the kernel work like all others.
func TestThousandVolumes(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.NeedProgram(t, "mkfs.ext4", "mkfs.xfs")
	testenv.RemoveNewLoops(t)
	l := initialized(t, 1024*units.GiB, 512)
	d := l.open(t)
	ctx := t.Context()
	var guids []string
	create := func(start, length int64) error {
		guid := uuid.NewString()
		v, err := d.Create(ctx, CreateOptions{Partition: guid, Extent: extentMiB(start, length), Ephemeral: len(guids)%2 == 0})
		if err == nil && v.Index != len(guids)+1 && v.Index != len(guids)+2 {
			t.Errorf("volume %d is in entry %d", len(guids), v.Index)
		}
		if err == nil {
			guids = append(guids, guid)
		}
		return err
	}
	for i := range int64(1000) {
		if err := create(2+1024*i, 1024); err != nil {
			t.Fatal(err)
		}
	}
	for i := range int64(MaxVolumes - 1000) {
		if err := create(2+1024*1000+i, 1); err != nil {
			t.Fatal(err)
		}
	}
	if err := create(2+1024*1010, 1); !errors.Is(err, ErrNoEntry) {
		t.Errorf("one too many: %v", err)
	}
	d.waitIdle(t)
	verifyTable(t, l.path)

	sample := map[int]string{0: "ext4", 253: "xfs", 254: "ext4", 255: "xfs", 600: "ext4", 999: "xfs"}
	mountPoints := map[int]string{}
	for i, fsType := range sample {
		v, _ := ptr(d.Snapshot()).Volume(guids[i])
		testenv.Run(t, "mkfs."+fsType, "-q", v.Device)
		if err := d.MarkFormatted(ctx, v.Partition); err != nil {
			t.Fatal(err)
		}
		mountPoints[i] = mountVolume(t, v, fsType)
		if err := os.WriteFile(filepath.Join(mountPoints[i], "canary"), bytes.Repeat([]byte(v.Partition), 1000), 0o600); err != nil {
			t.Fatal(err)
		}
	}

	// Once with everything in use, once as after a reboot.
	before := d.Snapshot()
	for reboot := range 2 {
		d.Close()
		if reboot == 1 {
			for i := range sample {
				if err := unix.Unmount(mountPoints[i], 0); err != nil {
					t.Fatal(err)
				}
			}
			l.removePartitions(t)
		}
		d = l.open(t)
		s := d.Snapshot()
		same := func(x, y Volume) bool {
			if reboot == 1 {
				x.Device, y.Device = "", ""
			}
			return reflect.DeepEqual(x, y)
		}
		if !slices.EqualFunc(s.Volumes, before.Volumes, same) {
			t.Fatal("the volumes are not those from before the restart")
		}
		for i, fsType := range sample {
			v, _ := s.Volume(guids[i])
			if reboot == 1 {
				mountPoints[i] = mountVolume(t, v, fsType)
			}
			if targets, err := mounts.OfDevice(v.Device); err != nil || len(targets) != 1 {
				t.Errorf("volume %d: %s is mounted at %v, %v", i, v.Device, targets, err)
			}
			got, err := os.ReadFile(filepath.Join(mountPoints[i], "canary"))
			if err != nil || !bytes.Equal(got, bytes.Repeat([]byte(v.Partition), 1000)) {
				t.Errorf("volume %d lost its data: %v", i, err)
			}
			if err := wipeVolume(ctx, d, v.Partition); !errors.Is(err, ErrInUse) {
				t.Errorf("Wipe of the mounted volume %d: %v", i, err)
			}
		}
	}
	for i := range sample {
		if err := unix.Unmount(mountPoints[i], 0); err != nil {
			t.Fatal(err)
		}
		v, _ := ptr(d.Snapshot()).Volume(guids[i])
		if err := wipeVolume(ctx, d, v.Partition); err != nil {
			t.Fatal(err)
		}
		// Another process may have a new loop device of that number by now.
		loops, err := d.device.findLoops()
		if err != nil {
			t.Fatal(err)
		}
		if device, ok := loops.found[v.Partition]; ok {
			t.Errorf("%s is still there: %+v", v.Device, device)
		}
		again, err := d.Create(ctx, CreateOptions{Partition: uuid.NewString(), Extent: v.Extent})
		if err != nil || !again.Prezeroed || again.Index != v.Index {
			t.Errorf("Create where volume %d was: %+v, %v", i, again, err)
		}
	}
	d.waitIdle(t)
	verifyTable(t, l.path)
}

// newVolumeAboveMeta makes a volume in the first entry that the kernel has no number for.
func newVolumeAboveMeta(t *testing.T, l *loopDisk) (*Disk, Volume) {
	t.Helper()
	// Foreign entries are as small as a sector each.
	device, err := openDevice(l.path, os.O_RDWR)
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	if err := device.readLayout(); err != nil {
		t.Fatal(err)
	}
	f, err := examine(device, device.layout)
	if err != nil {
		t.Fatal(err)
	}
	c := f.current
	last := device.managed().End / device.sector
	for i := range int64(MetaEntry - 1) {
		if c, err = c.withEntry(device.layout, foreignEntry(device.layout, int(i)+1, last-2-i, last-1-i)); err != nil {
			t.Fatal(err)
		}
	}
	both := renderCopies(device.layout, c)
	for _, w := range []sectorWrite{both.backup, both.primary} {
		if _, err := device.WriteAt(w.data, w.off); err != nil {
			t.Fatal(err)
		}
	}
	d := l.open(t)
	v, err := d.Create(t.Context(), CreateOptions{Partition: guidA, Extent: extentMiB(2, 10)})
	if err != nil {
		t.Fatal(err)
	}
	if v.Index != MetaEntry+1 {
		t.Fatalf("the volume is in entry %d", v.Index)
	}
	return d, v
}

// TestHighVolume asserts what differs for volumes without a partition number.
func TestHighVolume(t *testing.T) {
	bothSectors(t, func(t *testing.T, sector int) {
		l := initialized(t, 64*units.MiB, sector)
		fillWithData(t, l, extentMiB(2, 20))
		d, v := newVolumeAboveMeta(t, l)
		ctx := withoutLogs(t)
		if found, err := Inspect(ctx, v.Device); err != nil || found.State != Foreign {
			t.Errorf("Inspect of a volume's loop device: %+v, %v", found, err)
		}
		if s, err := Read(l.path); err != nil || len(s.Volumes) != 1 || s.Volumes[0].Device != v.Device {
			t.Errorf("Read: %+v, %v", s, err)
		}
		testenv.Run(t, "mkfs.ext4", "-q", "-F", v.Device)
		mnt := mountVolume(t, v, "ext4")
		grown, err := d.Grow(ctx, guidA, 14*units.MiB)
		if err != nil || grown.Device != v.Device || grown.Extent != extentMiB(2, 14) {
			t.Fatalf("Grow: %+v, %v", grown, err)
		}
		if err := unix.Unmount(mnt, 0); err != nil {
			t.Fatal(err)
		}
		if b := readContent(t, grown); !allZero(b[10*units.MiB:]) || allZero(b[:units.MiB]) {
			t.Error("a grown volume has not its own bytes and zeros")
		}

		// It grows, and the agent ends before the kernel knows.
		d.growTable(t, guidA, 15*units.MiB)
		d.Close()
		d = l.open(t)
		if v, _ = ptr(d.Snapshot()).Volume(guidA); v.Device != grown.Device || len(readContent(t, v)) != int(15*units.MiB) {
			t.Errorf("after a restart: %+v", v)
		}

		// A program has it open and keeps it open: nothing is changed.
		looker, err := os.Open(v.Device)
		if err != nil {
			t.Fatal(err)
		}
		if err := wipeVolume(ctx, d, guidA); !errors.Is(err, ErrInUse) {
			t.Errorf("Wipe of a volume that is looked at: %v", err)
		}
		looker.Close()
		if got := volumes(d.Snapshot()); !slices.Equal(got, []string{"a:Reserved@2+15"}) || len(readContent(t, v)) != int(15*units.MiB) {
			t.Errorf("then: %v", got)
		}
		if err := wipeVolume(ctx, d, guidA); err != nil {
			t.Error(err)
		}
		if raw, err := os.ReadFile(l.image); err != nil || !allZero(raw[2*units.MiB:17*units.MiB]) || allZero(raw[17*units.MiB:22*units.MiB]) {
			t.Errorf("wiped is something else than the volume: %v", err)
		}
	})
}

// TestStrayLoop asserts that a disk is shown but not changed if a loop device with our prefix does not match the table.
// The device may be in use.
func TestStrayLoop(t *testing.T) {
	l := initialized(t, 64*units.MiB, 512)
	d, v := newVolumeAboveMeta(t, l)
	d.Close()
	l.removePartitions(t)
	device, err := openDevice(l.path, os.O_RDWR)
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	if err := device.readLayout(); err != nil {
		t.Fatal(err)
	}
	for name, e := range map[string]entry{
		"not in the table": {guid: guidB, extent: extentMiB(30, 4)},
		"at another place": {guid: guidA, extent: extentMiB(3, 10)},
		"longer":           {guid: guidA, extent: extentMiB(2, 11)},
	} {
		stray := &loopAttacher{disk: device, found: map[string]loopDevice{}}
		if _, err := stray.attach(t.Context(), e); err != nil {
			t.Fatal(err)
		}
		d, err := Open(withoutLogs(t), l.path, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if s := d.Snapshot(); !errors.Is(s.Err, ErrOutOfService) || len(s.Volumes) != 1 {
			t.Errorf("%s: %+v", name, s)
		}
		d.Close()
		if err := stray.detach(t.Context(), e, busyTimeout); err != nil {
			t.Error(err)
		}
	}
	if got, _ := ptr(l.open(t).Snapshot()).Volume(guidA); got.Extent != v.Extent || got.Device == "" {
		t.Errorf("in the end: %+v", got)
	}
}
