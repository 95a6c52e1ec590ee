package extent

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// set reads "1-3 5-6" as [1,3) and [5,6).
func set(t *testing.T, s string) Set {
	t.Helper()
	return NewSet(extents(t, s)...)
}

func extents(t *testing.T, s string) []Extent {
	t.Helper()
	var out []Extent
	for _, field := range strings.Fields(s) {
		var e Extent
		if _, err := fmt.Sscanf(field, "%d-%d", &e.Start, &e.End); err != nil {
			t.Fatal(err)
		}
		out = append(out, e)
	}
	return out
}

func show(s Set) string {
	var parts []string
	for i, e := range s.All() {
		if s.At(i) != e {
			return fmt.Sprintf("All and At disagree on %d", i)
		}
		parts = append(parts, fmt.Sprintf("%d-%d", e.Start, e.End))
	}
	return strings.Join(parts, " ")
}

func TestNewSet(t *testing.T) {
	for _, test := range []struct{ name, in, want string }{
		{"nothing", "", ""},
		{"sorted", "5-6 1-3", "1-3 5-6"},
		{"touching ones become one", "1-3 3-5", "1-5"},
		{"overlapping ones become one", "1-4 3-5", "1-5"},
		{"one inside another", "1-9 3-5", "1-9"},
		{"the same twice", "1-3 1-3", "1-3"},
		{"empty ones vanish", "4-4 1-3 9-7", "1-3"},
		{"a long chain", "7-8 1-2 2-3 6-7 3-6", "1-8"},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := extents(t, test.in)
			before := slices.Clone(in)
			got := NewSet(in...)
			if show(got) != test.want {
				t.Errorf("got %s, want %s", show(got), test.want)
			}
			if err := got.Validate(); err != nil {
				t.Error(err)
			}
			if !slices.Equal(in, before) {
				t.Error("the caller's slice was changed")
			}
		})
	}
}

