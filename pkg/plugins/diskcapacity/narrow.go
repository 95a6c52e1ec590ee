package diskcapacity

import (
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/cache"
	"k8s.io/apimachinery/pkg/util/sets"
	resourcehelper "k8s.io/component-helpers/resource"
	v1helper "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/utils/clock"

	"github.com/berthdev/berth/pkg/ledger"
)

const (
	// narrowAbove is the number of nodes that a cluster must exceed for pods to be narrowed. From there on
	// kube-scheduler itself looks for enough nodes instead of all.
	narrowAbove = 100
	// narrowTo is how many nodes a pod is tried on at first: enough that other plugins accept some, and have a choice.
	// Each node costs a call of every Filter and every Score.
	narrowTo = 50
	// narrowPause is for how long no pod of the same origin is narrowed after one that found no node among its narrowed
	// ones: the same plugin would refuse the other pods.
	narrowPause = 10 * time.Second
)

// narrow returns the nodes to try the pod on; nil for all of them. The ledger finds the best nodes of the whole
// cluster, by the policies of the volumes' classes. So no plugin has to run on the others.
//
// It is only an optimization. A pod that finds no node this way is tried again on all nodes, see widen. Pods for which
// that is likely are not narrowed.
func (p *Plugin) narrow(logger klog.Logger, pod *corev1.Pod, s *state, nodes int) *fwk.PreFilterResult {
	// The index counts what the pod itself holds from an earlier try as taken.
	if nodes <= narrowAbove || len(s.gone) > 0 || constrained(pod) || s.claimsLimitNodes() || p.feed.narrowing.mustTryAll(pod) {
		return nil
	}
	names := p.bestNodes(logger, pod, s)
	if len(names) == 0 {
		// The pod needs the reasons of all nodes, or preemption.
		return nil
	}
	s.narrowed = true
	return &fwk.PreFilterResult{NodeNames: sets.New(names...)}
}

// maxNarrowPlans is how many plans PreFilter makes at most to find the best nodes. Filter makes the others, for several
// nodes at once.
const maxNarrowPlans = 500

// bestNodes returns the best nodes for the pod's volumes. It leaves out nodes that refuse the pod for a reason that the
// ledger or the scheduler's snapshot of the node shows.
func (p *Plugin) bestNodes(logger klog.Logger, pod *corev1.Pod, s *state) []string {
	names, infos, needs := make([]string, 0, narrowTo), p.handle.SnapshotSharedLister().NodeInfos(), otherNeedsOf(pod)
	plans := 0
	for name, snapshot := range p.ledger.BestNodes(s.requests) {
		if _, refused := s.refusedNodes[name]; refused || !snapshot.Registered || len(s.claims) > 0 && !p.canTakeClaims(name) {
			continue
		}
		fits, sure := s.search.QuickCheck(snapshot)
		if !sure {
			if !s.search.Cached(snapshot) {
				plans++
			}
			if plans > maxNarrowPlans || s.search.Spent() {
				break
			}
			_, err := s.search.Fit(snapshot)
			fits = err == nil
		}
		if !fits {
			continue
		}
		if info, err := infos.Get(name); err != nil || !needs.admittedBy(logger, info) || !p.fitsBesideNominated(pod, s, name, snapshot) {
			continue
		}
		if names = append(names, name); len(names) == narrowTo {
			break
		}
	}
	return names
}

// fitsBesideNominated reports whether the volumes fit on the node together with what is kept there for nominated pods.
// It does not see a nomination that the API server has not confirmed yet: Filter then refuses the node.
func (p *Plugin) fitsBesideNominated(pod *corev1.Pod, s *state, nodeName string, snapshot *ledger.Snapshot) bool {
	if !p.feed.nominations.on(nodeName) {
		return true
	}
	others, err := p.withNominated(s, pod, nodeName)
	if err != nil || others == s {
		return err == nil
	}
	_, err = s.search.FitOn(others.usable(nodeName, snapshot))
	return err == nil
}

// constrained reports whether the pod says where it must or prefers to be, or near which other pods. Other plugins may
// then refuse it on the best nodes, or score them low.
func constrained(pod *corev1.Pod) bool {
	spec := &pod.Spec
	if len(spec.NodeSelector) > 0 || spec.Affinity != nil || len(spec.TopologySpreadConstraints) > 0 || len(spec.ResourceClaims) > 0 {
		return true
	}
	// A nominated pod has its place or waits for it. The members of a pod group are tried together, and a group that
	// fails is not retried because of one of them.
	if pod.Status.NominatedNodeName != "" || spec.SchedulingGroup != nil {
		return true
	}
	return false
}

// otherNeeds is what a pod requests of a node besides disk space.
type otherNeeds struct {
	tolerations []corev1.Toleration
	requests    corev1.ResourceList
	ports       []corev1.ContainerPort
}

// otherNeedsOf reads what the pod requests besides disk space.
func otherNeedsOf(pod *corev1.Pod) otherNeeds {
	n := otherNeeds{tolerations: pod.Spec.Tolerations, requests: resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{})}
	add := func(c *corev1.Container) {
		for _, p := range c.Ports {
			if p.HostPort > 0 {
				n.ports = append(n.ports, p)
			}
		}
	}
	for i := range pod.Spec.Containers {
		add(&pod.Spec.Containers[i])
	}
	for i := range pod.Spec.InitContainers {
		// A sidecar runs as long as the pod.
		if c := &pod.Spec.InitContainers[i]; c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			add(c)
		}
	}
	return n
}

