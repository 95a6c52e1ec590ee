package diskcapacity

import (
	"cmp"
	"hash/maphash"
	"maps"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	corev1helpers "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/klog/v2"

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
	lastSeq uint64
	seed    maphash.Seed
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
	seq       uint64
}

// nodeRequeue is the free space that a node has gained, and the pods that fit since then. They are not tried all at
// once, because usually one of them takes it.
type nodeRequeue struct {
	// pods in the order in which they are tried.
	pods []*attempt
	// woken are the pods that were woken last.
	woken []*attempt
	// extra is how many more pods than fit together are woken in the next round. It doubles, so that the last of ten
	// thousand pods is tried within two seconds.
	extra int
	// roundsUntried is for how many rounds the pods that were woken have not been tried.
	roundsUntried int
	// scheduled is true when the next round is scheduled.
	scheduled bool
}

const (
	// roundPause is the time between two rounds: enough for a try, if the scheduler has nothing else to do.
	roundPause = 100 * time.Millisecond
	// maxRoundsUntried is for how many rounds a requeue waits for pods that are not tried.
	maxRoundsUntried = 50
)

func newWaitingPods() *waitingPods {
	return &waitingPods{pods: map[types.UID]*attempt{}, requeues: map[string]*nodeRequeue{}, keptFor: map[types.UID]map[string]struct{}{}, seed: maphash.MakeSeed()}
}

// begin is called before a try of the pod reads the ledger.
func (w *waitingPods) begin(pod *corev1.Pod) *attempt {
	c := &attempt{pod: pod, requestUnknown: true}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lastSeq++
	c.seq = w.lastSeq
	w.pods[pod.UID] = c
	return c
}

// setRequest sets the pod's request, which is not known at begin.
func (w *waitingPods) setRequest(c *attempt, s *state) {
	key := w.key(s.requests)
	w.mu.Lock()
	defer w.mu.Unlock()
	c.demand, c.key, c.hasBindable, c.requestUnknown = s.search.Demand(), key, len(s.bindable) > 0, false
}

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
func (w *waitingPods) noteKept(c *attempt, nodeName string, nominated []types.UID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if c.keptNodes == nil {
		c.keptNodes = map[string]struct{}{}
	}
	c.keptNodes[nodeName] = struct{}{}
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
	if c := w.pods[uid]; c != nil && !c.requestUnknown && !c.hasBindable {
		return c
	}
	return nil
}

// all returns the attempts of the pods that wait. The caller reads them without the lock.
func (w *waitingPods) all() []*attempt {
	w.mu.Lock()
	defer w.mu.Unlock()
	pods := make([]*attempt, 0, len(w.pods))
	for _, c := range w.pods {
		pods = append(pods, c)
	}
	return pods
}

// of returns those of the pods that wait.
func (w *waitingPods) of(uids []string) []*corev1.Pod {
	w.mu.Lock()
	defer w.mu.Unlock()
	var pods []*corev1.Pod
	for _, uid := range uids {
		if c := w.pods[types.UID(uid)]; c != nil {
			pods = append(pods, c.pod)
		}
	}
	return pods
}

// anyUsesClaim reports whether one of the pods has a volume of that claim.
func (w *waitingPods) anyUsesClaim(pvc *corev1.PersistentVolumeClaim) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.pods {
		if usesClaim(c.pod, pvc) {
			return true
		}
	}
	return false
}

// anyFits reports whether one of the pods fits on the node, or may fit when there are too many to check. It returns the
// pods whose request must be read again.
func (w *waitingPods) anyFits(node *placement.Node) (fit bool, unclear []*corev1.Pod) {
	now := newSpaceGain(nil, node, maxPlansPerEvent)
	for _, c := range w.all() {
		if c.requestUnknown || c.hasBindable {
			unclear = append(unclear, c.pod)
		} else if now.mayFit(c) {
			return true, nil
		}
	}
	return false, unclear
}

