package main

import (
	"fmt"
	"math"
	"math/bits"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/placement"
)

// cell is a MiB of a disk in the oracle.
type cell byte

const (
	unused cell = iota
	ours
	others
)

// drawing is a node as a map of its disks, and the volume that is to grow.
type drawing struct {
	disks  [][]cell
	volume []piece
}

// mibs is an extent in units of placement.
func mibs(start, length int64) extent.Extent {
	return extent.New(start*placement.Alignment, length*placement.Alignment)
}

// draw makes a random node of two or three disks.
func draw(r *rand.Rand) drawing {
	d := drawing{disks: make([][]cell, 2+r.IntN(2))}
	for i := range d.disks {
		d.disks[i] = make([]cell, 4+r.IntN(20))
		for at := 0; at < len(d.disks[i]); {
			c := []cell{unused, others}[r.IntN(2)]
			for range 1 + r.IntN(6) {
				if at < len(d.disks[i]) {
					d.disks[i][at] = c
					at++
				}
			}
		}
	}
	for range 1 + r.IntN(3) {
		disk := r.IntN(len(d.disks))
		start := r.IntN(len(d.disks[disk]))
		length := 1 + r.IntN(min(3, len(d.disks[disk])-start))
		if slices.Contains(d.disks[disk][start:start+length], ours) {
			continue
		}
		for i := range length {
			d.disks[disk][start+i] = ours
		}
		d.volume = append(d.volume, piece{disk, mibs(int64(start), int64(length))})
	}
	return d
}

// free is the free space of the disks.
func (d *drawing) free() []extent.Set {
	free := make([]extent.Set, len(d.disks))
	for i, cells := range d.disks {
		for at, c := range cells {
			if c == unused {
				free[i] = free[i].Add(mibs(int64(at), 1))
			}
		}
	}
	return free
}

// behind counts the unused cells right behind the last piece.
func (d *drawing) behind() int {
	last := d.volume[len(d.volume)-1]
	n := 0
	for _, c := range d.disks[last.disk][last.extent.End/placement.Alignment:] {
		if c != unused {
			break
		}
		n++
	}
	return n
}

// runs are the lengths of the unused runs of those disks, without the one behind the last piece if skip is set.
func (d *drawing) runs(disks []int, skip bool) []int {
	last := d.volume[len(d.volume)-1]
	var runs []int
	for _, i := range disks {
		for at, c := range d.disks[i] {
			switch {
			case c != unused:
			case at > 0 && d.disks[i][at-1] == unused:
				if !skip || len(runs) > 0 && !d.isBehind(i, at, last) {
					runs[len(runs)-1]++
				}
			case !skip || !d.isBehind(i, at, last):
				runs = append(runs, 1)
			}
		}
	}
	return runs
}

// isBehind reports whether all cells from the end of the piece to that one are unused.
func (d *drawing) isBehind(disk, at int, last piece) bool {
	end := int(last.extent.End / placement.Alignment)
	if disk != last.disk || at < end {
		return false
	}
	for _, c := range d.disks[disk][end : at+1] {
		if c != unused {
			return false
		}
	}
	return true
}

// fewestOf tries all choices of runs, and returns how many the smallest has that is at least that long together.
func fewestOf(runs []int, length int) int {
	best := math.MaxInt
	for choice := range 1 << len(runs) {
		sum := 0
		for i, run := range runs {
			if choice>>i&1 == 1 {
				sum += run
			}
		}
		if sum >= length {
			best = min(best, bits.OnesCount(uint(choice)))
		}
	}
	return best
}

// check asserts the invariants of step.
func (d *drawing) check(t *testing.T, grown []piece, by int) {
	t.Helper()
	have := map[string]bool{}
	var length int64
	for _, p := range grown {
		if p.extent.Empty() || p.extent.Start%placement.Alignment != 0 || p.extent.End%placement.Alignment != 0 {
			t.Fatalf("piece %v is empty or not aligned", p)
		}
		for at := p.extent.Start / placement.Alignment; at < p.extent.End/placement.Alignment; at++ {
			key := fmt.Sprint(p.disk, at)
			if have[key] || d.disks[p.disk][at] == others {
				t.Fatalf("%v takes cell %d of disk %d twice, or from another volume", grown, at, p.disk)
			}
			have[key] = true
			length++
		}
	}
	if want := bytesOf(d.volume)/placement.Alignment + int64(by); length != want {
		t.Fatalf("the volume has %d cells, want %d", length, want)
	}
}

