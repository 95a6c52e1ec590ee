package csi

import (
	"context"
	"errors"
	"slices"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"k8s.io/apimachinery/pkg/types"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/agent/mounts"
	"github.com/berthdev/berth/pkg/agent/volumes"
)

// Keys of the volume context that the kubelet sets (podInfoOnMount).
const (
	contextEphemeral    = "csi.storage.k8s.io/ephemeral"
	contextPodNamespace = "csi.storage.k8s.io/pod.namespace"
	contextPodName      = "csi.storage.k8s.io/pod.name"
	contextPodUID       = "csi.storage.k8s.io/pod.uid"
)

// NodePublishVolume mounts a volume into a pod. It returns without an error only when the volume is mounted, and the
// disk has durably recorded that it is formatted.
func (n *Node) NodePublishVolume(ctx context.Context, r *csispec.NodePublishVolumeRequest) (*csispec.NodePublishVolumeResponse, error) {
	a, err := accessOf(r.VolumeCapability)
	inline := r.VolumeContext[contextEphemeral] == "true"
	switch {
	case r.VolumeId == "":
		return nil, invalid("volume_id is missing")
	case err != nil:
		return nil, invalid("%v", err)
	case !inline && !a.block && r.StagingTargetPath == "":
		return nil, invalid("staging_target_path is missing")
	case inline:
		if err := checkInline(r, a); err != nil {
			return nil, invalid("%v", err)
		}
	}
	release, err := n.lockVolume(ctx, r.VolumeId)
	if err != nil {
		return nil, err
	}
	defer release()
	if err := n.kubelet.checkTarget("target_path", r.TargetPath); err != nil {
		return nil, statusOf(err)
	}
	a.readOnly = a.readOnly || r.Readonly
	switch {
	case inline:
		err = n.publishInline(ctx, r, a)
	case a.block:
		err = n.publishBlock(ctx, r, a)
	default:
		err = n.publishStaged(ctx, r, a)
	}
	if err != nil {
		return nil, statusOf(err)
	}
	return &csispec.NodePublishVolumeResponse{}, nil
}

