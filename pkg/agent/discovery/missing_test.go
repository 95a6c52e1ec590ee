package discovery

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/units"
)

// TestPublishedPieces asserts that a disk of which only the published state is known has the pieces of its volumes in
// their order, and that a piece without its volume is an orphan.
func TestPublishedPieces(t *testing.T) {
	const volume = "pvc-aaaaaaaa-1111-4111-8111-111111111111"
	first := diskv1alpha1.PartitionID(volume)
	stray := diskv1alpha1.PieceID(diskv1alpha1.PartitionID("pvc-bbbbbbbb-1111-4111-8111-111111111111"), 1)
	allocation := func(partition string, start int64, piece int32) diskv1alpha1.Allocation {
		return diskv1alpha1.Allocation{
			Volume: volume, Partition: partition, Piece: piece, Phase: diskv1alpha1.PhaseFormatted,
			Extent: diskv1alpha1.Extent{Start: start * units.MiB, Length: 5 * units.MiB},
		}
	}
	d := diskFromStatus(diskv1alpha1.Disk{ID: "a", Size: 100 * units.MiB, Allocations: []diskv1alpha1.Allocation{
		allocation(diskv1alpha1.PieceID(first, 2), 10, 2), allocation(first, 20, 0),
		allocation(diskv1alpha1.PieceID(first, 1), 30, 1), allocation(stray, 40, 1),
	}})
	at := func(start int64) extent.Extent { return extent.New(start*units.MiB, 5*units.MiB) }
	want := []disk.Volume{
		{
			Partition: first, Name: volume[len("pvc-"):], Extent: at(20), Phase: disk.Formatted,
			Pieces: []disk.Piece{
				{Partition: diskv1alpha1.PieceID(first, 1), Number: 1, Extent: at(30)},
				{Partition: diskv1alpha1.PieceID(first, 2), Number: 2, Extent: at(10)},
			},
		},
		{Partition: stray, Phase: disk.OrphanPiece, Extent: at(40)},
	}
	if diff := cmp.Diff(want, d.Snapshot.Volumes); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if d.Snapshot.Overhead != 80*units.MiB {
		t.Errorf("the overhead is %d bytes", d.Snapshot.Overhead)
	}
}
