package volumes

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"

	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/request"
)

// Reasons of events about pods.
const (
	eventPlaced   = "VolumePlaced"
	eventReplaced = "VolumeReplaced"
	eventNoRoom   = "NoRoomForVolume"
	eventInvalid  = "InvalidVolume"
	eventEvicting = "EvictingForVolume"
	eventFailed   = "VolumeFailed"
	eventStrayed  = "VolumeOnOtherNode"
)

// syncPod makes the pod's volumes ready to be mounted.
func (m *Manager) syncPod(ctx context.Context, key types.NamespacedName) error {
	pod := m.cached(key, "")
	if pod == nil || !alive(pod) {
		return nil
	}
	ctx = klog.NewContext(ctx, klog.FromContext(ctx).WithValues("pod", key))
	if isMirror(pod) {
		m.warn(pod, eventInvalid, errMirror.Error())
		return nil
	}
	volumes, err := request.FromPod(pod)
	if err != nil {
		// Nobody can help this pod: its volumes cannot be changed.
		m.warn(pod, eventInvalid, err.Error())
		return nil
	}
	seen := m.changesSeen()
	err = m.realize(ctx, pod, volumes)
	switch {
	case err == nil:
		m.clearTrouble(pod)
		return nil
	case errors.Is(err, ErrPodGone):
		return nil
	case errors.Is(err, ErrInvalid):
		// The class's default may change.
		m.warn(pod, eventInvalid, err.Error())
		m.wait(pod, seen)
		return nil
	case errors.Is(err, ErrWaiting), errors.Is(err, ErrOutOfService):
		m.warn(pod, eventFailed, err.Error())
		m.wait(pod, seen)
		return nil
	case errors.Is(err, ErrNoRoom):
		m.wait(pod, seen)
		return m.noRoom(ctx, pod, err)
	}
	m.warn(pod, eventFailed, err.Error())
	return err
}

func (m *Manager) realize(ctx context.Context, pod *corev1.Pod, volumes []request.Volume) error {
	if err := m.place(ctx, pod, volumes, byWatch); err != nil {
		return err
	}
	var group errgroup.Group
	for _, v := range volumes {
		group.Go(func() error { return m.ready(ctx, v, nil) })
	}
	return group.Wait()
}

// changesSeen counts the changes on disks that followDisks has acted upon.
func (m *Manager) changesSeen() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changes
}

// wait lets a change on a disk wake the pod. One that came since the count was seen has
// found nobody waiting, so then the pod looks again at once.
func (m *Manager) wait(pod *corev1.Pod, seen int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.changes != seen {
		m.pods.Add(keyOf(pod))
		return
	}
	m.waiting[keyOf(pod)] = struct{}{}
}

// noRoom says so, and after the grace period evicts a pod that somebody makes anew.
func (m *Manager) noRoom(ctx context.Context, pod *corev1.Pod, why error) error {
	m.warn(pod, eventNoRoom, why.Error())
	m.mu.Lock()
	since, ok := m.noRoomSince[pod.UID]
	if !ok {
		since = time.Now()
		m.noRoomSince[pod.UID] = since
	}
	m.mu.Unlock()
	controller := metav1.GetControllerOf(pod)
	if controller == nil || controller.Kind == "DaemonSet" {
		// Nobody would make the pod anew, or only on this node again.
		return nil
	}
	if left := m.options.EvictionGrace - time.Since(since); left > 0 {
		m.pods.AddAfter(keyOf(pod), left)
		return nil
	}
	klog.FromContext(ctx).Info("Pod is evicted, its volumes do not fit here", "reason", why.Error())
	m.options.Recorder.Event(pod, corev1.EventTypeWarning, eventEvicting, "evicted so that it is scheduled anew: "+why.Error())
	err := m.options.Client.Evict(ctx, pod.Namespace, pod.Name, pod.UID)
	if err == nil || apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return fmt.Errorf("cannot evict pod %s: %w", keyOf(pod), err)
}

