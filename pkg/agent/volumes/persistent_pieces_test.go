package volumes

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/units"
)

// placeMiB is a place on a disk, in MiB.
func placeMiB(diskID string, start, length int64) diskv1alpha1.Place {
	return diskv1alpha1.Place{Disk: diskID, Extent: diskv1alpha1.Extent{Start: start * units.MiB, Length: length * units.MiB}}
}

// onDiskMiB is a volume with its first piece and further ones, in MiB: start, length and so on.
func onDiskMiB(at ...int64) disk.Volume {
	v := disk.Volume{Extent: extent.New(at[0]*units.MiB, at[1]*units.MiB)}
	for i := 2; i < len(at); i += 2 {
		v.Pieces = append(v.Pieces, disk.Piece{Number: i / 2, Extent: extent.New(at[i]*units.MiB, at[i+1]*units.MiB)})
	}
	return v
}

// grantedMiB is a volume of 10 MiB at 20 MiB that has grown to that size, with these further pieces.
func grantedMiB(size int64, pieces ...diskv1alpha1.Place) claim.Volume {
	return claim.Volume{ID: "v", Name: "pv", Place: placeMiB(diskID, 20, 10), Size: size * units.MiB, Pieces: pieces}
}

// TestCheckPieces asserts which pieces on the disk are those that the PersistentVolume names.
func TestCheckPieces(t *testing.T) {
	a, b := placeMiB(diskID, 50, 5), placeMiB(diskID, 40, 6)
	elsewhere := placeMiB("22222222-2222-4333-8444-555555555555", 50, 5)
	to := placeMiB(diskID, 100, 30)
	moving := grantedMiB(30, a)
	moving.MoveTo = &to
	incomplete := onDiskMiB(20, 10, 50, 5)
	incomplete.Incomplete = "piece 2 of the 2 that its first one names is not in the table"
	for name, tc := range map[string]struct {
		v      claim.Volume
		onDisk disk.Volume
		says   string
	}{
		"one piece":            {grantedMiB(10), onDiskMiB(20, 10), ""},
		"none of two yet":      {grantedMiB(21, a, b), onDiskMiB(20, 10), ""},
		"one of two":           {grantedMiB(21, a, b), onDiskMiB(20, 10, 50, 5), ""},
		"both":                 {grantedMiB(21, a, b), onDiskMiB(20, 10, 50, 5, 40, 6), ""},
		"last one shorter":     {grantedMiB(21, a, b), onDiskMiB(20, 10, 50, 5, 40, 3), ""},
		"moving":               {moving, onDiskMiB(20, 10, 50, 5), ""},
		"moved":                {moving, onDiskMiB(100, 30), ""},
		"other order":          {grantedMiB(21, b, a), onDiskMiB(20, 10, 50, 5, 40, 6), "piece 1"},
		"first of two shorter": {grantedMiB(21, a, b), onDiskMiB(20, 10, 50, 4, 40, 6), "piece 1"},
		"longer":               {grantedMiB(21, a, b), onDiskMiB(20, 10, 50, 5, 40, 7), "piece 2"},
		"other disk":           {grantedMiB(15, elsewhere), onDiskMiB(20, 10, 50, 5), "piece 1"},
		"not named":            {grantedMiB(15), onDiskMiB(20, 10, 50, 5), "names 0"},
		"other first piece":    {grantedMiB(15, a), onDiskMiB(20, 11, 50, 5), "has 11534336 bytes"},
		"shorter first piece":  {grantedMiB(15, a), onDiskMiB(20, 9, 50, 5), "has 9437184 bytes"},
		"its move was removed": {grantedMiB(40, a), onDiskMiB(20, 10, 50, 5), ""},
		"incomplete":           {grantedMiB(21, a, b), incomplete, "restore its entry"},
	} {
		err := checkPieces(tc.v, diskID, tc.onDisk)
		if tc.says == "" && err != nil || tc.says != "" && (!errors.Is(err, errMismatch) || !strings.Contains(err.Error(), tc.says)) {
			t.Errorf("%s: %v, want %q", name, err, tc.says)
		}
	}
}

