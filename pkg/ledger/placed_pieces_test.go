package ledger

import (
	"errors"
	"slices"
	"testing"

	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/placement"
	"github.com/berthdev/berth/test/units"
)

// inTwoExtents is a ledger with a node of 10 GiB that has 4 GiB and 5 GiB free, and takes pieces.
func inTwoExtents() *Ledger {
	l := New()
	l.ReplaceCapacity("n1", twoExtents(1))
	return l
}

func twoExtents(revision uint64, more ...Allocation) *Capacity {
	taken := append([]Allocation{{Partition: "b", Extent: span(4, 1)}}, more...)
	free := extent.NewSet(span(0, 10))
	for _, v := range taken {
		free = free.Remove(v.Extent)
	}
	c := &Capacity{Revision: revision, DeviceMapper: true, Disks: []Disk{{
		ID: "disk-n1", Class: "ssd", Ready: true, Size: 11 * units.GiB, Allocations: taken,
	}}}
	for _, e := range free.All() {
		c.Disks[0].Free = append(c.Disks[0].Free, e)
	}
	return c
}

// wantPieces wants a volume of so many GiB in at most so many pieces.
func wantPieces(name string, sizeGiB, headroomGiB int64, most int) VolumeRequest {
	v := claimWant(name, sizeGiB, headroomGiB)
	v.Request.MaxPieces, v.Pieces = most, []string{v.Partition + "-1", v.Partition + "-2"}
	return v
}

func TestReserveInPieces(t *testing.T) {
	a := wantPieces("a", 7, 0, 3)
	want := []Record{{"part-a", "disk-n1", span(5, 5)}, {"part-a-1", "disk-n1", span(0, 2)}}
	l := inTwoExtents()
	got, err := l.Reserve("pod", "n1", []VolumeRequest{a})
	if err != nil || !slices.Equal(got, want) {
		t.Fatalf("got %v, %v, want %v", got, err, want)
	}
	expectFree(t, l, "n1", span(2, 2))

	// The pod's own place does not block its next try.
	if got, err = l.Reserve("pod", "n1", []VolumeRequest{a}); err != nil || !slices.Equal(got, want) {
		t.Errorf("again: %v, %v, want %v", got, err, want)
	}
	// Another pod with the claim shares all pieces. They stay held when the first one gives them up.
	if got, err = l.Reserve("other", "n1", []VolumeRequest{claimWant("x", 1, 0), a}); err != nil || !slices.Equal(got, append([]Record{{"part-x", "disk-n1", span(2, 1)}}, want...)) {
		t.Errorf("shared: %v, %v", got, err)
	}
	l.Forget("pod")
	expectFree(t, l, "n1", span(3, 1))
	// So does the component that makes the PersistentVolume.
	node, got, ok := l.Share("part-a", a.Pieces, "binding")
	if !ok || node != "n1" || !slices.Equal(got, want) {
		t.Errorf("shared for its making: %s, %v, %t", node, got, ok)
	}
	l.Forget("other")
	expectFree(t, l, "n1", span(2, 2))
	// The PersistentVolume replaces the reservation without a gap.
	l.AddVolume("pv", "name", "n1", got[0], got[1:])
	l.Release("binding")
	expectFree(t, l, "n1", span(2, 2))
	// The node publishes the pieces one by one.
	for i := range got {
		var published []Allocation
		for _, made := range got[:i+1] {
			published = append(published, Allocation{Partition: made.Partition, Extent: made.Extent})
		}
		l.ReplaceCapacity("n1", twoExtents(uint64(2+i), published...))
		expectFree(t, l, "n1", span(2, 2))
	}
	l.DeleteVolume("pv")
	l.ReplaceCapacity("n1", twoExtents(9))
	expectFree(t, l, "n1", span(0, 4), span(5, 5))
}

// TestPiecesInDoubt asserts that a pod whose binding failed keeps the pieces, and that its next try may use them.
func TestPiecesInDoubt(t *testing.T) {
	l := inTwoExtents()
	a := wantPieces("a", 9, 0, 3)
	if _, err := l.Reserve("pod", "n1", []VolumeRequest{a}); err != nil {
		t.Fatal(err)
	}
	l.Doubt("pod")
	expectFree(t, l, "n1")
	if _, err := l.Reserve("pod", "n1", []VolumeRequest{a}); err != nil {
		t.Errorf("the next try: %v", err)
	}
}

// TestHeadroomOfPieces asserts that headroom must be free, and is not reserved.
func TestHeadroomOfPieces(t *testing.T) {
	for name, test := range map[string]struct {
		size, headroom int64
		want           []extent.Extent
	}{
		"part of the last piece":       {7, 1, []extent.Extent{span(5, 5), span(0, 2)}},
		"all of the last piece":        {5, 2, []extent.Extent{span(5, 5)}},
		"the first piece is more":      {4, 5, []extent.Extent{span(5, 4)}},
		"more than there is":           {7, 3, nil},
		"without headroom it fits all": {9, 0, []extent.Extent{span(5, 5), span(0, 4)}},
	} {
		records, err := inTwoExtents().Reserve("pod", "n1", []VolumeRequest{wantPieces("a", test.size, test.headroom, 3)})
		var got []extent.Extent
		for _, r := range records {
			got = append(got, r.Extent)
		}
		if !slices.Equal(got, test.want) || (err == nil) != (test.want != nil) {
			t.Errorf("%s: got %v, %v, want %v", name, got, err, test.want)
		}
	}
}

