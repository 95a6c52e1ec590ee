package csi

import (
	"cmp"
	"context"
	"errors"
	"os"
	"os/exec"
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
	"github.com/berthdev/berth/pkg/agent/filesystem"
	"github.com/berthdev/berth/pkg/agent/mounts"
	"github.com/berthdev/berth/pkg/agent/volumes"
	"github.com/berthdev/berth/test/mountns"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// mountedAt returns what is mounted on the path, or nil.
func mountedAt(t *testing.T, path string) *mounts.Mount {
	t.Helper()
	m, found, err := mounts.At(path)
	if err != nil {
		t.Fatal(err)
	}
	if !found {
		return nil
	}
	return &m
}

// fakeMounting mounts its device, or a tmpfs, and then returns what the test sets.
type fakeMounting struct {
	fakeVolumes
	device, fsType string
	// failure is the error of staging after it has mounted.
	failure error
}

func (m *fakeMounting) Publish(ctx context.Context, _ volumes.PodRef, _ string, mount func(context.Context, string, string) error) error {
	return errors.Join(mount(ctx, cmp.Or(m.device, "tmpfs"), cmp.Or(m.fsType, "tmpfs")), m.err)
}

func (m *fakeMounting) Stage(ctx context.Context, id string, o volumes.StageOptions, use func(context.Context, string, string) error) error {
	return errors.Join(m.fakeVolumes.Stage(ctx, id, o, use), m.failure)
}

// TestFailedPublishLeavesNoMount asserts that a call that fails leaves no mount. After some errors the kubelet assumes
// that there is none, and never unmounts it.
func TestFailedPublishLeavesNoMount(t *testing.T) {
	testenv.NeedRoot(t)
	n := newNode(t, &fakeMounting{fakeVolumes: fakeVolumes{err: errors.New("not written")}})
	r := validPublish(n)
	_, err := n.NodePublishVolume(t.Context(), r)
	if status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "not written") {
		t.Errorf("publish says %v", err)
	}
	if at := mountedAt(t, r.TargetPath); at != nil {
		t.Errorf("%v is left", at)
	}
	if _, err := os.Stat(r.TargetPath); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the mount point is left: %v", err)
	}
}

// TestFailedStageLeavesNoMount asserts the same of staging.
func TestFailedStageLeavesNoMount(t *testing.T) {
	v := newVolume(t, diskv1alpha1.FSTypeExt4, 64*units.MiB)
	v.volumes = &fakeMounting{fakeVolumes: fakeVolumes{volume: v.volume, fsType: v.fsType}, failure: errors.New("not written")}
	err := v.stage()
	v.checkCode("stage", err, codes.Internal)
	if !strings.Contains(err.Error(), "not written") {
		t.Errorf("stage says %v", err)
	}
	if at := mountedAt(t, v.staging); at != nil {
		t.Errorf("%v is left", at)
	}
}

// TestOtherFileSystem asserts that a mounted volume does not satisfy a call for another file system.
func TestOtherFileSystem(t *testing.T) {
	v := newVolume(t, diskv1alpha1.FSTypeExt4, 64*units.MiB)
	v.checkCode("stage", v.stage(), codes.OK)
	_, err := v.NodeStageVolume(t.Context(), &csispec.NodeStageVolumeRequest{
		VolumeId: claimID, StagingTargetPath: v.staging, VolumeCapability: mountAs(diskv1alpha1.FSTypeXFS),
	})
	v.checkCode("stage as xfs", err, codes.AlreadyExists)
}

// TestNotFormatted asserts that a volume that is not Formatted on the disk is not published, even if it is mounted.
func TestNotFormatted(t *testing.T) {
	v := newVolume(t, diskv1alpha1.FSTypeExt4, 64*units.MiB)
	v.checkCode("stage", v.stage(), codes.OK)
	for _, phase := range []disk.Phase{disk.Reserved, disk.Wiping} {
		v.volume.Phase = phase
		v.checkCode("publish", v.publish(v.target, nil), codes.FailedPrecondition)
		if at := mountedAt(t, v.target); at != nil {
			t.Errorf("in phase %v: mounted is %v", phase, at)
		}
	}
}

