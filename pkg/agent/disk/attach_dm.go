package disk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthdev/berth/pkg/extent"
)

// dmAttacher attaches all volumes of a disk as linear devices of the device mapper. Unlike partitions they have no
// numbers that run out, and unlike loop devices they cost nothing.
//
// A disk that the kernel gives no partitions, such as one of the device mapper itself, is mapped from the start.
//
// Any other disk is mapped as a whole or not at all. The device mapper claims the whole disk. The kernel refuses to
// claim a disk of which a partition is claimed, by a mount or because we hold the meta partition. It also refuses to
// claim a partition of a claimed disk. So a disk becomes mapped only while nothing of it is in use (see takeOver), and
// its meta partition is mapped as well.
type dmAttacher struct {
	disk   *blockDevice
	rdev   uint64 // the disk's
	mapper *mapper
	found  map[string]mappedDevice // by partition
}

// mappedDevice is a device of the device mapper that shows a part of the disk, and has dmUUIDPrefix.
type mappedDevice struct {
	path   string
	extent extent.Extent
}

// dmUUIDPrefix and the partition's GUID are the device's uuid, by which it is found again. dmNamePrefix and the GUID
// are its name, which is only displayed.
const (
	dmUUIDPrefix = "BERTH-"
	dmNamePrefix = "berth-"
)

// findMapped lists the devices over parts of the disk that have dmUUIDPrefix. It returns nil if the kernel has no
// device mapper.
func (d *blockDevice) findMapped() (*dmAttacher, error) {
	control, err := openMapper()
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) {
		return nil, nil //nolint:nilnil // none is an answer
	}
	if err != nil {
		return nil, err
	}
	m := &dmAttacher{disk: d, mapper: control, found: map[string]mappedDevice{}}
	if err := m.list(); err != nil {
		return nil, errors.Join(err, control.Close())
	}
	return m, nil
}

// list finds the volumes of this disk that the device mapper shows.
func (a *dmAttacher) list() error {
	var err error
	if a.rdev, err = a.disk.deviceNumber(); err != nil {
		return err
	}
	dirs, err := filepath.Glob("/sys/block/dm-*")
	if err != nil {
		return fmt.Errorf("devices of the device mapper: %w", err)
	}
	for _, dir := range dirs {
		guid, err := mappedVolume(dir)
		if err != nil {
			return err
		}
		if guid == "" {
			continue
		}
		found, err := a.mapper.status(dmUUIDPrefix + guid)
		if errors.Is(err, unix.ENXIO) {
			continue // removed meanwhile
		}
		if err != nil {
			return err
		}
		if found.shows.rdev == a.rdev {
			a.found[guid] = mappedDevice{dmNode(found.rdev), found.shows.extent}
		}
	}
	return nil
}

// mappedVolume returns the GUID of the volume that a device shows, by its directory in sysfs. It is empty if the device
// does not have dmUUIDPrefix.
func mappedVolume(dir string) (guid string, err error) {
	uuid, err := mapperUUID(dir)
	guid, marked := strings.CutPrefix(uuid, dmUUIDPrefix)
	if !marked {
		return "", err
	}
	return guid, err
}

// mapperUUID is the uuid of a device of the device mapper, by its directory in sysfs. Other devices have none.
func mapperUUID(dir string) (string, error) {
	uuid, err := os.ReadFile(filepath.Join(dir, "dm/uuid"))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return "", nil
	}
	return strings.TrimSpace(string(uuid)), err
}

func dmNode(rdev uint64) string { return fmt.Sprintf("/dev/dm-%d", unix.Minor(rdev)) }

// takeOver makes the whole disk mapped, if that helps and takes nothing from a process. Otherwise it changes nothing
// that Open does not restore.
func (a *dmAttacher) takeOver(ctx context.Context, t table) (bool, error) {
	beyond := func(e entry) bool { return e.isVolume() && e.index > MetaEntry }
	foreign := func(e entry) bool { return !e.isVolume() && e.index != MetaEntry }
	if !slices.ContainsFunc(t.entries, beyond) || slices.ContainsFunc(t.entries, foreign) {
		return false, nil
	}
	// A loop device may be mounted, and does not claim the disk.
	loops, err := a.disk.findLoops()
	if err != nil || len(loops.found) > 0 {
		return false, err
	}
	// A claim of the whole disk proves that no part is claimed: no mount, no other agent.
	whole, err := openDevice(a.disk.path, os.O_RDONLY|unix.O_EXCL)
	if errors.Is(err, ErrInUse) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	err = a.dropPartitions(ctx)
	if err = errors.Join(err, whole.Close()); errors.Is(err, ErrInUse) {
		return false, nil // a process looks at a partition, and keeps it open
	}
	return err == nil, err
}

