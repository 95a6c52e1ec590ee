// Package diagram draws the extents of a disk as a row of cells. It is arithmetic only: it knows neither disks nor
// terminals, and writes no color.
//
// A row of w cells stands for the bytes of a disk. A piece (free space, a volume) from start to end gets
// round(end·w/size) − round(start·w/size) cells. Each volume, and then each free extent, gets at least one: the larger
// neighbor gives it up. If there are more pieces than cells, some have none. [Density] shows such disks.
package diagram

import (
	"cmp"
	"slices"
)

// Kind is what a piece of a disk is used for.
type Kind int

const (
	// Unusable space is none of Berth's: partition tables, foreign partitions, and what alignment cuts off.
	Unusable Kind = iota
	// Free space holds no volume.
	Free
	// Volume is a volume with an owner.
	Volume
	// Wiping is a volume that is being wiped.
	Wiping
	// Copying is the incomplete copy of a volume that is moved.
	Copying
	// Orphan is a volume without an owner.
	Orphan
	// OutOfService is a volume on a disk that does not serve.
	OutOfService
)

// Piece is a run of bytes of one kind.
type Piece struct {
	Start, End int64
	Kind       Kind
	// Label is shown at the start of a volume: see [Labels].
	Label string
}

// Cell is one character of the row.
type Cell struct {
	// Piece is the index of the piece in what Row returned; -1 for an empty cell.
	Piece int
	Kind  Kind
	// Text is what the cell shows.
	Text rune
}

// Glyphs are the characters of the kinds. Alternate is the other one of volumes, for a volume that follows one without
// a label between them.
type Glyphs struct {
	Kinds     map[Kind]rune
	Alternate rune
	// Left and Right are the ends of a row.
	Left, Right rune
	// Levels show how much of a cell is used, from nothing to all.
	Levels []rune
}

// Unicode and ASCII are the sets of characters.
var (
	Unicode = Glyphs{
		Kinds: map[Kind]rune{
			Unusable: ' ', Free: '·', Volume: '█', Wiping: '▒', Copying: '▚', Orphan: '░', OutOfService: '╳',
		},
		Alternate: '▓', Left: '▕', Right: '▏', Levels: []rune("·▁▂▃▄▅▆▇█"),
	}
	ASCII = Glyphs{
		Kinds: map[Kind]rune{
			Unusable: ' ', Free: '.', Volume: '#', Wiping: '+', Copying: '>', Orphan: 'o', OutOfService: 'x',
		},
		Alternate: '=', Left: '|', Right: '|', Levels: []rune(".123456789"),
	}
)

// Row is the drawing of one disk.
type Row struct {
	Size int64
	// Pieces cover the disk without gaps, in order of start.
	Pieces []Piece
	Cells  []Cell
}

// Draw draws a disk of that many bytes with that many cells. Pieces may be in any order. What they leave out is
// unusable, and of two that overlap the one that starts later loses the common part.
func Draw(size int64, pieces []Piece, cells int, glyphs Glyphs) Row {
	row := Row{Size: size, Pieces: cover(size, pieces)}
	counts := row.counts(max(cells, 0))
	alternate := false
	for i, n := range counts {
		p := &row.Pieces[i]
		fill := glyphs.Kinds[p.Kind]
		label := []rune(p.Label)
		if !p.Kind.isVolume() || len(label) > n {
			label = nil
		}
		// The label of the second of two volumes side by side distinguishes them, or else its character.
		alternate = p.Kind == Volume && len(label) == 0 && i > 0 && row.Pieces[i-1].Kind == Volume && !alternate
		if alternate {
			fill = glyphs.Alternate
		}
		for c := range n {
			text := fill
			if c < len(label) {
				text = label[c]
			}
			row.Cells = append(row.Cells, Cell{Piece: i, Kind: p.Kind, Text: text})
		}
	}
	return row
}

// isVolume reports whether a piece of the kind is a partition of Berth's.
func (k Kind) isVolume() bool { return k != Unusable && k != Free }

// cover returns the pieces in order, clipped to the disk and to each other, with the gaps as unusable pieces.
func cover(size int64, pieces []Piece) []Piece {
	sorted := slices.Clone(pieces)
	slices.SortStableFunc(sorted, func(a, b Piece) int { return cmp.Compare(a.Start, b.Start) })
	var out []Piece
	at := int64(0)
	for _, p := range sorted {
		p.Start, p.End = max(p.Start, at), min(p.End, size)
		if p.End <= p.Start {
			continue
		}
		if p.Start > at {
			out = append(out, Piece{Start: at, End: p.Start})
		}
		out = append(out, p)
		at = p.End
	}
	if at < size {
		out = append(out, Piece{Start: at, End: size})
	}
	return out
}

