package placement

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

var hunt = flag.Int("hunt", 500, "hunt for the worst case of the exact search, in this many steps")

// packing is a case in one class, in MiB, that is easy to change a little.
type packing struct {
	extents [12][]int64 // a disk each
	volumes [maxExact]int64
	aparts  int // the first so many volumes
}

func (p *packing) build() (*Node, []Request) {
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

func (p *packing) clone() *packing {
	c := *p
	for d := range c.extents {
		c.extents[d] = append([]int64(nil), p.extents[d]...)
	}
	return &c
}

// TestHuntWorstCase climbs towards packings that take the search the most steps and
// end in a refusal, and holds that none takes more than there are ways to split. With many
// steps it is how the constants of worstCases were found:
//
//	go test ./pkg/placement -run HuntWorstCase -v -args -hunt 200000
func TestHuntWorstCase(t *testing.T) {
	rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 1))
	for aparts := range maxExact {
		var best *packing
		bestSteps := -1
		for step := range *hunt {
			var p *packing
			if best == nil || step%5000 < 50 {
				p = &packing{aparts: aparts}
				for i := range p.volumes {
					p.volumes[i] = 1 + rng.Int64N(1000)
				}
				for k := range 1 + rng.IntN(12) {
					p.extents[rng.IntN(12)] = append(p.extents[rng.IntN(12)], int64(400*(1+k%4)))
				}
			} else {
				p = best.clone()
			}
			for range 1 + rng.IntN(3) {
				p.mutate(rng)
			}
			if steps, fits := p.steps(); !fits && steps >= bestSteps {
				best, bestSteps = p, steps
			}
		}
		if bestSteps < 0 {
			t.Fatalf("aparts %d: no packing was refused by the search, the hunt shows nothing", aparts)
		}
		if bestSteps > maxSteps {
			t.Errorf("aparts %d: %d steps, at most %d were promised: %+v", aparts, bestSteps, maxSteps, *best)
		}
		node, requests := best.build()
		start := time.Now()
		for range 100 {
			_, _ = Plan(nil, node, requests)
		}
		t.Logf("aparts %d: %d steps, %v each: %+v", aparts, bestSteps, time.Since(start)/100, *best)
	}
}

func (p *packing) mutate(rng *rand.Rand) {
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

// steps counts how often the exact search puts a volume into a group.
func (p *packing) steps() (int, bool) {
	node, requests := p.build()
	places := make([]Assignment, len(requests))
	order := make([]int, len(requests))
	for i := range order {
		order[i] = i
	}
	for i := range order {
		for j := i; j > 0 && compare(&requests[order[j]], &requests[order[j-1]], order[j], order[j-1]) < 0; j-- {
			order[j], order[j-1] = order[j-1], order[j]
		}
	}
	pl := planner{node: node, class: "ssd", requests: requests, order: order, places: places, cuts: make([]cut, len(requests))}
	if !pl.roomAtAll() || pl.oneByOne() {
		return 0, true
	}
	var s split
	s.load(&pl)
	start := s.budget
	if !s.plausibleAtAll() {
		return 0, false
	}
	fits := s.extend(0)
	return start - s.budget, fits
}

// worstCases are the refusals that take the exact search the most steps of all that
// TestHuntWorstCase has found, by number of volumes with Apart.
var worstCases = []packing{
	{ // 1868 steps
		extents: [12][]int64{1: {1210}, 3: {315}, 10: {2820, 242}, 11: {249, 2040, 1136}},
		volumes: [maxExact]int64{720, 906, 921, 919, 740, 928, 827, 602},
	},
	{ // 1658 steps
		extents: [12][]int64{0: {1012, 2061}, 1: {292}, 2: {353}, 6: {2854}, 8: {105, 1255}},
		volumes: [maxExact]int64{625, 661, 955, 869, 863, 746, 884, 885},
		aparts:  2,
	},
	{ // 1203 steps
		extents: [12][]int64{3: {84, 1161}, 7: {353}, 8: {1424}, 10: {412}, 11: {2039, 2857, 1}},
		volumes: [maxExact]int64{680, 731, 641, 847, 813, 879, 829, 812},
		aparts:  3,
	},
	{ // 899 steps
		extents: [12][]int64{1: {1739, 345}, 4: {1184}, 5: {2066}, 8: {874, 446, 881}, 9: {205}},
		volumes: [maxExact]int64{297, 254, 343, 288, 985, 365, 947, 959},
		aparts:  4,
	},
}

// maxSteps is how many ways there are to split the first 1, 2, … 8 volumes, together:
// Bell(1) + … + Bell(8).
const maxSteps = 1 + 2 + 5 + 15 + 52 + 203 + 877 + 4140

func TestExactSearchIsBounded(t *testing.T) {
	for _, p := range worstCases {
		if steps, fits := p.steps(); fits || steps < 500 || steps > maxSteps {
			t.Errorf("apart %d: %d steps, fits %v: no longer a hard refusal", p.aparts, steps, fits)
		}
	}
	rng := rand.New(rand.NewPCG(7, 8))
	for range 3000 {
		p := worstCases[rng.IntN(len(worstCases))].clone()
		for range 5 {
			p.mutate(rng)
		}
		if steps, _ := p.steps(); steps > maxSteps {
			t.Fatalf("%d steps for %+v", steps, p)
		}
	}
}
