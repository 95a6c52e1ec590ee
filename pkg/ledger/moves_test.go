package ledger

import (
	"errors"
	"testing"

	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/units"
)

// moving is a ledger with the volume "pv" of 2 GiB at 0, which is published, and what else is on its disk of 10 GiB.
func moving(others ...Allocation) *Ledger {
	l := New()
	disk10(l, "n1", 1, append([]Allocation{{Partition: "part-a", Extent: span(0, 2)}}, others...)...)
	l.setFirst("pv", "n1", Record{"part-a", "disk-n1", span(0, 2)})
	return l
}

func plan(l *Ledger, version uint64, lengthGiB int64) (Move, bool) {
	m, ok, _ := l.PlanMove("pv", MoveRequest{Copy: "copy-a", Left: "left-a", Version: version, Length: lengthGiB * units.GiB, Class: class})
	return m, ok
}

// TestPlanMove asserts where a move goes, and when none is planned.
func TestPlanMove(t *testing.T) {
	at := func(partition string, e extent.Extent) Allocation { return Allocation{Partition: partition, Extent: e} }
	tests := map[string]struct {
		ledger func() *Ledger
		length int64
		want   extent.Extent // empty if no move is planned
	}{
		"the smallest extent that holds it": {func() *Ledger { return moving(at("b", span(2, 1)), at("c", span(6, 2))) }, 2, span(8, 2)},
		"of two the first":                  {func() *Ledger { return moving(at("b", span(2, 2)), at("c", span(6, 2))) }, 2, span(4, 2)},
		"no extent is large enough":         {func() *Ledger { return moving(at("b", span(2, 2)), at("c", span(6, 2))) }, 3, extent.Extent{}},
		"the volume is not known":           {New, 3, extent.Extent{}},
		"no length":                         {func() *Ledger { return moving() }, 0, extent.Extent{}},
		"the volume is not published yet": {func() *Ledger {
			l := moving()
			disk10(l, "n1", 2)
			return l
		}, 3, extent.Extent{}},
		"the volume has not grown yet to what was granted": {func() *Ledger {
			l := moving()
			l.setFirst("pv", "n1", Record{"part-a", "disk-n1", span(0, 3)})
			return l
		}, 4, extent.Extent{}},
		"the volume cannot have what was granted where it is": {func() *Ledger {
			l := moving(at("b", span(2, 1)))
			l.setFirst("pv", "n1", Record{"part-a", "disk-n1", span(0, 3)})
			return l
		}, 3, span(3, 3)},
		"the volume is being wiped": {func() *Ledger {
			l := moving()
			disk10(l, "n1", 2, Allocation{Partition: "part-a", Extent: span(0, 2), Wiping: true})
			return l
		}, 3, extent.Extent{}},
		"the earlier place of the last move is being wiped": {func() *Ledger {
			return moving(Allocation{Partition: "copy-a", Extent: span(4, 1), Wiping: true})
		}, 3, extent.Extent{}},
		"a move is planned": {func() *Ledger {
			l := moving()
			plan(l, 1, 3)
			return l
		}, 3, extent.Extent{}},
		"the node publishes nothing any more": {func() *Ledger {
			l := moving()
			l.DeleteCapacity("n1", 9)
			return l
		}, 3, extent.Extent{}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			l := test.ledger()
			m, ok := plan(l, 5, test.length)
			if ok == test.want.Empty() || m.Extent != test.want {
				t.Errorf("planned %t: %+v, want %v", ok, m, test.want)
			}
			if ok && (m.Disk != "disk-n1" || m.Copy != "copy-a" || l.freeOn("n1").Overlaps(m.Extent)) {
				t.Errorf("planned %+v, and free is %v", m, l.freeOn("n1"))
			}
			if err := l.Validate(); err != nil {
				t.Error(err)
			}
		})
	}
	l := moving()
	plan(l, 1, 3)
	if _, _, err := l.PlanMove("pv", MoveRequest{Copy: "copy-a", Version: 1, Length: 3 * units.GiB, Class: class}); !errors.Is(err, ErrUnsettled) {
		t.Errorf("a second move: %v", err)
	}
}

