package testenv

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// maxUsualLoops is more loop devices than a usual test needs: only tests that fill a disk have more.
const maxUsualLoops = 64

// RemoveNewLoops removes, at the end of the test, the loop devices that are new since now. It also removes those that
// another such test has left, because with hundreds of them each search for block devices is slow. Those in use stay.
func RemoveNewLoops(t testing.TB) {
	t.Helper()
	list := func() []string {
		names, err := filepath.Glob("/sys/block/loop*")
		if err != nil {
			t.Fatal(err)
		}
		return names
	}
	before := list()
	t.Cleanup(func() {
		control, err := os.Open("/dev/loop-control")
		if err != nil {
			t.Fatal(err)
		}
		defer control.Close()
		for _, name := range list() {
			var number int
			if _, err := fmt.Sscanf(filepath.Base(name), "loop%d", &number); err != nil || number < maxUsualLoops && slices.Contains(before, name) {
				continue
			}
			if err := unix.IoctlSetInt(int(control.Fd()), unix.LOOP_CTL_REMOVE, number); err != nil && !errors.Is(err, unix.EBUSY) {
				t.Logf("%s stays: %v", name, err)
			}
		}
	})
}

// WriteDevice writes to the beginning of a block device, and onto its medium. The kernel writes back only at the last
// close, and another process may have the device open.
func WriteDevice(t testing.TB, path string, data []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Write(data)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		t.Fatalf("writing to %s: %v", path, err)
	}
}
