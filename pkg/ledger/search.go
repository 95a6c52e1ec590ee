package ledger

import (
	"sync"

	"github.com/berthdev/berth/pkg/placement"
)

// Search finds out for one pod, on many nodes, whether its volumes fit. Nodes with the same free lengths share a
// result. For more than eight volumes all results share a budget, so that any pod costs a scheduling cycle a bounded
// time. Several goroutines may use it.
type Search struct {
	demand *placement.Demand
	budget *placement.Budget
	needs  []need

	mu      sync.RWMutex
	results map[uint64]fitResult
}

// need is the demand of one class.
type need struct {
	class string
	// largest is the size of the largest volume, and largestWhole that of the largest that may not have pieces.
	largest, largestWhole, total int64
	aparts                       int
}

// exceeds reports whether a volume has no room, by the largest free extents alone.
func (n *need) exceeds(free *classFree, pieces bool) bool {
	if free.largest >= n.largest {
		return false
	}
	return !pieces || free.largest < n.largestWhole || free.mostOnDisk() < n.largest
}

// fitResult is the result of Fit for nodes with the same free lengths.
type fitResult struct {
	merit int64
	err   error
}

// NewSearch prepares a search for the requests, with that many steps for all results. The caller must not change the
// requests.
func NewSearch(requests []placement.Request, steps int64) *Search {
	q := &Search{demand: placement.NewDemand(requests), budget: placement.NewBudget(steps), results: map[uint64]fitResult{}}
	for i := range requests {
		r := &requests[i]
		n := q.need(r.Class)
		n.largest, n.total = max(n.largest, r.Size), placement.AddCapped(n.total, max(r.Size, 0))
		if !r.Splits() {
			n.largestWhole = max(n.largestWhole, r.Size)
		}
		if r.Apart {
			n.aparts++
		}
	}
	return q
}

// need returns the need of the class, and adds it if it is missing.
func (q *Search) need(class string) *need {
	for i := range q.needs {
		if q.needs[i].class == class {
			return &q.needs[i]
		}
	}
	q.needs = append(q.needs, need{class: class})
	return &q.needs[len(q.needs)-1]
}

// Demand is the demand that the search is for.
func (q *Search) Demand() *placement.Demand { return q.demand }

// Requests are the requests that the search is for.
func (q *Search) Requests() []placement.Request { return q.demand.Requests() }

// Spent reports whether the budget is spent: then the search gives up where QuickCheck is not sure.
func (q *Search) Spent() bool { return q.budget.Spent() }

// QuickCheck compares the requests with the largest free extents only, and those that may have pieces with what is free
// on a disk. It is sure in two cases. Either one request is too large, or each class has an extent for all of its
// volumes together. In the second case there is always an extent for the next volume, wherever the policies put the
// others.
func (q *Search) QuickCheck(s *Snapshot) (fits, sure bool) {
	if q.demand.Err() != nil {
		return false, false
	}
	sure = true
	for i := range q.needs {
		n := &q.needs[i]
		free := findClass(s.free, n.class)
		if free == nil || n.exceeds(free, s.Node.Pieces) {
			return false, true
		}
		sure = sure && n.total <= free.largest && n.aparts < 2
	}
	return true, sure
}

// Check returns why the requests do not fit on the node, or nil.
func (q *Search) Check(s *Snapshot) error {
	if fits, sure := q.QuickCheck(s); fits && sure {
		return nil
	}
	_, err := q.Fit(s)
	return err
}

// Fit returns the merit of placing the requests on the node, or placement's error.
func (q *Search) Fit(s *Snapshot) (merit int64, err error) {
	if len(q.Requests()) == 1 {
		return s.Fit(q.Requests())
	}
	hash, ok := q.lengthsHash(s)
	if !ok {
		return q.FitOn(s.Node)
	}
	q.mu.RLock()
	result, known := q.results[hash]
	q.mu.RUnlock()
	if !known {
		result.merit, result.err = q.FitOn(s.Node)
		q.mu.Lock()
		q.results[hash] = result
		q.mu.Unlock()
	}
	return result.merit, result.err
}

// Cached reports whether the result for the node is already computed.
func (q *Search) Cached(s *Snapshot) bool {
	hash, ok := q.lengthsHash(s)
	if !ok {
		return false
	}
	q.mu.RLock()
	defer q.mu.RUnlock()
	_, known := q.results[hash]
	return known
}

// FitOn is Fit for a node with other free space than in a snapshot.
func (q *Search) FitOn(node *placement.Node) (merit int64, err error) {
	var buffer [4]placement.Assignment
	plan, err := q.demand.Plan(buffer[:0], node, q.budget)
	if err != nil {
		return 0, err
	}
	return placement.Merit(node, q.demand.Requests(), plan), nil
}

// lengthsHash is equal for nodes on which the requests fit equally. It returns false if a class has nothing free.
func (q *Search) lengthsHash(s *Snapshot) (hash uint64, ok bool) {
	for i := range q.needs {
		free := findClass(s.free, q.needs[i].class)
		if free == nil {
			return 0, false
		}
		hash = mix(hash, free.lengthsHash)
		if n := &q.needs[i]; n.largest > n.largestWhole && s.Node.Pieces {
			hash = mix(hash, 1)
		}
	}
	return hash, true
}

// lengthsHashOf is a hash of everything that a plan for the class depends on, except where extents begin: the lengths
// of the free extents in their order, by disk.
func lengthsHashOf(disks []placement.Disk, class string) uint64 {
	hash := uint64(14695981039346656037)
	for i := range disks {
		d := &disks[i]
		if d.Class != class {
			continue
		}
		hash = mix(mix(hash, uint64(d.Usable)), uint64(d.Free.Len()))
		for _, e := range d.Free.All() {
			hash = mix(hash, uint64(e.Len()))
		}
	}
	return hash
}

// mix adds a number to a hash.
func mix(h, with uint64) uint64 {
	h = (h ^ with) * 0x9e3779b97f4a7c15
	return h ^ h>>29
}
