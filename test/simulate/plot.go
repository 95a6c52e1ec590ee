package main

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"path/filepath"
)

// colours of the bound and the policies, told apart also by those who see few.
var colours = []string{"#000000", "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9"}

// plot is a diagram of lines over one axis.
type plot struct {
	title, x, y string
	// yMax is the top of the y axis, which begins at 0; 0 fits the data.
	yMax  float64
	lines []line
}

type line struct {
	name   string
	xs, ys []float64
}

const (
	width, height            = 760, 400
	left, right, top, bottom = 64, 236, 40, 48
)

// svg draws the plot. Coordinates have one digit behind the point, which is less than a pixel.
func (p *plot) svg() []byte {
	xMin, xMax, yMax := math.Inf(1), math.Inf(-1), p.yMax
	for _, l := range p.lines {
		for i := range l.xs {
			xMin, xMax = min(xMin, l.xs[i]), max(xMax, l.xs[i])
			if p.yMax == 0 {
				yMax = max(yMax, l.ys[i])
			}
		}
	}
	yStep := step(yMax)
	yMax = math.Ceil(yMax/yStep-1e-9) * yStep
	xStep := step(xMax - xMin)
	xAt := func(x float64) float64 { return left + (x-xMin)/(xMax-xMin)*(width-left-right) }
	yAt := func(y float64) float64 { return height - bottom - y/yMax*(height-top-bottom) }

	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n", width, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#ffffff"/>`+"\n", width, height)
	fmt.Fprintf(&b, `<text x="%d" y="22" font-size="14">%s</text>`+"\n", left, p.title)
	for i := 0; float64(i)*yStep <= yMax*(1+1e-9); i++ {
		y := float64(i) * yStep
		fmt.Fprintf(&b, `<path d="M%d %.1fH%d" stroke="#dddddd"/><text x="%d" y="%.1f" text-anchor="end">%s</text>`+"\n",
			left, yAt(y), width-right, left-6, yAt(y)+4, number(y))
	}
	for i := int(math.Ceil(xMin/xStep - 1e-9)); float64(i)*xStep <= xMax*(1+1e-9); i++ {
		x := float64(i) * xStep
		fmt.Fprintf(&b, `<text x="%.1f" y="%d" text-anchor="middle">%s</text>`+"\n", xAt(x), height-bottom+18, number(x))
	}
	fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="middle">%s</text>`+"\n", (left+width-right)/2, height-10, p.x)
	fmt.Fprintf(&b, `<text x="16" y="%d" text-anchor="middle" transform="rotate(-90 16 %d)">%s</text>`+"\n", (top+height-bottom)/2, (top+height-bottom)/2, p.y)
	for i, l := range p.lines {
		colour, dash := colours[i%len(colours)], ""
		if i == 0 {
			dash = ` stroke-dasharray="6 4"`
		}
		fmt.Fprintf(&b, `<path fill="none" stroke="%s" stroke-width="1.6"%s d="`, colour, dash)
		for j := range l.xs {
			command := "L"
			if j == 0 {
				command = "M"
			}
			fmt.Fprintf(&b, "%s%.1f %.1f", command, xAt(l.xs[j]), yAt(min(l.ys[j], yMax)))
		}
		fmt.Fprintf(&b, `"/>`+"\n")
		y := top + 10 + 20*i
		fmt.Fprintf(&b, `<path d="M%d %dh24" stroke="%s" stroke-width="2"%s/><text x="%d" y="%d">%s</text>`+"\n",
			width-right+14, y, colour, dash, width-right+44, y+4, l.name)
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}

// step is a round distance of marks on an axis so long.
func step(length float64) float64 {
	decade := math.Pow(10, math.Floor(math.Log10(length)))
	for _, s := range []float64{0.1, 0.2, 0.5, 1} {
		if length <= 8*s*decade {
			return s * decade
		}
	}
	return 2 * decade
}

func number(x float64) string { return fmt.Sprintf("%.4g", x) }

func (p *plot) write(directory, name string) error {
	return os.WriteFile(filepath.Join(directory, name), p.svg(), 0o644)
}

// plotOverTime draws what happens to the policies as the weeks go by.
func plotOverTime(directory string, nodes int, measures []*measure) error {
	over := func(of func(*point) float64) []line {
		var lines []line
		for _, m := range measures {
			l := line{name: m.policy}
			for i := range m.points {
				l.xs = append(l.xs, m.points[i].hours/24)
				l.ys = append(l.ys, of(&m.points[i]))
			}
			lines = append(lines, l)
		}
		return lines
	}
	at := fmt.Sprintf("%d nodes, demand %.0f %% of all bytes", nodes, 100*demandOfTarget)
	for name, p := range map[string]plot{
		"placement-admission.svg": {"Admission: " + at, "days", "bytes placed, % of those asked for", 100,
			over(func(p *point) float64 { return 100 * p.placed })},
		"placement-stranded.svg": {"Stranded space: " + at, "days", fmt.Sprintf("free bytes in extents below %d GiB, %%", medianSize), 0,
			over(func(p *point) float64 { return 100 * p.stranded })},
		"placement-largest.svg": {"Largest extent of a node, mean: " + at, "days", "GiB", 0,
			over(func(p *point) float64 { return p.largest })},
		"placement-room.svg": {"Room for volumes of 1 TiB: " + at, "days", "volumes a hundred nodes", 0,
			over(func(p *point) float64 { return 100 * float64(p.roomFor) / float64(nodes) })},
	} {
		if err := p.write(directory, name); err != nil {
			return err
		}
	}
	return nil
}

// plotDemands draws the bytes placed by demand.
func plotDemands(directory string, nodes int, demands []float64, names []string, rows [][]float64) error {
	p := plot{title: fmt.Sprintf("Admission by demand: %d nodes", nodes), x: "demand, % of all bytes", y: "bytes placed, % of those asked for", yMax: 100}
	for i, row := range rows {
		l := line{name: names[i]}
		for j := range row {
			l.xs = append(l.xs, 100*demands[j])
			l.ys = append(l.ys, 100*row[j])
		}
		p.lines = append(p.lines, l)
	}
	return p.write(directory, "placement-demand.svg")
}
