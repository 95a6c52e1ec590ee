package diskcapacity

import (
	"hash/maphash"
	"iter"
	"maps"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berthdev/berth/pkg/ledger"
	"github.com/berthdev/berth/pkg/placement"
)

// waitingPods are the pods that the plugin has refused or is trying, and the free space that nodes have gained for
// them.
//
// The scheduler's own way would be a queueing hint for each publication of a node. A hint is called for every
// unschedulable pod, with the scheduling queue locked, and takes some microseconds. With 10,000 pods waiting, a
// publication would stop all scheduling for tens of milliseconds. Nodes publish several times for each pod that comes
// or goes. Here pods with equal requests are checked once, without that lock, and only for publications with more free
// space than the one before.
//
// It also closes a gap of hints. The scheduler's watch and ours have no order. A pod that was created between an event
// there and the same event here was tried with the older state. No hint came after that.
type waitingPods struct {
	mu sync.Mutex
	// pods by UID. A pod is here from before its cycle first reads the ledger, so that whatever is folded in later
	// finds it. It stays until it has its place, is gone, or has been refused by other plugins only.
	pods map[types.UID]*attempt
	// requeues by the name of the node.
	requeues map[string]*nodeRequeue
	// keptFor are the nodes on which pods were refused because of a nominated pod, by the UID of the nominated pod.
	keptFor map[types.UID]map[string]struct{}
	// lastSeq is the seq of the last attempt.
	lastSeq uint64
	// seed is of the hashes of requests.
	seed maphash.Seed
}

// attempt is one scheduling attempt of a pod.
type attempt struct {
	pod *corev1.Pod
	// demand is the pod's request. key is equal for equal requests.
	demand *placement.Demand
	key    uint64
	// requestUnknown is true when the pod's request is not read yet or is invalid.
	requestUnknown bool
	// hasBindable is true when a claim of the pod may be bound to an existing volume.
	hasBindable bool
	// keptNodes are the nodes where the pod fits on space that is kept for a nominated pod.
	keptNodes map[string]struct{}
	// seq numbers the attempts in the order in which they began.
	seq uint64
	// since is when the pod began to wait: when it was first refused, by any scheduler, or first tried here.
	since time.Time
}

func newWaitingPods() *waitingPods {
	return &waitingPods{pods: map[types.UID]*attempt{}, requeues: map[string]*nodeRequeue{}, keptFor: map[types.UID]map[string]struct{}{}, seed: maphash.MakeSeed()}
}

// begin is called before a try of the pod reads the ledger.
func (w *waitingPods) begin(pod *corev1.Pod) *attempt {
	a := &attempt{pod: pod, requestUnknown: true, since: waitsSince(pod, time.Now())}
	w.mu.Lock()
	defer w.mu.Unlock()
	if before := w.pods[pod.UID]; before != nil && before.since.Before(a.since) {
		a.since = before.since
	}
	w.lastSeq++
	a.seq = w.lastSeq
	w.pods[pod.UID] = a
	return a
}

// waitsSince is when the pod was first found unschedulable, which is in its conditions. Otherwise it is now.
func waitsSince(pod *corev1.Pod, now time.Time) time.Time {
	for i := range pod.Status.Conditions {
		c := &pod.Status.Conditions[i]
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse && c.Reason == corev1.PodReasonUnschedulable && c.LastTransitionTime.Time.Before(now) {
			return c.LastTransitionTime.Time
		}
	}
	return now
}

// waitingOfClass is how many pods wait for space of a class, and how long the oldest of them has waited.
type waitingOfClass struct {
	pods   int
	oldest time.Duration
}

// byClass counts the pods that wait by the classes that they request. A pod whose request is not known or invalid is
// counted under the empty class. The classes that are given are in the result even if no pod waits for them.
func (w *waitingPods) byClass(now time.Time, classes iter.Seq[string]) map[string]waitingOfClass {
	w.mu.Lock()
	defer w.mu.Unlock()
	waiting := map[string]waitingOfClass{}
	for class := range classes {
		waiting[class] = waitingOfClass{}
	}
	count := func(class string, a *attempt) {
		of := waiting[class]
		waiting[class] = waitingOfClass{of.pods + 1, max(of.oldest, now.Sub(a.since))}
	}
	for _, a := range w.pods {
		if a.demand == nil {
			count("", a)
			continue
		}
		for class := range a.demand.Needs() {
			count(class, a)
		}
	}
	return waiting
}

// setRequest sets the pod's request, which is not known at begin.
func (w *waitingPods) setRequest(a *attempt, s *state) {
	key := w.key(s.requests)
	w.mu.Lock()
	defer w.mu.Unlock()
	a.demand, a.key, a.hasBindable, a.requestUnknown = s.search.Demand(), key, len(s.bindable) > 0, false
}

