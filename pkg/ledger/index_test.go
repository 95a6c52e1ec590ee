package ledger

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/placement"
)

// disksOf publishes free extents: "ssd 3 1, hdd 5" are two disks, one with two extents, in GiB.
func disksOf(node, disks string, revision uint64) *Capacity {
	c := &Capacity{Revision: revision}
	for i, text := range strings.Split(disks, ", ") {
		fields := strings.Fields(text)
		d := Disk{ID: fmt.Sprint(node, "-", i), Class: fields[0], Ready: true, Size: 1 << 50}
		start := int64(1 << 20)
		for _, size := range fields[1:] {
			var gibs int64
			if _, err := fmt.Sscan(size, &gibs); err != nil {
				panic(err)
			}
			d.Free = append(d.Free, extent.New(start, gibs*gib))
			start += (gibs + 1) * gib
		}
		c.Disks = append(c.Disks, d)
	}
	return c
}

func TestTightest(t *testing.T) {
	nodes := map[string]string{
		"a": "ssd 10",
		"b": "ssd 3 7 3",
		"c": "ssd 5 5, hdd 2",
		"d": "hdd 4, hdd 4",
		"e": "ssd 4, ssd 6",
	}
	ssd := func(sizes ...int64) (requests []placement.Request) {
		for _, s := range sizes {
			requests = append(requests, placement.Request{Class: "ssd", Size: s * gib})
		}
		return requests
	}
	tests := []struct {
		name     string
		requests []placement.Request
		k        int
		refused  string
		want     string
	}{
		{"smallest first, each node once", ssd(3), 10, "", "b e c a"},
		{"no more than asked for", ssd(3), 2, "", "b e"},
		{"exact", ssd(5), 1, "", "c"},
		{"largest of all", ssd(10), 10, "", "a"},
		{"larger than all", ssd(11), 10, "", ""},
		{"all volumes together", ssd(4, 6), 10, "", "e a"},
		{"the order of volumes does not matter", ssd(6, 4), 10, "", "e a"},
		{"two classes", append(ssd(1), placement.Request{Class: "hdd", Size: 2 * gib}), 10, "", "c"},
		{"apart", []placement.Request{{Class: "hdd", Size: gib, Apart: true}, {Class: "hdd", Size: gib, Apart: true}}, 10, "", "d"},
		{"not accepted", ssd(3), 2, "b", "e c"},
		{"unknown class", []placement.Request{{Class: "tape", Size: gib}}, 10, "", ""},
		{"nothing", nil, 10, "", ""},
		{"none", ssd(3), 0, "", ""},
	}
	l := New()
	for name, disks := range nodes {
		l.SetCapacity(name, disksOf(name, disks, 1))
	}
	if err := l.Validate(); err != nil {
		t.Fatal(err)
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := l.Tightest(test.requests, test.k, func(name string) bool { return name != test.refused })
			if strings.Join(got, " ") != test.want {
				t.Errorf("got %v, want %s", got, test.want)
			}
		})
	}
}

// TestEqualsAreMixed: the first of many equal nodes are not those of one zone.
func TestEqualsAreMixed(t *testing.T) {
	l := New()
	for i := range 900 {
		name := fmt.Sprintf("zone-%c-node-%03d", 'a'+i/300, i)
		l.SetCapacity(name, disksOf(name, "ssd 10", uint64(i+1)))
	}
	inZone := map[byte]int{}
	for _, name := range l.Tightest(one(1), 90, func(string) bool { return true }) {
		inZone[name[len("zone-")]]++
	}
	for zone := byte('a'); zone <= 'c'; zone++ {
		if inZone[zone] < 15 {
			t.Errorf("%d of 90 nodes are in zone %c, want about 30", inZone[zone], zone)
		}
	}
}

// tightest is what Tightest says, by looking at every node.
func (l *Ledger) tightest(requests []placement.Request, k int) []string {
	largest := slices.MaxFunc(requests, func(a, b placement.Request) int {
		return cmp.Or(cmp.Compare(a.Size, b.Size), cmp.Compare(a.Class, b.Class))
	})
	var found []offer
	l.nodes.Range(func(_, value any) bool {
		n := value.(*node)
		node := n.snapshot.Load().Node
		if _, err := Fit(node, requests); err != nil {
			return true
		}
		smallest := offer{1 << 62, n}
		for _, d := range node.Disks {
			for _, e := range d.Free.All() {
				if d.Class == largest.Class && e.Len() >= largest.Size {
					smallest.size = min(smallest.size, e.Len())
				}
			}
		}
		found = append(found, smallest)
		return true
	})
	slices.SortFunc(found, compareOffers)
	var names []string
	for _, o := range found[:min(k, len(found))] {
		names = append(names, o.node.name)
	}
	return names
}

