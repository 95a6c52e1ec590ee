package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthdev/berth/pkg/extent"
)

// loopAttacher attaches the entries behind the last number that the kernel gives to a partition. Each volume is a loop
// device over its part of the disk, with direct I/O.
//
// The kernel allows two loop devices to show the same bytes, so this package must not make a second one. It recognizes
// its own by loopFilePrefix, across restarts as well.
type loopAttacher struct {
	disk  *blockDevice
	found map[string]loopDevice // by partition
}

// loopDevice is a loop device over a part of the disk that has loopFilePrefix.
type loopDevice struct {
	path   string
	extent extent.Extent
}

// loopFilePrefix and the partition's GUID are what the kernel keeps as the name of the backing file.
const loopFilePrefix = "berth/"

// findLoops lists the loop devices over parts of the disk that have loopFilePrefix.
func (d *blockDevice) findLoops() (*loopAttacher, error) {
	l := &loopAttacher{disk: d, found: map[string]loopDevice{}}
	// An unbound loop device has no such folder.
	bound, err := filepath.Glob("/sys/block/loop*/loop")
	if err != nil {
		return nil, fmt.Errorf("loop devices: %w", err)
	}
	for _, dir := range bound {
		guid, device, err := l.read(dir)
		// sysfs returns ENODEV for a device that is removed while it is read.
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) {
			continue // unbound meanwhile
		}
		if err != nil {
			return nil, err
		}
		if guid == "" {
			continue
		}
		if other, twice := l.found[guid]; twice {
			return nil, fmt.Errorf("%s and %s both show the volume %s: detach one of them with losetup --detach", other.path, device.path, guid)
		}
		l.found[guid] = device
	}
	return l, nil
}

// read reads one loop device. The GUID is empty if it is not one of ours over this disk.
func (l *loopAttacher) read(dir string) (guid string, device loopDevice, err error) {
	// A device that cannot be ours is not opened: it may hang.
	offset, err := readNumber(filepath.Join(dir, "offset"))
	if err != nil || offset == 0 {
		return "", loopDevice{}, err
	}
	path := "/dev/" + filepath.Base(filepath.Dir(dir))
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", loopDevice{}, err
	}
	defer f.Close()
	guid, e, err := l.status(f)
	return guid, loopDevice{path, e}, err
}

// status reads from a loop device which volume it shows, and where that lies.
func (l *loopAttacher) status(f *os.File) (guid string, e extent.Extent, err error) {
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if err != nil {
		return "", extent.Extent{}, fmt.Errorf("status of %s: %w", f.Name(), err)
	}
	rdev, err := l.disk.deviceNumber()
	if err != nil {
		return "", extent.Extent{}, err
	}
	guid, marked := volumeOfLoop(info)
	if !marked || info.Rdevice != rdev {
		return "", extent.Extent{}, nil
	}
	return guid, extent.New(int64(info.Offset), int64(info.Sizelimit)), nil
}

// volumeOfLoop returns the GUID of the volume that a loop device of ours shows.
func volumeOfLoop(info *unix.LoopInfo64) (guid string, marked bool) {
	name, _, _ := bytes.Cut(info.File_name[:], []byte{0})
	return strings.CutPrefix(string(name), loopFilePrefix)
}

// checkTable returns an error unless every loop device of ours shows a volume in its place.
func (l *loopAttacher) checkTable(t table) error {
	for guid, device := range l.found {
		e, err := t.volumeOrPiece(guid)
		if err == nil && (e.index <= MetaEntry || !e.matchesKernel(device.extent)) {
			err = fmt.Errorf("in the table it is at %v, in entry %d", e.extent, e.index)
		}
		if err != nil {
			return fmt.Errorf("%s shows the volume %s at %v, but: %w; detach it with losetup --detach, or reboot", device.path, guid, device.extent, err)
		}
	}
	return nil
}

// attach ensures that a loop device shows the volume, and returns its path.
func (l *loopAttacher) attach(ctx context.Context, e entry) (string, error) {
	device, ok := l.found[e.guid]
	var err error
	switch {
	case !ok:
		device, err = l.bind(ctx, e)
	case device.extent != e.extent:
		err = l.lengthen(device, e)
		device.extent = e.extent
	}
	if err != nil {
		return "", fmt.Errorf("attaching volume %s at %v of %s: %w", e.guid, e.extent, l.disk.path, err)
	}
	l.found[e.guid] = device
	return device.path, nil
}

