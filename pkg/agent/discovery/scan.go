package discovery

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// Device is a whole block device as sysfs describes it.
type Device struct {
	// Name is the kernel's name, such as nvme0n1. It may be another one after a reboot.
	Name string
	// Path is the device node, such as /dev/nvme0n1.
	Path string
	// Links are the paths below /dev/disk that lead to the device.
	Links []string
	// Size in bytes.
	Size int64
	// SectorSize is the logical sector size in bytes.
	SectorSize int64
	// Rotational is true for disks with moving heads.
	Rotational bool
	// Model is what the device says of itself.
	Model string
	// Number is major:minor.
	Number string
	// Sequence tells two media that had the same name one after the other apart
	// (the kernel's diskseq); empty on kernels without it.
	Sequence string
	// Explicit devices are selected only by a class that names a path: loop,
	// device-mapper and md devices, and removable ones.
	Explicit bool
}

// same reports whether d and other are the same medium in the same drive.
func (d Device) same(other Device) bool {
	return d.Name == other.Name && d.Number == other.Number && d.Sequence == other.Sequence && d.Size == other.Size
}

// sysfs reports sizes in units of 512 bytes, whatever the sector size is.
const sysfsUnit = 512

// never are the prefixes of names of devices that are no disks.
var never = []string{"ram", "zram", "sr", "fd", "mtdblock"}

// byPathOnly are the prefixes of names of devices that somebody else usually manages.
var byPathOnly = []string{"loop", "dm-", "md"}

// Scan lists the devices below sys, which is /sys/block, that can hold volumes:
// whole disks with a size that are writable. dev is /dev. Only devices that match one
// of the patterns in only are looked at, unless there are none. A device that
// disappears while it is being read is left out.
func Scan(sys fs.FS, dev string, only []string) ([]Device, error) {
	entries, err := fs.ReadDir(sys, ".")
	if err != nil {
		return nil, fmt.Errorf("cannot list block devices: %w", err)
	}
	links := linksBelow(filepath.Join(dev, "disk"))
	var devices []Device
	for _, entry := range entries {
		name := entry.Name()
		d := Device{
			Name: name,
			// sysfs cannot have a slash in a name: cciss!c0d0 is /dev/cciss/c0d0.
			Path:  filepath.Join(dev, strings.ReplaceAll(name, "!", "/")),
			Links: links[strings.ReplaceAll(name, "!", "/")],
		}
		if hasPrefix(name, never) || len(only) > 0 && !d.matchesPath(only) {
			continue
		}
		eligible, err := d.read(sys)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("cannot read /sys/block/%s: %w", name, err)
		}
		if eligible {
			devices = append(devices, d)
		}
	}
	return devices, nil
}

// read fills in what sysfs says and reports whether the device can hold volumes.
func (d *Device) read(sys fs.FS) (bool, error) {
	size, err := attribute(sys, d.Name, "size")
	if err != nil {
		return false, err
	}
	sectors, err := strconv.ParseInt(size, 10, 64)
	if err != nil {
		return false, fmt.Errorf("size: %w", err)
	}
	if sectors <= 0 {
		return false, nil
	}
	d.Size = sectors * sysfsUnit
	if optional(sys, d.Name, "ro") == "1" || optional(sys, d.Name, "hidden") == "1" {
		return false, nil
	}
	sectorSize, err := attribute(sys, d.Name, "queue/logical_block_size")
	if err != nil {
		return false, err
	}
	if d.SectorSize, err = strconv.ParseInt(sectorSize, 10, 64); err != nil {
		return false, fmt.Errorf("logical_block_size: %w", err)
	}
	d.Rotational = optional(sys, d.Name, "queue/rotational") == "1"
	d.Model = optional(sys, d.Name, "device/model")
	d.Number = optional(sys, d.Name, "dev")
	d.Sequence = optional(sys, d.Name, "diskseq")
	d.Explicit = hasPrefix(d.Name, byPathOnly) || optional(sys, d.Name, "removable") == "1"
	return true, nil
}

func attribute(sys fs.FS, device, name string) (string, error) {
	value, err := fs.ReadFile(sys, path.Join(device, name))
	return strings.TrimSpace(string(value)), err
}

// optional reads an attribute that some devices do not have.
func optional(sys fs.FS, device, name string) string {
	value, err := attribute(sys, device, name)
	if err != nil {
		return ""
	}
	return value
}

func hasPrefix(name string, prefixes []string) bool {
	return slices.ContainsFunc(prefixes, func(prefix string) bool { return strings.HasPrefix(name, prefix) })
}

// linksBelow maps device names to the links in the folders below dir, which is
// /dev/disk. Without udev there are none.
func linksBelow(dir string) map[string][]string {
	links := map[string][]string{}
	folders, err := os.ReadDir(dir)
	if err != nil {
		return links
	}
	for _, folder := range folders {
		entries, err := os.ReadDir(filepath.Join(dir, folder.Name()))
		if err != nil {
			continue
		}
		for _, entry := range entries {
			link := filepath.Join(dir, folder.Name(), entry.Name())
			target, err := os.Readlink(link)
			if err != nil {
				continue
			}
			// Links are relative, such as ../../nvme0n1.
			name, err := filepath.Rel(filepath.Dir(dir), filepath.Join(filepath.Dir(link), target))
			if err == nil {
				links[name] = append(links[name], link)
			}
		}
	}
	return links
}

// matchesPath reports whether one of the shell patterns matches the device's path or
// one of its links. A malformed pattern matches nothing.
func (d Device) matchesPath(patterns []string) bool {
	for _, pattern := range patterns {
		for _, p := range append([]string{d.Path}, d.Links...) {
			if ok, err := path.Match(pattern, p); err == nil && ok {
				return true
			}
		}
	}
	return false
}
