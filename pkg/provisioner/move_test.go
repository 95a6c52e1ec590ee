package provisioner

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/ledger"
	"github.com/berthdev/berth/test/units"
)

// besideNeighbor is a bench whose claim has a volume of 4 GiB with another of 1 GiB behind it. 5 GiB are free behind
// that.
func besideNeighbor(t *testing.T) (b *bench, partition string) {
	t.Helper()
	b = grown(t)
	v, err := claim.ReadVolume(b.api.volumes(t)[0])
	if err != nil {
		t.Fatal(err)
	}
	b.publishAt(t, 2, map[string]extent.Extent{v.Partition: gib(0, 4), "neighbor": gib(4, 1)}, "")
	return b, v.Partition
}

func gib(start, length int64) extent.Extent {
	return extent.New(diskv1alpha1.Alignment+start*units.GiB, length*units.GiB)
}

// acceptStatus has the API server accept the next status of the claim, which is not read here.
func (b *bench) acceptStatus() {
	b.api.mu.Lock()
	defer b.api.mu.Unlock()
	b.api.objects["namespaces/default/persistentvolumeclaims/data/status"] = map[string]any{
		"metadata": map[string]any{"resourceVersion": b.pvc.ResourceVersion}, "status": map[string]any{},
	}
}

// publishAt has node n1 publish these volumes, of which one is being wiped.
func (b *bench) publishAt(t *testing.T, revision uint64, volumes map[string]extent.Extent, wiping string) {
	t.Helper()
	free := extent.NewSet(gib(0, 10))
	d := ledger.Disk{ID: diskv1alpha1.PartitionID("disk of n1"), Class: "ssd", Ready: true, Size: 11 * units.GiB}
	for partition, e := range volumes {
		free = free.Remove(e)
		d.Allocations = append(d.Allocations, ledger.Allocation{Partition: partition, Extent: e, Wiping: partition == wiping, Mapped: partition == b.mapped})
	}
	for _, e := range free.All() {
		d.Free = append(d.Free, e)
	}
	b.ledger.SetCapacity("n1", &ledger.Capacity{Revision: 100 + revision, Disks: []ledger.Disk{d}, DeviceMapper: b.hasMapper})
	if problem := b.ledger.Snapshot("n1").Problem; problem != "" {
		t.Fatal(problem)
	}
}

// growthInDoubt is a claim of 4Gi on a disk where 5 GiB are free, which cannot grow in place.
type growthInDoubt struct {
	start func(t *testing.T) (b *bench, partition string)
	// ask is the size that it shall have, and free how many GiB are free when that is granted.
	ask  string
	free int64
	// isGranted reports whether the PersistentVolume has the annotation of the grant.
	isGranted func(*corev1.PersistentVolume) bool
}

