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

// linear is the only kind of target that is used: it shows a part of another device. A table has one or several, one
// behind the other.
type linear struct {
	rdev   uint64 // of the device below
	extent extent.Extent
}

// mapping is what the device mapper knows of a device.
type mapping struct {
	rdev uint64
	// active: it has a table and is not suspended.
	active bool
	shows  []linear
	// loaded: it has a table beside that one, which is not active yet. An agent ended between the two steps of loadTable.
	loaded bool
}

// isNoMapper reports whether an error of openMapper means that the kernel has no device mapper.
func isNoMapper(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO)
}

func openMapper() (*mapper, error) {
	f, err := os.OpenFile(mapperControl, os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return &mapper{f}, nil
}

func (m *mapper) Close() error { return m.control.Close() }

// dmRequest is the buffer of a request, which the kernel changes: the fixed part, and the targets. A target is a fixed
// part and a text.
type dmRequest struct {
	unix.DmIoctl
	targets [dmTargetsBytes]byte
}

const (
	// dmTargetsBytes is more than a volume of 16 pieces needs.
	dmTargetsBytes = 4096
	// dmTextBytes is the room for the text of a target.
	dmTextBytes = 64
	dmSpecBytes = int(unsafe.Sizeof(unix.DmTargetSpec{}))
	// dmTargetsOffset is where the targets begin. The kernel requires a multiple of 8.
	dmTargetsOffset = uint32((unsafe.Offsetof(dmRequest{}.targets) + 7) &^ 7)
)

func newRequest(uuid string) *dmRequest {
	r := &dmRequest{}
	// Of the interface's version, only the first number must be the kernel's.
	r.Version = [3]uint32{unix.DM_VERSION_MAJOR, 0, 0}
	r.Data_size, r.Data_start = uint32(unsafe.Sizeof(*r)), dmTargetsOffset
	copy(r.Uuid[:], uuid)
	return r
}

// data is the room for the targets.
func (r *dmRequest) data() []byte {
	return r.targets[uintptr(dmTargetsOffset)-unsafe.Offsetof(r.targets):]
}

// addTargets writes the targets into a request.
func (r *dmRequest) addTargets(targets []linear) error {
	const step = (dmSpecBytes + dmTextBytes + 7) &^ 7
	if len(targets)*step > len(r.data()) {
		return fmt.Errorf("device mapper: %d targets are too many", len(targets))
	}
	start := uint64(0)
	for i, l := range targets {
		// Each target says where the next one begins, from its own beginning.
		spec := unix.DmTargetSpec{Sector_start: start, Length: uint64(l.extent.Len() / sysfsSector), Next: uint32(step)}
		copy(spec.Target_type[:], "linear")
		at := r.data()[i*step:]
		copy(at, unsafe.Slice((*byte)(unsafe.Pointer(&spec)), dmSpecBytes))
		copy(at[dmSpecBytes:], fmt.Sprintf("%d:%d %d", unix.Major(l.rdev), unix.Minor(l.rdev), l.extent.Start/sysfsSector))
		start += spec.Length
	}
	r.Target_count = uint32(len(targets))
	return nil
}

// readTargets reads the targets from the answer to a request.
func (r *dmRequest) readTargets() ([]linear, error) {
	var targets []linear
	at := r.data()
	for range r.Target_count {
		if r.Flags&unix.DM_BUFFER_FULL_FLAG != 0 || len(at) < dmSpecBytes {
			return nil, fmt.Errorf("it is made of %d targets, which are too many", r.Target_count)
		}
		var spec unix.DmTargetSpec
		copy(unsafe.Slice((*byte)(unsafe.Pointer(&spec)), dmSpecBytes), at)
		text := cString(at[dmSpecBytes:])
		if kind := cString(spec.Target_type[:]); kind != "linear" {
			return nil, fmt.Errorf("it has a target of the kind %q", kind)
		}
		var major, minor uint32
		var start int64
		if _, err := fmt.Sscanf(text, "%d:%d %d", &major, &minor, &start); err != nil {
			return nil, fmt.Errorf("target %q: %w", text, err)
		}
		targets = append(targets, linear{unix.Mkdev(major, minor), extent.New(start*sysfsSector, int64(spec.Length)*sysfsSector)})
		// In an answer it is counted from the beginning of the first one.
		at = r.data()[min(int(spec.Next), len(r.data())):]
	}
	return targets, nil
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

// loadTable replaces the device's table. Reads and writes wait meanwhile. If this process ends between the two steps,
// the device has its old table. The other one claims the devices below, until clear removes it.
func (m *mapper) loadTable(uuid string, targets []linear) error {
	if err := m.load(uuid, targets); err != nil {
		return err
	}
	r := newRequest(uuid)
	// Resume: the kernel suspends the device before. File systems need not be frozen, because no byte moves.
	r.Flags = unix.DM_SKIP_LOCKFS_FLAG | unix.DM_NOFLUSH_FLAG
	return m.ioctl(unix.DM_DEV_SUSPEND, "resuming", r)
}

func (m *mapper) load(uuid string, targets []linear) error {
	r := newRequest(uuid)
	if err := r.addTargets(targets); err != nil {
		return err
	}
	return m.ioctl(unix.DM_TABLE_LOAD, "loading the table of", r)
}

// status returns ENXIO in its error if there is no such device.
func (m *mapper) status(uuid string) (mapping, error) { return m.readTable(uuid, 0) }

// readLoaded is status with the table that is loaded and not active.
func (m *mapper) readLoaded(uuid string) (mapping, error) {
	return m.readTable(uuid, unix.DM_QUERY_INACTIVE_TABLE_FLAG)
}

// clear removes the table that is loaded and not active.
func (m *mapper) clear(uuid string) error {
	return m.ioctl(unix.DM_TABLE_CLEAR, "clearing the table of", newRequest(uuid))
}

func (m *mapper) readTable(uuid string, flags uint32) (mapping, error) {
	r := newRequest(uuid)
	r.Flags = unix.DM_STATUS_TABLE_FLAG | unix.DM_NOFLUSH_FLAG | flags
	if err := m.ioctl(unix.DM_TABLE_STATUS, "status of", r); err != nil {
		return mapping{}, err
	}
	found := mapping{rdev: r.Dev, loaded: r.Flags&unix.DM_INACTIVE_PRESENT_FLAG != 0, active: r.Flags&unix.DM_ACTIVE_PRESENT_FLAG != 0 && r.Flags&unix.DM_SUSPEND_FLAG == 0}
	var err error
	if found.shows, err = r.readTargets(); err != nil {
		return found, fmt.Errorf("device mapper: %s: %w", uuid, err)
	}
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
