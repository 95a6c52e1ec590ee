package ledger

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/placement"
	"github.com/berthdev/berth/test/units"
)

// ten is a node with one disk of 10 GiB in one free extent, less what is allocated.
func ten(revision uint64, allocations ...Allocation) *Capacity {
	free := extent.NewSet(extent.Extent{Start: 1 << 20, End: 10*units.GiB + 1<<20})
	for _, a := range allocations {
		free = free.Remove(a.Extent)
	}
	d := Disk{ID: diskID, Class: class, Ready: true, Size: 11 * units.GiB, Allocations: allocations}
	for _, e := range free.All() {
		d.Free = append(d.Free, e)
	}
	return &Capacity{Revision: revision, Disks: []Disk{d}}
}

func at(startGiB, lengthGiB int64) extent.Extent {
	return extent.New(startGiB*units.GiB+1<<20, lengthGiB*units.GiB)
}

func one(sizeGiB int64) []placement.Request {
	return []placement.Request{{Class: class, Size: sizeGiB * units.GiB}}
}

func (l *Ledger) mustReserve(t *testing.T, uid string, sizeGiB int64) Record {
	t.Helper()
	records, err := l.Reserve(uid, nodeName, wants([]string{"part-" + uid}, one(sizeGiB)))
	if err != nil {
		t.Fatalf("reserving %d GiB for %s: %v", sizeGiB, uid, err)
	}
	return records[0]
}

func (l *Ledger) wantFree(t *testing.T, when string, wantGiB int64) {
	t.Helper()
	if err := l.Validate(); err != nil {
		t.Fatalf("%s: %v", when, err)
	}
	var free int64
	for _, d := range l.Snapshot(nodeName).Node.Disks {
		free += d.Free.Total()
	}
	if free != wantGiB*units.GiB {
		t.Fatalf("%s: %d GiB free, want %d", when, free/units.GiB, wantGiB)
	}
}

