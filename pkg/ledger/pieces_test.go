package ledger

import (
	"errors"
	"slices"
	"testing"

	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/units"
)

// growth is a plan for the volume "pv" of moving, to that many GiB in at most limit further pieces. pieces are those
// that it has.
func growth(lengthGiB int64, limit int, pieces ...extent.Extent) Growth {
	g := Growth{Version: 5, First: Record{"part-a", "disk-n1", span(0, 2)}, Length: lengthGiB * units.GiB, Pieces: records(pieces...)}
	for _, r := range records(make([]extent.Extent, limit)...) {
		g.Partitions = append(g.Partitions, r.Partition)
	}
	return g
}

// records are those of further pieces.
func records(pieces ...extent.Extent) []Record {
	var all []Record
	for i, e := range pieces {
		all = append(all, Record{[]string{"piece-1", "piece-2", "piece-3"}[i], "disk-n1", e})
	}
	return all
}

// withPieces is moving, with a volume that has pieces, which the node has made.
func withPieces(pieces []extent.Extent, others ...Allocation) *Ledger {
	for _, r := range records(pieces...) {
		others = append(others, Allocation{Partition: r.Partition, Extent: r.Extent})
	}
	l := moving(others...)
	l.setOnlyPieces("pv", "n1", 5, records(pieces...))
	return l
}

