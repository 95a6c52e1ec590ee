package disk

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/berthdev/berth/pkg/agent/holders"
	"github.com/berthdev/berth/test/mountns"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// checkState asserts that a blank device is refused for a reason, and that no byte of it changes.
func (l *loopDisk) checkState(t *testing.T, i Inspector, state State, reason string) {
	t.Helper()
	before := l.hash(t)
	found, err := i.Inspect(t.Context(), l.path)
	if err != nil || found.State != state || !slices.ContainsFunc(found.Reasons, func(r string) bool { return strings.Contains(r, reason) }) {
		t.Errorf("Inspect: %+v, %v, want %s: %q", found, err, state, reason)
	}
	if _, err := i.Initialize(t.Context(), l.path, Owner{}); err == nil || !strings.Contains(err.Error(), reason) {
		t.Errorf("Initialize: %v, want %q", err, reason)
	}
	if l.hash(t) != before {
		t.Error("the device was written to")
	}
}

func (l *loopDisk) checkBlank(t *testing.T, i Inspector) {
	t.Helper()
	if found, err := i.Inspect(t.Context(), l.path); err != nil || found.State != Blank || len(found.Reasons) != 0 {
		t.Errorf("Inspect: %+v, %v, want a blank disk", found, err)
	}
}

// createFile makes an empty file, for a bind mount.
func createFile(t *testing.T, parts ...string) string {
	t.Helper()
	path := filepath.Join(parts...)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// bindDevice mounts a device's node on a file, until the test ends or it is unmounted.
func bindDevice(t *testing.T, device, path string) (unmount func()) {
	t.Helper()
	if err := unix.Mount(device, path, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	unmount = sync.OnceFunc(func() {
		if err := unix.Unmount(path, 0); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(unmount)
	return unmount
}

// TestRawBlockVolumeIsBusy asserts that a blank device is refused if another driver has published it as a raw block
// volume. It checks each way in which that is visible.
func TestRawBlockVolumeIsBusy(t *testing.T) {
	testenv.NeedProgram(t, "unshare")
	l := newLoopDisk(t, 64*units.MiB, 512)
	i := Inspector{KubeletDir: t.TempDir()}
	l.checkBlank(t, i)

	target := createFile(t, t.TempDir(), "published")
	unmount := bindDevice(t, l.path, target)
	l.checkState(t, i, Busy, "mounted at "+target)
	unmount()

	_, stop := testenv.StartScript(t, mountns.Command(mountns.Private, "", "sh", "-c", "mount --bind "+l.path+" "+target+" && echo ready; read x; true")...)
	l.checkState(t, i, Busy, "mounted at "+target)
	stop()

	_, stop = testenv.StartScript(t, "sh", "-c", "exec 3>>"+l.path+"; echo ready; read x; true")
	l.checkState(t, i, Busy, "(sh) has the device open for writing")
	stop()

	// A process that only reads it, such as udev or a monitor, does not count.
	_, stop = testenv.StartScript(t, "sh", "-c", "exec 3<"+l.path+"; echo ready; read x; true")
	l.checkBlank(t, i)
	stop()

	link := createFile(t, i.KubeletDir, "pods/1234/volumeDevices/kubernetes.io~csi/pvc-1")
	if err := os.Remove(link); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(l.path, link); err != nil {
		t.Fatal(err)
	}
	l.checkState(t, i, Busy, "raw block volume at "+link)
	if err := os.Remove(link); err != nil {
		t.Fatal(err)
	}
	node := createFile(t, i.KubeletDir, "plugins/kubernetes.io/csi/volumeDevices/publish/pvc-1/1234")
	if err := os.Remove(node); err != nil {
		t.Fatal(err)
	}
	testenv.Run(t, "cp", "-a", l.path, node)
	l.checkState(t, i, Busy, "raw block volume at "+node)
	if err := os.Remove(node); err != nil {
		t.Fatal(err)
	}
	l.checkBlank(t, i)
}

// TestAllReasons asserts that every reason is reported and not only the first.
func TestAllReasons(t *testing.T) {
	testenv.NeedProgram(t, "mkfs.ext4", "blockdev")
	l := newLoopDisk(t, 64*units.MiB, 512)
	testenv.Run(t, "mkfs.ext4", "-q", "-F", l.path)
	target := createFile(t, t.TempDir(), "published")
	defer bindDevice(t, l.path, target)()
	l.addPartition(t, 3, extentMiB(5, 5))
	testenv.Run(t, "blockdev", "--setro", l.path)
	defer testenv.Run(t, "blockdev", "--setrw", l.path)
	found, err := Inspect(t.Context(), l.path)
	if err != nil || found.State != Busy || found.Reason != strings.Join(found.Reasons, "; ") {
		t.Errorf("Inspect: %+v, %v", found, err)
	}
	for _, reason := range []string{"1 partitions", "mounted at " + target, "ext4", "read-only"} {
		if !strings.Contains(found.Reason, reason) {
			t.Errorf("the reasons %q lack %q", found.Reasons, reason)
		}
	}
}

// TestGivenHolders asserts that Inspect uses the given System, and that Initialize does not.
func TestGivenHolders(t *testing.T) {
	l := newLoopDisk(t, 64*units.MiB, 512)
	i := Inspector{}
	var err error
	if i.Holders, err = i.ReadHolders(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer bindDevice(t, l.path, createFile(t, t.TempDir(), "published"))()
	l.checkBlank(t, i)
	if _, err := i.Initialize(t.Context(), l.path, Owner{}); err == nil {
		t.Error("Initialize relied on what was seen before")
	}
}

// fakeSys is a device with a folder of the test in place of the one in sysfs.
func fakeSys(t *testing.T, path string, files map[string]string) *blockDevice {
	t.Helper()
	d, err := openDevice(path, os.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	d.sys = t.TempDir()
	if err := os.Mkdir(filepath.Join(d.sys, "holders"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, content := range files {
		if err := os.WriteFile(createFile(t, d.sys, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

// TestClaimedBy asserts that a device of which another block device is made is busy, even if it has a table of ours.
// The reason says what to select.
func TestClaimedBy(t *testing.T) {
	l := initialized(t, 64*units.MiB, 512)
	for _, test := range []struct {
		name   string
		files  map[string]string
		reason string
	}{
		{"multipath", map[string]string{"holders/dm-0/dm/uuid": "mpath-3600\n", "holders/dm-0/dm/name": "mpatha\n"}, "select /dev/mapper/mpatha"},
		{"LUKS", map[string]string{"holders/dm-1/dm/uuid": "CRYPT-LUKS2-1-x\n", "holders/dm-1/dm/name": "luks\n"}, "select /dev/mapper/luks"},
		{"LVM", map[string]string{"holders/dm-2/dm/uuid": "LVM-x\n", "holders/dm-2/dm/name": "vg-lv\n"}, "part of dm-2"},
		{"RAID", map[string]string{"holders/md0/md/level": "raid1\n"}, "part of md0"},
		{"a volume of ours", map[string]string{"holders/dm-3/dm/uuid": dmUUIDPrefix + guidA + "\n", "holders/dm-3/dm/name": dmNamePrefix + guidA + "\n"}, ""},
	} {
		found, err := fakeSys(t, l.path, test.files).inspect(t.Context(), Inspector{})
		want := Busy
		if test.reason == "" {
			want = Ours
		}
		if err != nil || found.State != want || !strings.Contains(found.Reason, test.reason) {
			t.Errorf("%s: %+v, %v, want %s: %q", test.name, found, err, want, test.reason)
		}
	}
}

// TestUnusableReasons asserts that a blank device that could not serve is refused before anything is written to it.
func TestUnusableReasons(t *testing.T) {
	l := newLoopDisk(t, 64*units.MiB, 512)
	check := func(name string, files map[string]string, reason string) {
		t.Helper()
		found, err := fakeSys(t, l.path, files).inspect(t.Context(), Inspector{})
		want := Foreign
		if reason == "" {
			want = Blank
		}
		if err != nil || found.State != want || !strings.Contains(found.Reason, reason) {
			t.Errorf("%s: %+v, %v, want %s: %q", name, found, err, want, reason)
		}
	}
	check("zoned", map[string]string{"queue/zoned": "host-managed\n", "ext_range": "256\n"}, "zoned")
	check("not zoned", map[string]string{"queue/zoned": "none\n", "ext_range": "256\n"}, "")
	// Without the device mapper, nothing can show a part of these devices.
	missing := ""
	if !hasMapper(t) {
		missing = "device mapper that would replace them is missing"
	}
	check("device mapper", map[string]string{"dm/name": "mpatha\n", "ext_range": "256\n"}, missing)
	check("no partitions", map[string]string{"ext_range": "1\n"}, missing)
}

// hasMapper reports whether the kernel has the device mapper. The device node alone does not prove it.
func hasMapper(t *testing.T) bool {
	t.Helper()
	m, err := openMapper()
	if err != nil {
		t.Logf("no device mapper: %v", err)
		return false
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	return true
}

// TestDeviceWithoutPartitions asserts that a real device without partitions serves by the device mapper. Where the
// kernel has none, the device is refused before anything is written, and an existing table does not serve.
func TestDeviceWithoutPartitions(t *testing.T) {
	testenv.NeedRoot(t)
	number, err := os.ReadFile("/sys/class/zram-control/hot_add")
	if err != nil {
		testenv.SkipUnfit(t, "this kernel has no zram: %v", err)
	}
	name := "zram" + strings.TrimSpace(string(number))
	defer func() {
		if err := os.WriteFile("/sys/class/zram-control/hot_remove", number, 0o200); err != nil {
			t.Error(err)
		}
	}()
	if err := os.WriteFile("/sys/block/"+name+"/disksize", fmt.Append(nil, 64*units.MiB), 0o200); err != nil {
		t.Fatal(err)
	}
	path := "/dev/" + name
	found, err := Inspect(t.Context(), path)
	if hasMapper(t) {
		if err != nil || found.State != Blank {
			t.Errorf("Inspect: %+v, %v", found, err)
		}
		if _, err := Initialize(t.Context(), path, Owner{}); err != nil {
			t.Fatal(err)
		}
		d, err := Open(t.Context(), path, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		return
	}
	if err != nil || found.State != Foreign || !strings.Contains(found.Reason, "gives this device no partitions") {
		t.Errorf("Inspect: %+v, %v", found, err)
	}
	if _, err := Initialize(t.Context(), path, Owner{}); err == nil {
		t.Error("Initialize succeeded")
	}
	l := initialized(t, 64*units.MiB, 4096)
	testenv.Run(t, "dd", "if="+l.path, "of="+path, "bs=1M", "oflag=direct", "status=none")
	if d, err := Open(t.Context(), path, Options{}); err == nil || !strings.Contains(err.Error(), "no partitions") {
		t.Errorf("Open: %v, %v", d, err)
	}
}

// TestBlockReason asserts which holders make a device busy.
func TestBlockReason(t *testing.T) {
	for _, test := range []struct {
		holder holders.Holder
		busy   bool
	}{
		{holders.Holder{Kind: holders.Open, Writing: true}, true},
		{holders.Holder{Kind: holders.Open}, false},
		{holders.Holder{Kind: holders.Open, Writing: true, Process: holders.Process{Own: true}}, false},
		{holders.Holder{Kind: holders.Kernel, Name: "md0"}, true},
		{holders.Holder{Kind: holders.Loop, Name: "loop7"}, true},
		{holders.Holder{Kind: holders.Swap}, true},
		{holders.Holder{Kind: holders.Mount}, true},
		{holders.Holder{Kind: holders.Bind}, true},
		{holders.Holder{Kind: holders.Published}, true},
		{holders.Holder{Kind: holders.File}, true},
	} {
		if reason := blockReason(test.holder); (reason != "") != test.busy {
			t.Errorf("%+v: %q", test.holder, reason)
		}
	}
}

// TestBriefOpen asserts that a program which has the device open for a moment does not make it busy: there is a second
// look after a pause.
func TestBriefOpen(t *testing.T) {
	l := newLoopDisk(t, 64*units.MiB, 512)
	_, stop := testenv.StartScript(t, "sh", "-c", "exec 3>>"+l.path+"; echo ready; read x; true")
	d, err := openDevice(l.path, os.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	now := clocktesting.NewFakeClock(time.Now())
	checked := make(chan []string, 1)
	go func() {
		reasons, _, err := d.usedBy(t.Context(), Inspector{clock: now})
		if err != nil {
			reasons = append(reasons, err.Error())
		}
		checked <- reasons
	}()
	poll, deadline := time.NewTicker(time.Millisecond), time.After(2*time.Minute)
	defer poll.Stop()
	for !now.HasWaiters() {
		select {
		case reasons := <-checked:
			t.Fatalf("there is no second look at the device: %q", reasons)
		case <-poll.C:
		case <-deadline:
			t.Fatal("there is no look at the device")
		}
	}
	stop()
	now.Step(briefOpenTime)
	select {
	case reasons := <-checked:
		if len(reasons) != 0 {
			t.Errorf("the device is in use: %q", reasons)
		}
	case <-deadline:
		t.Error("there is no second look at the device")
	}
}
