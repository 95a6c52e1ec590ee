package ledger

import (
	"errors"
	"slices"
	"strconv"
	"testing"

	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/placement"
	"github.com/berthdev/berth/test/units"
)

// claimWant is a claim's volume of so many GiB.
func claimWant(name string, sizeGiB, roomGiB int64) VolumeRequest {
	return VolumeRequest{
		Partition: "part-" + name, Persistent: true, Headroom: roomGiB * units.GiB,
		Request: placement.Request{Class: class, Size: sizeGiB * units.GiB},
	}
}

// disk10 publishes a node with a disk of 10 GiB, whatever is allocated on it.
func disk10(l *Ledger, node string, revision uint64, allocations ...Allocation) {
	free := extent.NewSet(extent.New(placement.Alignment, 10*units.GiB))
	for _, a := range allocations {
		free = free.Remove(a.Extent)
	}
	d := Disk{ID: "disk-" + node, Class: class, Ready: true, Size: 11 * units.GiB, Allocations: allocations}
	for _, e := range free.All() {
		d.Free = append(d.Free, e)
	}
	l.SetCapacity(node, &Capacity{Revision: revision, Disks: []Disk{d}})
}

// span is part of the disk, in GiB.
func span(start, length int64) extent.Extent {
	return extent.New(placement.Alignment+start*units.GiB, length*units.GiB)
}

func (l *Ledger) freeOn(node string) extent.Set { return l.Snapshot(node).Node.Disks[0].Free }

func expectFree(t *testing.T, l *Ledger, node string, want ...extent.Extent) {
	t.Helper()
	if have := l.freeOn(node); !have.Equal(extent.NewSet(want...)) {
		t.Errorf("free on %s is %v, want %v", node, have, want)
	}
	if err := l.Validate(); err != nil {
		t.Error(err)
	}
}

func TestVolumes(t *testing.T) {
	record := func(start, length int64) Record { return Record{"part-a", "disk-n1", span(start, length)} }
	shown := func(start, length int64) Allocation {
		return Allocation{Partition: "part-a", Extent: span(start, length)}
	}
	wiping := func(start, length int64) Allocation {
		return Allocation{Partition: "part-a", Extent: span(start, length), Wiping: true}
	}
	tests := map[string]struct {
		events func(l *Ledger)
		free   []extent.Extent
	}{
		"recorded": {func(l *Ledger) {
			l.setFirst("pv", "n1", record(2, 3))
		}, []extent.Extent{span(0, 2), span(5, 5)}},
		"recorded and published are the same": {func(l *Ledger) {
			l.setFirst("pv", "n1", record(2, 3))
			disk10(l, "n1", 2, shown(2, 3))
		}, []extent.Extent{span(0, 2), span(5, 5)}},
		"published elsewhere on the node: the published place counts": {func(l *Ledger) {
			l.setFirst("pv", "n1", record(2, 3))
			disk10(l, "n1", 2, shown(7, 3))
		}, []extent.Extent{span(0, 7)}},
		"to grow: the missing tail is behind the partition": {func(l *Ledger) {
			disk10(l, "n1", 2, shown(4, 3))
			l.setFirst("pv", "n1", record(0, 5))
		}, []extent.Extent{span(0, 4), span(9, 1)}},
		"to grow, known before the partition": {func(l *Ledger) {
			l.setFirst("pv", "n1", record(4, 5))
			disk10(l, "n1", 2, shown(4, 3))
		}, []extent.Extent{span(0, 4), span(9, 1)}},
		"to grow beyond the disk": {func(l *Ledger) {
			disk10(l, "n1", 2, shown(8, 1))
			l.setFirst("pv", "n1", record(8, 100))
		}, []extent.Extent{span(0, 8)}},
		"deleted before it was published": {func(l *Ledger) {
			l.setFirst("pv", "n1", record(2, 3))
			l.DeleteVolume("pv")
			l.DeleteVolume("pv")
		}, []extent.Extent{span(0, 10)}},
		"deleted, the partition stays taken": {func(l *Ledger) {
			l.setFirst("pv", "n1", record(2, 3))
			disk10(l, "n1", 2, shown(2, 3))
			l.DeleteVolume("pv")
		}, []extent.Extent{span(0, 2), span(5, 5)}},
		"added after it was deleted": {func(l *Ledger) {
			l.DeleteVolume("pv")
			l.AddVolume("pv", "name of pv", "n1", record(2, 3), nil)
		}, []extent.Extent{span(0, 10)}},
		"deleted, and there again in a backup": {func(l *Ledger) {
			l.DeleteVolume("pv")
			l.setFirst("pv", "n1", record(2, 3))
			l.DeleteVolume("pv")
			l.setFirst("pv", "n1", record(2, 3))
		}, []extent.Extent{span(0, 2), span(5, 5)}},
		"added with an older record": {func(l *Ledger) {
			l.setFirst("pv", "n1", record(2, 4))
			l.AddVolume("pv", "name of pv", "n1", record(2, 3), nil)
		}, []extent.Extent{span(0, 2), span(6, 4)}},
		"made again while the earlier one is wiped": {func(l *Ledger) {
			disk10(l, "n1", 2, wiping(2, 3))
			l.setFirst("pv", "n1", record(6, 3))
		}, []extent.Extent{span(0, 2), span(5, 1), span(9, 1)}},
		"shared by a pod": {func(l *Ledger) {
			l.setFirst("pv", "n1", record(2, 3))
			if _, err := l.Reserve("pod", "n1", []VolumeRequest{claimWant("a", 3, 0), claimWant("b", 2, 0)}); err != nil {
				panic(err)
			}
			l.Forget("pod")
		}, []extent.Extent{span(0, 2), span(5, 5)}},
		"headroom is not reserved": {func(l *Ledger) {
			if _, err := l.Reserve("pod", "n1", []VolumeRequest{claimWant("a", 2, 3)}); err != nil {
				panic(err)
			}
		}, []extent.Extent{span(2, 8)}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			l := New()
			disk10(l, "n1", 1)
			test.events(l)
			expectFree(t, l, "n1", test.free...)
		})
	}
}