// withUnknownRequest returns the pods whose request is not known.
func (w *waitingPods) withUnknownRequest() []*corev1.Pod {
	w.mu.Lock()
	defer w.mu.Unlock()
	var pods []*corev1.Pod
	for _, c := range w.pods {
		if c.requestUnknown {
			pods = append(pods, c.pod)
		}
	}
	return pods
}

// addFitting adds to the node's requeue the pods that fit after, and did not fit before or were refused because of a
// nominated pod. before is nil for a node on which nothing fits. It reports whether the requeue has new pods.
func (w *waitingPods) addFitting(nodeName string, before, after *placement.Node) bool {
	if !gainedSpace(before, after) {
		return false
	}
	grown, now := newSpaceGain(before, after, maxPlansPerEvent), newSpaceGain(nil, after, maxPlansPerEvent)
	return w.add(nodeName, func(c candidate) bool {
		return c.kept && now.mayFit(c.attempt) || grown.mayFit(c.attempt)
	})
}

// addKept adds to the node's requeue the pods that fit there and were refused because of a nominated pod.
func (w *waitingPods) addKept(nodeName string, now *placement.Node) bool {
	fit := newSpaceGain(nil, now, maxPlansPerEvent)
	return w.add(nodeName, func(c candidate) bool { return c.kept && fit.mayFit(c.attempt) })
}

// candidate is the attempt of a pod that waits, and whether space on the node is kept from it.
type candidate struct {
	*attempt
	kept bool
}

// candidates returns the attempts whose request is known.
func (w *waitingPods) candidates(nodeName string) []candidate {
	w.mu.Lock()
	defer w.mu.Unlock()
	candidates := make([]candidate, 0, len(w.pods))
	for _, c := range w.pods {
		if !c.requestUnknown {
			_, kept := c.keptNodes[nodeName]
			candidates = append(candidates, candidate{c, kept})
		}
	}
	return candidates
}

// add adds to the node's requeue the pods that fits accepts. fits is called without the lock.
func (w *waitingPods) add(nodeName string, fits func(candidate) bool) bool {
	fitting := slices.DeleteFunc(w.candidates(nodeName), func(c candidate) bool { return !fits(c) })
	w.mu.Lock()
	defer w.mu.Unlock()
	var pods []*attempt
	for _, c := range fitting {
		if w.pods[c.pod.UID] == c.attempt {
			pods = append(pods, c.attempt)
		}
	}
	if len(pods) == 0 {
		return false
	}
	o, running := w.requeues[nodeName]
	if !running {
		o = &nodeRequeue{}
		w.requeues[nodeName] = o
	}
	if running {
		known := make(map[*attempt]struct{}, len(pods))
		for _, c := range pods {
			known[c] = struct{}{}
		}
		for _, c := range o.pods {
			if _, twice := known[c]; !twice {
				pods = append(pods, c)
			}
		}
	}
	// The order is that of the scheduling queue: by priority, then the longest wait.
	slices.SortFunc(pods, func(a, b *attempt) int {
		return cmp.Or(cmp.Compare(corev1helpers.PodPriority(b.pod), corev1helpers.PodPriority(a.pod)), cmp.Compare(a.seq, b.seq))
	})
	o.pods, o.extra = pods, 0
	return true
}

// round returns the pods to wake now, and whether to call it again after roundPause. A pod that was tried since, or
// does not fit any more, leaves the requeue: each is tried once for it.
func (w *waitingPods) round(nodeName string, node *placement.Node, wasScheduled bool) (wake []*corev1.Pod, again bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	o := w.requeues[nodeName]
	if o == nil {
		return nil, false
	}
	if wasScheduled {
		o.scheduled = false
	}
	left := newPacking(node, maxPlansPerRound)
	untried := 0
	for _, c := range o.woken {
		if w.pods[c.pod.UID] != c {
			continue
		}
		untried++
		// It may still take its space.
		left.add(c)
	}
	if o.roundsUntried++; untried == 0 || o.roundsUntried > maxRoundsUntried {
		o.woken, o.roundsUntried = nil, 0
	}
	var rest []*attempt
	fit, extra := newSpaceGain(nil, node, maxPlansPerRound), 0
	if untried == 0 {
		extra = o.extra
		o.extra = max(1, 2*o.extra)
	}
	for _, c := range o.pods {
		if w.pods[c.pod.UID] != c || !fit.mayFit(c) {
			continue
		}
		if left.add(c) {
			o.woken, wake = append(o.woken, c), append(wake, c.pod)
			continue
		}
		if extra > 0 {
			extra--
			o.woken, wake = append(o.woken, c), append(wake, c.pod)
			continue
		}
		rest = append(rest, c)
	}
	if o.pods = rest; len(rest) == 0 {
		delete(w.requeues, nodeName)
		return wake, false
	}
	again = !o.scheduled
	o.scheduled = true
	return wake, again
}