// keeps asserts that the bytes that the volume had are where they were.
func (d *drawing) keeps(t *testing.T, grown []piece) {
	t.Helper()
	for i, p := range d.volume {
		if i >= len(grown) || grown[i].disk != p.disk || grown[i].extent.Start != p.extent.Start || grown[i].extent.Len() < p.extent.Len() {
			t.Fatalf("the volume was %v and is %v", d.volume, grown)
		}
	}
}

// TestGrow compares each step with an oracle that looks at every cell and tries every choice of free runs.
func TestGrow(t *testing.T) {
	r := rand.New(rand.NewPCG(6, 6))
	grew, refused := map[string]int{}, map[string]int{}
	for range 4000 {
		d := draw(r)
		if len(d.volume) == 0 {
			continue
		}
		by, most := 1+r.IntN(16), 1+r.IntN(6)
		all := make([]int, len(d.disks))
		for i := range all {
			all[i] = i
		}
		last := d.volume[len(d.volume)-1].disk
		total := int(bytesOf(d.volume)/placement.Alignment) + by
		rest := by - d.behind()
		for name, test := range map[string]struct {
			step step
			// pieces is how many pieces are added, or how many the moved volume has.
			pieces, most int
			moved        bool
		}{
			"in place":       {inPlace, fewestOf(nil, rest), 0, false},
			"pieces on disk": {piecesOnDisk(most), fewestOf(d.runs([]int{last}, true), rest), most - len(d.volume), false},
			"pieces on node": {piecesOnNode(most), fewestOf(d.runs(all, true), rest), most - len(d.volume), false},
			"any pieces":     {piecesOnNode(math.MaxInt), fewestOf(d.runs(all, true), rest), math.MaxInt - 1, false},
			"move":           {byMoving, fewestOf(d.runs(all, false), total), 1, true},
			"move on disk":   {byMovingOnDisk, fewestOf(d.runs([]int{last}, false), total), 1, true},
		} {
			// Bytes right behind the volume are no piece more, even if it has too many.
			want := rest <= 0 && !test.moved || test.pieces <= test.most
			free, volume := d.free(), slices.Clone(d.volume)
			grown, ok := test.step(free, volume, int64(by)*placement.Alignment)
			if ok != want {
				t.Fatalf("%s by %d to at most %d pieces: %t, want %t: %v", name, by, most, ok, want, d)
			}
			if !slices.Equal(volume, d.volume) || !slices.EqualFunc(free, d.free(), extent.Set.Equal) {
				t.Fatalf("%s changed its input", name)
			}
			if !ok {
				refused[name]++
				continue
			}
			grew[name]++
			d.check(t, grown, by)
			if test.moved {
				if len(grown) != 1 || !free[grown[0].disk].Contains(grown[0].extent) {
					t.Fatalf("moved to %v, of which %v is free", grown, free)
				}
				continue
			}
			d.keeps(t, grown)
			if added := len(grown) - len(d.volume); rest > 0 && added != test.pieces || rest <= 0 && added != 0 {
				t.Fatalf("%s by %d added %d pieces, want %d: %v", name, by, added, test.pieces, d)
			}
			if grown[len(d.volume)-1].extent.Len() != d.volume[len(d.volume)-1].extent.Len()+int64(min(by, d.behind()))*placement.Alignment {
				t.Fatalf("%s by %d left bytes right behind the volume: %v", name, by, grown)
			}
		}
	}
	for name, n := range grew {
		t.Logf("%-14s grew %d, refused %d", name, n, refused[name])
		if n < 100 || refused[name] < 100 {
			t.Errorf("%s: this shows little", name)
		}
	}
}

// TestBound asserts that the last way grows a volume exactly if the free bytes of the node suffice, and that no other
// grows one if they do not.
func TestBound(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	for range 2000 {
		d := draw(r)
		if len(d.volume) == 0 {
			continue
		}
		cells := 0
		for i := range d.disks {
			for _, c := range d.disks[i] {
				if c == unused {
					cells++
				}
			}
		}
		by := 1 + r.IntN(cells+3)
		for i := range ways {
			_, ok := ways[i].grow(d.free(), d.volume, int64(by)*placement.Alignment)
			if i == len(ways)-1 && ok != (by <= cells) {
				t.Fatalf("%s by %d: %t, but %d are free", ways[i].name, by, ok, cells)
			}
			if ok && by > cells {
				t.Fatalf("%s grew by %d, but %d are free", ways[i].name, by, cells)
			}
		}
	}
}