// checkInline refuses what is not possible for an inline volume.
func checkInline(r *csispec.NodePublishVolumeRequest, a access) error {
	switch pod := podOf(r); {
	case a.block:
		return errors.New("volume_capability: an inline volume cannot be a raw block device")
	case r.Readonly:
		return errors.New("readonly is set, but an inline volume starts empty: nothing could ever write to it")
	case a.readOnly:
		return errors.New("volume_capability: access mode SINGLE_NODE_READER_ONLY is not possible: an inline volume starts empty, and nothing could ever write to it")
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

// publishInline makes an inline volume of a pod ready and mounts it on the target itself. It has one user, so there is
// no staging.
func (n *Node) publishInline(ctx context.Context, r *csispec.NodePublishVolumeRequest, a access) error {
	isNew := false
	err := n.volumes.Publish(ctx, podOf(r), r.VolumeId, func(ctx context.Context, device, fsType string) (err error) {
		flags := slices.Concat(n.classes.MountOptions(r.VolumeContext[diskv1alpha1.AttributeClass], fsType), a.flags)
		isNew, _, err = n.mount(ctx, device, r.TargetPath, fsType, flags)
		return err
	})
	if err != nil && isNew {
		// A part of it failed. After some errors the kubelet assumes that nothing is mounted.
		err = errors.Join(err, removeTarget(ctx, r.TargetPath))
	}
	return err
}

// publishStaged binds the staged file system to the target.
func (n *Node) publishStaged(ctx context.Context, r *csispec.NodePublishVolumeRequest, a access) error {
	device, err := n.publishableDevice(r.VolumeId, false)
	if err != nil {
		return err
	}
	on, err := mounts.OfDevice(device)
	if err != nil {
		return err
	}
	staging, target := mounts.Resolve(r.StagingTargetPath), mounts.Resolve(r.TargetPath)
	i := slices.IndexFunc(on, func(m mounts.Mount) bool { return m.Mountpoint == staging })
	if i < 0 {
		return errWithCode(codes.FailedPrecondition, "volume %s is not staged on %s", r.VolumeId, r.StagingTargetPath)
	}
	a.readOnly = a.readOnly || on[i].ReadOnly() || slices.Contains(a.flags, "ro")
	isThere, err := isPublished(on, r, a.readOnly)
	if isThere || err != nil {
		return err
	}
	if err := checkSingleWriter(on, r.VolumeId, a, staging); err != nil {
		return err
	}
	return bindFolder(ctx, staging, target, a)
}

// publishBlock binds the device to the target, a file. The kernel allows writes to a device through a read-only mount
// of its node. So the container runtime must keep the pod from writing to a read-only raw block volume, and the kubelet
// passes that on. A read-only flag of the device itself would affect all its users, also the agent's wipe.
func (n *Node) publishBlock(ctx context.Context, r *csispec.NodePublishVolumeRequest, a access) error {
	if _, err := n.publishableDevice(r.VolumeId, true); err != nil {
		return err
	}
	// Until it is published, the volume can be moved. Then its device goes, and another volume's gets the number.
	return n.volumes.Stage(ctx, r.VolumeId, volumes.StageOptions{Block: true}, func(ctx context.Context, device, _ string) error {
		on, err := mounts.BindsOfDevice(device)
		if err != nil {
			return err
		}
		isThere, err := isPublished(on, r, a.readOnly)
		if isThere || err != nil {
			return err
		}
		if err := checkSingleWriter(on, r.VolumeId, a, ""); err != nil {
			return err
		}
		return bindDevice(ctx, device, mounts.Resolve(r.TargetPath), a)
	})
}

// publishableDevice returns the device of a persistent volume that can be published.
func (n *Node) publishableDevice(volumeID string, block bool) (device string, err error) {
	v, ok := n.volumes.Lookup(volumeID)
	switch {
	case !ok:
		return "", errWithCode(codes.NotFound, "volume %.128q is on no disk of this node", volumeID)
	case v.Problem != "":
		return "", errWithCode(codes.Unavailable, "volume %s is on disk %s, which is out of service: %s", volumeID, v.Disk, v.Problem)
	case v.Block != block:
		return "", errWithCode(codes.FailedPrecondition, "volume_capability: volume %s has %s, and that cannot be changed", volumeID, modeOf(v.Block))
	case v.Phase != disk.Formatted:
		return "", errWithCode(codes.FailedPrecondition, "volume %s is in phase %v: it must be staged first", volumeID, v.Phase)
	}
	return v.Device, nil
}

// isPublished reports whether one of the volume's mounts is on the target, with the right options.
func isPublished(on []mounts.Mount, r *csispec.NodePublishVolumeRequest, readOnly bool) (bool, error) {
	at, found, err := mounts.At(r.TargetPath)
	if !found || err != nil {
		return false, err
	}
	switch {
	case !slices.ContainsFunc(on, func(m mounts.Mount) bool { return m.ID == at.ID }):
		return false, errWithCode(codes.FailedPrecondition, "target_path: %s is mounted on %s already, where volume %s belongs: unmount it", at.Source, r.TargetPath, r.VolumeId)
	case at.ReadOnly() != readOnly:
		return false, errWithCode(codes.AlreadyExists, "volume %s is published on %s already, with read-only %v and not %v", r.VolumeId, r.TargetPath, !readOnly, readOnly)
	}
	return true, nil
}

// checkSingleWriter returns an error if a volume for a single writer is mounted anywhere but where it is staged. It
// reads the mount table, which outlives the agent.
func checkSingleWriter(on []mounts.Mount, volumeID string, a access, staging string) error {
	if !a.singleWriter {
		return nil
	}
	for _, m := range on {
		if m.Mountpoint != staging {
			return errWithCode(codes.FailedPrecondition, "volume %s is in use on %s: its access mode allows one pod (ReadWriteOncePod)", volumeID, m.Mountpoint)
		}
	}
	return nil
}

// NodeUnpublishVolume unmounts a volume from a pod. An inline volume is then released.
func (n *Node) NodeUnpublishVolume(ctx context.Context, r *csispec.NodeUnpublishVolumeRequest) (*csispec.NodeUnpublishVolumeResponse, error) {
	if r.VolumeId == "" {
		return nil, invalid("volume_id is missing")
	}
	if err := checkPath("target_path", r.TargetPath); err != nil {
		return nil, statusOf(err)
	}
	release, err := n.lockVolume(ctx, r.VolumeId)
	if err != nil {
		return nil, err
	}
	defer release()
	if err := removeTarget(ctx, r.TargetPath); err != nil {
		return nil, statusOf(err)
	}
	if _, persistent := diskv1alpha1.VolumeUUID(r.VolumeId); !persistent {
		n.volumes.Release(r.VolumeId)
	}
	return &csispec.NodeUnpublishVolumeResponse{}, nil
}
