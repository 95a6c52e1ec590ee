package csi

import (
	"context"
	"errors"
	"fmt"
	"slices"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"k8s.io/klog/v2"

	"github.com/berthdev/berth/pkg/agent/filesystem"
	"github.com/berthdev/berth/pkg/agent/mounts"
	"github.com/berthdev/berth/pkg/agent/volumes"
)

// NodeStageVolume makes a persistent volume ready and mounts its file system on the staging path. From there it is
// bound to the pods that use it. A raw block volume is only made ready.
func (n *Node) NodeStageVolume(ctx context.Context, r *csispec.NodeStageVolumeRequest) (*csispec.NodeStageVolumeResponse, error) {
	if r.VolumeId == "" {
		return nil, invalid("volume_id is missing")
	}
	a, err := accessOf(r.VolumeCapability)
	if err != nil {
		return nil, invalid("%v", err)
	}
	release, err := n.lockVolume(ctx, r.VolumeId)
	if err != nil {
		return nil, err
	}
	defer release()
	if a.block {
		err = checkPath("staging_target_path", r.StagingTargetPath)
	} else {
		err = n.kubelet.checkTarget("staging_target_path", r.StagingTargetPath)
	}
	if err != nil {
		return nil, statusOf(err)
	}
	isNew := false
	err = n.volumes.Stage(ctx, r.VolumeId, volumes.StageOptions{FSType: a.fsType, Block: a.block}, func(ctx context.Context, device, fsType string) (err error) {
		if a.block {
			return nil
		}
		v, _ := n.volumes.Lookup(r.VolumeId)
		// The StorageClass's options come last: of two that exclude each other the last one counts.
		flags := slices.Concat(n.classes.MountOptions(v.Class, fsType), a.flags)
		isNew, err = n.stage(ctx, device, r.StagingTargetPath, fsType, flags)
		return err
	})
	if err != nil {
		if isNew {
			// A part of it failed. After some errors the kubelet assumes that nothing is mounted.
			err = errors.Join(err, unmount(ctx, r.StagingTargetPath))
		}
		return nil, statusOf(err)
	}
	return &csispec.NodeStageVolumeResponse{}, nil
}

// stage mounts the device's file system, and grows it if its partition has grown. It does not compare the options of an
// existing mount. They may have changed in the PersistentVolume, and that must not fail a running pod.
func (n *Node) stage(ctx context.Context, device, target, fsType string, flags []string) (isNew bool, err error) {
	isNew, state, err := n.mount(ctx, device, target, fsType, flags)
	if err != nil || state.Growable == 0 || slices.Contains(flags, "ro") {
		return isNew, err
	}
	return isNew, n.growStaged(ctx, device, target, fsType, flags)
}

// growStaged grows the file system that was just mounted on the staging path. While it is mounted it grows at once and
// safely. Only where that is not possible it is unmounted again, checked, and grown by resize2fs. The check takes long
// for a large file system. growStaged returns an error only if the volume is not mounted then: a volume that is too
// small still serves.
func (n *Node) growStaged(ctx context.Context, device, target, fsType string, flags []string) error {
	logger := klog.FromContext(ctx).WithValues("device", device)
	// A kubelet that gives up does not interrupt it: resize2fs must not be interrupted. The next call finds the file
	// system grown.
	ctx = context.WithoutCancel(ctx)
	mounted, err := mounts.OfDevice(device)
	if err == nil {
		err = filesystem.GrowMounted(ctx, device, mounted)
	}
	if errors.Is(err, filesystem.ErrOnlyUnmounted) {
		// NodeExpandVolume, which the kubelet calls next, reports it on the claim.
		if err := filesystem.MayGrowUnmounted(device); err != nil {
			logger.Error(err, "File system cannot grow and is mounted as it is")
			return nil
		}
		if err := unmount(ctx, target); err != nil {
			return err
		}
		// A kubelet's folder that is mounted at two shared places shows one mount twice, and both are gone now. Any
		// remaining mount is a use that must not be disturbed.
		if mounted, err = mounts.OfDevice(device); err == nil && len(mounted) > 0 {
			err = fmt.Errorf("%s is mounted on %s, too: %w", device, mounted[0].Mountpoint, filesystem.ErrOnlyUnmounted)
		}
		if err == nil {
			err = filesystem.GrowUnmounted(ctx, device)
		}
		if _, _, mountErr := n.mount(ctx, device, target, fsType, flags); mountErr != nil {
			return errors.Join(mountErr, err)
		}
	}
	if err != nil {
		logger.Error(err, "File system could not grow and is mounted as it is")
	}
	return nil
}

// NodeUnstageVolume unmounts a persistent volume from its staging path. It keeps the path: that is the caller's.
func (n *Node) NodeUnstageVolume(ctx context.Context, r *csispec.NodeUnstageVolumeRequest) (*csispec.NodeUnstageVolumeResponse, error) {
	if r.VolumeId == "" {
		return nil, invalid("volume_id is missing")
	}
	if err := checkPath("staging_target_path", r.StagingTargetPath); err != nil {
		return nil, statusOf(err)
	}
	release, err := n.lockVolume(ctx, r.VolumeId)
	if err != nil {
		return nil, err
	}
	defer release()
	if err := unmount(ctx, r.StagingTargetPath); err != nil {
		return nil, statusOf(err)
	}
	n.volumes.Unstaged(r.VolumeId)
	return &csispec.NodeUnstageVolumeResponse{}, nil
}
