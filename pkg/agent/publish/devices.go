package publish

import (
	"cmp"
	"slices"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/discovery"
)

// devicesOf is the inventory of the node's devices, sorted by name. If there are more than the object can have, those
// without any decision to make are left out first.
func devicesOf(devices []discovery.ListedDevice, disks []discovery.Disk) []diskv1alpha1.Device {
	if len(devices) > maxDevices {
		devices = slices.Clone(devices)
		slices.SortStableFunc(devices, func(a, b discovery.ListedDevice) int {
			return cmp.Compare(listPriority(a.Verdict), listPriority(b.Verdict))
		})
		devices = devices[:maxDevices]
	}
	problems := map[string]string{}
	for i := range disks {
		if d := &disks[i]; !d.Ready() {
			problems[d.ID()] = d.Problem
		}
	}
	var out []diskv1alpha1.Device
	for _, l := range devices {
		out = append(out, deviceOf(l, problems))
	}
	slices.SortFunc(out, func(a, b diskv1alpha1.Device) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// listPriority is low for devices that must be listed.
func listPriority(v discovery.Verdict) int {
	switch {
	case v.Disk != "":
		return 0
	case v.State == diskv1alpha1.DeviceCandidate:
		return 1
	case v.Class != "":
		return 2
	}
	return 3
}

// deviceOf is one device as it is published. One in use whose disk is out of service has failed: problems has the
// reasons, by the disk's ID.
func deviceOf(l discovery.ListedDevice, problems map[string]string) diskv1alpha1.Device {
	d, v := l.Device, l.Verdict
	out := diskv1alpha1.Device{
		Name: Truncate(d.Name, 64), ByID: d.ByID, WWN: d.WWN, Serial: d.Serial, Model: Truncate(d.Model, maxModel), Transport: d.Transport,
		Size: d.Size, Rotational: d.Rotational, State: v.State, Class: v.Class, Disk: v.Disk, Fingerprint: v.Fingerprint,
	}
	reasons := v.Reasons
	if problem := problems[v.Disk]; v.State == diskv1alpha1.DeviceInUse && problem != "" {
		out.State, reasons = diskv1alpha1.DeviceFailed, []string{problem}
	}
	for _, reason := range reasons[:min(len(reasons), maxReasons)] {
		out.Reasons = append(out.Reasons, Truncate(reason, maxReason))
	}
	return out
}

// countCandidates is how many devices wait to be taken.
func countCandidates(devices []discovery.ListedDevice) int {
	n := 0
	for _, l := range devices {
		if l.Verdict.State == diskv1alpha1.DeviceCandidate {
			n++
		}
	}
	return n
}
