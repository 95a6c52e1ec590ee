package publish

import (
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

// etcd takes objects of up to 1.5 MiB. These bounds leave room for the conditions, and for what
// the API server adds for each disk and device.
const (
	// offerBytes is how much the disks may take while the node offers free space: some 4700 volumes.
	offerBytes = 1_000_000
	// listBytes is how much they may take at all. The volumes of further disks are not listed.
	listBytes = 1_100_000
	// deviceBytes is how much the reasons of devices may take.
	deviceBytes = 96 << 10
)

// Upper bounds of what the parts take as JSON, apart from texts of any length.
const (
	diskFixed       = 400
	extentFixed     = 60
	allocationFixed = 170
	orphanFixed     = 45
	wipingFixed     = 75
)

// bytesOf is an upper bound of what the disk takes as JSON.
func bytesOf(d *diskv1alpha1.Disk) int {
	n := diskFixed + len(d.Device) + len(d.Class) + len(d.Model) + len(d.Message) + extentFixed*len(d.Free)
	for i := range d.Allocations {
		a := &d.Allocations[i]
		n += allocationFixed + len(a.Volume) + len(a.Owner)
		if a.OrphanedSince != nil {
			n += orphanFixed
		}
		if a.Wiping != nil {
			n += wipingFixed
		}
	}
	return n
}

// bound keeps the status small enough to be stored, and says in a condition what that costs. With
// too many volumes the node offers no free space, so that they do not become more; with far too
// many it leaves out those of the last disks, and of disks out of service last of all: a disk that
// is away says nothing itself, and the next agent knows its volumes from here.
func bound(status *diskv1alpha1.NodeDiskCapacityStatus) metav1.Condition {
	c := metav1.Condition{Type: diskv1alpha1.ConditionPublicationLimited, Status: metav1.ConditionFalse, Reason: "Complete", Message: "all that there is to publish is published"}
	boundReasons(status.Devices)
	total, volumes := 0, 0
	for i := range status.Disks {
		total += bytesOf(&status.Disks[i])
		volumes += len(status.Disks[i].Allocations)
	}
	if total <= offerBytes {
		return c
	}
	for i := range status.Disks {
		d := &status.Disks[i]
		for _, e := range d.Free {
			d.Overhead += e.Length
		}
		d.Free = nil
	}
	unlisted, listed := 0, 0
	for _, d := range failedFirst(status.Disks) {
		if listed += bytesOf(d); listed <= listBytes {
			continue
		}
		listed -= bytesOf(d)
		for j := range d.Allocations {
			d.Overhead += d.Allocations[j].Length
		}
		if d.Allocations, unlisted = nil, unlisted+1; d.State == diskv1alpha1.DiskReady {
			d.State, d.Message = diskv1alpha1.DiskDraining, "its volumes are served, and not listed: the node has too many"
		}
		listed += bytesOf(d)
	}
	c.Status, c.Reason = metav1.ConditionTrue, "TooManyVolumes"
	c.Message = fmt.Sprintf("%d volumes are more than one NodeDiskCapacity can list: all are served, and the node offers no more space until there are fewer", volumes)
	if unlisted > 0 {
		c.Message += fmt.Sprintf("; the volumes of %d disks are not listed", unlisted)
	}
	return c
}

// failedFirst are the disks, those out of service first.
func failedFirst(disks []diskv1alpha1.Disk) []*diskv1alpha1.Disk {
	var failed, others []*diskv1alpha1.Disk
	for i := range disks {
		if d := &disks[i]; d.State == diskv1alpha1.DiskFailed {
			failed = append(failed, d)
		} else {
			others = append(others, d)
		}
	}
	return append(failed, others...)
}

// boundReasons shortens the reasons of devices if there are too many: the first one of each stays.
func boundReasons(devices []diskv1alpha1.Device) {
	total := 0
	for i := range devices {
		for _, r := range devices[i].Reasons {
			total += len(r)
		}
	}
	if total <= deviceBytes {
		return
	}
	each := deviceBytes / len(devices)
	for i := range devices {
		if r := devices[i].Reasons; len(r) > 0 {
			devices[i].Reasons = []string{clip(r[0], min(each, maxReason))}
		}
	}
}
