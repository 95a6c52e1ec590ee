// Package controller runs the work queues of the controllers in the scheduler that leads.
package controller

import (
	"context"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"
)

const (
	// LastRetry is the longest pause before a key that failed is tried again.
	LastRetry = time.Minute
	// syncTimeout is for the few requests that one key needs: a request that hangs must not hold up a worker.
	syncTimeout = 30 * time.Second
)

// Queue has the keys of the objects to sync.
type Queue = workqueue.TypedRateLimitingInterface[string]

// NewQueue returns a queue. A key that failed is tried again after firstRetry, then after twice that, and so on up to
// LastRetry. The name is that of the queue in metrics.
func NewQueue(name string, firstRetry time.Duration) Queue {
	return workqueue.NewTypedRateLimitingQueueWithConfig(
		workqueue.NewTypedItemExponentialFailureRateLimiter[string](firstRetry, LastRetry),
		workqueue.TypedRateLimitingQueueConfig[string]{Name: name})
}

// Sync does the next step for a key. It returns after which time the key is synced again even if nothing changes; 0 for
// not at all.
type Sync func(ctx context.Context, key string) (again time.Duration, err error)

// Once makes a Sync of a function that needs no sync without a change.
func Once(sync func(ctx context.Context, key string) error) Sync {
	return func(ctx context.Context, key string) (time.Duration, error) { return 0, sync(ctx, key) }
}

// Work syncs the keys of a queue until it is shut down. kind says in the log what a key is.
func Work(ctx context.Context, queue Queue, kind string, sync Sync) {
	for {
		key, done := queue.Get()
		if done {
			return
		}
		again, err := syncWithTimeout(ctx, key, sync)
		switch {
		case err == nil:
			queue.Forget(key)
			if again > 0 {
				queue.AddAfter(key, again)
			}
		case ctx.Err() != nil:
		default:
			// A conflict is nothing to report: another writer was faster.
			if !apierrors.IsConflict(err) {
				klog.FromContext(ctx).Error(err, "Will be tried again", kind, key)
			}
			queue.AddRateLimited(key)
		}
		queue.Done(key)
	}
}

// syncWithTimeout syncs one key within syncTimeout.
func syncWithTimeout(ctx context.Context, key string, sync Sync) (again time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, syncTimeout)
	defer cancel()
	return sync(ctx, key)
}

// Follow calls handle with the object before and after each change of an informer: nil before an addition, nil after a
// deletion. The objects that there are come first, as additions.
func Follow(informer cache.SharedIndexInformer, handle func(before, now any)) (synced cache.InformerSynced, err error) {
	registration, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { handle(nil, obj) },
		UpdateFunc: handle,
		DeleteFunc: func(obj any) {
			if last, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = last.Obj
			}
			handle(obj, nil)
		},
	})
	if err != nil {
		return nil, fmt.Errorf("following objects: %w", err)
	}
	return registration.HasSynced, nil
}
