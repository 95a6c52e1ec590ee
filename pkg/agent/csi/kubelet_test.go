package csi

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/mountns"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// tree lists all that is below a folder.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		all = append(all, path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(all, "\n")
}

// TestTargetPaths asserts that a target outside of the kubelet's folder, or in a folder that does not exist, is
// refused. The error says why, and nothing is made there.
func TestTargetPaths(t *testing.T) {
	testenv.NeedRoot(t)
	v := newVolume(t, diskv1alpha1.FSTypeExt4, 64*units.MiB)
	elsewhere := t.TempDir()
	link := filepath.Join(v.dir, "link")
	if err := os.Symlink(elsewhere, link); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		path string
		code codes.Code
		says string
	}{
		"a path with ..":       {v.dir + "/pod/../../etc", codes.InvalidArgument, "without .."},
		"another kubelet root": {filepath.Join(elsewhere, "mount"), codes.FailedPrecondition, "not below the kubelet's folder"},
		"a missing folder":     {filepath.Join(v.dir, "pods", "x", "mount"), codes.FailedPrecondition, "does not see that folder"},
		"over a link":          {filepath.Join(link, "mount"), codes.FailedPrecondition, "out of the kubelet's folder"},
		"the folder itself":    {v.dir, codes.FailedPrecondition, "not below the kubelet's folder"},
	} {
		before := tree(t, v.dir) + tree(t, elsewhere)
		inline := validPublish(v.Node)
		inline.TargetPath = tc.path
		_, err := v.NodePublishVolume(t.Context(), inline)
		calls := map[string]error{"publish inline": err, "publish staged": v.publish(tc.path, nil)}
		_, calls["stage"] = v.NodeStageVolume(t.Context(), &csispec.NodeStageVolumeRequest{VolumeId: claimID, StagingTargetPath: tc.path, VolumeCapability: v.capability()})
		v.volume.Block = true
		calls["publish block"] = v.publish(tc.path, nil)
		v.volume.Block = false
		for call, err := range calls {
			if status.Code(err) != tc.code || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%s, %s: %v, want %v with %q", name, call, err, tc.code, tc.says)
			}
			if tc.code == codes.FailedPrecondition && !strings.Contains(err.Error(), "--kubelet-dir") && !strings.Contains(err.Error(), "link") {
				t.Errorf("%s, %s: the message does not say what to set: %v", name, call, err)
			}
		}
		if after := tree(t, v.dir) + tree(t, elsewhere); after != before {
			t.Errorf("%s: something was made:\n%s", name, after)
		}
	}
	if v.pod.Name != "" {
		t.Error("a volume was asked for")
	}
}

// inNamespace is a command in its own mount namespace, with the mounts below the folder keep.
func inNamespace(propagation mountns.Propagation, keep string, argv ...string) *exec.Cmd {
	argv = mountns.Command(propagation, keep, argv...)
	return exec.Command(argv[0], argv[1:]...)
}

// ownNamespace runs the test of that name in its own mount namespace, like a container.
func ownNamespace(t *testing.T, name string, propagation mountns.Propagation) {
	t.Helper()
	testenv.NeedRoot(t)
	testenv.NeedProgram(t, "unshare")
	command := inNamespace(propagation, "", os.Args[0], "-test.run=^"+name+"$", "-test.v")
	command.Env = append(os.Environ(), inContainer+"="+string(propagation))
	if out, err := command.CombinedOutput(); err != nil {
		t.Errorf("with %s: %v: %s", propagation, err, out)
	} else if !strings.Contains(string(out), "--- PASS: "+name) {
		t.Errorf("with %s nothing was tested: %s", propagation, out)
	}
}

const inContainer = "BERTH_TEST_IN_CONTAINER"

