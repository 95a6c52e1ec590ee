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

// waiting are the pods that the plugin has refused or is trying, and the free space that nodes have gained for them.
//
// The scheduler's own way would be a queueing hint for each publication of a node. A hint is called for every
// unschedulable pod, with the scheduling queue locked, and takes some microseconds. With 10,000 pods waiting, a
// publication would stop all scheduling for tens of milliseconds. Nodes publish several times for each pod that comes
// or goes. Here pods with equal requests are checked once, without that lock, and only for publications with more free
// space than the one before.
//
// It also closes a gap of hints. The scheduler's watch and ours have no order. A pod that was created between an event
// there and the same event here was tried with the older state. No hint came after that.
type waiting struct {
	mu sync.Mutex
	// pods by UID. A pod is here from before its cycle first reads the ledger, so that whatever is folded in later
	// finds it. It stays until it has its place, is gone, or has been refused by other plugins only.
	pods map[types.UID]*pending
	// offers by the name of the node.
	offers map[string]*offer
	// keepers are the nodes on which pods were refused because of a nominated pod, by the UID of the nominated pod.
	keepers map[types.UID]map[string]struct{}
	tries   uint64
	seed    maphash.Seed
}

// pending is one try of a pod.
type pending struct {
	pod *corev1.Pod
	// demand is the pod's request. key is equal for equal requests.
	demand *placement.Demand
	key    uint64
	// flawed is true when the pod's request is not read yet or is invalid.
	flawed bool
	// bindable is true when a claim of the pod may be bound to an existing volume.
	bindable bool
	// kept are the nodes where the pod fits on space that is kept for a nominated pod.
	kept map[string]struct{}
	try  uint64
}

// offer is the free space that a node has gained, and the pods that fit since then. They are not tried all at once,
// because usually one of them takes it.
type offer struct {
	// pods in the order in which they are tried.
	pods []*pending
	// tried are the pods that were woken last.
	tried []*pending
	// beyond is how many more pods than fit together are woken in the next round. It doubles, so that the last of ten
	// thousand pods is tried within two seconds.
	beyond int
	// rounds is for how many rounds the pods that were woken have not been tried.
	rounds int
	// due is true when the next round is scheduled.
	due bool
}

const (
	// offerPause is the time between two rounds: enough for a try, if the scheduler has nothing else to do.
	offerPause = 100 * time.Millisecond
	// offerRounds is for how many rounds an offer waits for pods that are not tried.
	offerRounds = 50
)

func newWaiting() *waiting {
	return &waiting{pods: map[types.UID]*pending{}, offers: map[string]*offer{}, keepers: map[types.UID]map[string]struct{}{}, seed: maphash.MakeSeed()}
}

// begin is called before a try of the pod reads the ledger.
func (w *waiting) begin(pod *corev1.Pod) *pending {
	c := &pending{pod: pod, flawed: true}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tries++
	c.try = w.tries
	w.pods[pod.UID] = c
	return c
}

// asks sets the pod's request, which is not known at begin.
func (w *waiting) asks(c *pending, s *state) {
	key := w.key(s.requests)
	w.mu.Lock()
	defer w.mu.Unlock()
	c.demand, c.key, c.bindable, c.flawed = s.search.Demand(), key, len(s.bindable) > 0, false
}

func (w *waiting) key(requests []placement.Request) uint64 {
	var hash maphash.Hash
	hash.SetSeed(w.seed)
	for i := range requests {
		maphash.WriteComparable(&hash, requests[i])
	}
	return hash.Sum64()
}

// forget removes a pod that has its place, is gone, or waits for something else.
func (w *waiting) forget(uid types.UID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.pods, uid)
}

// keep records that the pod was refused on the node because of nominated pods.
func (w *waiting) keep(c *pending, nodeName string, nominated []types.UID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if c.kept == nil {
		c.kept = map[string]struct{}{}
	}
	c.kept[nodeName] = struct{}{}
	for _, uid := range nominated {
		if w.keepers[uid] == nil {
			w.keepers[uid] = map[string]struct{}{}
		}
		w.keepers[uid][nodeName] = struct{}{}
	}
}

// isKept reports whether space was kept for the nominated pod.
func (w *waiting) isKept(uid types.UID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.keepers[uid] != nil
}

// endKeeping returns the nodes where space was kept for the pod, which is no longer nominated, and forgets them.
func (w *waiting) endKeeping(uid types.UID) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	nodes := slices.Sorted(maps.Keys(w.keepers[uid]))
	delete(w.keepers, uid)
	return nodes
}