// TestRaces asserts the outcome of each race in the package comment.
func TestRaces(t *testing.T) {
	tests := map[string]func(t *testing.T, l *Ledger){
		"reserved, then the bound pod's event, then the capacity": func(t *testing.T, l *Ledger) {
			r := l.mustReserve(t, "a", 4)
			l.wantFree(t, "reserved", 6)
			l.SetPod("a", nodeName, []Record{r})
			l.wantFree(t, "the pod's event", 6)
			l.SetCapacity(nodeName, ten(2, Allocation{Partition: r.Partition, Extent: r.Extent}))
			l.wantFree(t, "published", 6)
			l.SetPod("a", nodeName, []Record{r})
			l.wantFree(t, "the pod's event once more", 6)
		},
		"the capacity comes before the pod's event": func(t *testing.T, l *Ledger) {
			r := l.mustReserve(t, "a", 4)
			l.SetCapacity(nodeName, ten(2, Allocation{Partition: r.Partition, Extent: r.Extent}))
			l.wantFree(t, "published", 6)
			l.SetPod("a", nodeName, []Record{r})
			l.wantFree(t, "the pod's event", 6)
		},
		"the node put the volume elsewhere": func(t *testing.T, l *Ledger) {
			r := l.mustReserve(t, "a", 4)
			l.SetPod("a", nodeName, []Record{r})
			l.SetCapacity(nodeName, ten(2, Allocation{Partition: r.Partition, Extent: at(5, 4)}))
			l.wantFree(t, "the node has the last word", 6)
			if !l.Snapshot(nodeName).Node.Disks[0].Free.Contains(r.Extent) {
				t.Error("the recorded extent, which the node did not use, is still withheld")
			}
		},
		"wiped, but the pod object is still there": func(t *testing.T, l *Ledger) {
			r := l.mustReserve(t, "a", 4)
			l.SetPod("a", nodeName, []Record{r})
			l.SetCapacity(nodeName, ten(2, Allocation{Partition: r.Partition, Extent: r.Extent}))
			l.SetCapacity(nodeName, ten(3))
			l.wantFree(t, "wiped", 6)
			l.DeletePod("a")
			l.wantFree(t, "the pod is gone", 10)
		},
		"the pod is gone, but not yet wiped": func(t *testing.T, l *Ledger) {
			r := l.mustReserve(t, "a", 4)
			l.SetPod("a", nodeName, []Record{r})
			l.SetCapacity(nodeName, ten(2, Allocation{Partition: r.Partition, Extent: r.Extent}))
			l.DeletePod("a")
			l.wantFree(t, "gone", 6)
			l.SetCapacity(nodeName, ten(3))
			l.wantFree(t, "wiped", 10)
		},
		"Bind failed": func(t *testing.T, l *Ledger) {
			l.mustReserve(t, "a", 4)
			l.Forget("a")
			l.wantFree(t, "forgotten", 10)
			l.Forget("a")
			l.Forget("never reserved")
			l.wantFree(t, "forgotten twice", 10)
		},
		"Bind failed, but had happened, and the event came first": func(t *testing.T, l *Ledger) {
			r := l.mustReserve(t, "a", 4)
			l.SetPod("a", nodeName, []Record{r})
			l.Forget("a")
			l.wantFree(t, "Unreserve after the event", 6)
		},
		"Bind failed, may have happened": func(t *testing.T, l *Ledger) {
			r := l.mustReserve(t, "a", 4)
			l.Doubt("a")
			l.Forget("a")
			l.wantFree(t, "in doubt", 6)
			l.SetPod("a", nodeName, []Record{r})
			l.wantFree(t, "it had", 6)
		},
		"Bind failed, had not happened, and the pod tries again": func(t *testing.T, l *Ledger) {
			l.mustReserve(t, "a", 8)
			l.Doubt("a")
			l.Forget("a")
			// Only 2 GiB are free for others, but the pod may use its own.
			l.mustReserve(t, "a", 8)
			l.wantFree(t, "reserved again", 2)
			l.Forget("a")
			l.wantFree(t, "the second try is forgotten, the first one still in doubt", 2)
			l.DeletePod("a")
			l.wantFree(t, "gone", 10)
		},
		"in doubt here, and the next try goes elsewhere": func(t *testing.T, l *Ledger) {
			elsewhere := ten(2)
			elsewhere.Disks[0].ID = "another"
			l.SetCapacity("n2", elsewhere)
			r := l.mustReserve(t, "a", 8)
			l.Doubt("a")
			if _, err := l.Reserve("a", "n2", wants([]string{r.Partition}, one(8))); err != nil {
				t.Fatal(err)
			}
			l.wantFree(t, "reserved elsewhere", 2)
			if _, err := l.Reserve("b", nodeName, wants([]string{"part-b"}, one(8))); err == nil {
				t.Error("another pod got a place that may be bound")
			}
			if settled := l.SetPod("a", nodeName, []Record{r}); len(settled) != 1 || settled[0] != nodeName {
				t.Errorf("settled is what was on %v, want %s", settled, nodeName)
			}
			l.wantFree(t, "the first binding had happened", 2)
			if free := l.Snapshot("n2").Node.Disks[0].Free.Total(); free != 10*units.GiB {
				t.Errorf("%d GiB are free where the pod is not, want 10", free/units.GiB)
			}
			if settled := l.SetPod("a", nodeName, []Record{r}); settled != nil {
				t.Errorf("still in doubt on %v", settled)
			}
		},
		"in doubt twice, at different places": func(t *testing.T, l *Ledger) {
			l.mustReserve(t, "a", 2)
			l.Doubt("a")
			l.SetCapacity(nodeName, ten(2, Allocation{Partition: "x", Extent: at(0, 1)}))
			second := l.mustReserve(t, "a", 2)
			l.Doubt("a")
			l.wantFree(t, "in doubt", 7)
			l.SetPod("a", nodeName, []Record{second})
			l.wantFree(t, "settled", 7)
			l.DeletePod("a")
			l.wantFree(t, "gone", 9)
		},
		"in doubt, and the pod is deleted": func(t *testing.T, l *Ledger) {
			l.mustReserve(t, "a", 8)
			l.Doubt("a")
			l.Forget("a")
			l.DeletePod("a")
			l.wantFree(t, "deleted", 10)
		},
		"reserved here, bound elsewhere by another scheduler": func(t *testing.T, l *Ledger) {
			r := l.mustReserve(t, "a", 4)
			l.SetPod("a", "n2", []Record{r})
			l.wantFree(t, "the other's event", 10)
			l.Forget("a")
			if node, records := l.Records("a"); node != "n2" || len(records) != 1 {
				t.Errorf("the pod is on %q with %d records, want n2 with 1", node, len(records))
			}
		},
		"a bound pod cannot be reserved for": func(t *testing.T, l *Ledger) {
			l.SetPod("a", nodeName, nil)
			if _, err := l.Reserve("a", nodeName, wants([]string{"p"}, one(1))); !errors.Is(err, ErrBound) {
				t.Errorf("got %v, want ErrBound", err)
			}
		},
		"an old capacity after a newer one": func(t *testing.T, l *Ledger) {
			l.SetCapacity(nodeName, ten(5, Allocation{Partition: "x", Extent: at(0, 4)}))
			if l.SetCapacity(nodeName, ten(4)) || l.SetCapacity(nodeName, ten(5)) {
				t.Error("an old capacity changed something")
			}
			l.wantFree(t, "old ones ignored", 6)
			l.DeleteCapacity(nodeName, 4)
			l.wantFree(t, "an old deletion ignored", 6)
			l.DeleteCapacity(nodeName, 6)
			l.wantFree(t, "deleted", 0)
			l.SetCapacity(nodeName, ten(5))
			l.wantFree(t, "an old capacity after the deletion", 0)
			l.SetPod("a", nodeName, nil)
			l.SetCapacity(nodeName, ten(6))
			l.wantFree(t, "an old capacity of a node known again by its pod", 0)
			l.SetCapacity(nodeName, ten(7))
			l.wantFree(t, "published again", 10)
		},
		"a record of a disk that is not published takes effect when it is": func(t *testing.T, l *Ledger) {
			l.SetPod("a", nodeName, []Record{{"p", "d2", at(0, 4)}})
			l.wantFree(t, "an unknown disk", 10)
			c := ten(2)
			c.Disks[0].ID = "d2"
			l.SetCapacity(nodeName, c)
			l.wantFree(t, "the disk appears", 6)
		},
		"records that overlap are taken once": func(t *testing.T, l *Ledger) {
			l.SetPod("a", nodeName, []Record{{"p", diskID, at(0, 4)}})
			l.SetPod("b", nodeName, []Record{{"q", diskID, at(2, 4)}})
			l.wantFree(t, "overlapping", 4)
			l.DeletePod("a")
			l.wantFree(t, "one is gone", 6)
		},
		"a record that reaches out of the disk": func(t *testing.T, l *Ledger) {
			l.SetPod("a", nodeName, []Record{{"p", diskID, at(8, 40)}})
			l.wantFree(t, "forged", 8)
		},
		"five pods of 3 GiB on 10 GiB": func(t *testing.T, l *Ledger) {
			fitted := 0
			for i := range 5 {
				if _, err := l.Reserve(strconv.Itoa(i), nodeName, wants([]string{fmt.Sprint("p", i)}, one(3))); err == nil {
					fitted++
				}
			}
			if fitted != 3 {
				t.Errorf("%d fitted, want 3", fitted)
			}
		},
	}
	for name, story := range tests {
		t.Run(name, func(t *testing.T) {
			l := New()
			l.SetCapacity(nodeName, ten(1))
			story(t, l)
			if err := l.Validate(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestInvalidCapacity(t *testing.T) {
	tests := map[string]func(*Capacity){
		"free extents overlap":     func(c *Capacity) { c.Disks[0].Free = []extent.Extent{at(0, 2), at(1, 2)} },
		"free overlaps allocation": func(c *Capacity) { c.Disks[0].Allocations = []Allocation{{Partition: "p", Extent: at(1, 1)}} },
		"behind the disk":          func(c *Capacity) { c.Disks[0].Size = units.GiB },
		"not aligned":              func(c *Capacity) { c.Disks[0].Free[0].Start++ },
		"below the first MiB":      func(c *Capacity) { c.Disks[0].Free[0].Start = 0 },
		"negative":                 func(c *Capacity) { c.Disks[0].Free[0].Start = -1 << 20 },
		"overflow":                 func(c *Capacity) { c.Disks[0].Free[0] = extent.New(1<<62, 1<<62) },
		"empty":                    func(c *Capacity) { c.Disks[0].Free[0].End = c.Disks[0].Free[0].Start },
		"no id":                    func(c *Capacity) { c.Disks[0].ID = "" },
		"a disk twice":             func(c *Capacity) { c.Disks = append(c.Disks, c.Disks[0]) },
		"no partition": func(c *Capacity) {
			c.Disks[0].Free, c.Disks[0].Allocations = nil, []Allocation{{Partition: "", Extent: at(1, 1)}}
		},
		"a partition twice": func(c *Capacity) {
			c.Disks[0].Free, c.Disks[0].Allocations = nil, []Allocation{{Partition: "p", Extent: at(1, 1)}, {Partition: "p", Extent: at(3, 1)}}
		},
	}
	for name, spoil := range tests {
		t.Run(name, func(t *testing.T) {
			l := New()
			l.SetCapacity(nodeName, ten(1))
			c := ten(2)
			spoil(c)
			l.SetCapacity(nodeName, c)
			s := l.Snapshot(nodeName)
			if s.Problem == "" || !s.Published {
				t.Errorf("published %v, problem %q: want a problem", s.Published, s.Problem)
			}
			l.wantFree(t, "invalid", 0)
			if _, err := l.Reserve("a", nodeName, wants([]string{"p"}, one(1))); !errors.Is(err, ErrNotPublished) {
				t.Errorf("Reserve on it: %v, want ErrNotPublished", err)
			}
			l.SetCapacity(nodeName, ten(3))
			l.wantFree(t, "put right", 10)
		})
	}
}

func TestDisksThatTakeNoVolumes(t *testing.T) {
	c := ten(1)
	c.Disks[0].Ready = false
	unclassed := ten(1).Disks[0]
	unclassed.ID, unclassed.Class = "d2", ""
	c.Disks = append(c.Disks, unclassed)
	l := New()
	l.SetCapacity(nodeName, c)
	l.wantFree(t, "one draining, one without a class", 0)
}

func TestWithout(t *testing.T) {
	l := New()
	l.SetCapacity(nodeName, ten(1, Allocation{Partition: "published", Extent: at(0, 3)}))
	l.SetPod("a", nodeName, []Record{{"recorded", diskID, at(3, 2)}, {"published", diskID, at(0, 3)}})
	s := l.Snapshot(nodeName)
	for _, test := range []struct {
		gone []string
		want int64
	}{
		{nil, 5},
		{[]string{"recorded"}, 7},
		{[]string{"published"}, 8},
		{[]string{"published", "recorded", "unknown"}, 10},
	} {
		gone := map[string]struct{}{}
		for _, p := range test.gone {
			gone[p] = struct{}{}
		}
		if have := s.Without(gone).Disks[0].Free.Total(); have != test.want*units.GiB {
			t.Errorf("without %v, %d GiB are free, want %d", test.gone, have/units.GiB, test.want)
		}
	}
	if have := s.Node.Disks[0].Usable; have != 10*units.GiB {
		t.Errorf("volumes could have %d GiB, want 10", have/units.GiB)
	}
	l.wantFree(t, "asking changes nothing", 5)
}

func TestRefusals(t *testing.T) {
	l := New()
	now := time.Now()
	l.SetCapacity(nodeName, ten(1))
	l.RecordRefusal("a", nodeName, "forbidden", now)
	if have := l.Refusals("a", now); have[nodeName] != "forbidden" {
		t.Errorf("refusals %v, want n1", have)
	}
	if have := l.Refusals("b", now); have != nil {
		t.Errorf("refusals of another pod: %v", have)
	}
	if have := l.LiftedRefusals(nodeName); have != nil {
		t.Errorf("refusals of %v count as lifted", have)
	}
	// The owner is written, or the node publishes how far a wipe is. Neither changes its disks.
	same := ten(2)
	same.Owned = []string{same.Disks[0].ID}
	l.SetCapacity(nodeName, same)
	if have := l.Refusals("a", now); have[nodeName] == "" || l.LiftedRefusals(nodeName) != nil {
		t.Errorf("refusals %v after the node published the same of its disks, %v count as lifted", have, l.LiftedRefusals(nodeName))
	}
	other := ten(3)
	other.Disks[0].Free = other.Disks[0].Free[:0]
	l.SetCapacity(nodeName, other)
	if have := l.LiftedRefusals(nodeName); len(have) != 1 || have[0] != "a" {
		t.Errorf("refusals of %v count as lifted, want those of a", have)
	}
	if have := l.Refusals("a", now); have != nil {
		t.Errorf("refusals after the node published something new: %v", have)
	}
	// First another node owns the disk, and then this one does.
	withoutSpace := func(revision uint64, owned ...string) *Capacity {
		c := ten(revision)
		c.Disks[0].Free, c.Owned = c.Disks[0].Free[:0], owned
		return c
	}
	l.SetCapacity("z", withoutSpace(4, diskID))
	l.SetCapacity(nodeName, withoutSpace(5))
	l.RecordRefusal("a", nodeName, "forbidden", now)
	l.SetCapacity("z", withoutSpace(6, diskID))
	if have := l.Refusals("a", now); have[nodeName] == "" {
		t.Errorf("refusals after another node published: %v", have)
	}
	l.SetCapacity(nodeName, withoutSpace(7, diskID))
	if have := l.Refusals("a", now); have != nil {
		t.Errorf("refusals after the node's disk came into service: %v", have)
	}
	l.RecordRefusal("a", nodeName, "forbidden", now)
	l.SetAgent(nodeName, true)
	l.DeleteCapacity(nodeName, 8)
	if have := l.Refusals("a", now); have != nil {
		t.Errorf("refusals after the node's capacity was deleted: %v", have)
	}
	l.RecordRefusal("a", nodeName, "forbidden", now)
	if have := l.Refusals("a", now.Add(RefusalLifetime)); have != nil {
		t.Errorf("refusals after their time: %v", have)
	}
	l.RecordRefusal("a", nodeName, "forbidden", now)
	l.DeletePod("a")
	if have := l.Refusals("a", now); have != nil || len(l.refusals) != 0 {
		t.Errorf("refusals of a deleted pod: %v", have)
	}
}

// TestConcurrency is for the race detector. It also asserts that no reader sees more free space than there can be.
func TestConcurrency(t *testing.T) {
	l := New()
	l.SetCapacity(nodeName, ten(1))
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				s := l.Snapshot(nodeName)
				if err := s.Node.Disks[0].Free.Validate(); err != nil {
					t.Error(err)
					return
				}
				s.Without(map[string]struct{}{"part-1": {}})
			}
		})
	}
	var writers sync.WaitGroup
	for w := range 4 {
		writers.Go(func() {
			for i := range 300 {
				uid := strconv.Itoa(w*1000 + i%3)
				records, err := l.Reserve(uid, nodeName, wants([]string{"part-" + uid}, one(1)))
				if err == nil && i%2 == 0 {
					l.SetPod(uid, nodeName, records)
				}
				l.SetCapacity(nodeName, ten(uint64(2+i)))
				l.Records(uid)
				l.Forget(uid)
				l.DeletePod(uid)
			}
		})
	}
	writers.Wait()
	close(stop)
	wg.Wait()
	l.wantFree(t, "at rest", 10)
}

func BenchmarkReserveAndForget(b *testing.B) {
	for _, volumes := range []int{0, 100} {
		b.Run(fmt.Sprintf("12 disks, %d volumes", volumes), func(b *testing.B) {
			l := New()
			l.SetCapacity(nodeName, large(1, volumes))
			for i := range volumes {
				l.SetPod(strconv.Itoa(i), nodeName, []Record{{fmt.Sprint("part-", i), fmt.Sprintf("disk-%02d", i%12), at(int64(i/12), 1)}})
			}
			partitions, requests := []string{"mine"}, one(1)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := l.Reserve("me", nodeName, wants(partitions, requests)); err != nil {
					b.Fatal(err)
				}
				l.Forget("me")
			}
		})
	}
}