// check asserts what is reserved when the write of the grant fails, and that a settled one has the size and the
// annotation, or neither.
func (g growthInDoubt) check(t *testing.T) {
	for name, test := range map[string]struct {
		outcome outcome
		// free is how many GiB are free after the write, and settled how many when the request is lowered again.
		free, settled int64
		granted       bool
	}{
		"served":    {served, g.free, g.free, true},
		"lost":      {lost, g.free, g.free, true},
		"failed":    {failed, g.free, 5, false},
		"forbidden": {forbidden, 5, 5, false},
		"busy":      {busy, 5, 5, false},
	} {
		t.Run(name, func(t *testing.T) {
			b, _ := g.start(t)
			b.api.answerNext("PATCH", test.outcome)
			b.acceptStatus()
			if err := b.sync(t, asking(g.ask)); (err == nil) != (test.outcome == served) {
				t.Fatalf("the write: %v", err)
			}
			if b.free("n1") != test.free {
				t.Errorf("%d GiB are free after the write, want %d", b.free("n1"), test.free)
			}
			for range 3 {
				_ = b.sync(t, asking("4Gi"))
				b.notifyVolumes(t)
			}
			if b.free("n1") != test.settled {
				t.Errorf("%d GiB are free at last, want %d", b.free("n1"), test.settled)
			}
			pv, size := b.api.volumes(t)[0], "4Gi"
			if test.granted {
				size = g.ask
			}
			isNeither := moveTo(pv) == "" && piecesOf(pv) == ""
			if g.isGranted(pv) != test.granted || isNeither == test.granted || capacitySize(pv).Cmp(resource.MustParse(size)) != 0 {
				t.Errorf("the volume has %s and the pieces %q, and is moved to %q", capacitySize(pv), piecesOf(pv), moveTo(pv))
			}
			if err := b.ledger.Validate(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestMoveInDoubt asserts what is reserved for a move when its write fails.
func TestMoveInDoubt(t *testing.T) {
	growthInDoubt{
		start: besideNeighbor, ask: "5Gi", free: 0,
		isGranted: func(pv *corev1.PersistentVolume) bool { return moveTo(pv) != "" && piecesOf(pv) == "" },
	}.check(t)
}

// TestMoveEnds asserts that the annotation stays until the node publishes the volume at its new place, and that another
// request waits for that.
func TestMoveEnds(t *testing.T) {
	b, partition := besideNeighbor(t)
	next := func(size string) *corev1.PersistentVolume {
		t.Helper()
		b.acceptStatus()
		if err := b.sync(t, asking(size)); err != nil {
			t.Fatal(err)
		}
		b.notifyVolumes(t)
		return b.api.volumes(t)[0]
	}
	to := moveTo(next("5Gi"))
	if to == "" {
		t.Fatal("the volume is not moved")
	}
	b.said()
	if pv := next("6Gi"); moveTo(pv) != to || capacitySize(pv).Cmp(resource.MustParse("5Gi")) != 0 {
		t.Errorf("the volume has %s and is moved to %q before it is there", capacitySize(pv), moveTo(pv))
	}
	if said := b.said(); strings.Contains(said, reasonResizeFailed) {
		t.Errorf("the next request fails: %s", said)
	}
	copied := diskv1alpha1.CopyID(partition)
	b.publishAt(t, 3, map[string]extent.Extent{partition: gib(0, 4), "neighbor": gib(4, 1), copied: gib(5, 5)}, "")
	if pv := next("5Gi"); moveTo(pv) != to {
		t.Error("the move has ended while the volume is copied")
	}
	b.publishAt(t, 4, map[string]extent.Extent{copied: gib(0, 4), "neighbor": gib(4, 1), partition: gib(5, 5)}, copied)
	if pv := next("5Gi"); moveTo(pv) != "" {
		t.Errorf("the volume is to be moved to %q, where it is", moveTo(pv))
	}
	b.publishAt(t, 5, map[string]extent.Extent{"neighbor": gib(4, 1), partition: gib(5, 5)}, "")
	if b.free("n1") != 4 {
		t.Errorf("%d GiB are free after the move, want 4", b.free("n1"))
	}
}

// TestMovePlaceTaken asserts that a move whose place another volume has got ends, and that the volume gets another
// place as soon as there is one.
func TestMovePlaceTaken(t *testing.T) {
	b, partition := besideNeighbor(t)
	next := func() *corev1.PersistentVolume {
		t.Helper()
		for range 2 {
			b.acceptStatus()
			if err := b.sync(t, asking("5Gi")); err != nil {
				t.Fatal(err)
			}
			b.notifyVolumes(t)
		}
		return b.api.volumes(t)[0]
	}
	if moveTo(next()) == "" {
		t.Fatal("the volume is not moved")
	}
	// The kubelet has tried, and tries again.
	b.pvc.Status.AllocatedResourceStatuses = map[corev1.ResourceName]corev1.ClaimResourceStatus{
		corev1.ResourceStorage: corev1.PersistentVolumeClaimNodeResizeInProgress,
	}
	b.publishAt(t, 3, map[string]extent.Extent{partition: gib(0, 4), "neighbor": gib(4, 1), "other": gib(6, 1)}, "")
	b.said()
	if pv := next(); moveTo(pv) != "" || !strings.Contains(b.said(), "nothing is free behind it") {
		t.Errorf("the volume is to be moved to %q, where another one is, or nothing is said", moveTo(pv))
	}
	b.publishAt(t, 4, map[string]extent.Extent{partition: gib(0, 4), "neighbor": gib(4, 1)}, "")
	if pv := next(); moveTo(pv) == "" || capacitySize(pv).Cmp(resource.MustParse("5Gi")) != 0 {
		t.Errorf("the volume has %s and is moved to %q", capacitySize(pv), moveTo(pv))
	}
}

// TestMoveOfOldVersion asserts that a claim whose move the ledger knows already is not said to be infeasible, although
// the controllers see the PersistentVolume without the move.
func TestMoveOfOldVersion(t *testing.T) {
	b, _ := besideNeighbor(t)
	was := b.api.volumes(t)[0]
	b.acceptStatus()
	if err := b.sync(t, asking("5Gi")); err != nil || moveTo(b.api.volumes(t)[0]) == "" {
		t.Fatalf("the volume is not moved: %v", err)
	}
	b.said()
	for _, seen := range []string{"planned", "observed"} {
		if err := b.sync(t, asking("5Gi")); err == nil || !strings.Contains(err.Error(), "not known yet") {
			t.Errorf("%s: the growth of an old version: %v", seen, err)
		}
		if said := b.said(); said != "" {
			t.Errorf("%s: said is %q", seen, said)
		}
		b.notifyVolumes(t)
		b.store(t, b.volumeInformer.GetIndexer().Update, was)
	}
}
