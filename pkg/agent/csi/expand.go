package csi

import (
	"context"
	"errors"
	"slices"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/moby/sys/mountinfo"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/berthdev/berth/pkg/agent/volumes"
)

// NodeExpandVolume lets the file system of a volume that is in use grow to the size that
// was granted to the volume. Where the kernel does not allow that, it says
// FailedPrecondition: the kubelet then tells the claim so, lets the pod run, and asks
// again when the volume is next mounted, by when NodeStageVolume has done it.
func (n *Node) NodeExpandVolume(ctx context.Context, r *csispec.NodeExpandVolumeRequest) (*csispec.NodeExpandVolumeResponse, error) {
	switch {
	case r.VolumeId == "":
		return nil, invalid("volume_id is missing")
	case r.VolumePath == "":
		return nil, invalid("volume_path is missing")
	}
	if r.VolumeCapability != nil {
		if _, err := accessOf(r.VolumeCapability); err != nil {
			return nil, invalid("%v", err)
		}
	}
	size, err := sizesOf(r.CapacityRange)
	if err != nil {
		return nil, err
	}
	release, err := n.claim(ctx, r.VolumeId)
	if err != nil {
		return nil, err
	}
	defer release()
	if err := n.isAt(r.VolumeId, r.VolumePath); err != nil {
		return nil, statusOf(err)
	}
	v, err := n.volumes.Expand(ctx, r.VolumeId, size.required, func(ctx context.Context, v volumes.Volume) error {
		if v.Block {
			return nil
		}
		mounts, err := mountsOf(v.Device)
		if err != nil {
			return err
		}
		err = growMounted(context.WithoutCancel(ctx), v.Device, mounts)
		if errors.Is(err, errOnlyUnmounted) {
			return refuse(codes.FailedPrecondition, "volume %s has its new size, its file system has not: it grows when the volume is next mounted, so start the pod anew: %v", r.VolumeId, err)
		}
		return err
	})
	switch {
	case errors.Is(err, volumes.ErrNotGrown):
		// The kubelet would start no pod with the volume as long as it hears anything else.
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	case err != nil:
		return nil, statusOf(err)
	}
	return &csispec.NodeExpandVolumeResponse{CapacityBytes: v.Size}, nil
}

// isAt holds that the volume is there, and mounted on the path. The kubelet's path of a
// raw block volume is a device of its own, of which nothing is asked.
func (n *Node) isAt(volumeID, path string) error {
	v, ok := n.volumes.Lookup(volumeID)
	if !ok {
		return refuse(codes.NotFound, "volume %.128q is on no disk of this node", volumeID)
	}
	if v.Problem != "" {
		return refuse(codes.Unavailable, "volume %s is on disk %s, which is out of service: %s", volumeID, v.Disk, v.Problem)
	}
	if v.Block {
		return nil
	}
	return isMountedAt(v, path)
}

// isMountedAt holds that the volume's file system is what is mounted on the path.
func isMountedAt(v volumes.Volume, path string) error {
	mounts, err := mountsOf(v.Device)
	if err != nil {
		return err
	}
	at, err := mountedAt(path)
	if err != nil {
		return err
	}
	if at == nil || !slices.ContainsFunc(mounts, func(m *mountinfo.Info) bool { return m.ID == at.ID }) {
		return refuse(codes.NotFound, "volume %s is not mounted on volume_path %.256q", v.ID, path)
	}
	return nil
}
