package main

import (
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
)

const (
	bound = "no fragmentation (the bound)"
	// target is the share of the bound that Berth must reach when demand is demandOfTarget of all bytes.
	target         = 0.97
	demandOfTarget = 0.9
)

// clusterSize is a cluster to simulate, with the number of turnovers of its bytes.
type clusterSize struct {
	nodes     int
	turnovers float64
}

// plan is everything that is simulated.
type plan struct {
	seed     uint64
	clusters []clusterSize
	// small is for the comparisons of demands, workloads and candidates.
	small clusterSize
	// full is for the comparison of candidates at a higher demand.
	full    clusterSize
	demands []float64
	// plots is the directory for the plots. None are written if it is empty.
	plots    string
	parallel int
	progress io.Writer
}

// study is the plan of `make simulate`.
var study = plan{
	clusters: []clusterSize{{100, 25}, {1000, 10}, {5000, 3}},
	small:    clusterSize{100, 12},
	full:     clusterSize{1000, 4},
	demands:  []float64{0.7, 0.8, 0.85, 0.9, 0.95, 1},
}

func (p *plan) report(w io.Writer) error {
	for i, size := range p.clusters {
		t, measures, err := p.simulate(&workloads[0], size, demandOfTarget, policies)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "### %d nodes, %d requests in %.0f days\n\n", size.nodes, measures[0].asked, t.days*(1-1./settling))
		table(w, measures)
		fmt.Fprintf(w, "BestFit admits %s of the requests that the bound admits, and %s of their bytes (target: %.2f).\n\n",
			verdict(part(measures[1].placed, measures[0].placed), target),
			verdict(part(measures[1].placedBytes, measures[0].placedBytes), target), target)
		if i == 0 {
			if err := p.comparePieces(w, t, measures); err != nil {
				return err
			}
		}
		if i == len(p.clusters)-1 && p.plots != "" {
			if err := plotOverTime(p.plots, size.nodes, measures); err != nil {
				return err
			}
		}
	}
	if err := p.compareDemands(w); err != nil {
		return err
	}
	if err := p.compareWorkloads(w, demandOfTarget, "Policies", policies); err != nil {
		return err
	}
	if err := p.comparePreemption(w); err != nil {
		return err
	}
	if err := p.compareGrowth(w); err != nil {
		return err
	}
	return p.compareCandidates(w)
}

// verdict is the ratio, and whether it meets the target.
func verdict(ratio, target float64) string {
	if ratio < target {
		return fmt.Sprintf("%.4f (missed)", ratio)
	}
	return fmt.Sprintf("%.4f (met)", ratio)
}

// table writes the results of the policies, one per row.
func table(w io.Writer, measures []*measure) {
	fmt.Fprintf(w, "| | requests placed | bytes placed | placed of those of 1 TiB and more | of the bound's requests | of its bytes | fill | stranded | largest extent of a node | room for volumes of 1 TiB |\n")
	fmt.Fprintf(w, "|---|---|---|---|---|---|---|---|---|---|\n")
	for _, m := range measures {
		fmt.Fprintf(w, "| %s | %s | %s | %s | %.4f | %.4f | %s | %s | %.0f GiB | %.0f |\n", m.policy,
			percent(part(m.placed, m.asked)), percent(part(m.placedBytes, m.askedBytes)), percent(part(m.placedLarge, m.askedLarge)),
			part(m.placed, measures[0].placed), part(m.placedBytes, measures[0].placedBytes),
			percent(m.mean(func(p *point) float64 { return p.fill })),
			percent(m.mean(func(p *point) float64 { return p.stranded })),
			m.mean(func(p *point) float64 { return p.largest }),
			m.mean(func(p *point) float64 { return float64(p.roomFor) }))
	}
	fmt.Fprintln(w)
}

func percent(part float64) string { return fmt.Sprintf("%.1f %%", 100*part) }

// compareDemands shows from which fill on fragmentation matters.
func (p *plan) compareDemands(w io.Writer) error {
	fmt.Fprintf(w, "### Bytes placed, of all that were asked for, by demand (%d nodes)\n\n", p.small.nodes)
	rows := make([][]float64, len(policies)+1)
	for _, demand := range p.demands {
		_, measures, err := p.simulate(&workloads[0], p.small, demand, policies)
		if err != nil {
			return err
		}
		for i, m := range measures {
			rows[i] = append(rows[i], part(m.placedBytes, m.askedBytes))
		}
	}
	head := make([]string, 0, len(p.demands))
	for _, demand := range p.demands {
		head = append(head, fmt.Sprintf("%.0f %%", 100*demand))
	}
	grid(w, head, names(policies), rows)
	if p.plots == "" {
		return nil
	}
	return plotDemands(p.plots, p.small.nodes, p.demands, names(policies), rows)
}

