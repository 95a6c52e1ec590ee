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
	disk *blockDevice
	rdev uint64 // the disk's
	linearDevices
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
	if isNoMapper(err) {
		return nil, nil //nolint:nilnil // none is an answer
	}
	if err != nil {
		return nil, err
	}
	m := &dmAttacher{disk: d, linearDevices: linearDevices{mapper: control, prefix: dmUUIDPrefix, found: map[string]linearDevice{}}}
	if m.rdev, err = d.deviceNumber(); err == nil {
		err = m.list(func(t linear) bool { return t.rdev == m.rdev })
	}
	if err != nil {
		return nil, errors.Join(err, control.Close())
	}
	return m, nil
}

// mappedVolume returns the GUID of the volume that a device shows, by its directory in sysfs. It is empty if the device
// is not one of ours.
func mappedVolume(dir string) (guid string, err error) {
	uuid, err := mapperUUID(dir)
	for _, prefix := range []string{dmUUIDPrefix, linearUUIDPrefix} {
		if guid, marked := strings.CutPrefix(uuid, prefix); marked {
			return guid, err
		}
	}
	return "", err
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
	beyond := func(e entry) bool { return (e.isVolume() || e.isPiece()) && e.index > MetaEntry }
	foreign := func(e entry) bool { return !e.isVolume() && !e.isPiece() && e.index != MetaEntry }
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
		i := t.indexOf(guid)
		if i < 0 {
			return fmt.Errorf("%s shows a volume %s at %v that the table does not have: remove it with dmsetup remove %s%s, or reboot", device.path, guid, device.extents(), dmNamePrefix, guid)
		}
		if v := t.setOf(t.entries[i]); !v.showsPart(device.extents()) {
			return fmt.Errorf("%s shows the volume %s at %v, the table has it at %v: remove it with dmsetup remove %s%s, or reboot", device.path, guid, device.extents(), v.extents(), dmNamePrefix, guid)
		}
	}
	return nil
}

// attach ensures that the device mapper shows the volume, and returns its device node.
func (a *dmAttacher) attach(ctx context.Context, s set) (string, error) {
	var want []linear
	for _, e := range s.extents() {
		want = append(want, linear{a.rdev, e})
	}
	node, err := a.ensure(ctx, s.first.guid, want)
	if err != nil {
		return "", fmt.Errorf("attaching volume %s at %v of %s: %w", s.first.guid, s.extents(), a.disk.path, err)
	}
	return node, nil
}

// detach removes the volume's device. The kernel refuses while a process has it open.
func (a *dmAttacher) detach(ctx context.Context, e entry, timeout time.Duration) error {
	err := await(ctx, timeout, func() (bool, error) {
		err := a.remove(e.guid)
		if errors.Is(err, ErrInUse) {
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
	return nil
}

// close leaves the volumes' devices, because they may be mounted. It removes the meta partition's, so that a disk
// without volumes is not claimed.
func (a *dmAttacher) close() error {
	var err error
	for guid, device := range a.found {
		if slices.Equal(device.extents(), []extent.Extent{a.disk.meta()}) {
			err = a.mapper.remove(dmUUIDPrefix + guid)
		}
	}
	if errors.Is(err, unix.EBUSY) {
		err = nil // another agent has it open, and removes it
	}
	return errors.Join(err, a.mapper.Close())
}
