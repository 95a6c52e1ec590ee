package placement

import (
	"cmp"
	"slices"

	"github.com/berthdev/berth/pkg/extent"
)

// planInPieces places one request in several pieces, if it may have them and a disk has room.
func planInPieces(node *Node, r *Request) (Assignment, bool) {
	if !node.Pieces || !r.Splits() {
		return Assignment{}, false
	}
	return newSplitter(node, r.Class).place(r)
}

// planSplit places the requests of one class when they do not all fit inside one extent each. Those that may not have
// pieces come first, and are searched exactly. Then each of the others gets one extent if one holds it, else the fewest
// pieces. It is exact for one request. For several it gives up where another choice might have room.
func planSplit(node *Node, requests []Request, order []int, places []Assignment, budget *Budget, b *buffers) outcome {
	var whole, split []int
	for _, i := range order {
		// A plan that failed may have left its places.
		places[i] = Assignment{}
		if requests[i].Splits() {
			split = append(split, i)
		} else {
			whole = append(whole, i)
		}
	}
	s := newSplitter(node, requests[order[0]].Class)
	if len(whole) > 0 {
		if o := planWhole(node, requests, whole, places, budget, b); o != found {
			return o
		}
		for _, i := range whole {
			s.take(&requests[i], &places[i])
		}
	}
	for _, i := range split {
		place, ok := s.place(&requests[i])
		switch {
		case ok:
			places[i] = place
			s.take(&requests[i], &place)
		case len(order) == 1:
			return impossible
		default:
			return gaveUp
		}
	}
	return found
}

// splitter is the free space of a class while requests are placed that may have pieces.
type splitter struct {
	disks []splitDisk
}

// splitDisk is a disk of a splitter.
type splitDisk struct {
	id   string
	free extent.Set
	// apart is true if the disk holds a volume with Apart.
	apart bool
}

func newSplitter(node *Node, class string) *splitter {
	s := &splitter{}
	for i := range node.Disks {
		if d := &node.Disks[i]; d.Class == class {
			s.disks = append(s.disks, splitDisk{id: d.ID, free: d.Free})
		}
	}
	return s
}

// take removes the place of a request from what is free.
func (s *splitter) take(r *Request, place *Assignment) {
	for i := range s.disks {
		if d := &s.disks[i]; d.id == place.Disk {
			d.free = d.free.Subtract(extent.NewSet(append(slices.Clone(place.Further), place.Extent)...))
			d.apart = d.apart || r.Apart
		}
	}
}

// splitPlace is a place that a request can have on a disk.
type splitPlace struct {
	disk   *splitDisk
	pieces []extent.Extent
	// left is what the last piece leaves of its free extent.
	left int64
}

// place returns the best place for the request: with the fewest pieces, then by its policy, then on the first disk.
func (s *splitter) place(r *Request) (Assignment, bool) {
	var best splitPlace
	for i := range s.disks {
		d := &s.disks[i]
		if r.Apart && d.apart {
			continue
		}
		p, ok := d.fewest(r.Size, max(r.MaxPieces, 1))
		if ok && (best.disk == nil || p.compare(&best, r.Policy) < 0) {
			best = p
		}
	}
	if best.disk == nil {
		return Assignment{}, false
	}
	return Assignment{Disk: best.disk.id, Extent: best.pieces[0], Further: best.pieces[1:]}, true
}

// compare orders places of one request, the better first.
func (p *splitPlace) compare(other *splitPlace, policy Policy) int {
	order := cmp.Compare(p.left, other.left)
	if policy == Spread {
		order = cmp.Compare(other.disk.free.Total(), p.disk.free.Total())
	}
	return cmp.Or(cmp.Compare(len(p.pieces), len(other.pieces)), order)
}

// fewest returns the fewest pieces that hold the size, at most so many. All but the last are the largest free extents,
// whole. The last is the beginning of the smallest other extent that holds what is missing.
func (d *splitDisk) fewest(size int64, most int) (splitPlace, bool) {
	extents := d.byLength()
	var pieces []extent.Extent
	for missing := size; len(extents) > 0 && len(pieces) < most; {
		if extents[0].Len() < missing {
			missing -= extents[0].Len()
			pieces, extents = append(pieces, extents[0]), extents[1:]
			continue
		}
		last := extents[0]
		for _, e := range extents[1:] {
			// Strictly smaller, so that the first of equal ones is kept.
			if e.Len() >= missing && e.Len() < last.Len() {
				last = e
			}
		}
		pieces = append(pieces, extent.New(last.Start, missing))
		return splitPlace{disk: d, pieces: pieces, left: last.Len() - missing}, true
	}
	return splitPlace{}, false
}

// byLength returns the free extents, the longest first, and equal ones by their start.
func (d *splitDisk) byLength() []extent.Extent {
	extents := make([]extent.Extent, 0, d.free.Len())
	for _, e := range d.free.All() {
		extents = append(extents, e)
	}
	slices.SortStableFunc(extents, func(a, b extent.Extent) int { return cmp.Compare(b.Len(), a.Len()) })
	return extents
}

// LargestInPieces is the size of the largest volume of at most so many pieces that a disk has room for.
func (d *Disk) LargestInPieces(most int) int64 {
	disk := splitDisk{free: d.Free}
	extents := disk.byLength()
	var sum int64
	for _, e := range extents[:min(len(extents), most)] {
		sum += e.Len()
	}
	return sum
}
