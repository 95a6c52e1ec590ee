package testenv

import (
	"os"
	"path/filepath"
	"testing"
)

// Freezer is a file system that can be made to hang. While it is frozen, a disk whose image lies on it hangs, too: a
// thread that waits for that disk is in state D, and no signal ends it.
type Freezer struct {
	// Dir is where it is mounted.
	Dir    string
	t      testing.TB
	frozen bool
}

// NewFreezer mounts a new file system of that size, until the test ends.
func NewFreezer(t testing.TB, size int64) *Freezer {
	t.Helper()
	NeedRoot(t)
	NeedProgram(t, "fsfreeze", "mkfs.ext4", "mount")
	f := &Freezer{t: t, Dir: filepath.Join(t.TempDir(), "mount")}
	if err := os.Mkdir(f.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	image := Image(t, size)
	Run(t, "mkfs.ext4", "-q", "-F", image)
	Run(t, "mount", "-o", "loop", image, f.Dir)
	t.Cleanup(func() {
		f.Thaw()
		Unmount(t, f.Dir)
	})
	return f
}

// Freeze makes the file system hang.
func (f *Freezer) Freeze() {
	f.t.Helper()
	Run(f.t, "fsfreeze", "--freeze", f.Dir)
	f.frozen = true
}

// Thaw ends Freeze. Without it, it does nothing.
func (f *Freezer) Thaw() {
	f.t.Helper()
	if f.frozen {
		f.frozen = false
		Run(f.t, "fsfreeze", "--unfreeze", f.Dir)
	}
}
