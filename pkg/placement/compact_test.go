package placement

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"

	"github.com/berthdev/berth/pkg/extent"
)

// bestOf is the oracle of Compact: the longest largest free extent of all sequences of at most that many moves, each to
// any place before the volume.
func bestOf(free extent.Set, volumes []Resident, moves int) int64 {
	best := free.Largest().Len()
	if moves == 0 {
		return best
	}
	for i, v := range volumes {
		for start := int64(0); start < v.Extent.Start && !v.Fixed; start++ {
			to := extent.New(start, v.Extent.Len())
			if !free.Contains(to) {
				continue
			}
			after := slices.Clone(volumes)
			after[i].Extent = to
			best = max(best, bestOf(free.Remove(to).Add(v.Extent), after, moves-1))
		}
	}
	return best
}

// layout is a disk of a few volumes and free extents, in any order.
func layout(rng *rand.Rand) (free extent.Set, volumes []Resident) {
	at := int64(0)
	for i := range 4 + rng.IntN(5) {
		e := extent.New(at, 1+rng.Int64N(4))
		at = e.End
		switch rng.IntN(5) {
		case 0, 1:
			free = free.Add(e)
		case 2, 3:
			volumes = append(volumes, Resident{ID: strconv.Itoa(i), Extent: e, Fixed: rng.IntN(4) == 0})
		default:
			// Neither free nor a volume: reserved, or being wiped.
		}
	}
	rng.Shuffle(len(volumes), func(i, j int) { volumes[i], volumes[j] = volumes[j], volumes[i] })
	return free, volumes
}

// TestCompact asserts that the moves of random disks are possible one after the other, that they gain what Compact
// says, and no more than is possible. A gain that a single move brings is found. To plan again after a move leads to no
// worse end, with no more bytes.
func TestCompact(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	gains, optimal := 0, 0
	for range 3000 {
		free, volumes := layout(rng)
		moves, largest := Compact(free, volumes)
		describe := func() string {
			return fmt.Sprintf("free %v, volumes %+v: moves %+v, largest %d", free, volumes, moves, largest)
		}
		best, before := bestOf(free, volumes, 3), free.Largest().Len()
		if gain := largest > before; gain != (len(moves) > 0) || largest < before {
			t.Fatalf("a gain of %d with %d moves: %s", largest-before, len(moves), describe())
		}
		if single := bestOf(free, volumes, 1); largest < single {
			t.Fatalf("one move brings %d: %s", single, describe())
		}
		if len(moves) <= 3 && largest > best {
			t.Fatalf("at most %d are possible: %s", best, describe())
		}
		if best > before {
			gains++
		}
		if best > before && largest >= best {
			optimal++
		}
		for i, m := range moves {
			at := slices.IndexFunc(volumes, func(v Resident) bool { return v.ID == m.ID })
			v := volumes[at]
			if v.Fixed || !free.Contains(m.To) || m.To.Len() != v.Extent.Len() || m.To.Start >= v.Extent.Start {
				t.Fatalf("move %d of %+v is not possible: %s", i, v, describe())
			}
			volumes = slices.Clone(volumes)
			free, volumes[at].Extent = free.Remove(m.To).Add(v.Extent), m.To
			if rest, again := Compact(free, volumes); again < largest || again == largest && bytesOf(rest) > bytesOf(moves[i+1:]) {
				t.Fatalf("after move %d: %d with %+v: %s", i, again, rest, describe())
			}
		}
		if got := free.Largest().Len(); got != largest {
			t.Fatalf("after all moves the largest free extent has %d: %s", got, describe())
		}
	}
	if gains < 500 || optimal < gains*9/10 {
		t.Errorf("of %d disks on which moves gain something, %d had the best plan", gains, optimal)
	}
	t.Logf("of %d disks on which moves gain something, %d had the best plan", gains, optimal)
}

func bytesOf(moves []Shift) (n int64) {
	for _, m := range moves {
		n += m.To.Len()
	}
	return n
}

// TestCompactExamples asserts the plans of a few disks, in units of 1.
func TestCompactExamples(t *testing.T) {
	at := func(id string, start, length int64) Resident {
		return Resident{ID: id, Extent: extent.New(start, length)}
	}
	fixed := func(start, length int64) Resident {
		return Resident{ID: "fixed", Extent: extent.New(start, length), Fixed: true}
	}
	free := extent.New
	for name, test := range map[string]struct {
		free    []extent.Extent
		volumes []Resident
		moves   string
		largest int64
	}{
		"nothing to do":                {[]extent.Extent{free(4, 6)}, []Resident{at("a", 0, 4)}, "[]", 6},
		"a hole before a volume":       {[]extent.Extent{free(0, 4), free(8, 2)}, []Resident{at("a", 4, 4)}, "[{a [0,4)}]", 6},
		"a hole that is too small":     {[]extent.Extent{free(0, 3), free(7, 3)}, []Resident{at("a", 3, 4)}, "[]", 3},
		"a volume that stays":          {[]extent.Extent{free(0, 4), free(8, 2)}, []Resident{fixed(4, 4)}, "[]", 4},
		"the one that leaves the most": {[]extent.Extent{free(0, 3), free(9, 3)}, []Resident{at("a", 3, 3), at("b", 6, 3)}, "[{b [0,3)}]", 6},
		"both, behind one that stays":  {[]extent.Extent{free(0, 2), free(3, 2), free(9, 1)}, []Resident{fixed(2, 1), at("a", 5, 2), at("b", 7, 2)}, "[{a [0,2)} {b [3,5)}]", 5},
		"a move that gains nothing":    {[]extent.Extent{free(0, 2), free(5, 9)}, []Resident{fixed(2, 1), at("a", 3, 1), fixed(4, 1)}, "[]", 9},
	} {
		moves, largest := Compact(extent.NewSet(test.free...), test.volumes)
		if got := fmt.Sprint(moves); got != test.moves || largest != test.largest {
			t.Errorf("%s: %s and %d, want %s and %d", name, got, largest, test.moves, test.largest)
		}
	}
}

func BenchmarkCompact(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 2))
	free, volumes, at := extent.Set{}, []Resident(nil), int64(0)
	for i := range 128 {
		hole, v := extent.New(at, 1+rng.Int64N(100)), 1+rng.Int64N(100)
		free, volumes = free.Add(hole), append(volumes, Resident{ID: strconv.Itoa(i), Extent: extent.New(hole.End, v)})
		at = hole.End + v
	}
	for b.Loop() {
		Compact(free, volumes)
	}
}