// key is a hash of the requests. It is equal for equal requests.
func (w *waitingPods) key(requests []placement.Request) uint64 {
	var hash maphash.Hash
	hash.SetSeed(w.seed)
	for i := range requests {
		maphash.WriteComparable(&hash, requests[i])
	}
	return hash.Sum64()
}

// forget removes a pod that has its place, is gone, or waits for something else.
func (w *waitingPods) forget(uid types.UID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.pods, uid)
}

// noteKept records that the pod was refused on the node because of nominated pods.
func (w *waitingPods) noteKept(a *attempt, nodeName string, nominated []types.UID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if a.keptNodes == nil {
		a.keptNodes = map[string]struct{}{}
	}
	a.keptNodes[nodeName] = struct{}{}
	for _, uid := range nominated {
		if w.keptFor[uid] == nil {
			w.keptFor[uid] = map[string]struct{}{}
		}
		w.keptFor[uid][nodeName] = struct{}{}
	}
}

// isKeptFor reports whether space was kept for the nominated pod.
func (w *waitingPods) isKeptFor(uid types.UID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.keptFor[uid] != nil
}

// takeKeptFor returns the nodes where space was kept for the pod, which is no longer nominated, and forgets them.
func (w *waitingPods) takeKeptFor(uid types.UID) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	nodes := slices.Sorted(maps.Keys(w.keptFor[uid]))
	delete(w.keptFor, uid)
	return nodes
}

// attemptOf returns the waiting pod's attempt; nil if it does not wait or its request must be read again.
func (w *waitingPods) attemptOf(uid types.UID) *attempt {
	w.mu.Lock()
	defer w.mu.Unlock()
	if a := w.pods[uid]; a != nil && !a.requestUnknown && !a.hasBindable {
		return a
	}
	return nil
}

// all returns the attempts of the pods that wait. The caller reads them without the lock.
func (w *waitingPods) all() []*attempt {
	w.mu.Lock()
	defer w.mu.Unlock()
	pods := make([]*attempt, 0, len(w.pods))
	for _, a := range w.pods {
		pods = append(pods, a)
	}
	return pods
}

// of returns those of the pods that wait.
func (w *waitingPods) of(uids []string) []*corev1.Pod {
	w.mu.Lock()
	defer w.mu.Unlock()
	var pods []*corev1.Pod
	for _, uid := range uids {
		if a := w.pods[types.UID(uid)]; a != nil {
			pods = append(pods, a.pod)
		}
	}
	return pods
}

// anyUsesClaim reports whether one of the pods has a volume of that claim.
func (w *waitingPods) anyUsesClaim(pvc *corev1.PersistentVolumeClaim) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range w.pods {
		if usesClaim(a.pod, pvc) {
			return true
		}
	}
	return false
}

// anyFits reports whether one of the pods fits on the node, or may fit when there are too many to check. It returns the
// pods whose request must be read again.
func (w *waitingPods) anyFits(node *placement.Node) (fit bool, unclear []*corev1.Pod) {
	now := newSpaceGain(nil, node, maxPlansPerEvent)
	for _, a := range w.all() {
		if a.requestUnknown || a.hasBindable {
			unclear = append(unclear, a.pod)
		} else if now.mayFit(a) {
			return true, nil
		}
	}
	return false, unclear
}

// requesting returns the pods that request volumes of the class.
func (w *waitingPods) requesting(class string) []*corev1.Pod {
	w.mu.Lock()
	defer w.mu.Unlock()
	var pods []*corev1.Pod
	for _, a := range w.pods {
		if a.requestUnknown || a.demand == nil {
			continue
		}
		for wanted := range a.demand.Needs() {
			if wanted == class {
				pods = append(pods, a.pod)
			}
		}
	}
	return pods
}

// withUnknownRequest returns the pods whose request is not known.
func (w *waitingPods) withUnknownRequest() []*corev1.Pod {
	w.mu.Lock()
	defer w.mu.Unlock()
	var pods []*corev1.Pod
	for _, a := range w.pods {
		if a.requestUnknown {
			pods = append(pods, a.pod)
		}
	}
	return pods
}

// beginAttempt is waitingPods.begin, but not for a pod that is already deleted, because no later event would remove it.
func (f *feed) beginAttempt(pod *corev1.Pod) *attempt {
	a := f.waiting.begin(pod)
	if f.storedPod(pod) == nil {
		f.waiting.forget(pod.UID)
	}
	return a
}

// noteIfKept records that the pod was refused on the node because of nominated pods, if it fits there without them.
func (p *Plugin) noteIfKept(s *state, node *corev1.Node, snapshot *ledger.Snapshot) {
	nominated := s.nominatedFor(node.Name)
	if len(nominated) == 0 || s.attempt == nil {
		return
	}
	if _, err := s.searchOn(node).FitOn(snapshot.Without(s.gone)); err == nil {
		p.feed.waiting.noteKept(s.attempt, node.Name, nominated)
	}
}