// TestTightestModel changes nodes and pods at random, and asks both after every step.
func TestTightestModel(t *testing.T) {
	seeds := uint64(40)
	if testing.Short() {
		seeds = 4
	}
	for seed := range seeds {
		rng := rand.New(rand.NewPCG(seed, 2))
		l := New()
		class := func() string { return []string{"ssd", "hdd"}[rng.IntN(2)] }
		node := func() string { return fmt.Sprint("n", rng.IntN(60)) }
		for step := range 400 {
			uid := fmt.Sprint("u", rng.IntN(80))
			switch rng.IntN(8) {
			case 0, 1, 2:
				name, disks := node(), []string{}
				for range 1 + rng.IntN(3) {
					disk := []string{class()}
					for range rng.IntN(12) {
						disk = append(disk, strconv.Itoa(1+rng.IntN(9)))
					}
					disks = append(disks, strings.Join(disk, " "))
				}
				l.SetCapacity(name, disksOf(name, strings.Join(disks, ", "), uint64(step+1)))
			case 3:
				l.DeleteCapacity(node(), uint64(step+1))
			case 4:
				l.Forget(uid)
			case 5:
				l.Doubt(uid)
			case 6:
				l.DeletePod(uid)
			default:
				_, _ = l.Reserve(uid, node(), wants([]string{"p" + uid}, []placement.Request{{Class: class(), Size: int64(1+rng.IntN(9)) * gib}}))
			}
			if err := l.Validate(); err != nil {
				t.Fatalf("seed %d, step %d: %v", seed, step, err)
			}
			requests := make([]placement.Request, 1+rng.IntN(2))
			for i := range requests {
				requests[i] = placement.Request{Class: class(), Size: int64(1+rng.IntN(9)) * gib}
			}
			k := 1 + rng.IntN(20)
			have, want := l.Tightest(requests, k, func(string) bool { return true }), l.tightest(requests, k)
			if !slices.Equal(have, want) {
				t.Fatalf("seed %d, step %d: %v: have %v, want %v", seed, step, requests, have, want)
			}
		}
	}
}

// TestOffersInRuns: so many that the runs are cut, in any order, and none is left.
func TestOffersInRuns(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 3))
	n := &node{name: "n"}
	s := &offers{}
	count := 20 * maxRun
	for _, size := range rng.Perm(count) {
		s.insert(offer{int64(size), n})
		s.insert(offer{int64(size), n})
	}
	if len(s.runs) < 20 {
		t.Errorf("%d offers are in %d runs", count, len(s.runs))
	}
	for _, from := range []int{0, 1, maxRun, count / 2, count - 1, count} {
		want := int64(from)
		for o := range s.from(want) {
			if o.size != want {
				t.Fatalf("from %d: have %d, want %d", from, o.size, want)
			}
			want++
		}
		if want != int64(count) {
			t.Errorf("from %d: ends before %d", from, want)
		}
	}
	for i, size := range rng.Perm(count) {
		s.remove(offer{int64(size), n})
		s.remove(offer{int64(size), n})
		if i%1000 == 0 && len(slices.Concat(s.runs...)) != count-1-i {
			t.Fatalf("%d are left after %d were removed", len(slices.Concat(s.runs...)), i+1)
		}
	}
	if len(s.runs) != 0 {
		t.Errorf("%d runs are left", len(s.runs))
	}
}

func BenchmarkTightest(b *testing.B) {
	l := New()
	for i := range 5000 {
		name := fmt.Sprintf("node-%04d", i)
		l.SetCapacity(name, disksOf(name, fmt.Sprintf("ssd %d 20 30, ssd 40 %d, hdd 50", 1+i%100, 1+i%77), uint64(i+1)))
	}
	b.Run("query", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if names := l.Tightest(one(10), 100, func(string) bool { return true }); len(names) != 100 {
				b.Fatal(len(names))
			}
		}
	})
	b.Run("change", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := l.Reserve("u", "node-0042", wants([]string{"p"}, one(10))); err != nil {
				b.Fatal(err)
			}
			l.Forget("u")
		}
	})
}
