package faults

import (
	"errors"
	"net/rpc"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/testenv"
)

const mib = int64(1) << 20

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
	testenv.NeedProgram(t, "mkfs.ext4", "e2fsck", "resize2fs", "blkid", "wipefs", "delpart", "sgdisk", "sfdisk", "parted")
	d := &faultyDisk{t: t, sector: sector}
	d.start(t.TempDir())
	d.call("Attach", Geometry{size, sector}, &d.path)
	// Another test may have left partitions on the loop device: it keeps them when it is detached.
	d.removePartitions()
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

// removePartitions removes all partitions from the kernel, as a reboot does. Nothing may be mounted.
func (d *faultyDisk) removePartitions() {
	d.t.Helper()
	loop, err := os.OpenFile(d.path, os.O_RDONLY, 0)
	if err != nil {
		d.t.Fatal(err)
	}
	defer loop.Close()
	found, err := filepath.Glob(d.sysfsPath(filepath.Base(d.path) + "p*/partition"))
	if err != nil {
		d.t.Fatal(err)
	}
	for _, name := range found {
		text, err := os.ReadFile(name)
		if err != nil {
			d.t.Fatal(err)
		}
		number, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err != nil {
			d.t.Fatal(err)
		}
		part := unix.BlkpgPartition{Pno: int32(number)}
		arg := unix.BlkpgIoctlArg{Op: unix.BLKPG_DEL_PARTITION, Datalen: int32(unsafe.Sizeof(part)), Data: (*byte)(unsafe.Pointer(&part))}
		// Another process may still have it open.
		eventually(d.t, time.Minute, func() error {
			if _, _, errno := unix.Syscall(unix.SYS_IOCTL, loop.Fd(), unix.BLKPG, uintptr(unsafe.Pointer(&arg))); errno != 0 {
				return errno
			}
			return nil
		})
	}
}

// detach detaches the loop device, and removes everything that the kernel keeps of it.
func (d *faultyDisk) detach() {
	d.t.Helper()
	d.removePartitions()
	loop, err := os.OpenFile(d.path, os.O_RDONLY, 0)
	if err == nil {
		err = errors.Join(unix.IoctlSetInt(int(loop.Fd()), unix.LOOP_CLR_FD, 0), loop.Close())
	}
	if err != nil {
		d.t.Errorf("detaching %s: %v", d.path, err)
	}
	eventually(d.t, time.Minute, func() error {
		if _, err := os.Stat(d.sysfsPath("loop")); err == nil {
			return errors.New("it is still bound")
		}
		return nil
	})
}

// eventually waits until f succeeds.
func eventually(t testing.TB, timeout time.Duration, f func() error) {
	t.Helper()
	deadline := time.Now().Add(timeout)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %s: %v", timeout, err)
		}
		<-time.After(5 * time.Millisecond)
	}
}
