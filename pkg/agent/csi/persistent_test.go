package csi

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/agent/mounts"
	"github.com/berthdev/berth/pkg/agent/volumes"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// testVolume is a persistent volume on a loop device, and the node service that has it.
type testVolume struct {
	*fakeVolumes
	*Node
	t               *testing.T
	dir, image      string
	staging, target string
}

// newVolume makes a volume of that size. fsType is empty for a raw block volume.
func newVolume(t *testing.T, fsType string, size int64) *testVolume {
	t.Helper()
	testenv.NeedRoot(t)
	testenv.NeedProgram(t, "losetup", "mkfs.ext4", "mkfs.xfs", "resize2fs", "e2fsck", "xfs_growfs")
	v := &testVolume{t: t, dir: sharedDir(t), image: testenv.Image(t, size)}
	v.staging, v.target = filepath.Join(v.dir, "globalmount"), filepath.Join(v.dir, "pod", "mount")
	device := testenv.Loop(t, v.image, "512")
	switch fsType {
	case diskv1alpha1.FSTypeXFS:
		testenv.Run(t, "mkfs.xfs", "-q", "-f", device)
	case diskv1alpha1.FSTypeExt4:
		testenv.Run(t, "mkfs.ext4", "-q", "-F", "-m0", device)
	}
	v.fakeVolumes = &fakeVolumes{fsType: fsType, volume: volumes.Volume{
		ID: claimID, Device: device, Disk: diskID, Size: size, Block: fsType == "", Phase: disk.Formatted,
	}}
	v.Node = NewNode("n", v.fakeVolumes, options{}, newKubelet(t, v.dir))
	v.folders()
	t.Cleanup(func() {
		for _, path := range []string{v.target, v.otherTarget(), v.staging} {
			if err := unmount(t.Context(), path); err != nil {
				t.Error(err)
			}
		}
	})
	return v
}

// folders makes the folders of both targets, as the kubelet does.
func (v *testVolume) folders() {
	v.t.Helper()
	for _, target := range []string{v.target, v.otherTarget()} {
		if err := os.Mkdir(filepath.Dir(target), 0o750); err != nil {
			v.t.Fatal(err)
		}
	}
}

// otherTarget is the target of another pod.
func (v *testVolume) otherTarget() string { return filepath.Join(v.dir, "other", "mount") }

// grow makes the device larger, like a partition that grows under a volume in use.
func (v *testVolume) grow(size int64) {
	v.t.Helper()
	testenv.Resize(v.t, v.image, size)
	testenv.Run(v.t, "losetup", "--set-capacity", v.volume.Device)
	v.volume.Size = size
}

func (v *testVolume) capability() *csispec.VolumeCapability {
	if v.volume.Block {
		return asBlock()
	}
	return mountAs("")
}

func (v *testVolume) stage(flags ...string) error {
	c := v.capability()
	if !v.volume.Block {
		c.GetMount().MountFlags = flags
	}
	_, err := v.NodeStageVolume(v.t.Context(), &csispec.NodeStageVolumeRequest{VolumeId: claimID, StagingTargetPath: v.staging, VolumeCapability: c})
	return err
}

func (v *testVolume) unstage() error {
	_, err := v.NodeUnstageVolume(v.t.Context(), &csispec.NodeUnstageVolumeRequest{VolumeId: claimID, StagingTargetPath: v.staging})
	return err
}

// publish publishes the volume on a target. change may be nil.
func (v *testVolume) publish(target string, change func(*csispec.NodePublishVolumeRequest)) error {
	r := &csispec.NodePublishVolumeRequest{VolumeId: claimID, StagingTargetPath: v.staging, TargetPath: target, VolumeCapability: v.capability()}
	if change != nil {
		change(r)
	}
	_, err := v.NodePublishVolume(v.t.Context(), r)
	return err
}

func (v *testVolume) unpublish(target string) error {
	_, err := v.NodeUnpublishVolume(v.t.Context(), &csispec.NodeUnpublishVolumeRequest{VolumeId: claimID, TargetPath: target})
	return err
}

