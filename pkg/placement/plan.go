package placement

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"github.com/berthdev/berth/pkg/extent"
)

// Plan finds a place for every request on the node, and appends one Assignment for each to dst, in the order of the
// requests. It places all of them or none: with an error, dst is returned as it was.
//
// The error is a *NoFit when the node has no room. Any other error is about the requests themselves, and no node could
// take them.
func Plan(dst []Assignment, node *Node, requests []Request) ([]Assignment, error) {
	if err := validate(requests); err != nil {
		return dst, err
	}
	if len(requests) == 1 {
		place, ok := planOne(node, &requests[0])
		if !ok {
			place, ok = planInPieces(node, &requests[0])
		}
		if !ok {
			return dst, explain(node, requests, requests[0].Class)
		}
		return append(dst, place), nil
	}
	return planSeveral(dst, node, requests)
}

// validate refuses requests that no plan can satisfy.
func validate(requests []Request) error {
	for i := range requests {
		r := &requests[i]
		if r.Size <= 0 || r.Size%Alignment != 0 {
			return fmt.Errorf("request %d: size %d is not a positive multiple of %d bytes", i, r.Size, Alignment)
		}
		if r.Class == "" {
			return fmt.Errorf("request %d names no class of disk", i)
		}
	}
	return nil
}

// planOne is Plan for one volume.
func planOne(node *Node, r *Request) (Assignment, bool) {
	if r.Policy == Spread {
		return spread(node, r)
	}
	return bestFit(node.Disks, r)
}

// bestFit places the request in the smallest free extent that has room for it.
func bestFit(disks []Disk, r *Request) (Assignment, bool) {
	var best extent.Extent
	var on *Disk
	bestLen := int64(math.MaxInt64)
	for d := range disks {
		disk := &disks[d]
		if disk.Class != r.Class {
			continue
		}
		for i := range disk.Free.Len() {
			// Strictly smaller, so that the first of equal ones is kept: lowest ID, then lowest start.
			e := disk.Free.At(i)
			if e.Len() < r.Size || e.Len() >= bestLen && on != nil {
				continue
			}
			best, bestLen, on = e, e.Len(), disk
			if bestLen == r.Size {
				return Assignment{Disk: on.ID, Extent: best}, true
			}
		}
	}
	if on == nil {
		return Assignment{}, false
	}
	return Assignment{Disk: on.ID, Extent: extent.New(best.Start, r.Size)}, true
}

// spread places the request on the disk with the most free space of those that have room for it.
func spread(node *Node, r *Request) (Assignment, bool) {
	emptiest, most := -1, int64(-1)
	for d := range node.Disks {
		disk := &node.Disks[d]
		if disk.Class != r.Class {
			continue
		}
		var free int64
		fits := false
		for i := range disk.Free.Len() {
			n := disk.Free.At(i).Len()
			free += n
			fits = fits || n >= r.Size
		}
		if fits && free > most {
			emptiest, most = d, free
		}
	}
	if emptiest < 0 {
		return Assignment{}, false
	}
	return bestFit(node.Disks[emptiest:emptiest+1], r)
}

// planSeveral is Plan for several volumes: class by class.
func planSeveral(dst []Assignment, node *Node, requests []Request) ([]Assignment, error) {
	// A buffer on the stack, large enough for a usual pod.
	var buffer [maxExact]int
	order := buffer[:0]
	for i := range requests {
		order = append(order, i)
	}
	slices.SortFunc(order, func(a, b int) int { return compare(&requests[a], &requests[b], a, b) })

	before := len(dst)
	for range requests {
		dst = append(dst, Assignment{})
	}
	for len(order) > 0 {
		n := 1
		for n < len(order) && requests[order[n]].Class == requests[order[0]].Class {
			n++
		}
		if o := planClass(node, requests, order[:n], dst[before:], nil, nil); o != found {
			return dst[:before], explain(node, requests, requests[order[0]].Class).withOutcome(o)
		}
		order = order[n:]
	}
	return dst, nil
}

// planClass places the requests of one class, which are in the order of compare: each inside one extent, or else some
// of them in pieces.
func planClass(node *Node, requests []Request, order []int, places []Assignment, budget *Budget, b *buffers) outcome {
	o := planWhole(node, requests, order, places, budget, b)
	if o == found || !node.Pieces || !slices.ContainsFunc(order, func(i int) bool { return requests[i].Splits() }) {
		return o
	}
	return planSplit(node, requests, order, places, budget, b)
}

// planWhole places each request of one class inside one extent.
func planWhole(node *Node, requests []Request, order []int, places []Assignment, budget *Budget, b *buffers) outcome {
	var cuts [maxExact]cut
	p := planner{
		node: node, class: requests[order[0]].Class,
		requests: requests, order: order, places: places, cuts: cuts[:],
	}
	if !p.mayFit() {
		return impossible
	}
	if len(order) <= maxExact {
		if p.greedy() {
			return found
		}
		return p.exact(budget, b)
	}
	if o := p.greedyMany(budget); o != impossible {
		return o
	}
	return p.exact(budget, b)
}

