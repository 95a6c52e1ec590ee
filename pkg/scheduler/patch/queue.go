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

// filterEvents replaces the scheduler's queue by one that checks fewer pods for each event. It must be called before
// the informers start.
func (i internals) filterEvents(ctx context.Context) error {
	q := &filteredQueue{
		SchedulingQueue: *i.queue, profiles: map[string]*subscriptions{},
		pods: map[types.UID]*corev1.Pod{}, rejections: map[*corev1.Pod]rejection{},
	}
	for name, profile := range i.profiles {
		subscribed, err := subscriptionsOf(ctx, profile)
		if err != nil {
			return fmt.Errorf("profile %s: %w", name, err)
		}
		q.profiles[name] = subscribed
	}
	*i.queue = q
	return nil
}

// filteredQueue is kube-scheduler's queue. For an event it checks only those waiting pods that the event can concern.
//
// For each event, such as each pod that is bound, kube-scheduler checks every pod that it has found unschedulable, with
// the queue locked. For nearly all of them no plugin that rejected the pod has registered such an event. To find that
// out takes microseconds a pod: a new set, and a loop over all registered events. With 10,000 pods waiting, each pod
// that is bound stops all others for tens of milliseconds. Here the same is found out beforehand, from a word of bits.
// For a pod that is left out, kube-scheduler would have called no hint, or in vain. So each pod is woken exactly when
// it would be without this.
type filteredQueue struct {
	queue.SchedulingQueue
	// profiles by name.
	profiles map[string]*subscriptions

	// mu is locked before the locks of the queue.
	mu sync.Mutex
	// pods are the rejected pods, until they are bound or gone, as the queue has them.
	pods map[types.UID]*corev1.Pod
	// rejections has their rejections. They are kept by the object, because they are looked up for each pod that waits.
	// Reading the UID alone takes longer than this lookup.
	rejections map[*corev1.Pod]rejection
}

// rejection is the last rejection of a pod. Every pod that waits in the queue was rejected or is gated: a plugin holds
// it back before it is tried, perhaps again.
type rejection struct {
	// info is the queue's, and is read under its lock.
	info    *framework.QueuedPodInfo
	profile *subscriptions
	by      pluginSet
}

// subscriptions are the events that the plugins of a profile have registered.
type subscriptions struct {
	plugins []pluginEvents
	// concerned are the plugins that the present event can concern.
	concerned pluginSet
	// gates is true if one of them may gate pods.
	gates bool
}

// pluginEvents are the events that one plugin has registered.
type pluginEvents struct {
	name   string
	events []fwk.ClusterEvent
	// gate is true if the plugin may gate pods.
	gate bool
	// irrelevant reports that an event helps none of the pods that the plugin has rejected; nil if the plugin does not
	// report that.
	irrelevant func(logger klog.Logger, old, obj any) bool
}

// pluginSet is a set of the plugins of a profile. Those behind the 63rd count as one.
type pluginSet uint64

func pluginBit(i int) pluginSet { return 1 << min(i, 63) }

// subscriptionsOf reads the registered events as kube-scheduler does.
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
		p := pluginEvents{name: e.Name(), gate: gates.Has(e.Name())}
		for _, r := range registered {
			p.events = append(p.events, r.Event)
			if r.Event.Resource == fwk.Node && r.Event.ActionType&fwk.Add != 0 {
				// kube-scheduler adds this, for nodes that were added with a taint.
				p.events = append(p.events, fwk.ClusterEvent{Resource: fwk.Node, ActionType: fwk.UpdateNodeTaint})
			}
		}
		if filter, ok := e.(eventFilter); ok {
			p.irrelevant = filter.Irrelevant
		}
		s.plugins = append(s.plugins, p)
	}
	return s, nil
}

// rejectors returns the plugins that have rejected the pod. One that has registered no event is concerned by none.
func (s *subscriptions) rejectors(info *framework.QueuedPodInfo) (by pluginSet) {
	for i := range s.plugins {
		if name := s.plugins[i].name; info.UnschedulablePlugins.Has(name) || info.PendingPlugins.Has(name) {
			by |= pluginBit(i)
		}
	}
	return by
}