// TestPropagation asserts that a mount that the host would not see is refused, when the agent starts and at each call.
// Then nothing is written.
func TestPropagation(t *testing.T) {
	propagation := os.Getenv(inContainer)
	if propagation == "" {
		for _, p := range []mountns.Propagation{mountns.Private, mountns.Slave, mountns.Shared} {
			ownNamespace(t, "TestPropagation", p)
		}
		return
	}
	if onHost() {
		t.Fatal("this is the host's namespace")
	}
	dir := t.TempDir()
	mount := func(path, kind string, flag uintptr) {
		t.Helper()
		if err := errors.Join(unix.Mount("tmpfs", path, "tmpfs", 0, ""), unix.Mount("", path, "", flag, "")); err != nil {
			t.Fatal(kind, err)
		}
		t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
	}
	// The folder is in the image, and the host's is not mounted there.
	if propagation != "shared" {
		if _, err := NewKubelet(dir); err == nil || !strings.Contains(err.Error(), "does not propagate to the host") || !strings.Contains(err.Error(), "Bidirectional") {
			t.Errorf("a folder of the container's own: %v", err)
		}
	}
	for _, missing := range []string{filepath.Join(dir, "none"), "relative", ""} {
		if _, err := NewKubelet(missing); err == nil || !strings.Contains(err.Error(), "--kubelet-dir") {
			t.Errorf("%q: %v", missing, err)
		}
	}
	mount(dir, "the kubelet's folder", unix.MS_SHARED)
	testenv.MakePodsDir(t, dir)
	k, err := NewKubelet(dir)
	if err != nil {
		t.Fatal(err)
	}
	n := NewNode("n", &fakeMounting{}, options{}, k)
	for _, folder := range []string{"good", "own"} {
		if err := os.Mkdir(filepath.Join(dir, folder), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	mount(filepath.Join(dir, "own"), "a mount of the container's own", unix.MS_PRIVATE)
	r := validPublish(n)
	r.TargetPath = filepath.Join(dir, "own", "mount")
	before := tree(t, dir)
	_, err = n.NodePublishVolume(t.Context(), r)
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(fmt.Sprint(err), "does not propagate to the host") {
		t.Errorf("a private mount: %v", err)
	}
	if after := tree(t, dir); after != before {
		t.Errorf("something was made: %s", after)
	}
	r.TargetPath = filepath.Join(dir, "good", "mount")
	if _, err := n.NodePublishVolume(t.Context(), r); err != nil {
		t.Errorf("a shared one: %v", err)
	}
	if at := mountedAt(t, r.TargetPath); at == nil {
		t.Error("nothing is mounted")
	}
}

// TestFolderOfNoKubelet asserts that the agent does not start with an existing folder that is not the kubelet's. It
// makes nothing in it. An example is /var/lib/kubelet beside a kubelet with another root.
func TestFolderOfNoKubelet(t *testing.T) {
	dir := sharedDir(t)
	if err := os.Rename(filepath.Join(dir, "pods"), filepath.Join(dir, "device-plugins")); err != nil {
		t.Fatal(err)
	}
	before := tree(t, dir)
	if _, err := NewKubelet(dir); err == nil || !strings.Contains(err.Error(), "not the --root-dir of a kubelet") || !strings.Contains(err.Error(), "set the agent's --kubelet-dir") {
		t.Errorf("a folder without pods: %v", err)
	}
	if after := tree(t, dir); after != before {
		t.Errorf("something was made: %s", after)
	}
}

// TestOldKernel asserts that the agent refuses to start on a kernel without the calls that binding needs.
func TestOldKernel(t *testing.T) {
	if err := explainOldKernel(fmt.Errorf("open_tree: %w", unix.ENOSYS)); err == nil || !strings.Contains(err.Error(), "Linux 5.12") {
		t.Errorf("an old kernel: %v", err)
	}
	for _, err := range []error{nil, unix.EPERM} {
		if explainOldKernel(err) != nil {
			t.Errorf("%v is taken for an old kernel", err)
		}
	}
}