func BenchmarkSnapshot(b *testing.B) {
	l := New()
	l.SetCapacity(nodeName, large(1, 100))
	b.ReportAllocs()
	for b.Loop() {
		_ = l.Snapshot(nodeName)
	}
}

// large is a capacity of 12 disks with so many published volumes.
func large(revision uint64, volumes int) *Capacity {
	c := &Capacity{Revision: revision}
	for i := range 12 {
		d := Disk{ID: fmt.Sprintf("disk-%02d", i), Class: class, Ready: true, Size: 200 * units.GiB}
		used := int64(0)
		for v := i; v < volumes; v += 12 {
			d.Allocations = append(d.Allocations, Allocation{Partition: fmt.Sprint("part-", v), Extent: at(used, 1)})
			used++
		}
		d.Free = []extent.Extent{at(used, 150)}
		c.Disks = append(c.Disks, d)
	}
	return c
}

// TestNodesThatAreGone asserts that the ledger does not grow with nodes that come and go.
func TestNodesThatAreGone(t *testing.T) {
	l := New()
	for i := range 1000 {
		name, revision := fmt.Sprint("node-", i), uint64(10*i+1)
		l.SetCapacity(name, ten(revision))
		if _, err := l.Reserve("a", name, wants([]string{"p"}, one(1))); err != nil {
			t.Fatal(err)
		}
		switch i % 3 {
		case 0:
			l.Doubt("a")
		case 1:
			l.SetPod("a", name, nil)
		}
		l.RecordRefusal("a", name, "forbidden", time.Now())
		l.DeleteCapacity(name, revision+2)
		l.SetCapacity(name, ten(revision+1))
		l.DeletePod("a")
		l.DeletePod("unknown")
		l.Forget("a")
	}
	if err := l.Validate(); err != nil {
		t.Error(err)
	}
	left := 0
	l.nodes.Range(func(any, any) bool { left++; return true })
	if left+len(l.holders)+len(l.doubts)+len(l.refusals) > 0 {
		t.Errorf("left are %d nodes, %d pods, %d doubts, %d refusals", left, len(l.holders), len(l.doubts), len(l.refusals))
	}
	// A late event does not bring a node back, and a new node of the same name does.
	if l.SetCapacity("node-7", ten(71)) || l.Snapshot("node-7").Published {
		t.Error("an old capacity changed something")
	}
	if !l.SetCapacity("node-7", ten(20_000)) || !l.Snapshot("node-7").Published {
		t.Error("a new one was not")
	}
}

