package publish

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/discovery"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/units"
)

// inService is a disk of 100 MiB that holds one volume of 10 MiB.
func inService() discovery.Disk {
	return discovery.Disk{
		Device: discovery.Device{Name: "sda", Model: "M"},
		Class:  "ssd",
		Engine: &disk.Disk{},
		Snapshot: disk.Snapshot{
			ID: "a", Size: 100 * units.MiB, SectorSize: 512, Overhead: 2 * units.MiB,
			Free:    extent.NewSet(extent.New(units.MiB, 30*units.MiB), extent.New(41*units.MiB, 58*units.MiB)),
			Volumes: []disk.Volume{{Partition: "p", Extent: extent.New(31*units.MiB, 10*units.MiB), Phase: disk.Formatted}},
		},
	}
}

// inPieces is a disk whose volume has two further pieces, one before the first one.
func inPieces() discovery.Disk {
	d := inService()
	d.Snapshot.Free = extent.NewSet(extent.New(2*units.MiB, 29*units.MiB), extent.New(45*units.MiB, 54*units.MiB))
	v := &d.Snapshot.Volumes[0]
	v.Attachment = disk.DeviceMapper
	v.Pieces = []disk.Piece{
		{Partition: "p1", Number: 1, Extent: extent.New(41*units.MiB, 4*units.MiB)},
		{Partition: "p2", Number: 2, Extent: extent.New(units.MiB, units.MiB)},
	}
	return d
}

// TestStatusOfPieces asserts that each piece of a volume is an allocation, sorted by start, and that it is one volume.
func TestStatusOfPieces(t *testing.T) {
	owner := func(disk.Volume) VolumeInfo { return VolumeInfo{Volume: "csi-1", Owner: "ns/pod"} }
	status := Status(Node{DeviceMapper: true}, []discovery.Disk{inPieces()}, nil, nil, owner)
	allocation := func(partition string, start, length int64, piece int32, attachment diskv1alpha1.Attachment) diskv1alpha1.Allocation {
		return diskv1alpha1.Allocation{
			Volume: "csi-1", Partition: partition, Extent: diskv1alpha1.Extent{Start: start * units.MiB, Length: length * units.MiB},
			Piece: piece, Phase: diskv1alpha1.PhaseFormatted, Attachment: attachment, Owner: "ns/pod",
		}
	}
	want := []diskv1alpha1.Allocation{
		allocation("p2", 1, 1, 2, ""), allocation("p", 31, 10, 0, diskv1alpha1.AttachDeviceMapper), allocation("p1", 41, 4, 1, ""),
	}
	if diff := cmp.Diff(want, status.Disks[0].Allocations); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if status.Summary.Volumes != 1 || !status.DeviceMapper {
		t.Errorf("the summary is %+v, and the device mapper %v", status.Summary, status.DeviceMapper)
	}
}

