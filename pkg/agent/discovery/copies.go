package discovery

import (
	"fmt"
	"slices"
	"strings"

	"github.com/berthdev/berth/pkg/agent/disk"
)

// holder is a device that holds a disk of ours.
type holder struct {
	device Device
	// open is true if the disk is in service there.
	open bool
	// unread is true if the device held the disk before, and cannot be read now.
	unread bool
}

// copies returns which of several devices with one disk ID must not be used, and why, by name. A disk in service stays
// in service, and only the newcomers are refused. Otherwise the device that held the disk before has it. If that is not
// known, none is used: the volumes may be on any of them.
func copies(id string, holders []holder, before *Device) map[string]string {
	if len(holders) < 2 {
		return nil
	}
	if at := slices.IndexFunc(holders, func(h holder) bool { return h.open }); at >= 0 {
		return keepOne(id, holders, holders[at], "is in service")
	}
	if at := slices.IndexFunc(holders, func(h holder) bool { return h.unread }); at >= 0 {
		return keepOne(id, holders, holders[at], "was there before and cannot be read now,")
	}
	// After a reboot the kernel's name alone does not identify the device.
	if before != nil && before.identified() {
		var same []holder
		for _, h := range holders {
			if h.device.is(*before) {
				same = append(same, h)
			}
		}
		if len(same) == 1 || len(same) > 1 && allPaths(same) {
			return keepOne(id, holders, first(same), "was there before,")
		}
	}
	if allPaths(holders) {
		return keepOne(id, holders, first(holders), "is used")
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

// keepOne refuses all holders but one. why is the reason why that one has the disk.
func keepOne(id string, holders []holder, keep holder, why string) map[string]string {
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

func first(holders []holder) holder {
	return slices.MinFunc(holders, func(a, b holder) int { return strings.Compare(a.device.Name, b.device.Name) })
}

// samePaths reports whether both devices are paths to one disk.
func samePaths(a, b Device) bool {
	return a.WWN != "" && a.WWN == b.WWN && a.Serial == b.Serial && a.Size == b.Size
}

func allPaths(holders []holder) bool {
	return !slices.ContainsFunc(holders, func(h holder) bool { return !samePaths(h.device, holders[0].device) })
}

// refuseCopies finds the devices whose disk ID another device has as well.
func (s *scan) refuseCopies(all []*Facts) {
	holders := map[string][]holder{}
	for _, f := range all {
		switch {
		case f.Contents != nil && f.Contents.State == disk.Ours:
			holders[f.Contents.ID] = append(holders[f.Contents.ID], holder{device: f.Device})
		case f.Contents == nil && f.Known != "":
			// The disk's device is here and cannot be read. So another device with its ID is a copy.
			holders[f.Known] = append(holders[f.Known], holder{device: f.Device, unread: true})
		}
	}
	s.inventory.mu.Lock()
	defer s.inventory.mu.Unlock()
	for id, of := range holders {
		var before *Device
		if d := s.inventory.disks[id]; d != nil {
			before = &d.Device
			if d.Engine != nil {
				of = append(of, holder{device: d.Device, open: true})
			}
		}
		refused := copies(id, of, before)
		for _, f := range all {
			if reason := refused[f.Device.Name]; reason != "" && f.Contents != nil && f.Contents.ID == id {
				f.Copy = reason
				if d := s.inventory.disks[id]; d != nil && d.Engine == nil && len(refused) == len(of) {
					d.Problem = reason
				}
			}
		}
	}
}
