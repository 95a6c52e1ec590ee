package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/berthdev/berth/test/fleet"
	"github.com/berthdev/berth/test/units"
)

// settings of a run. The flags describe them.
type settings struct {
	nodes                              []int
	rounds, pods, claims, capacityPods int
	rate                               float64
	arrivals, after                    time.Duration
	only, plots                        string
	log                                io.Writer
}

// result is all turns of a workload on a cluster of one size.
type result struct {
	workload
	turns []figures
}

// report runs everything and prints tables.
func (s *settings) report(ctx context.Context, out io.Writer) error {
	begin := time.Now()
	for _, nodes := range s.nodes {
		results, err := s.measure(ctx, nodes)
		if err != nil {
			return fmt.Errorf("%d nodes: %w", nodes, err)
		}
		writeTable(out, nodes, results)
		writeTargets(out, results)
		if s.plots != "" && nodes == s.nodes[len(s.nodes)-1] {
			if err := drawPlots(s.plots, nodes, results); err != nil {
				return err
			}
		}
	}
	fmt.Fprintf(out, "%d rounds of bursts of %d pods (with claims %d, with CSIStorageCapacity %d), then arrivals for %v; all in %v.\n",
		s.rounds, s.pods, s.claims, s.capacityPods, s.arrivals, time.Since(begin).Round(time.Second))
	return nil
}

