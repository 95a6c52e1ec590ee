package disk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berthdev/berth/pkg/extent"
)

// linearAttacher shows volumes of a disk that is not mapped as linear devices. A linear device lies over the devices of
// the volume's pieces: partitions of the kernel, and loop devices where their numbers end. So the device mapper claims
// these, and the disk and its other partitions stay as they are.
type linearAttacher struct {
	disk *blockDevice
	linearDevices
	// parts are the places on the disk of the devices below those that were found.
	parts map[uint64]extent.Extent
}

// linearUUIDPrefix and the volume's GUID are the uuid of a linear device over pieces. Its name is that of a mapped
// volume, so there cannot be both.
const linearUUIDPrefix = "BERTHVOLUME-"

// findLinear lists the linear devices over partitions and loop devices of the disk. It returns nil if the kernel has no
// device mapper.
func (d *blockDevice) findLinear(loops *loopAttacher) (*linearAttacher, error) {
	control, err := openMapper()
	if isNoMapper(err) {
		return nil, nil //nolint:nilnil // none is an answer
	}
	if err != nil {
		return nil, err
	}
	a := &linearAttacher{
		disk: d, parts: map[uint64]extent.Extent{},
		linearDevices: linearDevices{mapper: control, prefix: linearUUIDPrefix, found: map[string]linearDevice{}},
	}
	if err = a.readParts(loops); err == nil {
		err = a.list(func(t linear) bool { _, ours := a.parts[t.rdev]; return ours })
	}
	if err != nil {
		return nil, errors.Join(err, control.Close())
	}
	return a, nil
}

// readParts finds the devices that can be below a linear device.
func (a *linearAttacher) readParts(loops *loopAttacher) error {
	attached, err := a.disk.partitions()
	if err != nil {
		return err
	}
	for _, p := range attached {
		a.parts[p.rdev] = p.extent
	}
	if loops == nil {
		return nil
	}
	for _, l := range loops.found {
		var st unix.Stat_t
		if err := unix.Stat(l.path, &st); err != nil {
			return fmt.Errorf("device %s: %w", l.path, err)
		}
		a.parts[st.Rdev] = l.extent
	}
	return nil
}

// shows reports whether the volume has a linear device.
func (a *linearAttacher) shows(guid string) bool {
	if a == nil {
		return false
	}
	_, found := a.found[guid]
	return found
}

// places are the extents on the disk that the volume's device shows, as it was found.
func (a *linearAttacher) places(guid string) []extent.Extent {
	var all []extent.Extent
	for _, t := range a.found[guid].shows {
		all = append(all, extent.New(a.parts[t.rdev].Start+t.extent.Start, t.extent.Len()))
	}
	return all
}

// removeUnexpected removes the devices that do not show a volume as the table has it. Another program changed the
// table, or a write of it was lost. A device that is in use is an error: its users must not see another volume's bytes.
// Devices of volumes that must not have one, such as those being wiped, are left.
func (a *linearAttacher) removeUnexpected(t table) error {
	if a == nil {
		return nil
	}
	for guid, device := range a.found {
		v, err := t.set(guid)
		if err == nil && (!v.first.phase().HasDevice() || v.incomplete() == "" && v.showsPart(a.places(guid))) {
			continue
		}
		shows := a.places(guid)
		if err := a.remove(guid); err != nil {
			// Not an ErrInUse for callers: it is not their volume that is in use.
			return fmt.Errorf("%s shows the volume %s at %v, and the table does not have it like that: unmount it, or reboot (%s)", device.path, guid, shows, err.Error())
		}
	}
	return nil
}

// attach ensures that the volume has a linear device over these parts, and returns the device node.
func (a *linearAttacher) attach(ctx context.Context, guid string, parts []linear) (string, error) {
	node, err := a.ensure(ctx, guid, parts)
	if err != nil {
		return "", fmt.Errorf("attaching volume %s of %s by the device mapper: %w", guid, a.disk.path, err)
	}
	return node, nil
}

// detach removes the volume's linear device, if it has one. The kernel refuses while a process has it open.
func (a *linearAttacher) detach(guid string) error {
	if !a.shows(guid) {
		return nil
	}
	if err := a.remove(guid); err != nil {
		return fmt.Errorf("detaching volume %s of %s: %w", guid, a.disk.path, err)
	}
	return nil
}

// linearDevices makes and finds devices of the device mapper that have linear targets only. The uuid of each is a
// prefix and the GUID of a volume.
type linearDevices struct {
	mapper *mapper
	prefix string
	found  map[string]linearDevice // by volume
}

// linearDevice is a device with its targets.
type linearDevice struct {
	path  string
	shows []linear
}

// extents are the parts of the devices below that the device shows.
func (d linearDevice) extents() []extent.Extent {
	var all []extent.Extent
	for _, t := range d.shows {
		all = append(all, t.extent)
	}
	return all
}

