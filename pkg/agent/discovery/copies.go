package discovery

import (
	"fmt"
	"slices"
	"strings"

	"github.com/berthdev/berth/pkg/agent/disk"
)

// copyHolder is one of several devices that hold the same disk of ours. One of them is the disk, and the others are
// copies or other paths to it.
type copyHolder struct {
	device Device
	// open is true if the disk is in service there.
	open bool
	// unread is true if the device held the disk before, and cannot be read now.
	unread bool
}

// refusedCopies returns which of several devices with one disk ID must not be used, and why, by name. A disk in service
// stays in service, and only the later ones are refused. Otherwise the device that held the disk before has it. If that
// is not known, none is used: the volumes may be on any of them.
func refusedCopies(id string, holders []copyHolder, before *Device) map[string]string {
	if len(holders) < 2 {
		return nil
	}
	if at := slices.IndexFunc(holders, func(h copyHolder) bool { return h.open }); at >= 0 {
		return refuseOthers(id, holders, holders[at], "is in service")
	}
	if at := slices.IndexFunc(holders, func(h copyHolder) bool { return h.unread }); at >= 0 {
		return refuseOthers(id, holders, holders[at], "was there before and cannot be read now,")
	}
	// After a reboot the kernel's name alone does not identify the device.
	if before != nil && before.isIdentified() {
		var same []copyHolder
		for _, h := range holders {
			if h.device.isSameDevice(*before) {
				same = append(same, h)
			}
		}
		if len(same) == 1 || len(same) > 1 && allPaths(same) {
			return refuseOthers(id, holders, firstByName(same), "was there before,")
		}
	}
	if allPaths(holders) {
		return refuseOthers(id, holders, firstByName(holders), "is used")
	}
	var names []string
	for _, h := range holders {
		names = append(names, h.device.Name)
	}
	slices.Sort(names)
	refused := map[string]string{}
	for _, name := range names {
		refused[name] = fmt.Sprintf("disk %s is on several devices, one must be a copy: %s; remove or wipe the copy", id, strings.Join(names, ", "))
	}
	return refused
}

// refuseOthers refuses all holders but one. why is the reason why that one has the disk.
func refuseOthers(id string, holders []copyHolder, keep copyHolder, why string) map[string]string {
	refused := map[string]string{}
	for _, other := range holders {
		if other.device.Name == keep.device.Name {
			continue
		}
		if samePaths(other.device, keep.device) {
			refused[other.device.Name] = fmt.Sprintf("another path to disk %s, which %s on %s", id, why, keep.device.Name)
			continue
		}
		refused[other.device.Name] = fmt.Sprintf("a copy of disk %s, which %s on %s: remove or wipe the copy", id, why, keep.device.Name)
	}
	return refused
}

// firstByName returns the holder whose device has the first name.
func firstByName(holders []copyHolder) copyHolder {
	return slices.MinFunc(holders, func(a, b copyHolder) int { return strings.Compare(a.device.Name, b.device.Name) })
}

// samePaths reports whether both devices are paths to one disk.
func samePaths(a, b Device) bool {
	return a.WWN != "" && a.WWN == b.WWN && a.Serial == b.Serial && a.Size == b.Size
}

// allPaths reports whether all holders are paths to one disk.
func allPaths(holders []copyHolder) bool {
	return !slices.ContainsFunc(holders, func(h copyHolder) bool { return !samePaths(h.device, holders[0].device) })
}

// markCopies sets CopyReason for the devices whose disk ID another device has as well, and that must not be used.
func (s *rescanState) markCopies(all []*Facts) {
	holders := map[string][]copyHolder{}
	for _, f := range all {
		switch {
		case f.Contents != nil && f.Contents.State == disk.Ours:
			holders[f.Contents.ID] = append(holders[f.Contents.ID], copyHolder{device: f.Device})
		case f.Contents == nil && f.MissingDisk != "":
			// The disk's device is here and cannot be read. So another device with its ID is a copy.
			holders[f.MissingDisk] = append(holders[f.MissingDisk], copyHolder{device: f.Device, unread: true})
		}
	}
	s.inventory.mu.Lock()
	defer s.inventory.mu.Unlock()
	for id, sameID := range holders {
		var before *Device
		if d := s.inventory.disks[id]; d != nil {
			before = &d.Device
			if d.Engine != nil {
				sameID = append(sameID, copyHolder{device: d.Device, open: true})
			}
		}
		refused := refusedCopies(id, sameID, before)
		for _, f := range all {
			if reason := refused[f.Device.Name]; reason != "" && f.Contents != nil && f.Contents.ID == id {
				f.CopyReason = reason
				if d := s.inventory.disks[id]; d != nil && d.Engine == nil && len(refused) == len(sameID) {
					d.Problem = reason
				}
			}
		}
	}
}
