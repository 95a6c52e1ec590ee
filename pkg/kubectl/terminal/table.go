package terminal

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// gap is between two columns.
const gap = "  "

// Column is a column of a table.
type Column struct {
	Name string
	// Right aligns figures.
	Right bool
	// Wide columns are shown only with -o wide.
	Wide bool
	// Shrink is to how many columns its cells may be shortened where a line is too long; 0 if never.
	Shrink int
}

// Cell is a text in a style.
type Cell struct {
	Text  string
	Style Style
	// Painted is the text with escape sequences, if one style is not enough. Text still says how long it is.
	Painted string
}

// Cells makes cells without a style.
func Cells(texts ...string) []Cell {
	cells := make([]Cell, len(texts))
	for i, text := range texts {
		cells[i] = Cell{Text: text}
	}
	return cells
}

// Table is rows of cells below the names of columns.
type Table struct {
	Columns   []Column
	Rows      [][]Cell
	NoHeaders bool
	// Wide shows all columns.
	Wide bool
	// Indent is in front of each line.
	Indent string
}

// Add adds a row.
func (t *Table) Add(cells ...Cell) { t.Rows = append(t.Rows, cells) }

// AddTexts adds a row without styles.
func (t *Table) AddTexts(texts ...string) { t.Add(Cells(texts...)...) }

// Write writes the table.
func (t *Table) Write(out io.Writer, to Terminal) error {
	shown := t.shown()
	widths := t.widths(shown)
	if to.Limited {
		t.shrink(shown, widths, to.Width)
	}
	var b strings.Builder
	if !t.NoHeaders {
		header := make([]Cell, len(t.Columns))
		for i, c := range t.Columns {
			header[i] = Cell{Text: c.Name, Style: Bold}
		}
		t.writeRow(&b, to, header, shown, widths)
	}
	for _, row := range t.Rows {
		t.writeRow(&b, to, row, shown, widths)
	}
	_, err := io.WriteString(out, b.String())
	if err != nil {
		return fmt.Errorf("writing the table: %w", err)
	}
	return nil
}

// Width is how long the lines are if none is shortened.
func (t *Table) Width() int {
	shown := t.shown()
	return t.total(shown, t.widths(shown))
}

// shown are the indices of the columns to show.
func (t *Table) shown() []int {
	var shown []int
	for i, c := range t.Columns {
		if t.Wide || !c.Wide {
			shown = append(shown, i)
		}
	}
	return shown
}

// widths are those of the columns, by index.
func (t *Table) widths(shown []int) []int {
	widths := make([]int, len(t.Columns))
	for _, i := range shown {
		if !t.NoHeaders {
			widths[i] = Columns(t.Columns[i].Name)
		}
		for _, row := range t.Rows {
			if i < len(row) {
				widths[i] = max(widths[i], Columns(row[i].Text))
			}
		}
	}
	return widths
}

// total is the length of a line.
func (t *Table) total(shown, widths []int) int {
	total := Columns(t.Indent) + len(gap)*max(len(shown)-1, 0)
	for _, i := range shown {
		total += widths[i]
	}
	return total
}

// shrink makes columns narrower, the widest first, until the lines fit or no column can be made narrower.
func (t *Table) shrink(shown, widths []int, width int) {
	for t.total(shown, widths) > width {
		widest := -1
		for _, i := range shown {
			if c := t.Columns[i]; c.Shrink > 0 && widths[i] > c.Shrink && (widest < 0 || widths[i] > widths[widest]) {
				widest = i
			}
		}
		if widest < 0 {
			return
		}
		widths[widest]--
	}
}

func (t *Table) writeRow(b *strings.Builder, to Terminal, row []Cell, shown, widths []int) {
	// A line does not end in blanks.
	last := -1
	for at, i := range slices.Backward(shown) {
		if i < len(row) && row[i].Text != "" {
			last = at
			break
		}
	}
	b.WriteString(t.Indent)
	for at, i := range shown[:last+1] {
		cell := Cell{}
		if i < len(row) {
			cell = row[i]
		}
		text, painted := cell.Text, cell.Painted
		if Columns(text) > widths[i] {
			text, painted = to.Shorten(text, widths[i]), ""
		}
		if painted == "" || !to.Color {
			painted = to.Paint(cell.Style, text)
		}
		blanks := strings.Repeat(" ", max(widths[i]-Columns(text), 0))
		switch {
		case t.Columns[i].Right:
			b.WriteString(blanks + painted)
		case at == last:
			b.WriteString(painted)
		default:
			b.WriteString(painted + blanks)
		}
		if at < last {
			b.WriteString(gap)
		}
	}
	b.WriteByte('\n')
}

// Wrap writes items with two blanks between them, on as many lines as they need. All lines but the first are indented.
func (t Terminal) Wrap(indent string, items ...string) string {
	var lines []string
	line := ""
	for _, item := range items {
		if item == "" {
			continue
		}
		switch {
		case line == "":
			line = item
		case Columns(line)+len(gap)+Columns(item) > t.Width:
			lines = append(lines, line)
			line = indent + item
		default:
			line += gap + item
		}
	}
	return strings.Join(append(lines, line), "\n")
}
