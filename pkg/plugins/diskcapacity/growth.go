package diskcapacity

import (
	"errors"
	"sync"
	"sync/atomic"

	"github.com/berthdev/berth/pkg/ledger"
	"github.com/berthdev/berth/pkg/placement"
)

const (
	// eventPlans is how many plans an event costs at most, however many pods wait.
	eventPlans = 500
	// roundPlans is the same of a round, which is made under a lock.
	roundPlans = 100
	// planSteps is how many steps plans for pods with more than eight volumes may take together, for each of the plans.
	planSteps = 500
)

// growth answers whether pods fit a node now that did not fit before. Pods that ask for the same share an answer. It
// makes so many plans and no more: then a pod that is not plainly too large is admitted, since one that is woken in
// vain costs less than one that is not woken.
type growth struct {
	before, after *placement.Node
	// rooms of the classes now: mostly the answer is that the volumes are larger.
	rooms map[string]room

	mu     sync.Mutex
	known  map[uint64]bool
	plans  int
	budget *placement.Budget
	// offered is set once what the plans did not suffice for is offered.
	offered atomic.Bool
}

// room is what a node has of a class.
type room struct{ largest, total int64 }

// newGrowth is that of a node; before is nil if nothing fitted.
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

// exceeds reports whether the pod plainly asks for more.
func exceeds(demand *placement.Demand, rooms map[string]room) bool {
	for class, need := range demand.Needs() {
		if r := rooms[class]; need.Largest > r.largest || need.Total > r.total {
			return true
		}
	}
	return false
}

// admits reports whether the pod fits now and did not before, or may.
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

// spent reports whether pods are admitted without a plan.
func (g *growth) spent() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.plans <= 0
}

func (g *growth) compute(demand *placement.Demand) bool {
	return g.fits(g.after, demand, true) && (g.before == nil || !g.fits(g.before, demand, false))
}

// fits is a plan; otherwise is the answer if it is given up.
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

// take reports whether there is room left for the pod, which then has it. It is not found any more when there were too
// many plans.
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
	p.node = ledger.Less(p.node, plan)
	p.rooms = roomsOf(p.node)
	return true
}