// warn writes an event unless it is what the pod was told last.
func (m *Manager) warn(pod *corev1.Pod, reason, message string) {
	if m.isNews(pod.UID, reason+message) {
		m.options.Recorder.Event(pod, corev1.EventTypeWarning, reason, message)
	}
}

// isNews reports whether the message is another one than the last about the same.
func (m *Manager) isNews(about types.UID, message string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.told[about] == message {
		return false
	}
	m.told[about] = message
	return true
}

func (m *Manager) clearTrouble(pod *corev1.Pod) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.noRoomSince, pod.UID)
	delete(m.told, pod.UID)
}

// errMirror: the kubelet knows a static pod by another UID than the API server knows its
// mirror by, and a volume belongs to a UID.
var errMirror = errors.New("a static pod cannot have volumes of Berth: use a DaemonSet, or a pod with spec.nodeName")

func isMirror(pod *corev1.Pod) bool {
	_, is := pod.Annotations[corev1.MirrorPodAnnotationKey]
	return is
}

// PodRef names a pod as the kubelet does.
type PodRef struct {
	Namespace, Name string
	UID             types.UID
}

// Publish makes the volume of the pod ready and mounts it, by calling mount with the
// device and its file system, while nobody can release it.
func (m *Manager) Publish(ctx context.Context, ref PodRef, volumeID string, mount func(ctx context.Context, device, fsType string) error) error {
	pod, on, err := m.pod(ctx, ref)
	if err != nil {
		return err
	}
	if isMirror(pod) {
		return fmt.Errorf("%w: %w", ErrInvalid, errMirror)
	}
	volumes, err := request.FromPod(pod)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	for _, v := range volumes {
		if v.ID != volumeID {
			continue
		}
		// The kubelet mounts one volume after the other; none is formatted before all fit.
		if _, partition, found := m.find(v.Partition); !found || partition.Phase == disk.Reserved {
			if !found && !alive(pod) {
				return fmt.Errorf("pod %s/%s is being deleted or has ended, its volume %q is not made any more: %w", ref.Namespace, ref.Name, v.Name, ErrPodGone)
			}
			if alive(pod) {
				if err := m.place(ctx, pod, volumes, on); err != nil {
					return err
				}
			}
		}
		return m.ready(ctx, v, mount)
	}
	return fmt.Errorf("%w: pod %s/%s has no inline volume with the ID %s", ErrInvalid, ref.Namespace, ref.Name, volumeID)
}

// pod returns the pod from the watch, or from the API server itself if the kubelet was
// faster.
func (m *Manager) pod(ctx context.Context, ref PodRef) (pod *corev1.Pod, on occasion, err error) {
	if pod := m.cached(types.NamespacedName{Namespace: ref.Namespace, Name: ref.Name}, ref.UID); pod != nil {
		return pod, byKubelet, nil
	}
	pod, err = m.options.Client.Pod(ctx, ref.Namespace, ref.Name)
	switch {
	case apierrors.IsNotFound(err):
		return nil, proven, fmt.Errorf("pod %s/%s does not exist: %w", ref.Namespace, ref.Name, ErrPodGone)
	case err != nil:
		return nil, proven, fmt.Errorf("cannot read pod %s/%s: %w", ref.Namespace, ref.Name, err)
	case isMirror(pod):
		return nil, proven, fmt.Errorf("%w: %w", ErrInvalid, errMirror)
	case pod.UID != ref.UID:
		return nil, proven, fmt.Errorf("pod %s/%s with UID %s does not exist any more: %w", ref.Namespace, ref.Name, ref.UID, ErrPodGone)
	case pod.Spec.NodeName != m.node:
		return nil, proven, fmt.Errorf("%w: pod %s/%s is on node %q, not on %s", ErrInvalid, ref.Namespace, ref.Name, pod.Spec.NodeName, m.node)
	}
	return pod, proven, nil
}
