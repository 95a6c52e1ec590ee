package diagram

import (
	"math/rand/v2"
	"strings"
	"testing"
	"unicode/utf8"
)

const gib = 1 << 30

func textOf(cells []Cell) string {
	var b strings.Builder
	for _, c := range cells {
		b.WriteRune(c.Text)
	}
	return b.String()
}

// TestDraw asserts what rows look like.
func TestDraw(t *testing.T) {
	for name, test := range map[string]struct {
		size   int64
		pieces []Piece
		cells  int
		glyphs Glyphs
		want   string
	}{
		"empty": {100 * gib, []Piece{{0, 100 * gib, Free, ""}}, 10, Unicode, "··········"},
		"volumes in proportion": {
			100 * gib,
			[]Piece{{0, 20 * gib, Volume, "A"}, {20 * gib, 50 * gib, Volume, "B"}, {50 * gib, 100 * gib, Free, ""}}, 10, Unicode, "A█B██·····",
		},
		"ASCII": {
			100 * gib,
			[]Piece{{0, 20 * gib, Volume, "A"}, {20 * gib, 50 * gib, Wiping, "B"}, {50 * gib, 80 * gib, Free, ""}, {80 * gib, 100 * gib, Orphan, "C"}},
			10, ASCII, "A#B++...Co",
		},
		"a small volume gets a cell of its larger neighbor": {
			1000 * gib,
			[]Piece{{0, 300 * gib, Volume, "A"}, {300 * gib, 301 * gib, Volume, "B"}, {301 * gib, 1000 * gib, Free, ""}}, 10, Unicode, "A██B······",
		},
		"a small free extent gets one, too": {
			1000 * gib,
			[]Piece{{0, 600 * gib, Volume, "A"}, {600 * gib, 601 * gib, Free, ""}, {601 * gib, 1000 * gib, Volume, "B"}}, 10, Unicode, "A████·B███",
		},
		"neighbors without labels alternate": {
			40 * gib,
			[]Piece{{0, 10 * gib, Volume, ""}, {10 * gib, 20 * gib, Volume, ""}, {20 * gib, 30 * gib, Volume, ""}, {30 * gib, 40 * gib, Free, ""}},
			8, Unicode, "██▓▓██··",
		},
		"a label that does not fit": {
			20 * gib,
			[]Piece{{0, 10 * gib, Volume, "AA"}, {10 * gib, 20 * gib, Volume, "AB"}}, 2, Unicode, "█▓",
		},
		"a gap is no space of Berth's": {
			100 * gib,
			[]Piece{{50 * gib, 100 * gib, Free, ""}}, 10, ASCII, "     .....",
		},
		"out of service":         {100 * gib, []Piece{{0, 50 * gib, OutOfService, ""}, {50 * gib, 100 * gib, Free, ""}}, 10, Unicode, "╳╳╳╳╳·····"},
		"behind the disk":        {100 * gib, []Piece{{0, 200 * gib, Volume, "A"}}, 4, Unicode, "A███"},
		"the largest disk there": {1 << 60, []Piece{{0, 1 << 59, Volume, "A"}, {1 << 59, 1 << 60, Free, ""}}, 10, Unicode, "A████·····"},
		"no cells":               {gib, []Piece{{0, gib, Free, ""}}, 0, Unicode, ""},
		"no disk":                {0, nil, 4, Unicode, ""},
	} {
		t.Run(name, func(t *testing.T) {
			row := Draw(test.size, test.pieces, test.cells, test.glyphs)
			if have := textOf(row.Cells); have != test.want {
				t.Errorf("got %q, want %q", have, test.want)
			}
		})
	}
}

// TestDrawRandom asserts, for random disks: the row has as many cells as asked, pieces are in order, each volume has a
// cell if there are enough, and the share of a kind is off by no more than what rounding and small pieces take.
func TestDrawRandom(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 5000 {
		size := (1 + random.Int64N(1<<20)) << 20
		cells := 1 + random.IntN(200)
		var pieces []Piece
		for at := int64(0); at < size; {
			n := 1 + random.Int64N(size/3+1)
			pieces = append(pieces, Piece{Start: at, End: min(at+n, size), Kind: Kind(random.IntN(int(OutOfService) + 1)), Label: Label(len(pieces))})
			at += n
		}
		row := Draw(size, pieces, cells, Unicode)
		if len(row.Cells) != cells {
			t.Fatalf("%d cells, want %d: %v", len(row.Cells), cells, pieces)
		}
		has, last := map[int]bool{}, 0
		for _, c := range row.Cells {
			if c.Piece < last {
				t.Fatalf("piece %d is drawn behind %d", c.Piece, last)
			}
			has[c.Piece], last = true, c.Piece
		}
		for i, p := range row.Pieces {
			if len(row.Pieces) <= cells && p.Kind.isVolume() && !has[i] {
				t.Fatalf("volume %d of %d has none of %d cells", i, len(row.Pieces), cells)
			}
		}
	}
}

// TestDensity asserts what the second row of a crowded disk shows.
func TestDensity(t *testing.T) {
	row := Draw(40*gib, []Piece{{0, 10 * gib, Volume, "A"}, {10 * gib, 11 * gib, Volume, "B"}, {11 * gib, 30 * gib, Free, ""}, {30 * gib, 35 * gib, Orphan, "C"}}, 4, Unicode)
	if !row.Crowded() {
		t.Error("three volumes in four cells are not crowded")
	}
	if have := textOf(row.Density(Unicode)); have != "█▁·▄" {
		t.Errorf("got %q", have)
	}
	if few := Draw(40*gib, []Piece{{0, 10 * gib, Volume, "A"}}, 4, Unicode); few.Crowded() {
		t.Error("one volume in four cells is crowded")
	}
}

// TestScale asserts that the names of positions neither touch nor leave the row.
func TestScale(t *testing.T) {
	format := func(n int64) string { return strings.Repeat("x", 3) + string(rune('a'+n/gib)) }
	for cells, want := range map[int]string{
		40: "0         xxxb      xxxc      xxxd  xxxe",
		20: "0    xxxb xxxc  xxxe",
		12: "0  xxxb xxxe",
		4:  "0   ",
		0:  "",
	} {
		have := Scale(4*gib, cells, format)
		if have != want || utf8.RuneCountInString(have) != cells {
			t.Errorf("%d cells: got %q, want %q", cells, have, want)
		}
	}
}

// TestLabel asserts that labels are different.
func TestLabel(t *testing.T) {
	for i, want := range map[int]string{0: "A", 25: "Z", 26: "a", 51: "z", 52: "AA", 53: "AB", 52 + 52: "BA"} {
		if have := Label(i); have != want {
			t.Errorf("%d: got %s, want %s", i, have, want)
		}
	}
	seen := map[string]int{}
	for i := range 1024 {
		if other, twice := seen[Label(i)]; twice {
			t.Fatalf("%d and %d are both %s", other, i, Label(i))
		}
		seen[Label(i)] = i
	}
}
