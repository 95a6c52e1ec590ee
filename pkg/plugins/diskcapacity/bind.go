package diskcapacity

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/answer"
	"github.com/berthdev/berth/pkg/ledger"
	"github.com/berthdev/berth/pkg/request"
)

// MaxWriters is how many bindings, or claims, are written at once. With its default settings, an API server queues a
// few hundred requests of one client and refuses more. A refused request is sent again after a second. In a burst of
// pods that second is longer than the wait here.
const MaxWriters = 256

// maxSlotWait is how long a pod waits for another one to be bound, before it is placed. All pods of the scheduler wait
// with it, those of other profiles too.
const maxSlotWait = 500 * time.Millisecond

// bindSlots limits how many bindings are written at once.
type bindSlots struct {
	*semaphore.Weighted
	maxWait time.Duration
	// stuck is set when a pod has waited in vain, until one has been bound.
	stuck *atomic.Bool
}

func newBindSlots() bindSlots {
	return bindSlots{semaphore.NewWeighted(MaxWriters), maxSlotWait, &atomic.Bool{}}
}

// errBusy puts a pod back, to be tried again after its backoff.
var errBusy = errors.New("the API server does not bind the pods that were placed before: the pod is tried again")

// waitForSlot returns when no pod waits to be bound. Disk pods are placed faster than an API server binds them:
// otherwise thousands of placed pods would wait here, with the state of each.
//
// When bindings hang, only one pod waits for that to end. The others are put back at once.
func (b bindSlots) waitForSlot(ctx context.Context) error {
	if b.TryAcquire(1) {
		b.Release(1)
		b.stuck.Store(false)
		return nil
	}
	if b.stuck.Load() {
		return errBusy
	}
	waiting, cancel := context.WithTimeout(ctx, b.maxWait)
	defer cancel()
	if err := b.Acquire(waiting, 1); err != nil {
		if ctx.Err() != nil {
			return err
		}
		b.stuck.Store(true)
		return errBusy
	}
	b.Release(1)
	return nil
}

// Bind binds the pod with its record in the Binding's annotations. The API server writes them into the pod in the
// transaction that sets the node. So a bound pod always has its reservation, and no reservation is without its pod. The
// reservation of a claim is its PersistentVolume. So a pod that has only claims is left to the next binder.
func (p *Plugin) Bind(ctx context.Context, _ fwk.CycleState, pod *corev1.Pod, nodeName string) *fwk.Status {
	volumes, err := request.FromPod(pod)
	if err != nil {
		return fwk.AsStatus(err)
	}
	if len(volumes) == 0 {
		return fwk.NewStatus(fwk.Skip)
	}
	value, err := p.encodeRecord(pod, nodeName, volumes)
	if err != nil {
		return fwk.AsStatus(err)
	}
	binding := &corev1.Binding{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID,
			Annotations: map[string]string{diskv1alpha1.AnnotationAllocation: value},
		},
		Target: corev1.ObjectReference{Kind: "Node", Name: nodeName},
	}
	if err := p.feed.bindSlots.Acquire(ctx, 1); err != nil {
		return fwk.AsStatus(fmt.Errorf("waiting to bind pod %s to node %s: %w", klog.KObj(pod), nodeName, err))
	}
	defer p.feed.bindSlots.Release(1)
	klog.FromContext(ctx).V(3).Info("Binding a pod with its disk volumes", "pod", klog.KObj(pod), "node", klog.KRef("", nodeName), "allocation", value)
	if err := p.sendBinding(ctx, binding); err != nil {
		p.noteFailure(ctx, pod, nodeName, err)
		return fwk.AsStatus(err)
	}
	return nil
}

// encodeRecord returns the record of what was reserved.
func (p *Plugin) encodeRecord(pod *corev1.Pod, nodeName string, volumes []request.Volume) (string, error) {
	reservedOn, records := p.ledger.Records(string(pod.UID))
	// The reservation can be gone by now: the pod was deleted, or bound by another.
	if reservedOn != nodeName {
		return "", fmt.Errorf("the reservation of pod %s on node %s is gone: the pod was deleted or bound by another scheduler", klog.KObj(pod), nodeName)
	}
	places := make([]diskv1alpha1.RecordVolume, len(volumes))
	for i := range volumes {
		at := slices.IndexFunc(records, func(r ledger.Record) bool { return r.Partition == volumes[i].Partition })
		if at < 0 {
			return "", fmt.Errorf("the reservation of pod %s on node %s is of other volumes", klog.KObj(pod), nodeName)
		}
		places[i] = diskv1alpha1.RecordVolume{
			Name: volumes[i].Name, Disk: records[at].Disk,
			Extent: diskv1alpha1.Extent{Start: records[at].Extent.Start, Length: records[at].Extent.Len()},
		}
	}
	return diskv1alpha1.EncodeRecord(places)
}

// sendBinding does what the default binder does. If the scheduler has a dispatcher of API calls, the call is queued
// there with the others.
func (p *Plugin) sendBinding(ctx context.Context, binding *corev1.Binding) error {
	if cacher := p.handle.APICacher(); cacher != nil {
		onFinish, err := cacher.BindPod(binding)
		if err != nil {
			return err
		}
		return cacher.WaitOnFinish(ctx, onFinish)
	}
	return p.handle.ClientSet().CoreV1().Pods(binding.Namespace).Bind(ctx, binding, metav1.CreateOptions{})
}

// noteFailure records what a failed binding says. The scheduler calls Unreserve next.
//
// A conflict leaves open whether the pod is bound here. client-go or a proxy sends a request again when its connection
// broke. If the first binding was done, the second one conflicts with it.
func (p *Plugin) noteFailure(ctx context.Context, pod *corev1.Pod, nodeName string, err error) {
	switch have := answer.Of(err); {
	case have == answer.Refused:
		bindFailuresTotal.WithLabelValues(outcomeRefused).Inc()
		p.ledger.RecordRefusal(string(pod.UID), nodeName, err.Error(), time.Now())
	case have.NotDone():
		// It says nothing about the node.
		bindFailuresTotal.WithLabelValues(outcomeNotBound).Inc()
		return
	default:
		bindFailuresTotal.WithLabelValues(outcomeUnknown).Inc()
		p.ledger.Doubt(string(pod.UID))
	}
	// If the pod was deleted meanwhile, no later event would settle this.
	p.feed.foldPod(klog.FromContext(ctx), pod)
}

// Labels of bindFailuresTotal.
const (
	outcomeUnknown  = "unknown"
	outcomeNotBound = "not_bound"
	outcomeRefused  = "refused"
)
