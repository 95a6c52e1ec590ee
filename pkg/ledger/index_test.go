package ledger

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/placement"
	"github.com/berthdev/berth/test/units"
)

// disksOf returns a capacity with free extents: "ssd 3 1, hdd 5" are two disks, one with two extents, in GiB.
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
			d.Free = append(d.Free, extent.New(start, gibs*units.GiB))
			start += (gibs + 1) * units.GiB
		}
		c.Disks = append(c.Disks, d)
	}
	return c
}

// Best returns up to k nodes that take all of the requests together, the best first.
func (l *Ledger) Best(requests []placement.Request, k int, accept func(nodeName string, s *Snapshot) bool) []string {
	var names []string
	for name, s := range l.BestNodes(requests) {
		if len(names) == k {
			break
		}
		if _, err := Fit(s.Node, requests); err == nil && accept(name, s) {
			names = append(names, name)
		}
	}
	return names
}

func TestBestNodes(t *testing.T) {
	nodes := map[string]string{
		"a": "ssd 10",
		"b": "ssd 3 7 3, equal 1 2",
		"c": "ssd 5 5, hdd 2, equal 3",
		"d": "hdd 4, hdd 4, equal 3, equal 2",
		"e": "ssd 4, ssd 6, equal 3",
	}
	ssd := func(sizes ...int64) (requests []placement.Request) {
		for _, s := range sizes {
			requests = append(requests, placement.Request{Class: "ssd", Size: s * units.GiB})
		}
		return requests
	}
	spread := func(sizes ...int64) []placement.Request {
		requests := ssd(sizes...)
		for i := range requests {
			requests[i].Policy = placement.Spread
		}
		return requests
	}
	// Equal nodes come in this order.
	if order := byOrder("a", "b", "c", "d", "e"); order != "e b c a d" {
		t.Fatalf("the nodes' order is %s", order)
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
		{"two classes", append(ssd(1), placement.Request{Class: "hdd", Size: 2 * units.GiB}), 10, "", "c"},
		{"apart", []placement.Request{{Class: "hdd", Size: units.GiB, Apart: true}, {Class: "hdd", Size: units.GiB, Apart: true}}, 10, "", "d"},
		{"not accepted", ssd(3), 2, "b", "e c"},
		{"unknown class", []placement.Request{{Class: "tape", Size: units.GiB}}, 10, "", ""},
		{"nothing", nil, 10, "", ""},
		{"none", ssd(3), 0, "", ""},
		{"equally tight, in their order", []placement.Request{{Class: "equal", Size: 3 * units.GiB}}, 10, "", "e c d"},
		{"spread: the emptiest disk first, each node once", spread(3), 10, "", "b c a e"},
		{"spread: only disks with room count", spread(6), 10, "", "b a e"},
		{"spread: no more than asked for", spread(1), 1, "", "b"},
		{"spread: not accepted", spread(1), 2, "c", "b a"},
		{"spread: larger than all", spread(11), 10, "", ""},
		{"spread: the largest volume decides, all must fit", spread(4, 4), 10, "", "c a e"},
		{"spread: equals in their order", []placement.Request{{Class: "equal", Size: units.GiB, Policy: placement.Spread}}, 10, "", "e b c d"},
		{"with another class's policy", append(spread(3), placement.Request{Class: "hdd", Size: 2 * units.GiB}), 10, "", "c"},
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
			got := l.Best(test.requests, test.k, func(name string, _ *Snapshot) bool { return name != test.refused })
			if strings.Join(got, " ") != test.want {
				t.Errorf("got %v, want %s", got, test.want)
			}
		})
	}
}

// TestRankMixesEqualNodes asserts that the first of many equal nodes are in several zones.
func TestRankMixesEqualNodes(t *testing.T) {
	l := New()
	for i := range 900 {
		name := fmt.Sprintf("zone-%c-node-%03d", 'a'+i/300, i)
		l.SetCapacity(name, disksOf(name, "ssd 10", uint64(i+1)))
	}
	inZone := map[byte]int{}
	for _, name := range l.Best(one(1), 90, func(string, *Snapshot) bool { return true }) {
		inZone[name[len("zone-")]]++
	}
	for zone := byte('a'); zone <= 'c'; zone++ {
		if inZone[zone] < 15 {
			t.Errorf("%d of 90 nodes are in zone %c, want about 30", inZone[zone], zone)
		}
	}
}

// byOrder sorts nodes in the order of equal ones.
func byOrder(names ...string) string {
	slices.SortFunc(names, func(a, b string) int { return cmp.Compare(placement.NodeRank(a), placement.NodeRank(b)) })
	return strings.Join(names, " ")
}

