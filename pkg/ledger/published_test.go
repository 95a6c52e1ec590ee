package ledger

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/units"
)

// TestPublicationsShareDisks publishes random capacities, mostly with one changed disk. Some contradict themselves, and
// some disks move from node to node. It asserts that the ledger is the same as without sharing: Validate computes it
// from the start.
func TestPublicationsShareDisks(t *testing.T) {
	const nodes, steps = 3, 4000
	rng := rand.New(rand.NewPCG(5, 5))
	l := New()
	now := make([][]Disk, nodes)
	var shared, contradictory, superseded int
	for step := range steps {
		i := rng.IntN(nodes)
		name := fmt.Sprint("n", i)
		switch r := rng.IntN(20); {
		case r < 14:
			before := l.Snapshot(name).published
			now[i] = changed(rng, now[i], slices.Concat(now...))
			c := &Capacity{Revision: uint64(step + 1), Disks: slices.Clone(now[i])}
			if !l.SetCapacity(name, c) {
				t.Fatalf("step %d: a new revision changed nothing", step)
			}
			got, want := l.Snapshot(name).published, newPublished(c, nil)
			if (got.problem == "") != (want.problem == "") {
				t.Fatalf("step %d: the problem is %q, want %q", step, got.problem, want.problem)
			}
			// Which of several contradictions is named first may depend on the publication before.
			got = &published{disks: got.disks, wiping: got.wiping, diskIDs: got.diskIDs, problem: want.problem}
			if !reflect.DeepEqual(got, want) {
				t.Fatalf("step %d: got\n%+v, want\n%+v", step, got, want)
			}
			if want.problem != "" {
				contradictory++
			}
			for _, d := range got.disks {
				if before.disk(d.ID) == d {
					shared++
				}
			}
		case r < 17:
			l.SetPod(fmt.Sprint("u", rng.IntN(20)), name, []Record{recordOf(rng), recordOf(rng)})
		case r < 18:
			l.Doubt(fmt.Sprint("u", rng.IntN(20)))
		case r < 19:
			l.DeletePod(fmt.Sprint("u", rng.IntN(20)))
		default:
			now[i] = nil
			l.DeleteCapacity(name, uint64(step+1))
		}
		superseded += len(l.alsoPublishedBy)
		if err := l.Validate(); err != nil {
			t.Fatalf("step %d: %v", step, err)
		}
	}
	if shared < steps/2 || contradictory < steps/20 || contradictory > steps/2 || superseded < steps/20 {
		t.Errorf("%d disks were shared, %d capacities contradictory, %d partitions on two nodes: the test tests too little", shared, contradictory, superseded)
	}
}

// recordOf is a record of one of few partitions, so that it is often published.
func recordOf(rng *rand.Rand) Record {
	disk := rng.IntN(4)
	return Record{fmt.Sprintf("p%d-%d", disk, rng.IntN(4)), fmt.Sprint("d", disk), at(int64(rng.IntN(8)), int64(1+rng.IntN(2)))}
}

// changed are the disks with one of them made again, taken away, or added.
func changed(rng *rand.Rand, disks, all []Disk) []Disk {
	disks = slices.Clone(disks)
	switch r := rng.IntN(12); {
	case r == 0 && len(disks) > 0:
		return slices.Delete(disks, 0, 1)
	case r == 1 && len(all) > 0:
		// A disk of any node, also of this one.
		if d := all[rng.IntN(len(all))]; len(disks) < 5 {
			return append(disks, d)
		}
	case r == 2:
		return disks
	}
	id := rng.IntN(4)
	d := Disk{ID: fmt.Sprint("d", id), Class: class, Ready: rng.IntN(10) > 0, Size: 100 * units.GiB}
	for start := range int64(8) {
		switch rng.IntN(4) {
		case 0:
			d.Free = append(d.Free, at(start, 1))
		case 1, 2:
			a := Allocation{Partition: fmt.Sprintf("p%d-%d", id, len(d.Allocations)), Extent: at(start, 1), Wiping: rng.IntN(5) == 0}
			if rng.IntN(60) == 0 {
				a.Partition = fmt.Sprintf("p%d-%d", rng.IntN(4), rng.IntN(4))
			}
			if rng.IntN(60) == 0 {
				a.Extent = extent.New(a.Extent.Start-1<<30, a.Extent.Len())
			}
			d.Allocations = append(d.Allocations, a)
		}
	}
	if i := slices.IndexFunc(disks, func(o Disk) bool { return o.ID == d.ID }); i >= 0 {
		disks[i] = d
		return disks
	}
	return append(disks, d)
}
