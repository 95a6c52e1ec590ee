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
	changed, stop := b.watch.of(claimKey(pvc), podKey(pod))
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

// isBound reads the informers' stores. They may be older than what this plugin has written, and are never older than
// the event that caused the check.
func (b *binder) isBound(pod *corev1.Pod, pvc *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) (bool, error) {
	gone := b.gone(pod, pvc)
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
		return false, &boundElsewhere{now.Spec.VolumeName}
	}
	return false, gone
}

// The kinds of objects that are waited for.
const claimKind, podKind = "claim", "pod"

type key struct{ kind, namespace, name string }

func claimKey(pvc *corev1.PersistentVolumeClaim) key {
	return key{claimKind, pvc.Namespace, pvc.Name}
}
func podKey(pod *corev1.Pod) key { return key{podKind, pod.Namespace, pod.Name} }

// watch notifies waiters of changes of the objects that they wait for.
type watch struct {
	mu      sync.Mutex
	waiting map[key]map[chan struct{}]struct{}
	// afterwards are functions to call when a claim is gone, by its UID.
	afterwards map[string]func()
}

func newWatch(claims, pods cache.SharedIndexInformer) (*watch, error) {
	w := &watch{waiting: map[key]map[chan struct{}]struct{}{}, afterwards: map[string]func(){}}
	for kind, informer := range map[string]cache.SharedIndexInformer{claimKind: claims, podKind: pods} {
		_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc:    func(obj any) { w.tell(kind, obj, false) },
			UpdateFunc: func(old, obj any) { w.tellChange(kind, old, obj) },
			DeleteFunc: func(obj any) { w.tell(kind, obj, true) },
		})
		if err != nil {
			return nil, fmt.Errorf("following each %s: %w", kind, err)
		}
	}
	return w, nil
}

// tellChange also handles an object that was deleted and made again while the watch was interrupted: that comes as an
// update.
func (w *watch) tellChange(kind string, old, now any) {
	before, ok := old.(metav1.Object)
	after, also := now.(metav1.Object)
	if ok && also && before.GetUID() != after.GetUID() {
		w.tell(kind, old, true)
	}
	w.tell(kind, now, false)
}

func (w *watch) tell(kind string, obj any, gone bool) {
	if last, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = last.Obj
	}
	object, ok := obj.(metav1.Object)
	if !ok {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for changed := range w.waiting[key{kind, object.GetNamespace(), object.GetName()}] {
		select {
		case changed <- struct{}{}:
		default: // It has not looked since the last change.
		}
	}
	if uid := string(object.GetUID()); gone && kind == claimKind && w.afterwards[uid] != nil {
		w.afterwards[uid]()
		delete(w.afterwards, uid)
	}
}

// of returns a channel that receives when any of the objects changes, until stop is called.
func (w *watch) of(keys ...key) (changed <-chan struct{}, stop func()) {
	c := make(chan struct{}, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, k := range keys {
		if w.waiting[k] == nil {
			w.waiting[k] = map[chan struct{}]struct{}{}
		}
		w.waiting[k][c] = struct{}{}
	}
	return c, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, k := range keys {
			if delete(w.waiting[k], c); len(w.waiting[k]) == 0 {
				delete(w.waiting, k)
			}
		}
	}
}

// whenGone has do called when the claim is gone.
func (w *watch) whenGone(pvc *corev1.PersistentVolumeClaim, do func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.afterwards[string(pvc.UID)] = do
}
