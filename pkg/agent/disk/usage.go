package disk

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/berthdev/berth/pkg/agent/holders"
)

// claimedBy returns which block devices are made of this one. Volumes of ours that the device mapper shows do not
// count: they are on a disk of ours.
func (d *blockDevice) claimedBy() (reasons []string, err error) {
	dir := filepath.Join(d.sys, "holders")
	above, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("holders: %w", err)
	}
	for _, holder := range above {
		folder := filepath.Join(dir, holder.Name())
		uuid, err := mapperUUID(folder)
		if err != nil {
			return nil, err
		}
		name, _ := os.ReadFile(filepath.Join(folder, "dm/name"))
		mapped := "/dev/mapper/" + strings.TrimSpace(string(name))
		switch {
		case IsVolumeMap(uuid):
		case strings.HasPrefix(uuid, "mpath-"):
			reasons = append(reasons, fmt.Sprintf("the device is one path of the multipath disk %s: select %s", holder.Name(), mapped))
		case strings.HasPrefix(uuid, "CRYPT-"):
			reasons = append(reasons, fmt.Sprintf("the device is encrypted and opened as %s: select %s", holder.Name(), mapped))
		case len(name) > 0:
			reasons = append(reasons, fmt.Sprintf("the device is part of %s, which is %s", holder.Name(), mapped))
		default:
			reasons = append(reasons, "the device is part of "+holder.Name())
		}
	}
	return reasons, nil
}

// usedBy returns what uses the device, and what could not be looked at.
func (d *blockDevice) usedBy(ctx context.Context, i Inspector) (reasons, unchecked []string, err error) {
	parts, err := d.partitions()
	if err != nil {
		return nil, nil, err
	}
	if len(parts) > 0 {
		reasons = append(reasons, fmt.Sprintf("the device has %d partitions", len(parts)))
	}
	if other := otherPath("/sys/block", d.name); other != "" {
		reasons = append(reasons, fmt.Sprintf("%s is another path to the same disk, which belongs to multipath: select its device-mapper device, or remove a path", other))
	}
	system := i.Holders
	if system == nil {
		if system, err = i.ReadHolders(ctx); err != nil {
			return nil, nil, err
		}
	}
	rdev, err := d.deviceNumber()
	if err != nil {
		return nil, nil, err
	}
	held := blockingHolders(system.Of(rdev))
	// A program that has just looked at the device may be about to close it: check once more.
	if len(reasons) == 0 && i.Holders == nil && isBriefOpen(held) {
		select {
		case <-i.after(briefOpenTime):
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
		if system, err = i.ReadHolders(ctx); err != nil {
			return nil, nil, err
		}
		held = blockingHolders(system.Of(rdev))
	}
	for _, h := range held {
		if reason := blockReason(h); !slices.Contains(reasons, reason) {
			reasons = append(reasons, reason)
		}
	}
	for _, index := range slices.Sorted(maps.Keys(parts)) {
		for _, h := range blockingHolders(system.Of(parts[index].rdev)) {
			if reason := "partition " + parts[index].name + ": " + blockReason(h); !slices.Contains(reasons, reason) {
				reasons = append(reasons, reason)
			}
		}
	}
	return reasons, system.Unchecked(), nil
}

// briefOpenTime is how long a program keeps a device open that only looks at it, or has just made it.
const briefOpenTime = 300 * time.Millisecond

// isBriefOpen reports whether the device is held only by programs that have it open.
func isBriefOpen(held []holders.Holder) bool {
	return len(held) > 0 && !slices.ContainsFunc(held, func(h holders.Holder) bool { return h.Kind != holders.Open })
}

// blockingHolders are those of the holders that keep the device from being a disk.
func blockingHolders(held []holders.Holder) []holders.Holder {
	return slices.DeleteFunc(held, func(h holders.Holder) bool { return blockReason(h) == "" })
}

// blockReason says why a holder keeps the device from being a disk. It is empty if it does not: a program that only
// reads, such as udev or a monitor, is not disturbed.
func blockReason(h holders.Holder) string {
	switch h.Kind {
	case holders.Open:
		if !h.Writing || h.Process.Own {
			return ""
		}
		return fmt.Sprintf("%s has the device open for writing", h.Process)
	case holders.Mount:
		return "the device is mounted at " + h.Name
	case holders.Bind:
		return "the device's node is mounted at " + h.Name + ", as of a raw block volume"
	case holders.Published:
		return "the kubelet uses the device as a raw block volume at " + h.Name
	case holders.Swap:
		return "the device is used as swap"
	case holders.Loop:
		return "loop device " + h.Name + " lies on the device"
	case holders.Kernel, holders.File:
	}
	return "the device is in use: " + h.String()
}

// otherPath returns the name of another device below sys, which is /sys/block, with the same identity. Multipath may
// take it at any time, and an exclusive open of one path does not exclude the other. Devices without an identity have
// no other path.
func otherPath(sys, name string) string {
	identity := func(device string) string {
		for _, file := range []string{"wwid", "device/wwid"} {
			if b, err := os.ReadFile(filepath.Join(sys, device, file)); err == nil {
				return strings.TrimSpace(string(b))
			}
		}
		return ""
	}
	own := identity(name)
	if own == "" {
		return ""
	}
	devices, err := os.ReadDir(sys)
	if err != nil {
		return ""
	}
	for _, other := range devices {
		// Paths that the kernel itself combines are hidden.
		hidden, err := readNumber(filepath.Join(sys, other.Name(), "hidden"))
		if other.Name() != name && (err != nil || hidden == 0) && identity(other.Name()) == own {
			return other.Name()
		}
	}
	return ""
}