// grid prints a table of shares as percentages.
func grid(w io.Writer, head, names []string, rows [][]float64) {
	fmt.Fprintf(w, "| | %s |\n|%s\n", strings.Join(head, " | "), strings.Repeat("---|", len(head)+1))
	for i, row := range rows {
		cells := make([]string, 0, len(row))
		for _, value := range row {
			cells = append(cells, percent(value))
		}
		fmt.Fprintf(w, "| %s | %s |\n", names[i], strings.Join(cells, " | "))
	}
	fmt.Fprintln(w)
}

// names are those of the bound and the policies, in the order of the measures.
func names(policies []policy) []string {
	all := []string{bound}
	for i := range policies {
		all = append(all, policies[i].name)
	}
	return all
}

// compareWorkloads shows how much depends on the assumptions about sizes and lifetimes.
func (p *plan) compareWorkloads(w io.Writer, demand float64, title string, policies []policy) error {
	fmt.Fprintf(w, "### %s: bytes placed, of those that the bound places, by workload (%d nodes, demand %.0f %%)\n\n", title, p.small.nodes, 100*demand)
	rows := make([][]float64, len(workloads))
	rowNames := make([]string, len(workloads))
	for i := range workloads {
		_, measures, err := p.simulate(&workloads[i], p.small, demand, policies)
		if err != nil {
			return err
		}
		rowNames[i] = workloads[i].name
		for _, m := range measures[1:] {
			rows[i] = append(rows[i], part(m.placedBytes, measures[0].placedBytes))
		}
	}
	grid(w, names(policies)[1:], rowNames, rows)
	return nil
}

// compareCandidates compares candidates where a better one would show: in a small cluster, and in a larger one that is
// fuller.
func (p *plan) compareCandidates(w io.Writer) error {
	all := slices.Concat(policies[:1], candidates)
	size := p.clusters[0]
	_, measures, err := p.simulate(&workloads[0], size, demandOfTarget, all)
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "### Candidates, %d nodes, %d requests\n\n", size.nodes, measures[0].asked)
	table(w, measures)
	for _, demand := range []float64{demandOfTarget, 0.95} {
		if err := p.compareWorkloads(w, demand, "Candidates", all); err != nil {
			return err
		}
	}
	for _, demand := range []float64{0.95, 1} {
		_, measures, err := p.simulate(&workloads[0], p.full, demand, all)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "### Candidates, %d nodes, demand %.0f %%, %d requests\n\n", p.full.nodes, 100*demand, measures[0].asked)
		table(w, measures)
	}
	return p.compareIdeas(w)
}

// compareIdeas does the same for the ideas.
func (p *plan) compareIdeas(w io.Writer) error {
	all := slices.Concat(policies[:1], ideas)
	for _, at := range []struct {
		clusterSize
		demand float64
	}{{p.clusters[0], demandOfTarget}, {p.full, 0.95}} {
		_, measures, err := p.simulate(&workloads[0], at.clusterSize, at.demand, all)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "### Ideas, %d nodes, demand %.0f %%, %d requests\n\n", at.nodes, 100*at.demand, measures[0].asked)
		table(w, measures)
	}
	return p.compareWorkloads(w, demandOfTarget, "Ideas", all)
}

// simulate runs the bound and the policies on the same trace, and returns the measures in that order.
func (p *plan) simulate(w *workload, size clusterSize, demand float64, policies []policy) (*trace, []*measure, error) {
	s := scenario{w, size.nodes, demand, size.turnovers, p.seed}
	t := s.record()
	if p.progress != nil {
		fmt.Fprintf(p.progress, "%s, %d nodes, %.0f %% demand: %d events\n", w.name, size.nodes, 100*demand, len(t.events))
	}
	measures := make([]*measure, len(policies)+1)
	all := names(policies)
	err := p.inParallel(len(measures), func(i int) (err error) {
		var s store = poolStore{newPool(t.disks)}
		if i > 0 {
			s = &policyStore{newCluster(t.disks), &policies[i-1], rand.New(rand.NewPCG(p.seed, 1))}
		}
		if measures[i], err = run(t, all[i], s); err != nil {
			return fmt.Errorf("%s: %w", all[i], err)
		}
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	return t, measures, nil
}

// inParallel calls do for each number below n, as many at once as the plan says, and returns the first error by number.
func (p *plan) inParallel(n int, do func(int) error) error {
	errs := make([]error, n)
	var group sync.WaitGroup
	tickets := make(chan struct{}, max(1, p.parallel))
	for i := range n {
		tickets <- struct{}{}
		group.Go(func() {
			defer func() { <-tickets }()
			errs[i] = do(i)
		})
	}
	group.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