// TestAgent asserts that the registration of an agent does not depend on what its node publishes, and that a node with
// neither is forgotten.
func TestAgent(t *testing.T) {
	l := New()
	want := func(when string, registered, published bool) {
		t.Helper()
		if s := l.Snapshot(nodeName); s.Registered != registered || s.Published != published {
			t.Errorf("%s: registered is %v, published is %v", when, s.Registered, s.Published)
		}
		if err := l.Validate(); err != nil {
			t.Errorf("%s: %v", when, err)
		}
	}
	set := func(registered, changed bool) {
		t.Helper()
		if have := l.SetAgent(nodeName, registered); have != changed {
			t.Errorf("changed is %v, want %v", have, changed)
		}
	}
	set(false, false)
	want("nothing is known", false, false)
	set(true, true)
	set(true, false)
	want("only the agent", true, false)
	l.SetCapacity(nodeName, ten(1))
	l.mustReserve(t, "u", 3)
	want("a node with a volume", true, true)
	l.wantFree(t, "with an agent", 7)
	l.Forget("u")
	l.DeleteCapacity(nodeName, 2)
	want("published no more", true, false)
	if l.SetCapacity(nodeName, ten(1)) {
		t.Error("an old capacity changed something")
	}
	set(false, true)
	want("gone", false, false)
	if _, kept := l.nodes.Load(nodeName); kept {
		t.Error("kept for nothing")
	}
	l.SetCapacity(nodeName, ten(3))
	want("made again", false, true)
	set(true, true)
	want("made again, with its agent", true, true)
	l.wantFree(t, "made again", 10)
}

