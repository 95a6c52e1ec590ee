package placement

import (
	"math"
	"math/bits"
)

const (
	// maxExact is how many volumes of a class are placed whenever it is possible at all.
	maxExact = 8
	// maxSearch is up to how many volumes are searched for, within searchBudget.
	maxSearch = 16
	// searchBudget bounds the search above maxExact: how many volumes are put into a
	// group. Up to maxExact the search ends by itself, after at most 5295 (Bell(1) + … + Bell(8)).
	searchBudget = 20_000
)

// exact splits the requests into groups that share an extent, tries every split, and
// places the first that fits. The package comment says why nothing is missed.
func (p *planner) exact() bool {
	if len(p.order) > maxSearch {
		return false
	}
	var s split
	s.load(p)
	if !s.plausibleAtAll() || !s.extend(0) {
		return false
	}
	p.realize(&s)
	return true
}

// split is the search's state: the volumes 0…i are spread over groups.
type split struct {
	n     int
	sizes [maxSearch]int64 // of the volumes, falling
	apart [maxSearch]bool
	// aparts is the number of volumes with Apart, or 0 if it is 1, which is no constraint.
	aparts int

	groups  int
	groupOf [maxSearch]int // volume → group
	sums    [maxSearch]int64
	isApart [maxSearch]bool // the group holds a volume with Apart

	largest longest // the n longest extents of the class
	// disks with the longest extents, and of each its longest extents; only with aparts.
	disks    [maxSearch]diskExtents
	numDisks int

	// onDisk says, for a split that fits, to which disk (index in the node) each group
	// with Apart goes.
	onDisk [maxSearch]int
	budget int
}

type diskExtents struct {
	index int
	longest
}

// longest keeps the n largest of the lengths it is shown, falling.
type longest struct {
	lengths [maxSearch]int64
	count   int
}

func (l *longest) add(length int64, n int) {
	if l.count == n {
		if length <= l.lengths[n-1] {
			return
		}
		l.count--
	}
	i := l.count
	for i > 0 && l.lengths[i-1] < length {
		l.lengths[i] = l.lengths[i-1]
		i--
	}
	l.lengths[i] = length
	l.count++
}

// atLeast is how many of the lengths are at least x.
func (l *longest) atLeast(x int64) int {
	i := 0
	for i < l.count && l.lengths[i] >= x {
		i++
	}
	return i
}

func (s *split) load(p *planner) {
	s.n = len(p.order)
	s.budget = searchBudget
	if s.n <= maxExact {
		s.budget = math.MaxInt
	}
	for i, request := range p.order {
		s.sizes[i], s.apart[i] = p.requests[request].Size, p.requests[request].Apart
		if s.apart[i] {
			s.aparts++
		}
	}
	if s.aparts == 1 {
		s.aparts = 0
	}
	for d := range p.node.Disks {
		if p.node.Disks[d].Class == p.class {
			s.loadDisk(d, &p.node.Disks[d])
		}
	}
}

func (s *split) loadDisk(index int, disk *Disk) {
	of := diskExtents{index: index}
	for i := range disk.Free.Len() {
		length := disk.Free.At(i).Len()
		s.largest.add(length, s.n)
		if s.aparts > 0 {
			of.add(length, s.n)
		}
	}
	if of.count == 0 {
		return
	}
	if s.numDisks == s.n {
		if of.lengths[0] <= s.disks[s.n-1].lengths[0] {
			return
		}
		s.numDisks--
	}
	i := s.numDisks
	for i > 0 && s.disks[i-1].lengths[0] < of.lengths[0] {
		s.disks[i] = s.disks[i-1]
		i--
	}
	s.disks[i] = of
	s.numDisks++
}

// plausibleAtAll refuses what the longest extents together cannot hold.
func (s *split) plausibleAtAll() bool {
	var wanted, room int64
	for i := range s.n {
		wanted += s.sizes[i]
	}
	for i := range s.largest.count {
		room = addCapped(room, s.largest.lengths[i])
	}
	if wanted > room {
		return false
	}
	disk := 0
	for i := 0; s.aparts > 0 && i < s.n; i++ {
		if !s.apart[i] {
			continue
		}
		if disk == s.numDisks || s.disks[disk].lengths[0] < s.sizes[i] {
			return false
		}
		disk++
	}
	return true
}

