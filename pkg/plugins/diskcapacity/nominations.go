package diskcapacity

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	corev1helpers "k8s.io/component-helpers/scheduling/corev1"
	fwk "k8s.io/kube-scheduler/framework"

	"github.com/berthdev/berth/pkg/ledger"
	"github.com/berthdev/berth/pkg/placement"
)

// A nominated pod has preempted others on a node and waits there for their space. Pods of the same priority or a lower
// one must leave it what is kept for it (ledger.Usable). The framework adds nominated pods only before it calls Filter.
// For Score, Reserve and PostFilter the plugin adds them itself, by the same rule.

// nominatedPod is a nominated pod in a state.
type nominatedPod struct {
	node     string
	requests []placement.Request
	// terminating are the partitions on the node whose pods are being deleted.
	terminating map[string]struct{}
}

// nominationCounts are the pods with disk volumes that wait on a node for which they are nominated, as the API has it.
// kube-scheduler's queue has them too, but takes three locks and copies a list for each node.
type nominationCounts struct {
	mu sync.RWMutex
	// nodes are the nodes of the pods, by UID. counts are the numbers of pods, by node.
	nodes  map[types.UID]string
	counts map[string]int
	// any is true if there is one. Usually there is none, and then no lock is taken.
	any atomic.Bool
}

func newNominationCounts() *nominationCounts {
	return &nominationCounts{nodes: map[types.UID]string{}, counts: map[string]int{}}
}

// set records the node for which the pod is nominated, empty for none.
func (n *nominationCounts) set(uid types.UID, node string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	before := n.nodes[uid]
	if before == node {
		return
	}
	if before != "" {
		delete(n.nodes, uid)
		if n.counts[before]--; n.counts[before] == 0 {
			delete(n.counts, before)
		}
	}
	if node != "" {
		n.nodes[uid] = node
		n.counts[node]++
	}
	n.any.Store(len(n.nodes) > 0)
}

// on reports whether a pod is nominated for the node.
func (n *nominationCounts) on(node string) bool {
	if !n.any.Load() {
		return false
	}
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.counts[node] > 0
}

// addNominated counts a pod that is nominated for the node, unless the ledger counts it already.
func (p *Plugin) addNominated(s *state, other *corev1.Pod, info fwk.NodeInfo) {
	req, err := p.feed.requestOf(other)
	if err != nil || len(req.volumes) == 0 {
		// A pod with an invalid request has no space in the ledger.
		return
	}
	// RemovePod may have taken the pod off the node before. This adds it again.
	for i := range req.volumes {
		delete(s.gone, req.volumes[i].Partition)
	}
	node := info.Node().Name
	if on, records := p.ledger.Records(string(other.UID)); len(records) > 0 && on == node {
		return
	}
	if s.nominated == nil {
		s.nominated = map[types.UID]nominatedPod{}
	}
	s.nominated[other.UID] = nominatedPod{node: node, requests: req.requests(), terminating: p.feed.terminatingOn(info)}
}

// withNominated returns the state with the pods that the framework would add before Filter on that node.
func (p *Plugin) withNominated(s *state, pod *corev1.Pod, nodeName string) (*state, error) {
	var out *state
	var node fwk.NodeInfo
	for _, info := range p.handle.NominatedPodsForNode(nodeName) {
		other := info.GetPod()
		if other.UID == pod.UID || corev1helpers.PodPriority(other) < corev1helpers.PodPriority(pod) || !mayHoldSpace(other) {
			continue
		}
		if out == nil {
			var err error
			if node, err = p.handle.SnapshotSharedLister().NodeInfos().Get(nodeName); err != nil {
				return nil, fmt.Errorf("looking for the pods that end on node %s: %w", nodeName, err)
			}
			out, _ = s.Clone().(*state)
		}
		p.addNominated(out, other, node)
	}
	if out == nil {
		return s, nil
	}
	return out, nil
}

// nominationsOn is what is kept on the node for nominated pods.
func (s *state) nominationsOn(nodeName string) ledger.Nominations {
	var kept ledger.Nominations
	for _, uid := range s.nominatedFor(nodeName) {
		n := s.nominated[uid]
		kept.Requests, kept.Terminating = append(kept.Requests, n.requests), n.terminating
	}
	return kept
}

// nominatedFor returns the nominated pods that the state counts on the node, sorted.
func (s *state) nominatedFor(nodeName string) []types.UID {
	if len(s.nominated) == 0 {
		return nil
	}
	return slices.DeleteFunc(slices.SortedFunc(maps.Keys(s.nominated), cmp.Compare[types.UID]), func(uid types.UID) bool {
		return s.nominated[uid].node != nodeName
	})
}

// terminatingOn returns the partitions of the pods on the node that are being deleted.
func (f *feed) terminatingOn(info fwk.NodeInfo) map[string]struct{} {
	ending := map[string]struct{}{}
	for _, p := range info.GetPods() {
		pod := p.GetPod()
		if pod.DeletionTimestamp == nil || !mayHoldSpace(pod) {
			continue
		}
		for _, partition := range f.ephemeralPartitions(pod) {
			ending[partition] = struct{}{}
		}
	}
	return ending
}
