package placement

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/berthdev/berth/pkg/extent"
)

func TestScore(t *testing.T) {
	tests := []struct {
		name     string
		disks    []Disk
		requests []Request
		want     int64
	}{
		{"an exact fit is the best there is", []Disk{disk("a", "ssd", 10)}, want(10), 100},
		{"1 MiB over", []Disk{disk("a", "ssd", 11)}, want(10), 99},
		{"2 MiB over", []Disk{disk("a", "ssd", 12)}, want(10), 95},
		{"3 MiB over lies in the third quarter of its octave", []Disk{disk("a", "ssd", 13)}, want(10), 93},
		{"90 GiB over", []Disk{disk("a", "ssd", 100*gi)}, want(10 * gi), 34},
		{"the untouched extents do not count", []Disk{disk("a", "ssd", 10, 5000), disk("b", "ssd", 7000)}, want(10), 100},
		{"an extent that two volumes share counts once", []Disk{disk("a", "ssd", 10)}, want(7, 3), 100},
		{"leftovers of several extents add up", []Disk{disk("a", "ssd", 11), disk("b", "ssd", 11)}, wantApart(10, 10), 95},
		{"no request", nil, nil, 100},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			node := &Node{Disks: test.disks}
			plan, err := Plan(nil, node, test.requests)
			if err != nil {
				t.Fatal(err)
			}
			if got := Score(node, test.requests, plan); got != test.want {
				t.Errorf("got %d, want %d", got, test.want)
			}
		})
	}
}

func TestScoreOfAPlanThatIsNotFree(t *testing.T) {
	node := &Node{Disks: []Disk{disk("a", "ssd", 10)}}
	for _, plan := range [][]Assignment{
		{{Disk: "b", Extent: extent.New(Alignment, Alignment)}},
		{{Disk: "a", Extent: extent.New(50*Alignment, Alignment)}},
		{{}},
	} {
		if got := Score(node, want(1), plan); got != 0 {
			t.Errorf("%v: got %d", plan, got)
		}
	}
}

func TestScoreNeverRisesWithLeftover(t *testing.T) {
	last := scoreOf(0)
	check := func(leftover int64) {
		got := scoreOf(leftover)
		if got > last || got < 0 || got > MaxScore {
			t.Fatalf("leftover %d scores %d, a smaller one %d", leftover, got, last)
		}
		last = got
	}
	for mib := range int64(1 << 16) {
		check(mib * Alignment)
	}
	for leftover := int64(1 << 36); leftover < math.MaxInt64/2; leftover += leftover / 7 {
		check(leftover)
	}
	check(math.MaxInt64)
	if last != 0 {
		t.Errorf("the largest leftover scores %d", last)
	}
}

// A node whose chosen extents are larger never scores higher for the same requests.
func TestScorePrefersSmallerExtents(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for range 2000 {
		size := 1 + rng.Int64N(1000)
		small, large := size+rng.Int64N(5000), size+rng.Int64N(5000)
		if small > large {
			small, large = large, small
		}
		score := func(length int64) int64 {
			node := &Node{Disks: []Disk{disk("a", "ssd", length)}}
			plan, err := Plan(nil, node, want(size))
			if err != nil {
				t.Fatal(err)
			}
			return Score(node, want(size), plan)
		}
		if score(small) < score(large) {
			t.Fatalf("%d MiB: into %d scores less than into %d", size, small, large)
		}
	}
}