func readOnly(r *csispec.NodePublishVolumeRequest) { r.Readonly = true }

func mode(m csispec.VolumeCapability_AccessMode_Mode) func(*csispec.NodePublishVolumeRequest) {
	return func(r *csispec.NodePublishVolumeRequest) { r.VolumeCapability.AccessMode.Mode = m }
}

// checkCode asserts that a call returns the code.
func (v *testVolume) checkCode(what string, err error, code codes.Code) {
	v.t.Helper()
	if status.Code(err) != code {
		v.t.Fatalf("%s: %v, want %v", what, err, code)
	}
}

// TestLifeOfAVolume makes every call twice, and asserts that data written through one mount is visible through another.
func TestLifeOfAVolume(t *testing.T) {
	for _, fsType := range []string{diskv1alpha1.FSTypeExt4, diskv1alpha1.FSTypeXFS} {
		t.Run(fsType, func(t *testing.T) {
			v := newVolume(t, fsType, 304*units.MiB)
			v.checkCode("publish before stage", v.publish(v.target, nil), codes.FailedPrecondition)
			for range 2 {
				v.checkCode("stage", v.stage("noatime"), codes.OK)
			}
			for range 2 {
				v.checkCode("publish", v.publish(v.target, nil), codes.OK)
			}
			if err := os.WriteFile(filepath.Join(v.target, "file"), []byte("data"), 0o600); err != nil {
				t.Fatal(err)
			}
			v.checkCode("publish read-only where it is not", v.publish(v.target, readOnly), codes.AlreadyExists)
			for range 2 {
				v.checkCode("publish read-only", v.publish(v.otherTarget(), readOnly), codes.OK)
			}
			v.checkCode("publish where it is read-only", v.publish(v.otherTarget(), nil), codes.AlreadyExists)
			if data, err := os.ReadFile(filepath.Join(v.otherTarget(), "file")); err != nil || string(data) != "data" {
				t.Errorf("the other pod reads %q: %v", data, err)
			}
			if err := os.WriteFile(filepath.Join(v.otherTarget(), "file"), nil, 0o600); !errors.Is(err, syscall.EROFS) {
				t.Errorf("a read-only pod writes: %v", err)
			}
			for _, path := range []string{v.target, v.otherTarget()} {
				if at := mountedAt(t, path); at == nil || !slices.Contains(strings.Split(at.Options, ","), "noatime") {
					t.Errorf("%s is mounted with %v", path, at)
				}
			}
			for _, target := range []string{v.target, v.target, v.otherTarget()} {
				v.checkCode("unpublish", v.unpublish(target), codes.OK)
				if _, err := os.Lstat(target); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("%s is left: %v", target, err)
				}
			}
			for range 2 {
				v.checkCode("unstage", v.unstage(), codes.OK)
			}
			if at := mountedAt(t, v.staging); at != nil {
				t.Errorf("%v is left", at)
			}
			if _, err := os.Stat(v.staging); err != nil {
				t.Errorf("the staging path is its caller's: %v", err)
			}
			if len(v.unstaged) != 2 || len(v.released) != 0 {
				t.Errorf("unstaged %v, released %v", v.unstaged, v.released)
			}
			// The next pod has the data.
			v.checkCode("stage again", v.stage(), codes.OK)
			if data, err := os.ReadFile(filepath.Join(v.staging, "file")); err != nil || string(data) != "data" {
				t.Errorf("the next pod reads %q: %v", data, err)
			}
		})
	}
}

