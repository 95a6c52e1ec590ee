package placement

import (
	"fmt"
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
		{"spread: the more is free on the disk, in however many pieces", []Disk{disk("a", "ssd", 4, 4)}, under(Spread, want(4)), 13},
		{"spread: twice as much is 4 more", []Disk{disk("a", "ssd", 8, 8)}, under(Spread, want(4)), 17},
		{"spread: other disks do not count", []Disk{disk("a", "ssd", 8), disk("b", "hdd", 4000)}, under(Spread, want(4)), 13},
		{"the largest volume decides", []Disk{disk("a", "ssd", 8, 8), disk("b", "hdd", 7)},
			append(under(Spread, want(4)), Request{Class: "hdd", Size: 5 * Alignment}), 95},
		{"with its policy", []Disk{disk("a", "ssd", 8, 8), disk("b", "hdd", 7)},
			append(under(Spread, want(4)), Request{Class: "hdd", Size: 3 * Alignment}), 17},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			node := &Node{Disks: test.disks}
			plan, err := Plan(nil, node, test.requests)
			if err != nil {
				t.Fatal(err)
			}
			if got := Score(Merit(node, test.requests, plan)); got != test.want {
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
		for _, policy := range []Policy{BestFit, Spread} {
			if got := Merit(node, under(policy, want(1)), plan); got != math.MinInt64 || Score(got) != 0 {
				t.Errorf("%v: merit %d, score %d", plan, got, Score(got))
			}
		}
	}
}

// TestScoreFollowsMerit asserts that a lower merit never scores higher, over all merits of BestFit and of Spread.
func TestScoreFollowsMerit(t *testing.T) {
	for _, sign := range []int64{-1, 1} {
		last := Score(0)
		if sign > 0 {
			last = 0
		}
		check := func(size int64) {
			got := Score(sign * size)
			if got*sign < last*sign || got < 0 || got > MaxScore {
				t.Fatalf("merit %d scores %d, the one before %d", sign*size, got, last)
			}
			last = got
		}
		for mib := range int64(1 << 16) {
			check((mib + 1) * Alignment)
		}
		for size := int64(1<<36) + Alignment; size < math.MaxInt64/2; size += size / 7 {
			check(size)
		}
		check(math.MaxInt64)
		if end := Score(sign * math.MaxInt64); end != max(0, sign*MaxScore) {
			t.Errorf("the largest of all scores %d", end)
		}
	}
}

// TestMeritPrefers asserts that for the same requests, what the policy prefers never has less merit.
func TestMeritPrefers(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for range 2000 {
		size := 1 + rng.Int64N(1000)
		small, large := size+rng.Int64N(5000), size+rng.Int64N(5000)
		if small > large {
			small, large = large, small
		}
		merit := func(length int64, policy Policy) int64 {
			node := &Node{Disks: []Disk{disk("a", "ssd", length)}}
			requests := under(policy, want(size))
			plan, err := Plan(nil, node, requests)
			if err != nil {
				t.Fatal(err)
			}
			return Merit(node, requests, plan)
		}
		if merit(small, BestFit) < merit(large, BestFit) || merit(small, Spread) > merit(large, Spread) {
			t.Fatalf("%d MiB: into %d and into %d MiB", size, small, large)
		}
	}
}

func TestLeading(t *testing.T) {
	requests := []Request{{Class: "ssd", Size: 1}, {Class: "ssd", Size: 3}, {Class: "hdd", Size: 3}, {Class: "hdd", Size: 2}}
	for range 20 {
		rand.Shuffle(len(requests), func(i, j int) { requests[i], requests[j] = requests[j], requests[i] })
		if r := requests[LargestRequest(requests)]; r.Class != "hdd" || r.Size != 3 {
			t.Errorf("%v of %v", r, requests)
		}
	}
}

// TestOrder asserts that nodes whose names differ only at the end are mixed, and that no two have the same rank.
func TestOrder(t *testing.T) {
	const count = 10_000
	seen := map[uint64]bool{}
	lower, halves := 0, 0
	for i := range count {
		o := NodeRank(fmt.Sprintf("zone-%c-node-%05d", 'a'+i*3/count, i))
		if seen[o] {
			t.Errorf("node %d has another's place", i)
		}
		seen[o] = true
		if o < math.MaxUint64/2 {
			halves++
			if i < count/2 {
				lower++
			}
		}
	}
	if halves < count*45/100 || halves > count*55/100 || lower < halves*45/100 || lower > halves*55/100 {
		t.Errorf("%d of %d nodes are in the lower half, %d of them have low numbers", halves, count, lower)
	}
}
