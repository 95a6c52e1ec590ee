package diskcapacity

import (
	"errors"
	"sync"
	"sync/atomic"

	"github.com/berthdev/berth/pkg/ledger"
	"github.com/berthdev/berth/pkg/placement"
)

const (
	// eventPlans is how many plans an event makes at most, however many pods wait.
	eventPlans = 500
	// roundPlans is the same for a round, which is made under a lock.
	roundPlans = 100
	// planSteps is the number of steps for each plan in the budget of the pods with more than eight volumes.
	planSteps = 500
)

// growth finds out which pods fit a node now that did not fit before. Pods with equal requests share a result. The
// number of plans is bounded. Beyond it a pod is admitted unless its request is larger than the free space. To wake a
// pod in vain costs less than not to wake one that fits.
type growth struct {
	before, after *placement.Node
	// rooms is the free space now, by class: usually the volumes are larger.
	rooms map[string]room

	mu     sync.Mutex
	known  map[uint64]bool
	plans  int
	budget *placement.Budget
	// offered is set once the pods that were not checked with a plan have been offered the node.
	offered atomic.Bool
}

// room is the free space of a class on a node.
type room struct{ largest, total int64 }

// newGrowth compares the node before and after; before is nil if nothing fitted.
func newGrowth(before, after *placement.Node, plans int) *growth {
	return &growth{before: before, after: after, rooms: roomsOf(after), known: map[uint64]bool{}, plans: plans, budget: placement.NewBudget(int64(plans) * planSteps)}
}

func roomsOf(node *placement.Node) map[string]room {
	rooms := map[string]room{}
	for i := range node.Disks {
		d := &node.Disks[i]
		r := rooms[d.Class]
		r.largest = max(r.largest, d.Free.Largest().Len())
		if total := r.total + d.Free.Total(); total >= r.total {
			r.total = total
		}
		rooms[d.Class] = r
	}
	return rooms
}

// exceeds reports whether the pod requests more than the free space, without a plan.
func exceeds(demand *placement.Demand, rooms map[string]room) bool {
	for class, need := range demand.Needs() {
		if r := rooms[class]; need.Largest > r.largest || need.Total > r.total {
			return true
		}
	}
	return false
}

// admits reports whether the pod fits now and did not fit before, or may.
func (g *growth) admits(c *pending) bool {
	if exceeds(c.demand, g.rooms) {
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	answer, known := g.known[c.key]
	if known || g.plans <= 0 {
		return answer || !known
	}
	answer = g.compute(c.demand)
	g.known[c.key] = answer
	return answer
}

// spent reports whether no plans are left.
func (g *growth) spent() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.plans <= 0
}

func (g *growth) compute(demand *placement.Demand) bool {
	return g.fits(g.after, demand, true) && (g.before == nil || !g.fits(g.before, demand, false))
}

// fits makes a plan. otherwise is the result if the plan is given up.
func (g *growth) fits(node *placement.Node, demand *placement.Demand, otherwise bool) bool {
	g.plans--
	var buffer [4]placement.Assignment
	_, err := demand.Plan(buffer[:0], node, g.budget)
	if noFit, ok := errors.AsType[*placement.NoFit](err); ok && noFit.Cause == placement.GaveUp {
		return otherwise
	}
	return err == nil
}

// plans places pods on a node one after the other.
type plans struct {
	node   *placement.Node
	rooms  map[string]room
	full   map[uint64]bool
	left   int
	budget *placement.Budget
}

func newPlans(node *placement.Node, most int) *plans {
	return &plans{node: node, rooms: roomsOf(node), full: map[uint64]bool{}, left: most, budget: placement.NewBudget(int64(most) * planSteps)}
}

// take places the pod and reports whether it fits on what is left. It returns false when no plans are left.
func (p *plans) take(c *pending) bool {
	if p.left <= 0 || p.full[c.key] || exceeds(c.demand, p.rooms) {
		return false
	}
	p.left--
	plan, err := c.demand.Plan(nil, p.node, p.budget)
	if err != nil {
		// What is left only becomes less.
		p.full[c.key] = true
		return false
	}
	p.node = ledger.SubtractPlan(p.node, plan)
	p.rooms = roomsOf(p.node)
	return true
}
