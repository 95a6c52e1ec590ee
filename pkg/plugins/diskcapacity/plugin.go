package diskcapacity

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/ledger"
	"github.com/berthdev/berth/pkg/request"
)

// Name of the plugin in the scheduler's configuration.
const Name = "DiskCapacity"

// Reasons that the pod's events show. They are the same for all nodes, so that the scheduler counts them together.
const (
	reasonNoAgent  = "the agent of Berth is not registered with the kubelet of this node"
	reasonNoReport = "the agent of Berth has not published the disks of this node yet"
	reasonProblem  = "the NodeDiskCapacity of this node contradicts itself: "
	reasonProblems = "the NodeDiskCapacity of these nodes contradicts itself: the scheduler's log says how"
	reasonNoLabel  = "the node lacks the label " + diskv1alpha1.LabelNode + ", which the kubelet sets when the agent of Berth registers: no claim can be bound there"
)

// maxNodesWithFigures is up to how many nodes each is described with its own figures. The scheduler counts nodes with
// the same reason, and lists those with different reasons one by one in the pod's status: in a large cluster that would
// be pages.
const maxNodesWithFigures = 8

// Plugin implements the extension points. The factory makes one for every profile. All plugins of a process share one
// feed and its ledger.
type Plugin struct {
	handle fwk.Handle
	feed   *feed
	ledger *ledger.Ledger
	args   *DiskCapacityArgs
	// checkProfile says what is wrong with the profile that the plugin is in.
	checkProfile func() error
}

var (
	_ fwk.PreEnqueuePlugin    = &Plugin{}
	_ fwk.PreFilterPlugin     = &Plugin{}
	_ fwk.PreFilterExtensions = &Plugin{}
	_ fwk.FilterPlugin        = &Plugin{}
	_ fwk.PostFilterPlugin    = &Plugin{}
	_ fwk.PreScorePlugin      = &Plugin{}
	_ fwk.ScorePlugin         = &Plugin{}
	_ fwk.ScoreExtensions     = &Plugin{}
	_ fwk.ReservePlugin       = &Plugin{}
	_ fwk.BindPlugin          = &Plugin{}
	_ fwk.PostBindPlugin      = &Plugin{}
	_ fwk.EnqueueExtensions   = &Plugin{}
	_ fwk.SignPlugin          = &Plugin{}
)

// New is the plugin's factory. It starts the watches and does not wait for them, because the scheduler may start before
// the CustomResourceDefinitions are installed.
func New(ctx context.Context, obj runtime.Object, handle fwk.Handle) (fwk.Plugin, error) {
	args, err := argsFrom(obj)
	if err != nil {
		return nil, err
	}
	complete, err := NewProfileCheck(Name, handle)
	if err != nil {
		return nil, err
	}
	feed, err := feedOf(ctx, handle)
	if err != nil {
		return nil, fmt.Errorf("starting plugin %s: %w", Name, err)
	}
	return newPlugin(handle, feed, args, complete), nil
}

func newPlugin(handle fwk.Handle, feed *feed, args *DiskCapacityArgs, complete func() error) *Plugin {
	registerMetrics()
	return &Plugin{handle: handle, feed: feed, ledger: feed.ledger, args: args, checkProfile: complete}
}

// Name of the plugin.
func (p *Plugin) Name() string { return Name }

