//go:build vm

package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"

	"github.com/berthdev/berth/pkg/agent/holders"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// These tests need a kernel with the device mapper. test/vm runs them in a virtual machine that has it.

// kernelMapper opens the device mapper, for requests that this package does not make.
func kernelMapper(t *testing.T, l *loopDisk) (*mapper, uint64) {
	t.Helper()
	m, err := openMapper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	var st unix.Stat_t
	if err := unix.Stat(l.path, &st); err != nil {
		t.Fatal(err)
	}
	return m, st.Rdev
}

// mappedDisk makes a device of the device mapper over the whole disk of 64 MiB, named like an opened LUKS device.
func mappedDisk(t *testing.T, below *loopDisk, name string) *loopDisk {
	t.Helper()
	m, rdev := kernelMapper(t, below)
	uuid := "CRYPT-LUKS2-0-" + name
	if err := m.create(uuid, name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.remove(uuid); err != nil {
			t.Error(err)
		}
	})
	if err := m.loadTable(uuid, []linear{{rdev, extentMiB(0, 64)}}); err != nil {
		t.Fatal(err)
	}
	status, err := m.status(uuid)
	if err != nil {
		t.Fatal(err)
	}
	above := &loopDisk{path: dmNode(status.rdev), image: below.image, wipeMethods: defaultWipeMethods()}
	t.Cleanup(func() { above.removePartitions(t) })
	return above
}

// TestMapperClaimsTheDisk asserts why a disk is attached by partitions or by the device mapper, never by both. The
// kernel refuses to claim a disk of which a partition is claimed, and a partition of a claimed disk.
func TestMapperClaimsTheDisk(t *testing.T) {
	l := initialized(t, 64*units.MiB, 512)
	d := l.open(t)
	m, rdev := kernelMapper(t, l)
	uuid := dmUUIDPrefix + guidA
	if err := m.create(uuid, dmNamePrefix+guidA); err != nil {
		t.Fatal(err)
	}
	defer m.remove(uuid)
	if err := m.loadTable(uuid, []linear{{rdev, extentMiB(2, 10)}}); !errors.Is(err, unix.EBUSY) {
		t.Errorf("a linear device beside the held meta partition: %v", err)
	}
	meta := d.meta.Name()
	d.Close()
	if err := m.loadTable(uuid, []linear{{rdev, extentMiB(2, 10)}}); err != nil {
		t.Fatal(err)
	}
	if f, err := os.OpenFile(meta, os.O_RDONLY|unix.O_EXCL, 0); !errors.Is(err, unix.EBUSY) {
		t.Errorf("a claim of a partition beside a linear device: %v, %v", f, err)
	}
}

// diskWithManyVolumes makes a disk with volumes that the kernel has no partition numbers for, and returns how many
// volumes there are. The last one is volume a, the one before b.
func diskWithManyVolumes(t *testing.T, sector int) (*loopDisk, int) {
	t.Helper()
	l := initialized(t, 512*units.MiB, sector)
	d := l.open(t)
	n := int64(MetaEntry + 20)
	for i := range n {
		guid := fmt.Sprintf("d0000000-0000-5000-8000-%012d", i)
		length := int64(1)
		switch i {
		case n - 2:
			guid = guidB
		case n - 1:
			guid, length = guidA, 20
		}
		if _, err := d.Create(withoutLogs(t), CreateOptions{Partition: guid, Extent: extentMiB(2+i, length)}); err != nil {
			t.Fatal(err)
		}
	}
	if v, _ := ptr(d.Snapshot()).Volume(guidA); v.Index <= MetaEntry || !strings.HasPrefix(v.Device, "/dev/loop") {
		t.Errorf("the last volume: %+v", v)
	}
	d.Close()
	return l, int(n)
}

// mappedCount is how many volumes of the disk are mapped. It must be all or none.
func mappedCount(t *testing.T, d *Disk) int {
	t.Helper()
	n := 0
	for _, v := range d.Snapshot().Volumes {
		if strings.HasPrefix(v.Device, "/dev/dm-") {
			n++
		}
	}
	if all := len(d.Snapshot().Volumes); n != 0 && n != all {
		t.Errorf("%d of %d volumes are mapped", n, all)
	}
	return n
}