// countRuns replaces a program by one that counts its runs.
func countRuns(t *testing.T, name string) (runs func() int) {
	t.Helper()
	program, err := exec.LookPath(name)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	script := "#!/bin/sh\necho >> " + dir + "/runs\nexec " + program + " \"$@\"\n"
	if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return func() int {
		lines, err := os.ReadFile(filepath.Join(dir, "runs"))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		return len(lines)
	}
}

// TestNotCheckedWhileInUse asserts that e2fsck is not run on a file system that is mounted elsewhere. That is so if the
// file system needs a check, and if it must grow.
func TestNotCheckedWhileInUse(t *testing.T) {
	if mayGrowMounted(t) {
		testenv.SkipUnfit(t, "with CAP_SYS_RESOURCE a file system grows while it is mounted")
	}
	v := newVolume(t, diskv1alpha1.FSTypeExt4, 64*units.MiB)
	runs := countRuns(t, "e2fsck")
	v.checkCode("stage", v.stage(), codes.OK)
	v.checkCode("publish", v.publish(v.target, nil), codes.OK)
	v.grow(200 * units.MiB)
	v.checkCode("stage, to grow", v.stage(), codes.OK)
	v.checkCode("unstage", v.unstage(), codes.OK)
	// While it is mounted its journal is not empty, so it needs a check.
	v.checkCode("stage, while it is mounted elsewhere", v.stage(), codes.OK)
	if n := runs(); n != 0 {
		t.Errorf("e2fsck was run %d times on a mounted file system", n)
	}
	v.checkCode("unpublish", v.unpublish(v.target), codes.OK)
	v.checkCode("stage, to grow", v.stage(), codes.OK)
	if runs() == 0 {
		t.Error("e2fsck was not run before the file system grew")
	}
}

