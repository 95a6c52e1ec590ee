package disk

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/berthdev/berth/test/testenv"
)

// loop is a disk for a test: a loop device over a sparse file.
type loop struct {
	path  string // of the device
	image string // of the file
}

// newLoop makes a disk, and takes it down when the test ends.
func newLoop(t testing.TB, size int64, sector int) *loop {
	t.Helper()
	testenv.NeedRoot(t)
	testenv.NeedProgram(t, "losetup", "blkid", "wipefs")
	l := &loop{image: filepath.Join(t.TempDir(), "disk.img")}
	f, err := os.Create(l.image)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	f.Close()
	l.path = strings.TrimSpace(run(t, "losetup", "--find", "--show", "--sector-size", strconv.Itoa(sector), l.image))
	// A loop device keeps partitions over its detachment: they are taken away before.
	l.forget(t)
	t.Cleanup(func() {
		l.forget(t)
		run(t, "losetup", "--detach", l.path)
	})
	return l
}

// forget makes the kernel forget all partitions, as a reboot does.
func (l *loop) forget(t testing.TB) {
	t.Helper()
	d, err := openDevice(l.path, os.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	mapped, err := d.mapped()
	if err != nil {
		t.Fatal(err)
	}
	if mapped != nil {
		defer mapped.mapper.Close()
		for guid := range mapped.found {
			if err := mapped.detach(context.Background(), entry{guid: guid}); err != nil {
				t.Error(err)
			}
		}
	}
	attached, err := d.partitions()
	if err != nil {
		t.Fatal(err)
	}
	for index := range attached {
		if err := d.detach(context.Background(), index); err != nil {
			t.Error(err)
		}
	}
	ours, err := d.loops()
	if err != nil {
		t.Fatal(err)
	}
	for guid := range ours.found {
		e := entry{guid: guid, extent: ours.found[guid].extent}
		if err := ours.detach(context.Background(), e); err != nil {
			t.Error(err)
		}
	}
}

// run runs a program that must succeed and returns its output.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("%s %v: %v\n%s%s", name, args, err, out, exit.Stderr)
		}
		t.Fatalf("%s %v: %v", name, args, err)
	}
	return string(out)
}

// tryRun runs a program that may fail.
func tryRun(name string, args ...string) error { return exec.Command(name, args...).Run() }
