package whatif

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	corev1helpers "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/names"

	"github.com/berthdev/berth/pkg/ledger"
	"github.com/berthdev/berth/pkg/placement"
	"github.com/berthdev/berth/pkg/plugins/diskcapacity"
)

// Verdict is what the plugins say of a pod.
type Verdict struct {
	// Wants are the volumes that are to be placed.
	Wants []diskcapacity.Want
	// Invalid is why no node can take the pod, whatever is free; empty if some could.
	Invalid string
	// Nodes is how many there are.
	Nodes int
	// Fits are the nodes that can take the pod. The one with the best place for its volumes is the first.
	Fits []Fit
	// Refused are the others, by reason, the most frequent first.
	Refused []Refusal
}

// Fit is a node that can take the pod.
type Fit struct {
	Node  string
	Plan  []Place
	merit int64
}

// Place is where a volume would go.
type Place struct {
	Disk          string
	Start, Length int64
	// Of is the length of the free extent that the volume takes, and Leaves what remains of it.
	Of, Leaves int64
	// Pieces is of how many pieces the volume consists, the first one at Start. It is zero if one free extent holds it.
	// Then Of and Leaves are set.
	Pieces int
}

// Refusal is the nodes that are refused for the same reason.
type Refusal struct {
	// Plugin that refuses them.
	Plugin string
	Reason string
	Nodes  []string
	// Nearest is the node that lacks the least, and Best how much it has; empty if no amount would suffice.
	Nearest, Best string
	// Missing is how much the nearest lacks, in bytes; 0 if space is not what is missing.
	Missing int64
	// WithRoom are the nodes of these whose disks have the room: something else is missing there.
	WithRoom []string

	noFit *placement.NoFit
}

// NodeVerdict is what the plugins say of a pod on one node.
type NodeVerdict struct {
	// Fits is true if the node can take the pod.
	Fits bool
	// Plugin and Reason say why not.
	Plugin, Reason string
	noFit          *placement.NoFit
	withRoom       bool
}

// cycle is the attempt to schedule one pod.
type cycle struct {
	s     *Scheduler
	pod   *corev1.Pod
	state fwk.CycleState
	// only are the nodes that PreFilter has left; nil for all.
	only sets.Set[string]
	// status is that of PreFilter.
	status *fwk.Status
	// from is the plugin that refuses the pod everywhere.
	from string
}

// preFiltered stands for the plugin where PreFilter leaves a node out.
const preFiltered = "PreFilter"

// begin runs PreFilter. The nodes that DiskCapacity leaves out in a large cluster are tried, too: that is only how the
// scheduler is fast.
func (s *Scheduler) begin(ctx context.Context, pod *corev1.Pod) *cycle {
	c := &cycle{s: s, pod: pod, state: framework.NewCycleState()}
	result, status, _ := s.framework.RunPreFilterPlugins(ctx, c.state, pod)
	c.status = status
	if status != nil {
		c.from = status.Plugin()
	}
	if result != nil && !result.AllNodes() && !s.still.Narrowed(c.state) {
		c.only = result.NodeNames
	}
	return c
}

// on runs Filter for a node.
func (c *cycle) on(ctx context.Context, info fwk.NodeInfo) NodeVerdict {
	node := info.Node()
	if !c.status.IsSuccess() {
		return NodeVerdict{Plugin: c.from, Reason: strings.Join(c.status.Reasons(), "; ")}
	}
	if c.only != nil && !c.only.Has(node.Name) {
		return NodeVerdict{Plugin: preFiltered, Reason: "the pod or one of its volumes names other nodes"}
	}
	status := c.s.framework.RunFilterPluginsWithNominatedPods(ctx, c.state, c.pod, info)
	if status.IsSuccess() {
		return NodeVerdict{Fits: true}
	}
	v := NodeVerdict{Plugin: status.Plugin(), Reason: strings.Join(status.Reasons(), "; ")}
	if v.Plugin == diskcapacity.Name {
		if v.noFit = c.s.still.Refusal(c.state, node); v.noFit != nil {
			v.Reason = v.noFit.Reason()
		}
		return v
	}
	v.withRoom = c.s.still.HasRoom(ctx, c.state, c.pod, info)
	if v.Plugin == names.TaintToleration {
		v.Reason = taintReason(c.pod, node, v.Reason)
	}
	return v
}

// taintReason names the taint, which the plugin's reason does not.
func taintReason(pod *corev1.Pod, node *corev1.Node, reason string) string {
	taint, untolerated := corev1helpers.FindMatchingUntoleratedTaint(klog.Logger{}, node.Spec.Taints, pod.Spec.Tolerations, func(t *corev1.Taint) bool {
		return t.Effect == corev1.TaintEffectNoSchedule || t.Effect == corev1.TaintEffectNoExecute
	}, false)
	if !untolerated {
		return reason
	}
	return "taint " + taint.ToString()
}