func TestSetOperations(t *testing.T) {
	for _, test := range []struct{ name, a, b, union, subtract, intersect string }{
		{"both empty", "", "", "", "", ""},
		{"with the empty set", "1-3", "", "1-3", "1-3", ""},
		{"from the empty set", "", "1-3", "1-3", "", ""},
		{"itself", "1-3 5-6", "1-3 5-6", "1-3 5-6", "", "1-3 5-6"},
		{"a hole in the middle", "0-10", "3-5", "0-10", "0-3 5-10", "3-5"},
		{"the front and the back", "0-10", "0-2 8-10", "0-10", "2-8", "0-2 8-10"},
		{"one cut across two extents", "0-5 10-15", "3-12", "0-15", "0-3 12-15", "3-5 10-12"},
		{"one cut across three extents", "0-2 4-6 8-10", "1-9", "0-10", "0-1 9-10", "1-2 4-6 8-9"},
		{"only touching", "2-4", "0-2 4-6", "0-6", "2-4", ""},
		{"around", "3-5", "0-10", "0-10", "", "3-5"},
		{"many holes", "0-10", "1-2 3-4 5-6", "0-10", "0-1 2-3 4-5 6-10", "1-2 3-4 5-6"},
	} {
		t.Run(test.name, func(t *testing.T) {
			a, b := set(t, test.a), set(t, test.b)
			for name, result := range map[string]struct {
				got  Set
				want string
			}{
				"union":     {a.Union(b), test.union},
				"subtract":  {a.Subtract(b), test.subtract},
				"intersect": {a.Intersect(b), test.intersect},
			} {
				if show(result.got) != result.want {
					t.Errorf("%s: got %s, want %s", name, show(result.got), result.want)
				}
				if err := result.got.Validate(); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
			if show(a) != test.a || show(b) != test.b {
				t.Error("an operand was changed")
			}
			// The ledger relies on this: subtracting twice changes nothing.
			if once := a.Subtract(b); !once.Subtract(b).Equal(once) {
				t.Error("subtracting a second time changed the set")
			}
		})
	}
}

func TestSetQueries(t *testing.T) {
	s := set(t, "10-20 30-35 40-50")
	if s.Len() != 3 || s.Total() != 25 || s.Largest() != (Extent{10, 20}) {
		t.Errorf("len %d, total %d, largest %v", s.Len(), s.Total(), s.Largest())
	}
	if (Set{}).Largest() != (Extent{}) || (Set{}).Total() != 0 || (Set{}).Overlaps(Extent{0, 100}) {
		t.Error("the empty set is not empty")
	}
	for _, test := range []struct {
		in                 string
		contains, overlaps bool
		holding            Extent
	}{
		{"10-20", true, true, Extent{10, 20}},
		{"12-13", true, true, Extent{10, 20}},
		{"19-20", true, true, Extent{10, 20}},
		{"19-21", false, true, Extent{}},
		{"20-30", false, false, Extent{}},
		{"20-31", false, true, Extent{}},
		{"15-45", false, true, Extent{}},
		{"0-10", false, false, Extent{}},
		{"50-60", false, false, Extent{}},
		{"25-25", true, false, Extent{}},
		{"15-15", true, false, Extent{}},
	} {
		e := extents(t, test.in)[0]
		if got := s.Contains(e); got != test.contains {
			t.Errorf("contains %v: %v", e, got)
		}
		if got := s.Overlaps(e); got != test.overlaps {
			t.Errorf("overlaps %v: %v", e, got)
		}
		if got, ok := s.Holding(e); got != test.holding || ok != !test.holding.Empty() {
			t.Errorf("holding %v: %v, %v", e, got, ok)
		}
	}
}

func TestSetValidate(t *testing.T) {
	for _, test := range []struct{ name, extents, want string }{
		{"empty extent", "3-3", "empty"},
		{"below zero", "-3-2", "below zero"},
		{"backwards", "5-3", "empty"},
		{"not sorted", "5-6 1-2", "does not lie behind"},
		{"touching", "1-2 2-3", "does not lie behind"},
		{"overlapping", "1-5 4-6", "does not lie behind"},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := Set{extents(t, test.extents)}.Validate()
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

// TestSetNeverChanges asserts that a set keeps its value when another set that shares its memory is changed.
func TestSetNeverChanges(t *testing.T) {
	base := set(t, "0-10 20-30 40-50")
	derived := []Set{base.Remove(Extent{100, 200}), base.Add(Extent{}), base.Union(Set{}), base.Subtract(Set{})}
	for _, d := range derived {
		d.Add(Extent{10, 20})
		d.Remove(Extent{0, 45})
		d.Union(NewSet(Extent{5, 60}))
		d.Intersect(NewSet(Extent{5, 6}))
	}
	for _, d := range append(derived, base) {
		if show(d) != "0-10 20-30 40-50" {
			t.Errorf("a set changed to %s", show(d))
		}
	}
}

// bitmap is the oracle: one bool for each byte.
type bitmap [64]bool

func (b bitmap) show() string {
	var parts []string
	for i := 0; i < len(b); i++ {
		start := i
		for i < len(b) && b[i] {
			i++
		}
		if i > start {
			parts = append(parts, fmt.Sprintf("%d-%d", start, i))
		}
	}
	return strings.Join(parts, " ")
}

// FuzzSet runs a program of adds and removes, three bytes each, on a Set and on a bitmap.
func FuzzSet(f *testing.F) {
	f.Add([]byte{0, 0, 10, 1, 3, 2, 0, 3, 2})
	f.Add([]byte{0, 0, 63, 1, 1, 1, 1, 3, 1, 2, 0, 40, 3, 10, 40})
	f.Fuzz(func(t *testing.T, program []byte) {
		var s Set
		var b bitmap
		for ; len(program) >= 3; program = program[3:] {
			start := int64(program[1] % 64)
			e := Extent{start, min(64, start+int64(program[2]%64))}
			was := show(s)
			next := s
			op := program[0] % 4
			switch op {
			case 0:
				next = s.Add(e)
			case 1:
				next = s.Remove(e)
			case 2:
				next = s.Intersect(NewSet(e))
			case 3: // all but e
				next = NewSet(Extent{0, 64}).Subtract(s).Union(NewSet(e))
			}
			contains, overlaps := true, false
			for i := range b {
				in := e.Start <= int64(i) && int64(i) < e.End
				contains = contains && (b[i] || !in)
				overlaps = overlaps || b[i] && in
				switch op {
				case 0:
					b[i] = b[i] || in
				case 1:
					b[i] = b[i] && !in
				case 2:
					b[i] = b[i] && in
				case 3:
					b[i] = !b[i] || in
				}
			}
			if s.Contains(e) != contains || s.Overlaps(e) != overlaps {
				t.Fatalf("%s and %v: contains %v, overlaps %v", was, e, s.Contains(e), s.Overlaps(e))
			}
			if show(s) != was {
				t.Fatalf("op %d on %s changed it to %s", op, was, show(s))
			}
			s = next
			if err := s.Validate(); err != nil {
				t.Fatalf("op %d with %v on %s: %v", op, e, was, err)
			}
			if show(s) != b.show() {
				t.Fatalf("op %d with %v on %s: got %s, want %s", op, e, was, show(s), b.show())
			}
		}
	})
}

// BenchmarkSubtract measures what the ledger does for each change on a disk: it subtracts a few records from the
// published free extents.
func BenchmarkSubtract(b *testing.B) {
	var free, records Set
	for i := range int64(8) {
		free = free.Add(New(i*1000, 500))
		records = records.Add(New(i*1000+100, 50))
	}
	b.ReportAllocs()
	for b.Loop() {
		free.Subtract(records)
	}
}
