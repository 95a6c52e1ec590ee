package publish

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/objects"
)

// etcdLimit is the largest size of an object.
const etcdLimit = 3 << 19

// manyVolumes is a status with that many disks of that many volumes each, with the longest names.
func manyVolumes(disks, volumes int) *diskv1alpha1.NodeDiskCapacityStatus {
	s := &diskv1alpha1.NodeDiskCapacityStatus{}
	since := metav1.NewTime(time.Unix(1700000000, 0).UTC())
	for i := range disks {
		d := diskv1alpha1.Disk{ID: diskv1alpha1.PartitionID(strconv.Itoa(i)), State: diskv1alpha1.DiskReady, Size: 1 << 60, Overhead: 1 << 60, SectorSize: 4096, Model: strings.Repeat("m", maxModel)}
		for j := range volumes {
			d.Allocations = append(d.Allocations, diskv1alpha1.Allocation{
				Volume: strings.Repeat("v", 69), Partition: diskv1alpha1.PartitionID(fmt.Sprint(i, j)), Phase: diskv1alpha1.PhaseFormatted, Owner: strings.Repeat("o", 80),
				Extent: diskv1alpha1.Extent{Start: int64(2*j+1) << 30, Length: 1 << 30}, OrphanedSince: &since,
				Wiping: &diskv1alpha1.WipeProgress{Policy: diskv1alpha1.WipeSecureDiscard, Wiped: 1 << 60},
			})
			d.Overhead -= 1 << 30
		}
		d.Free = []diskv1alpha1.Extent{{Start: 1 << 50, Length: 1 << 40}}
		d.Overhead -= 1 << 40
		s.Disks = append(s.Disks, d)
	}
	for range 64 {
		s.Evictions = append(s.Evictions, diskv1alpha1.EvictionRequest{Namespace: strings.Repeat("n", 63), Name: strings.Repeat("p", 253), UID: types.UID(strings.Repeat("u", 36))})
	}
	for i := range maxDevices {
		d := diskv1alpha1.Device{Name: fmt.Sprint("sd", i), ByID: strings.Repeat("b", 256), State: diskv1alpha1.DeviceBusy}
		for range maxReasons {
			d.Reasons = append(d.Reasons, strings.Repeat("r", maxReason))
		}
		s.Devices = append(s.Devices, d)
	}
	return s
}

// TestLimitSize asserts that no number of volumes makes a status too large for etcd, and that the condition reports the
// limit. The sums of each disk stay correct.
func TestLimitSize(t *testing.T) {
	for _, test := range []struct {
		disks, volumes int
		limited        bool
	}{{1, 0, false}, {4, 100, false}, {8, 1023, true}, {128, 1023, true}} {
		t.Run(fmt.Sprintf("%d disks of %d volumes", test.disks, test.volumes), func(t *testing.T) {
			s := manyVolumes(test.disks, test.volumes)
			c := limitSize(s)
			if c.Type != diskv1alpha1.ConditionPublicationLimited || (c.Status == metav1.ConditionTrue) != test.limited {
				t.Errorf("condition %+v, want limited %v", c, test.limited)
			}
			body, err := json.Marshal(s)
			if err != nil {
				t.Fatal(err)
			}
			// Conditions, and what the API server adds for each disk and device.
			if size := len(body) + 5*maxCondition + 300*(maxDisks+maxDevices); size > etcdLimit {
				t.Errorf("the object would have %d bytes, more than the %d that etcd takes", size, etcdLimit)
			}
			free, listed := 0, 0
			for i := range s.Disks {
				d := &s.Disks[i]
				if err := objects.CheckSpace(d); err != nil {
					t.Fatalf("disk %d: %v", i, err)
				}
				if len(d.Allocations) < test.volumes && d.State == diskv1alpha1.DiskReady {
					t.Fatalf("disk %d takes volumes, and those it has are not listed", i)
				}
				free, listed = free+len(d.Free), listed+len(d.Allocations)
			}
			if (free == 0) != test.limited || listed == 0 && test.volumes > 0 {
				t.Errorf("%d free extents and %d volumes are listed", free, listed)
			}
		})
	}
}

// TestLimitSizeListsMissingDisks asserts that the volumes of disks out of service are listed before those of the
// others: the next agent could not read them.
func TestLimitSizeListsMissingDisks(t *testing.T) {
	s := manyVolumes(8, 1023)
	last := &s.Disks[len(s.Disks)-1]
	last.State = diskv1alpha1.DiskFailed
	limitSize(s)
	if len(last.Allocations) != 1023 || last.State != diskv1alpha1.DiskFailed {
		t.Errorf("of a disk that is away %d volumes are listed, it is %s", len(last.Allocations), last.State)
	}
	if len(s.Disks[0].Allocations) != 1023 || len(s.Disks[6].Allocations) != 0 {
		t.Errorf("of the others %d and %d are listed", len(s.Disks[0].Allocations), len(s.Disks[6].Allocations))
	}
}

// TestMaxJSONBytes asserts that the estimate is never below the real size.
func TestMaxJSONBytes(t *testing.T) {
	for _, volumes := range []int{0, 1, 1000} {
		d := &manyVolumes(1, volumes).Disks[0]
		body, err := json.Marshal(d)
		if err != nil {
			t.Fatal(err)
		}
		if maxJSONBytes(d) < len(body) {
			t.Errorf("with %d volumes: %d bytes, estimated as %d", volumes, len(body), maxJSONBytes(d))
		}
	}
}