func TestHeadroomMustBeFree(t *testing.T) {
	l := New()
	disk10(l, "n1", 1)
	if _, err := l.Reserve("pod", "n1", []VolumeRequest{claimWant("a", 6, 5)}); err == nil {
		t.Error("6 GiB with 5 GiB behind them were reserved on 10 GiB")
	}
	records, err := l.Reserve("pod", "n1", []VolumeRequest{claimWant("a", 2, 3), claimWant("b", 2, 3)})
	if err != nil {
		t.Fatal(err)
	}
	if records[0].Extent != span(0, 2) || records[1].Extent != span(5, 2) {
		t.Errorf("reserved %v, want each with 3 GiB behind it", records)
	}
}

func TestShareVolume(t *testing.T) {
	l := New()
	disk10(l, "n1", 1)
	disk10(l, "n2", 2)
	first, err := l.Reserve("first", "n1", []VolumeRequest{claimWant("a", 4, 0)})
	if err != nil {
		t.Fatal(err)
	}
	var elsewhere *ElsewhereError
	if _, err := l.Reserve("second", "n2", []VolumeRequest{claimWant("a", 4, 0)}); !errors.As(err, &elsewhere) || elsewhere.Node != "n1" {
		t.Errorf("got %v, want that it is on n1", err)
	}
	second, err := l.Reserve("second", "n1", []VolumeRequest{claimWant("a", 4, 0), claimWant("b", 6, 0)})
	if err != nil {
		t.Fatal(err)
	}
	if second[0] != first[0] {
		t.Errorf("the second pod got %v, the first %v", second[0], first[0])
	}
	expectFree(t, l, "n1")
	l.Forget("first")
	expectFree(t, l, "n1")
	if node, r, ok := l.Where("part-a"); !ok || node != "n1" || r != first[0] {
		t.Errorf("found %v on %q, want the second pod's share", r, node)
	}
	l.Forget("second")
	expectFree(t, l, "n1", span(0, 10))
	if node, _, ok := l.Where("part-a"); ok {
		t.Errorf("found on %s what has no holder", node)
	}
}

