package placement

import (
	"iter"
	"slices"
	"sync"
)

// Demand is what a pod requests, prepared for planning on many nodes. It does not change.
type Demand struct {
	requests []Request
	classes  []classDemand
	// err is set if no node could take the requests.
	err error
	// buffers are reused by later plans: a pod is planned on thousands of nodes.
	buffers sync.Pool
}

// classDemand is the part of one class.
type classDemand struct {
	class string
	// order is the requests' indices, in the order in which they are placed.
	order []int
	wanted
	// total of the sizes.
	total int64
}

// NewDemand prepares the requests. The caller must not change them afterwards.
func NewDemand(requests []Request) *Demand {
	d := &Demand{requests: requests, err: validate(requests)}
	if d.err != nil {
		return d
	}
	order := make([]int, len(requests))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return compare(&requests[a], &requests[b], a, b) })
	for len(order) > 0 {
		n := 1
		for n < len(order) && requests[order[n]].Class == requests[order[0]].Class {
			n++
		}
		class := requests[order[0]].Class
		c := classDemand{class: class, order: order[:n], wanted: wantedOf(requests, class)}
		c.total = sum(c.sizes)
		d.classes = append(d.classes, c)
		order = order[n:]
	}
	return d
}

// Need is what a pod needs of one class: one extent for its largest volume that may not have pieces, and room for all
// volumes together.
type Need struct{ Largest, Total int64 }

// Needs yields the need of each class.
func (d *Demand) Needs() iter.Seq2[string, Need] {
	return func(yield func(string, Need) bool) {
		for i := range d.classes {
			if c := &d.classes[i]; !yield(c.class, Need{c.largestWhole(), c.total}) {
				return
			}
		}
	}
}

// Requests returns the requests that the Demand was made from.
func (d *Demand) Requests() []Request { return d.requests }

// Err returns what is wrong with the requests if no node could take them.
func (d *Demand) Err() error { return d.err }

// AlwaysExact reports whether the search for places is never given up.
func (d *Demand) AlwaysExact() bool { return len(d.requests) <= maxExact }

// Plan is [Plan] within a budget, which holds only for pods with more than eight volumes.
func (d *Demand) Plan(dst []Assignment, node *Node, budget *Budget) ([]Assignment, error) {
	if d.err != nil {
		return dst, d.err
	}
	if d.AlwaysExact() {
		budget = nil
	}
	b, _ := d.buffers.Get().(*buffers)
	if b == nil {
		b = &buffers{}
	}
	defer d.buffers.Put(b)
	before := len(dst)
	for range d.requests {
		dst = append(dst, Assignment{})
	}
	for i := range d.classes {
		c := &d.classes[i]
		if o := planClass(node, d.requests, c.order, dst[before:], budget, b); o != found {
			return dst[:before], explainWanted(node, c.class, &c.wanted).withOutcome(o)
		}
	}
	return dst, nil
}
