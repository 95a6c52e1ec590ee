package placement

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// hardCase is a case in one class, with sizes in MiB, that is easy to change a little.
type hardCase struct {
	extents [12][]int64 // a disk each
	volumes [maxExact]int64
	aparts  int // the first so many volumes
}

func (p *hardCase) build() (*Node, []Request) {
	node := &Node{}
	for d, lengths := range p.extents {
		node.Disks = append(node.Disks, disk(fmt.Sprintf("d%02d", d), "ssd", lengths...))
	}
	requests := want(p.volumes[:]...)
	for i := range p.aparts {
		requests[i].Apart = true
	}
	return node, requests
}

func (p *hardCase) clone() *hardCase {
	c := *p
	for d := range c.extents {
		c.extents[d] = append([]int64(nil), p.extents[d]...)
	}
	return &c
}

func (p *hardCase) mutate(rng *rand.Rand) {
	d := rng.IntN(len(p.extents))
	switch rng.IntN(5) {
	case 0:
		p.volumes[rng.IntN(len(p.volumes))] = 1 + rng.Int64N(1000)
	case 1:
		i := rng.IntN(len(p.volumes))
		p.volumes[i] = max(1, p.volumes[i]+rng.Int64N(41)-20)
	case 2:
		if len(p.extents[d]) < 10 {
			p.extents[d] = append(p.extents[d], 1+rng.Int64N(4000))
		}
	case 3:
		if n := len(p.extents[d]); n > 0 {
			p.extents[d] = p.extents[d][:n-1]
		}
	case 4:
		if n := len(p.extents[d]); n > 0 {
			i := rng.IntN(n)
			p.extents[d][i] = max(1, p.extents[d][i]+rng.Int64N(201)-100)
		}
	}
}

// steps counts how often the exact search puts a volume into an extent.
func (p *hardCase) steps() (steps int, fits bool) {
	node, requests := p.build()
	order := NewDemand(requests).classes[0].order
	pl := planner{node: node, class: "ssd", requests: requests, order: order, places: make([]Assignment, len(requests)), cuts: make([]cut, len(requests))}
	if !pl.mayFit() || pl.greedy() {
		return 0, true
	}
	var s packing
	s.loadKinds(&pl)
	s.loadBins(&pl)
	if !s.binsSuffice() {
		return 0, false
	}
	s.index()
	s.pack()
	return s.steps, s.writePlaces(&pl)
}

// worstCases are refusals that are expensive to find, one for each number of volumes with Apart. Hill climbing found
// them.
var worstCases = []hardCase{
	{
		extents: [12][]int64{1: {1210}, 3: {315}, 10: {2820, 242}, 11: {249, 2040, 1136}},
		volumes: [maxExact]int64{720, 906, 921, 919, 740, 928, 827, 602},
	},
	{
		extents: [12][]int64{0: {1012, 2061}, 1: {292}, 2: {353}, 6: {2854}, 8: {105, 1255}},
		volumes: [maxExact]int64{625, 661, 955, 869, 863, 746, 884, 885},
		aparts:  2,
	},
	{
		extents: [12][]int64{3: {84, 1161}, 7: {353}, 8: {1424}, 10: {412}, 11: {2039, 2857, 1}},
		volumes: [maxExact]int64{680, 731, 641, 847, 813, 879, 829, 812},
		aparts:  3,
	},
	{
		extents: [12][]int64{1: {1739, 345}, 4: {1184}, 5: {2066}, 8: {874, 446, 881}, 9: {205}},
		volumes: [maxExact]int64{297, 254, 343, 288, 985, 365, 947, 959},
		aparts:  4,
	},
}

// maxSteps bounds how often the search puts a volume into an extent: each of eight volumes behind each choice of the
// others. The factor 2 is for the states without and with an Apart volume on the last disk.
const maxSteps = 2 * maxExact << (maxExact - 1)

// TestExactSearchIsBounded asserts that the search is within maxSteps, for hard cases and for many similar ones.
func TestExactSearchIsBounded(t *testing.T) {
	for _, p := range worstCases {
		if steps, fits := p.steps(); fits || steps < 100 || steps > maxSteps {
			t.Errorf("apart %d: %d steps, fits %v: no longer a hard refusal", p.aparts, steps, fits)
		}
	}
	rng := rand.New(rand.NewPCG(7, 8))
	for range 3000 {
		p := worstCases[rng.IntN(len(worstCases))].clone()
		for range 5 {
			p.mutate(rng)
		}
		if steps, _ := p.steps(); steps > 2*maxSteps {
			t.Fatalf("%d steps for %+v", steps, p)
		}
	}
}

