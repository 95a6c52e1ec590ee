package patch

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/events"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/scheduler/framework"

	"github.com/berthdev/berth/pkg/plugins/diskcapacity"
)

const (
	// reasonScheduled is the reason of kube-scheduler's event about a pod that it has bound.
	reasonScheduled = "Scheduled"
	// MaxNote is how many bytes the API server accepts in the note of an event.
	MaxNote = 1024
)

// addPlacesToEvents appends the places of a pod's disk volumes to the event about each pod that is bound. A second
// event would be one more write to the API server for each pod, which costs more than placing it.
func (i internals) addPlacesToEvents(shared *diskcapacity.Shared) {
	for name, stock := range i.profiles {
		i.profiles[name] = placesFramework{stock, shared.DescribePlaces}
	}
}

// placesFramework is a profile whose event recorder adds the places of a pod's volumes.
type placesFramework struct {
	framework.Framework
	// places describes the places of the pod's volumes in at most maxBytes bytes.
	places func(pod *corev1.Pod, maxBytes int) string
}

// EventRecorder returns the recorder that adds the places.
func (f placesFramework) EventRecorder() events.EventRecorderLogger {
	return placesRecorder{f.Framework.EventRecorder(), f.places}
}

// placesRecorder adds the places of a pod's volumes to the event Scheduled.
type placesRecorder struct {
	events.EventRecorderLogger
	places func(pod *corev1.Pod, maxBytes int) string
}

// WithLogger returns the recorder with the logger. It still adds the places.
func (r placesRecorder) WithLogger(logger klog.Logger) events.EventRecorderLogger {
	return placesRecorder{r.EventRecorderLogger.WithLogger(logger), r.places}
}

// Eventf records an event, with the places if it is the event Scheduled of a pod and they fit into it.
func (r placesRecorder) Eventf(regarding, related runtime.Object, eventType, reason, action, note string, args ...any) {
	if pod, ok := regarding.(*corev1.Pod); ok && reason == reasonScheduled {
		text := fmt.Sprintf(note, args...) + "; "
		if places := r.places(pod, MaxNote-len(text)); places != "" {
			note, args = "%s", []any{text + places}
		}
	}
	r.EventRecorderLogger.Eventf(regarding, related, eventType, reason, action, note, args...)
}