func TestNoPiecesWithoutDeviceMapper(t *testing.T) {
	l := New()
	c := twoExtents(1)
	c.DeviceMapper = false
	l.ReplaceCapacity("n1", c)
	a := wantPieces("a", 7, 0, 3)
	requests := []placement.Request{a.Request}
	if _, err := l.Reserve("pod", "n1", []VolumeRequest{a}); err == nil || l.Snapshot("n1").Check(requests) == nil {
		t.Errorf("without the device mapper: %v", err)
	}
	// The disks are the same: only what the kernel can do has changed.
	l.ReplaceCapacity("n1", twoExtents(2))
	if _, err := l.Reserve("pod", "n1", []VolumeRequest{a}); err != nil {
		t.Errorf("with it: %v", err)
	}
}

// TestQuickCheckOfPieces asserts that the quick check refuses only what no plan could place.
func TestQuickCheckOfPieces(t *testing.T) {
	s := inTwoExtents().Snapshot("n1")
	whole := func(size int64) placement.Request { return placement.Request{Class: "ssd", Size: size * units.GiB} }
	split := func(size int64, most int) placement.Request {
		r := whole(size)
		r.MaxPieces = most
		return r
	}
	for name, test := range map[string]struct {
		requests   []placement.Request
		fits, sure bool
		err        bool
	}{
		"one extent holds it":            {[]placement.Request{split(5, 3)}, true, true, false},
		"only pieces hold it":            {[]placement.Request{split(9, 3)}, true, false, false},
		"more than the disk has":         {[]placement.Request{split(10, 3)}, false, true, true},
		"not in pieces":                  {[]placement.Request{whole(6)}, false, true, true},
		"one of two not in pieces":       {[]placement.Request{split(7, 3), whole(6)}, false, true, true},
		"each fits, but not both":        {[]placement.Request{split(6, 3), whole(5)}, true, false, true},
		"both fit, one of them in parts": {[]placement.Request{split(6, 3), whole(3)}, true, false, false},
	} {
		q := NewSearch(test.requests, 1_000_000)
		if fits, sure := q.QuickCheck(s); fits != test.fits || sure != test.sure {
			t.Errorf("%s: the search's quick check says %t, %t", name, fits, sure)
		}
		if fits, sure := s.quickCheck(test.requests); fits != test.fits || sure != test.sure {
			t.Errorf("%s: the snapshot's quick check says %t, %t", name, fits, sure)
		}
		var noFit *placement.NoFit
		for _, err := range []error{q.Check(s), s.Check(test.requests)} {
			if (err != nil) != test.err || err != nil && !errors.As(err, &noFit) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

// TestSearchKnowsPieces asserts that nodes with the same lengths do not share a result if only one takes pieces.
func TestSearchKnowsPieces(t *testing.T) {
	l := inTwoExtents()
	c := twoExtents(2)
	c.DeviceMapper = false
	c.Disks[0].Allocations[0].Partition = "c"
	l.ReplaceCapacity("n2", c)
	r := placement.Request{Class: "ssd", Size: 6 * units.GiB, MaxPieces: 2}
	small := placement.Request{Class: "ssd", Size: units.GiB}
	q := NewSearch([]placement.Request{r, small}, 1_000_000)
	if err := q.Check(l.Snapshot("n1")); err != nil {
		t.Error(err)
	}
	if err := q.Check(l.Snapshot("n2")); err == nil {
		t.Error("a node without the device mapper takes pieces")
	}
}

// TestBestNodesInPieces asserts that nodes with one extent come first, then those with the emptiest disks.
func TestBestNodesInPieces(t *testing.T) {
	l := New()
	for i, disks := range []string{"ssd 7", "ssd 4 4", "ssd 1 1 5", "ssd 3 1 1, ssd 6", "ssd 2 1, ssd 3", "ssd 4 4", "ssd 2 2 2 2 2"} {
		name := string(rune('a' + i))
		c := disksOf(name, disks, uint64(i+1))
		// Node b has the extents, but not the device mapper.
		c.DeviceMapper = name != "b"
		l.ReplaceCapacity(name, c)
	}
	all := func(string, *Snapshot) bool { return true }
	for most, want := range map[int][]string{1: {"d", "a"}, 2: {"d", "a", "f", "c"}, 3: {"d", "a", "g", "f", "c"}} {
		got := l.Best([]placement.Request{{Class: "ssd", Size: 6 * units.GiB, MaxPieces: most}}, 9, all)
		if !slices.Equal(got, want) {
			t.Errorf("at most %d pieces: %v, want %v", most, got, want)
		}
	}
}
