package extent

import (
	"math"
	"testing"
)

func TestExtent(t *testing.T) {
	e := New(10, 5)
	if e != (Extent{10, 15}) || e.Len() != 5 || e.Empty() || e.String() != "[10,15)" {
		t.Errorf("got %v, %d long, empty %v", e, e.Len(), e.Empty())
	}
	for _, test := range []struct {
		name               string
		other              Extent
		overlaps, contains bool
	}{
		{"itself", e, true, true},
		{"a part", Extent{11, 12}, true, true},
		{"touches in front", Extent{5, 10}, false, false},
		{"touches behind", Extent{15, 20}, false, false},
		{"reaches in from the front", Extent{5, 11}, true, false},
		{"reaches out behind", Extent{14, 16}, true, false},
		{"around", Extent{0, 100}, true, false},
		{"empty inside", Extent{12, 12}, false, true},
		{"empty elsewhere", Extent{50, 50}, false, true},
		{"backwards", Extent{14, 11}, false, true},
		{"the ends of int64", Extent{math.MinInt64, math.MaxInt64}, true, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := e.Overlaps(test.other); got != test.overlaps {
				t.Errorf("overlaps: %v", got)
			}
			if got := test.other.Overlaps(e); got != test.overlaps {
				t.Errorf("overlaps, the other way round: %v", got)
			}
			if got := e.Contains(test.other); got != test.contains {
				t.Errorf("contains: %v", got)
			}
		})
	}
}
