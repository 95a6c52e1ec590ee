package volumes

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

// noRoom reports that a pod does not fit. After the grace period it requests the pod's eviction, if a controller makes
// the pod again. The agent has no permission to evict: RBAC would allow it to evict any pod of the cluster. The
// scheduler's leader reads the request in the NodeDiskCapacity.
func (i *inlineController) noRoom(ctx context.Context, pod *corev1.Pod, why error) {
	i.node.reports.warnPod(pod, eventNoRoom, explainNoRoom(pod, why))
	since := i.roomless.add(pod.UID, i.node.clock.Now())
	controller := metav1.GetControllerOf(pod)
	if controller == nil || controller.Kind == "DaemonSet" {
		// It would not be made again, or only on this node.
		return
	}
	if left := i.options.evictionGrace - i.node.since(since); left > 0 {
		i.queue.AddAfter(keyOf(pod), left)
		return
	}
	if !i.roomless.requestEviction(pod) {
		return
	}
	klog.FromContext(ctx).Info("Eviction of the pod is requested, its volumes do not fit here", "reason", why.Error())
	i.node.reports.recorder.Event(pod, corev1.EventTypeWarning, eventEvicting, "the pod is to be evicted, so that it is scheduled again: "+why.Error())
	i.node.changed()
}

// explainNoRoom adds, for a pod without a reservation, which scheduler would have made one.
func explainNoRoom(pod *corev1.Pod, why error) string {
	if _, recorded := pod.Annotations[diskv1alpha1.AnnotationAllocation]; recorded {
		return why.Error()
	}
	return why.Error() + "; " + explainNoRecord(pod)
}

// clearNoRoom drops the pod from roomless: it has room now, or needs none.
func (i *inlineController) clearNoRoom(pod *corev1.Pod) {
	if i.roomless.remove(pod.UID) {
		i.node.changed()
	}
}

// withdrawEviction takes back the request for an eviction: there may be room soon.
func (i *inlineController) withdrawEviction(pod *corev1.Pod) {
	if i.roomless.withdrawEviction(pod.UID) {
		i.node.changed()
	}
}

// maxEvictions is how many evictions one NodeDiskCapacity can request.
const maxEvictions = 64

// evictions are the requests for pods that still exist, sorted by UID. Those beyond maxEvictions follow when these pods
// are gone.
func (i *inlineController) evictions() []diskv1alpha1.EvictionRequest {
	all := slices.DeleteFunc(i.roomless.evictionRequests(), func(r diskv1alpha1.EvictionRequest) bool {
		pod := i.pods.get(types.NamespacedName{Namespace: r.Namespace, Name: r.Name}, r.UID)
		return pod == nil || !isAlive(pod)
	})
	return limitEvictions(all)
}

// limitEvictions sorts requests by UID, and drops those that are there twice or too many.
func limitEvictions(all []diskv1alpha1.EvictionRequest) []diskv1alpha1.EvictionRequest {
	slices.SortFunc(all, func(a, b diskv1alpha1.EvictionRequest) int { return cmp.Compare(a.UID, b.UID) })
	all = slices.Compact(all)
	return all[:min(len(all), maxEvictions)]
}

// podsWithoutRoom are the pods that have no room, by UID.
type podsWithoutRoom struct {
	mu    sync.Mutex
	byUID map[types.UID]*podWithoutRoom
}

// podWithoutRoom is the time since when a pod has had no room, and the request to evict it. The request may be nil.
type podWithoutRoom struct {
	since    time.Time
	eviction *diskv1alpha1.EvictionRequest
}

// add returns since when the pod has had no room.
func (p *podsWithoutRoom) add(uid types.UID, now time.Time) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.byUID == nil {
		p.byUID = map[types.UID]*podWithoutRoom{}
	}
	if p.byUID[uid] == nil {
		p.byUID[uid] = &podWithoutRoom{since: now}
	}
	return p.byUID[uid].since
}

// requestEviction records that the pod must be evicted, and reports whether that is new.
func (p *podsWithoutRoom) requestEviction(pod *corev1.Pod) (isNew bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	of := p.byUID[pod.UID]
	if of == nil || of.eviction != nil {
		return false
	}
	of.eviction = &diskv1alpha1.EvictionRequest{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID}
	return true
}

// remove forgets the pod, and reports whether its eviction was requested.
func (p *podsWithoutRoom) remove(uid types.UID) (requested bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	of := p.byUID[uid]
	delete(p.byUID, uid)
	return of != nil && of.eviction != nil
}

// withdrawEviction takes back the request, and reports whether there was one.
func (p *podsWithoutRoom) withdrawEviction(uid types.UID) (requested bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	of := p.byUID[uid]
	if of == nil || of.eviction == nil {
		return false
	}
	of.eviction = nil
	return true
}

// evictionRequests returns the requests of all pods.
func (p *podsWithoutRoom) evictionRequests() []diskv1alpha1.EvictionRequest {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []diskv1alpha1.EvictionRequest
	for _, of := range p.byUID {
		if of.eviction != nil {
			all = append(all, *of.eviction)
		}
	}
	return all
}