// TestMoveStaysOnDisk asserts that another disk of the node is not used, although its free extent is smaller.
func TestMoveStaysOnDisk(t *testing.T) {
	l := New()
	l.SetCapacity("n1", &Capacity{Revision: 1, Disks: []Disk{
		{ID: "a", Class: class, Ready: true, Size: 11 * units.GiB, Free: []extent.Extent{span(2, 3)}},
		{ID: "b", Class: class, Ready: true, Size: 11 * units.GiB, Free: []extent.Extent{span(2, 8)}, Allocations: []Allocation{{Partition: "part-a", Extent: span(0, 2)}}},
	}})
	l.setFirst("pv", "n1", Record{"part-a", "a", span(0, 2)})
	if m, ok := plan(l, 1, 3); !ok || m.Disk != "b" || m.Extent != span(2, 3) {
		t.Errorf("planned %t: %+v", ok, m)
	}
	if largest := l.Snapshot("n1").Largest("b"); largest != 5*units.GiB {
		t.Errorf("the largest free extent has %d bytes", largest)
	}
}

// TestPlannedMoveEnds asserts that a move that is planned keeps its place until the next version of the
// PersistentVolume, and no longer than that unless the version has the move.
func TestPlannedMoveEnds(t *testing.T) {
	// The volume could grow by 1 GiB where it is.
	all, kept := []extent.Extent{span(2, 1), span(4, 6)}, []extent.Extent{span(2, 1), span(7, 3)}
	tests := map[string]struct {
		then func(l *Ledger, m *Move)
		free []extent.Extent
	}{
		"an event of the version that it was planned for": {func(l *Ledger, _ *Move) { l.setOnlyMove("pv", "n1", 5, nil) }, kept},
		"an older event":                {func(l *Ledger, _ *Move) { l.setOnlyMove("pv", "n1", 4, nil) }, kept},
		"the next version without it":   {func(l *Ledger, _ *Move) { l.setOnlyMove("pv", "n1", 6, nil) }, all},
		"the next version has it":       {func(l *Ledger, m *Move) { l.setOnlyMove("pv", "n1", 6, m) }, kept},
		"and an older event":            {func(l *Ledger, m *Move) { l.setOnlyMove("pv", "n1", 6, m); l.setOnlyMove("pv", "n1", 7, nil) }, all},
		"withdrawn for another version": {func(l *Ledger, _ *Move) { l.WithdrawMove("pv", 6) }, kept},
		"withdrawn":                     {func(l *Ledger, _ *Move) { l.WithdrawMove("pv", 5) }, all},
		"withdrawn when it is written": {func(l *Ledger, m *Move) {
			l.setOnlyMove("pv", "n1", 6, m)
			l.WithdrawMove("pv", 5)
		}, kept},
		"the volume is gone": {func(l *Ledger, _ *Move) { l.DeleteVolume("pv") }, all},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			l := moving(Allocation{Partition: "b", Extent: span(3, 1)})
			m, ok := plan(l, 5, 3)
			if !ok {
				t.Fatal("no move is planned")
			}
			if granted, possible := l.Grow("pv", 3*units.GiB); granted || possible != 2*units.GiB {
				t.Errorf("a volume that is moved may grow to %d where it is: %t", possible, granted)
			}
			test.then(l, &m)
			expectFree(t, l, "n1", test.free...)
		})
	}
}

// TestMoved asserts that both places of a moved volume are taken until it is wiped at the earlier one, and when it
// counts as moved.
func TestMoved(t *testing.T) {
	l := moving(Allocation{Partition: "b", Extent: span(2, 1)})
	m, ok := plan(l, 1, 3)
	if !ok || m.Extent != span(3, 3) {
		t.Fatalf("planned %t: %v", ok, m)
	}
	l.setOnlyMove("pv", "n1", 2, &m)
	expectFree(t, l, "n1", span(6, 4))
	moved := func(want bool) {
		t.Helper()
		if l.Snapshot("n1").IsMoved("part-a", m) != want {
			t.Errorf("moved is %t", !want)
		}
	}
	b := Allocation{Partition: "b", Extent: span(2, 1)}
	disk10(l, "n1", 2, Allocation{Partition: "part-a", Extent: span(0, 2)}, b, Allocation{Partition: "copy-a", Extent: span(3, 3)})
	expectFree(t, l, "n1", span(6, 4))
	moved(false)
	disk10(l, "n1", 3, Allocation{Partition: "copy-a", Extent: span(0, 2), Wiping: true}, b, Allocation{Partition: "part-a", Extent: span(3, 3)})
	expectFree(t, l, "n1", span(6, 4))
	moved(true)
	l.setFirst("pv", "n1", Record{"part-a", "disk-n1", span(0, 3)})
	l.setOnlyMove("pv", "n1", 3, nil)
	expectFree(t, l, "n1", span(6, 4))
	disk10(l, "n1", 4, b, Allocation{Partition: "part-a", Extent: span(3, 3)})
	expectFree(t, l, "n1", span(0, 2), span(6, 4))
	if granted, possible := l.Grow("pv", 7*units.GiB); !granted || possible != 7*units.GiB {
		t.Errorf("the moved volume may grow to %d where it is now: %t", possible, granted)
	}
}

