package csi

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/volumes"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

func (v *testVolume) expand(path string) error {
	_, err := v.NodeExpandVolume(v.t.Context(), &csispec.NodeExpandVolumeRequest{
		VolumeId: claimID, VolumePath: path, StagingTargetPath: v.staging, VolumeCapability: mountAs(v.fsType),
		CapacityRange: &csispec.CapacityRange{RequiredBytes: v.volume.Size},
	})
	return err
}

func (v *testVolume) stats(path string) *csispec.NodeGetVolumeStatsResponse {
	v.t.Helper()
	stats, err := v.NodeGetVolumeStats(v.t.Context(), &csispec.NodeGetVolumeStatsRequest{VolumeId: claimID, VolumePath: path})
	if err != nil {
		v.t.Fatal(err)
	}
	return stats
}

// total is the size of the file system in bytes.
func (v *testVolume) total(path string) int64 { return v.stats(path).Usage[0].Total }

// write makes a file, which read compares later.
func (v *testVolume) write(path string) {
	v.t.Helper()
	if err := os.WriteFile(filepath.Join(path, "file"), []byte(strings.Repeat("data", 10000)), 0o600); err != nil {
		v.t.Fatal(err)
	}
}

func (v *testVolume) read(path string) {
	v.t.Helper()
	if data, err := os.ReadFile(filepath.Join(path, "file")); err != nil || string(data) != strings.Repeat("data", 10000) {
		v.t.Errorf("%d bytes of the file are left: %v", len(data), err)
	}
}

// mayGrowMounted reports whether the kernel allows this process to grow a mounted ext4.
func mayGrowMounted(t *testing.T) bool {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if hex, ok := strings.CutPrefix(line, "CapEff:\t"); ok {
			digit := strings.TrimSpace(hex)
			digit = digit[len(digit)-7 : len(digit)-6]
			// CAP_SYS_RESOURCE is bit 24: the lowest bit of the seventh digit from the end.
			return strings.IndexAny(digit, "13579bdf") == 0
		}
	}
	return false
}

// TestExpandXFS asserts that a mounted xfs grows, also when the kubelet passes a read-only mount, and keeps its data.
func TestExpandXFS(t *testing.T) {
	v := newVolume(t, diskv1alpha1.FSTypeXFS, 304*units.MiB)
	v.checkCode("stage", v.stage(), codes.OK)
	v.checkCode("publish", v.publish(v.target, nil), codes.OK)
	v.checkCode("publish read-only", v.publish(v.otherTarget(), readOnly), codes.OK)
	v.write(v.target)
	before := v.total(v.target)
	v.grow(400 * units.MiB)
	// The kubelet may also pass the mount of a pod that must not write.
	for range 2 {
		v.checkCode("expand", v.expand(v.otherTarget()), codes.OK)
	}
	if grown := v.total(v.target) - before; grown < 90*units.MiB {
		t.Errorf("the file system has grown by %d bytes only", grown)
	}
	v.read(v.target)
}

