package discovery

import (
	"path"
	"slices"
	"strings"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/disk"
)

// Identity is the properties of a device that stay the same over reboots, as far as it has any.
type Identity struct {
	// WWN is the world wide name.
	WWN string
	// Serial is the serial number.
	Serial string
	// ByID is the most stable link: below /dev/disk/by-id, else below /dev/mapper or /dev/disk/by-path.
	ByID string
}

// Map is the name and UUID of a device of the device mapper. Both are empty for other devices.
type Map struct {
	Name, UUID string
}

// Backing is what a loop device shows: a file, or a block device.
type Backing struct {
	// File is the path with which the loop device was set up. It may be of another mount namespace.
	File string
	// Block is true if that is a block device.
	Block bool
	// On is the name of the whole device on which the file lies. For a block device it is that device, or the one of
	// which it is a partition. It is empty if it is not known.
	On string
	// Volume is true if the loop device is a volume of Berth's.
	Volume bool
}

// Device is a whole block device as sysfs describes it.
type Device struct {
	// Name is the kernel's name, such as nvme0n1. It may be another one after a reboot.
	Name string
	// Path is the device node, such as /dev/nvme0n1.
	Path string
	// Links are the paths below /dev/disk and /dev/mapper that lead to the device, sorted.
	Links []string
	Identity
	// Model and Vendor are those that the device reports.
	Model, Vendor string
	// Transport is how the device is connected.
	Transport diskv1alpha1.Transport
	// Size in bytes.
	Size int64
	// SectorSize is the logical sector size in bytes.
	SectorSize int64
	// Rotational is true for disks with moving heads.
	Rotational bool
	// Removable and ReadOnly are those in sysfs.
	Removable, ReadOnly bool
	// Zoned is host-aware or host-managed for zoned devices, otherwise empty.
	Zoned string
	// Number is major:minor.
	Number string
	// Sequence is the kernel's diskseq. It distinguishes two media that had the same name one after the other. It is
	// empty on kernels without it.
	Sequence string
	// Holders are the devices made of this one, except volumes of Berth.
	Holders []string
	// Below are the whole devices that this one is made of.
	Below []string
	// Map is set for devices of the device mapper, Loop for bound loop devices.
	Map  Map
	Loop *Backing
	// Activity changes when the device is read, written or resized.
	Activity string
	// Unreadable lists the attributes that could not be read from sysfs.
	Unreadable []string
}

// isSameMedium reports whether d and other are the same medium in the same drive.
func (d Device) isSameMedium(other Device) bool {
	unread := len(other.Unreadable) > 0
	return d.Name == other.Name && d.Sequence == other.Sequence &&
		(d.Number == other.Number || unread && other.Number == "") && (d.Size == other.Size || unread)
}

// isIdentified reports whether the device has a property by which it can be named permanently.
func (i Identity) isIdentified() bool { return i.WWN != "" || i.Serial != "" || i.ByID != "" }

// isSameDevice reports whether d is the device that was seen as before, by the properties that both have. Devices
// without any, such as loop devices, are compared by name, size and model.
func (d Device) isSameDevice(before Device) bool {
	switch {
	case d.WWN != "" && before.WWN != "":
		return d.WWN == before.WWN
	case d.Serial != "" && before.Serial != "":
		return d.Serial == before.Serial && d.Model == before.Model
	case d.ByID != "" && before.ByID != "":
		return d.ByID == before.ByID
	case before.isIdentified():
		return false
	}
	return d.Name == before.Name && d.Size == before.Size && d.Model == before.Model
}

// matchesPath reports whether one of the shell patterns matches the device's path or one of its links. A malformed
// pattern matches nothing.
func (d Device) matchesPath(patterns []string) bool {
	return matches(patterns, append([]string{d.Path}, d.Links...)...)
}

// matches reports whether one of the shell patterns matches one of the values. A malformed pattern matches nothing.
func matches(patterns []string, values ...string) bool {
	for _, pattern := range patterns {
		for _, value := range values {
			if ok, err := path.Match(pattern, value); err == nil && ok {
				return true
			}
		}
	}
	return false
}

// virtualKinds are the kinds of devices that are made of other devices, files or memory, or are on another machine.
// They are recognized by the prefix of their names.
var virtualKinds = []struct{ prefix, what string }{
	{"loop", "a loop device"},
	{"dm-", "a device of the device mapper"},
	{"md", "a RAID array (md)"},
	{"rbd", "a Ceph volume (rbd)"},
	{"rnbd", "a network block device (rnbd)"},
	{"nbd", "a network block device (nbd)"},
	{"drbd", "a replicated volume (drbd)"},
	{"zd", "a ZFS volume"},
	{"bcache", "a cached device (bcache)"},
	{"zram", "compressed memory (zram)"},
	{"pmem", "persistent memory (pmem)"},
	{"ublk", "a device of a user-space driver (ublk)"},
	{"etherd!", "a network block device (ATA over Ethernet)"},
	{"scini", "a PowerFlex volume"},
	{"pxd!", "a Portworx volume"},
}

// virtualKind is what a device is made of. It is empty for a drive.
func (d Device) virtualKind() string {
	for _, k := range virtualKinds {
		if strings.HasPrefix(d.Name, k.prefix) {
			return k.what
		}
	}
	if d.Transport == diskv1alpha1.TransportVirtual {
		return "a device that the kernel makes"
	}
	return ""
}

// isUnlisted reports whether the device is left out of the published list if no class selects it. A node may have very
// many of these devices.
func (d Device) isUnlisted() bool {
	return strings.HasPrefix(d.Name, "loop") || strings.HasPrefix(d.Name, "zram")
}

// showsVolume reports whether the device is a part of one of our disks.
func (d Device) showsVolume() bool {
	return d.Loop != nil && d.Loop.Volume || disk.IsVolumeMap(d.Map.UUID)
}

// stackDepths returns how many layers each device lies above drives: 0 for drives, 1 for devices made of drives, and so
// on.
func stackDepths(devices []Device) map[string]int {
	byName := map[string]Device{}
	for _, d := range devices {
		byName[d.Name] = d
	}
	depth := map[string]int{}
	var of func(name string, seen []string) int
	of = func(name string, seen []string) int {
		if n, known := depth[name]; known {
			return n
		}
		n := 0
		for _, below := range byName[name].Below {
			if !slices.Contains(seen, below) {
				n = max(n, 1+of(below, append(seen, name)))
			}
		}
		depth[name] = n
		return n
	}
	for _, d := range devices {
		of(d.Name, []string{d.Name})
	}
	return depth
}
