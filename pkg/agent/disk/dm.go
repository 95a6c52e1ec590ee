package disk

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/berthdev/berth/pkg/extent"
)

// mapperControl exists where the kernel has the device mapper.
const mapperControl = "/dev/mapper/control"

// mapper sends requests to the kernel's device mapper. A device is named by its uuid.
type mapper struct{ control *os.File }

// linear is the only kind of table that is used: a device that shows a part of another.
type linear struct {
	rdev   uint64 // of the disk
	extent extent.Extent
}

// mapping is what the device mapper knows of a device.
type mapping struct {
	rdev uint64
	// active: it has a table and is not suspended.
	active bool
	shows  linear
}

func openMapper() (*mapper, error) {
	f, err := os.OpenFile(mapperControl, os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return &mapper{f}, nil
}

func (m *mapper) Close() error { return m.control.Close() }

// dmRequest is the buffer of a request, which the kernel changes: the fixed part, one target, and the target's text.
type dmRequest struct {
	unix.DmIoctl
	unix.DmTargetSpec
	text [256]byte
}

// dmTargetOffset is where the variable part begins. The fixed part of the request ends in padding, and the kernel
// requires the next part at a multiple of 8.
const dmTargetOffset = uint32(unsafe.Offsetof(dmRequest{}.DmTargetSpec))

func newRequest(uuid string) *dmRequest {
	r := &dmRequest{}
	// Of the interface's version, only the first number must be the kernel's.
	r.Version = [3]uint32{unix.DM_VERSION_MAJOR, 0, 0}
	r.Data_size, r.Data_start = uint32(unsafe.Sizeof(*r)), dmTargetOffset
	copy(r.Uuid[:], uuid)
	return r
}

func (m *mapper) ioctl(request uintptr, what string, r *dmRequest) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, m.control.Fd(), request, uintptr(unsafe.Pointer(r)))
	if errno != 0 {
		return fmt.Errorf("device mapper, %s %s: %w", what, cString(r.Uuid[:]), errno)
	}
	return nil
}

// create makes a device without table. EBUSY: a device with that uuid or name exists.
func (m *mapper) create(uuid, name string) error {
	r := newRequest(uuid)
	copy(r.Name[:], name)
	return m.ioctl(unix.DM_DEV_CREATE, "creating", r)
}

// loadTable replaces the device's table by l. Reads and writes wait meanwhile. If this process ends between the two
// steps, the device has its old table.
func (m *mapper) loadTable(uuid string, l linear) error {
	r := newRequest(uuid)
	r.Target_count = 1
	r.Length = uint64(l.extent.Len() / sysfsSector)
	copy(r.Target_type[:], "linear")
	copy(r.text[:], fmt.Sprintf("%d:%d %d", unix.Major(l.rdev), unix.Minor(l.rdev), l.extent.Start/sysfsSector))
	if err := m.ioctl(unix.DM_TABLE_LOAD, "loading the table of", r); err != nil {
		return err
	}
	r = newRequest(uuid)
	// Resume: the kernel suspends the device before. File systems need not be frozen, because no byte moves.
	r.Flags = unix.DM_SKIP_LOCKFS_FLAG | unix.DM_NOFLUSH_FLAG
	return m.ioctl(unix.DM_DEV_SUSPEND, "resuming", r)
}

// status returns ENXIO in its error if there is no such device.
func (m *mapper) status(uuid string) (mapping, error) {
	r := newRequest(uuid)
	r.Flags = unix.DM_STATUS_TABLE_FLAG | unix.DM_NOFLUSH_FLAG
	if err := m.ioctl(unix.DM_TABLE_STATUS, "status of", r); err != nil {
		return mapping{}, err
	}
	found := mapping{rdev: r.Dev, active: r.Flags&unix.DM_ACTIVE_PRESENT_FLAG != 0 && r.Flags&unix.DM_SUSPEND_FLAG == 0}
	if r.Target_count == 0 {
		return found, nil
	}
	if kind := cString(r.Target_type[:]); r.Target_count != 1 || kind != "linear" {
		return found, fmt.Errorf("device mapper: %s is made of %d targets, the first of the kind %s", uuid, r.Target_count, kind)
	}
	var major, minor uint32
	var start int64
	if _, err := fmt.Sscanf(cString(r.text[:]), "%d:%d %d", &major, &minor, &start); err != nil {
		return found, fmt.Errorf("device mapper: table %q of %s: %w", cString(r.text[:]), uuid, err)
	}
	found.shows = linear{unix.Mkdev(major, minor), extent.New(start*sysfsSector, int64(r.Length)*sysfsSector)}
	return found, nil
}

// remove removes a device. EBUSY: a process has it open, and it stays.
func (m *mapper) remove(uuid string) error {
	err := m.ioctl(unix.DM_DEV_REMOVE, "removing", newRequest(uuid))
	if errors.Is(err, unix.ENXIO) {
		return nil
	}
	return err
}

func cString(b []byte) string {
	text, _, _ := bytes.Cut(b, []byte{0})
	return strings.Clone(string(text))
}