// TestMissingOf asserts which places are withheld for a volume that was granted more than it has.
func TestMissingOf(t *testing.T) {
	a, b := placeMiB(diskID, 50, 5), placeMiB(diskID, 40, 6)
	to := placeMiB(diskID, 100, 30)
	moving := grantedMiB(30, a)
	moving.MoveTo = &to
	for name, tc := range map[string]struct {
		v      claim.Volume
		onDisk disk.Volume
		want   []extent.Extent
	}{
		"nothing":            {grantedMiB(10), onDiskMiB(20, 10), nil},
		"in place":           {grantedMiB(14), onDiskMiB(20, 10), []extent.Extent{extentMiB(30, 4)}},
		"pieces":             {grantedMiB(21, a, b), onDiskMiB(20, 10), []extent.Extent{extentMiB(50, 5), extentMiB(40, 6)}},
		"first one and more": {grantedMiB(23, a, b), onDiskMiB(20, 10), []extent.Extent{extentMiB(30, 2), extentMiB(50, 5), extentMiB(40, 6)}},
		"the last one":       {grantedMiB(21, a, b), onDiskMiB(20, 10, 50, 5), []extent.Extent{extentMiB(40, 6)}},
		"a longer last one":  {grantedMiB(21, a, b), onDiskMiB(20, 10, 50, 5, 40, 2), []extent.Extent{extentMiB(42, 4)}},
		"moving":             {moving, onDiskMiB(20, 10), []extent.Extent{extentMiB(50, 5)}},
		"moved":              {moving, onDiskMiB(100, 30), nil},
		// The last piece does not get what the first one lacks.
		"its move was removed": {grantedMiB(40, a), onDiskMiB(20, 10, 50, 5), nil},
		"moved, noted late":    {grantedMiB(15, a), onDiskMiB(100, 15), nil},
	} {
		var got []extent.Extent
		for _, missing := range missingOf(tc.v, diskID, tc.onDisk) {
			if missing.disk != diskID {
				t.Errorf("%s: a place on disk %s", name, missing.disk)
			}
			got = append(got, missing.extent)
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}

// grantPieces grants further pieces of the volume's disk, in MiB: start, length and so on. The first piece has 10 MiB.
func (m *movable) grantPieces(at ...int64) {
	m.t.Helper()
	m.change(func(pv *corev1.PersistentVolume) { setPieces(pv, m.disk.ID, at...) })
}

func setPieces(pv *corev1.PersistentVolume, diskID string, at ...int64) {
	size := 10 * units.MiB
	var places []diskv1alpha1.Place
	for i := 0; i < len(at); i += 2 {
		places = append(places, placeMiB(diskID, at[i], at[i+1]))
		size += at[i+1] * units.MiB
	}
	metav1.SetMetaDataAnnotation(&pv.ObjectMeta, diskv1alpha1.AnnotationPieces, diskv1alpha1.JoinPieces(places))
	pv.Spec.Capacity = corev1.ResourceList{corev1.ResourceStorage: *resource.NewQuantity(size, resource.BinarySI)}
}

// TestPiecesAreKeptFree asserts that no other volume gets the places of granted pieces, and that the space is not
// offered.
func TestPiecesAreKeptFree(t *testing.T) {
	m := newMovable(t)
	before, _ := m.Capacity("ssd")
	m.grantPieces(180, 20, 60, 10)
	if after, _ := m.Capacity("ssd"); after != before-30*units.MiB {
		t.Errorf("%d bytes are free, and %d were before 30 MiB were granted", after, before)
	}
	// Its own first piece does not go there either.
	spaces := []diskSpace{{id: m.disk.ID, free: extent.NewSet(extentMiB(2, 250))}}
	m.grower.placer.removeHeld(spaces, m.disks.Disks(), m.grower.placer.reservationsExcept(m.partition))
	if free := spaces[0].free; free.Overlaps(extentMiB(180, 20)) || free.Overlaps(extentMiB(60, 10)) || !free.Contains(extentMiB(100, 20)) {
		t.Errorf("free are %v", free)
	}
}

// TestPiecesWithoutMapper asserts that a volume that cannot get its pieces, because the kernel has no device mapper, is
// served as it is and the reason is reported. Without file system it is not served.
func TestPiecesWithoutMapper(t *testing.T) {
	m := newMovable(t)
	m.grantPieces(180, 20)
	m.sync()
	if disk.CheckMapper() == nil {
		m.checkAt(120, 30)
		return
	}
	if got := m.events.with("PersistentVolume VolumeNotGrown", "device mapper"); len(got) != 1 {
		t.Errorf("events: %q", m.events.with())
	}
	used := ""
	err := m.Stage(t.Context(), m.id, StageOptions{FSType: "ext4"}, func(_ context.Context, device, _ string) error {
		used = device
		return nil
	})
	if err != nil || used == "" {
		t.Errorf("it is not served: %v", err)
	}
	m.checkAt(120, 10)
	pv := volumeAt(t, 20, func(pv *corev1.PersistentVolume) {
		pv.Spec.CSI.VolumeAttributes[diskv1alpha1.AttributeDisk] = m.disk.ID
		setPieces(pv, m.disk.ID, 40, 20)
	})
	m.api.putVolumes(pv)
	m.addVolume(pv)
	if err := m.persistent.sync(t.Context(), pv.Name); err != nil {
		t.Error(err)
	}
	m.checkPhase(diskv1alpha1.PartitionID(pv.Spec.CSI.VolumeHandle), disk.Reserved)
	err = m.Stage(t.Context(), pv.Spec.CSI.VolumeHandle, StageOptions{FSType: "ext4"}, func(context.Context, string, string) error { return nil })
	if !errors.Is(err, ErrNotGrown) {
		t.Errorf("a volume without file system is served without its pieces: %v", err)
	}
}

// TestPiecesThatDiffer asserts that a volume is not mounted if its pieces are not those of its PersistentVolume.
func TestPiecesThatDiffer(t *testing.T) {
	m := newMovable(t)
	d := m.disks.Disks()[0]
	d.Device.Path, d.Snapshot = "", disk.Snapshot{ID: m.disk.ID, Volumes: slices.Clone(m.disks.Disks()[0].Snapshot.Volumes)}
	d.Snapshot.Volumes[0].Pieces = []disk.Piece{{Number: 1, Extent: extentMiB(180, 20)}}
	m.disks.set(d)
	err := m.Stage(t.Context(), m.id, StageOptions{FSType: "ext4"}, func(context.Context, string, string) error { return nil })
	if !errors.Is(err, errMismatch) {
		t.Errorf("it is mounted: %v", err)
	}
}

// TestOrphanPiece asserts that a piece without its volume is listed as an orphan, and kept.
func TestOrphanPiece(t *testing.T) {
	f := newFixture(t)
	d := f.loopDisk()
	const piece = "aaaaaaaa-1111-4111-8111-111111111111"
	d.Device.Path, d.Snapshot.Volumes = "", []disk.Volume{{Partition: piece, Phase: disk.OrphanPiece, Extent: extentMiB(20, 10)}}
	f.disks.set(d)
	f.Manager.compareDisks(f.disks.Disks())
	if err := f.reclaim.release(t.Context(), piece); err != nil {
		t.Fatal(err)
	}
	if got := f.Orphans().Persistent; len(got) != 1 || !strings.Contains(got[0], piece) {
		t.Errorf("orphans: %q", got)
	}
	if f.reclaim.isWiping(piece) || len(f.events.with("has no first piece")) != 1 {
		t.Errorf("events: %q", f.events.with())
	}
}
