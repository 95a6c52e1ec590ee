package diskcapacity

import (
	"errors"
	"sync"
	"sync/atomic"

	"github.com/berthdev/berth/pkg/ledger"
	"github.com/berthdev/berth/pkg/placement"
)

const (
	// maxPlansPerEvent is how many plans an event makes at most, however many pods wait.
	maxPlansPerEvent = 500
	// maxPlansPerRound is the same for a round, which is made under a lock.
	maxPlansPerRound = 100
	// stepsPerPlan is the number of steps for each plan in the budget of the pods with more than eight volumes.
	stepsPerPlan = 500
)

// spaceGain finds out which pods fit a node since it gained free space. Pods with equal requests share a result. The
// number of plans is bounded. Beyond it a pod is taken to fit unless its request is larger than the free space. To wake
// a pod in vain costs less than not to wake one that fits.
type spaceGain struct {
	before, after *placement.Node
	// space is the free space now, by class: usually the volumes are larger.
	space map[string]classSpace

	mu        sync.Mutex
	results   map[uint64]bool
	plansLeft int
	budget    *placement.Budget
	// handedOver is set once the pods that were not checked with a plan have been handed over to requeueFitting.
	handedOver atomic.Bool
}

// classSpace is the free space of a class on a node.
type classSpace struct{ largest, total int64 }

// newSpaceGain compares the node before and after; before is nil if nothing fitted.
func newSpaceGain(before, after *placement.Node, plans int) *spaceGain {
	return &spaceGain{before: before, after: after, space: spaceByClass(after), results: map[uint64]bool{}, plansLeft: plans, budget: placement.NewBudget(int64(plans) * stepsPerPlan)}
}

// spaceByClass returns the node's free space, by class. A sum that would overflow is left as it is.
func spaceByClass(node *placement.Node) map[string]classSpace {
	space := map[string]classSpace{}
	for i := range node.Disks {
		d := &node.Disks[i]
		r := space[d.Class]
		r.largest = max(r.largest, d.Free.Largest().Len())
		if total := r.total + d.Free.Total(); total >= r.total {
			r.total = total
		}
		space[d.Class] = r
	}
	return space
}

// exceeds reports whether the pod requests more than the free space, without a plan.
func exceeds(demand *placement.Demand, space map[string]classSpace) bool {
	for class, need := range demand.Needs() {
		if r := space[class]; need.Largest > r.largest || need.Total > r.total {
			return true
		}
	}
	return false
}

// mayFit reports whether the pod fits since the node gained space. It is true as well if that is not known.
func (g *spaceGain) mayFit(a *attempt) bool {
	if exceeds(a.demand, g.space) {
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	answer, known := g.results[a.key]
	if known || g.plansLeft <= 0 {
		return answer || !known
	}
	answer = g.compute(a.demand)
	g.results[a.key] = answer
	return answer
}

// spent reports whether no plans are left.
func (g *spaceGain) spent() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.plansLeft <= 0
}

// compute finds out whether the demand fits now and did not fit before.
func (g *spaceGain) compute(demand *placement.Demand) bool {
	return g.fits(g.after, demand, true) && (g.before == nil || !g.fits(g.before, demand, false))
}

// fits makes a plan. otherwise is the result if the plan is given up.
func (g *spaceGain) fits(node *placement.Node, demand *placement.Demand, otherwise bool) bool {
	g.plansLeft--
	var buffer [4]placement.Assignment
	_, err := demand.Plan(buffer[:0], node, g.budget)
	if noFit, ok := errors.AsType[*placement.NoFit](err); ok && noFit.Cause == placement.GaveUp {
		return otherwise
	}
	return err == nil
}

// packing places pods on a node one after the other.
type packing struct {
	// node is what is left of the node, and space its free space by class.
	node  *placement.Node
	space map[string]classSpace
	// full has the keys of requests that do not fit any more.
	full      map[uint64]bool
	plansLeft int
	budget    *placement.Budget
}

func newPacking(node *placement.Node, maxPlans int) *packing {
	return &packing{node: node, space: spaceByClass(node), full: map[uint64]bool{}, plansLeft: maxPlans, budget: placement.NewBudget(int64(maxPlans) * stepsPerPlan)}
}

// add places the pod and reports whether it fits on what is left. It returns false when no plans are left.
func (p *packing) add(a *attempt) bool {
	if p.plansLeft <= 0 || p.full[a.key] || exceeds(a.demand, p.space) {
		return false
	}
	p.plansLeft--
	plan, err := a.demand.Plan(nil, p.node, p.budget)
	if err != nil {
		// What is left only becomes less.
		p.full[a.key] = true
		return false
	}
	p.node = ledger.SubtractPlan(p.node, plan)
	p.space = spaceByClass(p.node)
	return true
}
