package main

import (
	"fmt"
	"io"
	"math/rand/v2"
	"slices"

	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/units"
)

// Preemption is simulated with these assumptions.
const (
	// priorityShare is the share of the requests that have priority.
	priorityShare = 0.1
	// graceHours is how long a victim takes to end: Kubernetes' default of 30 seconds.
	graceHours = 30. / 3600
	// wipeRate is how many GiB are overwritten in an hour, at 1 GiB a second.
	wipeRate = 3600
)

// volume is one that lies on a disk.
type volume struct {
	slot     int32
	extent   extent.Extent
	priority bool
}

// preemptions is a cluster under a policy in which requests with priority preempt others, and what came of it.
type preemptions struct {
	store *policyStore
	// onDisk are the volumes of each disk by their start, places the places of the slots that have a volume.
	onDisk [][]volume
	places map[int32]place

	// Only of the requests that count.
	priority, others result
	nominated        int
	victims          int
	victimBytes      int64   // GiB
	keptHours        float64 // GiB times hours
}

// result counts requests.
type result struct {
	asked, placed           int
	askedBytes, placedBytes int64 // GiB
}

func (r *result) count(size int32, ok bool) {
	r.asked++
	r.askedBytes += int64(size)
	if ok {
		r.placed++
		r.placedBytes += int64(size)
	}
}

// nomination is a place that is given to a request with priority, and what has to go from it first.
type nomination struct {
	place   place
	victims []volume
	// kept are the GiB of the place that are free already, hours is how long they wait for the rest.
	kept  int64
	hours float64
}

// preempt applies the trace to the store. Which requests have priority depends on the seed alone.
func preempt(t *trace, s *policyStore, seed uint64) (*preemptions, error) {
	p := &preemptions{store: s, onDisk: make([][]volume, t.disks), places: map[int32]place{}}
	r := rand.New(rand.NewPCG(seed, 2))
	for i, e := range t.events {
		if e.size == 0 {
			p.remove(e.slot)
			continue
		}
		priority := r.Float64() < priorityShare
		counts := i >= t.settled
		where, ok, err := s.place(e.size, e.hours)
		if err != nil {
			return nil, err
		}
		if !ok && priority {
			var n nomination
			if n, ok = p.nominate(e.size); ok {
				if where = n.place; counts {
					p.count(n)
				}
				if err := s.take(where); err != nil {
					return nil, err
				}
			}
		}
		if ok {
			p.add(volume{e.slot, where.extent, priority}, where)
		}
		switch {
		case !counts:
		case priority:
			p.priority.count(e.size, ok)
		default:
			p.others.count(e.size, ok)
		}
	}
	return p, nil
}

func (p *preemptions) count(n nomination) {
	p.nominated++
	p.victims += len(n.victims)
	for _, v := range n.victims {
		p.victimBytes += v.extent.Len() / units.GiB
	}
	p.keptHours += float64(n.kept) * n.hours
}

func (p *preemptions) add(v volume, at place) {
	on := p.onDisk[at.disk]
	i, _ := slices.BinarySearchFunc(on, v.extent.Start, func(v volume, start int64) int { return int(v.extent.Start/units.GiB - start/units.GiB) })
	p.onDisk[at.disk] = slices.Insert(on, i, v)
	p.places[v.slot] = at
}

// remove releases the volume of the slot. A slot without one was refused or preempted.
func (p *preemptions) remove(slot int32) {
	at, there := p.places[slot]
	if !there {
		return
	}
	delete(p.places, slot)
	p.onDisk[at.disk] = slices.DeleteFunc(p.onDisk[at.disk], func(v volume) bool { return v.slot == slot })
	p.store.release(at)
}

// nominate preempts volumes without priority for a request that fits nowhere, and returns where it goes then. The place
// itself is still free. Of all runs of neighbors on a disk it takes one with the fewest volumes, of these the one with
// the fewest bytes. kube-scheduler, too, prefers the node with the fewest victims of equal priority.
func (p *preemptions) nominate(size int32) (nomination, bool) {
	var best []volume
	var bestBytes int64
	disk := int32(-1)
	for d := range p.onDisk {
		for _, victims := range runsOf(p.onDisk[d], int64(size)*units.GiB) {
			bytes := totalOf(victims)
			if disk < 0 || len(victims) < len(best) || len(victims) == len(best) && bytes < bestBytes {
				best, bestBytes, disk = victims, bytes, int32(d)
			}
		}
	}
	if disk < 0 {
		return nomination{}, false
	}
	n := nomination{victims: slices.Clone(best), hours: graceHours + float64(bestBytes/units.GiB)/wipeRate}
	before := p.store.disk(disk).Free
	for _, v := range n.victims {
		p.remove(v.slot)
	}
	var ok bool
	if n.place, ok = p.store.policy.choose(p.store.cluster, p.store.rand, size); !ok {
		panic("the request does not fit where its victims were")
	}
	n.kept = before.Intersect(extent.NewSet(n.place.extent)).Total() / units.GiB
	if n.place.disk != disk {
		panic("the request went to a disk without victims")
	}
	return n, true
}

// runsOf returns for each start the shortest run of neighbors without priority whose removal leaves that many bytes in
// one piece.
func runsOf(on []volume, want int64) [][]volume {
	var runs [][]volume
	for first := range on {
		from := int64(0)
		if first > 0 {
			from = on[first-1].extent.End
		}
		for last := first; last < len(on) && !on[last].priority; last++ {
			to := int64(diskSize) * units.GiB
			if last+1 < len(on) {
				to = on[last+1].extent.Start
			}
			if to-from >= want {
				runs = append(runs, on[first:last+1])
				break
			}
		}
	}
	return runs
}

func totalOf(volumes []volume) (bytes int64) {
	for _, v := range volumes {
		bytes += v.extent.Len()
	}
	return bytes
}

// comparePreemption shows what preemption costs, and how much is kept for nominated pods meanwhile.
func (p *plan) comparePreemption(w io.Writer) error {
	fmt.Fprintf(w, "### Preemption, %d nodes, %.0f %% of the requests have priority\n\n", p.small.nodes, 100*priorityShare)
	fmt.Fprintf(w, "| policy, demand | priority: bytes placed | others: bytes placed | preempted later | preemptors, of all requests | victims of each | kept for nominated pods, of all bytes |\n")
	fmt.Fprintf(w, "|---|---|---|---|---|---|---|\n")
	for _, demand := range []float64{demandOfTarget, 1} {
		s := scenario{&workloads[0], p.small.nodes, demand, p.small.turnovers, p.seed}
		t := s.record()
		hours := t.days * 24 * (1 - 1./settling)
		for i := range policies {
			m, err := preempt(t, &policyStore{newCluster(t.disks), &policies[i], rand.New(rand.NewPCG(p.seed, 1))}, p.seed)
			if err != nil {
				return fmt.Errorf("%s: %w", policies[i].name, err)
			}
			fmt.Fprintf(w, "| %s, %.0f %% | %s | %s | %s | %.3f %% | %.2f | %.4f %% |\n", policies[i].name, 100*demand,
				percent(part(m.priority.placedBytes, m.priority.askedBytes)), percent(part(m.others.placedBytes, m.others.askedBytes)),
				percent(part(m.victimBytes, m.others.askedBytes)),
				100*part(m.nominated, m.priority.asked+m.others.asked), float64(m.victims)/float64(max(1, m.nominated)),
				100*m.keptHours/(hours*float64(t.disks)*diskSize))
		}
	}
	fmt.Fprintln(w)
	return nil
}
