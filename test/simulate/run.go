package main

import (
	"math/rand/v2"

	"github.com/berthdev/berth/test/units"
)

// large is the size in GiB of the volumes that are hard to place.
const large = 1024

// measure is the result of a policy.
type measure struct {
	policy string
	// Only of the requests that count.
	asked, placed           int
	askedBytes, placedBytes int64 // GiB
	askedLarge, placedLarge int
	points                  []point
}

// point is the state at one moment.
type point struct {
	hours    float64
	counts   bool    // the policies have settled
	fill     float64 // used, of all bytes
	stranded float64 // free bytes in extents below the median size, of all free bytes
	// largest is the mean, over the nodes, of the node's largest extent, in GiB.
	largest float64
	roomFor int     // that many volumes of large GiB would fit
	placed  float64 // bytes placed since the last point, of those requested
}

// store is where volumes go: a cluster under a policy, or the pool.
type store interface {
	place(size int32, hours float64) (place, bool, error)
	release(place)
	look(*point)
}

// run applies the trace to the store. It fails when a policy breaks the rules.
func run(t *trace, name string, s store) (*measure, error) {
	m := &measure{policy: name}
	places := make([]place, t.slots)
	here := make([]bool, t.slots)
	next := 0
	var asked, placed int64
	for i, e := range t.events {
		for next < len(t.samples) && t.samples[next].at == i {
			p := point{hours: t.samples[next].hours, counts: i >= t.settled, placed: part(placed, asked)}
			asked, placed = 0, 0
			s.look(&p)
			m.points = append(m.points, p)
			next++
		}
		if e.size == 0 {
			if here[e.slot] {
				s.release(places[e.slot])
			}
			continue
		}
		where, ok, err := s.place(e.size, e.hours)
		if err != nil {
			return nil, err
		}
		places[e.slot], here[e.slot] = where, ok
		asked += int64(e.size)
		if ok {
			placed += int64(e.size)
		}
		if i >= t.settled {
			m.count(e.size, ok)
		}
	}
	return m, nil
}

func (m *measure) count(size int32, ok bool) {
	m.asked++
	m.askedBytes += int64(size)
	if size >= large {
		m.askedLarge++
	}
	if !ok {
		return
	}
	m.placed++
	m.placedBytes += int64(size)
	if size >= large {
		m.placedLarge++
	}
}

// mean is the mean of a figure over the points that count.
func (m *measure) mean(of func(*point) float64) float64 {
	var sum float64
	n := 0
	for i := range m.points {
		if m.points[i].counts {
			sum += of(&m.points[i])
			n++
		}
	}
	return part(sum, float64(n))
}

// part is a/b, or 1 when nothing was requested.
func part[T int | int64 | float64](a, b T) float64 {
	if b == 0 {
		return 1
	}
	return float64(a) / float64(b)
}

// policyStore is a cluster under a policy.
type policyStore struct {
	*cluster
	policy *policy
	rand   *rand.Rand
}

func (s *policyStore) place(size int32, hours float64) (place, bool, error) {
	s.hours = hours
	p, ok := s.policy.choose(s.cluster, s.rand, size)
	if !ok {
		return p, false, nil
	}
	return p, true, s.take(p)
}

func (s *policyStore) look(p *point) {
	var free, stranded, largest int64
	for n := range s.nodes {
		var longest int64
		for d := range s.nodes[n].Disks {
			for _, e := range s.nodes[n].Disks[d].Free.All() {
				size := e.Len() / units.GiB
				free += size
				if size < medianSize {
					stranded += size
				}
				longest = max(longest, size)
				p.roomFor += int(size / large)
			}
		}
		largest += longest
	}
	p.finish(len(s.nodes), s.used, free, stranded, largest)
}

// poolStore is the bound.
type poolStore struct{ *pool }

func (s poolStore) place(size int32, _ float64) (place, bool, error) {
	p, ok := s.pool.place(size)
	return p, ok, nil
}

func (s poolStore) release(p place) { s.add(p.disk, int32(p.extent.Len()/units.GiB)) }

func (s poolStore) look(p *point) {
	var free, stranded, largest int64
	for d, size := range s.of {
		free += int64(size)
		if size < medianSize {
			stranded += int64(size)
		}
		p.roomFor += int(size / large)
		if d%disksPerNode == disksPerNode-1 {
			var longest int32
			for _, other := range s.of[d+1-disksPerNode : d+1] {
				longest = max(longest, other)
			}
			largest += int64(longest)
		}
	}
	p.finish(len(s.of)/disksPerNode, s.used, free, stranded, largest)
}

func (p *point) finish(nodes int, used, free, stranded, largest int64) {
	p.fill = float64(used) / float64(int64(nodes)*disksPerNode*diskSize)
	if free > 0 {
		p.stranded = float64(stranded) / float64(free)
	}
	p.largest = float64(largest) / float64(nodes)
}
