package placement

import (
	"cmp"
	"math"
	"slices"

	"github.com/berthdev/berth/pkg/extent"
)

const (
	// maxExact is the number of volumes up to which a pod is placed whenever a placement exists, whatever the search
	// costs.
	maxExact = 8
	// maxStates bounds how many choices of the volumes of a class the search considers. Eight volumes that differ have
	// 2^8 choices, and fewer when some are alike. For nine and more volumes the search gives up beyond it.
	maxStates = 1 << 13
)

// outcome of a search for places.
type outcome int

const (
	found outcome = iota
	// impossible: there is no way to place the volumes.
	impossible
	// gaveUp: there may be a way, but finding it would take too many steps.
	gaveUp
)

// volumeKind is volumes of a class that are alike.
type volumeKind struct {
	size  int64
	apart bool
	// from and count locate the volumes in the planner's order.
	from, count int
	// stride is the weight of one of them in the index of a state.
	stride int
}

// bin is a free extent that volumes may be put into.
type bin struct {
	// group is the index of its disk among the groups. All extents are in one group when no volumes are apart.
	group         int
	disk          int
	start, length int64
}

// reach is the end of a packing: bins before this one are closed, and this one is filled up to fill.
type reach struct {
	bin  int
	fill int64
}

var unreachable = reach{bin: math.MaxInt}

// packing is the search. A state is how many volumes of each kind are placed. For each state the search keeps the least
// reach, once without and once with an Apart volume on the disk of the last bin.
type packing struct {
	kinds  []volumeKind
	states int
	apart  bool // several volumes are apart
	bins   []bin
	groups int
	// ends are the ends of the groups in bins. firsts has, for each kind and group, the first bin of the group that can
	// hold such a volume. nexts has the first such bin of this or a later group.
	ends          []int
	firsts, nexts []int
	// best has the least reach of each state: best[1] with an Apart volume on the disk of the last bin, best[0] without.
	best [2][]reach
	// counts has the volumes of each kind in the present state.
	counts []int
	// steps counts how often a volume was put into a bin.
	steps int
}

// buffers have room for a usual pod. Their content is not cleared between plans.
type buffers struct {
	kinds         [maxExact]volumeKind
	bins          [maxExact * (maxExact + 1)]bin
	ends          [maxExact + 1]int
	firsts, nexts [maxExact * (maxExact + 1)]int
	best          [2][1 << maxExact]reach
	counts        [maxExact]int
}

// exact tries every way to place the volumes, and places them if there is one. The buffers may be nil.
func (p *planner) exact(budget *Budget, b *buffers) outcome {
	if b == nil {
		b = &buffers{}
	}
	s := packing{
		kinds: b.kinds[:0], bins: b.bins[:0], ends: b.ends[:0], firsts: b.firsts[:], nexts: b.nexts[:],
		best: [2][]reach{b.best[0][:], b.best[1][:]}, counts: b.counts[:],
	}
	s.loadKinds(p)
	if s.states > maxStates {
		return gaveUp
	}
	if len(p.order) > maxExact && !budget.take(s.states*len(s.kinds)) {
		return gaveUp
	}
	s.loadBins(p)
	if !s.binsSuffice() {
		return impossible
	}
	s.index()
	s.pack()
	if !s.writePlaces(p) {
		return impossible
	}
	return found
}

// loadKinds groups the volumes that are alike, and counts the states. It stops when there are more than maxStates.
func (s *packing) loadKinds(p *planner) {
	aparts := 0
	for _, i := range p.order {
		if p.requests[i].Apart {
			aparts++
		}
	}
	// One volume with Apart is no constraint.
	s.apart, s.states = aparts > 1, 1
	for at, i := range p.order {
		r := &p.requests[i]
		if last := len(s.kinds) - 1; last >= 0 && s.kinds[last].size == r.Size && s.kinds[last].apart == (s.apart && r.Apart) {
			s.kinds[last].count++
			continue
		}
		s.kinds = append(s.kinds, volumeKind{size: r.Size, apart: s.apart && r.Apart, from: at, count: 1})
	}
	for k := range s.kinds {
		s.kinds[k].stride = s.states
		if s.states *= s.kinds[k].count + 1; s.states > maxStates {
			return
		}
	}
}

