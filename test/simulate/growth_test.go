package main

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/units"
)

// TestGrowthTrace asserts that only existing volumes ask to grow, to what the distribution has, and about as often as
// they should. What they ask for is demand.
func TestGrowthTrace(t *testing.T) {
	s := scenario{&workloads[0], 20, 0.9, 2, 5}
	trace := s.recordGrowing()
	sizes := map[int32]int32{}
	var demand, most int64
	volumes, asked := 0, 0
	for _, e := range trace.events {
		before := sizes[e.slot]
		switch {
		case e.size == 0:
			delete(sizes, e.slot)
		case e.grows:
			asked++
			most := (before*mostGrowth + 99) / 100
			if before == 0 || e.size <= before || e.size > min(diskSize, most) || e.size < min(diskSize, (before*leastGrowth+99)/100) {
				t.Fatalf("a volume of %d GiB asks for %d", before, e.size)
			}
			sizes[e.slot] = e.size
		default:
			volumes++
			sizes[e.slot] = e.size
		}
		demand += int64(sizes[e.slot] - before)
		most = max(most, demand)
	}
	target := int64(0.9 * 20 * nodeSize)
	if len(trace.samples) != numSamples || demand < target-diskSize || most > target+4*diskSize {
		t.Errorf("%d samples, demand %d, at most %d, want about %d", len(trace.samples), demand, most, target)
	}
	// Long-lived volumes are a tenth of all. One of them asks on average a quarter of a time.
	if share := part(asked, volumes); share < 0.02 || share > 0.05 {
		t.Errorf("%d volumes ask %d times", volumes, asked)
	}
	t.Logf("%d volumes, %d requests to grow", volumes, asked)
}

// TestWishes asserts that the factors of growth are even in their logarithm.
func TestWishes(t *testing.T) {
	g := &wishes{rand.New(rand.NewPCG(1, 3))}
	const n = 100_000
	small, large := 0, 0
	for range n {
		switch size := g.size(1000); {
		case size < 1250 || size > 3576:
			t.Fatalf("1000 GiB grow to %d", size)
		case size < 1500:
			small++
		case size >= 2500 && size < 3000:
			large++
		}
	}
	want := math.Log(1.2) / math.Log(3.2)
	if math.Abs(part(small, n)-want) > 0.01 || math.Abs(part(large, n)-want) > 0.01 {
		t.Errorf("%d and %d of %d, want %.3f of each", small, large, n, want)
	}
	if got := g.size(diskSize); got != diskSize {
		t.Errorf("a volume as large as a disk wants %d GiB", got)
	}
}

// TestGrowAll asserts for whole traces that no two volumes overlap, that what is not theirs is free, and that no way
// grants what the bound does not.
func TestGrowAll(t *testing.T) {
	s := scenario{&workloads[0], 5, 0.9, 1, 3}
	trace := s.recordGrowing()
	for _, w := range slices.Concat(ways, []way{withHeadroom}) {
		t.Run(w.name, func(t *testing.T) {
			policy := policy{"BestFit", bestFitWithin(100, w.headroom)}
			store := &policyStore{newCluster(trace.disks), &policy, rand.New(rand.NewPCG(3, 1))}
			g, err := growAll(trace, store, &w, band{0, 100})
			if err != nil {
				t.Fatal(err)
			}
			used := make([]extent.Set, trace.disks)
			var bytes int64
			for _, v := range g.volumes {
				bytes += bytesOf(v.pieces)
				if len(v.pieces) > maxPieces && w.name != ways[len(ways)-1].name {
					t.Errorf("a volume has %d pieces", len(v.pieces))
				}
				for _, p := range v.pieces {
					d := v.node*disksPerNode + int32(p.disk)
					if used[d].Overlaps(p.extent) {
						t.Errorf("%v of disk %d belongs to two volumes", p.extent, d)
					}
					used[d] = used[d].Add(p.extent)
				}
			}
			for d := range used {
				want := extent.NewSet(extent.New(0, diskSize*units.GiB)).Subtract(used[d])
				if free := store.disk(int32(d)).Free; !free.Equal(want) {
					t.Errorf("disk %d has %v free, want %v", d, free, want)
				}
			}
			if bytes != store.used*units.GiB {
				t.Errorf("%d bytes in volumes, %d GiB used", bytes, store.used)
			}
			if g.grown.asked != g.pooled.asked || g.grown.placed > g.pooled.placed || g.grown.placedBytes > g.pooled.placedBytes {
				t.Errorf("grown %+v, more than the bound %+v", g.grown, g.pooled)
			}
			if w.name == ways[len(ways)-1].name && g.grown != g.pooled {
				t.Errorf("the bound granted %+v, want %+v", g.grown, g.pooled)
			}
			samples := 0
			for _, at := range trace.samples {
				if at.at >= trace.settled {
					samples++
				}
			}
			if g.samples != samples {
				t.Errorf("%d samples, want %d", g.samples, samples)
			}
			if g.grown.placed == 0 || g.grown.placed == g.grown.asked || g.samples == 0 {
				t.Errorf("%+v, %d samples: this shows little", g.grown, g.samples)
			}
		})
	}
}

