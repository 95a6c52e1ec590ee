package publish

import (
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

func extents(bounds ...int64) []diskv1alpha1.Extent {
	var all []diskv1alpha1.Extent
	for i := 0; i < len(bounds); i += 2 {
		all = append(all, diskv1alpha1.Extent{Start: bounds[i], Length: bounds[i+1]})
	}
	return all
}

// TestWriteDelay asserts that only changes that take free space may wait, and no longer than their time.
func TestWriteDelay(t *testing.T) {
	published := diskv1alpha1.NodeDiskCapacityStatus{
		Conditions: []metav1.Condition{{Type: "Ready", Status: metav1.ConditionTrue}},
		Disks: []diskv1alpha1.Disk{
			{ID: "a", State: diskv1alpha1.DiskReady, Free: extents(10, 10, 40, 20, 80, 5)},
			{ID: "b", State: diskv1alpha1.DiskReady},
		},
	}
	tests := map[string]struct {
		change func(*diskv1alpha1.NodeDiskCapacityStatus)
		waits  bool
	}{
		"nothing":             {func(*diskv1alpha1.NodeDiskCapacityStatus) {}, true},
		"a volume was made":   {func(s *diskv1alpha1.NodeDiskCapacityStatus) { s.Disks[0].Free = extents(15, 5, 40, 20, 80, 5) }, true},
		"in the middle":       {func(s *diskv1alpha1.NodeDiskCapacityStatus) { s.Disks[0].Free = extents(10, 10, 40, 2, 50, 10, 80, 5) }, true},
		"of a whole extent":   {func(s *diskv1alpha1.NodeDiskCapacityStatus) { s.Disks[0].Free = extents(10, 10, 80, 5) }, true},
		"of all":              {func(s *diskv1alpha1.NodeDiskCapacityStatus) { s.Disks[0].Free = nil }, true},
		"a volume's phase":    {func(s *diskv1alpha1.NodeDiskCapacityStatus) { s.Disks[0].Allocations = []diskv1alpha1.Allocation{{}} }, true},
		"space behind":        {func(s *diskv1alpha1.NodeDiskCapacityStatus) { s.Disks[0].Free = extents(10, 11, 40, 20, 80, 5) }, false},
		"space before":        {func(s *diskv1alpha1.NodeDiskCapacityStatus) { s.Disks[0].Free = extents(9, 11, 40, 20, 80, 5) }, false},
		"space at the start":  {func(s *diskv1alpha1.NodeDiskCapacityStatus) { s.Disks[0].Free = extents(1, 2, 10, 10, 40, 20, 80, 5) }, false},
		"between, and taken":  {func(s *diskv1alpha1.NodeDiskCapacityStatus) { s.Disks[0].Free = extents(30, 5) }, false},
		"space behind all":    {func(s *diskv1alpha1.NodeDiskCapacityStatus) { s.Disks[0].Free = extents(90, 5) }, false},
		"on a full disk":      {func(s *diskv1alpha1.NodeDiskCapacityStatus) { s.Disks[1].Free = extents(1, 1) }, false},
		"a disk failed":       {func(s *diskv1alpha1.NodeDiskCapacityStatus) { s.Disks[1].State = diskv1alpha1.DiskFailed }, false},
		"a disk is gone":      {func(s *diskv1alpha1.NodeDiskCapacityStatus) { s.Disks = s.Disks[:1] }, false},
		"a condition changed": {func(s *diskv1alpha1.NodeDiskCapacityStatus) { s.Conditions[0].Status = metav1.ConditionFalse }, false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			status := *published.DeepCopy()
			test.change(&status)
			if wait := WriteDelay(&status, &published, calmDelay/5); (wait == calmDelay-calmDelay/5) != test.waits || wait != 0 && !test.waits {
				t.Errorf("waits %v", wait)
			}
			if wait := WriteDelay(&status, &published, time.Hour); wait != 0 {
				t.Errorf("waits %v after an hour", wait)
			}
		})
	}
}