// counts returns how many cells each piece gets.
func (r *Row) counts(cells int) []int {
	counts := make([]int, len(r.Pieces))
	for i := range r.Pieces {
		counts[i] = r.position(r.Pieces[i].End, cells) - r.position(r.Pieces[i].Start, cells)
	}
	// Volumes come first: if cells are scarce, a free extent goes without.
	r.giveEachOne(counts, func(p *Piece) bool { return p.Kind.isVolume() })
	r.giveEachOne(counts, func(p *Piece) bool { return p.Kind == Free })
	return counts
}

// position is the cell in which a byte is, rounded to the nearest border of cells. It does not overflow: the largest
// disk has 2^60 bytes, so it is split into whole cells and the rest.
func (r *Row) position(at int64, cells int) int {
	if r.Size <= 0 || cells == 0 {
		return 0
	}
	w, size := int64(cells), r.Size
	for size > 1<<40 {
		at, size = at>>1, size>>1
	}
	return int((at*w + size/2) / size)
}

// giveEachOne gives a cell to each wanted piece without one. The larger of the nearest two pieces that can spare a cell
// gives it up.
func (r *Row) giveEachOne(counts []int, wanted func(*Piece) bool) {
	for i := range counts {
		if counts[i] > 0 || !wanted(&r.Pieces[i]) {
			continue
		}
		if giver := r.giver(counts, i); giver >= 0 {
			counts[giver]--
			counts[i]++
		}
	}
}

// giver returns which piece gives up a cell for the i-th; -1 if none can.
func (r *Row) giver(counts []int, i int) int {
	spare := func(j int) bool { return counts[j] > 1 || counts[j] == 1 && r.Pieces[j].Kind == Unusable }
	left, right := i-1, i+1
	for left >= 0 && !spare(left) {
		left--
	}
	for right < len(counts) && !spare(right) {
		right++
	}
	switch {
	case left < 0 && right >= len(counts):
		return -1
	case left < 0:
		return right
	case right >= len(counts), counts[left] >= counts[right]:
		return left
	}
	return right
}

// Volumes is how many partitions of Berth's the disk has.
func (r *Row) Volumes() int {
	n := 0
	for i := range r.Pieces {
		if r.Pieces[i].Kind.isVolume() {
			n++
		}
	}
	return n
}

// Crowded reports whether there are too many volumes for the cells to show how full the disk is: more than one for four
// cells.
func (r *Row) Crowded() bool { return r.Volumes()*4 > len(r.Cells) }

// Density returns a row that shows which share of each cell's bytes is used, whatever the number of volumes.
func (r *Row) Density(glyphs Glyphs) []Cell {
	cells := make([]Cell, len(r.Cells))
	if len(cells) == 0 {
		return cells
	}
	used := make([]float64, len(cells))
	perCell := float64(r.Size) / float64(len(cells))
	for i := range r.Pieces {
		p := &r.Pieces[i]
		if !p.Kind.isVolume() {
			continue
		}
		first := min(int(float64(p.Start)/perCell), len(cells)-1)
		for c := first; c < len(cells) && float64(c)*perCell < float64(p.End); c++ {
			from, to := max(float64(p.Start), float64(c)*perCell), min(float64(p.End), float64(c+1)*perCell)
			used[c] += max(to-from, 0) / perCell
		}
	}
	for c := range cells {
		// Nothing and all are exact; between them the next higher level.
		last := len(glyphs.Levels) - 1
		level := min(int(used[c]*float64(last-1))+1, last-1)
		kind := Volume
		switch {
		case used[c] < 1e-9:
			level, kind = 0, Free
		case used[c] > 1-1e-9:
			level = last
		}
		cells[c] = Cell{Piece: -1, Kind: kind, Text: glyphs.Levels[level]}
	}
	return cells
}

// Scale is a line that names positions below a row: both ends, and quarters where there is room.
func Scale(size int64, cells int, format func(int64) string) string {
	line := []rune(blanks(cells))
	place := func(text string, at int) {
		runes := []rune(text)
		if at < 0 || at+len(runes) > cells {
			return
		}
		// A name needs a blank on both sides.
		for c := max(at-1, 0); c < min(at+len(runes)+1, cells); c++ {
			if line[c] != ' ' {
				return
			}
		}
		copy(line[at:], runes)
	}
	end := format(size)
	place("0", 0)
	place(end, cells-len([]rune(end)))
	for _, quarter := range []int64{2, 1, 3} {
		place(format(size/4*quarter), cells*int(quarter)/4)
	}
	return string(line)
}

func blanks(n int) string {
	out := make([]byte, max(n, 0))
	for i := range out {
		out[i] = ' '
	}
	return string(out)
}

// Label is the label of the i-th volume: A to Z, a to z, then two letters.
func Label(i int) string {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	if i < len(letters) {
		return letters[i : i+1]
	}
	i -= len(letters)
	return letters[i/len(letters)%len(letters):][:1] + letters[i%len(letters):][:1]
}