// list finds the devices whose first target is ours.
func (l *linearDevices) list(ours func(linear) bool) error {
	dirs, err := filepath.Glob("/sys/block/dm-*")
	if err != nil {
		return fmt.Errorf("devices of the device mapper: %w", err)
	}
	for _, dir := range dirs {
		uuid, err := mapperUUID(dir)
		if err != nil {
			return err
		}
		guid, marked := strings.CutPrefix(uuid, l.prefix)
		if !marked {
			continue
		}
		found, err := l.mapper.status(uuid)
		if errors.Is(err, unix.ENXIO) {
			continue // removed meanwhile
		}
		if err != nil {
			return err
		}
		if err := l.clearLoaded(uuid, found, ours); err != nil {
			return err
		}
		if len(found.shows) > 0 && ours(found.shows[0]) {
			l.found[guid] = linearDevice{dmNode(found.rdev), found.shows}
		}
	}
	return nil
}

// clearLoaded removes a table that an agent has loaded and not made active before it ended. That table claims the
// devices below it, so that the volume could not be attached.
func (l *linearDevices) clearLoaded(uuid string, found mapping, ours func(linear) bool) error {
	if !found.loaded {
		return nil
	}
	loaded, err := l.mapper.readLoaded(uuid)
	if err != nil || len(loaded.shows) == 0 || !ours(loaded.shows[0]) {
		// Another disk's, which may be in use by its own worker.
		return err
	}
	return l.mapper.clear(uuid)
}

// ensure makes the volume's device unless it exists, gives it the targets, and returns its device node.
func (l *linearDevices) ensure(ctx context.Context, guid string, want []linear) (string, error) {
	rdev, err := l.ensureTargets(guid, want)
	if err != nil {
		return "", err
	}
	l.found[guid] = linearDevice{dmNode(rdev), want}
	return partition{name: filepath.Base(dmNode(rdev)), rdev: rdev}.awaitNode(ctx)
}

// ensureTargets is ensure without the node. A device that exists may show a beginning of what is wanted: the volume has
// grown.
func (l *linearDevices) ensureTargets(guid string, want []linear) (rdev uint64, err error) {
	uuid := l.prefix + guid
	known, ok := l.found[guid]
	if !ok {
		if err := l.create(guid); err != nil {
			return 0, err
		}
	} else if !isBeginning(known.shows, want) {
		return 0, fmt.Errorf("%s shows %v", known.path, known.extents())
	}
	now, err := l.mapper.status(uuid)
	if err != nil {
		return 0, err
	}
	if now.active && slices.Equal(now.shows, want) {
		return now.rdev, nil
	}
	if err := l.mapper.loadTable(uuid, want); err != nil {
		if errors.Is(err, unix.EBUSY) {
			err = fmt.Errorf("%w: %w", err, ErrInUse)
		}
		if !ok {
			err = errors.Join(err, l.mapper.remove(uuid))
		}
		return 0, err
	}
	return now.rdev, nil
}

// isBeginning reports whether a device with the targets shown shows a beginning of what is wanted.
func isBeginning(shown, want []linear) bool {
	if len(shown) == 0 || len(shown) > len(want) {
		return false
	}
	last := len(shown) - 1
	a, b := shown[last], want[last]
	return slices.Equal(shown[:last], want[:last]) && a.rdev == b.rdev && a.extent.Start == b.extent.Start && a.extent.End <= b.extent.End
}

// create makes a device without table. There may be one already. An agent that ended early has left it, or this disk
// had it before it was pulled out and plugged in again.
func (l *linearDevices) create(guid string) error {
	uuid, name := l.prefix+guid, dmNamePrefix+guid
	err := l.mapper.create(uuid, name)
	if !errors.Is(err, unix.EBUSY) {
		return err
	}
	old, unknown := l.mapper.status(uuid)
	if unknown != nil {
		return errors.Join(err, unknown)
	}
	if len(old.shows) == 0 {
		return nil
	}
	of := old.shows[0].rdev
	number := fmt.Sprintf("%d:%d", unix.Major(of), unix.Minor(of))
	if _, err := os.Stat("/sys/dev/block/" + number); err == nil {
		return fmt.Errorf("%s shows a volume of the same GUID on another disk, %s: %w", dmNode(old.rdev), number, ErrInUse)
	}
	// That disk is gone, and every read from it fails. If the device is mounted, it cannot be removed.
	if err := l.mapper.remove(uuid); errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%s shows the volume on a disk that is gone, and is still in use: unmount it: %w", dmNode(old.rdev), ErrInUse)
	} else if err != nil {
		return err
	}
	return l.mapper.create(uuid, name)
}

// remove removes the volume's device. ErrInUse: a process has it open.
func (l *linearDevices) remove(guid string) error {
	err := l.mapper.remove(l.prefix + guid)
	if errors.Is(err, unix.EBUSY) {
		return ErrInUse
	}
	if err == nil {
		delete(l.found, guid)
	}
	return err
}