// TestExpandExt4 asserts that ext4 grows while it is mounted if the kernel allows that. Otherwise it asserts that the
// call says when it grows, and that it grows at the next mount.
func TestExpandExt4(t *testing.T) {
	v := newVolume(t, diskv1alpha1.FSTypeExt4, 64*units.MiB)
	v.checkCode("stage", v.stage(), codes.OK)
	v.checkCode("publish", v.publish(v.target, nil), codes.OK)
	v.write(v.target)
	before := v.total(v.target)
	v.grow(200 * units.MiB)
	if mayGrowMounted(t) {
		v.checkCode("expand", v.expand(v.target), codes.OK)
		if grown := v.total(v.target) - before; grown < 100*units.MiB {
			t.Errorf("the file system has grown by %d bytes only", grown)
		}
		return
	}
	t.Log("without CAP_SYS_RESOURCE: ext4 grows at the next mount only")
	for range 2 {
		err := v.expand(v.target)
		v.checkCode("expand", err, codes.FailedPrecondition)
		if !strings.Contains(err.Error(), "next mounted") {
			t.Errorf("the message does not say when it grows: %v", err)
		}
		v.checkCode("stage while it is in use", v.stage(), codes.OK)
	}
	if grown := v.total(v.target) - before; grown != 0 {
		t.Errorf("the file system has grown by %d bytes, which could not be", grown)
	}
	v.read(v.target)
	v.checkCode("unpublish", v.unpublish(v.target), codes.OK)
	v.checkCode("unstage", v.unstage(), codes.OK)
	v.checkCode("stage", v.stage("noatime"), codes.OK)
	v.checkCode("publish", v.publish(v.target, nil), codes.OK)
	v.checkCode("expand", v.expand(v.target), codes.OK)
	if grown := v.total(v.target) - before; grown < 100*units.MiB {
		t.Errorf("the file system has grown by %d bytes only", grown)
	}
	v.read(v.target)
	if at := mountedAt(t, v.staging); at == nil || !strings.Contains(at.Options, "noatime") {
		t.Errorf("it was mounted again without its options: %v", at)
	}
}

// TestGrowAtStage asserts that a volume that was expanded while it was not in use grows when it is staged.
func TestGrowAtStage(t *testing.T) {
	for _, fsType := range []string{diskv1alpha1.FSTypeExt4, diskv1alpha1.FSTypeXFS} {
		t.Run(fsType, func(t *testing.T) {
			v := newVolume(t, fsType, 304*units.MiB)
			v.checkCode("stage", v.stage(), codes.OK)
			v.write(v.staging)
			before := v.total(v.staging)
			v.checkCode("unstage", v.unstage(), codes.OK)
			v.grow(600 * units.MiB)
			// Read-only it is not grown, but served.
			v.checkCode("stage read-only", v.stage("ro"), codes.OK)
			if grown := v.total(v.staging) - before; grown != 0 {
				t.Errorf("read-only it has grown by %d", grown)
			}
			v.checkCode("expand read-only", v.expand(v.staging), codes.FailedPrecondition)
			v.checkCode("unstage", v.unstage(), codes.OK)
			for range 2 {
				v.checkCode("stage", v.stage(), codes.OK)
			}
			if grown := v.total(v.staging) - before; grown < 270*units.MiB {
				t.Errorf("the file system has grown by %d bytes only", grown)
			}
			v.read(v.staging)
		})
	}
}