// best computes the result of Best by looking at every node, and at every place on it.
func (l *Ledger) best(requests []placement.Request, k int) []string {
	leading := requests[placement.LargestRequest(requests)]
	type candidate struct {
		rank int64
		node *node
	}
	var found []candidate
	l.nodes.Range(func(_, value any) bool {
		n := value.(*node)
		if _, err := Fit(n.snapshot.Load().Node, requests); err != nil {
			return true
		}
		c := candidate{math.MaxInt64, n}
		if leading.Splits() {
			// Without an extent for it the node comes after all others, by its emptiest disk.
			for _, d := range n.snapshot.Load().Node.Disks {
				if d.Class == leading.Class {
					c.rank = min(c.rank, math.MaxInt64-d.Free.Total())
				}
			}
		}
		for _, d := range n.snapshot.Load().Node.Disks {
			for _, e := range d.Free.All() {
				over := e.Len() - leading.Size
				if d.Class != leading.Class || over < 0 {
					continue
				}
				if leading.Policy == placement.Spread {
					over = -d.Free.Total()
				}
				c.rank = min(c.rank, over)
			}
		}
		found = append(found, c)
		return true
	})
	slices.SortFunc(found, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(a.rank, b.rank), cmp.Compare(placement.NodeRank(a.node.name), placement.NodeRank(b.node.name)), cmp.Compare(a.node.name, b.node.name))
	})
	var names []string
	for _, c := range found[:min(k, len(found))] {
		names = append(names, c.node.name)
	}
	return names
}

// TestBestNodesAgainstModel changes nodes and pods at random. It asserts after every step that Best and best give the
// same nodes.
func TestBestNodesAgainstModel(t *testing.T) {
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
			switch rng.IntN(9) {
			case 8:
				l.SetAgent(node(), rng.IntN(2) == 0)
			case 0, 1, 2:
				name, disks := node(), []string{}
				for range 1 + rng.IntN(3) {
					disk := []string{class()}
					for range rng.IntN(12) {
						disk = append(disk, strconv.Itoa(1+rng.IntN(9)))
					}
					disks = append(disks, strings.Join(disk, " "))
				}
				c := disksOf(name, strings.Join(disks, ", "), uint64(step+1))
				c.DeviceMapper = rng.IntN(2) == 0
				l.SetCapacity(name, c)
			case 3:
				l.DeleteCapacity(node(), uint64(step+1))
			case 4:
				l.Forget(uid)
			case 5:
				l.Doubt(uid)
			case 6:
				l.DeletePod(uid)
			default:
				_, _ = l.Reserve(uid, node(), wants([]string{"p" + uid}, []placement.Request{{Class: class(), Size: int64(1+rng.IntN(9)) * units.GiB}}))
			}
			if err := l.Validate(); err != nil {
				t.Fatalf("seed %d, step %d: %v", seed, step, err)
			}
			requests := make([]placement.Request, 1+rng.IntN(2))
			for i := range requests {
				requests[i] = placement.Request{Class: class(), Size: int64(1+rng.IntN(9))*units.GiB - int64(rng.IntN(3))*units.GiB/40&^(placement.Alignment-1)}
				if step%2 == 0 {
					requests[i].Size *= 1 + rng.Int64N(3)
					requests[i].MaxPieces = rng.IntN(4)
				}
				if requests[i].Class == "hdd" {
					requests[i].Policy = placement.Spread
				}
			}
			k := 1 + rng.IntN(20)
			have, want := l.Best(requests, k, func(string, *Snapshot) bool { return true }), l.best(requests, k)
			if !slices.Equal(have, want) {
				t.Fatalf("seed %d, step %d: %v: have %v, want %v", seed, step, requests, have, want)
			}
		}
	}
}

// checkTheOneBest asserts that the ledger's best node is the one that the policy chooses of all nodes.
func checkTheOneBest(t *testing.T, l *Ledger, requests []placement.Request, have string) {
	t.Helper()
	merit := func(name string) int64 {
		merit, err := l.Snapshot(name).Fit(requests)
		if err != nil {
			return math.MinInt64
		}
		return merit
	}
	best := merit(have)
	l.nodes.Range(func(key, _ any) bool {
		name := key.(string)
		if m := merit(name); m > best || m == best && placement.NodeRank(name) < placement.NodeRank(have) {
			t.Fatalf("%v: %s is better than %s", requests, name, have)
		}
		return true
	})
}

