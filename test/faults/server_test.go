package faults

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/rpc"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Op is a kind of request to a disk. Several can be combined.
type Op int

// The requests of the loop device to its file.
const (
	Read  Op = 1 << iota
	Write    // of data
	Zero     // punching holes, zeroing a range
	Sync
	numOps = 4

	Change = Write | Zero
	Any    = Read | Change | Sync
)

func (o Op) String() string {
	return map[Op]string{Read: "read", Write: "write", Zero: "zero", Sync: "fsync", Change: "change", Any: "request"}[o]
}

// Action is the effect of a fault on a request.
type Action int

// The faults.
const (
	Fail     Action = iota + 1 // EIO
	Full                       // ENOSPC for writes that need new room; others succeed
	Drop                       // the disk acknowledges it, and does nothing
	Hang                       // no answer before Heal
	PowerOff                   // neither this request nor any after it is done; EIO
)

// Fault says which requests get which fault.
type Fault struct {
	Op    Op
	At    int // the first one, counted from 0 since the fault was set
	Count int // how many of them; 0: all from then on
	Do    Action
	// Except, if it has a length, is where requests do not get the fault.
	Except Span
}

// Counts are the requests to a disk since the last fault was set.
type Counts struct {
	Ops  [numOps]int // by kind: Read, Write, Zero, Sync
	Hits int         // requests that got the fault
}

func (c Counts) of(o Op) int {
	sum := 0
	for i, n := range c.Ops {
		if o&(1<<i) != 0 {
			sum += n
		}
	}
	return sum
}

// server is a disk with the faults that the test sets. Its exported methods are called over RPC.
type server struct {
	file   int // the disk's
	sector int64

	mu             sync.Mutex
	medium         *medium
	saved          mediumImage
	fault          Fault
	counts         Counts
	off            bool
	liesAboutFsync bool          // about fsync
	withoutZeroing bool          // it can only read, write and flush
	healed         chan struct{} // closed by Heal
	every          time.Duration // between two requests
	next           time.Time     // when the next request is done
}

// serve mounts the file system, and answers calls over standard input and output until the caller has ended.
func serve(dir string) error {
	s := &server{medium: newMedium(0), healed: make(chan struct{})}
	options := &fs.Options{
		MountOptions:    fuse.MountOptions{FsName: "faulty", Name: "faulty", DirectMountStrict: true, MaxWrite: 256 << 10, MaxBackground: 64, DisableXAttrs: true},
		NullPermissions: true,
	}
	if _, err := fs.Mount(dir, &root{server: s}, options); err != nil {
		return err
	}
	// Not by package os: its poller would send a request to the file system, which this process serves.
	var err error
	if s.file, err = unix.Open(filepath.Join(dir, diskName), unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0); err != nil {
		return fmt.Errorf("opening the disk's file: %w", err)
	}
	// The open file keeps the file system alive, so its mount is removed. Its own mount namespace would keep copies of
	// the mounts of other tests.
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmounting the disk's file system: %w", err)
	}
	calls := rpc.NewServer()
	if err := calls.RegisterName("Disk", s); err != nil {
		return err
	}
	calls.ServeConn(struct {
		io.Reader
		io.Writer
		io.Closer
	}{os.Stdin, os.Stdout, os.Stdin})
	return nil
}

// countAndGetFault counts a request, and returns the fault that it gets, if any.
func (s *server) countAndGetFault(op Op, at int64, grows func() bool) Action {
	s.mu.Lock()
	exempt := op != Sync && at >= s.fault.Except.Off && at < s.fault.Except.Off+s.fault.Except.Length
	for i := range numOps {
		if op == 1<<i && !exempt {
			s.counts.Ops[i]++
		}
	}
	var until time.Time
	if s.every > 0 {
		if now := time.Now(); s.next.Before(now) {
			s.next = now
		}
		s.next = s.next.Add(s.every)
		until = s.next
	}
	do, healed := Action(0), s.healed
	if !exempt {
		do = s.faultOfLast(op, grows)
	} else if s.off {
		do = Fail
	}
	s.mu.Unlock()
	if !until.IsZero() {
		<-time.After(time.Until(until))
	}
	if do == Hang {
		<-healed
		do = 0
	}
	return do
}

// faultOfLast is the fault of the request that was counted last.
func (s *server) faultOfLast(op Op, grows func() bool) Action {
	if s.off {
		return Fail
	}
	f := s.fault
	n := s.counts.of(f.Op) - 1
	if f.Do == 0 || op&f.Op == 0 || n < f.At || f.Count > 0 && n >= f.At+f.Count || f.Do == Full && !grows() {
		return 0
	}
	s.counts.Hits++
	s.off = f.Do == PowerOff
	return f.Do
}

