package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// blockDevice is an open block device. All I/O is O_DIRECT: a write returns its own errors, and a read shows what the
// device holds.
type blockDevice struct {
	layout
	path string
	name string // the kernel's, such as nvme0n1
	sys  string // its directory in sysfs
	f    *os.File

	mu     sync.Mutex // held while bounce is used
	bounce []byte     // aligned for O_DIRECT
}

// bounceBytes is the length of the buffer through which ReadAt and WriteAt copy: their callers' bytes are not aligned.
const bounceBytes = 1 << 20

// openDevice opens a block device with O_DIRECT and the given further flags. readLayout sets the layout.
func openDevice(path string, flags int) (*blockDevice, error) {
	f, err := os.OpenFile(path, flags|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, mapOpenError(err)
	}
	d := &blockDevice{path: path, f: f}
	var st unix.Stat_t
	if err := unix.Fstat(d.fd(), &st); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		f.Close()
		return nil, fmt.Errorf("%s is not a block device", path)
	}
	link := fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	if d.sys, err = filepath.EvalSymlinks(link); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	d.name = filepath.Base(d.sys)
	return d, nil
}

// geometry reads the device's size and sector size, in bytes.
func (d *blockDevice) geometry() (size, sector int64, err error) {
	if size, err = d.f.Seek(0, io.SeekEnd); err != nil {
		return 0, 0, fmt.Errorf("size of %s: %w", d.path, err)
	}
	s, err := unix.IoctlGetUint32(d.fd(), unix.BLKSSZGET)
	if err != nil {
		return 0, 0, fmt.Errorf("sector size of %s: %w", d.path, err)
	}
	return size, int64(s), nil
}

// readLayout sets the layout, if the device has room for a table.
func (d *blockDevice) readLayout() error {
	size, sector, err := d.geometry()
	if err != nil {
		return err
	}
	if d.layout, err = newLayout(size, sector); err != nil {
		return fmt.Errorf("%s: %w", d.path, err)
	}
	return nil
}

// deviceNumber is the device's number.
func (d *blockDevice) deviceNumber() (uint64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(d.fd(), &st); err != nil {
		return 0, fmt.Errorf("%s: %w", d.path, err)
	}
	return st.Rdev, nil
}

// lacksPartitions reports whether the kernel gives the device no partitions, neither by itself nor by BLKPG. Such are
// devices of the device mapper, zram and others whose driver has none.
func (d *blockDevice) lacksPartitions() bool {
	if _, err := os.Stat(filepath.Join(d.sys, "dm")); err == nil {
		return true
	}
	most, err := readNumber(filepath.Join(d.sys, "ext_range"))
	return err == nil && most <= 1
}

func (d *blockDevice) fd() int { return int(d.f.Fd()) }

func (d *blockDevice) Close() error { return d.f.Close() }

// buffer returns the bounce buffer. The caller holds mu.
func (d *blockDevice) buffer() []byte {
	if d.bounce == nil {
		d.bounce = alignedBuffer()
	}
	return d.bounce
}

// ReadAt reads whole sectors: off and len(b) must be multiples of the sector size.
func (d *blockDevice) ReadAt(b []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	done := 0
	for done < len(b) {
		chunk := d.buffer()[:min(len(b)-done, bounceBytes)]
		if err := d.readAligned(chunk, off+int64(done)); err != nil {
			return done, err
		}
		done += copy(b[done:], chunk)
	}
	return done, nil
}

// readAligned reads whole sectors into memory that is aligned for O_DIRECT.
func (d *blockDevice) readAligned(b []byte, off int64) error {
	for len(b) > 0 {
		n, err := unix.Pread(d.fd(), b, off)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", d.path, err)
		}
		if n == 0 {
			return fmt.Errorf("read %s: %w", d.path, io.ErrUnexpectedEOF)
		}
		b, off = b[n:], off+int64(n)
	}
	return nil
}