// prepare finds the plugins that the event concerns.
func (s *subscriptions) prepare(logger klog.Logger, event fwk.ClusterEvent, old, obj any) {
	s.concerned, s.gates = 0, false
	for i := range s.plugins {
		p := &s.plugins[i]
		if !framework.MatchAnyClusterEvent(event, p.events) {
			continue
		}
		s.gates = s.gates || p.gate
		if p.irrelevant == nil || !p.irrelevant(logger, old, obj) {
			s.concerned |= pluginBit(i)
		}
	}
}

// AddUnschedulableIfNotPresent records which plugins have rejected the pod.
func (q *filteredQueue) AddUnschedulableIfNotPresent(logger klog.Logger, info *framework.QueuedPodInfo, cycle int64) error {
	// This comes before the queue has the pod, and other goroutines change it.
	q.noteRejection(info)
	return q.SchedulingQueue.AddUnschedulableIfNotPresent(logger, info, cycle)
}

// noteRejection replaces the pod's last rejection.
func (q *filteredQueue) noteRejection(info *framework.QueuedPodInfo) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.forget(info.Pod.UID)
	profile := q.profiles[info.Pod.Spec.SchedulerName]
	if profile == nil || len(info.UnschedulablePlugins)+len(info.PendingPlugins) == 0 {
		// The queue tries the pod again without an event.
		return
	}
	q.pods[info.Pod.UID] = info.Pod
	q.rejections[info.Pod] = rejection{info: info, profile: profile, by: profile.rejectors(info)}
}

// forget drops the pod's rejection. The caller holds mu.
func (q *filteredQueue) forget(uid types.UID) {
	delete(q.rejections, q.pods[uid])
	delete(q.pods, uid)
}

// Update is called when an unbound pod has changed, at least once after each rejection.
func (q *filteredQueue) Update(ctx context.Context, old, pod *corev1.Pod) {
	q.mu.Lock()
	if before, known := q.pods[pod.UID]; known {
		r := q.rejections[before]
		delete(q.rejections, before)
		q.pods[pod.UID], q.rejections[pod] = pod, r
	}
	q.mu.Unlock()
	q.SchedulingQueue.Update(ctx, old, pod)
}

// Delete is also called when a pod is bound.
func (q *filteredQueue) Delete(pod *corev1.Pod) {
	q.mu.Lock()
	q.forget(pod.UID)
	q.mu.Unlock()
	q.SchedulingQueue.Delete(pod)
}

// MoveAllToActiveOrBackoffQueue calls the hints of the waiting pods that the event can concern.
func (q *filteredQueue) MoveAllToActiveOrBackoffQueue(logger klog.Logger, event fwk.ClusterEvent, old, obj any, preCheck queue.PreEnqueueCheck) {
	if framework.ClusterEventIsWildCard(event) {
		q.SchedulingQueue.MoveAllToActiveOrBackoffQueue(logger, event, old, obj, preCheck)
		return
	}
	// Until all hints are called no pod begins to wait that was tried before the event and that Irrelevant did not
	// count. Such a pod is in flight, and the queue calls its hints when it comes back.
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, profile := range q.profiles {
		profile.prepare(logger, event, old, obj)
	}
	q.SchedulingQueue.MoveAllToActiveOrBackoffQueue(logger, event, old, obj, func(pod *corev1.Pod) bool {
		return q.mayHelp(pod) && (preCheck == nil || preCheck(pod))
	})
}

// mayHelp reports whether the present event may help the pod. It is called with both locks held, mu and the queue's.
func (q *filteredQueue) mayHelp(pod *corev1.Pod) bool {
	r, known := q.rejections[pod]
	if !known {
		return true
	}
	if r.by&r.profile.concerned != 0 {
		return true
	}
	// The plugin that gates the pod has not rejected it.
	return r.profile.gates && r.info.Gated()
}
