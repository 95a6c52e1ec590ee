package diskcapacity

import (
	"cmp"
	"errors"
	"slices"
	"strings"
	"sync/atomic"

	fwk "k8s.io/kube-scheduler/framework"

	"github.com/berthdev/berth/pkg/placement"
)

// invalidKey marks the cycle of a pod with an invalid request.
const invalidKey fwk.StateKey = Name + "/invalid"

type invalid struct{}

// Clone implements fwk.StateData.
func (i invalid) Clone() fwk.StateData { return i }

// never refuses a node for a reason that the end of no pod could change.
func (s *state) never(other otherReason, reason string) *fwk.Status {
	s.rejections.sawOther(other)
	return fwk.NewStatus(fwk.UnschedulableAndUnresolvable, reason)
}

// noRoom refuses a node with too little free space. The code says whether the end of other pods could help.
func (s *state) noRoom(node string, err error) *fwk.Status {
	noFit, ok := errors.AsType[*placement.NoFit](err)
	if !ok {
		return fwk.AsStatus(err)
	}
	reason := s.rejections.saw(node, noFit)
	if s.figures {
		reason = noFit.Error()
	}
	if noFit.Never {
		return fwk.NewStatus(fwk.UnschedulableAndUnresolvable, reason)
	}
	return fwk.NewStatus(fwk.Unschedulable, reason)
}

// noNode is the status of a pod that fits no node. It says how near the nearest nodes came, unless each node has said
// it itself.
func (s *state) noNode() *fwk.Status {
	if best := s.rejections.best(); best != "" && !s.figures {
		return fwk.NewStatus(fwk.Unschedulable, best)
	}
	return fwk.NewStatus(fwk.Unschedulable)
}

// rejections are the reasons why nodes did not pass Filter, with one entry for all nodes with the same reason. Filter
// writes them for many nodes at once. The text is built once for each entry, and a node that adds nothing allocates
// nothing.
type rejections struct {
	kinds atomic.Pointer[kind]
	// others are the reasons without figures.
	others atomic.Uint32
}

// kind is what nodes with the same reason have in common.
type kind struct {
	// why is the NoFit of one of them.
	why    *placement.NoFit
	reason string
	// nearest is the node that lacks the least; of equal nodes the first by name, so that the message is always the
	// same.
	nearest atomic.Pointer[nearest]
	next    *kind
}

type nearest struct {
	node string
	why  *placement.NoFit
}

// saw adds a node that has no room, and returns the text for all nodes with the same reason.
func (r *rejections) saw(node string, why *placement.NoFit) string {
	k := r.kind(why)
	for {
		now := k.nearest.Load()
		if now != nil && !why.Nearer(now.why) && (now.why.Nearer(why) || now.node <= node) {
			return k.reason
		}
		if k.nearest.CompareAndSwap(now, &nearest{node: node, why: why}) {
			return k.reason
		}
	}
}

// kind returns the entry, and adds it if it is missing. There are a handful.
func (r *rejections) kind(why *placement.NoFit) *kind {
	var made *kind
	for {
		first := r.kinds.Load()
		for k := first; k != nil; k = k.next {
			if k.why.Alike(why) {
				return k
			}
		}
		if made == nil {
			made = &kind{why: why, reason: why.Reason()}
		}
		made.next = first
		if r.kinds.CompareAndSwap(first, made) {
			return made
		}
	}
}

// sawOther adds a reason without figures.
func (r *rejections) sawOther(reason otherReason) {
	// Most nodes have a reason that is known already, and then nothing is written.
	if bit := uint32(1) << reason; r.others.Load()&bit == 0 {
		r.others.Or(bit)
	}
}

// none reports whether no node was refused.
func (r *rejections) none() bool { return r.kinds.Load() == nil && r.others.Load() == 0 }

// best says how near the nearest nodes came; empty if that is of no use.
func (r *rejections) best() string {
	kinds := r.sorted()
	classes := slices.ContainsFunc(kinds, func(k *kind) bool { return k.why.Class != kinds[0].why.Class })
	var found []string
	for _, k := range kinds {
		nearest := k.nearest.Load()
		best := nearest.why.Best()
		if best == "" {
			continue
		}
		if classes {
			best += " of class " + k.why.Class
		}
		found = append(found, best+" on "+nearest.node)
	}
	if len(found) == 0 {
		return ""
	}
	return "Best is " + strings.Join(found, ", ")
}

func (r *rejections) sorted() []*kind {
	var kinds []*kind
	for k := r.kinds.Load(); k != nil; k = k.next {
		kinds = append(kinds, k)
	}
	slices.SortFunc(kinds, func(a, b *kind) int {
		return cmp.Or(cmp.Compare(a.why.Class, b.why.Class), cmp.Compare(a.why.Cause, b.why.Cause), cmp.Compare(a.reason, b.reason))
	})
	return kinds
}

// otherReason is why a node can take no volume, or not those of the pod.
type otherReason uint

const (
	otherNoAgent otherReason = iota
	otherNoReport
	otherProblem
	otherRefused
	otherNoLabel
	otherElsewhere
	numOtherReasons
)

// otherReasons and causes are the names in metrics.
var (
	otherReasons = [numOtherReasons]string{"no_agent", "not_published", "contradictory", "refused", "no_label", "volume_elsewhere"}
	causes       = map[placement.Cause]string{
		placement.NoDisk: "no_disk", placement.TooSmall: "extent_too_small", placement.TooLittle: "too_little_space",
		placement.TooFewDisks: "too_few_disks", placement.NotTogether: "not_together", placement.GaveUp: "search_given_up",
	}
)
