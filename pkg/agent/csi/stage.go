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

// NodeStageVolume makes a persistent volume ready and mounts its file system on the
// staging path, from where it is bound to the pods that use it. A raw block volume is
// only made ready.
func (n *Node) NodeStageVolume(ctx context.Context, r *csispec.NodeStageVolumeRequest) (*csispec.NodeStageVolumeResponse, error) {
	if r.VolumeId == "" {
		return nil, invalid("volume_id is missing")
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
		// The StorageClass's options come last: of two that exclude each other the last counts.
		flags := slices.Concat(n.classes.MountOptions(v.Class, fsType), a.flags)
		isNew, err = n.stage(ctx, device, r.StagingTargetPath, fsType, flags)
		return err
	})
	if err != nil {
		if isNew {
			// Not all of it succeeded; after some errors the kubelet believes that nothing did.
			err = errors.Join(err, unmount(ctx, r.StagingTargetPath))
		}
		return nil, statusOf(err)
	}
	return &csispec.NodeStageVolumeResponse{}, nil
}

// stage mounts the device's file system, and lets it grow if its partition has grown.
// Mount options are not compared with those of a mount that is there: they may have been
// changed in the PersistentVolume, and that must not fail a pod that runs.
func (n *Node) stage(ctx context.Context, device, target, fsType string, flags []string) (isNew bool, err error) {
	isNew, state, err := n.mount(ctx, device, target, fsType, flags)
	if err != nil || state.Missing == 0 || slices.Contains(flags, "ro") {
		return isNew, err
	}
	return isNew, n.growStaged(ctx, device, target, fsType, flags)
}

// growStaged lets the file system grow that was just mounted on the staging path. Mounted
// it grows at once and safely; only where that is not possible it is unmounted once more,
// checked, which takes long for a large one, and grown by resize2fs. It returns an error
// only if the volume is not mounted then: a volume that is too small still serves.
func (n *Node) growStaged(ctx context.Context, device, target, fsType string, flags []string) error {
	logger := klog.FromContext(ctx).WithValues("device", device)
	// It is not interrupted by a kubelet that gives up: resize2fs must not be. The next
	// call finds the work done.
	ctx = context.WithoutCancel(ctx)
	on, err := mounts.OfDevice(device)
	if err == nil {
		err = filesystem.GrowMounted(ctx, device, on)
	}
	if errors.Is(err, filesystem.ErrOnlyUnmounted) {
		// NodeExpandVolume, which the kubelet calls next, says so on the claim.
		if err := filesystem.MayGrowUnmounted(device); err != nil {
			logger.Error(err, "File system cannot grow and is mounted as it is")
			return nil
		}
		if err := unmount(ctx, target); err != nil {
			return err
		}
		// A kubelet's folder that is mounted at two shared places shows one mount twice, and
		// both are gone now. What is left is a use that must not be disturbed.
		if on, err = mounts.OfDevice(device); err == nil && len(on) > 0 {
			err = fmt.Errorf("%s is mounted on %s, too: %w", device, on[0].Mountpoint, filesystem.ErrOnlyUnmounted)
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

// NodeUnstageVolume unmounts a persistent volume from its staging path, which stays: it is
// its caller's.
func (n *Node) NodeUnstageVolume(ctx context.Context, r *csispec.NodeUnstageVolumeRequest) (*csispec.NodeUnstageVolumeResponse, error) {
	if r.VolumeId == "" {
		return nil, invalid("volume_id is missing")
	}
	if err := checkPath("staging_target_path", r.StagingTargetPath); err != nil {
		return nil, statusOf(err)
	}
	release, err := n.claim(ctx, r.VolumeId)
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
