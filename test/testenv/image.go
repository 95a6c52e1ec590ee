package testenv

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Image makes a sparse file of that size that is used as a disk.
func Image(t testing.TB, size int64) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	Resize(t, path, size)
	return path
}

// Resize changes the size of an image.
func Resize(t testing.TB, path string, size int64) {
	t.Helper()
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}

// Loop makes a loop device of an image, with sectors of that size, until the test ends.
func Loop(t testing.TB, image string, sector string) (device string) {
	t.Helper()
	device = strings.TrimSpace(Run(t, "losetup", "--find", "--show", "--sector-size="+sector, image))
	t.Cleanup(func() { Run(t, "losetup", "--detach", device) })
	return device
}

// Run runs a program that must succeed, and returns its output.
func Run(t testing.TB, name string, arguments ...string) string {
	t.Helper()
	command := exec.Command(name, arguments...)
	command.Env = append(os.Environ(), "LC_ALL=C")
	out, err := command.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v: %s", name, arguments, err, out)
	}
	return string(out)
}
