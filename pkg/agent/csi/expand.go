package csi

import (
	"context"
	"errors"
	"slices"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/berthdev/berth/pkg/agent/filesystem"
	"github.com/berthdev/berth/pkg/agent/mounts"
	"github.com/berthdev/berth/pkg/agent/volumes"
)

// NodeExpandVolume grows the file system of a volume in use to the size that was granted to the volume. Where the
// kernel does not allow that, it returns FailedPrecondition. Then the kubelet sets a condition on the claim, and starts
// the pod. It calls again when the volume is next mounted, and by then NodeStageVolume has grown the file system.
func (n *Node) NodeExpandVolume(ctx context.Context, r *csispec.NodeExpandVolumeRequest) (*csispec.NodeExpandVolumeResponse, error) {
	switch {
	case r.VolumeId == "":
		return nil, invalid("volume_id is missing")
	case r.VolumePath == "":
		return nil, invalid("volume_path is missing")
	}
	size, err := expansionOf(r.VolumeCapability, r.CapacityRange)
	if err != nil {
		return nil, err
	}
	release, err := n.lockVolume(ctx, r.VolumeId)
	if err != nil {
		return nil, err
	}
	defer release()
	if err := n.checkMounted(r.VolumeId, r.VolumePath); err != nil {
		return nil, statusOf(err)
	}
	v, err := n.volumes.Expand(ctx, r.VolumeId, size.required, func(ctx context.Context, v volumes.Volume) error {
		if v.Block {
			return nil
		}
		on, err := mounts.OfDevice(v.Device)
		if err != nil {
			return err
		}
		// A kubelet that gives the call up does not interrupt it: resize2fs must not be interrupted.
		err = filesystem.GrowMounted(context.WithoutCancel(ctx), v.Device, on)
		if errors.Is(err, filesystem.ErrOnlyUnmounted) {
			if err := filesystem.MayGrowUnmounted(v.Device); err != nil {
				return errWithCode(codes.FailedPrecondition, "volume %s has its new size, its file system cannot have it: %v", r.VolumeId, err)
			}
			return errWithCode(codes.FailedPrecondition, "volume %s has its new size, its file system has not: it grows when the volume is next mounted, so delete the pod and start it again: %v", r.VolumeId, err)
		}
		return err
	})
	switch {
	case errors.Is(err, volumes.ErrNotGrown):
		// Only after FailedPrecondition the kubelet starts pods with the volume, at the size that it has.
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	case err != nil:
		return nil, statusOf(err)
	}
	return &csispec.NodeExpandVolumeResponse{CapacityBytes: v.Size}, nil
}

// checkMounted returns an error unless the volume exists and is mounted on the path. For a raw block volume the
// kubelet's path is a device of the kubelet's own, and is not checked.
func (n *Node) checkMounted(volumeID, path string) error {
	v, ok := n.volumes.Lookup(volumeID)
	if !ok {
		return errWithCode(codes.NotFound, "volume %.128q is on no disk of this node", volumeID)
	}
	if v.Problem != "" {
		return errWithCode(codes.Unavailable, "volume %s is on disk %s, which is out of service: %s", volumeID, v.Disk, v.Problem)
	}
	if v.Block {
		return nil
	}
	return checkMountedAt(v, path)
}

// checkMountedAt returns an error unless the volume's file system is mounted on the path.
func checkMountedAt(v volumes.Volume, path string) error {
	on, err := mounts.OfDevice(v.Device)
	if err != nil {
		return err
	}
	at, found, err := mounts.At(path)
	if err != nil {
		return err
	}
	if !found || !slices.ContainsFunc(on, func(m mounts.Mount) bool { return m.ID == at.ID }) {
		return errWithCode(codes.NotFound, "volume %s is not mounted on volume_path %.256q", v.ID, path)
	}
	return nil
}