func TestWhere(t *testing.T) {
	l := New()
	disk10(l, "n1", 1, Allocation{Partition: "part-a", Extent: span(1, 1)}, Allocation{Partition: "part-w", Extent: span(3, 1), Wiping: true})
	disk10(l, "n2", 2)
	if node, r, ok := l.Where("part-a"); !ok || node != "n1" || r != (Record{"part-a", "disk-n1", span(1, 1)}) {
		t.Errorf("found %v on %q, %v, want the partition that is published", r, node, ok)
	}
	if _, _, ok := l.Where("part-w"); ok {
		t.Error("a partition that is being wiped is taken for a volume")
	}
	l.setFirst("pv", "n2", Record{"part-b", "disk-n2", span(2, 2)})
	if node, _, ok := l.Where("part-b"); !ok || node != "n2" {
		t.Errorf("found on %q, %v, want n2", node, ok)
	}
	// A pod's records in doubt do not tie another pod to the node.
	if _, err := l.Reserve("pod", "n2", []VolumeRequest{claimWant("c", 1, 0)}); err != nil {
		t.Fatal(err)
	}
	l.Doubt("pod")
	if _, _, ok := l.Where("part-c"); ok {
		t.Error("found what is in doubt")
	}
	l.DeleteCapacity("n1", 3)
	if _, _, ok := l.Where("part-a"); ok {
		t.Error("found what is no longer published")
	}
	if err := l.Validate(); err != nil {
		t.Error(err)
	}
}

// TestReassignedPlace asserts that a claim does not get the place of its earlier volume when another volume has it by
// now, although a node still publishes the earlier one. It gets a place when the node has published that the earlier
// one has ended.
func TestReassignedPlace(t *testing.T) {
	l := New()
	disk10(l, "n1", 1)
	l.setFirst("pv-a", "n1", Record{"part-a", "disk-n1", span(0, 4)})
	l.DeleteVolume("pv-a")
	if _, err := l.Reserve("b", "n1", []VolumeRequest{claimWant("b", 2, 0)}); err != nil {
		t.Fatal(err)
	}
	// The node made the volume before it ended, and its publication is late.
	shown := Allocation{Partition: "part-a", Extent: span(0, 4)}
	disk10(l, "n1", 2, shown)
	if have, err := l.Reserve("a", "n1", []VolumeRequest{claimWant("a", 4, 0)}); !errors.Is(err, ErrStaleCapacity) {
		t.Errorf("part-a got %v, %v", have, err)
	}
	shown.Wiping = true
	disk10(l, "n1", 3, shown)
	have, err := l.Reserve("a", "n1", []VolumeRequest{claimWant("a", 4, 0)})
	if err != nil || have[0].Extent != span(4, 4) {
		t.Errorf("part-a got %v, %v", have, err)
	}
	expectFree(t, l, "n1", span(8, 2))
}

// TestReserveInDoubtPlaceAgain asserts that a record in doubt does not block the volume that it is about, whichever
// holder tries to place it next.
func TestReserveInDoubtPlaceAgain(t *testing.T) {
	l := New()
	disk10(l, "n1", 1)
	want := []VolumeRequest{claimWant("a", 8, 0)}
	if _, err := l.Reserve("pod", "n1", want); err != nil {
		t.Fatal(err)
	}
	if _, _, ok := l.Share("part-a", nil, "binding/a"); !ok {
		t.Fatal("nothing to share")
	}
	l.Doubt("binding/a")
	l.Forget("pod")
	if _, err := l.Reserve("other", "n1", []VolumeRequest{claimWant("b", 8, 0)}); err == nil {
		t.Error("another volume got the place that is in doubt")
	}
	if !l.InDoubt("part-a") || l.InDoubt("part-b") {
		t.Error("it is not known what is in doubt")
	}
	if _, err := l.Reserve("pod", "n1", want); err != nil {
		t.Errorf("the volume is kept out by what is held in doubt for it: %v", err)
	}
	expectFree(t, l, "n1", span(8, 2))
	l.Release("binding/a")
	l.Forget("pod")
	if expectFree(t, l, "n1", span(0, 10)); l.InDoubt("part-a") {
		t.Error("it is in doubt still")
	}
}