// measure runs the workloads alternately on their own cluster.
func (s *settings) measure(ctx context.Context, nodes int) (results []*result, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	site, err := s.newSite(ctx, nodes)
	if err != nil {
		return nil, err
	}
	defer func() {
		// The agents must end before the API server to which they publish.
		cancel()
		err = errors.Join(err, site.cluster.Stop())
	}()
	for _, w := range s.workloads(site.cluster) {
		if s.only == "" || strings.Contains(s.only, w.letter) {
			results = append(results, &result{workload: w})
		}
	}
	if len(results) == 0 {
		return nil, fmt.Errorf("no workload has a letter of %q", s.only)
	}
	// The first turn on a new control plane is slower than the next, and does not count.
	if _, err := site.turn(ctx, results[0].workload); err != nil {
		return nil, fmt.Errorf("warming up: %w", err)
	}
	for round := range s.rounds {
		turns := slices.Clone(results)
		if round%2 == 1 {
			// The order alternates, because one workload affects the next one.
			slices.Reverse(turns)
		}
		for _, r := range turns {
			f, err := site.turn(ctx, r.workload)
			if err != nil {
				return nil, fmt.Errorf("(%s) %s: %w", r.letter, r.name, err)
			}
			r.turns = append(r.turns, f)
			fmt.Fprintf(s.log, "%5d nodes  (%s) %6.1f pods/s after %4.1f s (%4.1f s of CPU)  p50 %4.0f ms, p99 %4.0f ms at %.1f/s  %.2f ms CPU a pod (API server %.2f)  %4d MiB  %d over-committed  %v\n",
				nodes, r.letter, f.podsPerSecond, f.start.Seconds(), f.startCPU.Seconds(),
				milliseconds(percentile(f.latencies, 50)), milliseconds(percentile(f.latencies, 99)), f.rate,
				milliseconds(f.cpu), milliseconds(f.serverCPU), f.memory/units.MiB, f.overCommits, f.writes)
		}
	}
	return results, nil
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// percentile is the smallest value that so many per cent do not exceed.
func percentile(values []time.Duration, per int) time.Duration {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[(len(sorted)*per+99)/100-1]
}

// median is the mean of the two middle values if their number is even.
func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

// of returns a figure of every turn.
func (r *result) of(figure func(figures) float64) []float64 {
	var values []float64
	for _, f := range r.turns {
		values = append(values, figure(f))
	}
	return values
}

// against is the median of the quotients of turns of the same round.
func (r *result) against(other *result, figure func(figures) float64) float64 {
	quotients := r.of(figure)
	for i, of := range other.of(figure) {
		quotients[i] /= of
	}
	return median(quotients)
}

func podsPerSecond(f figures) float64 { return f.podsPerSecond }
func memory(f figures) float64        { return float64(f.memory) / float64(units.MiB) }

// latencies returns those of all turns.
func (r *result) latencies() (all []time.Duration) {
	for _, f := range r.turns {
		all = append(all, f.latencies...)
	}
	return all
}

func (r *result) overCommits() (n int) {
	for _, f := range r.turns {
		n += f.overCommits
	}
	return n
}

func find(results []*result, letter string) *result {
	for _, r := range results {
		if r.letter == letter {
			return r
		}
	}
	return nil
}

func writeTable(out io.Writer, nodes int, results []*result) {
	a := find(results, "a")
	ofA := func(r *result, figure func(figures) float64) string {
		if a == nil {
			return ""
		}
		return fmt.Sprintf("%.2f", r.against(a, figure))
	}
	fmt.Fprintf(out, "\n| %d nodes | pods/s | of (a) | created to bound: median, 99th percentile | at a rate of | over-commitments |\n|---|---|---|---|---|---|\n", nodes)
	for _, r := range results {
		latencies := r.latencies()
		fmt.Fprintf(out, "| (%s) %s | %s | %s | %.0f ms, %.0f ms | %s/s | %d |\n",
			r.letter, r.name, short(median(r.of(podsPerSecond))), ofA(r, podsPerSecond),
			milliseconds(percentile(latencies, 50)), milliseconds(percentile(latencies, 99)),
			short(median(r.of(func(f figures) float64 { return f.rate }))), r.overCommits())
	}
	fmt.Fprintf(out, "\n| %d nodes | API writes a pod | agents' beside | CPU for 1000 pods: scheduler, API server | scheduler's CPU before its first binding | scheduler's peak memory | of (a) |\n|---|---|---|---|---|---|---|\n", nodes)
	for _, r := range results {
		published := median(r.of(func(f figures) float64 { return f.writes[fleet.Publications] }))
		fmt.Fprintf(out, "| (%s) | %.2f | %.2f | %.1f s, %.1f s | %.1f s | %.0f MiB | %s |\n",
			r.letter, median(r.of(func(f figures) float64 { return f.writes.Total() }))-published, published,
			median(r.of(func(f figures) float64 { return f.cpu.Seconds() * 1000 })),
			median(r.of(func(f figures) float64 { return f.serverCPU.Seconds() * 1000 })),
			median(r.of(func(f figures) float64 { return f.startCPU.Seconds() })),
			median(r.of(memory)), ofA(r, memory))
	}
}

// short writes about three digits.
func short(x float64) string {
	if x < 10 {
		return fmt.Sprintf("%.1f", x)
	}
	return fmt.Sprintf("%.0f", x)
}

// writeTargets compares the figures with the targets for 5000 nodes.
func writeTargets(out io.Writer, results []*result) {
	a, e := find(results, "a"), find(results, "e")
	fmt.Fprint(out, "\n| | measured | target | |\n|---|---|---|---|\n")
	row := func(what string, measured float64, met bool, target string) {
		verdict := "met"
		if !met {
			verdict = "missed"
		}
		fmt.Fprintf(out, "| %s | %.2f | %s | %s |\n", what, measured, target, verdict)
	}
	for _, t := range []struct {
		letter, what string
		other        *result
		least        float64
	}{
		{"b", "pods a second, an inline volume against none on the stock scheduler", a, 1},
		{"c", "the same with three inline volumes", a, 0.9},
		{"d", "pods a second, a claim against the stock scheduler with CSIStorageCapacity", e, 100},
	} {
		if r := find(results, t.letter); r != nil && t.other != nil {
			ratio := r.against(t.other, podsPerSecond)
			row(t.what, ratio, ratio >= t.least, fmt.Sprintf("≥ %g", t.least))
		}
	}
	overCommits, most := 0, 0.0
	for _, r := range results {
		overCommits += r.overCommits()
		if r.process != stockProcess && a != nil {
			most = max(most, r.against(a, memory))
		}
	}
	if most > 0 {
		row("the scheduler's peak memory, of Berth's the most, against the stock one without volumes", most, most <= 1.3, "≤ 1.3")
	}
	row("over-commitments", float64(overCommits), overCommits == 0, "0")
	fmt.Fprintln(out)
}
