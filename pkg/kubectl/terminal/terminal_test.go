package terminal

import (
	"bytes"
	"strings"
	"testing"
)

// TestOf asserts when there are colors, and when only ASCII.
func TestOf(t *testing.T) {
	for name, test := range map[string]struct {
		color       string
		ascii       bool
		environment map[string]string
		want        Terminal
		fails       bool
	}{
		"no terminal":             {ColorAuto, false, nil, Terminal{Width: 80}, false},
		"always":                  {ColorAlways, false, map[string]string{"NO_COLOR": "1"}, Terminal{Width: 80, Color: true}, false},
		"never":                   {ColorNever, true, nil, Terminal{Width: 80, ASCII: true}, false},
		"a dumb terminal":         {ColorAuto, false, map[string]string{"TERM": "dumb"}, Terminal{Width: 80, ASCII: true}, false},
		"none of the three words": {"sometimes", false, nil, Terminal{Width: 80}, true},
	} {
		t.Run(name, func(t *testing.T) {
			have, err := Of(&bytes.Buffer{}, test.color, test.ascii, func(key string) string { return test.environment[key] })
			if (err != nil) != test.fails || have != test.want {
				t.Errorf("got %+v, %v, want %+v", have, err, test.want)
			}
		})
	}
}

func table() *Table {
	t := &Table{Columns: []Column{{Name: "NODE"}, {Name: "OWNER", Shrink: 6}, {Name: "SIZE", Right: true}, {Name: "ID", Wide: true}}}
	t.AddTexts("n1", "default/pod-with-a-long-name", "1Gi", "x")
	t.Add(Cell{Text: "node-2", Style: Bad}, Cell{Text: "größe"}, Cell{Text: "1023Mi"}, Cell{})
	return t
}

// TestTable asserts how tables are aligned and shortened.
func TestTable(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*Table)
		to     Terminal
		want   string
	}{
		"plain": {nil, Terminal{Width: 20}, `
NODE    OWNER                           SIZE
n1      default/pod-with-a-long-name     1Gi
node-2  größe                         1023Mi`},
		"wide, without headers": {func(t *Table) { t.Wide, t.NoHeaders = true, true }, Terminal{Width: 80}, `
n1      default/pod-with-a-long-name     1Gi  x
node-2  größe                         1023Mi`},
		"on a narrow terminal": {nil, Terminal{Width: 30, Limited: true}, `
NODE    OWNER             SIZE
n1      default/pod-w…     1Gi
node-2  größe           1023Mi`},
		"on a very narrow one": {func(t *Table) { t.Indent = "  " }, Terminal{Width: 10, Limited: true, ASCII: true}, `
  NODE    OWNER     SIZE
  n1      defau~     1Gi
  node-2  größe   1023Mi`},
		"in color": {func(t *Table) { t.NoHeaders = true }, Terminal{Width: 80, Color: true}, "\n" +
			"n1      default/pod-with-a-long-name     1Gi\n" +
			"\x1b[31mnode-2\x1b[0m  größe                         1023Mi"},
	} {
		t.Run(name, func(t *testing.T) {
			in := table()
			if test.change != nil {
				test.change(in)
			}
			var out bytes.Buffer
			if err := in.Write(&out, test.to); err != nil {
				t.Fatal(err)
			}
			if have, want := out.String(), strings.TrimPrefix(test.want, "\n")+"\n"; have != want {
				t.Errorf("got\n%s\nwant\n%s", have, want)
			}
		})
	}
}

// TestWrap asserts that items stay whole, and that lines are no wider than the terminal.
func TestWrap(t *testing.T) {
	to := Terminal{Width: 20}
	if have, want := to.Wrap("  ", "node-1", "", "used 75 %", "free 3Gi", "largest 2Gi"), "node-1  used 75 %\n  free 3Gi\n  largest 2Gi"; have != want {
		t.Errorf("got %q, want %q", have, want)
	}
}

// TestMarks asserts that each mark is a sign of its own, with and without color.
func TestMarks(t *testing.T) {
	for _, to := range []Terminal{{}, {ASCII: true}, {Color: true}} {
		seen := map[string]bool{}
		for _, m := range []Mark{MarkBad, MarkWarning, MarkDone, MarkBusy} {
			sign := to.PlainMark(m)
			if sign == "" || seen[sign] || !strings.Contains(to.Mark(m), sign) {
				t.Errorf("%+v: mark %d is %q, painted %q", to, m, sign, to.Mark(m))
			}
			seen[sign] = true
		}
	}
}
