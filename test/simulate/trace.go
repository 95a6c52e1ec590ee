package main

import (
	"math/rand/v2"
)

// event is a request, or with size 0 the end of a volume's life. Slots of volumes are reused.
type event struct {
	slot int32
	size int32 // GiB
	// hours is the lifetime of a requested volume, which only an oracle knows in advance.
	hours float64
	// grows is set if the volume exists and wants to have that size.
	grows bool
}

// trace is the sequence of events that all policies get.
type trace struct {
	disks  int // two per node
	events []event
	slots  int // highest number of volumes at once
	// samples are the times at which to measure: before the event with this index.
	samples []sample
	// settled is the first event that counts.
	settled int
	days    float64
}

type sample struct {
	at    int
	hours float64
}

// scenario is the plan of a trace.
type scenario struct {
	workload  *workload
	nodes     int
	target    float64 // demand as a part of all bytes
	turnovers float64 // how often all bytes change hands
	seed      uint64
}

const (
	disksPerNode = 2
	numSamples   = 120
	settling     = 4 // the first 1/settling of the time does not count: the disks begin empty
)

// record makes the trace. A request comes whenever the demand is below the target.
func (s *scenario) record() *trace { return s.recordWith(nil) }

// recordGrowing makes a trace of volumes that also ask to grow. What they want more is a part of the demand.
func (s *scenario) recordGrowing() *trace {
	return s.recordWith(&wishes{rand: rand.New(rand.NewPCG(s.seed, 3))})
}

func (s *scenario) recordWith(growth *wishes) *trace {
	r := rand.New(rand.NewPCG(s.seed, uint64(s.nodes)))
	t := &trace{disks: s.nodes * disksPerNode}
	target := int64(s.target * float64(int64(t.disks)*diskSize))
	end := s.turnovers * s.workload.turnover
	t.days = end / 24

	var due moments
	var demand int64
	var sizes, unused []int32
	ask := func(now float64, life func(*rand.Rand) float64) {
		var slot int32
		if n := len(unused); n > 0 {
			slot, unused = unused[n-1], unused[:n-1]
		} else {
			slot = int32(len(sizes))
			sizes = append(sizes, 0)
		}
		size := s.workload.size(r)
		sizes[slot] = size
		demand += int64(size)
		hours := life(r)
		t.events = append(t.events, event{slot: slot, size: size, hours: hours})
		due.push(moment{at: now + hours, slot: slot})
		growth.plan(&due, now, slot, now+hours)
	}
	for demand < target {
		ask(0, s.workload.rest)
	}
	for {
		e := due.pop()
		for next := len(t.samples); next < numSamples && float64(next)*end/numSamples <= min(e.at, end); next++ {
			t.samples = append(t.samples, sample{len(t.events), float64(next) * end / numSamples})
		}
		if t.settled == 0 && e.at >= end/settling {
			t.settled = len(t.events)
		}
		if e.at >= end {
			break
		}
		if e.grows {
			if size := growth.size(sizes[e.slot]); size > sizes[e.slot] {
				t.events = append(t.events, event{slot: e.slot, size: size, grows: true})
				demand += int64(size - sizes[e.slot])
				sizes[e.slot] = size
			}
			growth.plan(&due, e.at, e.slot, e.end)
			continue
		}
		t.events = append(t.events, event{slot: e.slot})
		demand -= int64(sizes[e.slot])
		unused = append(unused, e.slot)
		for demand < target {
			ask(e.at, s.workload.life)
		}
	}
	t.slots = len(sizes)
	return t
}

// moment is when a volume's life is over or, with grows, when it asks to grow.
type moment struct {
	at    float64
	slot  int32
	grows bool
	end   float64 // of the life of a volume that asks to grow
}

func (m moment) before(other moment) bool {
	return m.at < other.at || m.at == other.at && m.slot < other.slot
}

// moments is a heap, the earliest first.
type moments []moment

func (h *moments) push(m moment) {
	*h = append(*h, m)
	s := *h
	i := len(s) - 1
	for i > 0 && m.before(s[(i-1)/2]) {
		s[i] = s[(i-1)/2]
		i = (i - 1) / 2
	}
	s[i] = m
}

func (h *moments) pop() moment {
	s := *h
	first, m := s[0], s[len(s)-1]
	s = s[:len(s)-1]
	*h = s
	if len(s) == 0 {
		return first
	}
	i := 0
	for {
		child := 2*i + 1
		if child >= len(s) {
			break
		}
		if child+1 < len(s) && s[child+1].before(s[child]) {
			child++
		}
		if !s[child].before(m) {
			break
		}
		s[i] = s[child]
		i = child
	}
	s[i] = m
	return first
}