// bind takes a free loop device for the volume. Other programs take loop devices as well, so a free one may be taken
// meanwhile.
func (l *loopAttacher) bind(ctx context.Context, e entry) (loopDevice, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return loopDevice{}, fmt.Errorf("volumes beyond the first %d of a disk need loop devices: %w", MetaEntry-1, err)
	}
	defer control.Close()
	device := loopDevice{extent: e.extent}
	err = await(ctx, busyTimeout, func() (bool, error) {
		number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return false, fmt.Errorf("taking a loop device: %w", err)
		}
		device.path = fmt.Sprintf("/dev/loop%d", number)
		err = l.configure(device.path, e)
		if errors.Is(err, unix.EBUSY) || errors.Is(err, os.ErrNotExist) {
			return false, nil
		}
		return err == nil, err
	})
	if errors.Is(err, errTimeout) {
		return loopDevice{}, fmt.Errorf("%s is always taken, or is not there: is the host's /dev mounted here?", device.path)
	}
	return device, err
}

// configure makes a free loop device show the volume.
func (l *loopAttacher) configure(path string, e entry) error {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	// The loop device keeps the open file that it gets. With the disk's own file it would also keep a lock that a killed
	// agent had just taken on it.
	backing, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", l.disk.fd()), os.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening %s once more: %w", l.disk.path, err)
	}
	defer backing.Close()
	config := unix.LoopConfig{Fd: uint32(backing.Fd()), Size: uint32(l.disk.sector)}
	config.Info.Offset, config.Info.Sizelimit = uint64(e.extent.Start), uint64(e.extent.Len())
	config.Info.Flags = unix.LO_FLAGS_DIRECT_IO
	copy(config.Info.File_name[:], loopFilePrefix+e.guid)
	if err := unix.IoctlLoopConfigure(int(f.Fd()), &config); err != nil {
		return fmt.Errorf("configuring %s: %w", path, err)
	}
	return nil
}

// lengthen makes a loop device show more of the disk.
func (l *loopAttacher) lengthen(device loopDevice, e entry) error {
	if !e.matchesKernel(device.extent) {
		return fmt.Errorf("%s shows %v: detach it with losetup --detach", device.path, device.extent)
	}
	return l.update(device.path, e, func(info *unix.LoopInfo64) { info.Sizelimit = uint64(e.extent.Len()) })
}

// update changes the settings of the volume's loop device.
func (l *loopAttacher) update(path string, e entry, change func(*unix.LoopInfo64)) error {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if err != nil {
		return fmt.Errorf("status of %s: %w", path, err)
	}
	if guid, _ := volumeOfLoop(info); guid != e.guid {
		return fmt.Errorf("%s shows %q now, not volume %s", path, guid, e.guid)
	}
	change(info)
	if err := unix.IoctlLoopSetStatus64(int(f.Fd()), info); err != nil {
		return fmt.Errorf("settings of %s: %w", path, err)
	}
	return nil
}

// detach unbinds the volume's loop device. The kernel does that when the last user closes it. A device that a process
// keeps open must not be unbound later, when it may be needed.
func (l *loopAttacher) detach(ctx context.Context, e entry, timeout time.Duration) error {
	device, ok := l.found[e.guid]
	if !ok {
		return nil
	}
	err := l.unbind(device.path, e)
	if err == nil {
		err = await(ctx, timeout, func() (bool, error) {
			bound, err := l.isBound(device.path, e)
			return !bound, err
		})
	}
	if errors.Is(err, errTimeout) {
		err = l.update(device.path, e, func(info *unix.LoopInfo64) { info.Flags &^= unix.LO_FLAGS_AUTOCLEAR })
		if errors.Is(err, unix.ENXIO) {
			err = nil // it was unbound after all
		} else if err == nil {
			err = ErrInUse
		}
	}
	if err != nil {
		return fmt.Errorf("detaching %s of volume %s: %w", device.path, e.guid, err)
	}
	delete(l.found, e.guid)
	return nil
}

// unbind requests the kernel to unbind the loop device, if it still shows the volume.
func (l *loopAttacher) unbind(path string, e entry) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	guid, _, err := l.status(f)
	if errors.Is(err, unix.ENXIO) {
		return nil // another process unbound it
	}
	if err != nil {
		return err
	}
	if guid != e.guid {
		return nil // and another process took it for another file
	}
	return unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0)
}

// isBound reads sysfs: opening the device would keep it from being unbound.
func (l *loopAttacher) isBound(path string, e entry) (bool, error) {
	offset, err := readNumber(filepath.Join("/sys/block", filepath.Base(path), "loop", "offset"))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return false, nil
	}
	return offset == e.extent.Start, err
}
