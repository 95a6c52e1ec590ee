package csi

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/moby/sys/mountinfo"
	"google.golang.org/grpc/codes"
	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/disk"
)

// NodePublishVolume mounts a volume into a pod. It returns without an error only when
// the volume is mounted and the disk says durably that it is formatted.
func (n *Node) NodePublishVolume(ctx context.Context, r *csispec.NodePublishVolumeRequest) (*csispec.NodePublishVolumeResponse, error) {
	if r.VolumeId == "" {
		return nil, invalid("volume_id is missing")
	}
	if err := checkPath("target_path", r.TargetPath); err != nil {
		return nil, err
	}
	a, err := accessOf(r.VolumeCapability)
	if err != nil {
		return nil, invalid("%v", err)
	}
	inline := r.VolumeContext[contextEphemeral] == "true"
	if inline {
		if err := validateInline(r, a); err != nil {
			return nil, invalid("%v", err)
		}
	} else if err := checkPath("staging_target_path", r.StagingTargetPath); err != nil && !a.block {
		return nil, err
	}
	release, err := n.claim(ctx, r.VolumeId)
	if err != nil {
		return nil, err
	}
	defer release()
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

// ready returns the device of a persistent volume that can be published.
func (n *Node) ready(volumeID string, block bool) (device string, err error) {
	v, ok := n.volumes.Lookup(volumeID)
	switch {
	case !ok:
		return "", refuse(codes.NotFound, "volume %.128q is on no disk of this node", volumeID)
	case v.Problem != "":
		return "", refuse(codes.Unavailable, "volume %s is on disk %s, which is out of service: %s", volumeID, v.Disk, v.Problem)
	case v.Block != block:
		return "", refuse(codes.FailedPrecondition, "volume_capability: volume %s has %s, and that cannot be changed", volumeID, kindOf(v.Block))
	case v.Phase != disk.Formatted:
		return "", refuse(codes.FailedPrecondition, "volume %s is in phase %v: it must be staged first", volumeID, v.Phase)
	}
	return v.Device, nil
}

func kindOf(block bool) string {
	if block {
		return "no file system (volumeMode Block)"
	}
	return "a file system (volumeMode Filesystem)"
}

// publishStaged binds the staged file system to the target.
func (n *Node) publishStaged(ctx context.Context, r *csispec.NodePublishVolumeRequest, a access) error {
	device, err := n.ready(r.VolumeId, false)
	if err != nil {
		return err
	}
	mounts, err := mountsOf(device)
	if err != nil {
		return err
	}
	staging, target := mountPoint(r.StagingTargetPath), mountPoint(r.TargetPath)
	staged := mountAt(mounts, staging)
	if staged == nil {
		return refuse(codes.FailedPrecondition, "volume %s is not staged on %s", r.VolumeId, r.StagingTargetPath)
	}
	a.readOnly = a.readOnly || isReadOnly(staged) || slices.Contains(a.flags, "ro")
	isThere, err := published(mounts, r, a.readOnly)
	if isThere || err != nil {
		return err
	}
	if err := unshared(mounts, r.VolumeId, a, staging); err != nil {
		return err
	}
	if err := os.MkdirAll(target, 0o750); err != nil {
		return fmt.Errorf("cannot make the mount point: %w", err)
	}
	if info, err := os.Lstat(target); err != nil || !info.IsDir() {
		return errors.Join(fmt.Errorf("mount point %s is a link or a file, not a folder", target), err)
	}
	return n.bindTo(ctx, staging, target, a)
}

// publishBlock binds the device to the target, a file. To the kernel a device is as
// writable through a read-only mount of its node as through any; that the pod cannot write
// to a read-only raw block volume is for the container runtime, which the kubelet tells so.
// A read-only flag of the device itself would hit all that use it, the agent's wipe too.
func (n *Node) publishBlock(ctx context.Context, r *csispec.NodePublishVolumeRequest, a access) error {
	device, err := n.ready(r.VolumeId, true)
	if err != nil {
		return err
	}
	mounts, err := nodesOf(device)
	if err != nil {
		return err
	}
	isThere, err := published(mounts, r, a.readOnly)
	if isThere || err != nil {
		return err
	}
	if err := unshared(mounts, r.VolumeId, a, ""); err != nil {
		return err
	}
	target := mountPoint(r.TargetPath)
	if err := os.MkdirAll(filepath.Dir(target), 0o750); err != nil {
		return fmt.Errorf("cannot make the folder of the device: %w", err)
	}
	f, err := os.OpenFile(target, os.O_CREATE|os.O_EXCL, 0o600)
	switch {
	case err == nil:
		err = f.Close()
	case errors.Is(err, os.ErrExist):
		err = nil
	}
	if err != nil {
		return fmt.Errorf("cannot make the file that the device is bound to: %w", err)
	}
	if info, err := os.Lstat(target); err != nil || !info.Mode().IsRegular() {
		return errors.Join(fmt.Errorf("target %s is a link or a folder, not a file", target), err)
	}
	return n.bindTo(ctx, device, target, a)
}

// bindTo binds the source to a target that was made for it.
func (n *Node) bindTo(ctx context.Context, source, target string, a access) error {
	options := a.flags
	if a.readOnly {
		options = append(slices.Clone(options), "ro")
	}
	if err := bind(source, target, options); err != nil {
		return errors.Join(err, n.removeTarget(ctx, target))
	}
	klog.FromContext(ctx).Info("Volume is published", "source", source, "target", target, "readOnly", a.readOnly)
	return nil
}

func mountAt(mounts []*mountinfo.Info, target string) *mountinfo.Info {
	if i := slices.IndexFunc(mounts, func(m *mountinfo.Info) bool { return m.Mountpoint == target }); i >= 0 {
		return mounts[i]
	}
	return nil
}

// published reports whether one of the volume's mounts is on the target, as it should be.
func published(mounts []*mountinfo.Info, r *csispec.NodePublishVolumeRequest, readOnly bool) (bool, error) {
	at, err := mountedAt(r.TargetPath)
	if at == nil || err != nil {
		return false, err
	}
	switch {
	case !slices.ContainsFunc(mounts, func(m *mountinfo.Info) bool { return m.ID == at.ID }):
		return false, refuse(codes.FailedPrecondition, "target_path: %s is mounted on %s already, where volume %s belongs: unmount it", at.Source, r.TargetPath, r.VolumeId)
	case isReadOnly(at) != readOnly:
		return false, refuse(codes.AlreadyExists, "volume %s is published on %s already, with read-only %v and not %v", r.VolumeId, r.TargetPath, !readOnly, readOnly)
	}
	return true, nil
}

// unshared holds that a volume for a single writer is mounted nowhere but where it is staged.
// The mount table knows best: it outlives the agent.
func unshared(mounts []*mountinfo.Info, volumeID string, a access, staging string) error {
	if !a.single {
		return nil
	}
	for _, m := range mounts {
		if m.Mountpoint != staging {
			return refuse(codes.FailedPrecondition, "volume %s is in use on %s: its access mode allows one pod (ReadWriteOncePod)", volumeID, m.Mountpoint)
		}
	}
	return nil
}

// NodeUnpublishVolume unmounts a volume from a pod. An inline one is then due for release.
func (n *Node) NodeUnpublishVolume(ctx context.Context, r *csispec.NodeUnpublishVolumeRequest) (*csispec.NodeUnpublishVolumeResponse, error) {
	if r.VolumeId == "" {
		return nil, invalid("volume_id is missing")
	}
	if err := checkPath("target_path", r.TargetPath); err != nil {
		return nil, err
	}
	release, err := n.claim(ctx, r.VolumeId)
	if err != nil {
		return nil, err
	}
	defer release()
	if err := n.removeTarget(ctx, r.TargetPath); err != nil {
		return nil, statusOf(err)
	}
	if _, persistent := diskv1alpha1.VolumeUUID(r.VolumeId); !persistent {
		n.volumes.Release(r.VolumeId)
	}
	return &csispec.NodeUnpublishVolumeResponse{}, nil
}
