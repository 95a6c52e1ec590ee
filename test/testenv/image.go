package testenv

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Image makes a sparse file of that size that is used as a disk.
func Image(t testing.TB, size int64) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "image")
	ImageAt(t, path, size)
	return path
}

// ImageAt is Image for a test that chooses the path.
func ImageAt(t testing.TB, path string, size int64) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	Resize(t, path, size)
}

// Resize changes the size of an image.
func Resize(t testing.TB, path string, size int64) {
	t.Helper()
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}

// Loop makes a loop device of an image, with sectors of that size, until the test ends.
func Loop(t testing.TB, image, sector string) (device string) {
	t.Helper()
	device = Attach(t, image, sector)
	t.Cleanup(func() { Detach(t, device) })
	return device
}

// Attach makes a loop device of an image, with sectors of that size and without partitions. A loop device keeps its
// partitions when it is detached, so another test may have left some.
func Attach(t testing.TB, image, sector string) (device string) {
	t.Helper()
	device = strings.TrimSpace(Run(t, "losetup", "--find", "--show", "--sector-size="+sector, image))
	RemovePartitions(t, device)
	return device
}

// Detach removes the loop device's partitions, and detaches it.
func Detach(t testing.TB, device string) {
	t.Helper()
	RemovePartitions(t, device)
	Run(t, "losetup", "--detach", device)
}

// BackingFile is the file behind a loop device, as the kernel names it. It is empty if there is none.
func BackingFile(t testing.TB, device string) string {
	t.Helper()
	file, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(device), "loop/backing_file"))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) {
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(file))
}

// AwaitDetached waits until the file is no longer behind the loop device. Another test may get the device at once, so
// another file does not mean that it is still attached.
func AwaitDetached(t testing.TB, device, file string) {
	t.Helper()
	Eventually(t, device+" is detached from "+file, func() error {
		if BackingFile(t, device) == file {
			return errors.New("it is still bound")
		}
		return nil
	})
}

// Run runs a program that must succeed, and returns its output.
func Run(t testing.TB, name string, arguments ...string) string {
	t.Helper()
	command := exec.Command(name, arguments...)
	command.Env = append(os.Environ(), "LC_ALL=C")
	var stderr bytes.Buffer
	command.Stderr = &stderr
	out, err := command.Output()
	if err != nil {
		t.Fatalf("%v: %v: %s%s", command, err, out, stderr.String())
	}
	return string(out)
}