// loadBins takes the largest extents, as many as there are volumes. If some are apart, it takes that many of each disk,
// and that many disks. In a group they are sorted by growing length, so that large extents are taken last.
func (s *packing) loadBins(p *planner) {
	n, smallest := len(p.order), s.kinds[len(s.kinds)-1].size
	for d := range p.node.Disks {
		disk := &p.node.Disks[d]
		if disk.Class != p.class {
			continue
		}
		from := 0
		if s.apart {
			from = len(s.bins)
		}
		for i := range disk.Free.Len() {
			if e := disk.Free.At(i); e.Len() >= smallest {
				s.add(bin{group: s.groups, disk: d, start: e.Start, length: e.Len()}, from, n)
			}
		}
		if s.apart && len(s.bins) > from {
			s.ends = append(s.ends, len(s.bins))
			if s.groups++; s.groups > n {
				s.dropSmallestGroup()
			}
		}
	}
	if !s.apart && len(s.bins) > 0 {
		s.groups, s.ends = 1, append(s.ends, len(s.bins))
	}
}

// add keeps the n largest bins from index from on, by growing length, and of equal ones the first.
func (s *packing) add(b bin, from, n int) {
	bins := s.bins[from:]
	if len(bins) == n && b.length <= bins[0].length {
		return
	}
	// The bin goes in front of equal ones, so that the one that came last is dropped first.
	at, _ := slices.BinarySearchFunc(bins, b.length, func(b bin, length int64) int { return cmp.Compare(b.length, length) })
	if len(bins) == n {
		copy(bins, bins[1:at])
		bins[at-1] = b
		return
	}
	s.bins = append(s.bins, bin{})
	bins = s.bins[from:]
	copy(bins[at+1:], bins[at:])
	bins[at] = b
}

// dropSmallestGroup drops the group whose largest bin is the smallest; of equals the last.
func (s *packing) dropSmallestGroup() {
	smallest := 0
	for g := range s.groups {
		if s.bins[s.ends[g]-1].length <= s.bins[s.ends[smallest]-1].length {
			smallest = g
		}
	}
	from, to := 0, s.ends[smallest]
	if smallest > 0 {
		from = s.ends[smallest-1]
	}
	s.bins = slices.Delete(s.bins, from, to)
	s.ends = slices.Delete(s.ends, smallest, smallest+1)
	s.groups--
	for g := smallest; g < s.groups; g++ {
		s.ends[g] -= to - from
	}
	for i := from; i < len(s.bins); i++ {
		s.bins[i].group--
	}
}

// binsSuffice reports whether the bins together are as large as the volumes together.
func (s *packing) binsSuffice() bool {
	var wanted, room int64
	for _, k := range s.kinds {
		for range k.count {
			wanted = AddCapped(wanted, k.size)
		}
	}
	for i := range s.bins {
		room = AddCapped(room, s.bins[i].length)
	}
	return wanted <= room
}

// index finds, for each kind, the first bins that can hold it.
func (s *packing) index() {
	width := s.groups + 1
	s.firsts, s.nexts = sized(s.firsts, len(s.kinds)*width), sized(s.nexts, len(s.kinds)*width)
	for k := range s.kinds {
		row := k * width
		s.nexts[row+s.groups] = len(s.bins)
		for g := s.groups - 1; g >= 0; g-- {
			from, to := 0, s.ends[g]
			if g > 0 {
				from = s.ends[g-1]
			}
			for from < to && s.bins[from].length < s.kinds[k].size {
				from++
			}
			s.firsts[row+g] = from
			if s.nexts[row+g] = from; from == to {
				s.nexts[row+g] = s.nexts[row+g+1]
			}
		}
	}
}

