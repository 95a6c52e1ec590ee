package ledger

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/units"
)

// shares is a capacity with the named disks, each with 10 GiB free, and the disks in Owned.
func shares(revision int, disks, owned string) *Capacity {
	c := &Capacity{Revision: uint64(revision), Owned: strings.Fields(owned)}
	for _, id := range strings.Fields(disks) {
		c.Disks = append(c.Disks, Disk{ID: id, Class: class, Ready: true, Size: 100 * units.GiB, Free: []extent.Extent{at(0, 10)}})
	}
	return c
}

// serving are the disks that are free on the node.
func serving(l *Ledger, nodeName string) string {
	var ids []string
	for _, d := range l.Snapshot(nodeName).Node.Disks {
		ids = append(ids, d.ID)
	}
	return strings.Join(ids, " ")
}

// TestOwners asserts on which node a disk serves that several nodes publish.
func TestOwners(t *testing.T) {
	for name, test := range map[string]struct {
		steps []func(*Ledger)
		// a and b are the disks in service on the nodes.
		a, b string
	}{
		"the first to publish": {[]func(*Ledger){
			func(l *Ledger) { l.SetCapacity("a", shares(1, "d1 d2", "")) },
			func(l *Ledger) { l.SetCapacity("b", shares(2, "d1 d3", "")) },
		}, "d1 d2", "d3"},
		"the other one first": {[]func(*Ledger){
			func(l *Ledger) { l.SetCapacity("b", shares(2, "d1 d3", "")) },
			func(l *Ledger) { l.SetCapacity("a", shares(3, "d1 d2", "")) },
		}, "d2", "d1 d3"},
		"Owned counts more than the first publisher": {[]func(*Ledger){
			func(l *Ledger) { l.SetCapacity("b", shares(1, "d1", "")) },
			func(l *Ledger) { l.SetCapacity("a", shares(2, "d1", "d1")) },
		}, "d1", ""},
		"Owned is written later": {[]func(*Ledger){
			func(l *Ledger) { l.SetCapacity("a", shares(1, "d1", "")) },
			func(l *Ledger) { l.SetCapacity("b", shares(2, "d1", "")) },
			func(l *Ledger) { l.SetCapacity("b", shares(3, "d1", "d1")) },
		}, "", "d1"},
		"the owner does not publish it for a moment": {[]func(*Ledger){
			func(l *Ledger) { l.SetCapacity("a", shares(1, "d1", "d1")) },
			func(l *Ledger) { l.SetCapacity("b", shares(2, "d1", "")) },
			func(l *Ledger) { l.SetCapacity("a", shares(3, "", "d1")) },
		}, "", ""},
		"the owner gave it up": {[]func(*Ledger){
			func(l *Ledger) { l.SetCapacity("a", shares(1, "d1", "d1")) },
			func(l *Ledger) { l.SetCapacity("b", shares(2, "d1", "")) },
			func(l *Ledger) { l.SetCapacity("a", shares(3, "", "")) },
		}, "", "d1"},
		"the owner's capacity is deleted": {[]func(*Ledger){
			func(l *Ledger) { l.SetCapacity("a", shares(1, "d1", "d1")) },
			func(l *Ledger) { l.SetCapacity("b", shares(2, "d1", "")) },
			func(l *Ledger) { l.DeleteCapacity("a", 3) },
		}, "", "d1"},
		"the owner's Node is gone": {[]func(*Ledger){
			func(l *Ledger) { l.SetCapacity("a", shares(1, "d1 d2", "d1 d2")) },
			func(l *Ledger) { l.SetCapacity("b", shares(2, "d1", "")) },
			func(l *Ledger) { l.SetNode("a", false) },
		}, "", "d1"},
		"the owner's Node comes back": {[]func(*Ledger){
			func(l *Ledger) { l.SetCapacity("a", shares(1, "d1 d2", "d1 d2")) },
			func(l *Ledger) { l.SetCapacity("b", shares(2, "d1", "")) },
			func(l *Ledger) { l.SetNode("a", false) },
			func(l *Ledger) { l.SetNode("a", true) },
		}, "d1 d2", ""},
		"one that has no Node publishes": {[]func(*Ledger){
			func(l *Ledger) { l.SetCapacity("a", shares(1, "d1", "d1")) },
			func(l *Ledger) { l.SetNode("a", false) },
			func(l *Ledger) { l.SetCapacity("a", shares(2, "d1 d2", "d1")) },
		}, "", ""},
		"in Owned of both": {[]func(*Ledger){
			func(l *Ledger) { l.SetCapacity("b", shares(1, "d1", "d1")) },
			func(l *Ledger) { l.SetCapacity("a", shares(2, "d1", "d1")) },
		}, "d1", ""},
	} {
		t.Run(name, func(t *testing.T) {
			l := New()
			for i, step := range test.steps {
				step(l)
				if err := l.Validate(); err != nil {
					t.Fatalf("after step %d: %v", i+1, err)
				}
			}
			if a, b := serving(l, "a"), serving(l, "b"); a != test.a || b != test.b {
				t.Errorf("a serves %q and b %q, want %q and %q", a, b, test.a, test.b)
			}
		})
	}
}