// TestDamagedDoesNotGrow asserts that a file system with errors that e2fsck -p does not repair is not grown. It is not
// mounted once the errors are known: writes could destroy more.
func TestDamagedDoesNotGrow(t *testing.T) {
	v := newVolume(t, diskv1alpha1.FSTypeExt4, 64*units.MiB)
	device := v.volume.Device
	testenv.Run(t, "mkfs.ext4", "-q", "-F", "-O", "^extent,^64bit", device)
	file := filepath.Join(v.dir, "data")
	if err := os.WriteFile(file, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	debugfs := func(command string) string { return testenv.Run(t, "debugfs", "-w", "-R", command, device) }
	debugfs("write " + file + " a")
	debugfs("write " + file + " b")
	said := strings.Fields(debugfs("bmap a 0"))
	// Two files have the same block: only an operator can decide which one owns it.
	debugfs("set_inode_field b block[0] " + said[len(said)-1])
	v.grow(200 * units.MiB)
	if mayGrowMounted(t) {
		testenv.SkipUnfit(t, "with CAP_SYS_RESOURCE the kernel permits it to grow mounted, and it is not checked before")
	}
	// The errors found by the check before the growth keep it from being mounted, now and later.
	for range 2 {
		err := v.stage()
		v.checkCode("stage", err, codes.FailedPrecondition)
		if !strings.Contains(err.Error(), "e2fsck -f "+device) {
			t.Errorf("the message does not say what to do: %v", err)
		}
		if at := mountedAt(t, v.staging); at != nil {
			t.Errorf("mounted is %v", at)
		}
	}
}

// TestExpandArguments asserts that calls with a missing argument, or with a path where the volume is not mounted, are
// refused.
func TestExpandArguments(t *testing.T) {
	type request = csispec.NodeExpandVolumeRequest
	v := newVolume(t, diskv1alpha1.FSTypeExt4, 64*units.MiB)
	v.checkCode("stage", v.stage(), codes.OK)
	for name, tc := range map[string]struct {
		request *request
		code    codes.Code
	}{
		"no volume":    {&request{VolumePath: v.staging}, codes.InvalidArgument},
		"no path":      {&request{VolumeId: claimID}, codes.InvalidArgument},
		"negative":     {&request{VolumeId: claimID, VolumePath: v.staging, CapacityRange: &csispec.CapacityRange{RequiredBytes: -1}}, codes.InvalidArgument},
		"capability":   {&request{VolumeId: claimID, VolumePath: v.staging, VolumeCapability: &csispec.VolumeCapability{}}, codes.InvalidArgument},
		"other volume": {&request{VolumeId: "x", VolumePath: v.staging}, codes.NotFound},
		"other path":   {&request{VolumeId: claimID, VolumePath: v.dir}, codes.NotFound},
		"any path":     {&request{VolumeId: claimID, VolumePath: "some/path"}, codes.NotFound},
		"root":         {&request{VolumeId: claimID, VolumePath: "/"}, codes.NotFound},
	} {
		_, err := v.NodeExpandVolume(t.Context(), tc.request)
		v.checkCode(name, err, tc.code)
	}
	for _, path := range []string{v.dir, "/", "/proc", "some/path"} {
		_, err := v.NodeGetVolumeStats(t.Context(), &csispec.NodeGetVolumeStatsRequest{VolumeId: claimID, VolumePath: path})
		v.checkCode("stats of "+path, err, codes.NotFound)
	}
	v.err = fmt.Errorf("%w: x", volumes.ErrNotGrown)
	v.checkCode("no room behind it", v.expand(v.staging), codes.FailedPrecondition)
	v.volume.Problem = "hangs"
	v.checkCode("a disk out of service", v.expand(v.staging), codes.Unavailable)
	v.checkCode("publish from it", v.publish(v.target, nil), codes.Unavailable)
}

// shutDown makes the kernel shut the file system down, as after an error from which it cannot continue. It uses
// XFS_IOC_GOINGDOWN, which ext4 has, too.
func shutDown(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const goingDown, noLogFlush = 0x8004587d, 2
	how := uint32(noLogFlush)
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), goingDown, uintptr(unsafe.Pointer(&how))); errno != 0 {
		t.Fatal(errno)
	}
}

