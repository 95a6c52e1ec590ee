package disk

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// checkNoDisk asserts that a device is Foreign for a reason, and Initialize refuses it.
func checkNoDisk(t *testing.T, i Inspector, path, reason string) {
	t.Helper()
	found, err := i.Inspect(t.Context(), path)
	if err != nil || found.State != Foreign || !strings.Contains(found.Reason, reason) {
		t.Errorf("Inspect of %s: %+v, %v, want %q", path, found, err, reason)
	}
	if _, err := i.Initialize(t.Context(), path, Owner{}); err == nil {
		t.Errorf("%s was initialized", path)
	}
}

// TestDeviceOnOurVolume asserts that nothing on a volume of ours is a disk. That is so if it is blank and not in use,
// and if it has a table of ours that a tenant has written.
func TestDeviceOnOurVolume(t *testing.T) {
	testenv.NeedProgram(t, "mkfs.ext4")
	l := initialized(t, 256*units.MiB, 512)
	d := l.open(t)
	ctx := t.Context()
	for guid, e := range map[string]int64{guidA: 2, guidB: 102} {
		if _, err := d.Create(ctx, CreateOptions{Partition: guid, Extent: extentMiB(e, 64), Raw: guid == guidA}); err != nil {
			t.Fatal(err)
		}
	}
	raw, _ := ptr(d.Snapshot()).Volume(guidA)
	formatted, _ := ptr(d.Snapshot()).Volume(guidB)
	testenv.Run(t, "mkfs.ext4", "-q", "-F", formatted.Device)

	checkNoDisk(t, Inspector{}, raw.Device, "partition")
	above := testenv.Loop(t, raw.Device, "512")
	checkNoDisk(t, Inspector{}, above, guidA)
	// A loop device over a loop device over the volume.
	checkNoDisk(t, Inspector{}, testenv.Loop(t, above, "512"), guidA)
	// A file on the volume's file system.
	mnt := mountVolume(t, formatted, "ext4")
	image := filepath.Join(mnt, "image")
	if err := os.WriteFile(image, make([]byte, 16*units.MiB), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Run("a file", func(t *testing.T) { checkNoDisk(t, Inspector{}, testenv.Loop(t, image, "512"), guidB) })
	if err := unix.Unmount(mnt, 0); err != nil {
		t.Fatal(err)
	}

	// A copy of a disk of ours, written into the raw volume.
	small := initialized(t, 64*units.MiB, 512)
	testenv.Run(t, "dd", "if="+small.path, "of="+raw.Device, "bs=1M", "conv=fsync", "oflag=direct", "status=none")
	checkNoDisk(t, Inspector{}, above, guidA)
}

// TestLoopDeviceOverDevice asserts that a loop device over a block device is no disk, but the block device is.
func TestLoopDeviceOverDevice(t *testing.T) {
	l := newLoopDisk(t, 64*units.MiB, 512)
	checkNoDisk(t, Inspector{}, testenv.Loop(t, l.path, "512"), "select that one")
	l.checkState(t, Inspector{}, Busy, "lies on the device")
}

// TestLoopOfTheKubelet asserts that a loop device that the kubelet puts over a raw block volume is no disk, for any
// folder of the kubelet.
func TestLoopOfTheKubelet(t *testing.T) {
	l := newLoopDisk(t, 64*units.MiB, 512)
	kubelet := t.TempDir()
	node := createFile(t, kubelet, "plugins/kubernetes.io/csi/volumeDevices/pvc-1/dev/1234")
	unmount := bindDevice(t, l.path, node)
	t.Run("over a raw block volume", func(t *testing.T) {
		checkNoDisk(t, Inspector{}, testenv.Loop(t, node, "512"), "the kubelet's")
	})
	unmount()
	image := createFile(t, kubelet, "pods/1234/volumes/kubernetes.io~empty-dir/x/image")
	if err := os.Truncate(image, 64*units.MiB); err != nil {
		t.Fatal(err)
	}
	checkNoDisk(t, Inspector{KubeletDir: kubelet}, testenv.Loop(t, image, "512"), "the kubelet's")
}

// TestVolumeBelow asserts that a volume is found through devices that lie on each other, and that a cycle ends.
func TestVolumeBelow(t *testing.T) {
	dir := t.TempDir()
	link := func(from, to string) {
		t.Helper()
		slaves := filepath.Join(dir, from, "slaves")
		if err := os.MkdirAll(slaves, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("../../"+to, filepath.Join(slaves, to)); err != nil {
			t.Fatal(err)
		}
	}
	link("dm-3", "dm-2")
	link("dm-2", "dm-1")
	link("dm-2", "dm-9") // dangling: it was taken away
	if err := os.WriteFile(createFile(t, dir, "dm-1/dm/uuid"), []byte(dmUUIDPrefix+guidA+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(createFile(t, dir, "dm-4/dm/uuid"), []byte("LVM-x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	link("dm-5", "dm-5")
	for name, want := range map[string]string{"dm-3": guidA, "dm-1": guidA, "dm-4": ""} {
		if got, err := volumeBelow(filepath.Join(dir, name), maxStackDepth); got != want || err != nil {
			t.Errorf("below %s: %q, %v", name, got, err)
		}
	}
	if got, err := volumeBelow(filepath.Join(dir, "dm-5"), maxStackDepth); err == nil {
		t.Errorf("in a circle: %q", got)
	}
}