// TestOwnersInAnyOrder asserts that once Owned is written, every order of the same facts gives the same result. It also
// asserts that what the other node publishes never takes the disk from its owner.
func TestOwnersInAnyOrder(t *testing.T) {
	facts := []func(*Ledger){
		func(l *Ledger) { l.SetCapacity("a", shares(2, "d1 d2", "d1 d2")) },
		func(l *Ledger) { l.SetNode("a", true) },
		func(l *Ledger) { l.SetCapacity("b", shares(3, "d1", "")) },
		func(l *Ledger) { l.SetCapacity("b", shares(5, "d1 d2 d3", "d3")) },
		func(l *Ledger) { l.SetNode("b", true) },
		func(l *Ledger) { l.SetCapacity("c", shares(4, "d2 d1", "")) },
	}
	var orders func(rest []int, order []int)
	count := 0
	orders = func(rest []int, order []int) {
		if len(rest) > 0 {
			for i, fact := range rest {
				orders(slices.Concat(rest[:i], rest[i+1:]), append(order, fact))
			}
			return
		}
		count++
		l := New()
		published := false
		for _, fact := range order {
			facts[fact](l)
			published = published || fact == 0
			if err := l.Validate(); err != nil {
				t.Fatalf("order %v: %v", order, err)
			}
			if published && serving(l, "a") != "d1 d2" {
				t.Fatalf("order %v: the owner serves %q after fact %d", order, serving(l, "a"), fact)
			}
		}
		if b, c := serving(l, "b"), serving(l, "c"); b != "d3" || c != "" {
			t.Fatalf("order %v: b serves %q, want d3, and c %q, want nothing", order, b, c)
		}
	}
	orders([]int{0, 1, 2, 3, 4, 5}, nil)
	if count != 720 {
		t.Errorf("tried %d orders, want 720", count)
	}
}

// TestOwnersModel changes at random what nodes publish and own, and which Nodes exist. It compares the ledger with the
// rule in owners.go, computed from a list of nodes in the order in which they published.
func TestOwnersModel(t *testing.T) {
	disks := []string{"d1", "d2", "d3"}
	nodes := []string{"a", "b", "c", "d"}
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 9))
		l := New()
		now := map[string]*Capacity{}
		absent := map[string]bool{}
		first := map[string][]string{}
		some := func() string {
			var s []string
			for _, d := range disks {
				if rng.IntN(2) == 0 {
					s = append(s, d)
				}
			}
			return strings.Join(s, " ")
		}
		for step := range 200 {
			name := nodes[rng.IntN(len(nodes))]
			switch rng.IntN(8) {
			case 0:
				l.DeleteCapacity(name, uint64(step+1))
				delete(now, name)
				delete(absent, name)
			case 1, 2:
				if now[name] != nil {
					absent[name] = !absent[name]
					l.SetNode(name, !absent[name])
				}
			default:
				owned := ""
				if rng.IntN(2) == 0 {
					owned = some()
				}
				now[name] = shares(step+1, some(), owned)
				l.SetCapacity(name, now[name])
			}
			for _, disk := range disks {
				first[disk] = slices.DeleteFunc(first[disk], func(n string) bool { return !publishes(now[n], disk) })
				for _, n := range nodes {
					if publishes(now[n], disk) && !slices.Contains(first[disk], n) {
						first[disk] = append(first[disk], n)
					}
				}
			}
			if err := l.Validate(); err != nil {
				t.Fatalf("seed %d, step %d: %v", seed, step, err)
			}
			for _, n := range nodes {
				var want []string
				for _, disk := range disks {
					if !absent[n] && publishes(now[n], disk) && ownerOf(disk, now, absent, first[disk]) == n {
						want = append(want, disk)
					}
				}
				if got := serving(l, n); got != strings.Join(want, " ") {
					t.Fatalf("seed %d, step %d: %s serves %q, want %q", seed, step, n, got, want)
				}
			}
		}
	}
}

func publishes(c *Capacity, disk string) bool {
	return c != nil && slices.ContainsFunc(c.Disks, func(d Disk) bool { return d.ID == disk })
}

// ownerOf is the rule of owners.go.
func ownerOf(disk string, now map[string]*Capacity, absent map[string]bool, first []string) string {
	var written []string
	for n, c := range now {
		if !absent[n] && slices.Contains(c.Owned, disk) {
			written = append(written, n)
		}
	}
	if len(written) > 0 {
		return slices.Min(written)
	}
	for _, n := range first {
		if !absent[n] {
			return n
		}
	}
	return ""
}