// TestFirstOfBestNodes asserts that of 5000 nodes with several disks each, the best one is found every time, from full
// to empty.
func TestFirstOfBestNodes(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 5))
	l := New()
	for i := range 5000 {
		name := fmt.Sprintf("node-%04d", i)
		l.SetCapacity(name, disksOf(name, fmt.Sprintf("ssd %d %d %d, ssd %d %d, hdd 50", 1+rng.IntN(400), 1+rng.IntN(400), 1+rng.IntN(400), 1+rng.IntN(400), 1+rng.IntN(400)), uint64(i+1)))
	}
	for i := range 120 {
		r := placement.Request{Class: "ssd", Size: 1 + rng.Int64N(400)}
		r.Size *= units.GiB
		if i%3 == 0 {
			r.Policy = placement.Spread
		}
		requests := []placement.Request{r}
		names := l.Best(requests, 50, func(string, *Snapshot) bool { return true })
		if len(names) != 50 {
			t.Fatalf("%v: %d nodes", r, len(names))
		}
		checkTheOneBest(t, l, requests, names[0])
		if _, err := l.Reserve(fmt.Sprint("u", i), names[0], wants([]string{fmt.Sprint("p", i)}, requests)); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Validate(); err != nil {
		t.Fatal(err)
	}
}

// TestSortedEntries asserts that the set has exactly what was inserted and not removed, in any order, with many chunks.
func TestSortedEntries(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 3))
	count := 20 * maxChunk
	nodes := make([]*node, 500)
	for i := range nodes {
		nodes[i] = &node{name: fmt.Sprint("n", i)}
		nodes[i].rank = placement.NodeRank(nodes[i].name) % 100 // some have the same
	}
	of := func(size int) indexEntry {
		return indexEntry{int64(size), int64(size * 7919 % count), nodes[size%len(nodes)]}
	}
	s := &sortedEntries{}
	want := map[indexEntry]struct{}{}
	check := func() {
		t.Helper()
		if err := s.validate(want); err != nil {
			t.Fatal(err)
		}
	}
	for i, size := range rng.Perm(count) {
		s.insert(of(size))
		s.insert(of(size))
		want[of(size)] = struct{}{}
		if i%1000 == 0 {
			check()
		}
	}
	check()
	if len(s.chunks) < 20 {
		t.Errorf("%d entries are in %d chunks", count, len(s.chunks))
	}
	all := slices.SortedFunc(maps.Keys(want), compareEntries)
	for _, size := range []int64{math.MinInt64, 0, 1, maxChunk, int64(count / 2), int64(count - 1), int64(count)} {
		for _, reach := range []int64{0, int64(count / 2), int64(count - 1), int64(count)} {
			want := slices.DeleteFunc(slices.Clone(all), func(o indexEntry) bool { return o.size < size || o.largest < reach })
			if have := slices.Collect(s.from(indexEntry{size: size}, reach)); !slices.Equal(have, want) {
				t.Errorf("from %d with room for %d: %d entries, want %d, or in another order", size, reach, len(have), len(want))
			}
		}
	}
	// From any entry on, also from one that was removed.
	for range 200 {
		from := all[rng.IntN(len(all))]
		if rng.IntN(2) == 0 {
			from.largest++
		}
		want := slices.DeleteFunc(slices.Clone(all), func(o indexEntry) bool { return compareEntries(o, from) <= 0 })
		if have := slices.Collect(s.from(from, 0)); !slices.Equal(have, want) {
			t.Errorf("after %v: %d entries, want %d, or in another order", from, len(have), len(want))
		}
	}
	for i, size := range rng.Perm(count) {
		s.remove(of(size))
		s.remove(of(size))
		delete(want, of(size))
		if i%1000 == 0 {
			check()
		}
	}
	if len(s.chunks) != 0 {
		t.Errorf("%d chunks are left", len(s.chunks))
	}
}

func BenchmarkBest(b *testing.B) {
	l := New()
	for i := range 5000 {
		name := fmt.Sprintf("node-%04d", i)
		l.SetCapacity(name, disksOf(name, fmt.Sprintf("ssd %d 20 30, ssd 40 %d, hdd 50", 1+i%100, 1+i%77), uint64(i+1)))
	}
	all := func(string, *Snapshot) bool { return true }
	query := func(name string, r placement.Request) {
		b.Run(name, func(b *testing.B) {
			requests := []placement.Request{r}
			b.ReportAllocs()
			for b.Loop() {
				if names := l.Best(requests, 50, all); len(names) != 50 {
					b.Fatal(len(names))
				}
			}
		})
	}
	query("tightest", placement.Request{Class: "ssd", Size: 11 * units.GiB})
	query("exact", placement.Request{Class: "ssd", Size: 30 * units.GiB})
	query("spread", placement.Request{Class: "ssd", Size: 11 * units.GiB, Policy: placement.Spread})
	query("spread, few with room", placement.Request{Class: "ssd", Size: 98 * units.GiB, Policy: placement.Spread})
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