// TestVolumeCondition asserts that the volume condition is abnormal when the disk, the partition or the file system
// fails. It is normal again after the volume was unmounted and mounted.
func TestVolumeCondition(t *testing.T) {
	abnormal := func(v *testVolume, says string) {
		v.t.Helper()
		// ext4 counts an error with a short delay.
		testenv.Eventually(v.t, "an abnormal volume", func() error {
			if c := v.stats(v.target).VolumeCondition; !c.GetAbnormal() || !strings.Contains(c.GetMessage(), says) {
				return fmt.Errorf("condition is %v, want abnormal with %q", c, says)
			}
			return nil
		})
	}
	for _, fsType := range []string{diskv1alpha1.FSTypeExt4, diskv1alpha1.FSTypeXFS} {
		t.Run(fsType, func(t *testing.T) {
			v := newVolume(t, fsType, 304*units.MiB)
			v.checkCode("stage", v.stage(), codes.OK)
			v.checkCode("publish", v.publish(v.target, nil), codes.OK)
			v.checkCode("publish read-only", v.publish(v.otherTarget(), readOnly), codes.OK)
			for _, path := range []string{v.staging, v.target, v.otherTarget()} {
				s := v.stats(path)
				if s.VolumeCondition.Abnormal || len(s.Usage) != 2 {
					t.Errorf("%s: %v", path, s)
				}
				for _, u := range s.Usage {
					if u.Total <= 0 || u.Used+u.Available > u.Total || u.Available <= 0 {
						t.Errorf("%s: usage %v", path, u)
					}
				}
			}
			v.volume.Problem = "hangs"
			abnormal(v, "out of service: hangs")
			v.volume.Problem = ""
			id := v.volume.ID
			v.volume.ID = ""
			abnormal(v, "gone")
			v.volume.ID = id
			if s, err := v.NodeGetVolumeStats(t.Context(), &csispec.NodeGetVolumeStatsRequest{VolumeId: "csi-inline", VolumePath: v.target}); err != nil || s.VolumeCondition.Abnormal {
				t.Errorf("an inline volume, which no Lookup finds: %v, %v", s, err)
			}
			shutDown(t, v.target)
			abnormal(v, map[string]string{diskv1alpha1.FSTypeExt4: "shut", diskv1alpha1.FSTypeXFS: "does not answer"}[fsType])
			// A broken file system can be unmounted.
			for _, target := range []string{v.target, v.otherTarget()} {
				v.checkCode("unpublish", v.unpublish(target), codes.OK)
			}
			v.checkCode("unstage", v.unstage(), codes.OK)
			v.checkCode("stage again", v.stage(), codes.OK)
			v.checkCode("publish again", v.publish(v.target, nil), codes.OK)
			if c := v.stats(v.target).VolumeCondition; c.Abnormal {
				t.Errorf("after it was mounted again: %v", c)
			}
		})
	}
	t.Run("errors", func(t *testing.T) {
		for _, onError := range []string{"errors=continue", "errors=remount-ro"} {
			v := newVolume(t, diskv1alpha1.FSTypeExt4, 64*units.MiB)
			v.checkCode("stage", v.stage(onError), codes.OK)
			v.checkCode("publish", v.publish(v.target, nil), codes.OK)
			trigger := "/sys/fs/ext4/" + filepath.Base(v.volume.Device) + "/trigger_fs_error"
			testenv.NeedFile(t, trigger)
			if err := os.WriteFile(trigger, []byte("for the test"), 0o200); err != nil {
				t.Fatal(err)
			}
			abnormal(v, map[string]string{"errors=continue": "1 errors", "errors=remount-ro": "read-only after errors"}[onError])
		}
	})
}

// TestTooFar asserts that an ext4 that resize2fs would destroy is served without growing, and that the claim shows why.
// The case is 64Mi to 100Gi on sectors of 4096 bytes.
func TestTooFar(t *testing.T) {
	v := newVolume(t, "", 64*units.MiB)
	v.volume.Device = testenv.Loop(t, v.image, "4096")
	v.volume.Block, v.fsType = false, diskv1alpha1.FSTypeExt4
	testenv.Run(t, "mkfs.ext4", "-q", "-F", "-m0", v.volume.Device)
	v.checkCode("stage", v.stage(), codes.OK)
	v.write(v.staging)
	before := v.total(v.staging)
	v.checkCode("unstage", v.unstage(), codes.OK)
	v.grow(100 << 30)
	v.checkCode("stage", v.stage(), codes.OK)
	v.read(v.staging)
	if mayGrowMounted(t) {
		t.Log("with CAP_SYS_RESOURCE the kernel permits it to grow while it is mounted")
	} else {
		err := v.expand(v.staging)
		v.checkCode("expand", err, codes.FailedPrecondition)
		if !strings.Contains(err.Error(), "new claim") {
			t.Errorf("the message does not say what to do: %v", err)
		}
		if total := v.total(v.staging); total != before {
			t.Errorf("it has grown from %d to %d bytes", before, total)
		}
	}
	v.checkCode("unstage", v.unstage(), codes.OK)
	testenv.Run(t, "e2fsck", "-f", "-n", v.volume.Device)
	v.checkCode("stage", v.stage(), codes.OK)
	v.read(v.staging)
}