// Pod says which nodes can take the pod. The pod need not exist.
func (s *Scheduler) Pod(ctx context.Context, pod *corev1.Pod) *Verdict {
	v := &Verdict{Nodes: len(s.nodes)}
	wants, err := s.still.Wants(pod)
	v.Wants = wants
	if err != nil {
		v.Invalid = err.Error()
		return v
	}
	c := s.begin(ctx, pod)
	if !c.status.IsSuccess() && c.from != diskcapacity.Name && len(s.nodes) == 0 {
		v.Invalid = strings.Join(c.status.Reasons(), "; ")
	}
	groups := map[string]*Refusal{}
	for _, info := range s.nodes {
		name := info.Node().Name
		of := c.on(ctx, info)
		if of.Fits {
			v.Fits = append(v.Fits, s.fitOn(c.state, info, wants))
			continue
		}
		key := of.Plugin + "\x00" + of.Reason
		if groups[key] == nil {
			groups[key] = &Refusal{Plugin: of.Plugin, Reason: of.Reason}
		}
		groups[key].add(name, &of)
	}
	for _, g := range groups {
		v.Refused = append(v.Refused, *g)
	}
	sortRefusals(v.Refused)
	sortFits(v.Fits)
	return v
}

// sortRefusals sorts them, the most frequent first.
func sortRefusals(refusals []Refusal) {
	slices.SortFunc(refusals, func(a, b Refusal) int {
		return cmp.Or(cmp.Compare(len(b.Nodes), len(a.Nodes)), cmp.Compare(a.Reason, b.Reason), cmp.Compare(a.Plugin, b.Plugin))
	})
}

// sortFits sorts the nodes as the scheduler would choose by the volumes alone, the best first.
func sortFits(fits []Fit) {
	slices.SortFunc(fits, func(a, b Fit) int {
		return cmp.Or(cmp.Compare(b.merit, a.merit), cmp.Compare(placement.NodeRank(a.Node), placement.NodeRank(b.Node)), cmp.Compare(a.Node, b.Node))
	})
}

// addRefusal adds a node that has no room to those with the same reason.
func addRefusal(groups map[string]*Refusal, name string, err error) {
	v := NodeVerdict{Plugin: diskcapacity.Name, Reason: err.Error()}
	if noFit, ok := errors.AsType[*placement.NoFit](err); ok {
		v.noFit, v.Reason = noFit, noFit.Reason()
	}
	if groups[v.Reason] == nil {
		groups[v.Reason] = &Refusal{Plugin: v.Plugin, Reason: v.Reason}
	}
	groups[v.Reason].add(name, &v)
}

// Node says whether one node can take the pod; false if there is no such node.
func (s *Scheduler) Node(ctx context.Context, pod *corev1.Pod, name string) (NodeVerdict, bool) {
	for _, info := range s.nodes {
		if info.Node().Name == name {
			if _, err := s.still.Wants(pod); err != nil {
				return NodeVerdict{Plugin: diskcapacity.Name, Reason: err.Error()}, true
			}
			return s.begin(ctx, pod).on(ctx, info), true
		}
	}
	return NodeVerdict{}, false
}

// add adds a node to those with the same reason.
func (r *Refusal) add(name string, v *NodeVerdict) {
	r.Nodes = append(r.Nodes, name)
	if v.withRoom {
		r.WithRoom = append(r.WithRoom, name)
	}
	if v.noFit == nil || r.noFit != nil && !v.noFit.Nearer(r.noFit) && (r.noFit.Nearer(v.noFit) || r.Nearest <= name) {
		return
	}
	r.noFit = v.noFit
	r.Nearest, r.Best, r.Missing = name, v.noFit.Best(), v.noFit.Shortfall()
}

// fitOn is the plan of the volumes on a node that can take them.
func (s *Scheduler) fitOn(state fwk.CycleState, info fwk.NodeInfo, wants []diskcapacity.Want) Fit {
	f := Fit{Node: info.Node().Name}
	plan, usable := s.still.Plan(state, info.Node())
	if len(plan) == 0 || len(plan) != len(wants) {
		return f
	}
	requests := make([]placement.Request, len(wants))
	for i := range wants {
		requests[i] = wants[i].WithHeadroom()
	}
	f.merit = placement.Merit(usable, requests, plan)
	for i, a := range plan {
		f.Plan = append(f.Plan, placeOf(usable, a, wants[i].Size))
	}
	return f
}

// placeOf describes an assignment with the free extent that it lies in.
func placeOf(node *placement.Node, a placement.Assignment, length int64) Place {
	p := Place{Disk: a.Disk, Start: a.Extent.Start, Length: length}
	if len(a.Further) > 0 {
		p.Pieces = 1 + len(a.Further)
		return p
	}
	for i := range node.Disks {
		if d := &node.Disks[i]; d.ID == a.Disk {
			if e, ok := d.Free.Holding(a.Extent); ok {
				p.Of, p.Leaves = e.Len(), e.Len()-length
			}
		}
	}
	return p
}

