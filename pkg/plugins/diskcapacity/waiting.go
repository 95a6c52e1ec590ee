package diskcapacity

import (
	"cmp"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	corev1helpers "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/klog/v2"

	"github.com/berthdev/berth/pkg/placement"
)

// waiting are the pods that the plugin has refused, or is just looking at, and the room that
// nodes have made for them.
//
// The scheduler's own way would be a queueing hint for each publication of a node. It asks
// every unschedulable pod about every event, with the scheduling queue locked: some
// microseconds a pod, so that with 10,000 pods waiting a publication stops all scheduling for
// tens of milliseconds, and nodes publish several times for each pod that comes or goes.
// Here the pods that ask for the same are asked once, without that lock, and only about
// publications that have more free space than the one before.
//
// It also closes a gap that hints leave: the scheduler's watch and ours have no order, so a
// pod that was created between an event there and the same event here was tried with the
// older state, and no hint came any more.
type waiting struct {
	mu sync.Mutex
	// pods by UID. A pod is here from before its cycle first reads the ledger, so that
	// whatever is folded in later finds it, until it has its place, is gone, or has
	// been refused by others only.
	pods map[types.UID]*pending
	// offers by the name of the node.
	offers map[string]*offer
	tries  uint64
}

// pending is one try of a pod.
type pending struct {
	pod      *corev1.Pod
	requests []placement.Request
	// flawed is true when it could not be read what the pod asks for.
	flawed bool
	// loose is true when a claim of it may be bound to a volume that there is.
	loose bool
	try   uint64
}

// offer is room that a node has made, and the pods that may have it: those that did not fit
// there before. They are not tried all at once, since mostly one of them takes it.
type offer struct {
	// pods in the order in which they are tried.
	pods []*pending
	// tried are those that were woken last.
	tried []*pending
	// beyond is how many more than fit together are woken in the next round. It doubles,
	// so that the last of ten thousand has its turn within two seconds.
	beyond int
	// rounds is how long those that were woken have not come to their turn.
	rounds int
	// due is true when the next round is on its way.
	due bool
}

const (
	// offerPause is the time between two rounds: enough for a try, if the scheduler has
	// nothing else to do.
	offerPause = 100 * time.Millisecond
	// offerRounds is how many rounds an offer waits for pods that are not tried.
	offerRounds = 50
)

func newWaiting() *waiting {
	return &waiting{pods: map[types.UID]*pending{}, offers: map[string]*offer{}}
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

// asks completes what begin could not know.
func (w *waiting) asks(c *pending, s *state) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c.requests, c.loose, c.flawed = s.requests, len(s.loose) > 0, false
}

// forget is called when the pod has its place, or is gone, or waits for other things.
func (w *waiting) forget(uid types.UID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.pods, uid)
}

// requestsOf returns what a waiting pod asks for; false if that must be read anew.
func (w *waiting) requestsOf(uid types.UID) (requests []placement.Request, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := w.pods[uid]
	if c == nil || c.flawed || c.loose {
		return nil, false
	}
	return c.requests, true
}

// of are those of the pods that wait.
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

// anyFits reports whether one of the pods fits the node, and returns those of which that must
// be read anew.
func (w *waiting) anyFits(node *placement.Node) (fit bool, unclear []*corev1.Pod) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := newGrowth(nil, node)
	for _, c := range w.pods {
		if c.flawed || c.loose {
			unclear = append(unclear, c.pod)
		} else if now.admits(c.requests) {
			return true, nil
		}
	}
	return false, unclear
}

// flawed are the pods of which could not be read what they ask for.
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