// pendingOf returns the waiting pod; nil if it does not wait or its request must be read again.
func (w *waiting) pendingOf(uid types.UID) *pending {
	w.mu.Lock()
	defer w.mu.Unlock()
	if c := w.pods[uid]; c != nil && !c.flawed && !c.bindable {
		return c
	}
	return nil
}

// all returns the pods that wait. The caller reads them without the lock.
func (w *waiting) all() []*pending {
	w.mu.Lock()
	defer w.mu.Unlock()
	pods := make([]*pending, 0, len(w.pods))
	for _, c := range w.pods {
		pods = append(pods, c)
	}
	return pods
}

// of returns those of the pods that wait.
func (w *waiting) of(uids []string) []*corev1.Pod {
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

// referTo reports whether one of the pods has a volume of that claim.
func (w *waiting) referTo(pvc *corev1.PersistentVolumeClaim) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.pods {
		if refersTo(c.pod, pvc) {
			return true
		}
	}
	return false
}

// anyFits reports whether one of the pods fits on the node, or may fit when there are too many to check. It returns the
// pods whose request must be read again.
func (w *waiting) anyFits(node *placement.Node) (fit bool, unclear []*corev1.Pod) {
	now := newGrowth(nil, node, eventPlans)
	for _, c := range w.all() {
		if c.flawed || c.bindable {
			unclear = append(unclear, c.pod)
		} else if now.admits(c) {
			return true, nil
		}
	}
	return false, unclear
}

// flawed returns the pods whose request is not known.
func (w *waiting) flawed() []*corev1.Pod {
	w.mu.Lock()
	defer w.mu.Unlock()
	var pods []*corev1.Pod
	for _, c := range w.pods {
		if c.flawed {
			pods = append(pods, c.pod)
		}
	}
	return pods
}

// offer adds to the node's offer the pods that fit after, and did not fit before or were refused because of a nominated
// pod. before is nil for a node on which nothing fits. It reports whether the offer has new pods.
func (w *waiting) offer(nodeName string, before, after *placement.Node) bool {
	if !roomier(before, after) {
		return false
	}
	grown, now := newGrowth(before, after, eventPlans), newGrowth(nil, after, eventPlans)
	return w.add(nodeName, func(c waiter) bool {
		return c.kept && now.admits(c.pending) || grown.admits(c.pending)
	})
}

// offerKept adds to the node's offer the pods that fit there and were refused because of a nominated pod.
func (w *waiting) offerKept(nodeName string, now *placement.Node) bool {
	fit := newGrowth(nil, now, eventPlans)
	return w.add(nodeName, func(c waiter) bool { return c.kept && fit.admits(c.pending) })
}

// waiter is a pod that waits, and whether space on the node is kept from it.
type waiter struct {
	*pending
	kept bool
}

// waiters returns the pods whose request is known.
func (w *waiting) waiters(nodeName string) []waiter {
	w.mu.Lock()
	defer w.mu.Unlock()
	waiters := make([]waiter, 0, len(w.pods))
	for _, c := range w.pods {
		if !c.flawed {
			_, kept := c.kept[nodeName]
			waiters = append(waiters, waiter{c, kept})
		}
	}
	return waiters
}

