package client

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/flowcontrol"
	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/manual"
)

// Recorder writes events about pods, volumes and the node's disks. It replaces client-go's recorder, which would cost
// the agent a tenth of its memory, for the OpenAPI schemas behind its patches.
type Recorder struct {
	client *Client
	events chan *corev1.Event
}

const (
	// maxQueuedEvents is how many events may wait for the API server. Further ones are dropped.
	maxQueuedEvents = 256
	// eventRate is how many events a node writes per second, eventBurst how many it may write at once.
	eventRate, eventBurst = 5, 50
)

// NewRecorder returns a recorder. It writes events in Run.
func (c *Client) NewRecorder() *Recorder {
	return &Recorder{client: c, events: make(chan *corev1.Event, maxQueuedEvents)}
}

// Event queues an event about the pod. It never blocks, and may drop the event.
func (r *Recorder) Event(pod *corev1.Pod, eventType, reason, message string) {
	r.About(corev1.ObjectReference{
		Kind: "Pod", APIVersion: corev1.SchemeGroupVersion.String(), Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID,
	}, eventType, reason, message)
}

// OfNode queues an event about the node's NodeDiskCapacity, whose UID may not be known. It never blocks.
func (r *Recorder) OfNode(uid types.UID, eventType, reason, message string) {
	r.About(corev1.ObjectReference{
		Kind: "NodeDiskCapacity", APIVersion: diskv1alpha1.SchemeGroupVersion.String(), Name: r.client.node, UID: uid,
	}, eventType, reason, message)
}

// About queues an event about any object. It appends to the message where the reason is explained. It never blocks.
func (r *Recorder) About(object corev1.ObjectReference, eventType, reason, message string) {
	now := metav1.Now()
	message += manual.Pointer(reason)
	// The name is a hash of the content, so that repeated events are one event with a count.
	sum := sha256.Sum256([]byte(string(object.UID) + reason + message))
	namespace := object.Namespace
	if namespace == "" {
		// An event needs a namespace. Tools look for the events of cluster-wide objects in this one.
		namespace = metav1.NamespaceDefault
	}
	event := &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Namespace: namespace, Name: fmt.Sprintf("%.200s.%x", object.Name, sum[:8])},
		InvolvedObject: object,
		Type:           eventType, Reason: reason, Message: message, Count: 1,
		FirstTimestamp: now, LastTimestamp: now,
		Source:              corev1.EventSource{Component: diskv1alpha1.DriverName, Host: r.client.node},
		ReportingController: diskv1alpha1.DriverName, ReportingInstance: r.client.node,
	}
	select {
	case r.events <- event:
	default:
	}
}

// Run writes events until the context ends.
func (r *Recorder) Run(ctx context.Context) {
	limiter := flowcontrol.NewTokenBucketRateLimiter(eventRate, eventBurst)
	for {
		select {
		case <-ctx.Done():
			return
		case event := <-r.events:
			if limiter.Wait(ctx) != nil {
				return
			}
			if err := r.write(ctx, event); err != nil && ctx.Err() == nil {
				klog.FromContext(ctx).V(1).Info("Event could not be written", "kind", event.InvolvedObject.Kind, "object", klog.KRef(event.InvolvedObject.Namespace, event.InvolvedObject.Name), "reason", event.Reason, "err", err)
			}
		}
	}
}

// write creates the event. If it exists, it counts it once more.
func (r *Recorder) write(ctx context.Context, event *corev1.Event) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	core := r.client.core
	err := core.Post().Namespace(event.Namespace).Resource(events).Body(event).Do(ctx).Error()
	if !apierrors.IsAlreadyExists(err) {
		return err
	}
	before := &corev1.Event{}
	if err := core.Get().Namespace(event.Namespace).Resource(events).Name(event.Name).Do(ctx).Into(before); err != nil {
		return err
	}
	patch, err := json.Marshal(map[string]any{"count": before.Count + 1, "lastTimestamp": event.LastTimestamp.UTC().Format(time.RFC3339)})
	if err != nil {
		return err
	}
	return core.Patch(types.MergePatchType).Namespace(event.Namespace).Resource(events).Name(event.Name).Body(patch).Do(ctx).Error()
}