// TestCheck asserts that Check, of a snapshot and of a search, gives the same error as a plan.
func TestCheck(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 4))
	quickChecks, fitting := 0, 0
	for range 20_000 {
		var disks []string
		for range rng.IntN(4) {
			disk := []string{[]string{"ssd", "hdd"}[rng.IntN(2)]}
			for range rng.IntN(5) {
				disk = append(disk, strconv.Itoa(1+rng.IntN(20)))
			}
			disks = append(disks, strings.Join(disk, " "))
		}
		l := New()
		if len(disks) > 0 {
			l.SetCapacity(nodeName, disksOf(nodeName, strings.Join(disks, ", "), 1))
		}
		count, sizes := 1+rng.IntN(4), 12
		if rng.IntN(10) == 0 {
			count, sizes = 1+rng.IntN(24), 3 // more than are searched for
		}
		requests := make([]placement.Request, count)
		for i := range requests {
			requests[i] = placement.Request{Class: []string{"ssd", "hdd"}[rng.IntN(8)/7], Size: int64(rng.IntN(sizes)) * units.GiB, Apart: rng.IntN(5) == 0, Policy: placement.Policy(rng.IntN(2))}
			if rng.IntN(50) > 0 {
				requests[i].Size += units.GiB
			}
		}
		s := l.Snapshot(nodeName)
		_, want := Fit(s.Node, requests)
		if have := s.Check(requests); fmt.Sprint(have) != fmt.Sprint(want) {
			t.Fatalf("%v on %v: have %v, want %v", requests, disks, have, want)
		}
		if have := NewSearch(requests, math.MaxInt64).Check(s); fmt.Sprint(have) != fmt.Sprint(want) {
			t.Fatalf("%v on %v: the search says %v, want %v", requests, disks, have, want)
		}
		if _, sure := s.quickCheck(requests); sure {
			quickChecks++
		}
		if want == nil {
			fitting++
		}
	}
	if quickChecks < 10_000 || fitting < 5000 {
		t.Errorf("%d of 20,000 were decided by the quick check, %d fit: the test covers little", quickChecks, fitting)
	}
}