// gainedSpace reports whether the node has free space that it did not have before.
func gainedSpace(before, after *placement.Node) bool {
	for i := range after.Disks {
		d := &after.Disks[i]
		if d.Free.Len() == 0 {
			continue
		}
		if before == nil {
			return true
		}
		at := slices.IndexFunc(before.Disks, func(b placement.Disk) bool { return b.ID == d.ID && b.Class == d.Class })
		if at < 0 {
			return true
		}
		for _, e := range d.Free.All() {
			if !before.Disks[at].Free.Contains(e) {
				return true
			}
		}
	}
	return false
}

// beginAttempt is waitingPods.begin, but not for a pod that is already deleted, because no later event would remove it.
func (f *feed) beginAttempt(pod *corev1.Pod) *attempt {
	c := f.waiting.begin(pod)
	if f.storedPod(pod) == nil {
		f.waiting.forget(pod.UID)
	}
	return c
}

// requeueFitting wakes the pods that fit the node now and did not fit before; all that fit, if before is nil. It must
// not be called under the lock of the scheduling queue.
func (f *feed) requeueFitting(logger klog.Logger, nodeName string, before *placement.Node) {
	if refused := f.waiting.of(f.ledger.LiftedRefusals(nodeName)); len(refused) > 0 {
		// They may have fitted before.
		f.requeue(logger, refused)
	}
	if f.hasAgent(nodeName) && f.waiting.addFitting(nodeName, before, f.ledger.Snapshot(nodeName).Node) {
		f.runRound(logger, nodeName, false)
	}
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

// nominationEnded wakes the pods that were refused because of the pod and that fit on the space that was kept for it.
// It must not be called under the lock of the scheduling queue.
func (f *feed) nominationEnded(logger klog.Logger, uid types.UID) {
	for _, nodeName := range f.waiting.takeKeptFor(uid) {
		if f.hasAgent(nodeName) && f.waiting.addKept(nodeName, f.ledger.Snapshot(nodeName).Node) {
			f.runRound(logger, nodeName, false)
		}
	}
}

// runRound runs a round of the node's requeue.
func (f *feed) runRound(logger klog.Logger, nodeName string, wasScheduled bool) {
	pods, again := f.waiting.round(nodeName, f.ledger.Snapshot(nodeName).Node, wasScheduled)
	if len(pods) > 0 {
		logger.V(3).Info("A node has made room", "node", klog.KRef("", nodeName), "podsWoken", len(pods))
		f.requeue(logger, pods)
	}
	if again {
		f.later(roundPause, func() { f.runRound(logger, nodeName, true) })
	}
}

// requeue puts pods back into the scheduling queue. Those that are being tried come back when that try has ended.
func (f *feed) requeue(logger klog.Logger, pods []*corev1.Pod) {
	byName := make(map[string]*corev1.Pod, len(pods))
	for _, pod := range pods {
		byName[klog.KObj(pod).String()] = pod
	}
	f.activate(logger, byName)
}

// classAppeared wakes the pods whose request has become valid with a new class.
func (f *feed) classAppeared(logger klog.Logger) {
	var mended []*corev1.Pod
	for _, pod := range f.waiting.withUnknownRequest() {
		if _, err := f.requestOf(pod); err == nil {
			mended = append(mended, pod)
		}
	}
	if len(mended) > 0 {
		f.requeue(logger, mended)
	}
}
