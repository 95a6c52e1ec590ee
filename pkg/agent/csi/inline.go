package csi

import (
	"context"
	"errors"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"k8s.io/apimachinery/pkg/types"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/volumes"
)

// Keys of the volume context that the kubelet fills in (podInfoOnMount).
const (
	contextEphemeral    = "csi.storage.k8s.io/ephemeral"
	contextPodNamespace = "csi.storage.k8s.io/pod.namespace"
	contextPodName      = "csi.storage.k8s.io/pod.name"
	contextPodUID       = "csi.storage.k8s.io/pod.uid"
)

// validateInline refuses what an inline volume cannot be.
func validateInline(r *csispec.NodePublishVolumeRequest, a access) error {
	switch pod := podOf(r); {
	case a.block:
		return errors.New("volume_capability: an inline volume cannot be a raw block device")
	case r.Readonly:
		return errors.New("readonly is set, but an inline volume starts empty: nobody could ever write to it")
	case a.readOnly:
		return errors.New("volume_capability: access mode SINGLE_NODE_READER_ONLY is not possible: an inline volume starts empty, and nobody could ever write to it")
	case pod.Namespace == "" || pod.Name == "" || pod.UID == "":
		return errors.New("volume_context does not name the pod: the CSIDriver object needs podInfoOnMount: true")
	}
	_, err := diskv1alpha1.ParseAttributes(r.VolumeContext)
	return err
}

func podOf(r *csispec.NodePublishVolumeRequest) volumes.PodRef {
	return volumes.PodRef{
		Namespace: r.VolumeContext[contextPodNamespace],
		Name:      r.VolumeContext[contextPodName],
		UID:       types.UID(r.VolumeContext[contextPodUID]),
	}
}

// publishInline makes an inline volume of a pod ready and mounts it on the target itself:
// it has one user, and nothing to be staged for.
func (n *Node) publishInline(ctx context.Context, r *csispec.NodePublishVolumeRequest, a access) error {
	isNew := false
	err := n.volumes.Publish(ctx, podOf(r), r.VolumeId, func(ctx context.Context, device, fsType string) (err error) {
		isNew, err = n.mount(ctx, device, r.TargetPath, fsType, a.flags)
		return err
	})
	if err != nil && isNew {
		// Not all of it succeeded; after some errors the kubelet believes that nothing did.
		err = errors.Join(err, n.removeTarget(ctx, r.TargetPath))
	}
	return err
}
