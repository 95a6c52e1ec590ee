package volumebinding

import (
	"context"
	"errors"
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
)

// await returns when the claim is bound to the volume. It checks that only when the claim or the pod has changed.
func (b *binder) await(ctx context.Context, pod *corev1.Pod, pvc *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) error {
	changed, stop := b.changes.subscribe(claimKey(pvc), podKey(pod))
	defer stop()
	for {
		if bound, err := b.isBound(pod, pvc, pv); bound || err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("its PersistentVolume %s exists, but kube-controller-manager has not bound the two: %w", pv.Name, ctx.Err())
		}
	}
}

// isBound reports whether the claim is bound to the volume, by the informers' stores. They may be older than what this
// plugin has written, and are never older than the event that caused the check.
//
// A claim that is bound counts, even if the pod was deleted meanwhile.
func (b *binder) isBound(pod *corev1.Pod, pvc *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) (bool, error) {
	gone := b.checkGone(pod, pvc)
	if errors.Is(gone, errDeleted) {
		return false, errDeleted
	}
	now, err := b.claims.PersistentVolumeClaims(pvc.Namespace).Get(pvc.Name)
	switch {
	case apierrors.IsNotFound(err):
		return false, errDeleted
	case err != nil:
		return false, err
	case now.Status.Phase == corev1.ClaimLost:
		return false, fmt.Errorf("its PersistentVolume %s was deleted: delete the claim, too, it is lost", now.Spec.VolumeName)
	case now.Spec.VolumeName == pv.Name && now.Status.Phase == corev1.ClaimBound:
		return true, nil
	case now.Spec.VolumeName != "" && now.Spec.VolumeName != pv.Name:
		return false, &boundElsewhereError{now.Spec.VolumeName}
	}
	return false, gone
}

// The kinds of objects that are waited for.
const claimKind, podKind = "claim", "pod"

type objectKey struct{ kind, namespace, name string }

func claimKey(pvc *corev1.PersistentVolumeClaim) objectKey {
	return objectKey{claimKind, pvc.Namespace, pvc.Name}
}
func podKey(pod *corev1.Pod) objectKey { return objectKey{podKind, pod.Namespace, pod.Name} }

// changeNotifier notifies subscribers of changes of the objects that they wait for.
type changeNotifier struct {
	mu          sync.Mutex
	subscribers map[objectKey]map[chan struct{}]struct{}
	// onGone are functions to call when a claim is gone, by its UID. They are called with mu held.
	onGone map[string]func()
}

func newChangeNotifier(claims, pods cache.SharedIndexInformer) (*changeNotifier, error) {
	n := &changeNotifier{subscribers: map[objectKey]map[chan struct{}]struct{}{}, onGone: map[string]func(){}}
	for kind, informer := range map[string]cache.SharedIndexInformer{claimKind: claims, podKind: pods} {
		_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc:    func(obj any) { n.notify(kind, obj, false) },
			UpdateFunc: func(old, obj any) { n.notifyUpdate(kind, old, obj) },
			DeleteFunc: func(obj any) { n.notify(kind, obj, true) },
		})
		if err != nil {
			return nil, fmt.Errorf("cannot watch %ss: %w", kind, err)
		}
	}
	return n, nil
}

// notifyUpdate also handles an object that was deleted and made again while the watch was interrupted: that comes as an
// update.
func (n *changeNotifier) notifyUpdate(kind string, old, now any) {
	before, ok := old.(metav1.Object)
	after, also := now.(metav1.Object)
	if ok && also && before.GetUID() != after.GetUID() {
		n.notify(kind, old, true)
	}
	n.notify(kind, now, false)
}

// notify notifies the subscribers of an object of a change, or of its end.
func (n *changeNotifier) notify(kind string, obj any, gone bool) {
	if last, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = last.Obj
	}
	object, ok := obj.(metav1.Object)
	if !ok {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for changed := range n.subscribers[objectKey{kind, object.GetNamespace(), object.GetName()}] {
		select {
		case changed <- struct{}{}:
		default: // An earlier change is still signaled.
		}
	}
	if uid := string(object.GetUID()); gone && kind == claimKind && n.onGone[uid] != nil {
		n.onGone[uid]()
		delete(n.onGone, uid)
	}
}

// subscribe returns a channel that receives when any of the objects changes, until stop is called.
func (n *changeNotifier) subscribe(keys ...objectKey) (changed <-chan struct{}, stop func()) {
	c := make(chan struct{}, 1)
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, k := range keys {
		if n.subscribers[k] == nil {
			n.subscribers[k] = map[chan struct{}]struct{}{}
		}
		n.subscribers[k][c] = struct{}{}
	}
	return c, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		for _, k := range keys {
			if delete(n.subscribers[k], c); len(n.subscribers[k]) == 0 {
				delete(n.subscribers, k)
			}
		}
	}
}

// whenGone calls do, once, when the claim is gone. A later call for the same claim replaces do.
func (n *changeNotifier) whenGone(pvc *corev1.PersistentVolumeClaim, do func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.onGone[string(pvc.UID)] = do
}