// TestStuck asserts when a volume can have what was granted neither where it is nor by its move.
func TestStuck(t *testing.T) {
	b := Allocation{Partition: "b", Extent: span(2, 1)}
	granted := func(l *Ledger) *Ledger {
		l.setFirst("pv", "n1", Record{"part-a", "disk-n1", span(0, 3)})
		return l
	}
	moved := granted(moving(b))
	m, ok := plan(moved, 1, 3)
	if !ok {
		t.Fatal("no move is planned")
	}
	moved.setOnlyMove("pv", "n1", 2, &m)
	silent := granted(moving(b))
	silent.DeleteCapacity("n1", 9)
	for name, test := range map[string]struct {
		ledger *Ledger
		want   bool
	}{
		"it has what was granted": {moving(b), false},
		"there is room behind it": {granted(moving()), false},
		// Only the last piece grows: the move of the volume was removed.
		"there is room behind its first piece": {granted(withPieces([]extent.Extent{span(6, 1)})), true},
		"another volume is behind it":          {granted(moving(b)), true},
		"it is moved":                          {moved, false},
		"nothing is published":                 {silent, false},
		"it is not known":                      {New(), false},
	} {
		if got := test.ledger.IsStuck("pv"); got != test.want {
			t.Errorf("%s: stuck is %t", name, got)
		}
	}
	if _, ok := plan(granted(withPieces([]extent.Extent{span(6, 1)})), 6, 3); !ok {
		t.Error("a volume whose first piece cannot grow is not moved")
	}
	taken := func(want bool, others ...Allocation) {
		t.Helper()
		disk10(moved, "n1", moved.Snapshot("n1").Revision+1, append(others, Allocation{Partition: "part-a", Extent: span(0, 2)}, b)...)
		if got := moved.Snapshot("n1").IsTaken("part-a", m); got != want {
			t.Errorf("with %v the place is taken: %t", others, got)
		}
	}
	taken(false)
	taken(false, Allocation{Partition: "copy-a", Extent: m.Extent})
	taken(false, Allocation{Partition: "c", Extent: span(6, 1)})
	taken(true, Allocation{Partition: "c", Extent: span(5, 1)})
}