// change does a write, unless it gets a fault.
func (s *server) change(op Op, c change) syscall.Errno {
	switch s.countAndGetFault(op, c.off, func() bool { return c.data != nil && s.medium.now.grows(c.off, c.length) }) {
	case Fail, PowerOff:
		return syscall.EIO
	case Full:
		return syscall.ENOSPC
	case Drop:
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.off+c.length > s.medium.size {
		return syscall.EFBIG
	}
	s.medium.change(c)
	return 0
}

func (s *server) read(b []byte, off int64) (int, syscall.Errno) {
	switch s.countAndGetFault(Read, off, nil) {
	case Fail, PowerOff:
		return 0, syscall.EIO
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	b = b[:max(0, min(int64(len(b)), s.medium.size-off))]
	s.medium.now.read(b, off)
	return len(b), 0
}

func (s *server) sync() syscall.Errno {
	switch s.countAndGetFault(Sync, 0, nil) {
	case Fail, PowerOff:
		return syscall.EIO
	case Drop:
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.liesAboutFsync {
		s.medium.flush()
	}
	return 0
}

// Geometry describes a new disk.
type Geometry struct{ Size, Sector int64 }

// Attach makes an empty disk, and attaches it to a loop device.
func (s *server) Attach(g Geometry, path *string) error {
	s.mu.Lock()
	s.medium, s.sector = newMedium(g.Size), g.Sector
	s.mu.Unlock()
	return s.Reattach(0, path)
}

// Reattach attaches the disk to a loop device.
func (s *server) Reattach(_ int, path *string) error {
	control, err := unix.Open("/dev/loop-control", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("loop-control: %w", err)
	}
	defer unix.Close(control)
	for {
		n, err := unix.IoctlRetInt(control, unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return fmt.Errorf("taking a loop device: %w", err)
		}
		*path = fmt.Sprintf("/dev/loop%d", n)
		err = s.configure(*path)
		if !errors.Is(err, unix.EBUSY) { // or another process was faster
			return err
		}
	}
}

func (s *server) configure(path string) error {
	loop, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(loop)
	config := unix.LoopConfig{Fd: uint32(s.file), Size: uint32(s.sector)}
	config.Info.Flags = unix.LO_FLAGS_DIRECT_IO
	copy(config.Info.File_name[:], "faulty disk")
	return unix.IoctlLoopConfigure(loop, &config)
}

// Set sets the fault, and restarts the counts.
func (s *server) Set(f Fault, _ *bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault, s.counts = f, Counts{}
	return nil
}

// Heal ends all faults, and returns the counts.
func (s *server) Heal(_ int, counts *Counts) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	*counts = s.counts
	s.fault, s.every, s.liesAboutFsync = Fault{}, 0, false
	close(s.healed)
	s.healed = make(chan struct{})
	return nil
}

// Counts returns the counts so far.
func (s *server) Counts(_ int, counts *Counts) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	*counts = s.counts
	return nil
}

// Pace limits the disk to that many requests a second.
func (s *server) Pace(perSecond int, _ *bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.every = time.Second / time.Duration(perSecond)
	return nil
}

// Lie makes every fsync from now on do nothing.
func (s *server) Lie(_ int, _ *bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.liesAboutFsync = true
	return nil
}

// Plain makes the disk support no zeroing.
func (s *server) Plain(_ int, _ *bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.withoutZeroing = true
	return nil
}

// Cut describes how much of the cache survives a power cut.
type Cut struct {
	Kept    int // percentage of the sectors
	Ordered bool
	Seed    uint64
	// Whole is the span in which 4 KiB are written as a whole or not at all, and not only sectors.
	Whole Span
}

// PowerOn ends a power cut, and returns how many changes were in the cache.
func (s *server) PowerOn(c Cut, pending *int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	*pending = len(s.medium.pending)
	s.medium.cut(s.sector, c.Whole, c.Kept, c.Ordered, c.Seed)
	s.off = false
	return nil
}

// Save keeps the content of the disk for Restore.
func (s *server) Save(_ int, _ *bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.medium.flush()
	s.saved = s.medium.now.clone()
	return nil
}

// Restore restores the content of the disk at Save.
func (s *server) Restore(_ int, _ *bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.medium.now, s.medium.durable, s.medium.pending, s.off = s.saved.clone(), s.saved.clone(), nil, false
	return nil
}

// Span is a run of bytes of the disk.
type Span struct{ Off, Length int64 }

// Digest describes the bytes of a span.
type Digest struct {
	Hash [sha256.Size]byte
	Zero bool
}

// Digest reads the medium without the kernel.
func (s *server) Digest(span Span, d *Digest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	d.Hash, d.Zero = s.medium.now.sum(span.Off, span.Length)
	return nil
}
