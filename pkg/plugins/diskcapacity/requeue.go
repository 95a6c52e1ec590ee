package diskcapacity

import (
	"cmp"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	corev1helpers "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/klog/v2"

	"github.com/berthdev/berth/pkg/placement"
)

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
	for _, a := range w.pods {
		if !a.requestUnknown {
			_, kept := a.keptNodes[nodeName]
			candidates = append(candidates, candidate{a, kept})
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
	requeue, running := w.requeues[nodeName]
	if !running {
		requeue = &nodeRequeue{}
		w.requeues[nodeName] = requeue
	}
	if running {
		known := make(map[*attempt]struct{}, len(pods))
		for _, a := range pods {
			known[a] = struct{}{}
		}
		for _, a := range requeue.pods {
			if _, twice := known[a]; !twice {
				pods = append(pods, a)
			}
		}
	}
	// The order is that of the scheduling queue: by priority, then the longest wait.
	slices.SortFunc(pods, func(a, b *attempt) int {
		return cmp.Or(cmp.Compare(corev1helpers.PodPriority(b.pod), corev1helpers.PodPriority(a.pod)), cmp.Compare(a.seq, b.seq))
	})
	requeue.pods, requeue.extra = pods, 0
	return true
}

// round returns the pods to wake now, and whether to call it again after roundPause. A pod that was tried since, or
// does not fit any more, leaves the requeue: each is tried once for it.
func (w *waitingPods) round(nodeName string, node *placement.Node, wasScheduled bool) (wake []*corev1.Pod, again bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	requeue := w.requeues[nodeName]
	if requeue == nil {
		return nil, false
	}
	if wasScheduled {
		requeue.scheduled = false
	}
	left := newPacking(node, maxPlansPerRound)
	untried := 0
	for _, a := range requeue.woken {
		if w.pods[a.pod.UID] != a {
			continue
		}
		untried++
		// It may still take its space.
		left.add(a)
	}
	if requeue.roundsUntried++; untried == 0 || requeue.roundsUntried > maxRoundsUntried {
		requeue.woken, requeue.roundsUntried = nil, 0
	}
	var rest []*attempt
	fit, extra := newSpaceGain(nil, node, maxPlansPerRound), 0
	if untried == 0 {
		extra = requeue.extra
		requeue.extra = max(1, 2*requeue.extra)
	}
	for _, a := range requeue.pods {
		if w.pods[a.pod.UID] != a || !fit.mayFit(a) {
			continue
		}
		if left.add(a) {
			requeue.woken, wake = append(requeue.woken, a), append(wake, a.pod)
			continue
		}
		if extra > 0 {
			extra--
			requeue.woken, wake = append(requeue.woken, a), append(wake, a.pod)
			continue
		}
		rest = append(rest, a)
	}
	if requeue.pods = rest; len(rest) == 0 {
		delete(w.requeues, nodeName)
		return wake, false
	}
	again = !requeue.scheduled
	requeue.scheduled = true
	return wake, again
}

// gainedSpace reports whether the node has free space that it did not have before, or takes pieces since.
func gainedSpace(before, after *placement.Node) bool {
	if before != nil && after.Pieces && !before.Pieces {
		return true
	}
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
	var valid []*corev1.Pod
	for _, pod := range f.waiting.withUnknownRequest() {
		if _, err := f.requestOf(pod); err == nil {
			valid = append(valid, pod)
		}
	}
	if len(valid) > 0 {
		f.requeue(logger, valid)
	}
}

// classAllowedMore wakes the pods that request the class: it allows more pieces than when they were tried.
func (f *feed) classAllowedMore(logger klog.Logger, class string) {
	if pods := f.waiting.requesting(class); len(pods) > 0 {
		f.requeue(logger, pods)
	}
}