// Help is something with which a pod would run that fits nowhere now.
type Help struct {
	// Kind is headroom, waiting or preemption.
	Kind string
	// Node is the first on which it would, and Nodes how many there are.
	Node  string
	Nodes int
	// Pods are those with a lower priority whose end would help on that node.
	Pods []string
}

// Kinds of help.
const (
	HelpHeadroom   = "headroom"
	HelpWaiting    = "waiting"
	HelpPreemption = "preemption"
)

// Helps says what would help a pod that fits on no node.
func (s *Scheduler) Helps(ctx context.Context, pod *corev1.Pod) []Help {
	wants, err := s.still.Wants(pod)
	if err != nil || len(wants) == 0 {
		return nil
	}
	c := s.begin(ctx, pod)
	if !c.status.IsSuccess() {
		return nil
	}
	plain, withHeadroom := make([]placement.Request, len(wants)), make([]placement.Request, len(wants))
	anyHeadroom := false
	for i := range wants {
		plain[i], withHeadroom[i] = wants[i].Request, wants[i].WithHeadroom()
		anyHeadroom = anyHeadroom || wants[i].Headroom > 0
	}
	headroom, waiting, preemption := Help{Kind: HelpHeadroom}, Help{Kind: HelpWaiting}, Help{Kind: HelpPreemption}
	for _, info := range s.nodes {
		v := c.on(ctx, info)
		if v.Fits || v.noFit == nil {
			continue
		}
		name := info.Node().Name
		snapshot := s.still.Ledger().Snapshot(name)
		if anyHeadroom && snapshot.Check(plain) == nil {
			headroom.add(name)
		}
		if wiping := snapshot.Wiping(); len(wiping) > 0 {
			if _, err := ledger.Fit(snapshot.Without(wiping), withHeadroom); err == nil {
				waiting.add(name)
			}
		}
		if victims := s.victims(ctx, c, info); len(victims) > 0 {
			preemption.add(name)
			if preemption.Node == name {
				preemption.Pods = victims
			}
		}
	}
	return slices.DeleteFunc([]Help{headroom, waiting, preemption}, func(h Help) bool { return h.Nodes == 0 })
}

func (h *Help) add(node string) {
	if h.Nodes == 0 {
		h.Node = node
	}
	h.Nodes++
}

// victims are pods with a lower priority without which the pod fits on the node; none if it fits neither way. As in
// kube-scheduler all of them are taken away first, and those that need not go are put back, the most important first.
func (s *Scheduler) victims(ctx context.Context, c *cycle, info fwk.NodeInfo) []string {
	state, node := c.state.Clone(), info.Snapshot()
	var lower []fwk.PodInfo
	for _, p := range info.GetPods() {
		if corev1helpers.PodPriority(p.GetPod()) < corev1helpers.PodPriority(c.pod) {
			lower = append(lower, p)
		}
	}
	for _, p := range lower {
		if !s.without(ctx, state, c.pod, p, node) {
			return nil
		}
	}
	if len(lower) == 0 || !s.framework.RunFilterPluginsWithNominatedPods(ctx, state, c.pod, node).IsSuccess() {
		return nil
	}
	slices.SortStableFunc(lower, func(a, b fwk.PodInfo) int {
		return cmp.Compare(corev1helpers.PodPriority(b.GetPod()), corev1helpers.PodPriority(a.GetPod()))
	})
	var victims []string
	for _, p := range lower {
		node.AddPodInfo(p)
		added := s.framework.RunPreFilterExtensionAddPod(ctx, state, c.pod, p, node).IsSuccess()
		if added && s.framework.RunFilterPluginsWithNominatedPods(ctx, state, c.pod, node).IsSuccess() {
			continue
		}
		if !s.without(ctx, state, c.pod, p, node) {
			return nil
		}
		victims = append(victims, p.GetPod().Namespace+"/"+p.GetPod().Name)
	}
	return victims
}

// without takes a pod off the node, and reports whether that worked.
func (s *Scheduler) without(ctx context.Context, state fwk.CycleState, pod *corev1.Pod, other fwk.PodInfo, node fwk.NodeInfo) bool {
	if err := node.RemovePod(klog.Logger{}, other.GetPod()); err != nil {
		return false
	}
	return s.framework.RunPreFilterExtensionRemovePod(ctx, state, pod, other, node).IsSuccess()
}

// String is for messages of tests.
func (v NodeVerdict) String() string {
	if v.Fits {
		return "fits"
	}
	return fmt.Sprintf("%s: %s", v.Plugin, v.Reason)
}