// TestOwnership asserts what Owned should be: the disks that the node published first, none of another node, and none
// that the node does not publish.
func TestOwnership(t *testing.T) {
	l := New()
	want := func(node, owned, shared string) {
		t.Helper()
		o := l.Ownership(node)
		var with []string
		for _, s := range o.Shared {
			with = append(with, fmt.Sprint(s.ID, "@", s.Owner, s.Others))
		}
		if got := strings.Join(o.Owned, " "); got != owned || strings.Join(with, " ") != shared {
			t.Errorf("node %s is to own %q and shares %q, want %q and %q", node, got, with, owned, shared)
		}
	}
	want("a", "", "")
	l.SetCapacity("a", shares(1, "d1 d2", ""))
	want("a", "d1 d2", "")
	l.SetCapacity("b", shares(2, "d1 d3", ""))
	want("a", "d1 d2", "d1@a[b]")
	want("b", "d3", "d1@a[a]")
	l.SetCapacity("a", shares(3, "d1 d2", "d1 d2"))
	want("b", "d3", "d1@a[a]")
	// While the owner has no Node, the disk serves elsewhere, and nothing new is written.
	l.SetNode("a", false)
	want("b", "d3", "d1@b[a]")
	want("a", "d1 d2", "d1@b[b]")
	l.SetNode("a", true)
	l.SetCapacity("a", shares(4, "d2", "d1 d2"))
	want("a", "d2", "")
	want("b", "d3", "")
	l.SetCapacity("a", shares(5, "d2", "d2"))
	want("b", "d1 d3", "")
}

// TestSharedDiskIsNotPlanned asserts that a disk is not used on a node that does not own it: not by pods, by growth, or
// by the search for the best node. It asserts that the disk's volumes are found on the owner.
func TestSharedDiskIsNotPlanned(t *testing.T) {
	l := New()
	with := func(revision int, owned string) *Capacity {
		c := shares(revision, "d1", owned)
		c.Disks[0].Free = []extent.Extent{at(1, 9)}
		c.Disks[0].Allocations = []Allocation{{Partition: "p", Extent: at(0, 1)}}
		return c
	}
	l.SetCapacity("a", with(1, "d1"))
	l.SetCapacity("b", with(2, ""))
	if _, err := l.Reserve("pod", "b", wants([]string{"q"}, one(1))); err == nil {
		t.Error("a pod got a place on a disk that another node owns")
	}
	if got := l.Best(one(1), 5, func(string, *Snapshot) bool { return true }); !slices.Equal(got, []string{"a"}) {
		t.Errorf("the best nodes are %v, want a", got)
	}
	if got, _, ok := l.Where("p"); !ok || got != "a" {
		t.Errorf("the volume is found on %q, want a", got)
	}
	l.setFirst("pv", "b", Record{"p", "d1", at(0, 1)})
	if granted, _ := l.Grow("pv", 2*units.GiB); granted {
		t.Error("a volume grew on a disk that another node owns")
	}
	if n := len(l.Snapshot("b").Without(map[string]struct{}{"p": {}}).Disks); n != 0 {
		t.Errorf("without the volume, the node has %d disks in service, want none", n)
	}
	if s := l.Stats(); s.Shared != 1 || s.Classes[class].Disks != 1 {
		t.Errorf("the figures count %d shared disks and %d in service, want one of each", s.Shared, s.Classes[class].Disks)
	}
	_, after, served := l.ReplaceCapacity("a", shares(4, "", ""))
	if after == nil || !slices.Equal(served, []string{"b"}) {
		t.Errorf("came into service: %v, want the disk on b", served)
	}
}

// TestAbsentNodeWithoutCapacity asserts that a node whose capacity goes before its Node is absent, too.
func TestAbsentNodeWithoutCapacity(t *testing.T) {
	l := New()
	l.SetCapacity("a", shares(1, "d1", ""))
	if _, err := l.Reserve("pod", "a", wants([]string{"q"}, one(1))); err != nil {
		t.Fatal(err)
	}
	l.DeleteCapacity("a", 2)
	if changed, _ := l.SetNode("a", false); !changed || !l.Snapshot("a").Absent {
		t.Errorf("changed: %v, the snapshot is %+v", changed, l.Snapshot("a"))
	}
	if err := l.Validate(); err != nil {
		t.Error(err)
	}
}

// TestAbsentNode asserts that nothing is free on a node without a Node, and that its space is free again when there is
// one.
func TestAbsentNode(t *testing.T) {
	l := New()
	if changed, _ := l.SetNode("a", false); changed {
		t.Error("an unknown node changed")
	}
	l.SetCapacity("a", shares(1, "d1", ""))
	if changed, _ := l.SetNode("a", false); !changed || !l.Snapshot("a").Absent {
		t.Error("the end of the Node changed nothing")
	}
	if _, err := l.Reserve("pod", "a", wants([]string{"q"}, one(1))); !errors.Is(err, ErrNotPublished) {
		t.Errorf("a place on a node that does not exist: %v", err)
	}
	if got := l.Best(one(1), 5, func(string, *Snapshot) bool { return true }); len(got) > 0 {
		t.Errorf("the best nodes are %v, want none", got)
	}
	if s := l.Stats(); s.Nodes != 0 || s.Absent != 1 || len(s.Classes) != 0 {
		t.Errorf("the figures are %+v, want nothing but an absent node", s)
	}
	if err := l.Validate(); err != nil {
		t.Error(err)
	}
	if changed, _ := l.SetNode("a", true); !changed {
		t.Error("the return of the Node changed nothing")
	}
	if _, err := l.Reserve("pod", "a", wants([]string{"q"}, one(1))); err != nil {
		t.Error(err)
	}
}
