package main

import (
	"fmt"

	"github.com/berthdev/berth/test/plot"
)

// plotOverTime draws how the policies develop over the weeks.
func plotOverTime(directory string, nodes int, measures []*measure) error {
	over := func(of func(*point) float64) []plot.Line {
		var lines []plot.Line
		for _, m := range measures {
			l := plot.Line{Name: m.policy}
			for i := range m.points {
				l.Xs = append(l.Xs, m.points[i].hours/24)
				l.Ys = append(l.Ys, of(&m.points[i]))
			}
			lines = append(lines, l)
		}
		return lines
	}
	at := fmt.Sprintf("%d nodes, demand %.0f %% of all bytes", nodes, 100*demandOfTarget)
	for name, p := range map[string]plot.Plot{
		"placement-admission.svg": {Title: "Admission: " + at, Y: "bytes placed, % of those asked for", YMax: 100,
			Lines: over(func(p *point) float64 { return 100 * p.placed })},
		"placement-stranded.svg": {Title: "Stranded space: " + at, Y: fmt.Sprintf("free bytes in extents below %d GiB, %%", medianSize),
			Lines: over(func(p *point) float64 { return 100 * p.stranded })},
		"placement-largest.svg": {Title: "Largest extent of a node, mean: " + at, Y: "GiB",
			Lines: over(func(p *point) float64 { return p.largest })},
		"placement-room.svg": {Title: "Room for volumes of 1 TiB: " + at, Y: "volumes a hundred nodes",
			Lines: over(func(p *point) float64 { return 100 * float64(p.roomFor) / float64(nodes) })},
	} {
		p.X = "days"
		if err := p.Write(directory, name); err != nil {
			return err
		}
	}
	return nil
}

// plotDemands draws the bytes placed for each demand.
func plotDemands(directory string, nodes int, demands []float64, names []string, rows [][]float64) error {
	p := plot.Plot{Title: fmt.Sprintf("Admission by demand: %d nodes", nodes), X: "demand, % of all bytes", Y: "bytes placed, % of those asked for", YMax: 100}
	for i, row := range rows {
		l := plot.Line{Name: names[i]}
		for j := range row {
			l.Xs = append(l.Xs, 100*demands[j])
			l.Ys = append(l.Ys, 100*row[j])
		}
		p.Lines = append(p.Lines, l)
	}
	return p.Write(directory, "placement-demand.svg")
}
