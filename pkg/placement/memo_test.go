package placement

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

var searchFor = flag.Duration("placement.search", 0, "how long to look for cases that Plan gets wrong")

// memo is an oracle for more volumes than tryAll can take. It tries every extent for every volume, too, but never twice
// from the same state.
type memo struct {
	sizes   []int64
	apart   []bool
	lengths []int64
	diskOf  []int
	failed  map[string]bool
}

// possibleFast reports the same as possible, for requests of one class.
func possibleFast(node *Node, requests []Request) bool {
	m := &memo{failed: map[string]bool{}}
	for d := range node.Disks {
		for _, e := range node.Disks[d].Free.All() {
			m.lengths, m.diskOf = append(m.lengths, e.Len()/Alignment), append(m.diskOf, d)
		}
	}
	for _, r := range requests {
		m.sizes, m.apart = append(m.sizes, r.Size/Alignment), append(m.apart, r.Apart)
	}
	return m.try(0, 0)
}

func (m *memo) try(i int, taken uint64) bool {
	if i == len(m.sizes) {
		return true
	}
	key := fmt.Sprint(i, taken, m.lengths)
	if m.failed[key] {
		return false
	}
	for x := range m.lengths {
		disk := uint64(1) << m.diskOf[x]
		if m.lengths[x] < m.sizes[i] || m.apart[i] && taken&disk != 0 {
			continue
		}
		after := taken
		if m.apart[i] {
			after |= disk
		}
		m.lengths[x] -= m.sizes[i]
		found := m.try(i+1, after)
		m.lengths[x] += m.sizes[i]
		if found {
			return true
		}
	}
	m.failed[key] = true
	return false
}

// crowded makes a node whose volumes fill it to the last byte or nearly so. It has more volumes than randomCase, and
// more of them apart.
func crowded(rng *rand.Rand, volumes int) (*Node, []Request) {
	disks := 2 + rng.IntN(5)
	lengths := make([][]int64, disks)
	hasApart := make([]bool, disks)
	var requests []Request
	eager, largest := rng.IntN(5), 1+rng.Int64N(9)
	for len(requests) < volumes {
		d := rng.IntN(disks)
		length := int64(0)
		for range 1 + rng.IntN(4) {
			if len(requests) == volumes {
				break
			}
			r := Request{Class: "ssd", Size: (1 + rng.Int64N(largest)) * Alignment}
			if !hasApart[d] && rng.IntN(5) < eager {
				r.Apart, hasApart[d] = true, true
			}
			length += r.Size / Alignment
			requests = append(requests, r)
		}
		// A sixth of the extents have a free MiB, and some extents are not needed at all.
		if rng.IntN(6) == 0 {
			length++
		}
		lengths[d] = append(lengths[d], length)
		if rng.IntN(6) == 0 {
			lengths[rng.IntN(disks)] = append(lengths[rng.IntN(disks)], 1+rng.Int64N(2*largest))
		}
	}
	node := &Node{}
	for d := range lengths {
		rng.Shuffle(len(lengths[d]), func(i, j int) { lengths[d][i], lengths[d][j] = lengths[d][j], lengths[d][i] })
		node.Disks = append(node.Disks, disk(fmt.Sprintf("d%d", d), "ssd", lengths[d]...))
	}
	for range rng.IntN(3) {
		switch r := &requests[rng.IntN(len(requests))]; rng.IntN(3) {
		case 0:
			r.Size += Alignment
		case 1:
			r.Size = max(Alignment, r.Size-Alignment)
		default:
			r.Apart = !r.Apart
		}
	}
	rng.Shuffle(len(requests), func(i, j int) { requests[i], requests[j] = requests[j], requests[i] })
	return node, requests
}

// TestOraclesAgree asserts that the fast oracle and the simple one give the same answers.
func TestOraclesAgree(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 7))
	for i := range 3000 {
		node, requests := crowded(rng, 1+rng.IntN(4))
		if have, want := possibleFast(node, requests), possible(node, requests); have != want {
			t.Fatalf("case %d: the oracles say %v and %v of %v on %v", i, have, want, requests, node)
		}
	}
}

// TestPlanIsExactWhenCrowded asserts that up to eight volumes are placed if and only if it is possible, with many of
// them apart. With -placement.search=10m the test goes on for that time, from a random seed.
func TestPlanIsExactWhenCrowded(t *testing.T) {
	seed, until := uint64(1), time.Time{}
	if *searchFor > 0 {
		seed, until = rand.Uint64(), time.Now().Add(*searchFor)
	}
	rng := rand.New(rand.NewPCG(seed, 8))
	cases, placed := 0, 0
	for cases < 20_000 || time.Now().Before(until) {
		cases++
		node, requests := crowded(rng, 5+rng.IntN(maxExact-4))
		if cases%2 == 0 {
			requests = under(Spread, requests)
		}
		before := slices.Clone(requests)
		plan, err := Plan(nil, node, requests)
		if !slices.Equal(before, requests) {
			t.Fatal("Plan changed the requests")
		}
		if want := possibleFast(node, requests); (err == nil) != want {
			t.Fatalf("seed %d, case %d: Plan says %v, possible is %v: %v on %v", seed, cases, err, want, requests, node)
		}
		if err != nil {
			continue
		}
		placed++
		if err := checkPlan(node, requests, plan); err != nil {
			t.Fatalf("seed %d, case %d: %v: %v on %v", seed, cases, err, requests, node)
		}
	}
	t.Logf("%d cases, %d of them possible", cases, placed)
}
