// Package terminal is what the commands write to: how wide it is, whether it shows colors, and which characters it has.
// It writes tables (table.go). It knows nothing of disks.
package terminal

import (
	"fmt"
	"io"
	"os"

	"github.com/mattn/go-runewidth"
	"golang.org/x/term"
)

// DefaultWidth is the width where there is no terminal.
const DefaultWidth = 80

// Style is how a text is shown. What a style says is always in the text, too: not all terminals and eyes see colors.
type Style int

// The styles.
const (
	Plain Style = iota
	Bold
	Dim
	Good
	Warning
	Bad
	Special
	Used
	UsedToo
)

// codes are the parameters of the escape sequence SGR.
var codes = map[Style]string{
	Bold: "1", Dim: "2", Good: "32", Warning: "33", Bad: "31", Special: "35", Used: "34", UsedToo: "36",
}

// Terminal is where a command writes to.
type Terminal struct {
	// Width is in columns.
	Width int
	// Limited is true when lines longer than Width are to be shortened: an operator looks at them.
	Limited bool
	Color   bool
	ASCII   bool
}

// When says when there are colors.
const (
	ColorAuto   = "auto"
	ColorAlways = "always"
	ColorNever  = "never"
)

// Of returns what out can show. color is one of ColorAuto, ColorAlways and ColorNever, ascii what the user asked for.
func Of(out io.Writer, color string, ascii bool, getenv func(string) string) (Terminal, error) {
	t := Terminal{Width: DefaultWidth, ASCII: ascii}
	dumb := getenv("TERM") == "dumb"
	if file, ok := out.(*os.File); ok && term.IsTerminal(int(file.Fd())) {
		t.Limited = true
		if width, _, err := term.GetSize(int(file.Fd())); err == nil && width > 0 {
			t.Width = width
		}
	}
	switch color {
	case ColorAuto:
		t.Color = t.Limited && !dumb && getenv("NO_COLOR") == ""
	case ColorAlways:
		t.Color = true
	case ColorNever:
	default:
		return t, fmt.Errorf("--color is %q: it can be %s, %s or %s", color, ColorAuto, ColorAlways, ColorNever)
	}
	t.ASCII = t.ASCII || dumb
	return t, nil
}

// Paint returns the text in the style, if the terminal has colors.
func (t Terminal) Paint(style Style, text string) string {
	code, ok := codes[style]
	if !ok || !t.Color || text == "" {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// Mark is a sign in front of a line.
type Mark int

// The marks.
const (
	// MarkBad is something that does not work.
	MarkBad Mark = iota
	// MarkWarning is something that an operator must decide or look at.
	MarkWarning
	// MarkDone is something that is as it should be.
	MarkDone
	// MarkBusy is something that goes on by itself.
	MarkBusy
)

// Mark returns the sign, in its color.
func (t Terminal) Mark(m Mark) string {
	style := map[Mark]Style{MarkBad: Bad, MarkWarning: Warning, MarkDone: Good, MarkBusy: Dim}[m]
	return t.Paint(style, t.PlainMark(m))
}

// PlainMark is the sign without a color.
func (t Terminal) PlainMark(m Mark) string {
	if t.ASCII {
		return map[Mark]string{MarkBad: "x", MarkWarning: "!", MarkDone: "+", MarkBusy: "-"}[m]
	}
	return map[Mark]string{MarkBad: "✗", MarkWarning: "!", MarkDone: "✓", MarkBusy: "·"}[m]
}

// Ellipsis ends a text that was shortened.
func (t Terminal) Ellipsis() string {
	if t.ASCII {
		return "~"
	}
	return "…"
}

// Shorten returns the text with at most that many columns.
func (t Terminal) Shorten(text string, columns int) string {
	return widths.Truncate(text, max(columns, 1), t.Ellipsis())
}

// widths are those of characters in most terminals. Some terminals in East Asia show blocks and lines twice as wide;
// --ascii is for them.
var widths = &runewidth.Condition{}

// Columns is how many columns a text takes that has no escape sequences.
func Columns(text string) int { return widths.StringWidth(text) }
