package publish

import (
	"cmp"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

const (
	// Window is how long changes are collected before they are written. It bounds the
	// writes of a busy node, and how late the scheduler sees freed space.
	Window = 50 * time.Millisecond
	// calm is how long changes are collected that no pod waits for. The scheduler fills a node
	// in much less before it goes on to the next, so that mostly one write tells of all.
	calm = time.Second
)

// Calm is how long the write of status may yet wait if it has differed so long from what is
// published. Space that became free, a disk or a condition that changed, and a pod to be evicted are news. That volumes
// were made is not: the scheduler has recorded their places, and an API server works several times as long on a
// publication as on a pod's binding.
func Calm(status, published *diskv1alpha1.NodeDiskCapacityStatus, differed time.Duration) time.Duration {
	if isNews(status, published) {
		return 0
	}
	return max(0, calm-differed)
}

func isNews(status, published *diskv1alpha1.NodeDiskCapacityStatus) bool {
	if len(status.Disks) != len(published.Disks) || !equality.Semantic.DeepEqual(status.Devices, published.Devices) ||
		!equality.Semantic.DeepEqual(status.Conditions, published.Conditions) ||
		!equality.Semantic.DeepEqual(status.Evictions, published.Evictions) {
		return true
	}
	for i, disk := range status.Disks {
		was := published.Disks[i]
		if !within(disk.Free, was.Free) {
			return true
		}
		disk.Free, disk.Allocations = was.Free, was.Allocations
		if !equality.Semantic.DeepEqual(disk, was) {
			return true
		}
	}
	return false
}

// within reports whether each of the extents lies in one of those, both sorted by start.
func within(extents, those []diskv1alpha1.Extent) bool {
	for _, e := range extents {
		i, found := slices.BinarySearchFunc(those, e.Start, func(t diskv1alpha1.Extent, start int64) int { return cmp.Compare(t.Start, start) })
		if !found {
			i-- // the last that starts before
		}
		if i < 0 || e.Start+e.Length > those[i].Start+those[i].Length {
			return false
		}
	}
	return true
}
