package main

import (
	"math/rand/v2"
	"testing"

	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/units"
)

// gibs is an extent in GiB.
func gibs(start, length int64) extent.Extent { return extent.New(start*units.GiB, length*units.GiB) }

// filled is one node with volumes in the order of the sizes. Each disk is full except for the gaps of negative sizes.
func filled(t *testing.T, disks [disksPerNode][]int64, withPriority ...int32) *preemptions {
	t.Helper()
	p := &preemptions{
		store:  &policyStore{newCluster(disksPerNode), &policies[0], rand.New(rand.NewPCG(1, 1))},
		onDisk: make([][]volume, disksPerNode), places: map[int32]place{},
	}
	slot := int32(0)
	for d, sizes := range disks {
		at := int64(0)
		for _, size := range sizes {
			if size < 0 {
				at -= size
				continue
			}
			where := place{int32(d), gibs(at, size)}
			if err := p.store.take(where); err != nil {
				t.Fatal(err)
			}
			v := volume{slot: slot, extent: where.extent}
			for _, s := range withPriority {
				v.priority = v.priority || s == slot
			}
			p.add(v, where)
			at += size
			slot++
		}
		if at != diskSize {
			t.Fatalf("disk %d has %d GiB", d, at)
		}
	}
	return p
}

// TestNominate asserts which volumes are preempted, and how much is kept until they are wiped.
func TestNominate(t *testing.T) {
	// The slots of the volumes are 0, 1, 2 on the first disk and 3, 4, 5 on the second.
	disks := [disksPerNode][]int64{{1000, -76, 1500, 1000}, {2000, 800, -376, 400}}
	for name, test := range map[string]struct {
		size         int32
		withPriority []int32
		victims      []int32
		kept         int64
	}{
		"the fewest bytes of one volume":     {700, nil, []int32{5}, 376},
		"one volume before fewer bytes":      {1570, nil, []int32{1}, 76},
		"two neighbors":                      {2500, nil, []int32{0, 1}, 76},
		"no volume with priority":            {700, []int32{5, 0}, []int32{4}, 0},
		"nothing where all have priority":    {700, []int32{0, 1, 2, 3, 4, 5}, nil, 0},
		"nothing if the disk is too small":   {diskSize + 1, nil, nil, 0},
		"no run with priority in the middle": {2500, []int32{1, 4}, nil, 0},
	} {
		t.Run(name, func(t *testing.T) {
			p := filled(t, disks, test.withPriority...)
			used := p.store.used
			n, ok := p.nominate(test.size)
			if ok != (test.victims != nil) || len(n.victims) != len(test.victims) {
				t.Fatalf("%+v, want victims %v", n, test.victims)
			}
			if !ok {
				return
			}
			var bytes int64
			for i, v := range n.victims {
				bytes += v.extent.Len() / units.GiB
				if _, there := p.places[v.slot]; v.slot != test.victims[i] || there {
					t.Errorf("victim %d is %d (still there: %t), want %v", i, v.slot, there, test.victims)
				}
			}
			if n.kept != test.kept || n.hours != graceHours+float64(bytes)/wipeRate {
				t.Errorf("%d GiB are kept for %f hours, want %d", n.kept, n.hours, test.kept)
			}
			if p.store.used != used-bytes || n.place.extent.Len() != int64(test.size)*units.GiB || p.store.take(n.place) != nil {
				t.Errorf("the place %+v is not free, or not what was asked for", n.place)
			}
		})
	}
}

// TestPreempt asserts for a whole trace that no two volumes overlap, that only requests without priority are preempted,
// and that the counts are those of the trace.
func TestPreempt(t *testing.T) {
	s := scenario{&workloads[0], 5, 1, 0.5, 3}
	trace := s.record()
	for i := range policies {
		store := &policyStore{newCluster(trace.disks), &policies[i], rand.New(rand.NewPCG(3, 1))}
		p, err := preempt(trace, store, 3)
		if err != nil {
			t.Fatalf("%s: %v", policies[i].name, err)
		}
		if p.nominated == 0 || p.victims < p.nominated || p.keptHours <= 0 {
			t.Errorf("%s: %d preemptors, %d victims, %f GiB hours kept: this trace is too small", policies[i].name, p.nominated, p.victims, p.keptHours)
		}
		requests, volumes := 0, 0
		for _, e := range trace.events[trace.settled:] {
			if e.size > 0 {
				requests++
			}
		}
		if p.priority.asked+p.others.asked != requests {
			t.Errorf("%s: %d requests, want %d", policies[i].name, p.priority.asked+p.others.asked, requests)
		}
		for d, on := range p.onDisk {
			end := int64(0)
			for _, v := range on {
				if v.extent.Start < end || store.disk(int32(d)).Free.Overlaps(v.extent) {
					t.Errorf("%s: volume %+v of disk %d overlaps", policies[i].name, v, d)
				}
				end = v.extent.End
				volumes++
			}
		}
		if volumes != len(p.places) {
			t.Errorf("%s: %d volumes on disks, %d places", policies[i].name, volumes, len(p.places))
		}
	}
}