// TestStatusOfDepartedPieces asserts that a volume of several pieces that no disk has yet is published with all of them
// where it was.
func TestStatusOfDepartedPieces(t *testing.T) {
	const volume = "a0000000-0000-5000-8000-00000000000a"
	owner := func(disk.Volume) VolumeInfo { return VolumeInfo{Departed: volume} }
	got := map[int32]string{}
	for _, a := range Status(Node{}, []discovery.Disk{inPieces()}, nil, nil, owner).Disks[0].Allocations {
		got[a.Piece] = a.Partition
	}
	want := map[int32]string{0: volume, 1: diskv1alpha1.PieceID(volume, 1), 2: diskv1alpha1.PieceID(volume, 2)}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestMapperCondition asserts that the condition is there only if a class wants the device mapper, and true only if the
// kernel has none.
func TestMapperCondition(t *testing.T) {
	for name, tc := range map[string]struct {
		node Node
		want metav1.ConditionStatus
	}{
		"not wanted":         {Node{}, ""},
		"wanted":             {Node{DeviceMapper: true, WantMapper: []string{"ssd"}}, metav1.ConditionFalse},
		"wanted and missing": {Node{WantMapper: []string{"hdd", "ssd"}}, metav1.ConditionTrue},
	} {
		status := Status(tc.node, nil, nil, nil, noOwner)
		var got metav1.ConditionStatus
		if c := meta.FindStatusCondition(status.Conditions, diskv1alpha1.ConditionDeviceMapperMissing); c != nil {
			got = c.Status
			if got == metav1.ConditionTrue && !strings.Contains(c.Message, "hdd, ssd") {
				t.Errorf("%s: %q", name, c.Message)
			}
		}
		if got != tc.want {
			t.Errorf("%s: the condition is %q, want %q", name, got, tc.want)
		}
	}
}

func noOwner(disk.Volume) VolumeInfo { return VolumeInfo{} }

// TestStatusOfDisks asserts the published form of a disk with a volume, and the summary.
func TestStatusOfDisks(t *testing.T) {
	owner := func(disk.Volume) VolumeInfo { return VolumeInfo{Volume: "csi-1", Owner: "ns/pod"} }
	status := Status(Node{}, []discovery.Disk{inService()}, nil, nil, owner)
	want := diskv1alpha1.Disk{
		ID: "a", Device: "sda", Class: "ssd", Model: "M", SectorSize: 512, Size: 100 * units.MiB, Overhead: 2 * units.MiB, State: diskv1alpha1.DiskReady,
		Free: []diskv1alpha1.Extent{{Start: units.MiB, Length: 30 * units.MiB}, {Start: 41 * units.MiB, Length: 58 * units.MiB}},
		Allocations: []diskv1alpha1.Allocation{{
			Volume: "csi-1", Partition: "p", Extent: diskv1alpha1.Extent{Start: 31 * units.MiB, Length: 10 * units.MiB},
			Phase: diskv1alpha1.PhaseFormatted, Owner: "ns/pod",
		}},
	}
	if diff := cmp.Diff(want, status.Disks[0]); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if want := (diskv1alpha1.Summary{Disks: 1, Size: "ssd=100Mi", Free: "ssd=88Mi", Largest: "ssd=58Mi", Volumes: 1}); status.Summary != want {
		t.Errorf("summary is %+v, want %+v", status.Summary, want)
	}
}

// TestStatusAddsUp asserts that the published sizes of a disk add up to its size, in every state.
func TestStatusAddsUp(t *testing.T) {
	failed := inService()
	failed.Engine, failed.Problem = nil, strings.Repeat("ü", 2000)
	full := inService()
	for range disk.MaxVolumes {
		full.Snapshot.Volumes = append(full.Snapshot.Volumes, disk.Volume{})
	}
	// The pieces of two volumes use up the entries.
	fullOfPieces := inService()
	for len(fullOfPieces.Snapshot.Volumes) < disk.MaxVolumes/2+1 {
		fullOfPieces.Snapshot.Volumes = append(fullOfPieces.Snapshot.Volumes, disk.Volume{Pieces: []disk.Piece{{Number: 1}}})
	}
	for name, tc := range map[string]struct {
		disk  discovery.Disk
		state diskv1alpha1.DiskState
		free  int
	}{
		"in pieces":          {inPieces(), diskv1alpha1.DiskReady, 2},
		"no entry by pieces": {fullOfPieces, diskv1alpha1.DiskReady, 0},
		"in service":         {inService(), diskv1alpha1.DiskReady, 2},
		"failed":             {failed, diskv1alpha1.DiskFailed, 0},
		"no entry":           {full, diskv1alpha1.DiskReady, 0},
	} {
		d := Status(Node{}, []discovery.Disk{tc.disk}, nil, nil, noOwner).Disks[0]
		total := d.Overhead
		for _, e := range d.Free {
			total += e.Length
		}
		for _, a := range d.Allocations {
			total += a.Length
		}
		if total != d.Size || d.State != tc.state || len(d.Free) != tc.free || len(d.Message) > maxMessage {
			t.Errorf("%s: %d of %d bytes, %s, %d free extents, a message of %d bytes", name, total, d.Size, d.State, len(d.Free), len(d.Message))
		}
	}
}

// TestConditions asserts the conditions with a failed disk and refused devices, and without any disk.
func TestConditions(t *testing.T) {
	failed := inService()
	failed.Problem = "device sda is gone"
	status := Status(Node{}, []discovery.Disk{failed}, nil, []discovery.RefusedDevice{{Device: "sdb", Reason: "has an ext4 file system"}, {Device: "sdc", Reason: "is mounted"}}, noOwner)
	for _, c := range status.Conditions {
		switch c.Type {
		case diskv1alpha1.ConditionReady:
			if c.Status != metav1.ConditionFalse || !strings.Contains(c.Message, "device sda is gone") {
				t.Errorf("%+v", c)
			}
		case diskv1alpha1.ConditionDevicesRefused:
			if c.Status != metav1.ConditionTrue || c.Message != "sdb: has an ext4 file system; sdc: is mounted" {
				t.Errorf("%+v", c)
			}
		}
	}
	for _, c := range Status(Node{}, nil, nil, nil, noOwner).Conditions {
		if want := map[string]metav1.ConditionStatus{diskv1alpha1.ConditionReady: "True", diskv1alpha1.ConditionDevicesRefused: "False", diskv1alpha1.ConditionPublicationLimited: "False"}[c.Type]; c.Status != want || c.Reason == "" || c.Message == "" {
			t.Errorf("without disks: %+v", c)
		}
	}
}

// TestFormatSize asserts that sizes are cut to one digit behind the point, and never rounded up.
func TestFormatSize(t *testing.T) {
	for size, want := range map[int64]string{
		0: "0", units.MiB - 1: "0", units.MiB: "1Mi", 1 << 30: "1Gi", 1<<30 - 1: "1023Mi", 6<<30 - units.MiB: "5.9Gi",
		1<<40 - 1: "1023.9Gi", 3 << 39: "1.5Ti", 1 << 62: "4194304Ti",
	} {
		if got := formatSize(size); got != want {
			t.Errorf("short(%d) is %s, want %s", size, got, want)
		}
	}
}

// TestTimesOfConditions asserts that a condition's time changes together with its status only.
func TestTimesOfConditions(t *testing.T) {
	old, now := metav1.NewTime(time.Unix(1, 0)), metav1.NewTime(time.Unix(2, 0))
	before := []metav1.Condition{{Type: "A", Status: "True", Message: "x", LastTransitionTime: old}, {Type: "B", Status: "True", LastTransitionTime: old}}
	got := withTransitionTimes([]metav1.Condition{{Type: "A", Status: "True", Message: "y"}, {Type: "B", Status: "False"}, {Type: "C", Status: "True"}}, before, now)
	if got[0].LastTransitionTime != old || got[1].LastTransitionTime != now || got[2].LastTransitionTime != now {
		t.Errorf("times are %v", got)
	}
}
