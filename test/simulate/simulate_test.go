package main

import (
	"bytes"
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/ledger"
	"github.com/berthdev/berth/pkg/placement"
	"github.com/berthdev/berth/test/units"
)

// TestSameSeedSameOutput asserts that the same seed gives the same output, also when the policies run in another order.
func TestSameSeedSameOutput(t *testing.T) {
	output := func(seed uint64, parallel int) string {
		directory := t.TempDir()
		p := plan{
			seed: seed, parallel: parallel, plots: directory,
			clusters: []clusterSize{{10, 1}, {110, 0.1}}, small: clusterSize{5, 0.3}, full: clusterSize{8, 0.2}, demands: []float64{0.8, 1},
		}
		var out bytes.Buffer
		if err := p.report(&out); err != nil {
			t.Fatal(err)
		}
		files, err := filepath.Glob(filepath.Join(directory, "*.svg"))
		if err != nil || len(files) != 5 {
			t.Fatalf("%d plots, want 5 (%v)", len(files), err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if bytes.Contains(text, []byte("NaN")) || bytes.Contains(text, []byte("Inf")) || bytes.Contains(text, []byte(">-")) {
				t.Errorf("%s has points or marks that are nowhere", file)
			}
			out.Write(text)
		}
		return out.String()
	}
	first := output(7, 1)
	if output(7, 4) != first {
		t.Error("the same seed gave another output")
	}
	if output(8, 4) == first {
		t.Error("another seed gave the same output: nothing is random")
	}
}

// TestTarget asserts that Berth meets its target, in the cluster where that is hardest.
func TestTarget(t *testing.T) {
	p := plan{seed: 1, parallel: 2}
	_, measures, err := p.simulate(&workloads[0], clusterSize{100, 1}, demandOfTarget, policies)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range measures {
		t.Logf("%-32s placed %d of %d, %.4f of the bound's requests, %.4f of its bytes", m.policy, m.placed, m.asked,
			part(m.placed, measures[0].placed), part(m.placedBytes, measures[0].placedBytes))
	}
	if ratio := part(measures[1].placed, measures[0].placed); ratio < target {
		t.Errorf("BestFit admits %.4f of the requests that the bound admits, want %.2f", ratio, target)
	}
	for _, m := range measures[2:] {
		if m.placedBytes > measures[1].placedBytes {
			t.Errorf("%s places more bytes than BestFit: it deserves to be the default", m.policy)
		}
	}
}

// witness is a store that checks another one after every step, with its own list of the volumes on every disk.
type witness struct {
	t *testing.T
	*policyStore
	volumes        [][]extent.Extent // by disk
	placed, denied int
}

func (w *witness) place(size int32, hours float64) (place, bool, error) {
	before := w.used
	p, ok, err := w.policyStore.place(size, hours)
	if err != nil {
		return p, ok, err
	}
	if !ok {
		w.denied++
		for d := range w.volumes {
			if free := w.disk(int32(d)).Free.Largest().Len(); free >= int64(size)*units.GiB {
				w.t.Fatalf("refused %d GiB, although disk %d has %d GiB in one piece", size, d, free/units.GiB)
			}
		}
		return p, ok, nil
	}
	w.placed++
	if p.extent.Len() != int64(size)*units.GiB || p.extent.Start < 0 || p.extent.End > diskSize*units.GiB || p.extent.Start%placement.Alignment != 0 {
		w.t.Fatalf("%d GiB placed at %v of disk %d", size, p.extent, p.disk)
	}
	for _, other := range w.volumes[p.disk] {
		if other.Overlaps(p.extent) {
			w.t.Fatalf("a volume at %v of disk %d overlaps one at %v", p.extent, p.disk, other)
		}
	}
	w.volumes[p.disk] = append(w.volumes[p.disk], p.extent)
	if w.used != before+int64(size) {
		w.t.Fatalf("%d GiB used after %d and a volume of %d", w.used, before, size)
	}
	w.check(p.disk)
	return p, ok, nil
}

func (w *witness) release(p place) {
	at := slices.Index(w.volumes[p.disk], p.extent)
	w.volumes[p.disk] = slices.Delete(w.volumes[p.disk], at, at+1)
	w.policyStore.release(p)
	w.check(p.disk)
}

// check asserts that the free space of the disk is what is not used, and that all of it is in the indexes.
func (w *witness) check(d int32) {
	free := w.disk(d).Free
	if want := extent.NewSet(extent.New(0, diskSize*units.GiB)).Subtract(extent.NewSet(w.volumes[d]...)); !free.Equal(want) {
		w.t.Fatalf("disk %d has %v free, want %v", d, free, want)
	}
	for _, e := range free.All() {
		if _, there := slices.BinarySearch(w.extents.buckets[e.Len()/units.GiB], keyOf(d, e)); !there {
			w.t.Fatalf("extent %v of disk %d is not in the index", e, d)
		}
	}
	if got, want := w.firstDisk.tree[w.firstDisk.leaves+int(d)], int32(free.Largest().Len()/units.GiB); got != want {
		w.t.Fatalf("the largest extent of disk %d is %d GiB in the index, want %d", d, got, want)
	}
	if got, want := int64(w.freeOf[d])*units.GiB, free.Total(); got != want {
		w.t.Fatalf("%d bytes of disk %d are free in the index, want %d", got, d, want)
	}
}

// TestNoOverlap asserts that no policy places volumes on each other, with more volumes than the disks hold.
func TestNoOverlap(t *testing.T) {
	s := scenario{&workloads[0], 5, 1.1, 2, 5}
	trace := s.record()
	for _, p := range slices.Concat(policies, candidates, ideas) {
		t.Run(p.name, func(t *testing.T) {
			w := &witness{
				t: t, volumes: make([][]extent.Extent, trace.disks),
				policyStore: &policyStore{newCluster(trace.disks), &p, rand.New(rand.NewPCG(1, 2))},
			}
			if _, err := run(trace, p.name, w); err != nil {
				t.Fatal(err)
			}
			indexed := 0
			for _, bucket := range w.extents.buckets {
				indexed += len(bucket)
			}
			extents := 0
			for d := range w.volumes {
				extents += w.disk(int32(d)).Free.Len()
			}
			if indexed != extents {
				t.Errorf("the index has %d extents, the disks %d", indexed, extents)
			}
			t.Logf("%d volumes placed, %d refused", w.placed, w.denied)
			if w.placed == 0 || w.denied == 0 {
				t.Error("the disks were never full, or nothing was placed: this proves nothing")
			}
		})
	}
}

// TestPoolIsNeverOverfull asserts that the bound has as many bytes as the disks.
func TestPoolIsNeverOverfull(t *testing.T) {
	s := scenario{&workloads[0], 5, 1.1, 2, 5}
	trace := s.record()
	p := newPool(trace.disks)
	m, err := run(trace, bound, poolStore{p})
	if err != nil {
		t.Fatal(err)
	}
	var free int64
	for d, size := range p.of {
		if size < 0 || size > diskSize {
			t.Errorf("disk %d has %d GiB free", d, size)
		}
		free += int64(size)
	}
	if free+p.used != int64(trace.disks)*diskSize {
		t.Errorf("%d GiB free and %d used of %d", free, p.used, trace.disks*diskSize)
	}
	if m.placed == m.asked {
		t.Error("the disks were never full: this proves nothing")
	}
}

// TestPoliciesAreTheSchedulers asserts that the chosen place is on the node that the ledger returns first.
func TestPoliciesAreTheSchedulers(t *testing.T) {
	for p, policy := range map[int]placement.Policy{0: placement.BestFit, 1: placement.Spread} {
		t.Run(policies[p].name, func(t *testing.T) { isTheSchedulers(t, &policies[p], policy) })
	}
}

func isTheSchedulers(t *testing.T, p *policy, policy placement.Policy) {
	s := scenario{&workloads[0], 120, 0.9, 0.2, 3}
	trace := s.record()
	store := &policyStore{newCluster(trace.disks), p, rand.New(rand.NewPCG(1, 1))}
	if _, err := run(trace, p.name, store); err != nil {
		t.Fatal(err)
	}
	l := ledger.New()
	// The nodes are numbered in the order in which the ledger takes equal ones.
	names := make([]string, len(store.nodes))
	for n := range names {
		names[n] = fmt.Sprintf("node-%03d", n)
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Compare(placement.NodeRank(a), placement.NodeRank(b)) })
	for n := range store.nodes {
		c := &ledger.Capacity{Revision: uint64(n + 1)}
		for _, d := range store.nodes[n].Disks {
			// Disk IDs are unique in the ledger, while the simulator numbers the disks of each node alike.
			disk := ledger.Disk{ID: names[n] + "/" + d.ID, Class: d.Class, Ready: true, Size: (diskSize + 1) * units.GiB}
			// The first MiB of a disk is never free, so everything is shifted by it.
			for _, e := range d.Free.All() {
				disk.Free = append(disk.Free, extent.New(e.Start+units.GiB, e.Len()))
			}
			c.Disks = append(c.Disks, disk)
		}
		l.SetCapacity(names[n], c)
		if problem := l.Snapshot(names[n]).Problem; problem != "" {
			t.Fatalf("the ledger does not believe node %d: %s", n, problem)
		}
	}
	if err := l.Validate(); err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(9, 9))
	fits, refusals := 0, 0
	for range 2000 {
		size := workloads[0].size(r)
		request := placement.Request{Class: class, Size: int64(size) * units.GiB, Policy: policy}
		nearest := ""
		for name := range l.BestNodes([]placement.Request{request}) {
			nearest = name
			break
		}
		have, ok := p.choose(store.cluster, r, size)
		if ok != (nearest != "") {
			t.Fatalf("%d GiB fit: %v, but the ledger hands out %q", size, ok, nearest)
		}
		if !ok {
			refusals++
			continue
		}
		fits++
		want := store.planOn(int32(slices.Index(names, nearest)), request)
		if have != want {
			t.Fatalf("%d GiB: placed at %v, the ledger and Plan say %v", size, have, want)
		}
	}
	t.Logf("%d fit, %d do not", fits, refusals)
	if fits == 0 || policy == placement.Spread && refusals == 0 {
		t.Error("everything fits, or nothing: this shows little")
	}
}

