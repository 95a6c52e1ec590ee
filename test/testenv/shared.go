package testenv

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// SharedKubeletDir makes a folder like the kubelet's on a node, until the test ends. Mounts propagate from it, and it
// has a folder of pods. Tests run in their own mount namespaces.
func SharedKubeletDir(t testing.TB) (path string) {
	t.Helper()
	NeedRoot(t)
	path = t.TempDir()
	if err := unix.Mount(path, path, "", unix.MS_BIND, ""); err != nil {
		t.Fatalf("bind %s: %v", path, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", path, err)
		}
	})
	if err := unix.Mount("", path, "", unix.MS_SHARED, ""); err != nil {
		t.Fatalf("share %s: %v", path, err)
	}
	MakePodsDir(t, path)
	return path
}

// MakePodsDir makes a folder recognizable as a kubelet's: it makes the folder of its pods.
func MakePodsDir(t testing.TB, path string) {
	t.Helper()
	if err := os.Mkdir(filepath.Join(path, "pods"), 0o750); err != nil {
		t.Fatal(err)
	}
}