// admittedBy reports whether the node passes the checks that kube-scheduler makes of the node alone. The node is not
// cordoned, its taints are tolerated, and the requested CPU, memory and other resources are free. It takes one more
// pod, and the host ports are free. Kube-scheduler's own Filters decide. This only leaves out nodes that they refuse.
func (n *otherNeeds) admittedBy(logger klog.Logger, node fwk.NodeInfo) bool {
	taints := node.Node().Spec.Taints
	if node.Node().Spec.Unschedulable {
		taints = append(taints[:len(taints):len(taints)], corev1.Taint{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule})
	}
	repels := func(t *corev1.Taint) bool {
		return t.Effect == corev1.TaintEffectNoSchedule || t.Effect == corev1.TaintEffectNoExecute
	}
	if _, untolerated := v1helper.FindMatchingUntoleratedTaint(logger, taints, n.tolerations, repels, true); untolerated {
		return false
	}
	for _, p := range n.ports {
		if node.GetUsedPorts().CheckConflict(p.HostIP, string(p.Protocol), p.HostPort) {
			return false
		}
	}
	has, used := node.GetAllocatable(), node.GetRequested()
	if len(node.GetPods()) >= has.GetAllowedPodNumber() {
		return false
	}
	for name, quantity := range n.requests {
		var free, want int64
		switch name {
		case corev1.ResourceCPU:
			free, want = has.GetMilliCPU()-used.GetMilliCPU(), quantity.MilliValue()
		case corev1.ResourceMemory:
			free, want = has.GetMemory()-used.GetMemory(), quantity.Value()
		case corev1.ResourceEphemeralStorage:
			free, want = has.GetEphemeralStorage()-used.GetEphemeralStorage(), quantity.Value()
		default:
			free, want = has.GetScalarResources()[name]-used.GetScalarResources()[name], quantity.Value()
		}
		if want > 0 && want > free {
			return false
		}
	}
	return true
}

// claimsLimitNodes reports whether a claim of the pod says where it can be, which the index does not know. Claims that
// are to be placed do not.
func (s *state) claimsLimitNodes() bool {
	return s.limitedByClaims || len(s.placedClaims) > 0 || len(s.bindable) > 0
}

// canTakeClaims reports whether PersistentVolumes can name the node, by its label.
func (p *Plugin) canTakeClaims(nodeName string) bool {
	node, err := p.feed.nodes.Get(nodeName)
	return err == nil && hasNodeLabel(node)
}

// widen has the pod tried again on all nodes, at once, because no event would wake it. While the pod is being tried,
// the scheduling queue keeps the activation for when it is put back. Then it retries the pod after its backoff at the
// latest.
func (p *Plugin) widen(logger klog.Logger, pod *corev1.Pod) {
	p.feed.widen(pod)
	logger.V(3).Info("The pod found no place among the best nodes, trying all", "pod", klog.KObj(pod))
	p.handle.Activate(logger, map[string]*corev1.Pod{klog.KObj(pod).String(): pod})
}

// widen remembers the pod for as long as it is pending.
func (f *feed) widen(pod *corev1.Pod) {
	// The pod may have been deleted meanwhile, and no later event would remove it from narrowing. A pod that is still
	// in the store is folded in later.
	f.folding.Lock()
	defer f.folding.Unlock()
	stored := f.storedPod(pod)
	f.narrowing.pause(pod, stored != nil && stored.Spec.NodeName == "")
}

// narrowing remembers the pods that were narrowed in vain. All profiles share one.
type narrowing struct {
	mu sync.Mutex
	// wide are pending pods that must be tried on all nodes.
	wide map[types.UID]struct{}
	// paused has the origins whose pods are not narrowed for narrowPause.
	paused *cache.Expiring
}

func newNarrowing(now clock.Clock) *narrowing {
	return &narrowing{wide: map[types.UID]struct{}{}, paused: cache.NewExpiringWithClock(now)}
}

// originOf is the pod's controller, whose pods are alike, or else its namespace. So a tenant whose pods other plugins
// refuse does not cause the pods of other tenants to be tried on all nodes.
func originOf(pod *corev1.Pod) string {
	if controller := metav1.GetControllerOf(pod); controller != nil {
		return string(controller.UID)
	}
	return pod.Namespace + "/"
}

// mustTryAll reports whether the pod must be tried on all nodes.
func (n *narrowing) mustTryAll(pod *corev1.Pod) bool {
	n.mu.Lock()
	_, wide := n.wide[pod.UID]
	n.mu.Unlock()
	if wide {
		return true
	}
	_, paused := n.paused.Get(originOf(pod))
	return paused
}

// pause records a pod that was narrowed in vain. A pod that is still pending is tried on all nodes from then on.
func (n *narrowing) pause(pod *corev1.Pod, pending bool) {
	n.paused.Set(originOf(pod), struct{}{}, narrowPause)
	n.mu.Lock()
	defer n.mu.Unlock()
	if pending {
		n.wide[pod.UID] = struct{}{}
	}
}

// forget drops a pod that is not pending any more.
func (n *narrowing) forget(uid types.UID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.wide, uid)
}