// TestPlanPieces asserts which extents a volume gets, and how large it could become if there are too few.
func TestPlanPieces(t *testing.T) {
	at := func(partition string, e extent.Extent) Allocation { return Allocation{Partition: partition, Extent: e} }
	b := at("b", span(2, 1))
	tests := map[string]struct {
		ledger    *Ledger
		growth    Growth
		want      []extent.Extent
		possible  int64 // GiB
		unsettled bool
	}{
		"the smallest extent that holds it":        {moving(b, at("c", span(6, 2))), growth(4, 3), []extent.Extent{span(8, 2)}, 4, false},
		"of two the first":                         {moving(b, at("c", span(5, 1)), at("d", span(8, 1))), growth(4, 3), []extent.Extent{span(3, 2)}, 4, false},
		"no more than is missing":                  {moving(b), growth(3, 3), []extent.Extent{span(3, 1)}, 3, false},
		"the largest first, if none holds it":      {moving(b, at("c", span(5, 1))), growth(7, 3), []extent.Extent{span(6, 4), span(3, 1)}, 7, false},
		"the smallest that holds the rest":         {moving(b, at("c", span(4, 2)), at("d", span(9, 1))), growth(6, 3), []extent.Extent{span(6, 3), span(3, 1)}, 6, false},
		"what is behind it, and a piece":           {moving(at("b", span(3, 1))), growth(4, 3), []extent.Extent{span(4, 1)}, 4, false},
		"what is behind it":                        {moving(), growth(4, 0), nil, 4, false},
		"too few pieces":                           {moving(b, at("c", span(5, 1))), growth(7, 1), nil, 6, false},
		"no piece":                                 {moving(b), growth(3, 0), nil, 2, false},
		"too little space":                         {moving(b), growth(10, 3), nil, 9, false},
		"less than it has":                         {moving(b), growth(1, 3), nil, 0, false},
		"the last piece grows":                     {withPieces([]extent.Extent{span(4, 1)}, b), growth(5, 1, span(4, 1)), []extent.Extent{span(4, 3)}, 5, false},
		"the last piece grows, without a next one": {withPieces([]extent.Extent{span(4, 1)}, b), growth(5, 0, span(4, 1)), []extent.Extent{span(4, 3)}, 5, false},
		"a piece that is not the last does not":    {withPieces([]extent.Extent{span(3, 1), span(5, 1)}, b, at("c", span(6, 1)), at("d", span(8, 2))), growth(5, 3, span(3, 1), span(5, 1)), []extent.Extent{span(3, 1), span(5, 1), span(4, 1)}, 5, false},
		"other pieces in the API":                  {withPieces([]extent.Extent{span(4, 1)}, b), growth(5, 3), nil, 0, true},
		"the volume is not known":                  {New(), growth(3, 3), nil, 0, true},
		"the volume is not published": {func() *Ledger {
			l := moving()
			disk10(l, "n1", 2)
			return l
		}(), growth(3, 3), nil, 0, false},
		"the volume is being wiped": {func() *Ledger {
			l := moving()
			disk10(l, "n1", 2, Allocation{Partition: "part-a", Extent: span(0, 2), Wiping: true})
			return l
		}(), growth(3, 3), nil, 0, false},
		"another volume has the place of a piece": {func() *Ledger {
			l := withPieces([]extent.Extent{span(4, 1)}, b)
			disk10(l, "n1", 2, Allocation{Partition: "part-a", Extent: span(0, 2)}, b, at("c", span(4, 1)))
			return l
		}(), growth(4, 3, span(4, 1)), nil, 0, false},
		"it may grow already": {func() *Ledger {
			l := moving()
			l.Grow("pv", 3*units.GiB)
			return l
		}(), growth(4, 3), nil, 0, true},
		"it is moved": {func() *Ledger {
			l := moving(b)
			plan(l, 1, 3)
			return l
		}(), growth(4, 3), nil, 0, false},
		"pieces are planned": {func() *Ledger {
			l := moving(b)
			l.PlanPieces("pv", growth(3, 3))
			return l
		}(), growth(4, 3), nil, 0, true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			free := func() (total int64) {
				for _, d := range test.ledger.Snapshot("n1").Node.Disks {
					total += d.Free.Total()
				}
				return total
			}
			before := free()
			pieces, possible, err := test.ledger.PlanPieces("pv", test.growth)
			if !slices.Equal(pieces, records(test.want...)) || possible != test.possible*units.GiB || errors.Is(err, ErrUnsettled) != test.unsettled {
				t.Errorf("planned %v, %d possible, want %v: %v", pieces, possible, test.want, err)
			}
			var taken int64
			if possible == test.growth.Length {
				taken = test.growth.Length - test.growth.First.Extent.Len()
				for _, r := range test.growth.Pieces {
					taken -= r.Extent.Len()
				}
			}
			if got := before - free(); got != taken {
				t.Errorf("%d bytes are taken, want %d", got, taken)
			}
			if err := test.ledger.Validate(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestPlannedPiecesEnd asserts that pieces that are planned keep their places until the next version of the
// PersistentVolume, and no longer than that unless the version has them.
func TestPlannedPiecesEnd(t *testing.T) {
	// The volume has a piece at 4, which grows by 1 GiB, and gets one at 8.
	b, c := Allocation{Partition: "b", Extent: span(2, 2)}, Allocation{Partition: "c", Extent: span(6, 2)}
	all, kept := []extent.Extent{span(5, 1), span(8, 2)}, []extent.Extent{span(9, 1)}
	tests := map[string]struct {
		then func(l *Ledger, pieces []Record)
		free []extent.Extent
	}{
		"an event of the version that they were planned for": {func(l *Ledger, _ []Record) { l.setOnlyPieces("pv", "n1", 5, records(span(4, 1))) }, kept},
		"an older event":                {func(l *Ledger, _ []Record) { l.setOnlyPieces("pv", "n1", 4, nil) }, kept},
		"the next version without them": {func(l *Ledger, _ []Record) { l.setOnlyPieces("pv", "n1", 6, records(span(4, 1))) }, all},
		"the next version has them":     {func(l *Ledger, pieces []Record) { l.setOnlyPieces("pv", "n1", 6, pieces) }, kept},
		"the next version has one":      {func(l *Ledger, pieces []Record) { l.setOnlyPieces("pv", "n1", 6, pieces[:1]) }, []extent.Extent{span(8, 2)}},
		"withdrawn":                     {func(l *Ledger, _ []Record) { l.WithdrawPieces("pv", 5) }, all},
		"withdrawn for another version": {func(l *Ledger, _ []Record) { l.WithdrawPieces("pv", 4) }, kept},
		"withdrawn when they are written": {func(l *Ledger, pieces []Record) {
			l.setOnlyPieces("pv", "n1", 6, pieces)
			l.WithdrawPieces("pv", 5)
		}, kept},
		"the volume is gone": {func(l *Ledger, _ []Record) { l.DeleteVolume("pv") }, all},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			l := withPieces([]extent.Extent{span(4, 1)}, b, c)
			pieces, _, err := l.PlanPieces("pv", growth(5, 2, span(4, 1)))
			if err != nil || !slices.Equal(pieces, records(span(4, 2), span(8, 1))) {
				t.Fatalf("planned %v: %v", pieces, err)
			}
			expectFree(t, l, "n1", kept...)
			if granted, possible := l.Grow("pv", 3*units.GiB); granted || possible != 2*units.GiB {
				t.Errorf("a volume of several pieces may grow its first to %d: %t", possible, granted)
			}
			if m, ok := plan(l, 5, 1); ok {
				t.Errorf("a volume that gets pieces is moved to %+v", m)
			}
			if l.IsStuck("pv") {
				t.Error("a volume that gets pieces is stuck")
			}
			test.then(l, pieces)
			expectFree(t, l, "n1", test.free...)
		})
	}
}

// TestPieces asserts that the places of pieces are taken before the node has them and afterwards, and that the volume
// has its length only with all of them.
func TestPieces(t *testing.T) {
	a, b := Allocation{Partition: "part-a", Extent: span(0, 2)}, Allocation{Partition: "b", Extent: span(2, 1)}
	l := moving(b)
	pieces, _, err := l.PlanPieces("pv", growth(5, 2))
	if err != nil || !slices.Equal(pieces, records(span(3, 3))) {
		t.Fatalf("planned %v: %v", pieces, err)
	}
	l.setOnlyPieces("pv", "n1", 6, pieces)
	expectFree(t, l, "n1", span(6, 4))
	length := func(wantGiB int64, stuck bool) {
		t.Helper()
		if got := l.Snapshot("n1").Length("part-a", "piece-1"); got != wantGiB*units.GiB {
			t.Errorf("the volume has %d bytes", got)
		}
		if l.IsStuck("pv") != stuck {
			t.Errorf("stuck is %t", !stuck)
		}
	}
	length(2, false)
	if m, ok := plan(l, 6, 4); ok {
		t.Errorf("a volume whose piece is not made yet is moved to %+v", m)
	}
	if node, r, ok := l.Where("piece-1"); !ok || node != "n1" || r != pieces[0] {
		t.Errorf("the piece is at %v on %s: %t", r, node, ok)
	}
	disk10(l, "n1", 2, a, b, Allocation{Partition: "c", Extent: span(5, 1)})
	length(2, true)
	disk10(l, "n1", 3, a, b, Allocation{Partition: "piece-1", Extent: span(3, 3)})
	expectFree(t, l, "n1", span(6, 4))
	length(5, false)
	if _, ok := plan(l, 6, 4); !ok {
		t.Error("a volume of two pieces cannot be moved")
	}
	l.WithdrawMove("pv", 6)
	l.DeleteVolume("pv")
	expectFree(t, l, "n1", span(6, 4))
	disk10(l, "n1", 4, b)
	expectFree(t, l, "n1", span(0, 2), span(3, 7))
}

// TestOnlyPiecesGrow asserts that nothing else is planned for a volume that has pieces, or gets some.
func TestOnlyPiecesGrow(t *testing.T) {
	b := Allocation{Partition: "b", Extent: span(2, 1)}
	l := withPieces([]extent.Extent{span(6, 1)})
	if granted, possible := l.Grow("pv", 3*units.GiB); granted || possible != 2*units.GiB {
		t.Errorf("the first of two pieces may grow to %d: %t", possible, granted)
	}
	// What is behind the first piece is for other pieces and volumes.
	if pieces, _, err := l.PlanPieces("pv", growth(10, 1, span(6, 1))); err != nil || pieces != nil {
		t.Errorf("planned %v: %v", pieces, err)
	}
	l = moving(b)
	if pieces, _, err := l.PlanPieces("pv", growth(3, 1)); err != nil || len(pieces) != 1 {
		t.Fatalf("planned %v: %v", pieces, err)
	}
	// Another volume has the place of the piece, so that the volume could be moved. But the piece may have been written.
	disk10(l, "n1", 2, Allocation{Partition: "part-a", Extent: span(0, 2)}, b, Allocation{Partition: "c", Extent: span(3, 1)})
	if m, ok := plan(l, 5, 3); ok {
		t.Errorf("a volume that gets pieces is moved to %+v", m)
	}
}

// TestDeviceMapper asserts what the ledger says of a node and its volumes that decides whether pieces are possible.
func TestDeviceMapper(t *testing.T) {
	l := New()
	if s := l.Snapshot("n1"); s.DeviceMapper() || s.IsMapped("part-a") {
		t.Error("an unknown node has the device mapper")
	}
	d := Disk{ID: "a", Class: class, Ready: true, Size: 11 * units.GiB, Allocations: []Allocation{
		{Partition: "part-a", Extent: span(0, 2), Mapped: true}, {Partition: "part-b", Extent: span(2, 2)},
	}}
	l.SetCapacity("n1", &Capacity{Revision: 1, Disks: []Disk{d}, DeviceMapper: true})
	if s := l.Snapshot("n1"); !s.DeviceMapper() || !s.IsMapped("part-a") || s.IsMapped("part-b") || s.IsMapped("part-c") {
		t.Error("the published state is not known")
	}
	l.SetCapacity("n1", &Capacity{Revision: 2, Disks: []Disk{d}})
	if l.Snapshot("n1").DeviceMapper() {
		t.Error("the node has lost the device mapper, which is not known")
	}
}