// TestMapped asserts that volumes below and above entry 255 live their whole life through the device mapper.
func TestMapped(t *testing.T) {
	bothSectors(t, func(t *testing.T, sector int) {
		l, n := diskWithManyVolumes(t, sector)
		ctx := withoutLogs(t)
		// In use: the disk stays as it is.
		if d := l.open(t); mappedCount(t, d) != 0 {
			t.Error("a disk with loop devices was taken over")
		} else {
			d.Close()
		}
		l.removePartitions(t)
		d := l.open(t)
		if got := mappedCount(t, d); got != n {
			t.Fatalf("after a boot %d of %d volumes are mapped", got, n)
		}
		t.Logf("%d volumes through the device mapper, %d of them above entry %d", n, n-MetaEntry+1, MetaEntry)
		if attached := l.partitions(t); len(attached) != 0 {
			t.Errorf("beside the mapped volumes there are %d partitions", len(attached))
		}
		if _, err := Open(ctx, l.path, Options{}); !errors.Is(err, ErrInUse) {
			t.Errorf("a second agent: %v", err)
		}
		if err := tryProgram("mkfs.ext4", "-q", l.path); err == nil {
			t.Error("mkfs took the whole disk")
		}
		v, _ := ptr(d.Snapshot()).Volume(guidA)
		if found, err := Inspect(ctx, v.Device); err != nil || found.State != Foreign || !strings.Contains(found.Reason, guidA) {
			t.Errorf("Inspect of a mapped volume: %+v, %v", found, err)
		}
		if s, err := Read(l.path); err != nil || len(s.Volumes) != n || s.Volumes[n-1].Device != v.Device {
			t.Errorf("Read: %v", err)
		}

		testenv.Run(t, "mkfs.ext4", "-q", "-F", v.Device)
		if err := d.MarkFormatted(ctx, guidA); err != nil {
			t.Fatal(err)
		}
		mnt := mountVolume(t, v, "ext4")
		if err := os.WriteFile(filepath.Join(mnt, "canary"), []byte(guidA), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Wipe(ctx, guidA, WipeOptions{}); !errors.Is(err, ErrInUse) {
			t.Errorf("Wipe of a mounted volume: %v", err)
		}
		// It grows while it is mounted. Then it grows again, and the agent ends before the kernel knows.
		grown, err := d.Grow(ctx, guidA, 30*units.MiB)
		if err != nil || grown.Device != v.Device || len(readContent(t, grown)) != int(30*units.MiB) {
			t.Errorf("Grow: %+v, %v", grown, err)
		}
		d.growTable(t, guidA, 31*units.MiB)
		before := d.Snapshot()
		d.Close()

		// A restart of the agent with the volume mounted finds every device again.
		d = l.open(t)
		same := func(x, y Volume) bool {
			if x.Partition == guidA {
				x.Extent = y.Extent
			}
			return reflect.DeepEqual(x, y)
		}
		if !slices.EqualFunc(d.Snapshot().Volumes, before.Volumes, same) {
			t.Error("the volumes are not those from before the restart")
		}
		if v, _ = ptr(d.Snapshot()).Volume(guidA); len(readContent(t, v)) != int(31*units.MiB) {
			t.Errorf("after a restart: %+v", v)
		}
		if got, err := os.ReadFile(filepath.Join(mnt, "canary")); err != nil || string(got) != guidA {
			t.Errorf("the canary: %q, %v", got, err)
		}
		if err := unix.Unmount(mnt, 0); err != nil {
			t.Fatal(err)
		}
		testenv.Run(t, "e2fsck", "-fn", v.Device)

		// A program has it open and keeps it open: nothing is changed.
		looker, err := os.Open(v.Device)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.Wipe(ctx, guidA, WipeOptions{}); !errors.Is(err, ErrInUse) {
			t.Errorf("Wipe of a volume that is looked at: %v", err)
		}
		if now, _ := ptr(d.Snapshot()).Volume(guidA); now.Phase == Wiping || now.Device == "" {
			t.Errorf("then: %+v", now)
		}
		looker.Close()
		for _, partition := range []string{guidA, guidB} {
			if _, err := d.Wipe(ctx, partition, WipeOptions{}); err != nil {
				t.Errorf("Wipe: %v", err)
			}
		}
		if _, err := os.Stat("/sys/block/" + filepath.Base(v.Device)); err == nil {
			t.Errorf("%s is still there", v.Device)
		}
		if again, err := d.Create(ctx, CreateOptions{Partition: guidC, Extent: v.Extent}); err != nil || !again.Prezeroed || !allZero(readContent(t, again)) {
			t.Errorf("Create where the volume was: %+v, %v", again, err)
		}
	})
}

// TestMappedLeftovers asserts what is done about devices that an agent that ended, or another program, has left in the
// device mapper.
func TestMappedLeftovers(t *testing.T) {
	l, n := diskWithManyVolumes(t, 512)
	l.removePartitions(t)
	m, rdev := kernelMapper(t, l)
	for name, leftover := range map[string]struct {
		guid    string
		extent  []linear // none: a device without table
		refused bool     // the disk is shown, but not changed
	}{
		"made and not loaded":    {guid: guidB},
		"shorter than the table": {guid: guidA, extent: []linear{{rdev, extentMiB(int64(n)+1, 10)}}},
		"not in the table":       {guid: guidC, extent: []linear{{rdev, extentMiB(400, 10)}}, refused: true},
		"at another place":       {guid: guidB, extent: []linear{{rdev, extentMiB(400, 1)}}, refused: true},
		"longer":                 {guid: guidB, extent: []linear{{rdev, extentMiB(int64(n), 2)}}, refused: true},
	} {
		uuid := dmUUIDPrefix + leftover.guid
		if err := m.create(uuid, dmNamePrefix+leftover.guid); err != nil {
			t.Fatal(err)
		}
		if len(leftover.extent) > 0 {
			if err := m.loadTable(uuid, leftover.extent); err != nil {
				t.Fatal(err)
			}
		}
		d, err := Open(withoutLogs(t), l.path, Options{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		s := d.Snapshot()
		if leftover.refused != errors.Is(s.Err, ErrOutOfService) || len(s.Volumes) != n {
			t.Errorf("%s: %d volumes, %v", name, len(s.Volumes), s.Err)
		}
		if !leftover.refused && mappedCount(t, d) != n {
			t.Errorf("%s: not all volumes are mapped", name)
		}
		d.Close()
		l.removePartitions(t)
		if err := m.remove(uuid); err != nil {
			t.Error(err)
		}
	}
}

// usePartition opens a partition of the disk with the flags.
func (l *loopDisk) usePartition(t *testing.T, flags int) (release func()) {
	t.Helper()
	device, err := openDevice(l.path, os.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	node, err := device.attach(t.Context(), 1, extentMiB(2, 1))
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(node, flags, 0)
	if err != nil {
		t.Fatal(err)
	}
	return func() { f.Close() }
}

// TestMappedNever asserts that a disk keeps its partitions if mapping would take it from a user.
func TestMappedNever(t *testing.T) {
	l, n := diskWithManyVolumes(t, 512)
	l.removePartitions(t)
	for name, flags := range map[string]int{
		"a process claims a partition":   os.O_RDONLY | unix.O_EXCL,
		"a process looks at a partition": os.O_RDONLY,
	} {
		release := l.usePartition(t, flags)
		d := l.open(t)
		if got := mappedCount(t, d); got != 0 || len(d.Snapshot().Volumes) != n {
			t.Errorf("%s: %d volumes are mapped", name, got)
		}
		d.Close()
		release()
		l.removePartitions(t)
	}
	// A disk without more volumes than numbers does not benefit from it.
	small := initialized(t, 64*units.MiB, 512)
	d := small.open(t)
	if _, err := d.Create(withoutLogs(t), CreateOptions{Partition: guidA, Extent: extentMiB(2, 4)}); err != nil {
		t.Fatal(err)
	}
	d.Close()
	small.removePartitions(t)
	if got := mappedCount(t, small.open(t)); got != 0 {
		t.Error("a disk with one volume is mapped")
	}
}

// checkClaimed asserts that a device is busy for a reason, and Initialize refuses it.
func checkClaimed(t *testing.T, l *loopDisk, reason string) {
	t.Helper()
	if found, err := Inspect(t.Context(), l.path); err != nil || found.State != Busy || !strings.Contains(found.Reason, reason) {
		t.Errorf("Inspect: %+v, %v", found, err)
	}
	if _, err := Initialize(t.Context(), l.path, Owner{}); err == nil {
		t.Error("Initialize succeeded")
	}
}

// TestMappedWithoutPartitions asserts that all volumes of a disk are mapped from the start if the kernel gives it no
// partitions. The disk is a device of the device mapper itself.
func TestMappedWithoutPartitions(t *testing.T) {
	bothSectors(t, func(t *testing.T, sector int) {
		l := newLoopDisk(t, 64*units.MiB, sector)
		above := mappedDisk(t, l, "test-vault")
		ctx := withoutLogs(t)
		checkClaimed(t, l, "select /dev/mapper/test-vault")
		above.checkBlank(t, Inspector{})
		if _, err := Initialize(ctx, above.path, Owner{}); err != nil {
			t.Fatal(err)
		}
		checkClaimed(t, l, "select /dev/mapper/test-vault")

		d := above.open(t)
		for guid, start := range map[string]int64{guidA: 2, guidB: 30} {
			if _, err := d.Create(ctx, CreateOptions{Partition: guid, Extent: extentMiB(start, 20)}); err != nil {
				t.Fatal(err)
			}
		}
		if got := mappedCount(t, d); got != 2 {
			t.Errorf("%d of 2 volumes are mapped", got)
		}
		if _, err := Open(ctx, above.path, Options{}); !errors.Is(err, ErrInUse) {
			t.Errorf("a second agent: %v", err)
		}
		if err := tryProgram("mkfs.ext4", "-q", above.path); err == nil {
			t.Error("mkfs took the whole disk")
		}
		v, _ := ptr(d.Snapshot()).Volume(guidA)
		testenv.Run(t, "mkfs.ext4", "-q", "-F", v.Device)
		if err := d.MarkFormatted(ctx, guidA); err != nil {
			t.Fatal(err)
		}
		mnt := mountVolume(t, v, "ext4")
		if err := os.WriteFile(filepath.Join(mnt, "canary"), []byte(guidA), 0o600); err != nil {
			t.Fatal(err)
		}
		checkNoDisk(t, Inspector{}, v.Device, guidA)
		t.Run("over a volume", func(t *testing.T) { checkNoDisk(t, Inspector{}, testenv.Loop(t, v.Device, "512"), guidA) })
		if _, err := d.Wipe(ctx, guidA, WipeOptions{}); !errors.Is(err, ErrInUse) {
			t.Errorf("Wipe of a mounted volume: %v", err)
		}
		if grown, err := d.Grow(ctx, guidA, 24*units.MiB); err != nil || grown.Device != v.Device || len(readContent(t, grown)) != int(24*units.MiB) {
			t.Errorf("Grow: %+v, %v", grown, err)
		}
		d.Close()

		// A restart of the agent while the volume is mounted, and one after a boot.
		d = above.open(t)
		if got, err := os.ReadFile(filepath.Join(mnt, "canary")); err != nil || string(got) != guidA || mappedCount(t, d) != 2 {
			t.Errorf("after a restart: %q, %v", got, err)
		}
		if err := unix.Unmount(mnt, 0); err != nil {
			t.Fatal(err)
		}
		d.Close()
		above.removePartitions(t)
		d = above.open(t)
		if v, _ = ptr(d.Snapshot()).Volume(guidA); mappedCount(t, d) != 2 || v.Extent != extentMiB(2, 24) {
			t.Errorf("after a boot: %+v", v)
		}
		testenv.Run(t, "e2fsck", "-fn", v.Device)
		for _, guid := range []string{guidA, guidB} {
			if _, err := d.Wipe(ctx, guid, WipeOptions{}); err != nil {
				t.Errorf("Wipe: %v", err)
			}
		}
		if s := d.Snapshot(); len(s.Volumes) != 0 || s.Err != nil {
			t.Errorf("at the end: %+v", s)
		}
		d.Close()
	})
}

// TestMapperHoldsVolume asserts that a volume below a device that another program has made of it, such as LVM in a pod,
// is in use: its wipe writes nothing. When that device is removed, the volume is wiped once.
func TestMapperHoldsVolume(t *testing.T) {
	t.Run("a partition", func(t *testing.T) {
		l := initialized(t, 64*units.MiB, 512)
		checkWipeBelowMap(t, l, l.open(t), "/dev/loop")
	})
	t.Run("a mapped volume", func(t *testing.T) {
		below := newLoopDisk(t, 64*units.MiB, 512)
		l := mappedDisk(t, below, "holder-test-vault")
		if _, err := Initialize(withoutLogs(t), l.path, Owner{}); err != nil {
			t.Fatal(err)
		}
		checkWipeBelowMap(t, l, l.open(t), "/dev/dm-")
	})
}

// checkWipeBelowMap makes a volume, whose device begins with prefix, and a linear device over it. It then wipes the
// volume with that device and without it.
func checkWipeBelowMap(t *testing.T, l *loopDisk, d *Disk, prefix string) {
	t.Helper()
	defer d.Close()
	v, err := d.Create(withoutLogs(t), CreateOptions{Partition: guidA, Extent: extentMiB(3, 10)})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(v.Device, prefix) {
		t.Fatalf("the volume's device is %s, want %s", v.Device, prefix)
	}
	d.waitIdle(t)
	writeCanary(t, l, v)
	canaries := countCanaries(t, l)

	m, rdev := kernelMapper(t, &loopDisk{path: v.Device})
	const uuid, name = "LVM-holder-test", "vg-holder-test"
	if err := m.create(uuid, name); err != nil {
		t.Fatal(err)
	}
	defer m.remove(uuid)
	if err := m.loadTable(uuid, []linear{{rdev, extentMiB(0, 4)}}); err != nil {
		t.Fatal(err)
	}
	found, unchecked, err := holders.OfDevice(t.Context(), v.Device)
	if err != nil || len(found) != 1 || found[0].Kind != holders.Kernel || !strings.Contains(found[0].Name, name) {
		t.Errorf("holders: %+v, %v, %v; want one, %s", found, unchecked, err, name)
	}

	log := &ktesting.BufferTL{}
	ctx := klog.NewContext(t.Context(), ktesting.NewLogger(log, ktesting.NewConfig(ktesting.Verbosity(2))))
	const says = "Volume is being wiped"
	before := l.hash(t)
	for range 2 {
		if err := wipeVolume(ctx, d, guidA); !errors.Is(err, ErrInUse) {
			t.Errorf("Wipe of a volume below %s: %v", name, err)
		}
	}
	if l.hash(t) != before || countCanaries(t, l) != canaries {
		t.Error("the disk was written to")
	}
	if now, _ := ptr(d.Snapshot()).Volume(guidA); now.Phase == Wiping || now.Device != v.Device {
		t.Errorf("then: %+v, want it unchanged: %+v", now, v)
	}
	if strings.Contains(log.String(), says) {
		t.Errorf("of a volume that is held the log says %s", log.String())
	}

	if err := m.remove(uuid); err != nil {
		t.Fatal(err)
	}
	if err := wipeVolume(ctx, d, guidA); err != nil {
		t.Fatal(err)
	}
	if n := countCanaries(t, l); n != 0 || canaries == 0 {
		t.Errorf("%d of %d canaries are left", n, canaries)
	}
	if n := strings.Count(log.String(), says); n != 1 {
		t.Errorf("the volume was wiped %d times: %s", n, log.String())
	}
	if err := wipeVolume(ctx, d, guidA); !errors.Is(err, ErrNotFound) || len(d.Snapshot().Volumes) != 0 {
		t.Errorf("after the wipe: %v, %+v", err, d.Snapshot().Volumes)
	}
}
