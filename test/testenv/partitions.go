package testenv

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// PartitionedLoop makes a loop device of that size, and removes its partitions when the test ends: a loop device keeps
// them when it is detached.
func PartitionedLoop(t testing.TB, size int64) (device string) {
	t.Helper()
	NeedRoot(t)
	NeedProgram(t, "losetup", "delpart")
	device = Loop(t, Image(t, size), "512")
	RemovePartitions(t, device)
	t.Cleanup(func() { RemovePartitions(t, device) })
	return device
}

// removeTimeout is how long a partition may stay open. The kernel closes the file behind a loop device some time after
// it is detached. A child that was forked and has not executed its own program yet keeps files open, too.
const removeTimeout = 30 * time.Second

// Unmount waits for files below the mount point that are open, as RemovePartitions does for partitions.
func Unmount(t testing.TB, target string) {
	t.Helper()
	deadline := time.After(removeTimeout)
	for {
		err := unix.Unmount(target, 0)
		if err == nil {
			return
		}
		if !errors.Is(err, unix.EBUSY) {
			t.Fatalf("unmounting %s: %v", target, err)
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-deadline:
			t.Fatalf("unmounting %s: not after %s: %v", target, removeTimeout, err)
		}
	}
}

// RemovePartitions removes a device's partitions from the kernel, as a reboot does. It waits for those that are open.
func RemovePartitions(t testing.TB, device string) {
	t.Helper()
	name := filepath.Base(device)
	deadline := time.After(removeTimeout)
	for {
		err := removePartitions(device, "/sys/block/"+name+"/"+name+"p*/partition")
		if err == nil {
			return
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-deadline:
			t.Fatalf("not after %s: %v", removeTimeout, err)
		}
	}
}

func removePartitions(device, pattern string) error {
	numbers, err := filepath.Glob(pattern)
	if err != nil {
		return err
	}
	for _, n := range numbers {
		number, err := os.ReadFile(n)
		if err != nil {
			return err
		}
		if out, err := exec.Command("delpart", device, strings.TrimSpace(string(number))).CombinedOutput(); err != nil {
			return fmt.Errorf("delpart %s %s: %w: %s", device, strings.TrimSpace(string(number)), err, out)
		}
	}
	return nil
}