// TestWorkload asserts that the sizes and lifetimes match the published figures.
func TestWorkload(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	const n = 100_000
	for _, w := range workloads {
		var sum, lives, short, shortSum float64
		for range n {
			size := w.size(r)
			if size < 1 || size > diskSize {
				t.Fatalf("%s: a volume of %d GiB", w.name, size)
			}
			sum += float64(size)
			life := w.life(r)
			lives += life
			if life < 1 {
				short++
				shortSum += life
			}
		}
		t.Logf("%-30s mean size %.0f GiB, mean life %.1f h, %.1f %% below an hour with %.2f %% of the time", w.name, sum/n, lives/n, 100*short/n, 100*shortSum/lives)
		if w.name != "cloud" {
			continue
		}
		// Volumes larger than a disk are left out, which lowers the mean a little.
		if mean := sum / n; math.Abs(mean/meanSize-1) > 0.1 {
			t.Errorf("mean size is %.0f GiB, want %.0f", mean, meanSize)
		}
		if share := short / n; math.Abs(share-0.88) > 0.005 {
			t.Errorf("%.3f live for less than an hour, want 0.88", share)
		}
		if share := shortSum / lives; math.Abs(share-0.02) > 0.002 {
			t.Errorf("they use %.4f of the time, want 0.02", share)
		}
		if math.Abs(lives/n/w.meanLife-1) > 0.02 {
			t.Errorf("mean life is %.2f h, want %.2f", lives/n, w.meanLife)
		}
	}
}