// PreFilter reads what the pod requests. In a large cluster it leaves only the best nodes.
func (p *Plugin) PreFilter(ctx context.Context, cycle fwk.CycleState, pod *corev1.Pod, nodes []fwk.NodeInfo) (*fwk.PreFilterResult, *fwk.Status) {
	p.feed.scheduleBegins()
	if !hasInlineVolumes(pod) && !p.feed.hasUnboundClaims(pod) {
		return nil, fwk.NewStatus(fwk.Skip)
	}
	// The scheduler checks this before it starts. A framework that does not must place no pods.
	if err := p.checkProfile(); err != nil {
		return nil, fwk.AsStatus(err)
	}
	if extender := bindingExtender(p.handle.Extenders(), pod); extender != "" {
		cycle.Write(invalidKey, invalid{})
		return nil, fwk.NewStatus(fwk.UnschedulableAndUnresolvable,
			fmt.Sprintf("extender %s would bind the pod without the record of its volumes: take bindVerb out of its configuration", extender))
	}
	// This comes before the pod is read, because reading it looks up its claims in the ledger.
	if err := p.feed.waitForSync(ctx, p.args.SyncTimeout.Duration); err != nil {
		return nil, fwk.AsStatus(err)
	}
	if err := p.feed.bindSlots.waitForSlot(ctx); err != nil {
		return nil, fwk.AsStatus(fmt.Errorf("waiting for pods to be bound: %w", err))
	}
	start := time.Now()
	attempt := p.feed.beginAttempt(pod)
	req, err := p.feed.requestOf(pod)
	if err != nil {
		countDecision(resultInvalid)
		cycle.Write(invalidKey, invalid{})
		// Most of a pod cannot be changed. A change of what can be changed wakes the pod.
		return nil, fwk.NewStatus(fwk.UnschedulableAndUnresolvable, err.Error())
	}
	if req.isEmpty() {
		p.feed.waiting.forget(pod.UID)
		return nil, fwk.NewStatus(fwk.Skip)
	}
	s := p.newState(pod, req)
	s.attempt = attempt
	p.feed.waiting.setRequest(attempt, s)
	s.perNodeFigures = len(nodes) <= maxNodesWithFigures
	tightest := p.narrow(klog.FromContext(ctx), pod, s, len(nodes))
	observePlan(stepSearch, start)
	s.countSearch()
	cycle.Write(stateKey, s)
	return tightest, nil
}

// newState returns the state of a scheduling cycle of the pod.
func (p *Plugin) newState(pod *corev1.Pod, req podRequest) *state {
	s := &state{podRequest: req, requests: req.requests(), rejections: &rejections{}}
	s.search = ledger.NewSearch(s.requests, maxCycleSteps)
	s.bindable = p.feed.bindableVolumes.of(req.claims)
	s.refusedNodes = p.ledger.Refusals(string(pod.UID), time.Now())
	// An earlier try may have left a reservation in doubt. That space is this pod's own, or that of its claim.
	holds := p.ledger.Holds(string(pod.UID))
	for i := range req.volumes {
		v := &req.volumes[i]
		if !holds && (v.Claim == "" || !p.ledger.InDoubt(v.Partition)) {
			continue
		}
		if s.gone == nil {
			s.gone = make(map[string]struct{}, len(req.volumes))
		}
		s.gone[v.Partition] = struct{}{}
		for _, piece := range piecesOf(v) {
			s.gone[piece] = struct{}{}
		}
	}
	return s
}

// Filter checks whether all of the pod's volumes fit on the node together. Except for the node's label, all that it
// reads of a node is in the node's snapshot: in a large cluster, memory accesses take most of the time.
func (p *Plugin) Filter(_ context.Context, cycle fwk.CycleState, _ *corev1.Pod, info fwk.NodeInfo) *fwk.Status {
	s, err := readState(cycle)
	if err != nil {
		return fwk.AsStatus(err)
	}
	name := info.Node().Name
	snapshot := p.ledger.Snapshot(name)
	switch {
	case !snapshot.Registered:
		return s.unresolvable(otherNoAgent, reasonNoAgent)
	case !snapshot.Published:
		return s.unresolvable(otherNoReport, reasonNoReport)
	case snapshot.Problem != "" && s.perNodeFigures:
		return s.unresolvable(otherProblem, reasonProblem+snapshot.Problem)
	case snapshot.Problem != "":
		return s.unresolvable(otherProblem, reasonProblems)
	}
	if reason, refused := s.refusedNodes[name]; refused {
		return s.unresolvable(otherRefused, "the API server refused to bind the pod to this node: "+reason)
	}
	if len(s.claims) > 0 {
		if status := s.checkClaims(info.Node()); status != nil {
			return status
		}
	}
	if err := s.check(info.Node(), snapshot); err != nil {
		p.noteIfKept(s, info.Node(), snapshot)
		return s.unschedulable(name, err)
	}
	return nil
}

// checkClaims refuses a node that can have no volumes of claims, or not those of the pod's claims.
func (s *state) checkClaims(node *corev1.Node) *fwk.Status {
	if !hasNodeLabel(node) {
		return s.unresolvable(otherNoLabel, reasonNoLabel)
	}
	for i := range s.placedClaims {
		if h := &s.placedClaims[i]; diskv1alpha1.NodeLabel(h.node) != diskv1alpha1.NodeLabel(node.Name) {
			return s.unresolvable(otherElsewhere, fmt.Sprintf("the volume of claim %s is on node %s already", h.Claim, h.node))
		}
	}
	if len(s.existingOnly) > 0 {
		found := s.claimsBoundOn(node)
		for _, id := range slices.Sorted(maps.Keys(s.existingOnly)) {
			if pvc := s.claims[id]; !found[pvc.Namespace+"/"+pvc.Name] {
				return s.unresolvable(otherElsewhere, fmt.Sprintf("no volume here can be bound to claim %s/%s: %s", pvc.Namespace, pvc.Name, s.existingOnly[id]))
			}
		}
	}
	return nil
}