// compare orders requests by class, and within a class in the order in which they are placed. The largest comes first,
// and of equal ones those with Apart, which are harder to place.
func compare(a, b *Request, i, j int) int {
	return cmp.Or(
		cmp.Compare(a.Class, b.Class),
		cmp.Compare(b.Size, a.Size),
		compareBool(b.Apart, a.Apart),
		cmp.Compare(i, j),
	)
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// planner places the requests of one class.
type planner struct {
	node     *Node
	class    string
	requests []Request
	order    []int        // indices of the requests of this class, in the order of compare
	places   []Assignment // by index of request
	// cuts has room for one cut of each request when there are at most maxExact. The first numCuts are in use. The
	// field is never assigned to, so that it may lie on the caller's stack.
	cuts    []cut
	numCuts int
}

// cut is a free extent into which the plan has put volumes; [next, end) is left of it.
type cut struct {
	disk, index int
	next, end   int64
	apart       bool // holds a volume with Apart
}

// anyDisk means no restriction to one disk.
const anyDisk = -1

// mayFit finds in one pass over the extents whether the largest volume, and all together, can have room. A node that
// is too full for the pod costs no more than this pass.
func (p *planner) mayFit() bool {
	var total, largest int64
	for d := range p.node.Disks {
		disk := &p.node.Disks[d]
		if disk.Class != p.class {
			continue
		}
		for i := range disk.Free.Len() {
			n := disk.Free.At(i).Len()
			total, largest = AddCapped(total, n), max(largest, n)
		}
	}
	var wanted int64
	for _, i := range p.order {
		wanted = AddCapped(wanted, p.requests[i].Size)
	}
	return p.requests[p.order[0]].Size <= largest && wanted <= total
}

// greedy places one request after the other by its policy, and never moves one.
func (p *planner) greedy() bool {
	for _, i := range p.order {
		r := &p.requests[i]
		disk := anyDisk
		if r.Policy == Spread {
			disk = p.emptiest(r)
		}
		c := p.tightest(r.Size, r.Apart, disk)
		if c == nil {
			p.numCuts = 0
			return false
		}
		p.put(i, c)
	}
	return true
}

// emptiest is the disk with the most bytes left of those that have room for the request, or anyDisk if none has. Then
// the caller finds no room on any disk.
func (p *planner) emptiest(r *Request) int {
	emptiest, most := anyDisk, int64(-1)
	for d := range p.node.Disks {
		disk := &p.node.Disks[d]
		if disk.Class != p.class || r.Apart && p.hasApart(d) {
			continue
		}
		var free int64
		fits := false
		for i := range disk.Free.Len() {
			if n := disk.Free.At(i).Len(); !p.isCut(d, i) {
				free += n
				fits = fits || n >= r.Size
			}
		}
		for i := range p.numCuts {
			if c := &p.cuts[i]; c.disk == d {
				free += c.end - c.next
				fits = fits || c.end-c.next >= r.Size
			}
		}
		if fits && free > most {
			emptiest, most = d, free
		}
	}
	return emptiest
}

// put places request i at the front of what is left of the extent.
func (p *planner) put(i int, c *cut) {
	r := &p.requests[i]
	p.places[i] = Assignment{Disk: p.node.Disks[c.disk].ID, Extent: extent.New(c.next, r.Size)}
	c.next += r.Size
	c.apart = c.apart || r.Apart
}

// tightest returns the smallest extent, or rest of one, that has at least size bytes. Unless onDisk is anyDisk, only
// that disk counts. With apart set, disks that already have a volume with Apart do not count. It returns nil if there
// is none.
//
//nolint:gocyclo // Two passes over the same question: split, they would exchange five values.
func (p *planner) tightest(size int64, apart bool, onDisk int) *cut {
	found, foundLen := cut{disk: -1}, int64(math.MaxInt64)
	for d := range p.node.Disks {
		disk := &p.node.Disks[d]
		if disk.Class != p.class || (onDisk != anyDisk && d != onDisk) || (apart && p.hasApart(d)) {
			continue
		}
		for i := range disk.Free.Len() {
			e := disk.Free.At(i)
			if e.Len() < size || (e.Len() >= foundLen && found.disk >= 0) || p.isCut(d, i) {
				continue
			}
			found, foundLen = cut{disk: d, index: i, next: e.Start, end: e.End}, e.Len()
		}
	}
	var rest *cut
	for i := range p.numCuts {
		c := &p.cuts[i]
		n := c.end - c.next
		if n < size || (onDisk != anyDisk && c.disk != onDisk) || (apart && p.hasApart(c.disk)) {
			continue
		}
		if n < foundLen || n == foundLen && c.before(&found) {
			rest, foundLen, found = c, n, *c
		}
	}
	if rest != nil || found.disk < 0 {
		return rest
	}
	p.cuts[p.numCuts] = found
	p.numCuts++
	return &p.cuts[p.numCuts-1]
}

func (c *cut) before(other *cut) bool {
	return other.disk < 0 || c.disk < other.disk || c.disk == other.disk && c.next < other.next
}

// isCut reports whether a volume of this plan lies in the free extent.
func (p *planner) isCut(disk, index int) bool {
	for i := range p.numCuts {
		if p.cuts[i].disk == disk && p.cuts[i].index == index {
			return true
		}
	}
	return false
}

// hasApart reports whether this plan has a volume with Apart on the disk.
func (p *planner) hasApart(disk int) bool {
	for i := range p.numCuts {
		if p.cuts[i].disk == disk && p.cuts[i].apart {
			return true
		}
	}
	return false
}