// TestFewest asserts which of several equally few extents are taken.
func TestFewest(t *testing.T) {
	free := []extent.Set{
		extent.NewSet(mibs(0, 5), mibs(10, 3), mibs(20, 8)),
		extent.NewSet(mibs(0, 8), mibs(10, 3), mibs(20, 4)),
	}
	for name, test := range map[string]struct {
		size int64
		most int
		want []piece
	}{
		"the smallest that holds it":                 {4, 9, []piece{{1, mibs(20, 4)}}},
		"of equals the first disk":                   {3, 9, []piece{{0, mibs(10, 3)}}},
		"the largest, and the smallest for the rest": {11, 9, []piece{{0, mibs(20, 8)}, {0, mibs(10, 3)}}},
		"no more than asked for":                     {10, 9, []piece{{0, mibs(20, 8)}, {0, mibs(10, 2)}}},
		"three":                                      {17, 3, []piece{{0, mibs(20, 8)}, {1, mibs(0, 8)}, {0, mibs(10, 1)}}},
		"not more than two":                          {17, 2, nil},
		"all":                                        {31, 6, []piece{{0, mibs(20, 8)}, {1, mibs(0, 8)}, {0, mibs(0, 5)}, {1, mibs(20, 4)}, {0, mibs(10, 3)}, {1, mibs(10, 3)}}},
		"more than all":                              {32, 9, nil},
		"none at all":                                {1, 0, nil},
		"more pieces than may be already":            {1, -1, nil},
	} {
		if got, ok := fewest(free, test.size*placement.Alignment, test.most); ok != (test.want != nil) || ok && !slices.Equal(got, test.want) {
			t.Errorf("%s: %v, want %v", name, got, test.want)
		}
	}
}

// TestMoveOnDisk asserts that what Berth does takes the smallest extent of the volume's disk, of equals the first, even
// if a smaller one of another disk holds the volume.
func TestMoveOnDisk(t *testing.T) {
	volume := []piece{{1, mibs(10, 2)}}
	free := []extent.Set{extent.NewSet(mibs(0, 4)), extent.NewSet(mibs(0, 8), mibs(12, 1), mibs(20, 6), mibs(30, 6))}
	for by, want := range map[int64][]piece{
		1: {{1, mibs(10, 3)}}, 2: {{1, mibs(20, 4)}}, 4: {{1, mibs(20, 6)}}, 5: {{1, mibs(0, 7)}}, 6: {{1, mibs(0, 8)}}, 7: nil,
	} {
		if got, ok := ways[today].grow(free, volume, by*placement.Alignment); ok != (want != nil) || !slices.Equal(got, want) {
			t.Errorf("by %d: %v, want %v", by, got, want)
		}
	}
}

// TestOrderOfSteps asserts that a way takes the first step that works, and that bytes on the volume's disk come first.
func TestOrderOfSteps(t *testing.T) {
	volume := []piece{{0, mibs(0, 4)}}
	free := []extent.Set{extent.NewSet(mibs(4, 1), mibs(10, 4), mibs(20, 2)), extent.NewSet(mibs(0, 12))}
	for name, want := range map[string]map[int64][]piece{
		"in place":                           {1: {{0, mibs(0, 5)}}, 2: nil},
		"in place, move on its disk (today)": {1: {{0, mibs(0, 5)}}, 2: nil},
		"in place, pieces on its disk": {
			5: {{0, mibs(0, 5)}, {0, mibs(10, 4)}}, 7: {{0, mibs(0, 5)}, {0, mibs(10, 4)}, {0, mibs(20, 2)}}, 8: nil,
		},
		"in place, pieces":       {1: {{0, mibs(0, 5)}}, 8: {{0, mibs(0, 5)}, {1, mibs(0, 7)}}},
		"in place, move":         {1: {{0, mibs(0, 5)}}, 2: {{1, mibs(0, 6)}}, 9: nil},
		"in place, pieces, move": {2: {{0, mibs(0, 5)}, {0, mibs(20, 1)}}},
		"in place, pieces on its disk, move, pieces": {
			7: {{0, mibs(0, 5)}, {0, mibs(10, 4)}, {0, mibs(20, 2)}}, 8: {{1, mibs(0, 12)}}, 9: {{0, mibs(0, 5)}, {1, mibs(0, 8)}},
		},
		"in place, move, pieces": {2: {{1, mibs(0, 6)}}, 9: {{0, mibs(0, 5)}, {1, mibs(0, 8)}}},
	} {
		w := &ways[slices.IndexFunc(ways, func(w way) bool { return w.name == name })]
		for by, pieces := range want {
			if got, ok := w.grow(free, volume, by*placement.Alignment); ok != (pieces != nil) || !slices.Equal(got, pieces) {
				t.Errorf("%s by %d: %v, want %v", name, by, got, pieces)
			}
		}
	}
}