// TestAlikeVolumesAreExact asserts that many volumes of few sizes are placed whenever it is possible. Best fit alone
// fails here.
func TestAlikeVolumesAreExact(t *testing.T) {
	// Each disk takes two of 5 and two of 3; the largest first leaves no room for the last ones.
	for _, count := range []int{3, 4, 12, 64} {
		node := &Node{}
		var sizes []int64
		for d := range count {
			node.Disks = append(node.Disks, disk(fmt.Sprintf("d%02d", d), "ssd", 8, 7))
			sizes = append(sizes, 5, 4, 3, 3)
		}
		requests := want(sizes...)
		plan, err := Plan(nil, node, requests)
		if count == 64 {
			// 65 × 65 × 129 choices are too many.
			if noFit, ok := errors.AsType[*NoFit](err); !ok || noFit.Cause != GaveUp || !strings.Contains(err.Error(), "the search was given up") {
				t.Errorf("%d volumes: %v, want it to be given up", len(requests), err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%d volumes: %v", len(requests), err)
		} else if err := checkPlan(node, requests, plan); err != nil {
			t.Errorf("%d volumes: %v", len(requests), err)
		}
	}
}

// TestManyVolumesOfFewSizesAgainstOracle asserts that nine to twelve volumes of few sizes are placed if and only if it
// is possible.
func TestManyVolumesOfFewSizesAgainstOracle(t *testing.T) {
	rng := rand.New(rand.NewPCG(11, 12))
	for i := range 300 {
		node, requests := crowded(rng, 9+rng.IntN(4))
		_, err := Plan(nil, node, requests)
		if noFit, ok := errors.AsType[*NoFit](err); ok && noFit.Cause == GaveUp {
			continue
		}
		if want := possibleFast(node, requests); (err == nil) != want {
			t.Fatalf("case %d: Plan says %v, possible is %v: %v on %v", i, err, want, requests, node)
		}
	}
}

// TestManyIsLikeGreedy asserts that the code for many volumes finds the same places as the code for few.
func TestManyIsLikeGreedy(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	fits := 0
	for i := range 5000 {
		node, requests := crowded(rng, 2+rng.IntN(maxExact-1))
		if i%2 == 0 {
			requests = under(Spread, requests)
		}
		order := NewDemand(requests).classes[0].order
		few := planner{node: node, class: "ssd", requests: requests, order: order, places: make([]Assignment, len(requests)), cuts: make([]cut, len(requests))}
		many := few
		many.places = make([]Assignment, len(requests))
		have, want := many.greedyByDisk(false, nil) == found, few.greedy()
		if have != want || want && !reflect.DeepEqual(many.places, few.places) {
			t.Fatalf("case %d: %v (%v), want %v (%v): %v on %v", i, many.places, have, few.places, want, requests, node)
		}
		if want {
			fits++
		}
	}
	if fits < 500 {
		t.Errorf("%d of 5000 fit: the cases show little", fits)
	}
}

// TestBudget asserts that plans for many volumes stop when their common budget is spent, with the cause GaveUp. Plans
// for few volumes do not stop.
func TestBudget(t *testing.T) {
	node := benchNode(8)
	sizes := slices.Repeat([]int64{20 * gi}, 40)
	many, few := NewDemand(want(sizes...)), NewDemand(want(sizes[:maxExact]...))
	budget := NewBudget(5000)
	planned := 0
	var err error
	for err == nil && planned < 100 {
		if _, err = many.Plan(nil, node, budget); err == nil {
			planned++
		}
	}
	if noFit, ok := errors.AsType[*NoFit](err); !ok || noFit.Cause != GaveUp || planned == 0 || !budget.Spent() {
		t.Errorf("%d plans, then %v", planned, err)
	}
	if _, err := few.Plan(nil, node, budget); err != nil {
		t.Errorf("of eight volumes the search is exact, got %v", err)
	}
}