// TestPlanMoveElsewhere asserts that a volume that must leave its disk gets the tightest place on another disk of its
// class that takes volumes, and no other.
func TestPlanMoveElsewhere(t *testing.T) {
	disks := func(change func(all []Disk)) *Ledger {
		l := New()
		all := []Disk{
			{ID: "a", Class: class, Size: 11 * units.GiB, Free: []extent.Extent{span(2, 8)}, Allocations: []Allocation{{Partition: "part-a", Extent: span(0, 2)}}},
			{ID: "b", Class: class, Ready: true, Size: 11 * units.GiB, Free: []extent.Extent{span(0, 5)}},
			{ID: "c", Class: class, Ready: true, Size: 11 * units.GiB, Free: []extent.Extent{span(0, 1), span(4, 3)}},
			{ID: "d", Class: "other", Ready: true, Size: 11 * units.GiB, Free: []extent.Extent{span(0, 2)}},
		}
		change(all)
		l.SetCapacity("n1", &Capacity{Revision: 1, Disks: all})
		l.setFirst("pv", "n1", Record{"part-a", "a", span(0, 2)})
		return l
	}
	for name, test := range map[string]struct {
		change func(all []Disk)
		disk   string
		at     extent.Extent
	}{
		"the tightest":              {func([]Disk) {}, "c", span(4, 2)},
		"not one that is cordoned":  {func(all []Disk) { all[2].Ready = false }, "b", span(0, 2)},
		"not one of larger sectors": {func(all []Disk) { all[0].SectorSize, all[1].SectorSize, all[2].SectorSize = 512, 512, 4096 }, "b", span(0, 2)},
		"one of smaller sectors":    {func(all []Disk) { all[0].SectorSize, all[2].SectorSize = 4096, 512 }, "c", span(4, 2)},
		"of two the first":          {func(all []Disk) { all[2].Free = []extent.Extent{span(1, 5)} }, "b", span(0, 2)},
		"no other disk has room":    {func(all []Disk) { all[1].Free, all[2].Free = nil, []extent.Extent{span(0, 1)} }, "", extent.Extent{}},
		"what it left is still there": {func(all []Disk) {
			all[1].Free, all[1].Allocations = nil, []Allocation{{Partition: "left-a", Extent: span(0, 2), Wiping: true}}
		}, "", extent.Extent{}},
	} {
		l := disks(test.change)
		m, ok, _ := l.PlanMove("pv", MoveRequest{Copy: "copy-a", Left: "left-a", Version: 1, Class: class, Elsewhere: true})
		if ok != (test.disk != "") || m.Disk != test.disk || m.Extent != test.at {
			t.Errorf("%s: planned %t: %+v", name, ok, m)
		}
		if err := l.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A volume that grows stays on its disk.
	l := disks(func(all []Disk) { all[0].Ready = true })
	if m, ok := plan(l, 1, 4); !ok || m.Disk != "a" {
		t.Errorf("a volume that grows is planned on %+v: %t", m, ok)
	}
	l = disks(func(all []Disk) { all[0].Ready, all[0].Free = true, []extent.Extent{span(2, 1)} })
	if m, ok := plan(l, 1, 4); ok {
		t.Errorf("a volume that grows is planned on %+v", m)
	}
}

// TestPlanMoveOfPiecesElsewhere asserts that the place of a volume that must leave its disk holds all of its pieces,
// also one that the node has not made yet.
func TestPlanMoveOfPiecesElsewhere(t *testing.T) {
	for name, made := range map[string]bool{"made": true, "not made": false} {
		l := New()
		first := Disk{ID: "a", Class: class, Size: 11 * units.GiB, Allocations: []Allocation{{Partition: "part-a", Extent: span(0, 2)}}, Free: []extent.Extent{span(5, 3)}}
		if made {
			first.Free, first.Allocations = nil, append(first.Allocations, Allocation{Partition: "piece-1", Extent: span(5, 3)})
		}
		second := Disk{ID: "b", Class: class, Ready: true, Size: 11 * units.GiB, Free: []extent.Extent{span(0, 4), span(5, 5)}}
		l.SetCapacity("n1", &Capacity{Revision: 1, Disks: []Disk{first, second}})
		l.setFirst("pv", "n1", Record{"part-a", "a", span(0, 2)})
		l.setOnlyPieces("pv", "n1", 1, []Record{{"piece-1", "a", span(5, 3)}})
		m, ok, _ := l.PlanMove("pv", MoveRequest{Copy: "copy-a", Left: "left-a", Version: 1, Class: class, Elsewhere: true})
		if !ok || m.Disk != "b" || m.Extent != span(5, 5) {
			t.Errorf("%s: planned %t: %+v", name, ok, m)
		}
		if err := l.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestPlanMoveTo asserts that a volume whose disk is compacted gets the place that the request names only if that is
// free, before the volume, and as long as what the volume was granted.
func TestPlanMoveTo(t *testing.T) {
	at := func(partition string, e extent.Extent) Allocation { return Allocation{Partition: partition, Extent: e} }
	for name, test := range map[string]struct {
		to     extent.Extent
		before func(l *Ledger)
		ok     bool
	}{
		"free":           {span(1, 2), nil, true},
		"not at a start": {span(2, 2), nil, true},
		"longer":         {span(1, 3), nil, false},
		"shorter":        {span(1, 1), nil, false},
		"behind":         {span(8, 2), nil, false},
		"taken":          {span(0, 2), nil, false},
		"where it is":    {span(4, 2), nil, false},
		"it is to grow": {span(1, 2), func(l *Ledger) {
			l.setFirst("pv", "n1", Record{"part-a", "disk-n1", span(4, 3)})
		}, false},
		"reserved": {span(1, 2), func(l *Ledger) {
			l.setFirst("pv2", "n1", Record{"part-c", "disk-n1", span(2, 1)})
		}, false},
		"the disk takes no volumes": {span(1, 2), func(l *Ledger) {
			l.SetCapacity("n1", &Capacity{Revision: 2, Disks: []Disk{{ID: "disk-n1", Class: class, Size: 11 * units.GiB, Allocations: []Allocation{at("part-a", span(4, 2))}}}})
		}, false},
	} {
		l := New()
		disk10(l, "n1", 1, at("b", span(0, 1)), at("part-a", span(4, 2)))
		l.setFirst("pv", "n1", Record{"part-a", "disk-n1", span(4, 2)})
		if test.before != nil {
			test.before(l)
		}
		m, ok, _ := l.PlanMove("pv", MoveRequest{Copy: "copy-a", Left: "left-a", Version: 5, Class: class, To: test.to})
		if ok != test.ok || ok && (m.Extent != test.to || m.Disk != "disk-n1" || l.freeOn("n1").Overlaps(test.to)) {
			t.Errorf("%s: %t, %+v", name, ok, m)
		}
		if err := l.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
