package diskcapacity

import (
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"

	"github.com/berthdev/berth/pkg/ledger"
)

const (
	// narrowFrom is the number of nodes that a cluster must exceed. From there on kube-scheduler
	// itself looks for enough nodes rather than for all.
	narrowFrom = 100
	// narrowTo is how many nodes a pod is tried on at first: enough that other plugins find one
	// that they do not refuse, and have a choice. Each is a call of every Filter and every Score.
	narrowTo = 50
	// narrowPause is for how long no pod is narrowed after one that found no place so. Where
	// the best nodes have no CPU left, nearly every pod would be tried twice.
	narrowPause = 10 * time.Second
)

const reasonNarrowed = "Only the nodes that the volumes fit best were tried, the pod is tried on all of them next"

// narrow returns the nodes to try the pod on; nil for all of them. The ledger knows at once
// which are best by the policies of the volumes' classes. So the best of the whole cluster is
// among them, and every plugin is spared most of the nodes.
//
// It is an optimization only: a pod that finds no place so is tried again as if this were
// not there, see widen. Pods for which that is likely are not narrowed to begin with.
func (p *Plugin) narrow(pod *corev1.Pod, s *state, nodes int) *fwk.PreFilterResult {
	// The index counts what the pod itself holds from an earlier try as taken.
	if nodes <= narrowFrom || len(s.gone) > 0 || choosy(pod) || s.tied() || p.feed.narrowing.mustBeWide(pod.UID, time.Now()) {
		return nil
	}
	names := p.ledger.Best(s.requests, narrowTo, func(name string, snapshot *ledger.Snapshot) bool {
		_, refused := s.refused[name]
		return !refused && snapshot.Registered && (len(s.claims) == 0 || p.takesClaims(name))
	})
	if len(names) == 0 {
		// It needs the reasons of all nodes, or preemption.
		return nil
	}
	s.narrowed = true
	return &fwk.PreFilterResult{NodeNames: sets.New(names...)}
}

// choosy reports whether the pod says where it wants to be, so that other plugins may
// refuse it, or disadvantage it, on the best nodes: also by what else it must be near.
func choosy(pod *corev1.Pod) bool {
	spec := &pod.Spec
	if len(spec.NodeSelector) > 0 || spec.Affinity != nil || len(spec.TopologySpreadConstraints) > 0 || len(spec.ResourceClaims) > 0 {
		return true
	}
	// A nominated pod has its place, or waits for it; the members of a group are tried
	// together, and a group that fails is not retried because of one of them.
	if pod.Status.NominatedNodeName != "" || spec.SchedulingGroup != nil {
		return true
	}
	return false
}

// tied reports whether a claim of the pod says where it can be, which the index does not
// know. Claims that are to be placed do not.
func (s *state) tied() bool { return s.settled || len(s.held) > 0 || len(s.loose) > 0 }

func (p *Plugin) takesClaims(nodeName string) bool {
	node, err := p.feed.nodes.Get(nodeName)
	return err == nil && labelled(node)
}

// widen has the pod tried again on all nodes, now: no event will come to wake it. While it
// is being tried, the scheduler's queue keeps an activation for when it is put back, and
// then retries it after its backoff at the latest.
func (p *Plugin) widen(logger klog.Logger, pod *corev1.Pod) {
	p.feed.widen(pod)
	logger.V(3).Info("The pod found no place among the best nodes, trying all", "pod", klog.KObj(pod))
	p.handle.Activate(logger, map[string]*corev1.Pod{klog.KObj(pod).String(): pod})
}

// widen remembers the pod for as long as it is pending.
func (f *feed) widen(pod *corev1.Pod) {
	// The pod may have been deleted meanwhile: then nothing would make us forget it. What
	// is still in the store is folded in later.
	f.folding.Lock()
	defer f.folding.Unlock()
	stored := f.storedPod(pod)
	f.narrowing.failed(pod.UID, stored != nil && stored.Spec.NodeName == "", time.Now())
}

// narrowing remembers where it did not help. There is one for all profiles.
type narrowing struct {
	mu sync.Mutex
	// wide are pending pods to be tried on all nodes.
	wide map[types.UID]struct{}
	// paused is until when no pod is narrowed.
	paused time.Time
}

func newNarrowing() *narrowing { return &narrowing{wide: map[types.UID]struct{}{}} }

func (n *narrowing) mustBeWide(uid types.UID, now time.Time) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	_, wide := n.wide[uid]
	return wide || now.Before(n.paused)
}

func (n *narrowing) failed(uid types.UID, pending bool, now time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.paused = now.Add(narrowPause)
	if pending {
		n.wide[uid] = struct{}{}
	}
}

func (n *narrowing) forget(uid types.UID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.wide, uid)
}