// TestReadOnlyModes asserts that a pod's mount is read-only and has its own options, while the staging mount stays
// writable.
func TestReadOnlyModes(t *testing.T) {
	v := newVolume(t, diskv1alpha1.FSTypeExt4, 64*units.MiB)
	// With SELinux the kubelet passes a label, which mount(8) ignores on a kernel without it. The label is the file
	// system's, and not an option of the mount that a pod gets.
	flags := []string{"nosuid", "nodev", `context="system_u:object_r:container_file_t:s0:c1,c2"`}
	v.checkCode("stage", v.stage(flags...), codes.OK)
	v.checkCode("publish", v.publish(v.target, func(r *csispec.NodePublishVolumeRequest) {
		r.VolumeCapability.AccessMode.Mode = csispec.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY
		r.VolumeCapability.GetMount().MountFlags = flags
	}), codes.OK)
	at := mountedAt(t, v.target)
	if at == nil {
		t.Fatal("it is not mounted")
	}
	for _, option := range []string{"ro", "nosuid", "nodev"} {
		if !slices.Contains(strings.Split(at.Options, ","), option) {
			t.Errorf("%s is not among the mount's options: %s", option, at.Options)
		}
	}
	if at = mountedAt(t, v.staging); at == nil || at.ReadOnly() {
		t.Errorf("the staging mount is %v", at)
	}
}

// TestSingleWriter asserts ReadWriteOncePod, with a file system and with a raw block device.
func TestSingleWriter(t *testing.T) {
	for _, fsType := range []string{diskv1alpha1.FSTypeExt4, ""} {
		t.Run(fsType, func(t *testing.T) {
			v := newVolume(t, fsType, 64*units.MiB)
			single := mode(csispec.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER)
			v.checkCode("stage", v.stage(), codes.OK)
			for range 2 {
				v.checkCode("publish", v.publish(v.target, single), codes.OK)
			}
			err := v.publish(v.otherTarget(), single)
			v.checkCode("a second pod", err, codes.FailedPrecondition)
			if !strings.Contains(err.Error(), v.target) {
				t.Errorf("the message does not say where the volume is: %v", err)
			}
			if _, err := os.Lstat(v.otherTarget()); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the second target is left: %v", err)
			}
			v.checkCode("unpublish", v.unpublish(v.target), codes.OK)
			v.checkCode("the next pod", v.publish(v.otherTarget(), single), codes.OK)
		})
	}
}

// TestRawBlock asserts that a raw block volume is published as its device, repeatedly and at several targets, and
// reports its size.
func TestRawBlock(t *testing.T) {
	v := newVolume(t, "", 8*units.MiB)
	v.checkCode("stage", v.stage(), codes.OK)
	// The volume is moved until the call has its lock.
	v.volume.Device, v.movedTo = "", v.volume.Device
	v.checkCode("publish while it is moved", v.publish(v.target, nil), codes.OK)
	v.volume.Device, v.movedTo = v.movedTo, ""
	for range 2 {
		v.checkCode("publish", v.publish(v.target, nil), codes.OK)
	}
	if !mounts.SameDevice(v.target, v.volume.Device) {
		t.Fatal("the target is not the volume's device")
	}
	testenv.WriteDevice(t, v.target, []byte("raw data"))
	v.checkCode("publish read-only where it is not", v.publish(v.target, readOnly), codes.AlreadyExists)
	v.checkCode("publish read-only", v.publish(v.otherTarget(), readOnly), codes.OK)
	v.checkCode("publish as a file system", v.publish(v.target, func(r *csispec.NodePublishVolumeRequest) { r.VolumeCapability = mountAs("") }), codes.FailedPrecondition)
	stats, err := v.NodeGetVolumeStats(t.Context(), &csispec.NodeGetVolumeStatsRequest{VolumeId: claimID, VolumePath: v.target})
	if err != nil || len(stats.Usage) != 1 || stats.Usage[0].Total != 8*units.MiB || stats.VolumeCondition.Abnormal {
		t.Errorf("stats are %v: %v", stats, err)
	}
	if _, err := v.NodeGetVolumeStats(t.Context(), &csispec.NodeGetVolumeStatsRequest{VolumeId: claimID, VolumePath: v.staging}); status.Code(err) != codes.NotFound {
		t.Errorf("stats of another path: %v", err)
	}
	device := v.volume.Device
	v.volume.Problem, v.volume.Device = "hangs", ""
	stats, err = v.NodeGetVolumeStats(t.Context(), &csispec.NodeGetVolumeStatsRequest{VolumeId: claimID, VolumePath: v.target})
	if err != nil || !stats.VolumeCondition.Abnormal {
		t.Errorf("stats of a disk out of service are %v: %v", stats, err)
	}
	v.checkCode("publish from it", v.publish(v.target, nil), codes.Unavailable)
	v.volume.Problem, v.volume.Device = "", device
	v.grow(16 * units.MiB)
	if got, err := v.NodeExpandVolume(t.Context(), &csispec.NodeExpandVolumeRequest{VolumeId: claimID, VolumePath: "/any"}); err != nil || got.CapacityBytes != 16*units.MiB {
		t.Errorf("expand says %v: %v", got, err)
	}
	for range 2 {
		v.checkCode("unpublish", v.unpublish(v.target), codes.OK)
	}
	if _, err := os.Lstat(v.target); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the target is left: %v", err)
	}
	if _, err := os.Stat(v.volume.Device); err != nil {
		t.Errorf("the device is gone: %v", err)
	}
	v.checkCode("unpublish the other", v.unpublish(v.otherTarget()), codes.OK)
	if data, err := os.ReadFile(v.image); err != nil || !strings.HasPrefix(string(data), "raw data") {
		t.Errorf("the device does not hold what was written: %v", err)
	}
	v.checkCode("unstage", v.unstage(), codes.OK)
}

