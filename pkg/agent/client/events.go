package client

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

// Recorder returns a recorder of events about pods and a function that stops it. Like
// every recorder of Kubernetes it joins equal events and limits the rate per object.
func (c *Client) Recorder(ctx context.Context) (record.EventRecorder, func()) {
	broadcaster := record.NewBroadcaster(record.WithContext(ctx))
	broadcaster.StartRecordingToSink(eventSink{ctx, c})
	recorder := broadcaster.NewRecorder(Scheme, corev1.EventSource{Component: diskv1alpha1.DriverName, Host: c.node})
	return recorder, broadcaster.Shutdown
}

// eventSink writes events. record.EventSink has no contexts, so it keeps one.
type eventSink struct {
	ctx    context.Context
	client *Client
}

func (s eventSink) Create(event *corev1.Event) (*corev1.Event, error) {
	out := &corev1.Event{}
	err := s.client.core.Post().Namespace(event.Namespace).Resource(events).Body(event).Do(s.ctx).Into(out)
	return out, err
}

func (s eventSink) Update(event *corev1.Event) (*corev1.Event, error) {
	out := &corev1.Event{}
	err := s.client.core.Put().Namespace(event.Namespace).Resource(events).Name(event.Name).Body(event).Do(s.ctx).Into(out)
	return out, err
}

func (s eventSink) Patch(event *corev1.Event, patch []byte) (*corev1.Event, error) {
	out := &corev1.Event{}
	err := s.client.core.Patch(types.StrategicMergePatchType).Namespace(event.Namespace).Resource(events).Name(event.Name).Body(patch).Do(s.ctx).Into(out)
	return out, err
}
