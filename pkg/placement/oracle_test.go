package placement

import (
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/berthdev/berth/pkg/extent"
)

// The oracle is a second implementation of Plan, as simple as possible: it tries every extent for every volume.

// possible reports whether the requests can be placed at all.
func possible(node *Node, requests []Request) bool {
	left := map[[2]int]int64{} // disk, extent → bytes left
	for d := range node.Disks {
		for i, e := range node.Disks[d].Free.All() {
			left[[2]int{d, i}] = e.Len()
		}
	}
	return tryAll(node, requests, left, map[int]bool{})
}

func tryAll(node *Node, requests []Request, left map[[2]int]int64, apart map[int]bool) bool {
	if len(requests) == 0 {
		return true
	}
	r := requests[0]
	for where, n := range left {
		d := where[0]
		if node.Disks[d].Class != r.Class || n < r.Size || r.Apart && apart[d] {
			continue
		}
		left[where] -= r.Size
		if r.Apart {
			apart[d] = true
		}
		found := tryAll(node, requests[1:], left, apart)
		left[where] += r.Size
		if r.Apart {
			delete(apart, d)
		}
		if found {
			return true
		}
	}
	return false
}

// checkPlan returns what is wrong with a plan, if anything.
func checkPlan(node *Node, requests []Request, plan []Assignment) error {
	if len(plan) != len(requests) {
		return fmt.Errorf("%d places for %d requests", len(plan), len(requests))
	}
	apart, taken := map[string]bool{}, map[string]extent.Set{}
	for i, place := range plan {
		r := requests[i]
		d := -1
		for k := range node.Disks {
			if node.Disks[k].ID == place.Disk {
				d = k
			}
		}
		switch {
		case d < 0:
			return fmt.Errorf("request %d: no disk %q", i, place.Disk)
		case node.Disks[d].Class != r.Class:
			return fmt.Errorf("request %d: disk %q has class %q", i, place.Disk, node.Disks[d].Class)
		case len(place.Further) > 0 && (!node.Pieces || len(place.Further) >= r.MaxPieces):
			return fmt.Errorf("request %d: has %d further pieces", i, len(place.Further))
		case r.Apart && apart[place.Disk]:
			return fmt.Errorf("request %d: shares disk %q", i, place.Disk)
		}
		if r.Apart {
			apart[place.Disk] = true
		}
		var length int64
		for n := range place.numPieces() {
			e := place.piece(n)
			length += e.Len()
			switch {
			case e.Start%Alignment != 0 || e.Empty():
				return fmt.Errorf("request %d: %v is not aligned", i, e)
			case !node.Disks[d].Free.Contains(e):
				return fmt.Errorf("request %d: %v is not free", i, e)
			case taken[place.Disk].Overlaps(e):
				return fmt.Errorf("request %d: %v is taken by this plan", i, e)
			}
			taken[place.Disk] = taken[place.Disk].Add(e)
		}
		if length != r.Size {
			return fmt.Errorf("request %d: %d bytes for %d", i, length, r.Size)
		}
	}
	return nil
}

// checkPolicy returns what is wrong with the place of one volume, if anything.
func checkPolicy(node *Node, r Request, place Assignment) error {
	chosen, ok := node.freeExtentOf(place.Disk, place.Extent)
	if !ok || chosen.Start != place.Extent.Start {
		return fmt.Errorf("%v is not at the start of a free extent", place.Extent)
	}
	// rank returns the sort keys of an extent, the most important first. The smallest keys win.
	rank := func(d *Disk, e extent.Extent) []string {
		number := func(n int64) string { return fmt.Sprintf("%020d", n) }
		if r.Policy == Spread {
			return []string{number(1<<60 - d.Free.Total()), d.ID, number(e.Len()), number(e.Start)}
		}
		return []string{number(e.Len()), d.ID, number(e.Start)}
	}
	var have []string
	for d := range node.Disks {
		if node.Disks[d].ID == place.Disk {
			have = rank(&node.Disks[d], chosen)
		}
	}
	for d := range node.Disks {
		disk := &node.Disks[d]
		for _, e := range disk.Free.All() {
			if disk.Class == r.Class && e.Len() >= r.Size && slices.Compare(rank(disk, e), have) < 0 {
				return fmt.Errorf("%v on %s is better than %v on %s", e, disk.ID, chosen, place.Disk)
			}
		}
	}
	return nil
}

// under gives all requests the policy.
func under(policy Policy, requests []Request) []Request {
	requests = slices.Clone(requests)
	for i := range requests {
		requests[i].Policy = policy
	}
	return requests
}

// mib makes extents of the given lengths in MiB, with gaps between them.
func mib(lengths ...int64) extent.Set {
	var extents []extent.Extent
	at := int64(1)
	for _, n := range lengths {
		extents = append(extents, extent.New(at*Alignment, n*Alignment))
		at += n + 1
	}
	return extent.NewSet(extents...)
}

func disk(id, class string, lengths ...int64) Disk {
	return Disk{ID: id, Class: class, Free: mib(lengths...)}
}

func want(sizes ...int64) []Request {
	var requests []Request
	for _, n := range sizes {
		requests = append(requests, Request{Class: "ssd", Size: n * Alignment})
	}
	return requests
}

func wantApart(sizes ...int64) []Request {
	requests := want(sizes...)
	for i := range requests {
		requests[i].Apart = true
	}
	return requests
}

// randomCase makes a node, and volumes by cutting most of its free extents into pieces and sometimes changing one. So
// the volumes nearly fill the node, and best fit alone often fails.
func randomCase(rng *rand.Rand, maxVolumes, maxExtents int) (*Node, []Request) {
	classes := []string{"ssd", "ssd", "ssd", "hdd"}
	node := &Node{}
	var requests []Request
	largest, share := 3+rng.Int64N(12), rng.IntN(4)
	for d := range 1 + rng.IntN(4) {
		class := classes[rng.IntN(len(classes))]
		var lengths []int64
		for range min(rng.IntN(4), maxExtents) {
			maxExtents--
			length := 1 + rng.Int64N(largest)
			lengths = append(lengths, length)
			for length > 0 && len(requests) < maxVolumes && rng.IntN(8) > 0 {
				size := 1 + rng.Int64N(length)
				length -= size
				requests = append(requests, Request{Class: class, Size: size * Alignment, Apart: rng.IntN(4) < share})
			}
		}
		node.Disks = append(node.Disks, disk(fmt.Sprintf("d%d", d), class, lengths...))
	}
	if len(requests) == 0 {
		requests = want(1 + rng.Int64N(largest))
	}
	switch r := &requests[rng.IntN(len(requests))]; rng.IntN(4) {
	case 0:
		r.Size += Alignment
	case 1:
		r.Apart = !r.Apart
	}
	rng.Shuffle(len(requests), func(i, j int) { requests[i], requests[j] = requests[j], requests[i] })
	return node, requests
}