// WriteAt writes whole sectors: off and len(b) must be multiples of the sector size.
func (d *blockDevice) WriteAt(b []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	done := 0
	for done < len(b) {
		n := copy(d.buffer(), b[done:])
		if err := d.writeAligned(d.bounce[:n], off+int64(done)); err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// writeAligned writes whole sectors from memory that is aligned for O_DIRECT.
func (d *blockDevice) writeAligned(b []byte, off int64) error {
	for len(b) > 0 {
		n, err := unix.Pwrite(d.fd(), b, off)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("write %s: %w", d.path, err)
		}
		if n == 0 {
			return fmt.Errorf("write %s: %w", d.path, io.ErrShortWrite)
		}
		b, off = b[n:], off+int64(n)
	}
	return nil
}

// Sync flushes the device's own cache.
func (d *blockDevice) Sync() error {
	for {
		err := unix.Fsync(d.fd())
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("fsync %s: %w", d.path, err)
		}
		return nil
	}
}

// alignedBuffer returns bounceBytes at an address that O_DIRECT accepts.
func alignedBuffer() []byte { return alignedBytes(bounceBytes) }

// alignedBytes returns n bytes at an address that O_DIRECT accepts.
func alignedBytes(n int) []byte {
	const page = 4096
	b := make([]byte, n+page)
	skip := (page - int(uintptr(unsafe.Pointer(&b[0]))%page)) % page
	return b[skip : skip+n : skip+n]
}

// mapOpenError maps an error of open to this package's errors.
func mapOpenError(err error) error {
	switch {
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%w: %w", ErrInUse, err)
	case mayBeGone(err):
		return fmt.Errorf("%w: %w", ErrOutOfService, err)
	}
	return err
}

// mayBeGone reports whether an error may mean that the device does not answer any more. The caller reads the table
// next, which shows whether it does. A disk that was pulled out has size 0, and fails writes with ENOSPC, like a full
// thin device.
func mayBeGone(err error) bool {
	for _, errno := range []error{unix.EIO, unix.ENXIO, unix.ENODEV, unix.EREMOTEIO, unix.ESHUTDOWN, unix.ENOSPC, io.ErrUnexpectedEOF} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// lock takes the lock of the device, which agents and udev use to exclude each other while a table is made or first
// read. It is not held for long: udev takes it, too, before it looks at a partition, and would wait for ever.
func (d *blockDevice) lock(ctx context.Context) error {
	err := await(ctx, lockTimeout, func() (bool, error) {
		err := unix.Flock(d.fd(), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, unix.EINTR) {
			return false, nil
		}
		return err == nil, err
	})
	if errors.Is(err, errTimeout) {
		return fmt.Errorf("%s is locked by another process: %w", d.path, ErrInUse)
	}
	if err != nil {
		return fmt.Errorf("locking %s: %w", d.path, err)
	}
	return nil
}

// unlock cannot fail on an open device, and closing it does the same.
func (d *blockDevice) unlock() { _ = unix.Flock(d.fd(), unix.LOCK_UN) }

// Times to wait for another process, which usually ends within milliseconds.
const (
	lockTimeout = 10 * time.Second // for the lock: udev's probing of a slow disk
	nodeTimeout = 5 * time.Second  // for a device node: devtmpfs makes it at once, others may not
	busyTimeout = 2 * time.Second  // for a process that only looks at a partition
)

// errTimeout: the condition of await was not met in time.
var errTimeout = errors.New("waited too long")

// await calls done until it returns true or an error, ctx ends, or the time is up. The first calls follow quickly on
// each other: nothing announces the conditions that are awaited here.
func await(ctx context.Context, timeout time.Duration, done func() (bool, error)) error {
	deadline := time.Now().Add(timeout)
	for pause := 250 * time.Microsecond; ; pause = min(2*pause, 50*time.Millisecond) {
		if ok, err := done(); ok || err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return errTimeout
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}
