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

// inlineController makes the volumes of pods, and decides when they may be wiped. This file follows the watch and makes
// volumes in advance. inline_publish.go serves the kubelet, and inline_place.go makes partitions. inline_noroom.go
// handles a pod that does not fit, and inline_release.go decides about the end.
//
// Invariant: a partition is made only for a pod that was seen alive after the volume's lock was taken. So a release
// that ran before finds the pod afterwards.
type inlineController struct {
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
	waiters *waiters[types.NamespacedName]
	// podLocks are by UID: the volumes of a pod are placed together.
	podLocks locks
	roomless podsWithoutRoom
}

// inlineOptions are the grace periods of inline volumes: see Options.
type inlineOptions struct {
	orphanGrace, evictionGrace time.Duration
}

// watchPods follows the node's pods.
func (i *inlineController) watchPods() error {
	if err := i.pods.informer.SetTransform(stripPod); err != nil {
		return fmt.Errorf("cannot watch pods: %w", err)
	}
	_, err := i.pods.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(object any) { i.onPod(object) },
		UpdateFunc: i.onPodUpdate,
		DeleteFunc: i.onPodDelete,
	})
	if err != nil {
		return fmt.Errorf("cannot watch pods: %w", err)
	}
	return nil
}

// onPod handles a pod from the watch.
func (i *inlineController) onPod(object any) {
	pod, ok := object.(*corev1.Pod)
	if !ok || len(pod.Spec.Volumes) == 0 {
		return
	}
	i.owners.recordPod(pod)
	i.owners.recordEnd(pod, !isAlive(pod))
	if i.orphans.removeOfPod(pod) {
		i.node.changed()
		// It may have been the last one because of which reclaiming had stopped.
		i.reclaim.enqueue(sweepKey, 0)
	}
	if isAlive(pod) {
		i.queue.Add(keyOf(pod))
		return
	}
	i.clearNoRoom(pod)
	i.enqueuePod(pod)
}

// onPodUpdate handles a change. After a pause of the watch, a change may lead from one pod to another one of the same
// name. Then it is the only sign of the first pod's end.
func (i *inlineController) onPodUpdate(before, now any) {
	b, _ := before.(*corev1.Pod)
	n, _ := now.(*corev1.Pod)
	if b != nil && n != nil && b.UID != n.UID {
		i.onPodGone(b, false)
	}
	i.onPod(now)
}

// onPodDelete handles a deletion. After a pause of the watch, nothing more is known of it. The API server may have been
// emptied, or an older state of it restored.
func (i *inlineController) onPodDelete(object any) {
	gone, missed := object.(cache.DeletedFinalStateUnknown)
	if missed {
		object = gone.Obj
	}
	if pod, ok := object.(*corev1.Pod); ok {
		i.onPodGone(pod, !missed)
	}
}

// onPodGone handles the end of a pod. endSeen says whether the watch showed the deletion itself.
func (i *inlineController) onPodGone(pod *corev1.Pod, endSeen bool) {
	if len(pod.Spec.Volumes) == 0 {
		return
	}
	i.waiters.remove(keyOf(pod))
	i.forgetFailures(pod)
	i.owners.recordPod(pod)
	if endSeen {
		i.owners.recordEnd(pod, true)
	}
	i.enqueuePod(pod)
}

// enqueuePod queues the volumes of a pod that is ending for reclaim.
func (i *inlineController) enqueuePod(pod *corev1.Pod) {
	for partition := range partitionsOf(pod) {
		i.reclaim.enqueue(partition, 0)
	}
}

// enqueueAll queues every pod again. Its volumes may be on a disk that has come into service, or the pod may have
// gone while the disk was away.
func (i *inlineController) enqueueAll() {
	for _, pod := range i.pods.all() {
		if len(pod.Spec.Volumes) > 0 {
			i.queue.Add(keyOf(pod))
		}
	}
	for _, partition := range i.owners.partitions() {
		i.reclaim.enqueue(partition, 0)
	}
}

// sync makes the pod's volumes ready to be mounted.
func (i *inlineController) sync(ctx context.Context, key types.NamespacedName) error {
	pod := i.pods.get(key, "")
	if pod == nil || !isAlive(pod) {
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
	seen := i.waiters.changeCount()
	err = i.makeVolumes(ctx, pod, volumes)
	if left, waits := waitsForRecord(err); waits {
		klog.FromContext(ctx).Info("Volume waits for its recorded extent", "reason", err.Error())
		i.queue.AddAfter(key, left)
		i.waiters.add(key, seen)
		return nil
	}
	switch {
	case err == nil:
		i.forgetFailures(pod)
		return nil
	case errors.Is(err, ErrPodGone):
		return nil
	case errors.Is(err, ErrInvalid):
		// The class's default may change.
		i.withdrawEviction(pod)
		warn(pod, eventInvalid, err.Error())
		i.waiters.add(key, seen)
		return nil
	case errors.Is(err, ErrWaiting), errors.Is(err, ErrOutOfService):
		i.withdrawEviction(pod)
		warn(pod, eventFailed, err.Error())
		i.waiters.add(key, seen)
		return nil
	case errors.Is(err, ErrNoRoom):
		i.waiters.add(key, seen)
		i.noRoom(ctx, pod, err)
		return nil
	}
	warn(pod, eventFailed, err.Error())
	return err
}

// makeVolumes places and formats all volumes of the pod before the kubelet requests them.
func (i *inlineController) makeVolumes(ctx context.Context, pod *corev1.Pod, volumes []request.Volume) error {
	if err := i.placeVolumes(ctx, pod, volumes, fromWatch); err != nil {
		return err
	}
	var group errgroup.Group
	for _, v := range volumes {
		group.Go(func() error { return i.formatter.ensureFormatted(ctx, v, nil) })
	}
	return group.Wait()
}

// forgetFailures forgets a pod's failures: it has its volumes, or is gone.
func (i *inlineController) forgetFailures(pod *corev1.Pod) {
	i.clearNoRoom(pod)
	i.node.reports.forget(pod.UID)
}