// TestOtherMountOnTarget asserts that files and mounts of other programs at the paths are neither used nor removed.
func TestOtherMountOnTarget(t *testing.T) {
	v := newVolume(t, diskv1alpha1.FSTypeExt4, 64*units.MiB)
	if err := os.MkdirAll(v.staging, 0o750); err != nil {
		t.Fatal(err)
	}
	tmpfs := func(path string) {
		t.Helper()
		if err := os.MkdirAll(path, 0o750); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Mount("tmpfs", path, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
	}
	tmpfs(v.staging)
	v.checkCode("stage over another mount", v.stage(), codes.FailedPrecondition)
	if err := syscall.Unmount(v.staging, 0); err != nil {
		t.Fatal(err)
	}
	v.checkCode("stage", v.stage(), codes.OK)
	tmpfs(v.target)
	v.checkCode("publish over another mount", v.publish(v.target, nil), codes.FailedPrecondition)

	file := filepath.Join(v.dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	v.checkCode("publish over a file", v.publish(file, nil), codes.Internal)
	v.checkCode("unpublish a file", v.unpublish(file), codes.Internal)
	link := filepath.Join(v.dir, "link")
	if err := os.Symlink(v.dir, link); err != nil {
		t.Fatal(err)
	}
	v.checkCode("publish over a link", v.publish(link, nil), codes.Internal)
	v.checkCode("unpublish a link", v.unpublish(link), codes.Internal)
	for _, path := range []string{file, link} {
		if _, err := os.Lstat(path); err != nil {
			t.Error(err)
		}
	}
}

// TestPathsOverLinks asserts that a kubelet directory may be a link.
func TestPathsOverLinks(t *testing.T) {
	v := newVolume(t, diskv1alpha1.FSTypeExt4, 64*units.MiB)
	link := filepath.Join(t.TempDir(), "kubelet")
	if err := os.Symlink(v.dir, link); err != nil {
		t.Fatal(err)
	}
	direct := v.target
	v.staging, v.target = filepath.Join(link, "globalmount"), filepath.Join(link, "pod", "mount")
	for range 2 {
		v.checkCode("stage", v.stage(), codes.OK)
		v.checkCode("publish", v.publish(v.target, nil), codes.OK)
	}
	v.checkCode("unpublish", v.unpublish(v.target), codes.OK)
	v.checkCode("unstage", v.unstage(), codes.OK)
	if at := mountedAt(t, direct); at != nil {
		t.Errorf("%v is left", at)
	}
}
