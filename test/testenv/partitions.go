package testenv

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// PartitionedLoop makes a loop device of that size until the test ends, for a test that makes partitions.
func PartitionedLoop(t testing.TB, size int64) (device string) {
	t.Helper()
	NeedRoot(t)
	NeedProgram(t, "losetup")
	return Loop(t, Image(t, size), "512")
}

// Unmount unmounts, and waits for open files below the mount point, as RemovePartitions does for partitions.
func Unmount(t testing.TB, target string) {
	t.Helper()
	Eventually(t, "unmounting "+target, func() error {
		err := unix.Unmount(target, 0)
		if err != nil && !errors.Is(err, unix.EBUSY) {
			t.Fatalf("unmounting %s: %v", target, err)
		}
		return err
	})
}

// Partitions returns the numbers of a device's partitions in the kernel, in ascending order.
func Partitions(t testing.TB, device string) []int {
	t.Helper()
	name := filepath.Base(device)
	files, err := filepath.Glob("/sys/block/" + name + "/" + name + "p*/partition")
	if err != nil {
		t.Fatal(err)
	}
	var numbers []int
	for _, file := range files {
		text, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			continue // It was removed meanwhile.
		}
		number, parseErr := strconv.Atoi(strings.TrimSpace(string(text)))
		if err := errors.Join(err, parseErr); err != nil {
			t.Fatal(err)
		}
		numbers = append(numbers, number)
	}
	slices.Sort(numbers)
	return numbers
}

// RemovePartitions removes a device's partitions from the kernel, as a reboot does. It waits for those that are open:
// the kernel closes the file behind a loop device some time after it is detached. A child that was forked and has not
// executed its own program yet keeps files open, too.
func RemovePartitions(t testing.TB, device string) {
	t.Helper()
	numbers := Partitions(t, device)
	if len(numbers) == 0 {
		return
	}
	f, err := os.Open(device)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, number := range numbers {
		partition := unix.BlkpgPartition{Pno: int32(number)}
		argument := unix.BlkpgIoctlArg{
			Op: unix.BLKPG_DEL_PARTITION, Datalen: int32(unsafe.Sizeof(partition)), Data: (*byte)(unsafe.Pointer(&partition)),
		}
		Eventually(t, fmt.Sprintf("removing partition %d of %s", number, device), func() error {
			_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKPG, uintptr(unsafe.Pointer(&argument)))
			if errno != 0 && errno != unix.ENXIO {
				return errno
			}
			return nil
		})
	}
}