// TestGrowCounts asserts what a request counts as, with 6 and 4 GiB free on the two disks of the node.
func TestGrowCounts(t *testing.T) {
	for name, test := range map[string]struct {
		way           int
		by            int32
		grown, pooled int
		copied        int64
	}{
		"in place":                        {0, 1, 1, 1, 0},
		"not in place":                    {0, 2, 0, 1, 0},
		"all that is free":                {len(ways) - 1, 10, 1, 1, 0},
		"more than is free":               {len(ways) - 1, 11, 0, 0, 0},
		"moved on its disk":               {today, 2, 1, 1, 3},
		"not moved on its disk":           {today, 3, 0, 1, 0},
		"moved":                           {4, 2, 1, 1, 3},
		"nothing for a volume of no slot": {-1, 1, 0, 0, 0},
	} {
		slot, way := int32(7), &ways[max(0, test.way)]
		g := &growths{store: &policyStore{cluster: newCluster(disksPerNode)}, way: way, counted: band{0, 100}, volumes: map[int32]held{}}
		if test.way >= 0 {
			g.volumes[slot] = held{0, []piece{{0, gibs(0, 3)}}}
		}
		// Of the first disk, 1 GiB is free behind the volume and 5 GiB at the end.
		taken := []piece{{0, gibs(0, 3)}, {0, gibs(4, diskSize-9)}, {1, gibs(0, diskSize-4)}}
		if err := g.store.exchange(0, nil, taken); err != nil {
			t.Fatal(err)
		}
		if err := g.grow(event{slot: slot, size: 3 + test.by, grows: true}, true); err != nil {
			t.Fatal(err)
		}
		if g.grown.placed != test.grown || g.pooled.placed != test.pooled || g.copied != test.copied || g.grown.placedBytes != int64(test.grown)*int64(test.by) {
			t.Errorf("%s: %+v, of the bound %+v, %d GiB copied", name, g.grown, g.pooled, g.copied)
		}
		if want := int64(nodeSize - 10 + test.grown*int(test.by)); g.store.used != want {
			t.Errorf("%s: %d GiB used, want %d", name, g.store.used, want)
		}
		// The node is nearly full, so a measure of emptier nodes does not count the request.
		emptier := *g
		emptier.counted, emptier.grown = band{0, 50}, result{}
		if err := emptier.grow(event{slot: slot, size: 4 + test.by, grows: true}, true); err != nil || emptier.grown.asked != 0 {
			t.Errorf("%s: counted although the node is full: %+v, %v", name, emptier.grown, err)
		}
	}
}

// TestBand asserts which nodes count.
func TestBand(t *testing.T) {
	b := band{45, 55}
	for used, want := range map[int32]bool{0: false, nodeSize*45/100 - 1: false, nodeSize / 2: true, nodeSize * 55 / 100: true, nodeSize*55/100 + 1: false, nodeSize: false} {
		if b.has(used) != want {
			t.Errorf("%d GiB used: %t, want %t", used, !want, want)
		}
	}
	if all := (band{0, 100}); !all.has(0) || !all.has(nodeSize) {
		t.Error("not all nodes count")
	}
}

// TestBestFitWithin asserts that without a limit and headroom it is BestFit. With them a place is on a node that is not
// filled further, and has the headroom.
func TestBestFitWithin(t *testing.T) {
	s := scenario{&workloads[0], 5, 1.1, 1, 5}
	trace := s.record()
	for _, test := range []struct{ limit, headroom int32 }{{100, 0}, {60, 0}, {100, 50}} {
		choose := bestFitWithin(test.limit, test.headroom)
		refused := 0
		checked := func(c *cluster, r *rand.Rand, size int32) (place, bool) {
			p, ok := choose(c, r, size)
			if want, fits := bestFit(c, r, size); test.limit == 100 && test.headroom == 0 && (ok != fits || p != want) {
				t.Fatalf("%d GiB go to %v, with BestFit to %v", size, p, want)
			}
			if !ok {
				refused++
				return p, ok
			}
			if used := nodeSize - int32(c.freeOfNode(p.disk)) + size; 100*used > test.limit*nodeSize {
				t.Fatalf("%d GiB of the node are used then, limit %d %%", used, test.limit)
			}
			room := extent.New(p.extent.Start, p.extent.Len()+int64(size*test.headroom/100)*units.GiB)
			if !c.disk(p.disk).Free.Contains(room) {
				t.Fatalf("%d GiB at %v of disk %d, without headroom", size, p.extent, p.disk)
			}
			return p, ok
		}
		store := &policyStore{newCluster(trace.disks), &policy{"checked", checked}, rand.New(rand.NewPCG(3, 1))}
		if _, err := run(trace, "checked", store); err != nil {
			t.Fatal(err)
		}
		if refused == 0 {
			t.Errorf("limit %d, headroom %d: nothing was refused: this shows little", test.limit, test.headroom)
		}
	}
}

// TestExchange asserts that a volume cannot get what is not free, and that what it leaves is free.
func TestExchange(t *testing.T) {
	c := newCluster(2 * disksPerNode)
	volume := []piece{{0, gibs(0, 10)}, {1, gibs(5, 5)}}
	other := []piece{{1, gibs(12, 1)}}
	for _, pieces := range [][]piece{volume, other} {
		if err := c.exchange(1, nil, pieces); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.exchange(1, volume, []piece{volume[0], {1, gibs(5, 8)}}); err == nil || c.used != 16 {
		t.Errorf("a volume got another's bytes: %v, %d GiB used", err, c.used)
	}
	moved := []piece{{1, gibs(20, 30)}}
	if err := c.exchange(1, volume, moved); err != nil {
		t.Fatal(err)
	}
	want := extent.NewSet(gibs(0, 12), gibs(13, 7), gibs(50, diskSize-50))
	if free := c.freeOn(1); c.used != 31 || free[0].Total() != diskSize*units.GiB || !free[1].Equal(want) {
		t.Errorf("%d GiB used, free %v", c.used, free)
	}
	if copied(volume, moved) != 15*units.GiB || copied(volume, []piece{volume[0], {1, gibs(5, 6)}}) != 0 {
		t.Error("a volume is copied when it moves, and only then")
	}
}
