package placement

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"

	"github.com/berthdev/berth/pkg/extent"
)

// inUpTo says that the volumes may have that many pieces.
func inUpTo(pieces int, requests []Request) []Request {
	for i := range requests {
		requests[i].MaxPieces = pieces
	}
	return requests
}

// showPieces writes disk:length+length for each volume, in MiB.
func showPieces(plan []Assignment) string {
	volumes := make([]string, len(plan))
	for i := range plan {
		var lengths []string
		for n := range plan[i].numPieces() {
			lengths = append(lengths, strconv.FormatInt(plan[i].piece(n).Len()/Alignment, 10))
		}
		volumes[i] = plan[i].Disk + ":" + strings.Join(lengths, "+")
	}
	return strings.Join(volumes, " ")
}

func TestPlanInPieces(t *testing.T) {
	mixed := append(inUpTo(4, want(12)), want(7)...)
	tests := []struct {
		name     string
		disks    []Disk
		requests []Request
		want     string
	}{
		{"one extent is better than any pieces", []Disk{disk("a", "ssd", 5, 5), disk("b", "ssd", 90)}, inUpTo(4, want(10)), "b:10"},
		{"the largest extents first, the rest in the smallest that holds it", []Disk{disk("a", "ssd", 3, 9, 2, 5, 6)}, inUpTo(4, want(11)), "a:9+2"},
		{"the disk with the fewest pieces", []Disk{disk("a", "ssd", 4, 4, 4), disk("b", "ssd", 6, 7)}, inUpTo(4, want(12)), "b:7+5"},
		{"of these the one that leaves the least", []Disk{disk("a", "ssd", 7, 9), disk("b", "ssd", 6, 7)}, inUpTo(4, want(12)), "b:7+5"},
		{"of equal disks the first", []Disk{disk("a", "ssd", 6, 7), disk("b", "ssd", 6, 7)}, inUpTo(4, want(12)), "a:7+5"},
		{"with Spread the emptiest of these", []Disk{disk("a", "ssd", 6, 7), disk("b", "ssd", 6, 7, 1)}, under(Spread, inUpTo(4, want(12))), "b:7+5"},
		{"as many pieces as allowed", []Disk{disk("a", "ssd", 4, 4, 4)}, inUpTo(3, want(12)), "a:4+4+4"},
		{"no more pieces than allowed", []Disk{disk("a", "ssd", 4, 4, 4)}, inUpTo(2, want(12)), "no disk of class ssd has 12Mi free in at most 2 pieces"},
		{"never on two disks", []Disk{disk("a", "ssd", 6), disk("b", "ssd", 6)}, inUpTo(16, want(12)), "no disk of class ssd has 12Mi free in at most 16 pieces"},
		{"never on another class", []Disk{disk("a", "hdd", 6, 6), disk("b", "ssd", 6)}, inUpTo(16, want(12)), "no disk of class ssd has 12Mi free in at most 16 pieces"},
		{"not without leave", []Disk{disk("a", "ssd", 6, 6)}, want(12), "largest free extent of class ssd is below 12Mi"},
		{"nor with one piece", []Disk{disk("a", "ssd", 6, 6)}, inUpTo(1, want(12)), "largest free extent of class ssd is below 12Mi"},
		{"volumes without leave first", []Disk{disk("a", "ssd", 8, 6, 5)}, mixed, "a:6+5+1 a:7"},
		{"what one takes the next does not get", []Disk{disk("a", "ssd", 6, 6, 6)}, inUpTo(4, want(9, 9)), "a:6+3 a:6+3"},
		{"apart", []Disk{disk("a", "ssd", 6, 6, 6, 6), disk("b", "ssd", 6, 6)}, inUpTo(4, wantApart(12, 12)), "a:6+6 b:6+6"},
		{"apart on too few disks", []Disk{disk("a", "ssd", 6, 6, 6, 6)}, inUpTo(4, wantApart(12, 12)), "too few disks of class ssd have room for 2 volumes on different disks"},
		{"too little in all", []Disk{disk("a", "ssd", 6, 6)}, inUpTo(4, want(9, 9)), "not enough free space of class ssd, 2 volumes (9Mi + 9Mi) want 18Mi"},
		{"the volume without leave is what does not fit", []Disk{disk("a", "ssd", 6, 6)}, append(inUpTo(4, want(12)), want(7)...), "largest free extent of class ssd is below 7Mi"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			node := &Node{Disks: test.disks, Pieces: true}
			for _, planned := range plannedBoth(node, test.requests) {
				got := showPieces(planned.plan)
				var noFit *NoFit
				if errors.As(planned.err, &noFit) {
					got = noFit.Reason()
				}
				if got != test.want {
					t.Errorf("got  %s\nwant %s", got, test.want)
				}
				if planned.err == nil {
					if err := checkPlan(node, test.requests, planned.plan); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
}

// planned is the result of Plan.
type planned struct {
	plan []Assignment
	err  error
}

// plannedBoth plans with Plan and with a Demand, which must have the same result.
func plannedBoth(node *Node, requests []Request) []planned {
	one, errOne := Plan(nil, node, requests)
	other, errOther := NewDemand(requests).Plan(nil, node, NewBudget(math.MaxInt64))
	return []planned{{one, errOne}, {other, errOther}}
}

func TestNoPiecesWithoutDeviceMapper(t *testing.T) {
	node := &Node{Disks: []Disk{disk("a", "ssd", 6, 6)}}
	_, err := Plan(nil, node, inUpTo(4, want(12)))
	want := "largest free extent of class ssd is 6Mi, wants 12Mi, and there are no pieces without the device mapper in the node's kernel"
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestNotInPiecesSays(t *testing.T) {
	a := disk("a", "ssd", 6, 5, 4)
	a.Usable = 100 * Alignment
	node := &Node{Disks: []Disk{a, disk("b", "hdd", 90)}, Pieces: true}
	node.Disks[1].Usable = 90 * Alignment
	_, err := Plan(nil, node, inUpTo(2, want(12)))
	var noFit *NoFit
	if !errors.As(err, &noFit) || noFit.Cause != NotInPieces || noFit.Shortfall() != Alignment || noFit.Never || noFit.Best() != "11Mi" {
		t.Fatalf("got %+v", err)
	}
	if want := "2 free extents of a disk of class ssd add up to 11Mi, wants 12Mi"; noFit.Error() != want {
		t.Errorf("got %s, want %s", noFit, want)
	}
	_, err = Plan(nil, node, inUpTo(2, want(101)))
	if !errors.As(err, &noFit) || !noFit.Never || noFit.Reason() != "no disk of class ssd could ever hold 101Mi" {
		t.Errorf("got %+v", err)
	}
}

// fewestPieces is the oracle of the number of pieces on a disk: it tries every choice of extents.
func fewestPieces(free extent.Set, size int64) int {
	best := math.MaxInt
	for choice := range 1 << free.Len() {
		var sum int64
		pieces := 0
		for i := range free.Len() {
			if choice>>i&1 == 1 {
				sum += free.At(i).Len()
				pieces++
			}
		}
		if sum >= size {
			best = min(best, pieces)
		}
	}
	return best
}

func TestPlanInPiecesAgainstOracle(t *testing.T) {
	rng := rand.New(rand.NewPCG(11, 12))
	inPieces := 0
	for i := range 5000 {
		node := &Node{Pieces: true}
		best := math.MaxInt
		r := Request{Class: "ssd", Size: (1 + rng.Int64N(40)) * Alignment, MaxPieces: 1 + rng.IntN(6), Policy: Policy(rng.IntN(2))}
		for d := range 1 + rng.IntN(3) {
			var lengths []int64
			for range rng.IntN(7) {
				lengths = append(lengths, 1+rng.Int64N(12))
			}
			node.Disks = append(node.Disks, disk(fmt.Sprintf("d%d", d), "ssd", lengths...))
			best = min(best, fewestPieces(node.Disks[d].Free, r.Size))
		}
		plan, err := Plan(nil, node, []Request{r})
		if fits := best <= r.MaxPieces; fits != (err == nil) {
			t.Fatalf("case %d: %v, although %d pieces suffice: %+v on %v", i, err, best, r, node)
		}
		if err != nil {
			continue
		}
		if err := checkPlan(node, []Request{r}, plan); err != nil {
			t.Fatalf("case %d: %v", i, err)
		}
		if plan[0].numPieces() != best {
			t.Fatalf("case %d: %s, although %d pieces suffice", i, showPieces(plan), best)
		}
		if best > 1 {
			inPieces++
		}
	}
	if inPieces < 500 {
		t.Errorf("only %d of 5000 are in pieces: the cases show little", inPieces)
	}
}

// TestPiecesNeverRefuseMore asserts that leave for pieces never makes a pod fit less, and that plans are valid.
func TestPiecesNeverRefuseMore(t *testing.T) {
	rng := rand.New(rand.NewPCG(13, 14))
	gained := 0
	for i := range 5000 {
		node, requests := randomCase(rng, 6, 6)
		if last := len(requests) - 1; last > 0 && requests[last].Class == requests[0].Class {
			// One volume as large as two: it often fits in pieces only.
			requests[0].Size += requests[last].Size
			requests = requests[:last]
		}
		_, whole := Plan(nil, node, requests)
		node.Pieces = true
		for j := range requests {
			requests[j].MaxPieces = rng.IntN(5)
		}
		for _, p := range plannedBoth(node, requests) {
			if whole == nil && p.err != nil {
				t.Fatalf("case %d: %v", i, p.err)
			}
			if p.err == nil {
				if err := checkPlan(node, requests, p.plan); err != nil {
					t.Fatalf("case %d: %v", i, err)
				}
				if whole != nil {
					gained++
				}
			}
		}
	}
	if gained < 500 {
		t.Errorf("only %d of 10000 plans need pieces: the cases show little", gained)
	}
}

func TestMeritOfPieces(t *testing.T) {
	node := &Node{Pieces: true, Disks: []Disk{disk("a", "ssd", 9, 6, 6)}}
	for _, policy := range []Policy{BestFit, Spread} {
		merits := make([]int64, 0, 3)
		for _, size := range []int64{1, 10, 20} {
			requests := under(policy, inUpTo(3, want(size)))
			plan, err := Plan(nil, node, requests)
			if err != nil {
				t.Fatal(err)
			}
			merits = append(merits, Merit(node, requests, plan))
		}
		if merits[0] <= merits[1] || merits[1] <= merits[2] {
			t.Errorf("policy %d: merits %v of one, two and three pieces must fall", policy, merits)
		}
		if Score(merits[1]) != 0 {
			t.Errorf("policy %d: a plan in pieces scores %d", policy, Score(merits[1]))
		}
	}
}
