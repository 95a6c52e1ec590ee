package kubectl

import (
	"strings"
	"unicode/utf8"

	"github.com/berthdev/berth/pkg/kubectl/diagram"
	"github.com/berthdev/berth/pkg/kubectl/terminal"
	"github.com/berthdev/berth/pkg/placement"
)

// kinds are the kinds of pieces in the order of the legend, with their names and styles.
var kinds = []struct {
	kind  diagram.Kind
	name  string
	style terminal.Style
	// always is true for those that are in each legend.
	always bool
}{
	{diagram.Volume, "volume", terminal.Used, true},
	{diagram.Copying, "copy of a volume that moves", terminal.UsedToo, false},
	{diagram.Wiping, "being wiped", terminal.Warning, false},
	{diagram.Orphan, "orphan", terminal.Special, false},
	{diagram.OutOfService, "out of service", terminal.Bad, false},
	{diagram.Free, "free", terminal.Dim, true},
}

func styleOf(kind diagram.Kind) terminal.Style {
	for _, k := range kinds {
		if k.kind == kind {
			return k.style
		}
	}
	return terminal.Plain
}

func glyphsOf(to terminal.Terminal) diagram.Glyphs {
	if to.ASCII {
		return diagram.ASCII
	}
	return diagram.Unicode
}

// paintCells writes a row with its ends. Two volumes side by side have different colors.
func paintCells(to terminal.Terminal, cells []diagram.Cell) string {
	glyphs := glyphsOf(to)
	var b strings.Builder
	b.WriteRune(glyphs.Left)
	for from := 0; from < len(cells); {
		end := from + 1
		for end < len(cells) && cells[end].Piece == cells[from].Piece && cells[end].Kind == cells[from].Kind {
			end++
		}
		style := styleOf(cells[from].Kind)
		if style == terminal.Used && cells[from].Piece >= 0 && cells[from].Piece%2 == 1 {
			style = terminal.UsedToo
		}
		b.WriteString(to.Paint(style, textOf(cells[from:end])))
		from = end
	}
	b.WriteRune(glyphs.Right)
	return b.String()
}

func textOf(cells []diagram.Cell) string {
	text := make([]byte, 0, len(cells)*utf8.UTFMax)
	for _, c := range cells {
		text = utf8.AppendRune(text, c.Text)
	}
	return string(text)
}

// plainRow is a row with its ends, without colors.
func plainRow(to terminal.Terminal, cells []diagram.Cell) string {
	to.Color = false
	return paintCells(to, cells)
}

// legend explains the characters that the rows have.
func legend(to terminal.Terminal, rows []diagram.Row, density bool) string {
	seen := map[diagram.Kind]bool{}
	for i := range rows {
		for _, p := range rows[i].Pieces {
			seen[p.Kind] = true
		}
	}
	glyphs := glyphsOf(to)
	var items []string
	for _, k := range kinds {
		if k.always || seen[k.kind] {
			items = append(items, to.Paint(k.style, string(glyphs.Kinds[k.kind]))+" "+k.name)
		}
	}
	if density {
		items = append(items, string(glyphs.Levels[1])+" to "+string(glyphs.Levels[len(glyphs.Levels)-1])+" share used")
	}
	plain := to
	plain.Color = false
	return wrapPainted(to, items)
}

// wrapPainted is Terminal.Wrap for items with colors.
func wrapPainted(to terminal.Terminal, items []string) string {
	var b strings.Builder
	column := 0
	for i, item := range items {
		width := terminal.Columns(withoutColors(item))
		switch {
		case i == 0:
		case column+2+width > to.Width:
			b.WriteByte('\n')
			column = 0
		default:
			b.WriteString("  ")
			column += 2
		}
		b.WriteString(item)
		column += width
	}
	return b.String()
}

// withoutColors removes the escape sequences that Paint adds.
func withoutColors(text string) string {
	var b strings.Builder
	for {
		before, after, found := strings.Cut(text, "\x1b[")
		b.WriteString(before)
		if !found {
			return b.String()
		}
		_, text, _ = strings.Cut(after, "m")
	}
}

// size writes a size as `kubectl get ndc` does.
func size(bytes int64) string { return placement.FormatSize(bytes) }
