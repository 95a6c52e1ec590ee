package inventory

import (
	"testing"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/units"
)

// TestVolumeOfPieces asserts that a volume of several pieces counts once, has the length of all, and can grow behind
// its last piece.
func TestVolumeOfPieces(t *testing.T) {
	const volume = "pvc-aaaaaaaa-1111-4111-8111-111111111111"
	allocation := func(start, length int64, piece int32) diskv1alpha1.Allocation {
		return diskv1alpha1.Allocation{
			Volume: volume, Partition: diskv1alpha1.PieceID(diskv1alpha1.PartitionID(volume), int(piece)), Piece: piece,
			Phase: diskv1alpha1.PhaseFormatted, Extent: diskv1alpha1.Extent{Start: start * units.MiB, Length: length * units.MiB},
		}
	}
	ndc := &diskv1alpha1.NodeDiskCapacity{Status: diskv1alpha1.NodeDiskCapacityStatus{Disks: []diskv1alpha1.Disk{{
		ID: "a", Class: "ssd", State: diskv1alpha1.DiskReady, Size: 100 * units.MiB,
		Allocations: []diskv1alpha1.Allocation{allocation(2, 5, 1), allocation(20, 10, 0), allocation(40, 3, 2)},
		Free:        []diskv1alpha1.Extent{{Start: 7 * units.MiB, Length: 13 * units.MiB}, {Start: 43 * units.MiB, Length: 4 * units.MiB}, {Start: 60 * units.MiB, Length: 40 * units.MiB}},
	}}}}
	d := Disks(ndc, Context{})[0]
	if sum := SumOf([]Disk{d}); d.VolumeCount() != 1 || sum.Volumes != 1 || len(d.Volumes) != 3 {
		t.Errorf("%d volumes, and %d in the sum", d.VolumeCount(), sum.Volumes)
	}
	for i, want := range []struct {
		piece            int32
		growsTo, movesTo int64
	}{{1, 0, 0}, {0, 22, 40}, {2, 0, 0}} {
		if v := d.Volumes[i]; v.Piece != want.piece || v.Whole() != 18*units.MiB || v.GrowsTo != want.growsTo*units.MiB || v.MovesTo != want.movesTo*units.MiB {
			t.Errorf("%+v, want %+v", v, want)
		}
	}
}
