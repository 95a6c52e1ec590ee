// Package patch changes kube-scheduler where the framework has no extension point. All of it is optional: without it
// pods get the same places. docs/understand/scheduling.md says what it costs to leave it out.
//
//   - queue.go: events that cannot help a waiting pod call no hint for it.
//   - event.go: the event Scheduled names the places of the pod's volumes.
//   - leading.go: Berth's controllers start when this process leads, instead of with its first pod.
//
// Start reading at [Apply]. Everything that is changed is in internals. When kube-scheduler changes one of its fields,
// this package does not compile, and no other one breaks.
package patch

import (
	"context"

	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler"
	"k8s.io/kubernetes/pkg/scheduler/backend/queue"
	"k8s.io/kubernetes/pkg/scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/profile"

	"github.com/berthdev/berth/pkg/plugins/diskcapacity"
)

// internals has the fields that are changed of a scheduler that was built and does not run yet.
type internals struct {
	// queue is replaced by a queue that passes on each call, and first decides which pods an event can concern.
	queue *queue.SchedulingQueue
	// nextPod is replaced by a function that calls back when it is called the first time.
	nextPod *func(klog.Logger) (*framework.QueuedPodInfo, error)
	// profiles are replaced one by one, to change their event recorder.
	profiles profile.Map
}

func internalsOf(s *scheduler.Scheduler) internals {
	return internals{&s.SchedulingQueue, &s.NextPod, s.Profiles}
}

// The types that replace kube-scheduler's own, and the plugin that filters events.
var (
	_ queue.SchedulingQueue = (*filteredQueue)(nil)
	_ framework.Framework   = placesFramework{}
	_ eventFilter           = (*diskcapacity.Plugin)(nil)
)

// eventFilter is a plugin that reports whether an event helps none of the pods that it has rejected.
type eventFilter interface {
	fwk.EnqueueExtensions
	Irrelevant(logger klog.Logger, old, obj any) bool
}

// Apply changes a scheduler before its informers start. shared is nil if no profile has the plugin DiskCapacity.
func Apply(ctx context.Context, sched *scheduler.Scheduler, shared *diskcapacity.Shared) error {
	i := internalsOf(sched)
	if err := i.filterEvents(ctx); err != nil {
		return err
	}
	if shared != nil {
		i.addPlacesToEvents(shared)
		i.whenLeading(shared.ScheduleBegins)
	}
	return nil
}