// TestUnseenVolumes asserts that a volume that AddVolume has added is unseen until there is an event of it.
func TestUnseenVolumes(t *testing.T) {
	l := New()
	disk10(l, "n1", 1)
	expect := func(when string, want ...UnseenVolume) {
		t.Helper()
		if have := l.UnseenVolumes(); !slices.Equal(have, want) {
			t.Errorf("%s %v are unseen, want %v", when, have, want)
		}
	}
	l.AddVolume("pv-b", "b", "n1", Record{"part-b", "disk-n1", span(2, 2)}, nil)
	l.AddVolume("pv-a", "a", "n1", Record{"part-a", "disk-n1", span(0, 2)}, nil)
	l.setFirst("pv-c", "n1", Record{"part-c", "disk-n1", span(4, 2)})
	l.AddVolume("pv-c", "c", "n1", Record{"part-c", "disk-n1", span(4, 2)}, nil)
	expect("made", UnseenVolume{"pv-a", "a", "n1"}, UnseenVolume{"pv-b", "b", "n1"})
	l.setFirst("pv-a", "n1", Record{"part-a", "disk-n1", span(0, 2)})
	expect("one seen", UnseenVolume{"pv-b", "b", "n1"})
	l.DeleteVolume("pv-b")
	l.AddVolume("pv-b", "b", "n1", Record{"part-b", "disk-n1", span(2, 2)}, nil)
	expect("one deleted")
}

func TestGrow(t *testing.T) {
	type step struct {
		lengthGiB, possibleGiB int64
		granted                bool
	}
	neighbor := func(l *Ledger) { l.setFirst("other", "n1", Record{"part-o", "disk-n1", span(6, 2)}) }
	tests := map[string]struct {
		before func(l *Ledger)
		step   step
		free   []extent.Extent
	}{
		"the rest of the disk":          {func(*Ledger) {}, step{8, 8, true}, []extent.Extent{span(0, 2)}},
		"more than the disk":            {func(*Ledger) {}, step{9, 8, false}, []extent.Extent{span(0, 2), span(5, 5)}},
		"what it has":                   {func(*Ledger) {}, step{3, 8, true}, []extent.Extent{span(0, 2), span(5, 5)}},
		"less than it has":              {func(*Ledger) {}, step{1, 8, true}, []extent.Extent{span(0, 2), span(5, 5)}},
		"up to the neighbor":            {neighbor, step{4, 4, true}, []extent.Extent{span(0, 2), span(8, 2)}},
		"into the neighbor":             {neighbor, step{5, 4, false}, []extent.Extent{span(0, 2), span(5, 1), span(8, 2)}},
		"of a volume that is published": {func(l *Ledger) { disk10(l, "n1", 2, Allocation{Partition: "part-a", Extent: span(4, 3)}) }, step{5, 6, true}, []extent.Extent{span(0, 4), span(9, 1)}},
		"on a node that publishes nothing": {func(l *Ledger) {
			disk10(l, "n1", 2)
			l.setFirst("pv", "n9", Record{"part-a", "disk-n9", span(0, 3)})
		}, step{4, 3, false}, []extent.Extent{span(0, 10)}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			l := New()
			disk10(l, "n1", 1)
			l.setFirst("pv", "n1", Record{"part-a", "disk-n1", span(2, 3)})
			test.before(l)
			granted, possible := l.Grow("pv", test.step.lengthGiB*units.GiB)
			if granted != test.step.granted || possible != test.step.possibleGiB*units.GiB {
				t.Errorf("granted %v, possible %d GiB, want %+v", granted, possible/units.GiB, test.step)
			}
			expectFree(t, l, "n1", test.free...)
		})
	}
	t.Run("unknown", func(t *testing.T) {
		if granted, possible := New().Grow("pv", units.GiB); granted || possible != 0 {
			t.Errorf("granted %v, possible %d", granted, possible)
		}
	})
}

