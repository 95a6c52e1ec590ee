package filesystem

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// debugfs runs one command of debugfs.
func debugfs(t *testing.T, image, command string) string {
	t.Helper()
	return testenv.Run(t, "debugfs", "-w", "-R", command, image)
}

// withFile is an ext4 image of a size that holds a file "a".
func withFile(t *testing.T, size int64, options ...string) (image string) {
	t.Helper()
	testenv.NeedProgram(t, "mkfs.ext4", "e2fsck", "debugfs", "resize2fs", "dumpe2fs")
	image = testenv.Image(t, size)
	testenv.Run(t, "mkfs.ext4", append(append([]string{"-q", "-F", "-m0"}, options...), image)...)
	file := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(file, []byte(strings.Repeat("data", 4096)), 0o600); err != nil {
		t.Fatal(err)
	}
	debugfs(t, image, "write "+file+" a")
	return image
}

// holdsFile asserts that the file of withFile exists, and that e2fsck finds no errors.
func holdsFile(t *testing.T, image string) {
	t.Helper()
	if got := testenv.Run(t, "debugfs", "-R", "cat a", image); !strings.Contains(got, strings.Repeat("data", 4096)) {
		t.Errorf("the file has %d bytes", len(got))
	}
	testenv.Run(t, "e2fsck", "-f", "-n", image)
}

// TestSuspect asserts when a file system needs a check, and when it was never mounted.
func TestSuspect(t *testing.T) {
	for name, tc := range map[string]struct {
		commands       []string
		suspect, fresh bool
	}{
		"new":                {nil, false, true},
		"mounted before":     {[]string{"set_super_value mtime 20260101"}, false, false},
		"with errors":        {[]string{"set_super_value state 2"}, true, true},
		"clean, with errors": {[]string{"set_super_value state 3"}, true, true},
		"not unmounted":      {[]string{"set_super_value state 0"}, true, true},
		"with a journal":     {[]string{"feature needs_recovery"}, true, true},
	} {
		image := withFile(t, 64*units.MiB)
		for _, command := range tc.commands {
			debugfs(t, image, command)
		}
		state, err := ReadSuperblock(image, diskv1alpha1.FSTypeExt4)
		if err != nil || state.NeedsCheck != tc.suspect || state.NeverMounted != tc.fresh {
			t.Errorf("%s: %+v: %v", name, state, err)
		}
	}
}

// TestCheckRepairs asserts that damage that e2fsck repairs by itself is repaired.
func TestCheckRepairs(t *testing.T) {
	image := withFile(t, 64*units.MiB)
	// Blocks of the file count as free: the next file would overwrite it.
	said := strings.Fields(debugfs(t, image, "bmap a 0"))
	for _, command := range []string{"freeb " + said[len(said)-1] + " 4", "set_super_value state 2"} {
		debugfs(t, image, command)
	}
	if err := exec.Command("e2fsck", "-f", "-n", image).Run(); err == nil {
		t.Fatal("it is not damaged")
	}
	if err := Check(t.Context(), image); err != nil {
		t.Fatal(err)
	}
	if state, err := ReadSuperblock(image, diskv1alpha1.FSTypeExt4); err != nil || state.NeedsCheck {
		t.Errorf("it still asks for a check: %+v, %v", state, err)
	}
	holdsFile(t, image)
}

// crossLink gives two files the same block: only an operator can decide which one owns it.
func crossLink(t *testing.T, image string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(file, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	debugfs(t, image, "write "+file+" b")
	said := strings.Fields(debugfs(t, image, "bmap a 0"))
	debugfs(t, image, "set_inode_field b block[0] "+said[len(said)-1])
}

// TestCheckRefuses asserts that damage that e2fsck does not repair is an error that says what to do. The superblock
// shows the damage, or the growth of the file system finds it.
func TestCheckRefuses(t *testing.T) {
	image := withFile(t, 64*units.MiB, "-O", "^extent,^64bit")
	crossLink(t, image)
	testenv.Resize(t, image, 200*units.MiB)
	if err := GrowUnmounted(t.Context(), image); !errors.Is(err, ErrDamaged) {
		t.Errorf("it grows: %v", err)
	}
	debugfs(t, image, "set_super_value state 2")
	err := Check(t.Context(), image)
	if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "e2fsck -f "+image) {
		t.Errorf("it does not say what to do: %v", err)
	}
	if err := Check(t.Context(), testenv.Image(t, units.MiB)); err == nil || errors.Is(err, ErrDamaged) {
		t.Errorf("zeros: %v", err)
	}
}
