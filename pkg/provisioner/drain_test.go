package provisioner

import (
	"fmt"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/ledger"
	"github.com/berthdev/berth/test/units"
)

// drainBench is a bench whose claim has a volume of 4 GiB on the first of two disks of node n1.
type drainBench struct {
	*bench
	partition, first, second string
}

func newDrainBench(t *testing.T) *drainBench {
	t.Helper()
	b := grown(t)
	v, err := claim.ReadVolume(b.api.volumes(t)[0])
	if err != nil {
		t.Fatal(err)
	}
	return &drainBench{bench: b, partition: v.Partition, first: diskv1alpha1.PartitionID("disk of n1"), second: diskv1alpha1.PartitionID("second")}
}

// publish has the node publish both disks. The volume is on the second one if moved; what it left on the first one is
// wiped already. The second disk has a number of free GiB.
func (b *drainBench) publish(t *testing.T, revision uint64, moved bool, free int64) {
	t.Helper()
	first := ledger.Disk{ID: b.first, Class: "ssd", Size: 11 * units.GiB, Free: []extent.Extent{gib(4, 6)}}
	second := ledger.Disk{ID: b.second, Class: "ssd", Ready: true, Size: 11 * units.GiB}
	at := ledger.Allocation{Partition: b.partition, Extent: gib(0, 4)}
	if moved {
		second.Allocations = []ledger.Allocation{at}
	} else {
		first.Allocations = []ledger.Allocation{at}
	}
	if free > 0 {
		second.Free = []extent.Extent{gib(4, free)}
		if !moved {
			second.Free = []extent.Extent{gib(0, free)}
		}
	}
	b.ledger.SetCapacity("n1", &ledger.Capacity{Revision: 100 + revision, Disks: []ledger.Disk{first, second}})
	if problem := b.ledger.Snapshot("n1").Problem; problem != "" {
		t.Fatal(problem)
	}
}

