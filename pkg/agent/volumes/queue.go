package volumes

import (
	"context"
	"sync"
	"time"

	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"
)

// queue returns a queue that retries with growing pauses, by the given clock.
func queue[T comparable](name string, by clock.WithTicker) workqueue.TypedRateLimitingInterface[T] {
	return workqueue.NewTypedRateLimitingQueueWithConfig(backoff[T](), workqueue.TypedRateLimitingQueueConfig[T]{Name: name, Clock: by})
}

// backoff begins with 20 ms, so that a race is over quickly. It ends with a minute, so that an error that an operator
// must fix costs little.
func backoff[T comparable]() workqueue.TypedRateLimiter[T] {
	return workqueue.NewTypedItemExponentialFailureRateLimiter[T](20*time.Millisecond, time.Minute)
}

// processQueue processes a queue. Every key has its own goroutine: a fixed number of workers would all wait for the one
// disk that hangs. There are never more goroutines than volumes on the node, and slots bound the costly operations by
// disk.
func processQueue[T comparable](ctx context.Context, q workqueue.TypedRateLimitingInterface[T], failure string, process func(context.Context, T) error) {
	var workers sync.WaitGroup
	defer workers.Wait()
	for {
		key, shutdown := q.Get()
		if shutdown {
			return
		}
		workers.Go(func() { processKey(ctx, q, key, failure, process) })
	}
}

// processKey processes a key. An error is logged and the key is retried, with growing pauses.
func processKey[T comparable](ctx context.Context, q workqueue.TypedRateLimitingInterface[T], key T, failure string, process func(context.Context, T) error) {
	defer q.Done(key)
	if ctx.Err() != nil {
		return
	}
	err := process(ctx, key)
	switch {
	case err == nil:
		q.Forget(key)
	case ctx.Err() == nil:
		klog.FromContext(ctx).Error(err, failure, "key", key, "tries", q.NumRequeues(key)+1)
		q.AddRateLimited(key)
	}
}

// waiters are the keys of a queue that a change on a disk may unblock.
type waiters[T comparable] struct {
	queue workqueue.TypedRateLimitingInterface[T]

	mu   sync.Mutex
	keys map[T]struct{}
	// changes counts the changes on disks.
	changes int
}

func newWaiters[T comparable](q workqueue.TypedRateLimitingInterface[T]) *waiters[T] {
	return &waiters[T]{queue: q, keys: map[T]struct{}{}}
}

// changeCount is the number of changes so far. A caller gets it before it reads the disks.
func (w *waiters[T]) changeCount() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.changes
}

// add queues the key at the next change. If there was a change since changeCount was read, the key has missed it, and
// is queued at once.
func (w *waiters[T]) add(key T, seen int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.changes != seen {
		w.queue.Add(key)
		return
	}
	w.keys[key] = struct{}{}
}

func (w *waiters[T]) remove(key T) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.keys, key)
}

// enqueueAll queues all keys that wait.
func (w *waiters[T]) enqueueAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for key := range w.keys {
		w.queue.Add(key)
	}
	clear(w.keys)
	w.changes++
}
