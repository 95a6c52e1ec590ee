package provisioner

import (
	"maps"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/plugins/diskcapacity"
)

// between is besideNeighbor on a node with the device mapper, with further volumes of 1 GiB at these places.
func between(t *testing.T, others ...int64) (b *bench, partition string) {
	t.Helper()
	b, partition = besideNeighbor(t)
	b.hasMapper = true
	b.publishAt(t, 3, around(partition, others...), "")
	return b, partition
}

// around are the volume of 4 GiB with that partition, its neighbor of 1 GiB, and others of 1 GiB at these places.
func around(partition string, others ...int64) map[string]extent.Extent {
	volumes := map[string]extent.Extent{partition: gib(0, 4), "neighbor": gib(4, 1)}
	for i, at := range others {
		volumes[string(rune('a'+i))] = gib(at, 1)
	}
	return volumes
}

func places(extents ...extent.Extent) string {
	var pieces []diskv1alpha1.Place
	for _, e := range extents {
		pieces = append(pieces, diskv1alpha1.Place{Disk: diskv1alpha1.PartitionID("disk of n1"), Extent: diskv1alpha1.Extent{Start: e.Start, Length: e.Len()}})
	}
	return diskv1alpha1.JoinPieces(pieces)
}

// next syncs the claim with that request, and returns the PersistentVolume as everyone sees it then.
func (b *bench) next(t *testing.T, size string) *corev1.PersistentVolume {
	t.Helper()
	b.acceptStatus()
	if err := b.sync(t, asking(size)); err != nil {
		t.Fatal(err)
	}
	b.notifyVolumes(t)
	return b.api.volumes(t)[0]
}

