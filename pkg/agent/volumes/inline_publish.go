package volumes

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/request"
)

// PodRef names a pod as the kubelet does.
type PodRef struct {
	Namespace, Name string
	UID             types.UID
}

// Publish makes the pod's volume ready, and mounts it by calling mount with the device and its file system. The volume
// cannot be released meanwhile.
func (i *inlineController) Publish(ctx context.Context, ref PodRef, volumeID string, mount func(ctx context.Context, device, fsType string) error) error {
	pod, source, err := i.pod(ctx, ref)
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
		// The kubelet mounts one volume after the other. None is formatted before all have a place.
		if _, partition, found := i.node.findVolume(v.Partition); !found || partition.Phase == disk.Reserved {
			if !found && !isAlive(pod) {
				return fmt.Errorf("pod %s/%s is being deleted or has ended, its volume %q is not made any more: %w", ref.Namespace, ref.Name, v.Name, ErrPodGone)
			}
			if isAlive(pod) {
				if err := i.placeVolumes(ctx, pod, volumes, source); err != nil {
					return err
				}
			}
		}
		return i.formatter.ensureFormatted(ctx, v, mount)
	}
	return fmt.Errorf("%w: pod %s/%s has no inline volume with the ID %s", ErrInvalid, ref.Namespace, ref.Name, volumeID)
}

// Release has the volume wiped if its pod is gone. It returns at once.
func (i *inlineController) Release(volumeID string) {
	i.reclaim.enqueue(diskv1alpha1.PartitionID(volumeID), 0)
}

// pod returns the pod from the watch, or from the API server if the watch has not shown it yet.
func (i *inlineController) pod(ctx context.Context, ref PodRef) (pod *corev1.Pod, source podSource, err error) {
	if pod := i.pods.get(types.NamespacedName{Namespace: ref.Namespace, Name: ref.Name}, ref.UID); pod != nil {
		return pod, fromKubelet, nil
	}
	pod, err = i.node.client.Pod(ctx, ref.Namespace, ref.Name)
	switch {
	case apierrors.IsNotFound(err):
		return nil, fromAPIServer, fmt.Errorf("pod %s/%s does not exist: %w", ref.Namespace, ref.Name, ErrPodGone)
	case err != nil:
		return nil, fromAPIServer, fmt.Errorf("cannot read pod %s/%s: %w", ref.Namespace, ref.Name, err)
	case isMirror(pod):
		return nil, fromAPIServer, fmt.Errorf("%w: %w", ErrInvalid, errMirror)
	case pod.UID != ref.UID:
		return nil, fromAPIServer, fmt.Errorf("pod %s/%s with UID %s does not exist any more: %w", ref.Namespace, ref.Name, ref.UID, ErrPodGone)
	case pod.Spec.NodeName != i.node.name:
		return nil, fromAPIServer, fmt.Errorf("%w: pod %s/%s is on node %q, not on %s", ErrInvalid, ref.Namespace, ref.Name, pod.Spec.NodeName, i.node.name)
	}
	return pod, fromAPIServer, nil
}
