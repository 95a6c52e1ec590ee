package volumes

import (
	"testing"

	"github.com/berthdev/berth/pkg/agent/discovery"
	"github.com/berthdev/berth/pkg/agent/disk"
)

// TestFindPrefersDisksInService asserts that a volume on a disk in service is found before one on a disk that is only
// remembered.
func TestFindPrefersDisksInService(t *testing.T) {
	volumes := []disk.Volume{{Partition: "p"}}
	gone := discovery.Disk{Snapshot: disk.Snapshot{ID: "a", Volumes: volumes}, Problem: "gone"}
	serving := discovery.Disk{Snapshot: disk.Snapshot{ID: "b", Volumes: volumes}, Engine: &disk.Disk{}}
	for _, disks := range [][]discovery.Disk{{gone, serving}, {serving, gone}} {
		if d, _, found := findVolume(disks, "p"); !found || d.ID() != "b" {
			t.Errorf("found is %v on %s", found, d.ID())
		}
	}
	if d, _, found := findVolume([]discovery.Disk{gone}, "p"); !found || d.ID() != "a" {
		t.Errorf("of a disk that is gone: %v on %s", found, d.ID())
	}
	if _, _, found := findVolume([]discovery.Disk{gone, serving}, "q"); found {
		t.Error("found what is not there")
	}
}
