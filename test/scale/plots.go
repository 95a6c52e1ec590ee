package main

import (
	"fmt"
	"slices"
	"time"

	"github.com/berthdev/berth/test/plot"
)

// drawPlots writes two plots: bursts, and arrivals.
func drawPlots(directory string, nodes int, results []*result) error {
	burst := plot.Plot{Title: fmt.Sprintf("Bursts: %d nodes", nodes), X: "seconds since the first binding", Y: "pods bound"}
	arrivals := plot.Plot{Title: fmt.Sprintf("Arrivals: %d nodes", nodes), X: "ms from due to be created to bound", Y: "% of pods", YMax: 100}
	// The slow workload would leave no room for the others.
	longest := time.Duration(0)
	for _, r := range results {
		if r.letter != slow {
			longest = max(longest, slices.Max(r.turns[len(r.turns)-1].bound))
		}
	}
	for _, r := range results {
		b := plot.Line{Name: "(" + r.letter + ")"}
		for i, at := range r.turns[len(r.turns)-1].bound {
			if longest > 0 && at > longest {
				break
			}
			b.Xs, b.Ys = append(b.Xs, at.Seconds()), append(b.Ys, float64(i+1))
		}
		burst.Lines = append(burst.Lines, thin(b))
		if r.letter == slow {
			continue
		}
		l := plot.Line{Name: b.Name}
		sorted := slices.Sorted(slices.Values(r.latencies()))
		// The slowest hundredth is in the table, and would leave no room either.
		for i, d := range sorted[:(len(sorted)*99+99)/100] {
			l.Xs, l.Ys = append(l.Xs, milliseconds(d)), append(l.Ys, 100*float64(i+1)/float64(len(sorted)))
		}
		arrivals.Lines = append(arrivals.Lines, thin(l))
	}
	if err := burst.Write(directory, "scale-burst.svg"); err != nil {
		return err
	}
	return arrivals.Write(directory, "scale-arrivals.svg")
}

// slow is the letter of the workload that takes as long for a pod as others for a hundred.
const slow = "e"

// thin leaves no more points than can be distinguished.
func thin(l plot.Line) plot.Line {
	const most = 200
	step := max(1, len(l.Xs)/most)
	out := plot.Line{Name: l.Name}
	for i := range l.Xs {
		if i%step == 0 || i == len(l.Xs)-1 {
			out.Xs, out.Ys = append(out.Xs, l.Xs[i]), append(out.Ys, l.Ys[i])
		}
	}
	return out
}