func TestWiping(t *testing.T) {
	l := New()
	l.SetCapacity(nodeName, ten(1, Allocation{Partition: "used", Extent: at(0, 3)}, Allocation{Partition: "old", Extent: at(3, 2), Wiping: true}))
	s := l.Snapshot(nodeName)
	if have := s.Without(s.Wiping()).Disks[0].Free.Total(); have != 7*units.GiB {
		t.Errorf("when all is wiped, %d GiB will be free, want 7", have/units.GiB)
	}
	if unknown := l.Snapshot("unknown"); unknown.Without(unknown.Wiping()) == nil {
		t.Error("no node")
	}
}

// TestFitKeepsLastFailure asserts that the kept error is used only for the same requests and the same snapshot.
func TestFitKeepsLastFailure(t *testing.T) {
	l := New()
	l.SetCapacity("n", &Capacity{Revision: 1, Disks: []Disk{{
		ID: "d", Class: "ssd", Ready: true, Size: 200 << 20, Free: []extent.Extent{extent.New(1<<20, 100<<20)},
	}}})
	requests := func(sizes ...int64) (out []placement.Request) {
		for _, size := range sizes {
			out = append(out, placement.Request{Class: "ssd", Size: size << 20})
		}
		return out
	}
	check := func(when string) {
		t.Helper()
		for range 2 {
			for _, r := range [][]placement.Request{requests(100), requests(40), requests(40), requests(101), requests(40, 40), requests(60, 60)} {
				s := l.Snapshot("n")
				merit, err := s.Fit(r)
				wantMerit, wantErr := Fit(s.Node, r)
				if merit != wantMerit || (err == nil) != (wantErr == nil) {
					t.Errorf("%s: %v fit with %d, %v; want %d, %v", when, r, merit, err, wantMerit, wantErr)
				}
			}
		}
	}
	check("empty")
	if _, err := l.Reserve("p", "n", wants([]string{"v"}, requests(40))); err != nil {
		t.Fatal(err)
	}
	check("after a reservation")
	if _, err := l.Snapshot("n").Fit(requests(100)); err == nil {
		t.Error("what fitted before a reservation still fits")
	}
	l.Forget("p")
	check("after it was given back")
}

