package patch

import (
	"context"
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/backend/queue"
	"k8s.io/kubernetes/pkg/scheduler/framework"
)

// filterEvents has the scheduler's queue ask fewer pods about each event. It must be called
// before the informers start.
func (s seam) filterEvents(ctx context.Context) error {
	q := &filteredQueue{
		SchedulingQueue: *s.queue, profiles: map[string]*subscriptions{},
		known: map[types.UID]*corev1.Pod{}, rejected: map[*corev1.Pod]rejection{},
	}
	for name, profile := range s.profiles {
		subscribed, err := subscriptionsOf(ctx, profile)
		if err != nil {
			return fmt.Errorf("profile %s: %w", name, err)
		}
		q.profiles[name] = subscribed
	}
	*s.queue = q
	return nil
}

// filteredQueue is kube-scheduler's queue, but of the pods that wait it only asks those that
// an event can concern.
//
// About each event, such as each pod that is bound, kube-scheduler asks every pod that it has
// found unschedulable, with the queue locked. For nearly all of them the answer is that none
// of the plugins that rejected the pod has registered such an event, but to find that out
// takes microseconds a pod: a new set, and a walk over all events that are registered. With
// 10,000 pods waiting, each pod that is bound stops all others for tens of milliseconds.
// Here the same is found out beforehand, from a word of bits. A pod that is left out would
// have been asked no hint, or in vain, so each is woken when it would be without this.
type filteredQueue struct {
	queue.SchedulingQueue
	// profiles by name.
	profiles map[string]*subscriptions

	// mu comes before the locks of the queue.
	mu sync.Mutex
	// known are the pods that were rejected, until they are bound or gone, as the queue has
	// them.
	known map[types.UID]*corev1.Pod
	// rejected is why. By the object, because it is looked up for each pod that waits, and
	// only to read the UID takes longer than this.
	rejected map[*corev1.Pod]rejection
}

// rejection is the last one of a pod. Whatever waits in the queue was rejected, or is gated:
// held back by a plugin before it is tried, perhaps again.
type rejection struct {
	// info is the queue's, and is read under its lock.
	info    *framework.QueuedPodInfo
	profile *subscriptions
	by      plugins64
}

// subscriptions are the events that the plugins of a profile have registered.
type subscriptions struct {
	plugins []subscriber
	// concerned are the plugins that may have something to say about the present event.
	concerned plugins64
	// gates is true if one of them may hold pods back.
	gates bool
}

type subscriber struct {
	name   string
	events []fwk.ClusterEvent
	// gate is true if it may hold pods back.
	gate bool
	// irrelevant reports that an event helps none of the pods that the plugin has rejected; nil if
	// the plugin cannot tell.
	irrelevant func(logger klog.Logger, old, obj any) bool
}

// plugins64 is a set of the plugins of a profile. Those behind the 63rd count as one.
type plugins64 uint64

func plugin64(i int) plugins64 { return 1 << min(i, 63) }

// subscriptionsOf reads them as kube-scheduler does.
func subscriptionsOf(ctx context.Context, profile framework.Framework) (*subscriptions, error) {
	gates := sets.New[string]()
	for _, p := range profile.PreEnqueuePlugins() {
		gates.Insert(p.Name())
	}
	s := &subscriptions{}
	for _, e := range profile.EnqueueExtensions() {
		registered, err := e.EventsToRegister(ctx)
		if err != nil {
			return nil, fmt.Errorf("events of plugin %s: %w", e.Name(), err)
		}
		p := subscriber{name: e.Name(), gate: gates.Has(e.Name())}
		for _, r := range registered {
			p.events = append(p.events, r.Event)
			if r.Event.Resource == fwk.Node && r.Event.ActionType&fwk.Add != 0 {
				// kube-scheduler adds this, for nodes that were added with a taint.
				p.events = append(p.events, fwk.ClusterEvent{Resource: fwk.Node, ActionType: fwk.UpdateNodeTaint})
			}
		}
		if knows, ok := e.(eventFilter); ok {
			p.irrelevant = knows.Irrelevant
		}
		s.plugins = append(s.plugins, p)
	}
	return s, nil
}

