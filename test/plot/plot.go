// Package plot draws diagrams of lines as SVG, for the documentation.
package plot

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"path/filepath"
)

// colors of the lines, which color-blind readers can distinguish, too.
var colors = []string{"#000000", "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9"}

// Plot is a diagram of lines over one axis.
type Plot struct {
	Title, X, Y string
	// YMax is the top of the y axis, which begins at 0. If it is 0 the axis fits the data.
	YMax  float64
	Lines []Line
}

// Line is one of its lines. The first one is dashed: it is the one with which the others are compared.
type Line struct {
	Name   string
	Xs, Ys []float64
}

const (
	width, height            = 760, 400
	left, right, top, bottom = 64, 236, 40, 48
)

// SVG draws the plot. Coordinates have one digit behind the point, which is less than a pixel.
func (p *Plot) SVG() []byte {
	xMin, xMax, yMax := math.Inf(1), math.Inf(-1), p.YMax
	for _, l := range p.Lines {
		for i := range l.Xs {
			xMin, xMax = min(xMin, l.Xs[i]), max(xMax, l.Xs[i])
			if p.YMax == 0 {
				yMax = max(yMax, l.Ys[i])
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
	fmt.Fprintf(&b, `<text x="%d" y="22" font-size="14">%s</text>`+"\n", left, p.Title)
	for i := 0; float64(i)*yStep <= yMax*(1+1e-9); i++ {
		y := float64(i) * yStep
		fmt.Fprintf(&b, `<path d="M%d %.1fH%d" stroke="#dddddd"/><text x="%d" y="%.1f" text-anchor="end">%s</text>`+"\n",
			left, yAt(y), width-right, left-6, yAt(y)+4, number(y))
	}
	for i := int(math.Ceil(xMin/xStep - 1e-9)); float64(i)*xStep <= xMax*(1+1e-9); i++ {
		x := float64(i) * xStep
		fmt.Fprintf(&b, `<text x="%.1f" y="%d" text-anchor="middle">%s</text>`+"\n", xAt(x), height-bottom+18, number(x))
	}
	fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="middle">%s</text>`+"\n", (left+width-right)/2, height-10, p.X)
	fmt.Fprintf(&b, `<text x="16" y="%d" text-anchor="middle" transform="rotate(-90 16 %d)">%s</text>`+"\n", (top+height-bottom)/2, (top+height-bottom)/2, p.Y)
	for i, l := range p.Lines {
		color, dash := colors[i%len(colors)], ""
		if i == 0 {
			dash = ` stroke-dasharray="6 4"`
		}
		fmt.Fprintf(&b, `<path fill="none" stroke="%s" stroke-width="1.6"%s d="`, color, dash)
		for j := range l.Xs {
			command := "L"
			if j == 0 {
				command = "M"
			}
			fmt.Fprintf(&b, "%s%.1f %.1f", command, xAt(l.Xs[j]), yAt(min(l.Ys[j], yMax)))
		}
		fmt.Fprintf(&b, `"/>`+"\n")
		y := top + 10 + 20*i
		fmt.Fprintf(&b, `<path d="M%d %dh24" stroke="%s" stroke-width="2"%s/><text x="%d" y="%d">%s</text>`+"\n",
			width-right+14, y, color, dash, width-right+44, y+4, l.Name)
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}

// step is a round distance of marks on an axis of that length.
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

// Write draws the plot into a file of the directory.
func (p *Plot) Write(directory, name string) error {
	return os.WriteFile(filepath.Join(directory, name), p.SVG(), 0o644)
}