// dropPartitions removes the disk's partitions from the kernel. They could not be mounted any more, and would show the
// bytes of the next volume in their place.
func (a *dmAttacher) dropPartitions(ctx context.Context) error {
	attached, err := a.disk.partitions()
	if err != nil {
		return err
	}
	for index := range attached {
		if err := a.disk.detach(ctx, index, busyTimeout); err != nil {
			return err
		}
	}
	return nil
}

// checkTable returns an error unless every device of ours shows a partition of the table in its place.
func (a *dmAttacher) checkTable(t table) error {
	if a == nil {
		return nil
	}
	for guid, device := range a.found {
		i := slices.IndexFunc(t.entries, func(e entry) bool { return e.guid == guid })
		if i < 0 {
			return fmt.Errorf("%s shows a volume %s at %v that the table does not have: remove it with dmsetup remove %s%s, or reboot", device.path, guid, device.extent, dmNamePrefix, guid)
		}
		if e := t.entries[i]; !e.matchesKernel(device.extent) {
			return fmt.Errorf("%s shows the volume %s at %v, the table has it at %v: remove it with dmsetup remove %s%s, or reboot", device.path, guid, device.extent, e.extent, dmNamePrefix, guid)
		}
	}
	return nil
}

// attach ensures that the device mapper shows the volume, and returns its device node.
func (a *dmAttacher) attach(ctx context.Context, e entry) (string, error) {
	device, err := a.ensureDevice(e)
	if err != nil {
		return "", fmt.Errorf("attaching volume %s at %v of %s: %w", e.guid, e.extent, a.disk.path, err)
	}
	a.found[e.guid] = mappedDevice{dmNode(device), e.extent}
	return partition{name: filepath.Base(dmNode(device)), rdev: device}.awaitNode(ctx)
}

// ensureDevice makes the volume's device unless it exists, and gives it the extent in the table.
func (a *dmAttacher) ensureDevice(e entry) (rdev uint64, err error) {
	uuid, want := dmUUIDPrefix+e.guid, linear{a.rdev, e.extent}
	known, ok := a.found[e.guid]
	if !ok {
		if err := a.create(e); err != nil {
			return 0, err
		}
	} else if !e.matchesKernel(known.extent) {
		return 0, fmt.Errorf("%s shows %v", known.path, known.extent)
	}
	now, err := a.mapper.status(uuid)
	if err != nil {
		return 0, err
	}
	if now.active && now.shows == want {
		return now.rdev, nil
	}
	if err := a.mapper.loadTable(uuid, want); err != nil {
		if !ok {
			err = errors.Join(err, a.mapper.remove(uuid))
		}
		return 0, err
	}
	return now.rdev, nil
}

// create makes a device without table. There may be one already. An agent that ended early has left it, or this disk
// had it before it was pulled out and plugged in again.
func (a *dmAttacher) create(e entry) error {
	uuid, name := dmUUIDPrefix+e.guid, dmNamePrefix+e.guid
	err := a.mapper.create(uuid, name)
	if !errors.Is(err, unix.EBUSY) {
		return err
	}
	old, unknown := a.mapper.status(uuid)
	if unknown != nil {
		return errors.Join(err, unknown)
	}
	of := old.shows.rdev
	if of == 0 {
		return nil
	}
	number := fmt.Sprintf("%d:%d", unix.Major(of), unix.Minor(of))
	if _, err := os.Stat("/sys/dev/block/" + number); err == nil {
		return fmt.Errorf("%s shows a volume of the same GUID on another disk, %s: %w", dmNode(old.rdev), number, ErrInUse)
	}
	// That disk is gone, and every read from it fails. If the device is mounted, it cannot be removed.
	if err := a.mapper.remove(uuid); errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%s shows the volume on a disk that is gone, and is still in use: unmount it: %w", dmNode(old.rdev), ErrInUse)
	} else if err != nil {
		return err
	}
	return a.mapper.create(uuid, name)
}

// detach removes the volume's device. The kernel refuses while a process has it open.
func (a *dmAttacher) detach(ctx context.Context, e entry, timeout time.Duration) error {
	err := await(ctx, timeout, func() (bool, error) {
		err := a.mapper.remove(dmUUIDPrefix + e.guid)
		if errors.Is(err, unix.EBUSY) {
			return false, nil
		}
		return err == nil, err
	})
	if errors.Is(err, errTimeout) {
		err = ErrInUse
	}
	if err != nil {
		return fmt.Errorf("detaching volume %s of %s: %w", e.guid, a.disk.path, err)
	}
	delete(a.found, e.guid)
	return nil
}

// close leaves the volumes' devices, because they may be mounted. It removes the meta partition's, so that a disk
// without volumes is not claimed.
func (a *dmAttacher) close() error {
	var err error
	for guid, device := range a.found {
		if device.extent == a.disk.meta() {
			err = a.mapper.remove(dmUUIDPrefix + guid)
		}
	}
	if errors.Is(err, unix.EBUSY) {
		err = nil // another agent has it open, and removes it
	}
	return errors.Join(err, a.mapper.Close())
}