// rejectors are the plugins that have rejected the pod. One that has registered nothing has
// nothing to say about any event.
func (s *subscriptions) rejectors(info *framework.QueuedPodInfo) (by plugins64) {
	for i := range s.plugins {
		if name := s.plugins[i].name; info.UnschedulablePlugins.Has(name) || info.PendingPlugins.Has(name) {
			by |= plugin64(i)
		}
	}
	return by
}

// prepare is for the questions about an event.
func (s *subscriptions) prepare(logger klog.Logger, event fwk.ClusterEvent, old, obj any) {
	s.concerned, s.gates = 0, false
	for i := range s.plugins {
		p := &s.plugins[i]
		if !framework.MatchAnyClusterEvent(event, p.events) {
			continue
		}
		s.gates = s.gates || p.gate
		if p.irrelevant == nil || !p.irrelevant(logger, old, obj) {
			s.concerned |= plugin64(i)
		}
	}
}

// AddUnschedulableIfNotPresent notes who has rejected the pod.
func (s *filteredQueue) AddUnschedulableIfNotPresent(logger klog.Logger, info *framework.QueuedPodInfo, cycle int64) error {
	// Before the queue has it, and others change it.
	s.note(info)
	return s.SchedulingQueue.AddUnschedulableIfNotPresent(logger, info, cycle)
}

func (s *filteredQueue) note(info *framework.QueuedPodInfo) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forget(info.Pod.UID)
	profile := s.profiles[info.Pod.Spec.SchedulerName]
	if profile == nil || len(info.UnschedulablePlugins)+len(info.PendingPlugins) == 0 {
		// The queue tries it again of itself.
		return
	}
	s.known[info.Pod.UID] = info.Pod
	s.rejected[info.Pod] = rejection{info: info, profile: profile, by: profile.rejectors(info)}
}

func (s *filteredQueue) forget(uid types.UID) {
	delete(s.rejected, s.known[uid])
	delete(s.known, uid)
}

// Update is called when an unbound pod has changed, at least once after each rejection.
func (s *filteredQueue) Update(ctx context.Context, old, pod *corev1.Pod) {
	s.mu.Lock()
	if before, known := s.known[pod.UID]; known {
		r := s.rejected[before]
		delete(s.rejected, before)
		s.known[pod.UID], s.rejected[pod] = pod, r
	}
	s.mu.Unlock()
	s.SchedulingQueue.Update(ctx, old, pod)
}

// Delete is also called when a pod is bound.
func (s *filteredQueue) Delete(pod *corev1.Pod) {
	s.mu.Lock()
	s.forget(pod.UID)
	s.mu.Unlock()
	s.SchedulingQueue.Delete(pod)
}

// MoveAllToActiveOrBackoffQueue asks the pods that wait whether the event helps them.
func (s *filteredQueue) MoveAllToActiveOrBackoffQueue(logger klog.Logger, event fwk.ClusterEvent, old, obj any, preCheck queue.PreEnqueueCheck) {
	if framework.ClusterEventIsWildCard(event) {
		s.SchedulingQueue.MoveAllToActiveOrBackoffQueue(logger, event, old, obj, preCheck)
		return
	}
	// Until all are asked no pod begins to wait that was tried before the event and that a
	// plugin did not count among its rejected. Such a pod is in flight, and the queue asks it
	// when it comes back.
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, profile := range s.profiles {
		profile.prepare(logger, event, old, obj)
	}
	s.SchedulingQueue.MoveAllToActiveOrBackoffQueue(logger, event, old, obj, func(pod *corev1.Pod) bool {
		return s.mayHelp(pod) && (preCheck == nil || preCheck(pod))
	})
}

// mayHelp is called with both locks held, ours and the queue's.
func (s *filteredQueue) mayHelp(pod *corev1.Pod) bool {
	r, known := s.rejected[pod]
	if !known {
		return true
	}
	if r.by&r.profile.concerned != 0 {
		return true
	}
	// What it is gated by has not rejected it.
	return r.profile.gates && r.info.Gated()
}