// newPiecesBench is a drainBench whose volume has a further piece of 2 GiB, which the PersistentVolume names.
func newPiecesBench(t *testing.T) (b *drainBench, pieces string) {
	t.Helper()
	b = newDrainBench(t)
	pieces = diskv1alpha1.JoinPieces([]diskv1alpha1.Place{placeOf(b.first, gib(5, 2))})
	patch := fmt.Appendf(nil, `{"metadata":{"annotations":{%q:%q}},"spec":{"capacity":{"storage":"6Gi"}}}`, diskv1alpha1.AnnotationPieces, pieces)
	if _, err := b.client.CoreV1().PersistentVolumes().Patch(t.Context(), b.api.volumes(t)[0].Name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	b.notifyVolumes(t)
	return b, pieces
}

func placeOf(disk string, e extent.Extent) diskv1alpha1.Place {
	return diskv1alpha1.Place{Disk: disk, Extent: diskv1alpha1.Extent{Start: e.Start, Length: e.Len()}}
}

// inPieces is the first disk with the volume of newPiecesBench.
func (b *drainBench) inPieces() ledger.Disk {
	return ledger.Disk{Allocations: []ledger.Allocation{{Partition: b.partition, Extent: gib(0, 4)}, {Partition: diskv1alpha1.PieceID(b.partition, 1), Extent: gib(5, 2)}}}
}

// publishBoth has a node with the device mapper publish these allocations and this free space of the two disks.
func (b *drainBench) publishBoth(t *testing.T, revision uint64, first, second ledger.Disk) {
	t.Helper()
	first.ID, first.Class, first.Size = b.first, "ssd", 11*units.GiB
	second.ID, second.Class, second.Size, second.Ready = b.second, "ssd", 11*units.GiB, true
	b.ledger.SetCapacity("n1", &ledger.Capacity{Revision: 100 + revision, Disks: []ledger.Disk{first, second}, DeviceMapper: true})
	if problem := b.ledger.Snapshot("n1").Problem; problem != "" {
		t.Fatal(problem)
	}
}

// drain syncs the volume with these decisions, and returns where it is to be moved.
func (b *drainBench) drain(t *testing.T, decisions ...diskv1alpha1.DiskDecision) (to string, err error) {
	t.Helper()
	byID := map[string]diskv1alpha1.DiskDecision{}
	for _, d := range decisions {
		byID[d.ID] = d
	}
	_, err = b.syncDrained(t.Context(), "n1", b.api.volumes(t)[0], byID, nil)
	b.notifyVolumes(t)
	return moveTo(b.api.volumes(t)[0]), err
}

func draining(disk string) diskv1alpha1.DiskDecision {
	return diskv1alpha1.DiskDecision{ID: disk, Drain: &diskv1alpha1.DiskDrain{Mode: diskv1alpha1.DrainMove}}
}

// TestDrain asserts that a volume gets a place on another disk only while its disk is drained and the other one has
// room and takes volumes, and that the annotation goes when it is there.
func TestDrain(t *testing.T) {
	b := newDrainBench(t)
	b.publish(t, 2, false, 3)
	want := func(to string, decisions ...diskv1alpha1.DiskDecision) {
		t.Helper()
		got, err := b.drain(t, decisions...)
		if err != nil || got != to {
			t.Errorf("it is to be moved to %q, want %q: %v", got, to, err)
		}
	}
	want("", draining(b.first))
	b.publish(t, 3, false, 8)
	want("")
	want("", diskv1alpha1.DiskDecision{ID: b.first, Unschedulable: true})
	place := diskv1alpha1.Place{Disk: b.second, Extent: diskv1alpha1.Extent{Start: gib(0, 4).Start, Length: 4 * units.GiB}}.String()
	want(place, draining(b.first))
	want(place, draining(b.first))
	// The operator changes his mind, about either disk.
	want("", draining(b.second))
	want(place, draining(b.first))
	want("", draining(b.first), diskv1alpha1.DiskDecision{ID: b.second, Unschedulable: true})
	want(place, draining(b.first))
	want("")
	want(place, draining(b.first))
	b.publish(t, 4, true, 4)
	want("", draining(b.first))
	want("", draining(b.first))
	if err := b.ledger.Validate(); err != nil {
		t.Error(err)
	}
}

// TestDrainOfPieces asserts that a volume of several pieces leaves its disk for one extent that holds all of them, and
// keeps the record of its pieces until it is there.
func TestDrainOfPieces(t *testing.T) {
	b, pieces := newPiecesBench(t)
	want := func(to, further string, decisions ...diskv1alpha1.DiskDecision) {
		t.Helper()
		got, err := b.drain(t, decisions...)
		if err != nil || got != to || piecesOf(b.api.volumes(t)[0]) != further {
			t.Errorf("it is to be moved to %q with the pieces %q, want %q: %v", got, piecesOf(b.api.volumes(t)[0]), to, err)
		}
		if err := b.ledger.Validate(); err != nil {
			t.Error(err)
		}
	}
	before := b.inPieces()
	b.publishBoth(t, 2, before, ledger.Disk{Free: []extent.Extent{gib(0, 4), gib(5, 5)}})
	want("", pieces, draining(b.first))
	b.publishBoth(t, 3, before, ledger.Disk{Free: []extent.Extent{gib(0, 2), gib(3, 7)}})
	to := placeOf(b.second, gib(3, 6)).String()
	want(to, pieces, draining(b.first))
	// The operator changes his mind.
	want("", pieces)
	want(to, pieces, draining(b.first))
	b.publishBoth(t, 4, ledger.Disk{}, ledger.Disk{Free: []extent.Extent{gib(0, 2), gib(9, 1)}, Allocations: []ledger.Allocation{{Partition: b.partition, Extent: gib(3, 6)}}})
	want("", "", draining(b.first))
	want("", "", draining(b.first))
}

// TestDrainOfPiecesEnds asserts that the record of a volume's pieces goes when the volume is in one, although its drain
// has ended before the node has published that.
func TestDrainOfPiecesEnds(t *testing.T) {
	for name, sync := range map[string]func(t *testing.T, b *drainBench) error{
		"by the node": func(t *testing.T, b *drainBench) error {
			_, err := b.drain(t)
			return err
		},
		"by the claim": func(t *testing.T, b *drainBench) error {
			b.acceptStatus()
			return b.sync(t, nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			b, pieces := newPiecesBench(t)
			b.publishBoth(t, 2, b.inPieces(), ledger.Disk{Free: []extent.Extent{gib(0, 10)}})
			if to, err := b.drain(t, draining(b.first)); err != nil || to == "" {
				t.Fatalf("it is to be moved to %q: %v", to, err)
			}
			if to, err := b.drain(t); err != nil || to != "" {
				t.Fatalf("after the drain it is to be moved to %q: %v", to, err)
			}
			check := func(want string, free int64) {
				t.Helper()
				b.memory.takeWaiting("n1")
				if err := sync(t, b); err != nil {
					t.Error(err)
				}
				b.notifyVolumes(t)
				if has := piecesOf(b.api.volumes(t)[0]); has != want || b.free("n1") != free {
					t.Errorf("it has the pieces %q, and %d GiB are free, want %q and %d", has, b.free("n1"), want, free)
				}
				_, waits := b.memory.takeWaiting("n1")[keyOf(b.pvc)]
				if name == "by the claim" && want != "" && !waits {
					t.Error("the claim does not wait for its node")
				}
			}
			check(pieces, 10)
			// It has not all of its size in one piece.
			publish := func(revision uint64, length int64) {
				t.Helper()
				b.publishBoth(t, revision, ledger.Disk{}, ledger.Disk{
					Free: []extent.Extent{gib(length, 10-length)}, Allocations: []ledger.Allocation{{Partition: b.partition, Extent: gib(0, length)}},
				})
			}
			publish(3, 5)
			check(pieces, 5)
			publish(4, 6)
			check("", 4)
		})
	}
}

// TestDrainLeavesGrowth asserts that the end of a drain's write in doubt takes back nothing that was granted to the
// claim meanwhile.
func TestDrainLeavesGrowth(t *testing.T) {
	b := grown(t)
	pv := b.api.volumes(t)[0]
	b.memory.addUnsettled(drainKey(pv), pv)
	before := b.free("n1")
	if granted, _ := b.ledger.Grow(string(pv.UID), 6*units.GiB); !granted || b.free("n1") == before {
		t.Fatalf("%d GiB are free with the grant", b.free("n1"))
	}
	with := b.free("n1")
	if _, err := b.syncDrained(t.Context(), "n1", pv, nil, nil); err != nil {
		t.Fatal(err)
	}
	if left := b.memory.unsettled(drainKey(pv)); len(left) > 0 || b.free("n1") != with {
		t.Errorf("%d GiB are free and %d writes are in doubt", b.free("n1"), len(left))
	}
}

// TestDrainInDoubt asserts that the place stays reserved while it is not known whether a write was done, and that it is
// free again when it was not.
func TestDrainInDoubt(t *testing.T) {
	for name, test := range map[string]struct {
		outcome outcome
		// reserved is true if the place is reserved after the write.
		reserved, moves bool
	}{
		"served":    {served, true, true},
		"lost":      {lost, true, true},
		"failed":    {failed, true, false},
		"forbidden": {forbidden, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			b := newDrainBench(t)
			b.publish(t, 2, false, 8)
			b.api.answerNext("PATCH", test.outcome)
			pv := b.api.volumes(t)[0]
			_, err := b.syncDrained(t.Context(), "n1", pv, map[string]diskv1alpha1.DiskDecision{b.first: draining(b.first)}, nil)
			if (err == nil) != (test.outcome == served) {
				t.Fatalf("the write: %v", err)
			}
			if free := b.free("n1"); (free == 4) != test.reserved {
				t.Errorf("%d GiB are free after the write", free)
			}
			// The drain ends, so no later write shows what became of this one.
			for range 3 {
				if test.moves {
					break
				}
				if to, err := b.drain(t); err != nil || to != "" {
					t.Errorf("at last it is to be moved to %q: %v", to, err)
				}
			}
			b.notifyVolumes(t)
			if free := b.free("n1"); (free == 4) != test.moves {
				t.Errorf("%d GiB are free at last", free)
			}
			if to := moveTo(b.api.volumes(t)[0]); (to != "") != test.moves {
				t.Errorf("it is to be moved to %q", to)
			}
			if err := b.ledger.Validate(); err != nil {
				t.Error(err)
			}
		})
	}
}