// wants returns requests for the inline volumes of a pod.
func wants(partitions []string, requests []placement.Request) []VolumeRequest {
	out := make([]VolumeRequest, len(requests))
	for i := range requests {
		out[i] = VolumeRequest{Partition: partitions[i], Request: requests[i]}
	}
	return out
}

// TestListedCapacities asserts that a list is believed, also with lower revisions than before, and that later events
// are folded in then.
func TestListedCapacities(t *testing.T) {
	tests := map[string]struct {
		do   func(l *Ledger)
		want int64 // GiB free on n1; below zero: it does not publish
	}{
		"an older list": {func(l *Ledger) {
			l.ListCapacity(nodeName, ten(2, Allocation{Partition: "x", Extent: at(0, 8)}))
			l.EndList(map[string]struct{}{nodeName: {}}, 5)
		}, 2},
		"an event after it": {func(l *Ledger) {
			l.ListCapacity(nodeName, ten(2))
			l.EndList(map[string]struct{}{nodeName: {}}, 5)
			l.SetCapacity(nodeName, ten(6, Allocation{Partition: "x", Extent: at(0, 8)}))
		}, 2},
		"the same revision, and other content": {func(l *Ledger) {
			l.ListCapacity(nodeName, ten(100, Allocation{Partition: "x", Extent: at(0, 8)}))
		}, 2},
		"not in the list": {func(l *Ledger) { l.EndList(nil, 5) }, -1},
		"not in the list, made after it": {func(l *Ledger) {
			l.EndList(nil, 5)
			l.SetCapacity(nodeName, ten(6))
		}, 10},
		"deleted before the list, with an agent, made after it": {func(l *Ledger) {
			l.SetAgent(nodeName, true)
			l.DeleteCapacity(nodeName, 101)
			l.EndList(nil, 5)
			l.SetCapacity(nodeName, ten(6))
		}, 10},
		"deleted and forgotten before the list, made after it": {func(l *Ledger) {
			l.DeleteCapacity(nodeName, 101)
			l.EndList(nil, 5)
			l.SetCapacity(nodeName, ten(6))
		}, 10},
		"the same list again": {func(l *Ledger) {
			before := l.Snapshot(nodeName)
			if _, after, _ := l.ListCapacity(nodeName, ten(100)); after != nil || l.Snapshot(nodeName) != before {
				t.Error("the same list changed something")
			}
		}, 10},
		"an event that is older than the list": {func(l *Ledger) {
			l.EndList(map[string]struct{}{nodeName: {}}, 200)
			l.SetCapacity(nodeName, ten(50, Allocation{Partition: "x", Extent: at(0, 8)}))
		}, 10},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			l := New()
			l.SetCapacity(nodeName, ten(100))
			test.do(l)
			if err := l.Validate(); err != nil {
				t.Fatal(err)
			}
			s := l.Snapshot(nodeName)
			have := int64(-1)
			if s.Published {
				have = 0
				for _, d := range s.Node.Disks {
					have += d.Free.Total() / units.GiB
				}
			}
			if have != test.want {
				t.Errorf("%d GiB are free, want %d", have, test.want)
			}
		})
	}
}

