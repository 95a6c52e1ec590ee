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
func (i *inline) noRoom(ctx context.Context, pod *corev1.Pod, why error) {
	i.node.reports.warnPod(pod, eventNoRoom, whyNoRoom(pod, why))
	since := i.lacking.begin(pod.UID, i.node.clock.Now())
	controller := metav1.GetControllerOf(pod)
	if controller == nil || controller.Kind == "DaemonSet" {
		// It would not be made again, or only on this node.
		return
	}
	if left := i.options.evictionGrace - i.node.since(since); left > 0 {
		i.queue.AddAfter(keyOf(pod), left)
		return
	}
	if !i.lacking.request(pod) {
		return
	}
	klog.FromContext(ctx).Info("Eviction of the pod is requested, its volumes do not fit here", "reason", why.Error())
	i.node.reports.recorder.Event(pod, corev1.EventTypeWarning, eventEvicting, "is to be evicted, so that it is scheduled again: "+why.Error())
	i.node.changed()
}

// whyNoRoom adds, for a pod without a reservation, which scheduler would have made one.
func whyNoRoom(pod *corev1.Pod, why error) string {
	if _, recorded := pod.Annotations[diskv1alpha1.AnnotationAllocation]; recorded {
		return why.Error()
	}
	return why.Error() + "; " + noRecord(pod)
}

// hasRoom notes that the pod does not lack room any more, or needs none.
func (i *inline) hasRoom(pod *corev1.Pod) {
	if i.lacking.end(pod.UID) {
		i.node.changed()
	}
}

// withdraw takes back the request for an eviction: there may be room soon.
func (i *inline) withdraw(pod *corev1.Pod) {
	if i.lacking.withdraw(pod.UID) {
		i.node.changed()
	}
}

// maxEvictions is how many evictions one NodeDiskCapacity can request.
const maxEvictions = 64

// evictions are the requests for pods that still exist, sorted by UID. Those beyond maxEvictions follow when these pods
// are gone.
func (i *inline) evictions() []diskv1alpha1.EvictionRequest {
	all := slices.DeleteFunc(i.lacking.requests(), func(r diskv1alpha1.EvictionRequest) bool {
		pod := i.pods.get(types.NamespacedName{Namespace: r.Namespace, Name: r.Name}, r.UID)
		return pod == nil || !alive(pod)
	})
	slices.SortFunc(all, func(a, b diskv1alpha1.EvictionRequest) int { return cmp.Compare(a.UID, b.UID) })
	return all[:min(len(all), maxEvictions)]
}

// lacking are the pods that have no room, by UID.
type lacking struct {
	mu sync.Mutex
	by map[types.UID]*lack
}

// lack is the time since when a pod has had no room, and the request to evict it. The request may be nil.
type lack struct {
	since   time.Time
	request *diskv1alpha1.EvictionRequest
}

// begin returns since when the pod has had no room.
func (l *lacking) begin(uid types.UID, now time.Time) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.by == nil {
		l.by = map[types.UID]*lack{}
	}
	if l.by[uid] == nil {
		l.by[uid] = &lack{since: now}
	}
	return l.by[uid].since
}

// request notes that the pod must be evicted, and reports whether that is new.
func (l *lacking) request(pod *corev1.Pod) (isNew bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	of := l.by[pod.UID]
	if of == nil || of.request != nil {
		return false
	}
	of.request = &diskv1alpha1.EvictionRequest{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID}
	return true
}

// end forgets the pod, and reports whether its eviction was requested.
func (l *lacking) end(uid types.UID) (requested bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	of := l.by[uid]
	delete(l.by, uid)
	return of != nil && of.request != nil
}

// withdraw takes back the request, and reports whether there was one.
func (l *lacking) withdraw(uid types.UID) (requested bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	of := l.by[uid]
	if of == nil || of.request == nil {
		return false
	}
	of.request = nil
	return true
}

// requests returns the requests of all pods.
func (l *lacking) requests() []diskv1alpha1.EvictionRequest {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []diskv1alpha1.EvictionRequest
	for _, of := range l.by {
		if of.request != nil {
			all = append(all, *of.request)
		}
	}
	return all
}
