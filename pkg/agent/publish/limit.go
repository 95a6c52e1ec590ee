package publish

import (
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

// etcd accepts objects of up to 1.5 MiB. These bounds leave room for the conditions, and for what the API server adds
// for each disk and device.
const (
	// maxOfferBytes is the size of status.disks up to which the node offers free space: some 4700 volumes.
	maxOfferBytes = 1_000_000
	// maxListBytes is the largest size of status.disks. The volumes of further disks are not listed.
	maxListBytes = 1_100_000
	// maxReasonsBytes is the largest size of the reasons of devices.
	maxReasonsBytes = 96 << 10
)

// Upper bounds of the sizes of the parts as JSON, apart from texts of any length.
const (
	diskBaseBytes       = 400
	extentBytes         = 60
	allocationBaseBytes = 170
	orphanBytes         = 45
	wipingBytes         = 75
)

// maxJSONBytes is an upper bound of the size of the disk as JSON.
func maxJSONBytes(d *diskv1alpha1.Disk) int {
	n := diskBaseBytes + len(d.Device) + len(d.Class) + len(d.Model) + len(d.Message) + extentBytes*len(d.Free)
	for i := range d.Allocations {
		a := &d.Allocations[i]
		n += allocationBaseBytes + len(a.Volume) + len(a.Owner)
		if a.OrphanedSince != nil {
			n += orphanBytes
		}
		if a.Wiping != nil {
			n += wipingBytes
		}
	}
	return n
}

// limitSize keeps the status small enough to be stored, and reports in a condition what is left out. With too many
// volumes the node offers no free space, so that they do not become more. With far too many, limitSize also leaves out
// the volumes of the last disks. Those of disks out of service are left out last of all. Such a disk cannot be read,
// and the next agent knows its volumes from here.
func limitSize(status *diskv1alpha1.NodeDiskCapacityStatus) metav1.Condition {
	c := metav1.Condition{Type: diskv1alpha1.ConditionPublicationLimited, Status: metav1.ConditionFalse, Reason: "Complete", Message: "all that there is to publish is published"}
	shortenReasons(status.Devices)
	total, volumes := 0, 0
	for i := range status.Disks {
		total += maxJSONBytes(&status.Disks[i])
		volumes += len(status.Disks[i].Allocations)
	}
	if total <= maxOfferBytes {
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
		if listed += maxJSONBytes(d); listed <= maxListBytes {
			continue
		}
		listed -= maxJSONBytes(d)
		for j := range d.Allocations {
			d.Overhead += d.Allocations[j].Length
		}
		if d.Allocations, unlisted = nil, unlisted+1; d.State == diskv1alpha1.DiskReady {
			d.State, d.Message = diskv1alpha1.DiskDraining, "its volumes are served, and not listed: the node has too many"
		}
		listed += maxJSONBytes(d)
	}
	c.Status, c.Reason = metav1.ConditionTrue, "TooManyVolumes"
	c.Message = fmt.Sprintf("%d volumes are more than one NodeDiskCapacity can list: all are served, and the node offers no more space until there are fewer", volumes)
	if unlisted > 0 {
		c.Message += fmt.Sprintf("; the volumes of %d disks are not listed", unlisted)
	}
	return c
}

// failedFirst returns the disks, those out of service first.
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

// shortenReasons shortens the reasons of devices if there are too many. The first one of each device is kept.
func shortenReasons(devices []diskv1alpha1.Device) {
	total := 0
	for i := range devices {
		for _, r := range devices[i].Reasons {
			total += len(r)
		}
	}
	if total <= maxReasonsBytes {
		return
	}
	each := maxReasonsBytes / len(devices)
	for i := range devices {
		if r := devices[i].Reasons; len(r) > 0 {
			devices[i].Reasons = []string{Truncate(r[0], min(each, maxReason))}
		}
	}
}
