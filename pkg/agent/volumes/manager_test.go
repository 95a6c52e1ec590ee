package volumes

import (
	"testing"

	"k8s.io/apimachinery/pkg/types"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/discovery"
	"github.com/berthdev/berth/pkg/agent/disk"
)

// After a pause of the watch, one pod may have become another of the same name: the
// first one's volumes are released.
func TestPodReplacedUnseen(t *testing.T) {
	m := &Manager{
		options:  Options{OwnersChanged: func() {}},
		pods:     queue[types.NamespacedName](""),
		releases: queue[string](""),
		owners:   map[string]owner{},
	}
	defer m.pods.ShutDown()
	defer m.releases.ShutDown()
	before := boundPod(t, 20, 10)
	before.Spec.Volumes = before.Spec.Volumes[1:]
	now := before.DeepCopy()
	now.UID = "2"
	m.podUpdated(before, before)
	if m.releases.Len() != 0 {
		t.Fatal("a pod that is there is released")
	}
	m.podUpdated(before, now)
	if m.releases.Len() != 1 {
		t.Fatalf("%d volumes are released, want 1", m.releases.Len())
	}
	if got, _ := m.releases.Get(); got != diskv1alpha1.PartitionID(diskv1alpha1.InlineVolumeID("1", "data")) {
		t.Errorf("released is %s", got)
	}
}

// What a person wrote about a disk that is not there hides no volume that is.
func TestFindBelievesDisksInService(t *testing.T) {
	volumes := []disk.Volume{{Partition: "p"}}
	gone := discovery.Disk{Snapshot: disk.Snapshot{ID: "a", Volumes: volumes}, Problem: "gone"}
	serving := discovery.Disk{Snapshot: disk.Snapshot{ID: "b", Volumes: volumes}, Engine: &disk.Disk{}}
	for _, disks := range [][]discovery.Disk{{gone, serving}, {serving, gone}} {
		if d, _, found := findIn(disks, "p"); !found || d.ID() != "b" {
			t.Errorf("found is %v on %s", found, d.ID())
		}
	}
	if d, _, found := findIn([]discovery.Disk{gone}, "p"); !found || d.ID() != "a" {
		t.Errorf("of a disk that is gone: %v on %s", found, d.ID())
	}
	if _, _, found := findIn([]discovery.Disk{gone, serving}, "q"); found {
		t.Error("found what is not there")
	}
}

func TestNamespaceOf(t *testing.T) {
	for name, want := range map[string]string{
		"ns/pod/data": "ns", "ns/a-pod-with-a-name-that-is-too-lo": "ns", "a-namespace-with-a-name-that-is-too-": "", "": "",
	} {
		if got := namespaceOf(disk.Volume{Name: name}); got != want {
			t.Errorf("namespace of %q is %q, want %q", name, got, want)
		}
	}
}