// TestLinkAsTarget asserts that nothing is mounted where a link in the target's place leads.
func TestLinkAsTarget(t *testing.T) {
	testenv.NeedRoot(t)
	n := newNode(t, &fakeMounting{})
	r := validPublish(n)
	elsewhere := filepath.Join(t.TempDir(), "elsewhere")
	if err := os.Mkdir(elsewhere, 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(elsewhere, r.TargetPath); err != nil {
		t.Fatal(err)
	}
	if _, err := n.NodePublishVolume(t.Context(), r); err == nil || !strings.Contains(err.Error(), "is a link") {
		t.Errorf("a link: %v", err)
	}
	if at := mountedAt(t, elsewhere); at != nil {
		t.Errorf("mounted is %v", at)
	}
}

func superblockField(t *testing.T, device, field string) string {
	t.Helper()
	for line := range strings.Lines(testenv.Run(t, "dumpe2fs", "-h", device)) {
		if value, ok := strings.CutPrefix(line, field+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// TestCheckedBeforeTheMount asserts that an ext4 with errors in its superblock is repaired before it is mounted, staged
// or inline. One without errors is not checked.
func TestCheckedBeforeTheMount(t *testing.T) {
	testenv.NeedProgram(t, "debugfs", "dumpe2fs")
	v := newVolume(t, diskv1alpha1.FSTypeExt4, 64*units.MiB)
	inline := NewNode("n", &fakeMounting{device: v.volume.Device, fsType: diskv1alpha1.FSTypeExt4}, options{}, v.kubelet)
	r := validPublish(inline)
	mount := map[string]func() error{
		"stage":  func() error { return v.stage() },
		"inline": func() error { _, err := inline.NodePublishVolume(t.Context(), r); return err },
	}
	unmounts := map[string]func() error{
		"stage":  v.unstage,
		"inline": func() error { return unmount(t.Context(), r.TargetPath) },
	}
	v.checkCode("stage", v.stage(), codes.OK)
	v.write(v.staging)
	v.checkCode("unstage", v.unstage(), codes.OK)
	for name, call := range mount {
		checked := superblockField(t, v.volume.Device, "Last checked")
		v.checkCode(name, call(), codes.OK)
		if err := unmounts[name](); err != nil {
			t.Fatal(err)
		}
		if now := superblockField(t, v.volume.Device, "Last checked"); now != checked {
			t.Errorf("%s: a clean file system was checked", name)
		}
		// Blocks of the file count as free: the next file would overwrite it.
		block := strings.Fields(testenv.Run(t, "debugfs", "-R", "bmap file 0", v.volume.Device))
		for _, command := range []string{"freeb " + block[len(block)-1] + " 4", "set_super_value lastcheck 20200101", "set_super_value state 2"} {
			testenv.Run(t, "debugfs", "-w", "-R", command, v.volume.Device)
		}
		v.checkCode(name+" with errors", call(), codes.OK)
		if err := unmounts[name](); err != nil {
			t.Fatal(err)
		}
		testenv.Run(t, "e2fsck", "-f", "-n", v.volume.Device)
		if state := superblockField(t, v.volume.Device, "Filesystem state"); state != "clean" {
			t.Errorf("%s: the file system is %s", name, state)
		}
	}
	v.checkCode("stage", v.stage(), codes.OK)
	v.read(v.staging)
}

// TestDamagedIsNotMounted asserts that errors beyond e2fsck -p keep a file system from being
// mounted, but not from being read.
func TestDamagedIsNotMounted(t *testing.T) {
	testenv.NeedProgram(t, "debugfs")
	v := newVolume(t, diskv1alpha1.FSTypeExt4, 64*units.MiB)
	v.checkCode("stage", v.stage(), codes.OK)
	v.write(v.staging)
	v.checkCode("unstage", v.unstage(), codes.OK)
	for _, command := range []string{"clri <2>", "set_super_value state 2"} {
		testenv.Run(t, "debugfs", "-w", "-R", command, v.volume.Device)
	}
	err := v.stage()
	v.checkCode("stage", err, codes.FailedPrecondition)
	if !strings.Contains(err.Error(), "e2fsck -f "+v.volume.Device) {
		t.Errorf("the message does not say what to do: %v", err)
	}
	if at := mountedAt(t, v.staging); at != nil {
		t.Errorf("mounted is %v", at)
	}
}

// TestAfterACrash asserts that the content of the journal after a crash is there after the next mount.
func TestAfterACrash(t *testing.T) {
	testenv.NeedProgram(t, "cp", "sync")
	for _, fsType := range []string{diskv1alpha1.FSTypeExt4, diskv1alpha1.FSTypeXFS} {
		v := newVolume(t, fsType, 304*units.MiB)
		v.checkCode("stage", v.stage(), codes.OK)
		v.write(v.staging)
		testenv.Run(t, "sync", "--file-system", v.staging)
		crashed := filepath.Join(t.TempDir(), "image")
		testenv.Run(t, "cp", "--sparse=always", v.image, crashed)
		v.checkCode("unstage", v.unstage(), codes.OK)
		v.volume.Device = testenv.Loop(t, crashed, "512")
		state, err := filesystem.ReadSuperblock(v.volume.Device, fsType)
		if err != nil || state.NeedsCheck != (fsType == diskv1alpha1.FSTypeExt4) {
			t.Errorf("%s: %+v, %v", fsType, state, err)
		}
		v.checkCode("stage after the crash", v.stage(), codes.OK)
		v.read(v.staging)
		v.checkCode("unstage", v.unstage(), codes.OK)
	}
}

// TestNoLostFound asserts that a new ext4 is an empty folder, and that one that was in use is not changed.
func TestNoLostFound(t *testing.T) {
	v := newVolume(t, diskv1alpha1.FSTypeExt4, 64*units.MiB)
	v.checkCode("stage", v.stage(), codes.OK)
	if entries, err := os.ReadDir(v.staging); err != nil || len(entries) != 0 {
		t.Errorf("a new volume holds %v: %v", entries, err)
	}
	found := filepath.Join(v.staging, "lost+found")
	if err := os.Mkdir(found, 0o700); err != nil {
		t.Fatal(err)
	}
	v.checkCode("unstage", v.unstage(), codes.OK)
	testenv.Run(t, "e2fsck", "-f", "-n", v.volume.Device)
	v.checkCode("stage again", v.stage(), codes.OK)
	if _, err := os.Stat(found); err != nil {
		t.Errorf("what was in use was removed: %v", err)
	}
}

// TestMountOptionsOfTheClass asserts that inline volumes and claims are mounted with the options of their class. If two
// exclude each other, the claim's counts.
func TestMountOptionsOfTheClass(t *testing.T) {
	v := newVolume(t, diskv1alpha1.FSTypeExt4, 64*units.MiB)
	v.classes = options{"noatime", "commit=30"}
	v.checkCode("stage", v.stage("commit=7", "nosuid"), codes.OK)
	for _, option := range []string{"noatime", "nosuid", "commit=7"} {
		if at := mountedAt(t, v.staging); !slices.Contains(strings.Split(at.Options+","+at.VFSOptions, ","), option) {
			t.Errorf("staged without %s: %s, %s", option, at.Options, at.VFSOptions)
		}
	}
	v.checkCode("unstage", v.unstage(), codes.OK)
	inline := NewNode("n", &fakeMounting{device: v.volume.Device, fsType: diskv1alpha1.FSTypeExt4}, v.classes, v.kubelet)
	r := validPublish(inline)
	if _, err := inline.NodePublishVolume(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	at := mountedAt(t, r.TargetPath)
	if options := at.Options + "," + at.VFSOptions; !strings.Contains(options, "noatime") || !strings.Contains(options, "commit=30") {
		t.Errorf("mounted with %s", options)
	}
	if err := unmount(t.Context(), r.TargetPath); err != nil {
		t.Fatal(err)
	}
}

// TestMountBelow asserts that a mount that another namespace has made below a volume is reported with its process. The
// volume is unmounted when that mount is gone.
func TestMountBelow(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.NeedProgram(t, "unshare", "mount")
	v := newVolume(t, diskv1alpha1.FSTypeExt4, 64*units.MiB)
	if err := errors.Join(syscall.Mount("tmpfs", v.dir, "tmpfs", 0, ""), syscall.Mount("", v.dir, "", syscall.MS_SHARED, "")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(v.dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	v.folders()
	v.checkCode("stage", v.stage(), codes.OK)
	v.checkCode("publish", v.publish(v.target, nil), codes.OK)
	below := filepath.Join(v.target, "below")
	// A privileged pod with mountPropagation Bidirectional.
	pod := inNamespace(mountns.Unchanged, v.dir, "sh", "-c", "mkdir "+below+" && mount -t tmpfs tmpfs "+below+" && echo ready && cat; umount "+below)
	in, errIn := pod.StdinPipe()
	out, errOut := pod.StdoutPipe()
	if err := errors.Join(errIn, errOut, pod.Start()); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	err := v.unpublish(v.target)
	v.checkCode("unpublish", err, codes.Internal)
	for _, want := range []string{below + " (tmpfs of tmpfs) is mounted below it", "in the mount namespace of process", "(sh)"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the message does not say %q: %v", want, err)
		}
	}
	if err := errors.Join(in.Close(), pod.Wait()); err != nil {
		t.Fatal(err)
	}
	v.checkCode("unpublish afterwards", v.unpublish(v.target), codes.OK)
	v.checkCode("unstage", v.unstage(), codes.OK)
}
