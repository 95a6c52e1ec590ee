package placement

import (
	"fmt"
	"testing"
)

// benchNode is a node with 12 disks of the given number of free extents each, all of
// different sizes between 10 and 200 GiB.
func benchNode(extents int) *Node {
	node := &Node{}
	for d := range 12 {
		var lengths []int64
		for i := range extents {
			lengths = append(lengths, 10*gi+int64((d*7919+i*104729)%(190*gi)))
		}
		node.Disks = append(node.Disks, disk(fmt.Sprintf("%08x-0000-4000-8000-000000000000", d*2654435761), "ssd", lengths...))
	}
	return node
}

func benchPlan(b *testing.B, node *Node, requests []Request, fits bool) {
	b.Helper()
	dst := make([]Assignment, 0, 64)
	if _, err := Plan(dst, node, requests); (err == nil) != fits {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		_, _ = Plan(dst, node, requests)
	}
}

// BenchmarkPlanOne measures the target of docs/understand/performance.md for one volume on 12 disks: 300 ns and no
// allocation.
func BenchmarkPlanOne(b *testing.B) {
	b.Run("extents=1", func(b *testing.B) { benchPlan(b, benchNode(1), want(20*gi), true) })
	b.Run("extents=8", func(b *testing.B) { benchPlan(b, benchNode(8), want(20*gi), true) })
	b.Run("extents=100", func(b *testing.B) { benchPlan(b, benchNode(100), want(20*gi), true) })
	b.Run("spread", func(b *testing.B) { benchPlan(b, benchNode(8), under(Spread, want(20*gi)), true) })
}

func BenchmarkPlanThree(b *testing.B) {
	benchPlan(b, benchNode(8), want(20*gi, 50*gi, 100*gi), true)
}

func BenchmarkPlanThreeApart(b *testing.B) {
	benchPlan(b, benchNode(8), wantApart(20*gi, 50*gi, 100*gi), true)
}

func BenchmarkPlanEight(b *testing.B) {
	requests := want(20*gi, 30*gi, 40*gi, 50*gi, 60*gi, 70*gi, 80*gi, 90*gi)
	b.Run("extents=8", func(b *testing.B) { benchPlan(b, benchNode(8), requests, true) })
	b.Run("extents=100", func(b *testing.B) { benchPlan(b, benchNode(100), requests, true) })
}

// BenchmarkPlanWorst measures the worst cases that hill climbing found. Eight volumes pass every simple check, but do
// not fit together on 12 disks with 100 free extents each.
func BenchmarkPlanWorst(b *testing.B) {
	for _, p := range worstCases {
		b.Run(fmt.Sprintf("apart=%d", p.aparts), func(b *testing.B) {
			p := p.clone()
			for d := range p.extents {
				for len(p.extents[d]) < 100 {
					p.extents[d] = append(p.extents[d], 1)
				}
			}
			node, requests := p.build()
			benchPlan(b, node, requests, false)
		})
	}
}

func BenchmarkPlanRefused(b *testing.B) {
	b.Run("one", func(b *testing.B) { benchPlan(b, benchNode(8), want(201*gi), false) })
	b.Run("class", func(b *testing.B) { benchPlan(b, benchNode(8), []Request{{Class: "hdd", Size: Alignment}}, false) })
	b.Run("eight", func(b *testing.B) {
		sizes := []int64{201 * gi, 1, 2, 3, 4, 5, 6, 7}
		benchPlan(b, benchNode(8), want(sizes...), false)
	})
	b.Run("apart", func(b *testing.B) {
		benchPlan(b, benchNode(8), wantApart(1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1), false)
	})
}

func BenchmarkMerit(b *testing.B) {
	node, requests := benchNode(8), want(20*gi, 50*gi, 100*gi)
	plan, err := Plan(nil, node, requests)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		Score(Merit(node, requests, plan))
	}
}

// TestPlanAllocatesNothing asserts the part of the target that has no noise, so that it is not only a benchmark.
func TestPlanAllocatesNothing(t *testing.T) {
	node, dst := benchNode(8), make([]Assignment, 0, 8)
	for name, requests := range map[string][]Request{
		"one":           want(20 * gi),
		"three":         want(20*gi, 50*gi, 100*gi),
		"eight":         want(20*gi, 30*gi, 40*gi, 50*gi, 60*gi, 70*gi, 80*gi, 90*gi),
		"apart":         wantApart(20*gi, 50*gi, 100*gi),
		"one, spread":   under(Spread, want(20*gi)),
		"three, spread": under(Spread, want(20*gi, 50*gi, 100*gi)),
	} {
		if n := testing.AllocsPerRun(100, func() { _, _ = Plan(dst, node, requests) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
