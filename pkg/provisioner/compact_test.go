package provisioner

import (
	"testing"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/ledger"
	"github.com/berthdev/berth/test/units"
)

// TestCompact asserts that a volume gets the place that its node has published as the next move, only while its disk is
// to be compacted and takes volumes, and that the annotation goes when it is there.
func TestCompact(t *testing.T) {
	b := newDrainBench(t)
	publish := func(revision uint64, start int64, free ...extent.Extent) {
		t.Helper()
		b.ledger.SetCapacity("n1", &ledger.Capacity{Revision: 100 + revision, Disks: []ledger.Disk{{
			ID: b.first, Class: "ssd", Size: 11 * units.GiB, Ready: true, Free: free,
			Allocations: []ledger.Allocation{{Partition: b.partition, Extent: gib(start, 4)}},
		}}})
		if problem := b.ledger.Snapshot("n1").Problem; problem != "" {
			t.Fatal(problem)
		}
	}
	publish(2, 5, gib(0, 5), gib(9, 1))
	next := diskv1alpha1.CompactionMove{Partition: b.partition, To: diskv1alpha1.Extent{Start: gib(0, 4).Start, Length: 4 * units.GiB}}
	compact := diskv1alpha1.DiskDecision{ID: b.first, Compact: true}
	want := func(to string, next diskv1alpha1.CompactionMove, decision diskv1alpha1.DiskDecision) {
		t.Helper()
		_, err := b.syncDrained(t.Context(), "n1", b.api.volumes(t)[0], map[string]diskv1alpha1.DiskDecision{b.first: decision}, map[string]diskv1alpha1.CompactionMove{b.first: next})
		b.notifyVolumes(t)
		if got := moveTo(b.api.volumes(t)[0]); err != nil || got != to {
			t.Errorf("it is to be moved to %q, want %q: %v", got, to, err)
		}
		if err := b.ledger.Validate(); err != nil {
			t.Error(err)
		}
	}
	place := diskv1alpha1.Place{Disk: b.first, Extent: next.To}.String()
	cordoned := compact
	cordoned.Unschedulable = true
	want("", next, diskv1alpha1.DiskDecision{ID: b.first})
	want("", next, cordoned)
	want("", diskv1alpha1.CompactionMove{}, compact)
	want("", diskv1alpha1.CompactionMove{Partition: "another", To: next.To}, compact)
	want(place, next, compact)
	if free := b.free("n1"); free != 2 {
		t.Errorf("%d GiB are free while it is moved", free)
	}
	// The node publishes no next move meanwhile.
	want(place, diskv1alpha1.CompactionMove{}, compact)
	// The operator changes his mind.
	want("", next, diskv1alpha1.DiskDecision{ID: b.first})
	want(place, next, compact)
	want("", next, cordoned)
	want(place, next, compact)
	publish(3, 0, gib(4, 6))
	// It is there, and an old status changes nothing.
	want("", next, diskv1alpha1.DiskDecision{ID: b.first})
	want("", next, compact)
}

// TestCompactLeavesGrowth asserts that a move for a larger size goes on when the disk is not compacted.
func TestCompactLeavesGrowth(t *testing.T) {
	b := newDrainBench(t)
	pv := b.api.volumes(t)[0]
	b.ledger.SetCapacity("n1", &ledger.Capacity{Revision: 102, Disks: []ledger.Disk{{
		ID: b.first, Class: "ssd", Size: 11 * units.GiB, Ready: true, Free: []extent.Extent{gib(0, 5)},
		Allocations: []ledger.Allocation{{Partition: b.partition, Extent: gib(5, 4)}},
	}}})
	to := diskv1alpha1.Place{Disk: b.first, Extent: diskv1alpha1.Extent{Start: gib(0, 5).Start, Length: 5 * units.GiB}}
	if err := b.writeMoveTo(t.Context(), pv, &to, false); err != nil {
		t.Fatal(err)
	}
	b.notifyVolumes(t)
	if _, err := b.syncDrained(t.Context(), "n1", b.api.volumes(t)[0], nil, nil); err != nil {
		t.Fatal(err)
	}
	if got := moveTo(b.api.volumes(t)[0]); got != to.String() {
		t.Errorf("it is to be moved to %q", got)
	}
}