// TestWaysToGrow asserts which way a claim grows, and what is said to the user.
func TestWaysToGrow(t *testing.T) {
	for name, test := range map[string]struct {
		others []int64
		change func(b *bench, partition string)
		size   string
		pieces string
		moveTo string
		// has is the capacity afterwards.
		has  string
		says string
	}{
		"where it is": {size: "6Gi", has: "6Gi", says: "its file system grows on the node", change: func(b *bench, partition string) {
			b.publishAt(t, 4, map[string]extent.Extent{partition: gib(0, 4)}, "")
		}},
		"by a piece at the next mount": {size: "6Gi", has: "6Gi", pieces: places(gib(5, 2)), says: "The volume gets 6Gi in a further piece: nothing is free behind the volume, so the node adds a piece while no pod uses it. If a pod uses it now, delete the pod and start it again"},
		"by a piece, online": {size: "6Gi", has: "6Gi", pieces: places(gib(5, 2)), says: "its file system grows on the node", change: func(b *bench, partition string) {
			b.mapped = partition
			b.publishAt(t, 4, around(partition), "")
		}},
		"by two pieces":   {others: []int64{7}, size: "8Gi", has: "8Gi", pieces: places(gib(5, 2), gib(8, 2)), says: "in a further piece"},
		"by a move alone": {size: "5Gi", has: "5Gi", moveTo: places(gib(5, 5)), says: "The volume gets 5Gi elsewhere", change: func(b *bench, _ string) { b.maxPieces = 1 }},
		"without the device mapper": {size: "5Gi", has: "5Gi", moveTo: places(gib(5, 5)), says: "elsewhere", change: func(b *bench, partition string) {
			b.hasMapper = false
			b.publishAt(t, 4, around(partition), "")
		}},
		"neither, because of the class": {size: "6Gi", has: "4Gi", says: "cannot grow to 6Gi, to 5Gi at most: nothing is free behind it", change: func(b *bench, _ string) { b.maxPieces = 1 }},
		"its class does not allow it": {size: "6Gi", has: "4Gi", says: "because its class ssd does not allow them, and it cannot be moved, because the largest free extent of the disk has 5Gi",
			change: func(b *bench, _ string) { b.maxPieces = 1 }},
		"its node cannot": {size: "6Gi", has: "4Gi", says: "because the kernel of the node has no device mapper", change: func(b *bench, partition string) {
			b.hasMapper = false
			b.publishAt(t, 4, around(partition), "")
		}},
		"not in so few pieces": {others: []int64{7}, size: "8Gi", has: "4Gi", says: "cannot grow to 8Gi, to 6Gi at most: what follows is taken on disk " + diskv1alpha1.PartitionID("disk of n1") + " of node n1, it has 1 of at most 2 pieces",
			change: func(b *bench, _ string) { b.maxPieces = 2 }},
		"not at all": {size: "20Gi", has: "4Gi", says: "to 9Gi at most"},
	} {
		t.Run(name, func(t *testing.T) {
			b, partition := between(t, test.others...)
			if test.change != nil {
				test.change(b, partition)
			}
			pv := b.next(t, test.size)
			if piecesOf(pv) != test.pieces || moveTo(pv) != test.moveTo || capacitySize(pv).Cmp(resource.MustParse(test.has)) != 0 {
				t.Errorf("the volume has %s, pieces %q, and is moved to %q", capacitySize(pv), piecesOf(pv), moveTo(pv))
			}
			if said := b.said(); !strings.Contains(said, test.says) {
				t.Errorf("said is %q, want %q", said, test.says)
			}
			if err := b.ledger.Validate(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestPiecesInDoubt asserts what is reserved for pieces when their write fails.
func TestPiecesInDoubt(t *testing.T) {
	growthInDoubt{
		start: func(t *testing.T) (*bench, string) { return between(t) }, ask: "6Gi", free: 3,
		isGranted: func(pv *corev1.PersistentVolume) bool { return piecesOf(pv) == places(gib(5, 2)) && moveTo(pv) == "" },
	}.check(t)
}

// TestPlanOfOldVersionInDoubt asserts that a plan ends whose write failed, and that was made for a version of the
// PersistentVolume after which the ledger had seen another.
func TestPlanOfOldVersionInDoubt(t *testing.T) {
	for name, test := range map[string]struct {
		maxPieces int
		size      string
		free      int64
	}{
		"pieces": {diskv1alpha1.MaxPieces, "6Gi", 3},
		"move":   {1, "5Gi", 0},
	} {
		t.Run(name, func(t *testing.T) {
			b, _ := between(t)
			b.maxPieces = test.maxPieces
			pv := b.api.volumes(t)[0]
			if _, err := b.client.CoreV1().PersistentVolumes().Patch(t.Context(), pv.Name, types.MergePatchType, []byte(`{"metadata":{"annotations":{"a":"b"}}}`), metav1.PatchOptions{}); err != nil {
				t.Fatal(err)
			}
			b.setVolume(t, b.api.volumes(t)[0])
			b.api.answerNext("PATCH", failed)
			if err := b.sync(t, asking(test.size)); err == nil || b.free("n1") != test.free {
				t.Fatalf("%d GiB are free after the write: %v", b.free("n1"), err)
			}
			if err := b.sync(t, asking("4Gi")); err != nil || b.free("n1") != 5 {
				t.Errorf("%d GiB are free at last: %v", b.free("n1"), err)
			}
		})
	}
}

// TestPiecesGrow asserts that the last piece of a volume grows where it is, and that it has no more pieces than its
// class allows.
func TestPiecesGrow(t *testing.T) {
	b, partition := between(t, 7)
	b.maxPieces = 2
	second := gib(5, 1)
	if pv := b.next(t, "5Gi"); piecesOf(pv) != places(second) {
		t.Fatalf("the volume gets the pieces %q", piecesOf(pv))
	}
	piece := diskv1alpha1.PieceID(partition, 1)
	volumes := around(partition, 7)
	volumes[piece] = second
	b.publishAt(t, 4, volumes, "")
	if b.free("n1") != 3 {
		t.Errorf("%d GiB are free beside the pieces", b.free("n1"))
	}
	second = gib(5, 2)
	if pv := b.next(t, "6Gi"); piecesOf(pv) != places(second) || capacitySize(pv).Cmp(resource.MustParse("6Gi")) != 0 {
		t.Errorf("the volume of %s has the pieces %q", capacitySize(pv), piecesOf(pv))
	}
	volumes[piece] = second
	b.publishAt(t, 5, volumes, "")
	b.said()
	if pv := b.next(t, "7Gi"); piecesOf(pv) != places(second) || moveTo(pv) != "" || !strings.Contains(b.said(), "it has 2 of at most 2 pieces") {
		t.Errorf("a volume of two pieces has the pieces %q and is moved to %q", piecesOf(pv), moveTo(pv))
	}
	// The volume behind the last piece goes.
	delete(volumes, "a")
	b.publishAt(t, 6, volumes, "")
	if pv := b.next(t, "8Gi"); piecesOf(pv) != places(gib(5, 4)) {
		t.Errorf("the volume has the pieces %q", piecesOf(pv))
	}
}

// TestMoveOfPieces asserts that a volume of several pieces is moved in one, and has no further ones then.
func TestMoveOfPieces(t *testing.T) {
	b, partition := between(t, 7)
	b.maxPieces = 2
	b.next(t, "5Gi")
	piece, copied := diskv1alpha1.PieceID(partition, 1), diskv1alpha1.CopyID(partition)
	// The node has it at the end of a larger disk by now.
	volumes := map[string]extent.Extent{partition: gib(0, 1), "neighbor": gib(1, 1), piece: gib(2, 1), "a": gib(3, 1)}
	b.publishAt(t, 4, volumes, "")
	pv := b.next(t, "6Gi")
	if moveTo(pv) != places(gib(4, 6)) || piecesOf(pv) != places(gib(5, 1)) {
		t.Fatalf("the volume has the pieces %q and is moved to %q", piecesOf(pv), moveTo(pv))
	}
	if v, err := claim.ReadVolume(pv); err != nil || diskcapacity.RecordOf(v).Extent.Len() != gib(0, 4).Len() {
		t.Errorf("the record of the first piece is %+v: %v", diskcapacity.RecordOf(v), err)
	}
	moved := maps.Clone(volumes)
	moved[copied], moved[partition] = gib(0, 1), gib(4, 6)
	delete(moved, piece)
	b.publishAt(t, 5, moved, copied)
	if pv := b.next(t, "6Gi"); moveTo(pv) != "" || piecesOf(pv) != "" {
		t.Errorf("the moved volume has the pieces %q and is moved to %q", piecesOf(pv), moveTo(pv))
	}
	delete(moved, copied)
	b.publishAt(t, 6, moved, "")
	if b.free("n1") != 2 {
		t.Errorf("%d GiB are free after the move", b.free("n1"))
	}
}

// TestMovePlaceOfPiecesTaken asserts that a volume keeps its pieces when its move ends without being done.
func TestMovePlaceOfPiecesTaken(t *testing.T) {
	b, partition := between(t, 7)
	b.maxPieces = 2
	b.next(t, "5Gi")
	volumes := map[string]extent.Extent{partition: gib(0, 1), "neighbor": gib(1, 1), diskv1alpha1.PieceID(partition, 1): gib(2, 1), "a": gib(3, 1)}
	b.publishAt(t, 4, volumes, "")
	if pv := b.next(t, "6Gi"); moveTo(pv) == "" {
		t.Fatal("the volume is not moved")
	}
	volumes["b"] = gib(5, 1)
	b.publishAt(t, 5, volumes, "")
	if pv := b.next(t, "6Gi"); moveTo(pv) != "" || piecesOf(pv) != places(gib(5, 1)) {
		t.Errorf("the volume has the pieces %q and is moved to %q, where another one is", piecesOf(pv), moveTo(pv))
	}
}

// TestUnreadablePieces asserts that a volume whose pieces are not known does not grow.
func TestUnreadablePieces(t *testing.T) {
	b, _ := between(t)
	pv := b.api.volumes(t)[0]
	pv.Annotations = map[string]string{diskv1alpha1.AnnotationPieces: "x"}
	b.store(t, b.volumeInformer.GetIndexer().Update, pv)
	if err := b.sync(t, asking("5Gi")); err != nil {
		t.Fatal(err)
	}
	if now := b.api.volumes(t)[0]; now.ResourceVersion != pv.ResourceVersion || !strings.Contains(b.said(), "annotation "+diskv1alpha1.AnnotationPieces) {
		t.Errorf("the volume has %s, and is %+v", capacitySize(now), now.Annotations)
	}
}

// TestPiecesOfAnotherVersion asserts that nothing is planned for a version of the PersistentVolume that the ledger does
// not have: it would be without pieces that the volume has.
func TestPiecesOfAnotherVersion(t *testing.T) {
	b, _ := between(t)
	was := b.api.volumes(t)[0]
	b.next(t, "5Gi")
	b.store(t, b.volumeInformer.GetIndexer().Update, was)
	if err := b.sync(t, asking("6Gi")); err == nil || !strings.Contains(err.Error(), "not known yet") {
		t.Errorf("the growth of an old version: %v", err)
	}
	if pv := b.api.volumes(t)[0]; piecesOf(pv) != places(gib(5, 1)) || moveTo(pv) != "" {
		t.Errorf("the volume has the pieces %q, and is moved to %q", piecesOf(pv), moveTo(pv))
	}
}

// TestAdviceForEphemeral asserts that nothing advises to delete a pod whose end takes the claim with it.
func TestAdviceForEphemeral(t *testing.T) {
	pvc := &corev1.PersistentVolumeClaim{}
	if got := adviceFor(pvc); got != "If a pod uses it now, delete the pod and start it again" {
		t.Errorf("of an ordinary claim: %s", got)
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "build", UID: "uid"}}
	pvc.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(pod, corev1.SchemeGroupVersion.WithKind("Pod"))}
	if got := adviceFor(pvc); !strings.HasPrefix(got, "Pod build owns the claim: deleting the pod deletes the claim and its data") {
		t.Errorf("of a pod's own claim: %s", got)
	}
}