// extend puts volume i and all behind it into groups, and reports whether some way
// to do so fits; the split is then left in place.
func (s *split) extend(i int) bool {
	if i == s.n {
		return s.aparts == 0 || s.match()
	}
	// Of equal volumes, a later one never goes to an earlier group: exchanging the two
	// changes nothing.
	from := 0
	if i > 0 && s.sizes[i] == s.sizes[i-1] && s.apart[i] == s.apart[i-1] {
		from = s.groupOf[i-1]
	}
	needsApart := s.aparts > 0 && s.apart[i]
	for g := from; g <= s.groups; g++ {
		isNew := g == s.groups
		if !isNew && (needsApart && s.isApart[g] || s.hasTwin(from, g)) {
			continue
		}
		if s.budget--; s.budget < 0 {
			return false
		}
		wasApart := s.isApart[g] // false for a new group
		s.groupOf[i] = g
		s.sums[g] += s.sizes[i]
		s.isApart[g] = wasApart || needsApart
		if isNew {
			s.groups++
		}
		if s.plausible() && s.extend(i+1) {
			return true
		}
		if isNew {
			s.groups--
		}
		s.isApart[g] = wasApart
		s.sums[g] -= s.sizes[i]
	}
	return false
}

// hasTwin reports whether a group that was tried before g is just like it.
func (s *split) hasTwin(from, g int) bool {
	for h := from; h < g; h++ {
		if s.sums[h] == s.sums[g] && s.isApart[h] == s.isApart[g] {
			return true
		}
	}
	return false
}

// plausible reports whether the groups fit the longest extents, Apart aside. Groups
// only grow, so what does not fit now never will.
func (s *split) plausible() bool {
	if s.groups > s.largest.count {
		return false
	}
	var sorted longest
	for g := range s.groups {
		sorted.add(s.sums[g], s.n)
	}
	for g := range s.groups {
		if sorted.lengths[g] > s.largest.lengths[g] {
			return false
		}
	}
	return true
}

// match decides whether groups that are plausible also fit with Apart, and to which
// disks the groups with Apart go.
func (s *split) match() bool {
	var aparts [maxSearch]int // groups with Apart, the largest first
	numAparts := s.sortAparts(&aparts)
	var others longest
	for g := range s.groups {
		if !s.isApart[g] {
			others.add(s.sums[g], s.n)
		}
	}

	// The m-th largest extent that the groups with Apart take must be below limit[m].
	var limit [maxSearch]int64
	for m := range numAparts {
		limit[m] = math.MaxInt64
		for i := others.count - 1; i >= 0; i-- {
			f := others.lengths[i]
			if s.largest.atLeast(f)-(i+1) < m+1 {
				limit[m] = f
				break
			}
		}
	}

	var fits [maxSearch]uint32 // m → disks that have an extent within the limits
	for m := range numAparts {
		for d := range s.numDisks {
			disk := &s.disks[d]
			n := disk.atLeast(s.sums[aparts[m]])
			if n > 0 && (disk.lengths[n-1] < limit[m] || limit[m] == math.MaxInt64) {
				fits[m] |= 1 << d
			}
		}
	}
	var takenBy [maxSearch]int // disk → m+1
	for m := range numAparts {
		seen := uint32(0)
		if !augment(&fits, &takenBy, &seen, m) {
			return false
		}
	}
	for d := range s.numDisks {
		if m := takenBy[d]; m > 0 {
			s.onDisk[aparts[m-1]] = s.disks[d].index
		}
	}
	return true
}

func (s *split) sortAparts(aparts *[maxSearch]int) int {
	n := 0
	for g := range s.groups {
		if !s.isApart[g] {
			continue
		}
		i := n
		for i > 0 && s.sums[aparts[i-1]] < s.sums[g] {
			aparts[i] = aparts[i-1]
			i--
		}
		aparts[i] = g
		n++
	}
	return n
}

// augment finds a disk for m, moving others to another of theirs if it must.
func augment(fits *[maxSearch]uint32, takenBy *[maxSearch]int, seen *uint32, m int) bool {
	for {
		untried := fits[m] &^ *seen
		if untried == 0 {
			return false
		}
		d := bits.TrailingZeros32(untried)
		*seen |= 1 << d
		if takenBy[d] == 0 || augment(fits, takenBy, seen, takenBy[d]-1) {
			takenBy[d] = m + 1
			return true
		}
	}
}

// realize places the groups of a split that fits, whatever the policy: that it works out hangs
// on the smallest extent being taken each time. The groups with Apart take the
// smallest extent on their disks first, then each other group the smallest that is
// left, the largest group first.
func (p *planner) realize(s *split) {
	var cutOf [maxSearch]int // group → index in cuts
	for g := range s.groups {
		if s.isApart[g] {
			p.tightest(s.sums[g], false, s.onDisk[g], true)
			cutOf[g] = p.numCuts - 1
		}
	}
	var placed uint32
	for {
		next := -1
		for g := range s.groups {
			if !s.isApart[g] && placed&(1<<g) == 0 && (next < 0 || s.sums[g] > s.sums[next]) {
				next = g
			}
		}
		if next < 0 {
			break
		}
		placed |= 1 << next
		p.tightest(s.sums[next], false, anyDisk, true)
		cutOf[next] = p.numCuts - 1
	}
	for i, request := range p.order {
		p.put(request, &p.cuts[cutOf[s.groupOf[i]]])
	}
}
