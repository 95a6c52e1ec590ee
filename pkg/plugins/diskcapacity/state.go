package diskcapacity

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	fwk "k8s.io/kube-scheduler/framework"

	"github.com/berthdev/berth/pkg/ledger"
	"github.com/berthdev/berth/pkg/placement"
)

const stateKey fwk.StateKey = Name

// state is the state of one pod's scheduling cycle.
type state struct {
	// Clones share what the fields up to attempt point to. That is read-only after PreFilter, except for rejections.
	podRequest
	// requests are those of all volumes that are to be placed.
	requests []placement.Request
	// search finds out whether the requests fit on a node.
	search *ledger.Search
	// bindable are PersistentVolumes that claims of the pod may be bound to, by StorageClass.
	bindable map[string][]*corev1.PersistentVolume
	// perNodeFigures is true when each node is described with its own figures.
	perNodeFigures bool
	// refusedNodes are nodes to which the API server refused to bind the pod, with the reason.
	refusedNodes map[string]string
	// narrowed is true when the pod is tried on a part of the nodes.
	narrowed bool
	// rejections are written by Filter, for many nodes at once.
	rejections *rejections
	// reservation is written by Reserve. The state is not cloned after that.
	reservation *reservation
	// attempt is this scheduling attempt, as waitingPods remembers it.
	attempt *attempt

	// refusedEverywhere is set by PostFilter. A node that is chosen after it is one that preemption has nominated.
	refusedEverywhere bool

	// AddPod and RemovePod change the fields below, so Clone copies them. Preemption tries many nodes in parallel, each
	// on its own clone.

	// gone are the partitions to treat as if their volumes were no longer there: those of pods that would be evicted,
	// and this pod's own from an earlier try. A partition is on one node only, so the node is not noted.
	gone map[string]struct{}
	// nominated are pods without a reservation that the scheduler counts on a node. They wait there for the space of
	// pods that are being evicted for them. They are kept by UID, because the scheduler may add one more than once.
	nominated map[types.UID]nominatedPod
}

// Clone implements fwk.StateData.
func (s *state) Clone() fwk.StateData {
	out := *s
	out.gone = maps.Clone(s.gone)
	out.nominated = maps.Clone(s.nominated)
	return &out
}

// readState reads the state that PreFilter has written.
func readState(cycle fwk.CycleState) (*state, error) {
	data, err := cycle.Read(stateKey)
	if errors.Is(err, fwk.ErrNotFound) {
		// This is the error of most pods, which have no disk volumes. So it is not wrapped, which would cost time.
		return nil, err
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s from the cycle's state: %w", stateKey, err)
	}
	s, ok := data.(*state)
	if !ok {
		return nil, fmt.Errorf("the cycle's state holds %T under %s", data, stateKey)
	}
	return s, nil
}

// DelegatedClaims returns the claims of a pod if the plugin alone decides where they can be. Then each of them is to be
// placed, and none is bound, tied to a node, or may be bound to an existing volume. Otherwise it returns none. It can
// be called when the plugin's PreFilter has run.
func DelegatedClaims(cycle fwk.CycleState) []*corev1.PersistentVolumeClaim {
	s, err := readState(cycle)
	if err != nil || s.claimsLimitNodes() {
		return nil
	}
	return slices.Collect(maps.Values(s.claims))
}

// maxCycleSteps bounds the plans of a cycle together, for a pod with more than eight volumes: some ten milliseconds.
// Plans after that give up.
const maxCycleSteps = 1_000_000

// fit returns the merit of the pod's volumes on the node, or why they do not fit.
func (s *state) fit(node *corev1.Node, snapshot *ledger.Snapshot) (int64, error) {
	search := s.searchOn(node)
	if s.usesSnapshotAsIs() {
		return search.Fit(snapshot)
	}
	return search.FitOn(s.usable(node.Name, snapshot))
}

// searchOn is the search for the volumes that are to be placed if the pod goes to the node.
func (s *state) searchOn(node *corev1.Node) *ledger.Search {
	if len(s.bindable) == 0 {
		return s.search
	}
	return ledger.NewSearch(requestsOf(s.volumesToPlaceOn(node)), maxCycleSteps)
}

// usesSnapshotAsIs reports whether the pod may use exactly what is free in a node's snapshot.
func (s *state) usesSnapshotAsIs() bool { return len(s.gone) == 0 && len(s.nominated) == 0 }

// usable is what the pod may use on the node.
func (s *state) usable(nodeName string, snapshot *ledger.Snapshot) *placement.Node {
	return snapshot.Usable(s.gone, s.nominationsOn(nodeName))
}

// PreFilterExtensions has AddPod and RemovePod change the state, for preemption and for nominated pods.
func (p *Plugin) PreFilterExtensions() fwk.PreFilterExtensions { return p }

// AddPod undoes RemovePod, or counts a nominated pod.
func (p *Plugin) AddPod(_ context.Context, cycle fwk.CycleState, pod *corev1.Pod, added fwk.PodInfo, info fwk.NodeInfo) *fwk.Status {
	s, err := readState(cycle)
	if err != nil {
		return fwk.AsStatus(err)
	}
	other := added.GetPod()
	if !mayHoldSpace(other) || other.UID == pod.UID {
		return nil
	}
	if other.Spec.NodeName != "" {
		// The pod is on the node already: its volumes are recorded, published, or both.
		for _, partition := range p.feed.ephemeralPartitions(other) {
			delete(s.gone, partition)
		}
		return nil
	}
	p.addNominated(s, other, info)
	return nil
}

// RemovePod counts the volumes that end with the pod as free.
func (p *Plugin) RemovePod(_ context.Context, cycle fwk.CycleState, _ *corev1.Pod, removed fwk.PodInfo, _ fwk.NodeInfo) *fwk.Status {
	s, err := readState(cycle)
	if err != nil {
		return fwk.AsStatus(err)
	}
	other := removed.GetPod()
	if !mayHoldSpace(other) {
		return nil
	}
	delete(s.nominated, other.UID)
	for _, partition := range p.feed.ephemeralPartitions(other) {
		if s.gone == nil {
			s.gone = map[string]struct{}{}
		}
		s.gone[partition] = struct{}{}
	}
	return nil
}
