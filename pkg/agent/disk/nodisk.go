package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// A device on one of our own volumes is never a disk: the volume's user writes its bytes, and could write a table of
// ours. That applies to a volume's device and to every device on top of it.

// whyNoDisk says why a device is no disk, from sysfs and the loop device's settings alone.
func (d *blockDevice) whyNoDisk(i Inspector) (string, error) {
	if _, err := os.Stat(filepath.Join(d.sys, "partition")); err == nil {
		return "the device is a partition, not a disk", nil
	}
	volume, err := volumeBelow(d.sys, maxStackDepth)
	if err != nil {
		return "", err
	}
	if volume != "" {
		return "the device shows the volume " + volume + " of a disk of ours, or lies on it", nil
	}
	return d.whyLoopIsNoDisk(i)
}

// whyLoopIsNoDisk says why a loop device is no disk.
func (d *blockDevice) whyLoopIsNoDisk(i Inspector) (string, error) {
	backing, err := os.ReadFile(filepath.Join(d.sys, "loop/backing_file"))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	file := strings.TrimSpace(string(backing))
	if isKubeletLoop(file, i.kubeletDir()) {
		return "the loop device is the kubelet's, over the raw block volume " + file, nil
	}
	info, err := loopStatus(d.sys)
	if err != nil || info == nil {
		return "", err
	}
	if info.Rdevice != 0 {
		return "the loop device lies on the block device " + file + ": select that one", nil
	}
	return "", nil
}

// isKubeletLoop reports whether the kubelet made the loop device with that backing file. It makes one for every raw
// block volume, below its own folder.
func isKubeletLoop(file, kubeletDir string) bool {
	return strings.HasPrefix(file, filepath.Clean(kubeletDir)+"/") || strings.Contains(file, "/volumeDevices/")
}

// maxStackDepth bounds how many devices may lie on each other. The kernel allows no cycles.
const maxStackDepth = 16

// volumeBelow returns the GUID of a volume of ours that a device shows or lies on. The device is given by its folder in
// sysfs. The GUID is empty if there is no such volume.
func volumeBelow(sys string, depth int) (string, error) {
	if depth == 0 {
		return "", fmt.Errorf("%s lies on more than %d devices on top of each other", filepath.Base(sys), maxStackDepth)
	}
	if guid, err := mappedVolume(sys); err != nil || guid != "" {
		return guid, err
	}
	if guid, err := partitionVolume(sys); err != nil || guid != "" {
		return guid, err
	}
	below, err := devicesBelow(sys)
	if err != nil {
		return "", err
	}
	info, err := loopStatus(sys)
	if err != nil {
		return "", err
	}
	if info != nil {
		if guid, marked := volumeOfLoop(info); marked {
			return guid, nil
		}
		// This includes a file on a volume's file system.
		for _, number := range []uint64{info.Rdevice, info.Device} {
			if folder, err := filepath.EvalSymlinks(sysfsOf(number)); number != 0 && err == nil {
				below = append(below, folder)
			}
		}
	}
	for _, folder := range below {
		if guid, err := volumeBelow(folder, depth-1); err != nil || guid != "" {
			return guid, err
		}
	}
	return "", nil
}

func sysfsOf(device uint64) string {
	return fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(device), unix.Minor(device))
}

// devicesBelow are the sysfs folders of the devices that a device is made of.
func devicesBelow(sys string) (folders []string, err error) {
	entries, err := os.ReadDir(filepath.Join(sys, "slaves"))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil, nil // a partition has none
	}
	if err != nil {
		return nil, fmt.Errorf("devices below %s: %w", filepath.Base(sys), err)
	}
	for _, e := range entries {
		folder, err := filepath.EvalSymlinks(filepath.Join(sys, "slaves", e.Name()))
		if errors.Is(err, os.ErrNotExist) {
			continue // taken away meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("devices below %s: %w", filepath.Base(sys), err)
		}
		folders = append(folders, folder)
	}
	return folders, nil
}

// loopStatus reads what a loop device shows. It is nil if the device is none, or is not bound.
func loopStatus(sys string) (*unix.LoopInfo64, error) {
	// An unbound loop device has no such folder.
	if _, err := os.Stat(filepath.Join(sys, "loop")); err != nil {
		return nil, nil //nolint:nilnil // none is an answer
	}
	f, err := os.OpenFile("/dev/"+filepath.Base(sys), os.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("asking what a loop device lies on: %w", err)
	}
	defer f.Close()
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if errors.Is(err, unix.ENXIO) {
		return nil, nil //nolint:nilnil // unbound meanwhile
	}
	if err != nil {
		return nil, fmt.Errorf("status of %s: %w", f.Name(), err)
	}
	return info, nil
}

// partitionVolume returns the GUID of the volume of ours that a partition is. It is empty if it is no partition, or not
// on a disk of ours.
func partitionVolume(sys string) (string, error) {
	p, err := readPartition(sys)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	whole, err := openDevice("/dev/"+strings.ReplaceAll(filepath.Base(filepath.Dir(sys)), "!", "/"), os.O_RDONLY)
	if err != nil {
		return "", fmt.Errorf("the disk of partition %s: %w", p.name, err)
	}
	defer whole.Close()
	size, sector, err := whole.geometry()
	if err != nil {
		return "", err
	}
	if unsuitable(size, sector) != "" {
		return "", nil
	}
	whole.layout = layout{size: size, sector: sector}
	f, err := examine(whole, whole.layout)
	if err != nil || !f.ours {
		return "", err
	}
	t, err := decode(f.layoutOf(whole.layout), f.current)
	if err != nil {
		return "", fmt.Errorf("the disk of partition %s: %w", p.name, err)
	}
	for _, e := range t.entries {
		if e.index == p.index && (e.isVolume() || e.isPiece() || e.isMeta()) {
			return e.guid, nil
		}
	}
	return "", nil
}