// sized returns n elements, of the buffer if it is large enough.
func sized[T any](buffer []T, n int) []T {
	if n <= len(buffer) {
		return buffer[:n]
	}
	return make([]T, n)
}

// put puts a volume behind the reach: into the same bin if it has room, else into the next bin that has. Another bin of
// the same disk is taken only if Apart permits it.
func (s *packing) put(at reach, apart bool, k int) (reach, bool) {
	s.steps++
	kind, width, later := &s.kinds[k], s.groups+1, 0
	if at.bin >= 0 {
		b := &s.bins[at.bin]
		if !apart || !kind.apart {
			if kind.size <= b.length-at.fill {
				return reach{at.bin, at.fill + kind.size}, apart || kind.apart
			}
			if next := max(at.bin+1, s.firsts[k*width+b.group]); next < s.ends[b.group] {
				return reach{next, kind.size}, apart || kind.apart
			}
		}
		later = b.group + 1
	}
	if next := s.nexts[k*width+later]; next < len(s.bins) {
		return reach{next, kind.size}, kind.apart
	}
	return unreachable, false
}

// less reports whether a packing that ends here leaves more room than one that ends at other.
func (r reach) less(other reach) bool {
	return r.bin < other.bin || r.bin == other.bin && r.fill < other.fill
}

// pack finds the least reach of every state.
func (s *packing) pack() {
	s.best[0], s.best[1] = sized(s.best[0], s.states), sized(s.best[1], s.states)
	s.counts = sized(s.counts, len(s.kinds))
	clear(s.counts)
	s.best[0][0], s.best[1][0] = reach{bin: -1}, unreachable
	for state := 1; state < s.states; state++ {
		for k := range s.kinds {
			if s.counts[k]++; s.counts[k] <= s.kinds[k].count {
				break
			}
			s.counts[k] = 0
		}
		least := [2]reach{unreachable, unreachable}
		for k := range s.kinds {
			if s.counts[k] == 0 {
				continue
			}
			before := state - s.kinds[k].stride
			for flag := range 2 {
				if s.best[flag][before] == unreachable {
					continue
				}
				to, apart := s.put(s.best[flag][before], flag == 1, k)
				into := 0
				if apart {
					into = 1
				}
				if to.less(least[into]) {
					least[into] = to
				}
			}
		}
		s.best[0][state], s.best[1][state] = least[0], least[1]
	}
}

// writePlaces follows the states back from the one in which all volumes are placed, and writes their places. It returns
// false if that state was not reached.
func (s *packing) writePlaces(p *planner) bool {
	state, flag := s.states-1, 0
	if s.best[1][state].less(s.best[0][state]) {
		flag = 1
	}
	if s.best[flag][state] == unreachable {
		return false
	}
	for k := range s.kinds {
		s.counts[k] = s.kinds[k].count
	}
	var buffer [maxExact]int
	binOf := sized(buffer[:], len(p.order))
	for state > 0 {
		k, before := s.last(state, flag)
		s.counts[k]--
		binOf[s.kinds[k].from+s.counts[k]] = s.best[flag][state].bin
		state, flag = state-s.kinds[k].stride, before
	}
	// Within an extent the largest volume comes first.
	for at, request := range p.order {
		b, size := &s.bins[binOf[at]], p.requests[request].Size
		p.places[request] = Assignment{Disk: p.node.Disks[b.disk].ID, Extent: extent.New(b.start, size)}
		b.start += size
	}
	return true
}

// last finds the kind of the volume that was placed last to get to the state, and the flag of the state before.
func (s *packing) last(state, flag int) (k, before int) {
	for k := range s.kinds {
		if s.counts[k] == 0 {
			continue
		}
		for before := range 2 {
			from := s.best[before][state-s.kinds[k].stride]
			if from == unreachable {
				continue
			}
			if to, apart := s.put(from, before == 1, k); to == s.best[flag][state] && apart == (flag == 1) {
				return k, before
			}
		}
	}
	panic("placement: a state without a way to it")
}
