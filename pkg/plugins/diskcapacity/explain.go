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

// invalid is the value of invalidKey.
type invalid struct{}

// Clone implements fwk.StateData.
func (i invalid) Clone() fwk.StateData { return i }

// unresolvable refuses a node for a reason that the end of no pod could change.
func (s *state) unresolvable(other otherReason, reason string) *fwk.Status {
	s.rejections.addOther(other)
	return fwk.NewStatus(fwk.UnschedulableAndUnresolvable, reason)
}

// unschedulable refuses a node with too little free space. The code says whether the end of other pods could help.
func (s *state) unschedulable(node string, err error) *fwk.Status {
	noFit, ok := errors.AsType[*placement.NoFit](err)
	if !ok {
		return fwk.AsStatus(err)
	}
	reason := s.rejections.add(node, noFit)
	if s.perNodeFigures {
		reason = noFit.Error()
	}
	if noFit.Never {
		return fwk.NewStatus(fwk.UnschedulableAndUnresolvable, reason)
	}
	return fwk.NewStatus(fwk.Unschedulable, reason)
}

// noNodeStatus is the status of a pod that fits no node. It says how near the nearest nodes came, unless each node has
// said it itself.
func (s *state) noNodeStatus() *fwk.Status {
	if best := s.rejections.bestMessage(); best != "" && !s.perNodeFigures {
		return fwk.NewStatus(fwk.Unschedulable, best)
	}
	return fwk.NewStatus(fwk.Unschedulable)
}

// rejections are the reasons why nodes did not pass Filter, with one group for all nodes with the same reason. Filter
// writes them for many nodes at once. The text is built once for each group, and a node that adds nothing allocates
// nothing.
type rejections struct {
	groups atomic.Pointer[rejectionGroup]
	// others are the reasons without figures.
	others atomic.Uint32
}

// rejectionGroup is what nodes with the same reason have in common.
type rejectionGroup struct {
	// noFit is the NoFit of one of them.
	noFit  *placement.NoFit
	reason string
	// nearest is the node that lacks the least; of equal nodes the first by name, so that the message is always the
	// same.
	nearest atomic.Pointer[nearestNode]
	next    *rejectionGroup
}

// nearestNode is a node with what it lacks.
type nearestNode struct {
	node  string
	noFit *placement.NoFit
}

// add adds a node that has no room, and returns the text for all nodes with the same reason.
func (r *rejections) add(node string, why *placement.NoFit) string {
	g := r.group(why)
	for {
		now := g.nearest.Load()
		if now != nil && !why.Nearer(now.noFit) && (now.noFit.Nearer(why) || now.node <= node) {
			return g.reason
		}
		if g.nearest.CompareAndSwap(now, &nearestNode{node: node, noFit: why}) {
			return g.reason
		}
	}
}

// group returns the group of the reason, and adds it if it is missing. There are a handful.
func (r *rejections) group(why *placement.NoFit) *rejectionGroup {
	var made *rejectionGroup
	for {
		first := r.groups.Load()
		for g := first; g != nil; g = g.next {
			if g.noFit.Alike(why) {
				return g
			}
		}
		if made == nil {
			made = &rejectionGroup{noFit: why, reason: why.Reason()}
		}
		made.next = first
		if r.groups.CompareAndSwap(first, made) {
			return made
		}
	}
}

// addOther adds a reason without figures.
func (r *rejections) addOther(reason otherReason) {
	// Most nodes have a reason that is known already, and then nothing is written.
	if bit := uint32(1) << reason; r.others.Load()&bit == 0 {
		r.others.Or(bit)
	}
}

// isEmpty reports whether no node was refused.
func (r *rejections) isEmpty() bool { return r.groups.Load() == nil && r.others.Load() == 0 }

// bestMessage says how near the nearest nodes came; empty if that is of no use.
func (r *rejections) bestMessage() string {
	groups := r.sorted()
	classes := slices.ContainsFunc(groups, func(g *rejectionGroup) bool { return g.noFit.Class != groups[0].noFit.Class })
	var found []string
	for _, g := range groups {
		nearest := g.nearest.Load()
		best := nearest.noFit.Best()
		if best == "" {
			continue
		}
		if classes {
			best += " of class " + g.noFit.Class
		}
		found = append(found, best+" on "+nearest.node)
	}
	if len(found) == 0 {
		return ""
	}
	return "Best is " + strings.Join(found, ", ")
}

// sorted returns the groups by class, cause and reason, so that messages do not depend on the order of the nodes.
func (r *rejections) sorted() []*rejectionGroup {
	var groups []*rejectionGroup
	for g := r.groups.Load(); g != nil; g = g.next {
		groups = append(groups, g)
	}
	slices.SortFunc(groups, func(a, b *rejectionGroup) int {
		return cmp.Or(cmp.Compare(a.noFit.Class, b.noFit.Class), cmp.Compare(a.noFit.Cause, b.noFit.Cause), cmp.Compare(a.reason, b.reason))
	})
	return groups
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
		placement.NotInPieces: "not_in_pieces",
	}
)