// TestGrant asserts that a granted length is taken until the PersistentVolume's capacity is as large, whatever old
// events of it come in between.
func TestGrant(t *testing.T) {
	l := New()
	disk10(l, "n1", 1)
	said := func(lengthGiB int64) Record { return Record{"part-a", "disk-n1", span(0, lengthGiB)} }
	l.setFirst("pv", "n1", said(2))
	if granted, _ := l.Grow("pv", 5*units.GiB-1); !granted {
		t.Fatal("not granted")
	}
	l.setFirst("pv", "n1", said(2))
	expectFree(t, l, "n1", span(5, 5))
	if granted, _ := l.Grow("pv", 6*units.GiB); !granted {
		t.Fatal("not granted")
	}
	l.setFirst("pv", "n1", said(5))
	expectFree(t, l, "n1", span(6, 4))
	l.WithdrawGrowth("pv")
	expectFree(t, l, "n1", span(5, 5))
	if granted, _ := l.Grow("pv", 7*units.GiB); !granted {
		t.Fatal("not granted")
	}
	l.setFirst("pv", "n1", said(7))
	l.WithdrawGrowth("pv")
	expectFree(t, l, "n1", span(7, 3))
	if granted, _ := l.Grow("pv", 8*units.GiB); !granted {
		t.Fatal("not granted")
	}
	l.DeleteVolume("pv")
	l.WithdrawGrowth("pv")
	expectFree(t, l, "n1", span(0, 10))
}

// TestSettleGrowth asserts that lengths which a failed write may have granted are free again once a later write has
// succeeded. The length of that write stays taken until an event has it.
func TestSettleGrowth(t *testing.T) {
	l := New()
	disk10(l, "n1", 1)
	said := func(lengthGiB int64) Record { return Record{"part-a", "disk-n1", span(0, lengthGiB)} }
	l.SettleGrowth("pv", 5*units.GiB)
	l.setFirst("pv", "n1", said(2))
	for _, length := range []int64{8, 8, 3} {
		if granted, _ := l.Grow("pv", length*units.GiB); !granted {
			t.Fatal("not granted")
		}
	}
	expectFree(t, l, "n1", span(8, 2))
	l.SettleGrowth("pv", 3*units.GiB)
	expectFree(t, l, "n1", span(3, 7))
	l.setFirst("pv", "n1", said(2))
	expectFree(t, l, "n1", span(3, 7))
	l.setFirst("pv", "n1", said(3))
	expectFree(t, l, "n1", span(3, 7))
	if granted, _ := l.Grow("pv", 9*units.GiB); !granted {
		t.Fatal("not granted")
	}
	l.SettleGrowth("pv", 3*units.GiB)
	expectFree(t, l, "n1", span(3, 7))
	l.WithdrawGrowth("pv")
	expectFree(t, l, "n1", span(3, 7))
	if err := l.Validate(); err != nil {
		t.Error(err)
	}
}

// TestSettle asserts that Settle ends a doubt, and leaves what is assumed.
func TestSettle(t *testing.T) {
	l := New()
	disk10(l, "n1", 1)
	want := []VolumeRequest{{Partition: "part-a", Request: placement.Request{Class: "ssd", Size: 2 * units.GiB}, Persistent: true}}
	reserve := func() {
		t.Helper()
		if _, err := l.Reserve("claim", "n1", want); err != nil {
			t.Fatal(err)
		}
	}
	reserve()
	l.Doubt("claim")
	expectFree(t, l, "n1", span(2, 8))
	l.Settle("claim")
	expectFree(t, l, "n1", span(0, 10))
	reserve()
	l.Settle("claim")
	expectFree(t, l, "n1", span(2, 8))
}

// TestRecentUIDs asserts that the UIDs that were added last are known, also one that was removed and added again.
func TestRecentUIDs(t *testing.T) {
	var g recentUIDs
	g.add("again")
	g.remove("again")
	g.add("again")
	for i := range maxRecentUIDs - 1 {
		g.add(strconv.Itoa(i))
	}
	if !g.has("again") {
		t.Error("a UID that was removed and added again is forgotten before its turn")
	}
	g = recentUIDs{}
	for i := range maxRecentUIDs + 10 {
		g.add(strconv.Itoa(i))
		g.add(strconv.Itoa(i))
	}
	if len(g.uids) != maxRecentUIDs || len(g.ring) != maxRecentUIDs || g.has("9") || !g.has("10") {
		t.Errorf("%d known, %d in the ring", len(g.uids), len(g.ring))
	}
}
