package csi

import (
	"context"
	"errors"
	"slices"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/berthdev/berth/pkg/agent/volumes"
)

// NodeStageVolume makes a persistent volume ready and mounts its file system on the
// staging path, from where it is bound to the pods that use it. A raw block volume is
// only made ready.
func (n *Node) NodeStageVolume(ctx context.Context, r *csispec.NodeStageVolumeRequest) (*csispec.NodeStageVolumeResponse, error) {
	if r.VolumeId == "" {
		return nil, invalid("volume_id is missing")
	}
	if err := checkPath("staging_target_path", r.StagingTargetPath); err != nil {
		return nil, err
	}
	a, err := accessOf(r.VolumeCapability)
	if err != nil {
		return nil, invalid("%v", err)
	}
	release, err := n.claim(ctx, r.VolumeId)
	if err != nil {
		return nil, err
	}
	defer release()
	isNew := false
	err = n.volumes.Stage(ctx, r.VolumeId, volumes.StageOptions{FSType: a.fsType, Block: a.block}, func(ctx context.Context, device, fsType string) (err error) {
		if a.block {
			return nil
		}
		isNew, err = n.stage(ctx, device, r.StagingTargetPath, fsType, a.flags)
		return err
	})
	if err != nil {
		if isNew {
			// Not all of it succeeded; after some errors the kubelet believes that nothing did.
			err = errors.Join(err, n.unmount(ctx, r.StagingTargetPath))
		}
		return nil, statusOf(err)
	}
	return &csispec.NodeStageVolumeResponse{}, nil
}

// stage mounts the device's file system, and lets it grow if its partition has grown.
// Mount options are not compared with those of a mount that is there: somebody may have
// changed them in the PersistentVolume, and that must not fail a pod that runs.
func (n *Node) stage(ctx context.Context, device, target, fsType string, flags []string) (isNew bool, err error) {
	// Before the mount: whoever reads a mounted device may see what was there before.
	missing := n.missing(ctx, device, fsType)
	isNew, err = n.mount(ctx, device, target, fsType, flags)
	if err != nil || missing == 0 || slices.Contains(flags, "ro") {
		return isNew, err
	}
	return isNew, n.growStaged(ctx, device, target, fsType, flags)
}

// NodeUnstageVolume unmounts a persistent volume from its staging path, which stays: it is
// its caller's.
func (n *Node) NodeUnstageVolume(ctx context.Context, r *csispec.NodeUnstageVolumeRequest) (*csispec.NodeUnstageVolumeResponse, error) {
	if r.VolumeId == "" {
		return nil, invalid("volume_id is missing")
	}
	if err := checkPath("staging_target_path", r.StagingTargetPath); err != nil {
		return nil, err
	}
	release, err := n.claim(ctx, r.VolumeId)
	if err != nil {
		return nil, err
	}
	defer release()
	if err := n.unmount(ctx, r.StagingTargetPath); err != nil {
		return nil, statusOf(err)
	}
	n.volumes.Unstaged(r.VolumeId)
	return &csispec.NodeUnstageVolumeResponse{}, nil
}
