package disk

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/testenv"
)

// loopDisk is a disk for a test: a loop device over a sparse file.
type loopDisk struct {
	path  string // of the device
	image string // of the file
	// wipeMethods is the configuration of Disks that open opens. Tests change it between two calls.
	wipeMethods *wipeMethods
}

// newLoopDisk makes a disk, and removes it when the test ends.
func newLoopDisk(t testing.TB, size int64, sector int) *loopDisk {
	t.Helper()
	testenv.NeedRoot(t)
	testenv.NeedProgram(t, "losetup", "blkid", "wipefs")
	l := &loopDisk{image: testenv.Image(t, size), wipeMethods: defaultWipeMethods()}
	l.path = testenv.Loop(t, l.image, strconv.Itoa(sector))
	// A loop device keeps partitions when it is detached, so they are removed before.
	l.removePartitions(t)
	t.Cleanup(func() { l.removePartitions(t) })
	return l
}

// addPartition adds a partition in the kernel.
func (l *loopDisk) addPartition(t testing.TB, index int, e extent.Extent) {
	t.Helper()
	d, err := openDevice(l.path, os.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.blkpg(unix.BLKPG_ADD_PARTITION, index, e); err != nil {
		t.Fatal(err)
	}
}

// removePartitions removes all partitions from the kernel, as a reboot does.
func (l *loopDisk) removePartitions(t testing.TB) {
	t.Helper()
	d, err := openDevice(l.path, os.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	mapped, err := d.findMapped()
	if err != nil {
		t.Fatal(err)
	}
	if mapped != nil {
		defer mapped.mapper.Close()
		for guid := range mapped.found {
			if err := mapped.detach(context.Background(), entry{guid: guid}, busyTimeout); err != nil {
				t.Error(err)
			}
		}
	}
	ours, err := d.findLoops()
	if err != nil {
		t.Fatal(err)
	}
	stacked, err := d.findLinear(ours)
	if err != nil {
		t.Fatal(err)
	}
	if stacked != nil {
		defer stacked.mapper.Close()
		for guid := range stacked.found {
			if err := await(context.Background(), busyTimeout, func() (bool, error) {
				err := stacked.detach(guid)
				return !errors.Is(err, ErrInUse), ignoreInUse(err)
			}); err != nil {
				t.Errorf("%s: %v", guid, err)
			}
		}
	}
	attached, err := d.partitions()
	if err != nil {
		t.Fatal(err)
	}
	for index := range attached {
		if err := d.detach(context.Background(), index, busyTimeout); err != nil {
			t.Error(err)
		}
	}
	for guid := range ours.found {
		e := entry{guid: guid, extent: ours.found[guid].extent}
		if err := ours.detach(context.Background(), e, busyTimeout); err != nil {
			t.Error(err)
		}
	}
}

// tryProgram runs a program that may fail.
func tryProgram(name string, args ...string) error { return exec.Command(name, args...).Run() }