// check returns why the pod's volumes do not fit on the node; nil if they do.
func (s *state) check(node *corev1.Node, snapshot *ledger.Snapshot) error {
	if s.usesSnapshotAsIs() {
		return s.searchOn(node).Check(snapshot)
	}
	_, err := s.fit(node, snapshot)
	return err
}

// Reserve plans again on the node as it is now, and records the result in memory only.
func (p *Plugin) Reserve(ctx context.Context, cycle fwk.CycleState, pod *corev1.Pod, nodeName string) *fwk.Status {
	s, err := readState(cycle)
	if errors.Is(err, fwk.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fwk.AsStatus(err)
	}
	wants, err := p.volumeRequestsOn(s, nodeName)
	if err != nil {
		return fwk.AsStatus(err)
	}
	others, err := p.withNominated(s, pod, nodeName)
	if err != nil {
		return fwk.AsStatus(err)
	}
	start, before := time.Now(), p.ledger.Snapshot(nodeName)
	records, err := p.ledger.ReserveWithNominations(string(pod.UID), nodeName, wants, others.nominationsOn(nodeName))
	observePlan(stepReserve, start)
	if err != nil {
		if s.refusedEverywhere && cycle.IsPodGroupSchedulingCycle() {
			// A pod group's cycle continues after preemption, on the nominated node, as if the victims were gone. No
			// pod is bound by such a cycle. An error or a refusal here would end the nomination of all its pods.
			return nil
		}
		countDecision(resultLost)
		// Filter found room just before, and other nodes may still have it. An error is retried soon. A rejection would
		// wait for an event that may not come.
		return fwk.AsStatus(fmt.Errorf("node %s lost its room for the pod's volumes while the pod was being placed: %w", nodeName, err))
	}
	s.reservation = newReservation(before, s.volumes, records, len(wants)-len(s.placedClaims), len(wants))
	p.feed.reservations.Store(pod.UID, s.reservation)
	p.feed.lag.reserved(nodeName, s.reservation.records, start)
	p.feed.waiting.forget(pod.UID)
	p.feed.nominationEnded(klog.FromContext(ctx), pod.UID)
	return nil
}

// volumeRequestsOn is what the pod reserves on the node, with its share in volumes that are there already.
func (p *Plugin) volumeRequestsOn(s *state, nodeName string) ([]ledger.VolumeRequest, error) {
	volumes := s.volumes
	if len(s.bindable) > 0 {
		node, err := p.feed.nodes.Get(nodeName)
		if err != nil {
			return nil, fmt.Errorf("reading node %s: %w", nodeName, err)
		}
		volumes = s.volumesToPlaceOn(node)
	}
	wants := volumeRequestsOf(volumes)
	for i := range s.placedClaims {
		wants = append(wants, VolumeRequestOf(&s.placedClaims[i].Volume))
	}
	return wants, nil
}

func volumeRequestsOf(volumes []request.Volume) []ledger.VolumeRequest {
	wants := make([]ledger.VolumeRequest, len(volumes))
	for i := range volumes {
		wants[i] = VolumeRequestOf(&volumes[i])
	}
	return wants
}

// Unreserve forgets what Reserve recorded. It is also called when Reserve never ran.
func (p *Plugin) Unreserve(_ context.Context, cycle fwk.CycleState, pod *corev1.Pod, _ string) {
	if p.forgetReservation(cycle, pod) {
		countDecision(resultUndone)
	}
	p.ledger.Forget(string(pod.UID))
}

// SignPod keeps pods with disk volumes out of batching. Two pods with the same request do not fit the same nodes,
// because each takes its own extent.
func (p *Plugin) SignPod(_ context.Context, pod *corev1.Pod) ([]fwk.SignFragment, *fwk.Status) {
	if hasInlineVolumes(pod) || p.feed.hasUnboundClaims(pod) {
		return nil, fwk.NewStatus(fwk.Unschedulable, "pods with disk volumes are placed one by one")
	}
	return nil, nil
}