// offer adds to the node's offer the pods that fit after, and did not before; nil stands for
// a node on which nothing fits. It reports whether a round is due.
func (w *waiting) offer(nodeName string, before, after *placement.Node) bool {
	if !roomier(before, after) {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	fit := newGrowth(before, after)
	var pods []*pending
	for _, c := range w.pods {
		if !c.flawed && fit.admits(c.requests) {
			pods = append(pods, c)
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
	// As in the scheduling queue: the more important first, then who has waited longest.
	slices.SortFunc(pods, func(a, b *pending) int {
		return cmp.Or(cmp.Compare(corev1helpers.PodPriority(b.pod), corev1helpers.PodPriority(a.pod)), cmp.Compare(a.try, b.try))
	})
	o.pods, o.beyond = pods, 0
	return true
}

// round returns the pods to wake now, and whether to come again after offerPause. A pod that
// was tried since, or does not fit any more, leaves the offer: each is tried once for it.
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
	left := node
	untried := 0
	for _, c := range o.tried {
		if w.pods[c.pod.UID] != c {
			continue
		}
		untried++
		// It may still take its part.
		if plan, err := placement.Plan(nil, left, c.requests); err == nil {
			left = less(left, plan)
		}
	}
	if o.rounds++; untried == 0 || o.rounds > offerRounds {
		o.tried, o.rounds = nil, 0
	}
	var rest []*pending
	fit, beyond := newGrowth(nil, node), 0
	if untried == 0 {
		beyond = o.beyond
		o.beyond = max(1, 2*o.beyond)
	}
	full := map[placement.Request]bool{}
	for _, c := range o.pods {
		if w.pods[c.pod.UID] != c || !fit.admits(c.requests) {
			continue
		}
		alone := len(c.requests) == 1
		if !alone || !full[c.requests[0]] {
			if plan, err := placement.Plan(nil, left, c.requests); err == nil {
				left = less(left, plan)
				o.tried, wake = append(o.tried, c), append(wake, c.pod)
				continue
			}
			if alone {
				full[c.requests[0]] = true
			}
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

// growth is what a node had before and has now.
type growth struct {
	before, after *placement.Node
	// largest free extent now, by class: mostly the answer is that the volume is larger.
	largest map[string]int64
	// known are answers: pods often come in numbers that ask for the same.
	known map[placement.Request]bool
}

func newGrowth(before, after *placement.Node) *growth {
	g := &growth{before: before, after: after, largest: map[string]int64{}, known: map[placement.Request]bool{}}
	for i := range after.Disks {
		d := &after.Disks[i]
		g.largest[d.Class] = max(g.largest[d.Class], d.Free.Largest().Len())
	}
	return g
}

// admits reports whether the requests fit now and did not before.
func (g *growth) admits(requests []placement.Request) bool {
	for i := range requests {
		if requests[i].Size > g.largest[requests[i].Class] {
			return false
		}
	}
	if len(requests) != 1 {
		return g.compute(requests)
	}
	answer, known := g.known[requests[0]]
	if !known {
		answer = g.compute(requests)
		g.known[requests[0]] = answer
	}
	return answer
}

func (g *growth) compute(requests []placement.Request) bool {
	return fits(g.after, requests) && (g.before == nil || !fits(g.before, requests))
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

// begin is waiting's. A pod that was deleted before would not be forgotten any more.
func (f *feed) begin(pod *corev1.Pod) *pending {
	c := f.waiting.begin(pod)
	if f.storedPod(pod) == nil {
		f.waiting.forget(pod.UID)
	}
	return c
}

// made wakes the pods that fit the node now and did not before; all that fit, if nil. It
// must not be called under the lock of the scheduling queue.
func (f *feed) made(logger klog.Logger, nodeName string, before *placement.Node) {
	if refused := f.waiting.of(f.ledger.Lifted(nodeName)); len(refused) > 0 {
		// They may have fitted before, too.
		f.retry(logger, refused)
	}
	if f.hasAgent(nodeName) && f.waiting.offer(nodeName, before, f.ledger.Snapshot(nodeName).Node) {
		f.wake(logger, nodeName, false)
	}
}

// wake has the next pods tried that a node's offer is for.
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

// retry puts pods back into the scheduling queue, those that are being tried when they come
// back.
func (f *feed) retry(logger klog.Logger, pods []*corev1.Pod) {
	byName := make(map[string]*corev1.Pod, len(pods))
	for _, pod := range pods {
		byName[klog.KObj(pod).String()] = pod
	}
	f.activate(logger, byName)
}

// classAppeared wakes the pods with which something was wrong that a class may have mended.
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
