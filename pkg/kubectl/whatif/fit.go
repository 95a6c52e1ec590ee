package whatif

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/berthdev/berth/pkg/ledger"
	"github.com/berthdev/berth/pkg/placement"
)

// Question asks for room for volumes of one pod that does not exist.
type Question struct {
	Class string
	// Size of each volume and the Headroom behind it, in bytes, and how many there are.
	Size, Headroom int64
	Count          int
	// Apart is true when no two of them may share a disk.
	Apart bool
	// Node is the only node to look at; empty for all.
	Node string
}

// Answer says where there is room.
type Answer struct {
	// Nodes is how many nodes have disks of the class in service.
	Nodes int
	// Fits are the nodes with room. The one that is the best for these volumes is the first.
	Fits []Fit
	// Refused are the others of Nodes, by reason.
	Refused []Refusal
	// Pods is how many such pods have room one after the other, at most MaxPods. They are placed as the scheduler would.
	Pods int
}

// MaxPods is up to how many pods are counted.
const MaxPods = 1000

// maxSteps bounds the search for places on all nodes.
const maxSteps = 10_000_000

// Fit says where the volumes would have room, on the disks alone: taints and other resources of nodes do not count.
func (s *Scheduler) Fit(q Question) (*Answer, error) {
	policy, err := s.still.Policy(q.Class)
	if err != nil {
		return nil, err
	}
	requests := make([]placement.Request, q.Count)
	for i := range requests {
		w := ledger.VolumeRequest{Headroom: q.Headroom, Request: placement.Request{Class: q.Class, Size: q.Size, Apart: q.Apart, Policy: policy}}
		requests[i] = w.WithHeadroom()
	}
	nodes := s.nodesFor(q)
	if q.Node != "" && len(nodes) == 0 && !s.exists(q.Node) {
		return nil, fmt.Errorf("there is no node %s", q.Node)
	}
	search := ledger.NewSearch(requests, maxSteps)
	a, groups := &Answer{Nodes: len(nodes)}, map[string]*Refusal{}
	for name, node := range nodes {
		merit, err := search.FitOn(node)
		if err == nil {
			a.Fits = append(a.Fits, fitOf(name, node, requests, q.Size, merit))
			continue
		}
		addRefusal(groups, name, err)
	}
	sortFits(a.Fits)
	for _, g := range groups {
		slices.Sort(g.Nodes)
		a.Refused = append(a.Refused, *g)
	}
	sortRefusals(a.Refused)
	a.Pods = countPods(nodes, search, requests, q.Size)
	return a, nil
}

// nodesFor are the nodes with disks of the class in service, with what is free on them.
func (s *Scheduler) nodesFor(q Question) map[string]*placement.Node {
	nodes := map[string]*placement.Node{}
	for _, info := range s.nodes {
		name := info.Node().Name
		snapshot := s.still.Ledger().Snapshot(name)
		ofClass := func(d placement.Disk) bool { return d.Class == q.Class }
		if q.Node != "" && name != q.Node || !snapshot.Registered || !snapshot.Published || !slices.ContainsFunc(snapshot.Node.Disks, ofClass) {
			continue
		}
		nodes[name] = snapshot.Node
	}
	return nodes
}

func (s *Scheduler) exists(name string) bool {
	for _, info := range s.nodes {
		if info.Node().Name == name {
			return true
		}
	}
	return false
}

// fitOf is the plan on a node that has room.
func fitOf(name string, node *placement.Node, requests []placement.Request, size, merit int64) Fit {
	f := Fit{Node: name, merit: merit}
	plan, err := placement.Plan(nil, node, requests)
	if err != nil {
		return f
	}
	for _, a := range plan {
		f.Plan = append(f.Plan, placeOf(node, a, size))
	}
	return f
}

// countPods is how many such pods have room, one after the other, each on the best node for it.
func countPods(nodes map[string]*placement.Node, search *ledger.Search, requests []placement.Request, size int64) int {
	type candidate struct {
		name  string
		node  *placement.Node
		merit int64
	}
	var candidates []candidate
	for name, node := range nodes {
		if merit, err := search.FitOn(node); err == nil {
			candidates = append(candidates, candidate{name, node, merit})
		}
	}
	for pods := range MaxPods {
		if len(candidates) == 0 {
			return pods
		}
		best := 0
		for i := range candidates {
			a, b := &candidates[i], &candidates[best]
			if cmp.Or(cmp.Compare(a.merit, b.merit), cmp.Compare(placement.NodeRank(b.name), placement.NodeRank(a.name)), cmp.Compare(b.name, a.name)) > 0 {
				best = i
			}
		}
		c := &candidates[best]
		plan, err := placement.Plan(nil, c.node, requests)
		if err == nil {
			// Headroom is not reserved: the next volume may lie in it.
			for i := range plan {
				plan[i].Extent.End = plan[i].Extent.Start + size
			}
			c.node = ledger.SubtractPlan(c.node, plan)
			c.merit, err = search.FitOn(c.node)
		}
		if err != nil {
			candidates = slices.Delete(candidates, best, best+1)
		}
	}
	return MaxPods
}
