package placement

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/berthdev/berth/pkg/extent"
)

// show writes a plan as disk:start+length in MiB.
func show(plan []Assignment) string {
	var parts []string
	for _, p := range plan {
		parts = append(parts, fmt.Sprintf("%s:%d+%d", p.Disk, p.Extent.Start/Alignment, p.Extent.Len()/Alignment))
	}
	return strings.Join(parts, " ")
}

func TestPlan(t *testing.T) {
	tests := []struct {
		name     string
		disks    []Disk
		requests []Request
		want     string
	}{
		{"no request needs no room", nil, nil, ""},
		{"the smallest extent that holds the volume takes it",
			[]Disk{disk("a", "ssd", 9, 4, 6), disk("b", "ssd", 5, 3)}, want(5), "b:1+5"},
		{"an exact fit is a fit",
			[]Disk{disk("a", "ssd", 10)}, want(10), "a:1+10"},
		{"of equal extents, the disk with the lowest ID, then the lowest start",
			[]Disk{disk("a", "ssd", 9, 4, 4), disk("b", "ssd", 4)}, want(3), "a:11+3"},
		{"another class does not count, however well it fits",
			[]Disk{disk("a", "hdd", 5), disk("b", "ssd", 9)}, want(5), "b:1+5"},
		{"two volumes share an extent one behind the other, the larger first",
			[]Disk{disk("a", "ssd", 10)}, want(3, 7), "a:8+3 a:1+7"},
		{"places come in the order of the requests, whatever order they were placed in",
			[]Disk{disk("a", "ssd", 10, 4)}, want(3, 9), "a:12+3 a:1+9"},
		{"each class is placed by itself",
			[]Disk{disk("a", "hdd", 5), disk("b", "ssd", 5)},
			[]Request{{Class: "ssd", Size: 5 * Alignment}, {Class: "hdd", Size: 4 * Alignment}}, "b:1+5 a:1+4"},
		{"what best fit alone misses is found: 5+3 and 4+3",
			[]Disk{disk("a", "ssd", 8, 7)}, want(5, 4, 3, 3), "a:1+5 a:10+4 a:14+3 a:6+3"},
		{"volumes apart go to different disks though one disk would fit better",
			[]Disk{disk("a", "ssd", 5, 5), disk("b", "ssd", 50)}, wantApart(5, 5), "a:1+5 b:1+5"},
		{"a volume that is not apart may share the disk of one that is",
			[]Disk{disk("a", "ssd", 5, 5), disk("b", "ssd", 50)},
			append(wantApart(5), want(5)...), "a:1+5 a:7+5"},
		{"a volume apart makes way for others that fit nowhere else",
			// Best fit puts the 4 on a's 4, and then nothing but b is left for both 3s.
			[]Disk{disk("a", "ssd", 4), disk("b", "ssd", 4, 3)},
			append(wantApart(4, 3), want(3)...), "a:1+4 b:6+3 b:1+3"},
		{"spread: the disk with the most free bytes, there the tightest extent",
			[]Disk{disk("a", "ssd", 10), disk("b", "ssd", 7, 5, 9)}, under(Spread, want(5)), "b:9+5"},
		{"spread: of equal disks, the one with the lowest ID",
			[]Disk{disk("a", "ssd", 3, 6), disk("b", "ssd", 4, 5)}, under(Spread, want(4)), "a:5+4"},
		{"spread: an empty disk of pieces that are too small does not count",
			[]Disk{disk("a", "ssd", 6), disk("b", "ssd", 5, 5, 5, 5)}, under(Spread, want(6)), "a:1+6"},
		{"spread: one volume after the other, the largest first",
			[]Disk{disk("a", "ssd", 20), disk("b", "ssd", 18)}, under(Spread, want(3, 2, 4)), "b:1+3 a:5+2 a:1+4"},
		{"spread: also apart",
			[]Disk{disk("a", "ssd", 90), disk("b", "ssd", 20), disk("c", "ssd", 10)}, under(Spread, wantApart(3, 4)), "b:1+3 a:1+4"},
		{"spread: all volumes matter more than the policy",
			[]Disk{disk("a", "ssd", 8), disk("b", "ssd", 7)}, under(Spread, want(7, 5, 3)), "b:1+7 a:1+5 a:6+3"},
		{"each class has its policy",
			[]Disk{disk("a", "hdd", 5), disk("b", "hdd", 50), disk("c", "ssd", 5), disk("d", "ssd", 50)},
			append(under(Spread, want(4)), Request{Class: "hdd", Size: 4 * Alignment}), "d:1+4 a:1+4"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			node := &Node{Disks: test.disks}
			plan, err := Plan(nil, node, test.requests)
			if err != nil {
				t.Fatal(err)
			}
			if got := show(plan); got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
			if err := checkPlan(node, test.requests, plan); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestPlanAppendsAllOrNothing(t *testing.T) {
	node := &Node{Disks: []Disk{disk("a", "ssd", 10)}}
	earlier := []Assignment{{Disk: "earlier", Extent: extent.New(0, 1)}}

	plan, err := Plan(earlier, node, want(4, 4))
	if err != nil || len(plan) != 3 || !reflect.DeepEqual(plan[0], earlier[0]) {
		t.Errorf("got %v, %v", plan, err)
	}
	for _, requests := range [][]Request{want(4, 7), want(11), want(0), append(want(4), Request{Class: "hdd", Size: Alignment})} {
		plan, err = Plan(earlier, node, requests)
		if err == nil || !reflect.DeepEqual(plan, earlier) {
			t.Errorf("%v: got %v, %v", requests, plan, err)
		}
	}
}

func TestPlanRefusesBadRequests(t *testing.T) {
	tests := []struct {
		name     string
		requests []Request
		want     string
	}{
		{"zero", []Request{{Class: "ssd"}}, "request 0: size 0"},
		{"negative", []Request{{Class: "ssd", Size: -Alignment}}, "request 0: size -1048576"},
		{"least integer", []Request{{Class: "ssd", Size: math.MinInt64}}, "request 0: size -9223372036854775808"},
		{"not a multiple of 1 MiB", append(want(1), Request{Class: "ssd", Size: Alignment + 1}), "request 1: size 1048577"},
		{"no class", []Request{{Size: Alignment}}, "names no class"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := Plan(nil, &Node{Disks: []Disk{disk("a", "ssd", 10)}}, test.requests)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
			if noFit := (*NoFit)(nil); errors.As(err, &noFit) {
				t.Error("a bad request is not a matter of room")
			}
		})
	}
}

// TestPlanOfSumsBeyondCounting asserts that volumes whose sizes add up to more than an int64 are refused for lack of
// room, in every part of the search.
func TestPlanOfSumsBeyondCounting(t *testing.T) {
	const ei = int64(1) << 60
	five := Request{Class: "ssd", Size: 5 * ei}
	large := func(id string, lengths ...int64) Disk {
		at := Alignment
		var free []extent.Extent
		for _, n := range lengths {
			free = append(free, extent.New(at, n))
			at += n + Alignment
		}
		return Disk{ID: id, Class: "ssd", Free: extent.NewSet(free...), Usable: 7 * ei}
	}
	tests := map[string]struct {
		disks    []Disk
		requests []Request
		cause    Cause
		fits     bool
	}{
		"on a small disk":     {[]Disk{disk("a", "ssd", 10)}, []Request{five, five}, TooSmall, false},
		"with room for one":   {[]Disk{large("a", 6*ei)}, []Request{five, five}, TooLittle, false},
		"on two disks":        {[]Disk{large("a", 6*ei), large("b", 5*ei)}, []Request{five, five}, 0, true},
		"three on two disks":  {[]Disk{large("a", 6*ei), large("b", 5*ei)}, []Request{five, five, five}, NotTogether, false},
		"three of four disks": {[]Disk{large("a", 6*ei), large("b", 5*ei), large("c", 4*ei), large("d", 4*ei)}, []Request{five, five, five}, NotTogether, false},
		"eight":               {[]Disk{large("a", 6*ei), large("b", 5*ei)}, slices.Repeat([]Request{five}, 8), NotTogether, false},
		"nine":                {[]Disk{large("a", 6*ei), large("b", 5*ei)}, slices.Repeat([]Request{five}, 9), NotTogether, false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			for _, policy := range []Policy{BestFit, Spread} {
				node, requests := &Node{Disks: test.disks}, under(policy, test.requests)
				plan, err := Plan(nil, node, requests)
				if err == nil {
					if err := checkPlan(node, requests, plan); err != nil || !test.fits {
						t.Errorf("planned %v (%v), want it to fit: %v", plan, err, test.fits)
					}
					continue
				}
				noFit, ok := errors.AsType[*NoFit](err)
				if !ok || test.fits || noFit.Cause != test.cause {
					t.Errorf("got %v, want cause %v", err, test.cause)
				}
			}
		})
	}
}

// TestPlanOnTheLargestDisks asserts that nothing overflows on one disk, or several, of the largest possible size.
func TestPlanOnTheLargestDisks(t *testing.T) {
	end := math.MaxInt64 &^ (Alignment - 1)
	whole := extent.NewSet(extent.Extent{Start: 0, End: end})
	node := &Node{Disks: []Disk{{ID: "a", Class: "ssd", Free: whole}, {ID: "b", Class: "ssd", Free: whole}}}
	for _, requests := range [][]Request{
		{{Class: "ssd", Size: end}},
		{{Class: "ssd", Size: end - Alignment}, {Class: "ssd", Size: Alignment}},
		{{Class: "ssd", Size: end/2&^(Alignment-1) + Alignment, Apart: true}, {Class: "ssd", Size: Alignment, Apart: true}},
	} {
		plan, err := Plan(nil, node, requests)
		if err != nil {
			t.Fatal(err)
		}
		if err := checkPlan(node, requests, plan); err != nil {
			t.Error(err)
		}
		Merit(node, requests, plan)
	}
	if _, err := Plan(nil, node, []Request{{Class: "hdd", Size: end}}); err == nil {
		t.Error("placed on a class that is not there")
	} else if err.Error() == "" {
		t.Error("no message")
	}
}

func TestPlanAgainstOracle(t *testing.T) {
	cases := 60_000
	if testing.Short() {
		cases = 6_000
	}
	rng := rand.New(rand.NewPCG(1, 2))
	var fit, hard int
	for i := range cases {
		maxVolumes, maxExtents := 5, 9
		if i%10 == 0 {
			maxVolumes, maxExtents = 8, 4
		}
		node, requests := randomCase(rng, maxVolumes, maxExtents)
		f, h := compareWithOracle(t, node, requests)
		fit, hard = fit+f, hard+h
		compareWithOracle(t, node, under(Spread, requests))
	}
	t.Logf("%d cases, %d fit, %d of them only by the exact search", cases, fit, hard)
	if fit < cases/10 || fit > cases*9/10 || hard < cases/500 {
		t.Error("the cases are too easy to show anything")
	}
}

// compareWithOracle returns 1 if the case fits, and 1 if best fit alone did not find it.
func compareWithOracle(t *testing.T, node *Node, requests []Request) (fit, hard int) {
	t.Helper()
	describe := func() string { return fmt.Sprintf("node %+v\nrequests %+v", node, requests) }

	plan, err := Plan(nil, node, requests)
	again, errAgain := Plan(nil, node, requests)
	if !reflect.DeepEqual(plan, again) || !reflect.DeepEqual(err, errAgain) {
		t.Fatalf("two answers to one question\n%s", describe())
	}
	if can := possible(node, requests); can != (err == nil) {
		t.Fatalf("possible is %v, Plan says %v\n%s", can, err, describe())
	}
	if err != nil {
		checkNoFit(t, node, requests, err)
		return 0, 0
	}
	if err := checkPlan(node, requests, plan); err != nil {
		t.Fatalf("%v\nplan %v\n%s", err, show(plan), describe())
	}
	if score := Score(Merit(node, requests, plan)); score < 0 || score > MaxScore {
		t.Fatalf("score %d\n%s", score, describe())
	}
	if len(requests) == 1 {
		if err := checkPolicy(node, requests[0], plan[0]); err != nil {
			t.Fatalf("%v\n%s", err, describe())
		}
	}
	if !greedyAlone(node, requests) {
		return 1, 1
	}
	return 1, 0
}

// greedyAlone reports whether best fit finds places, one volume after the other.
func greedyAlone(node *Node, requests []Request) bool {
	byClass := map[string][]int{}
	for i, r := range requests {
		byClass[r.Class] = append(byClass[r.Class], i)
	}
	for class, order := range byClass {
		for i := range order { // insertion sort, in the order of compare
			for j := i; j > 0 && compare(&requests[order[j]], &requests[order[j-1]], order[j], order[j-1]) < 0; j-- {
				order[j], order[j-1] = order[j-1], order[j]
			}
		}
		p := planner{node: node, class: class, requests: requests, order: order, places: make([]Assignment, len(requests)), cuts: make([]cut, len(requests))}
		if !p.greedy() {
			return false
		}
	}
	return true
}

// TestPlanManyVolumes asserts that above maxExact every plan is valid, although a refusal may be wrong.
func TestPlanManyVolumes(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	placed := 0
	for range 300 {
		node := &Node{}
		for d := range 6 {
			var lengths []int64
			for range 5 {
				lengths = append(lengths, 1+rng.Int64N(30))
			}
			node.Disks = append(node.Disks, disk(strconv.Itoa(d), "ssd", lengths...))
		}
		var requests []Request
		for range 9 + rng.IntN(30) {
			requests = append(requests, Request{Class: "ssd", Size: (1 + rng.Int64N(15)) * Alignment})
		}
		requests[0].Apart, requests[1].Apart, requests[2].Apart = true, true, true
		plan, err := Plan(nil, node, requests)
		if err != nil {
			continue
		}
		placed++
		if err := checkPlan(node, requests, plan); err != nil {
			t.Fatal(err)
		}
	}
	if placed == 0 || placed == 300 {
		t.Errorf("%d of 300 placed: the cases show nothing", placed)
	}
}

func FuzzPlan(f *testing.F) {
	f.Add([]byte{2, 8, 7, 0}, []byte{5, 4, 3, 3})
	f.Add([]byte{4, 0, 4, 3}, []byte{4 | 128, 3 | 128, 3})
	f.Fuzz(func(t *testing.T, extents, volumes []byte) {
		// A zero byte starts the next disk; the high bit makes the class hdd, or a volume apart.
		if len(volumes) == 0 || len(volumes) > 5 || len(extents) > 9 {
			return
		}
		node := &Node{}
		var lengths []int64
		flush := func(class string) {
			node.Disks = append(node.Disks, disk(string(rune('a'+len(node.Disks))), class, lengths...))
			lengths = nil
		}
		for _, b := range extents {
			switch b {
			case 0:
				flush("ssd")
			case 128:
				flush("hdd")
			default:
				lengths = append(lengths, int64(b&127))
			}
		}
		flush("ssd")
		var requests []Request
		for _, b := range volumes {
			class := "ssd"
			if b&64 != 0 {
				class = "hdd"
			}
			requests = append(requests, Request{Class: class, Size: int64(b&63) * Alignment, Apart: b&128 != 0})
		}
		if validate(requests) != nil {
			if _, err := Plan(nil, node, requests); err == nil {
				t.Fatal("a bad request was placed")
			}
			return
		}
		compareWithOracle(t, node, requests)
		compareWithOracle(t, node, under(Spread, requests))
	})
}
