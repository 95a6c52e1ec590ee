package volumes

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	"github.com/berthdev/berth/pkg/request"
)

// inline makes the volumes of pods, and decides when they may be wiped. This file follows the watch and makes volumes
// in advance. inline_publish.go serves the kubelet, and inline_place.go makes partitions. inline_noroom.go handles a
// pod that does not fit, and inline_release.go decides about the end.
//
// Invariant: a partition is made only for a pod that was seen alive after the volume's lock was taken. So a release
// that ran before finds the pod afterwards.
type inline struct {
	node      *node
	pods      podStore
	owners    *owners
	placer    *placer
	formatter *formatter
	policies  *policies
	reclaim   reclaimer
	orphans   *orphans
	options   inlineOptions

	queue   workqueue.TypedRateLimitingInterface[types.NamespacedName]
	waiting *waiters[types.NamespacedName]
	// podLocks are by UID: the volumes of a pod are placed together.
	podLocks locks
	lacking  lacking
}

// inlineOptions are the grace periods of inline volumes: see Options.
type inlineOptions struct {
	orphanGrace, evictionGrace time.Duration
}

// watch follows the node's pods.
func (i *inline) watch() error {
	if err := i.pods.informer.SetTransform(strip); err != nil {
		return fmt.Errorf("cannot watch pods: %w", err)
	}
	_, err := i.pods.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(object any) { i.podSeen(object) },
		UpdateFunc: i.podUpdated,
		DeleteFunc: i.podDeleted,
	})
	if err != nil {
		return fmt.Errorf("cannot watch pods: %w", err)
	}
	return nil
}

// podSeen handles a pod from the watch.
func (i *inline) podSeen(object any) {
	pod, ok := object.(*corev1.Pod)
	if !ok || len(pod.Spec.Volumes) == 0 {
		return
	}
	i.owners.note(pod)
	i.owners.noteEnd(pod, !alive(pod))
	if i.orphans.claimed(pod) {
		i.node.changed()
		// It may have been the last one because of which reclaiming had stopped.
		i.reclaim.look(sweepKey, 0)
	}
	if alive(pod) {
		i.queue.Add(keyOf(pod))
		return
	}
	i.hasRoom(pod)
	i.lookAt(pod)
}

// podUpdated handles a change. After a pause of the watch, a change may lead from one pod to another one of the same
// name. Then it is the only sign of the first pod's end.
func (i *inline) podUpdated(before, now any) {
	b, _ := before.(*corev1.Pod)
	n, _ := now.(*corev1.Pod)
	if b != nil && n != nil && b.UID != n.UID {
		i.podGone(b, false)
	}
	i.podSeen(now)
}

// podDeleted handles a deletion. After a pause of the watch, nothing more is known of it. The API server may have been
// emptied, or an older state of it restored.
func (i *inline) podDeleted(object any) {
	gone, missed := object.(cache.DeletedFinalStateUnknown)
	if missed {
		object = gone.Obj
	}
	if pod, ok := object.(*corev1.Pod); ok {
		i.podGone(pod, !missed)
	}
}

// podGone handles the end of a pod. seen says whether the watch showed the deletion itself.
func (i *inline) podGone(pod *corev1.Pod, seen bool) {
	if len(pod.Spec.Volumes) == 0 {
		return
	}
	i.waiting.forget(keyOf(pod))
	i.clearTrouble(pod)
	i.owners.note(pod)
	if seen {
		i.owners.noteEnd(pod, true)
	}
	i.lookAt(pod)
}

// lookAt has reclaim look at the volumes of a pod that is ending.
func (i *inline) lookAt(pod *corev1.Pod) {
	for partition := range partitionsOf(pod) {
		i.reclaim.look(partition, 0)
	}
}

// wakeAll looks at every pod again. Its volumes may be on a disk that has come into service, or the pod may have gone
// while the disk was away.
func (i *inline) wakeAll() {
	for _, pod := range i.pods.all() {
		if len(pod.Spec.Volumes) > 0 {
			i.queue.Add(keyOf(pod))
		}
	}
	for _, partition := range i.owners.partitions() {
		i.reclaim.look(partition, 0)
	}
}

// sync makes the pod's volumes ready to be mounted.
func (i *inline) sync(ctx context.Context, key types.NamespacedName) error {
	pod := i.pods.get(key, "")
	if pod == nil || !alive(pod) {
		return nil
	}
	ctx = klog.NewContext(ctx, klog.FromContext(ctx).WithValues("pod", key))
	warn := i.node.reports.warnPod
	if isMirror(pod) {
		warn(pod, eventInvalid, errMirror.Error())
		return nil
	}
	volumes, err := request.FromPod(pod)
	if err != nil {
		// This does not change: the volumes of a pod are immutable.
		warn(pod, eventInvalid, err.Error())
		return nil
	}
	seen := i.waiting.seen()
	err = i.realize(ctx, pod, volumes)
	if left, waits := waitsForRecord(err); waits {
		klog.FromContext(ctx).Info("Volume waits for its recorded extent", "reason", err.Error())
		i.queue.AddAfter(key, left)
		i.waiting.wait(key, seen)
		return nil
	}
	switch {
	case err == nil:
		i.clearTrouble(pod)
		return nil
	case errors.Is(err, ErrPodGone):
		return nil
	case errors.Is(err, ErrInvalid):
		// The class's default may change.
		i.withdraw(pod)
		warn(pod, eventInvalid, err.Error())
		i.waiting.wait(key, seen)
		return nil
	case errors.Is(err, ErrWaiting), errors.Is(err, ErrOutOfService):
		i.withdraw(pod)
		warn(pod, eventFailed, err.Error())
		i.waiting.wait(key, seen)
		return nil
	case errors.Is(err, ErrNoRoom):
		i.waiting.wait(key, seen)
		i.noRoom(ctx, pod, err)
		return nil
	}
	warn(pod, eventFailed, err.Error())
	return err
}

func (i *inline) realize(ctx context.Context, pod *corev1.Pod, volumes []request.Volume) error {
	if err := i.place(ctx, pod, volumes, byWatch); err != nil {
		return err
	}
	var group errgroup.Group
	for _, v := range volumes {
		group.Go(func() error { return i.formatter.ready(ctx, v, nil) })
	}
	return group.Wait()
}

// clearTrouble forgets a pod's failures: it has its volumes, or is gone.
func (i *inline) clearTrouble(pod *corev1.Pod) {
	i.hasRoom(pod)
	i.node.reports.forget(pod.UID)
}