// TestSearchSharesResults asserts that nodes with the same free lengths share a result without another plan, and that
// other nodes do not. The result is that of the node itself.
func TestSearchSharesResults(t *testing.T) {
	rng := rand.New(rand.NewPCG(21, 22))
	shared := 0
	for range 2000 {
		l := New()
		requests := make([]placement.Request, 2+rng.IntN(3))
		for i := range requests {
			requests[i] = placement.Request{Class: []string{"ssd", "hdd"}[rng.IntN(4)/3], Size: int64(1+rng.IntN(4)) * units.GiB, Policy: placement.Policy(rng.IntN(2))}
		}
		q := NewSearch(requests, math.MaxInt64)
		for i := range 6 {
			name := fmt.Sprint("n", i)
			disks := fmt.Sprintf("ssd %d %d, ssd %d, hdd %d", 1+rng.IntN(3), 1+rng.IntN(3), 1+rng.IntN(5), 1+rng.IntN(3))
			l.SetCapacity(name, disksOf(name, disks, uint64(i+1)))
			s := l.Snapshot(name)
			if q.Cached(s) {
				shared++
			}
			merit, err := q.Fit(s)
			want, wantErr := Fit(s.Node, requests)
			if merit != want || fmt.Sprint(err) != fmt.Sprint(wantErr) {
				t.Fatalf("%v on %s: %d, %v, want %d, %v", requests, disks, merit, err, want, wantErr)
			}
		}
	}
	if shared < 100 || shared > 6000 {
		t.Errorf("%d of 12,000 results were shared: the test covers little", shared)
	}
}

// TestReservePlansWithoutTheLock asserts that Reserve plans again when the node has changed meanwhile, and that a place
// that was taken in between is not given away.
func TestReservePlansWithoutTheLock(t *testing.T) {
	l := New()
	l.SetCapacity(nodeName, ten(1))
	r, err := l.newReservation("a", nodeName, wants([]string{"part-a"}, one(4)))
	if err != nil {
		t.Fatal(err)
	}
	plan, err := placement.Plan(nil, r.snapshot.Node, r.requests)
	if err != nil {
		t.Fatal(err)
	}
	between := l.mustReserve(t, "b", 4)
	if records, err := l.commit(r, wants([]string{"part-a"}, one(4)), plan); records != nil || err != nil {
		t.Errorf("a plan was committed that is not good any more: %v, %v", records, err)
	}
	if a := l.mustReserve(t, "a", 4); a.Extent.Overlaps(between.Extent) {
		t.Errorf("%v was given away twice", between.Extent)
	}
	r, err = l.newReservation("c", nodeName, wants([]string{"part-c"}, one(1)))
	if err != nil {
		t.Fatal(err)
	}
	l.SetPod("c", nodeName, nil)
	if _, err := l.commit(r, wants([]string{"part-c"}, one(1)), nil); !errors.Is(err, ErrBound) {
		t.Errorf("the pod was bound meanwhile, got %v", err)
	}
}