// add adds to the node's offer the pods that admits accepts. admits is called without the lock.
func (w *waiting) add(nodeName string, admits func(waiter) bool) bool {
	admitted := slices.DeleteFunc(w.waiters(nodeName), func(c waiter) bool { return !admits(c) })
	w.mu.Lock()
	defer w.mu.Unlock()
	var pods []*pending
	for _, c := range admitted {
		if w.pods[c.pod.UID] == c.pending {
			pods = append(pods, c.pending)
		}
	}
	if len(pods) == 0 {
		return false
	}
	o, running := w.offers[nodeName]
	if !running {
		o = &offer{}
		w.offers[nodeName] = o
	}
	if running {
		known := make(map[*pending]struct{}, len(pods))
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
	slices.SortFunc(pods, func(a, b *pending) int {
		return cmp.Or(cmp.Compare(corev1helpers.PodPriority(b.pod), corev1helpers.PodPriority(a.pod)), cmp.Compare(a.try, b.try))
	})
	o.pods, o.beyond = pods, 0
	return true
}

// round returns the pods to wake now, and whether to call it again after offerPause. A pod that was tried since, or
// does not fit any more, leaves the offer: each is tried once for it.
func (w *waiting) round(nodeName string, node *placement.Node, wasDue bool) (wake []*corev1.Pod, again bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	o := w.offers[nodeName]
	if o == nil {
		return nil, false
	}
	if wasDue {
		o.due = false
	}
	left := newPlans(node, roundPlans)
	untried := 0
	for _, c := range o.tried {
		if w.pods[c.pod.UID] != c {
			continue
		}
		untried++
		// It may still take its space.
		left.take(c)
	}
	if o.rounds++; untried == 0 || o.rounds > offerRounds {
		o.tried, o.rounds = nil, 0
	}
	var rest []*pending
	fit, beyond := newGrowth(nil, node, roundPlans), 0
	if untried == 0 {
		beyond = o.beyond
		o.beyond = max(1, 2*o.beyond)
	}
	for _, c := range o.pods {
		if w.pods[c.pod.UID] != c || !fit.admits(c) {
			continue
		}
		if left.take(c) {
			o.tried, wake = append(o.tried, c), append(wake, c.pod)
			continue
		}
		if beyond > 0 {
			beyond--
			o.tried, wake = append(o.tried, c), append(wake, c.pod)
			continue
		}
		rest = append(rest, c)
	}
	if o.pods = rest; len(rest) == 0 {
		delete(w.offers, nodeName)
		return wake, false
	}
	again = !o.due
	o.due = true
	return wake, again
}

// roomier reports whether the node has free space that it did not have before.
func roomier(before, after *placement.Node) bool {
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

// begin is waiting.begin, but not for a pod that is already deleted, because no later event would remove it.
func (f *feed) begin(pod *corev1.Pod) *pending {
	c := f.waiting.begin(pod)
	if f.storedPod(pod) == nil {
		f.waiting.forget(pod.UID)
	}
	return c
}

// made wakes the pods that fit the node now and did not fit before; all that fit, if before is nil. It must not be
// called under the lock of the scheduling queue.
func (f *feed) made(logger klog.Logger, nodeName string, before *placement.Node) {
	if refused := f.waiting.of(f.ledger.LiftedRefusals(nodeName)); len(refused) > 0 {
		// They may have fitted before.
		f.retry(logger, refused)
	}
	if f.hasAgent(nodeName) && f.waiting.offer(nodeName, before, f.ledger.Snapshot(nodeName).Node) {
		f.wake(logger, nodeName, false)
	}
}

// noteKept records that the pod was refused on the node because of nominated pods, if it fits there without them.
func (p *Plugin) noteKept(s *state, node *corev1.Node, snapshot *ledger.Snapshot) {
	nominated := s.nominatedFor(node.Name)
	if len(nominated) == 0 || s.try == nil {
		return
	}
	if _, err := s.searchOn(node).FitOn(snapshot.Without(s.gone)); err == nil {
		p.feed.waiting.keep(s.try, node.Name, nominated)
	}
}

// nominationEnded offers the space that was kept for the pod to the pods that were refused because of it. It must not
// be called under the lock of the scheduling queue.
func (f *feed) nominationEnded(logger klog.Logger, uid types.UID) {
	for _, nodeName := range f.waiting.endKeeping(uid) {
		if f.hasAgent(nodeName) && f.waiting.offerKept(nodeName, f.ledger.Snapshot(nodeName).Node) {
			f.wake(logger, nodeName, false)
		}
	}
}

// wake runs a round of the node's offer.
func (f *feed) wake(logger klog.Logger, nodeName string, wasDue bool) {
	pods, again := f.waiting.round(nodeName, f.ledger.Snapshot(nodeName).Node, wasDue)
	if len(pods) > 0 {
		logger.V(3).Info("A node has made room", "node", klog.KRef("", nodeName), "podsWoken", len(pods))
		f.retry(logger, pods)
	}
	if again {
		f.later(offerPause, func() { f.wake(logger, nodeName, true) })
	}
}

// retry puts pods back into the scheduling queue. Those that are being tried come back when that try has ended.
func (f *feed) retry(logger klog.Logger, pods []*corev1.Pod) {
	byName := make(map[string]*corev1.Pod, len(pods))
	for _, pod := range pods {
		byName[klog.KObj(pod).String()] = pod
	}
	f.activate(logger, byName)
}

// classAppeared wakes the pods whose request has become valid with a new class.
func (f *feed) classAppeared(logger klog.Logger) {
	var mended []*corev1.Pod
	for _, pod := range f.waiting.flawed() {
		if _, err := f.ask(pod); err == nil {
			mended = append(mended, pod)
		}
	}
	if len(mended) > 0 {
		f.retry(logger, mended)
	}
}
