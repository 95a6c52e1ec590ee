package faults

import (
	"errors"
	"net/rpc"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/testenv"
)

// faultyDisk is a disk with faults that the test sets.
type faultyDisk struct {
	t      testing.TB
	path   string // of the loop device
	sector int64
	calls  *rpc.Client
}

// pipes are both directions of a connection.
type pipes struct {
	*os.File
	in *os.File
}

func (p pipes) Write(b []byte) (int, error) { return p.in.Write(b) }
func (p pipes) Close() error                { return errors.Join(p.File.Close(), p.in.Close()) }

// newFaultyDisk makes an empty disk, and removes it when the test ends.
func newFaultyDisk(t testing.TB, size, sector int64) *faultyDisk {
	t.Helper()
	testenv.NeedRoot(t)
	testenv.NeedFile(t, "/dev/fuse")
	testenv.NeedProgram(t, "mkfs.ext4", "e2fsck", "resize2fs", "blkid", "wipefs", "sgdisk", "sfdisk", "parted")
	d := &faultyDisk{t: t, sector: sector}
	d.start(t.TempDir())
	d.call("Attach", Geometry{size, sector}, &d.path)
	// Another test may have left partitions on the loop device: it keeps them when it is detached.
	testenv.RemovePartitions(t, d.path)
	t.Cleanup(func() {
		// Requests that still wait get an answer.
		d.heal()
		d.call("Restore", 0, new(bool))
		d.detach()
	})
	if dio, err := os.ReadFile(d.sysfsPath("loop/dio")); err != nil || strings.TrimSpace(string(dio)) != "1" {
		t.Fatalf("the loop device does not use direct I/O: %s, %v", dio, err)
	}
	return d
}

// start starts the process that serves the disk.
func (d *faultyDisk) start(dir string) {
	d.t.Helper()
	theirIn, in, err := os.Pipe()
	if err != nil {
		d.t.Fatal(err)
	}
	out, theirOut, err := os.Pipe()
	if err != nil {
		d.t.Fatal(err)
	}
	server := exec.Command("/proc/self/exe")
	server.Env = append(os.Environ(), serverVariable+"="+dir)
	server.Stdin, server.Stdout, server.Stderr = theirIn, theirOut, os.Stderr
	server.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := server.Start(); err != nil {
		d.t.Fatal(err)
	}
	theirIn.Close()
	theirOut.Close()
	d.calls = rpc.NewClient(pipes{out, in})
	d.t.Cleanup(func() {
		d.calls.Close()
		// It ends by itself, unless it is broken.
		timer := time.AfterFunc(10*time.Second, func() { server.Process.Kill() })
		defer timer.Stop()
		if err := server.Wait(); err != nil {
			d.t.Errorf("the server of the disk: %v", err)
		}
	})
}

func (d *faultyDisk) call(method string, args, reply any) {
	d.t.Helper()
	if err := d.calls.Call("Disk."+method, args, reply); err != nil {
		d.t.Fatalf("the faulty disk: %s: %v", method, err)
	}
}

// setFault sets a fault, and restarts the counts.
func (d *faultyDisk) setFault(f Fault) { d.t.Helper(); d.call("Set", f, new(bool)) }

// heal ends the fault, and returns the requests since it was set.
func (d *faultyDisk) heal() (c Counts) { d.t.Helper(); d.call("Heal", 0, &c); return c }

// counts returns the requests since the fault was set.
func (d *faultyDisk) counts() (c Counts) { d.t.Helper(); d.call("Counts", 0, &c); return c }

// digest reads the bytes on the medium.
func (d *faultyDisk) digest(e extent.Extent) (g Digest) {
	d.t.Helper()
	d.call("Digest", Span{e.Start, e.Len()}, &g)
	return g
}

func (d *faultyDisk) sysfsPath(name string) string {
	return filepath.Join("/sys/block", filepath.Base(d.path), name)
}

// detach detaches the loop device, and removes everything that the kernel keeps of it.
func (d *faultyDisk) detach() {
	d.t.Helper()
	testenv.RemovePartitions(d.t, d.path)
	file := testenv.BackingFile(d.t, d.path)
	loop, err := os.OpenFile(d.path, os.O_RDONLY, 0)
	if err == nil {
		err = errors.Join(unix.IoctlSetInt(int(loop.Fd()), unix.LOOP_CLR_FD, 0), loop.Close())
	}
	if err != nil {
		d.t.Errorf("detaching %s: %v", d.path, err)
	}
	testenv.AwaitDetached(d.t, d.path, file)
}
