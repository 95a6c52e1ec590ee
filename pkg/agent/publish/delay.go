package publish

import (
	"cmp"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

const (
	// CollectWindow is how long changes are collected before they are written. It bounds the writes of a busy node, and
	// the delay with which the scheduler sees freed space.
	CollectWindow = 50 * time.Millisecond
	// calmDelay is how long changes are collected if no pod waits for them. The scheduler fills a node in much less
	// time before it uses the next one, so usually one write reports all of these pods.
	calmDelay = time.Second
)

// WriteDelay is how much longer the write of status may wait. differed is how long it has differed from what is
// published. Freed space, a changed disk or condition, and a pod to be evicted are written at once. New volumes are
// not: the scheduler has recorded their places. A publication costs an API server several times as much as a pod's
// binding.
func WriteDelay(status, published *diskv1alpha1.NodeDiskCapacityStatus, differed time.Duration) time.Duration {
	if isUrgent(status, published) {
		return 0
	}
	return max(0, calmDelay-differed)
}

// isUrgent reports whether the status differs from the published one by more than new volumes.
func isUrgent(status, published *diskv1alpha1.NodeDiskCapacityStatus) bool {
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

// within reports whether each of the extents lies in one of those. Both are sorted by start.
func within(extents, those []diskv1alpha1.Extent) bool {
	for _, e := range extents {
		i, found := slices.BinarySearchFunc(those, e.Start, func(t diskv1alpha1.Extent, start int64) int { return cmp.Compare(t.Start, start) })
		if !found {
			i-- // the last one that starts before
		}
		if i < 0 || e.Start+e.Length > those[i].Start+those[i].Length {
			return false
		}
	}
	return true
}
