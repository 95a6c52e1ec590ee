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

// A nominated pod has preempted others on a node and waits there for their space. Pods that are not more important must
// leave it what is kept for it (ledger.Usable). The framework adds nominated pods only before it calls Filter. For
// Score, Reserve and PostFilter the plugin adds them itself, by the same rule.

// nominee is a nominated pod in a state.
type nominee struct {
	node     string
	requests []placement.Request
	// ending are the partitions on the node whose pods are being deleted.
	ending map[string]struct{}
}

// nominees are the pods with disk volumes that wait on a node for which they are nominated, as the API has it.
// kube-scheduler's queue has them too, but takes three locks and copies a list for each node.
type nominees struct {
	mu sync.RWMutex
	// nodes are the nodes of the pods, by UID. counts are the numbers of pods, by node.
	nodes  map[types.UID]string
	counts map[string]int
	// any is true if there is one. Mostly there is none, and no lock is needed to see that.
	any atomic.Bool
}

func newNominees() *nominees {
	return &nominees{nodes: map[types.UID]string{}, counts: map[string]int{}}
}

// set records the node for which the pod is nominated, empty for none.
func (n *nominees) set(uid types.UID, node string) {
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
func (n *nominees) on(node string) bool {
	if !n.any.Load() {
		return false
	}
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.counts[node] > 0
}

// nominate counts a pod that is nominated for the node, unless the ledger counts it already.
func (p *Plugin) nominate(s *state, other *corev1.Pod, info fwk.NodeInfo) {
	asks, err := p.feed.ask(other)
	if err != nil || len(asks.volumes) == 0 {
		// A pod with an invalid request has no space in the ledger.
		return
	}
	for i := range asks.volumes {
		delete(s.gone, asks.volumes[i].Partition)
	}
	node := info.Node().Name
	if on, records := p.ledger.Records(string(other.UID)); len(records) > 0 && on == node {
		return
	}
	if s.nominated == nil {
		s.nominated = map[types.UID]nominee{}
	}
	s.nominated[other.UID] = nominee{node: node, requests: asks.requests(), ending: p.feed.endingOn(info)}
}

// withNominated returns the state with the pods that the framework would add before Filter on that node.
func (p *Plugin) withNominated(s *state, pod *corev1.Pod, nodeName string) (*state, error) {
	var out *state
	var node fwk.NodeInfo
	for _, info := range p.handle.NominatedPodsForNode(nodeName) {
		other := info.GetPod()
		if other.UID == pod.UID || corev1helpers.PodPriority(other) < corev1helpers.PodPriority(pod) || !mayHold(other) {
			continue
		}
		if out == nil {
			var err error
			if node, err = p.handle.SnapshotSharedLister().NodeInfos().Get(nodeName); err != nil {
				return nil, fmt.Errorf("looking for the pods that end on node %s: %w", nodeName, err)
			}
			out, _ = s.Clone().(*state)
		}
		p.nominate(out, other, node)
	}
	if out == nil {
		return s, nil
	}
	return out, nil
}

// kept is what is kept on the node for nominated pods.
func (s *state) kept(nodeName string) ledger.Nominations {
	var kept ledger.Nominations
	for _, uid := range s.nominatedFor(nodeName) {
		n := s.nominated[uid]
		kept.Requests, kept.Terminating = append(kept.Requests, n.requests), n.ending
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

// endingOn returns the partitions of the pods on the node that are being deleted.
func (f *feed) endingOn(info fwk.NodeInfo) map[string]struct{} {
	ending := map[string]struct{}{}
	for _, p := range info.GetPods() {
		pod := p.GetPod()
		if pod.DeletionTimestamp == nil || !mayHold(pod) {
			continue
		}
		for _, partition := range f.ephemeralPartitions(pod) {
			ending[partition] = struct{}{}
		}
	}
	return ending
}