// TestInParallel asserts that all are done, however many at once, and that the error is the first by number.
func TestInParallel(t *testing.T) {
	for _, parallel := range []int{0, 1, 3} {
		p := plan{parallel: parallel}
		done := make([]bool, 20)
		err := p.inParallel(len(done), func(i int) error {
			done[i] = true
			if i >= 7 {
				return fmt.Errorf("number %d", i)
			}
			return nil
		})
		if err == nil || err.Error() != "number 7" || slices.Contains(done, false) {
			t.Errorf("%d at once: %v, done %v", parallel, err, done)
		}
	}
}

// TestIndexes compares the indexes with a list.
func TestIndexes(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 4))
	const sizes = 300
	x, first := newBySize(sizes), newFirstOf(50)
	values := make([]int, 50)
	for range 20_000 {
		i, now := r.IntN(len(values)), r.IntN(sizes+1)
		if values[i] > 0 {
			x.remove(values[i], uint64(i))
		}
		if values[i] = now; now > 0 {
			x.insert(now, uint64(i))
		}
		first.set(i, int32(now))
		want := 1 + r.IntN(sizes)
		above, below, at := -1, -1, -1
		for i, value := range values {
			if value >= want && (above < 0 || value < above) {
				above = value
			}
			if value > 0 && value <= want {
				below = max(below, value)
			}
			if value >= want && at < 0 {
				at = i
			}
		}
		if got := x.from(want); got != above {
			t.Fatalf("from %d: %d, want %d", want, got, above)
		}
		if got := x.upTo(want); got != below {
			t.Fatalf("up to %d: %d, want %d", want, got, below)
		}
		if got := first.atLeast(int32(want)); got != at {
			t.Fatalf("first of at least %d: %d, want %d", want, got, at)
		}
	}
}
