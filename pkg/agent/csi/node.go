package csi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/moby/sys/mountinfo"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"
	"k8s.io/mount-utils"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/agent/volumes"
)

// Keys of the volume context that the kubelet fills in (podInfoOnMount).
const (
	contextEphemeral    = "csi.storage.k8s.io/ephemeral"
	contextPodNamespace = "csi.storage.k8s.io/pod.namespace"
	contextPodName      = "csi.storage.k8s.io/pod.name"
	contextPodUID       = "csi.storage.k8s.io/pod.uid"
)

// Volumes is what the node service needs of package volumes.
type Volumes interface {
	// Publish makes the volume ready and calls mount with its device and file system.
	Publish(ctx context.Context, pod volumes.PodRef, volumeID string, mount func(ctx context.Context, device, fsType string) error) error
	// Release asks that the volume be wiped if its pod is gone.
	Release(volumeID string)
}

// Node is the CSI Node service.
type Node struct {
	csispec.UnimplementedNodeServer

	name    string
	volumes Volumes
	mounter mount.Interface

	// busy are the IDs of the volumes that a call works on. The kubelet serializes calls
	// itself; after a restart of it, or a timeout, two can still meet.
	mu   sync.Mutex
	busy map[string]bool
}

// NewNode returns the service of the named node.
func NewNode(name string, v Volumes) *Node {
	// Without systemd: the mounts are file systems of the kernel, no process stays behind.
	return &Node{name: name, volumes: v, mounter: mount.NewWithoutSystemd(""), busy: map[string]bool{}}
}

// claim makes the caller the only one to work on the volume.
func (n *Node) claim(volumeID string) (release func(), err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.busy[volumeID] {
		return nil, status.Errorf(codes.Aborted, "another call for volume %s is under way", volumeID)
	}
	n.busy[volumeID] = true
	return func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.busy, volumeID)
	}, nil
}

// NodePublishVolume mounts an inline volume of a pod. It returns without an error only
// when the volume is mounted and the disk says durably that it is formatted.
func (n *Node) NodePublishVolume(ctx context.Context, r *csispec.NodePublishVolumeRequest) (*csispec.NodePublishVolumeResponse, error) {
	pod, flags, err := validatePublish(r)
	if err != nil {
		return nil, err
	}
	release, err := n.claim(r.VolumeId)
	if err != nil {
		return nil, err
	}
	defer release()
	isNew := false
	err = n.volumes.Publish(ctx, pod, r.VolumeId, func(ctx context.Context, device, fsType string) (err error) {
		isNew, err = n.mount(ctx, device, r.TargetPath, fsType, flags)
		return err
	})
	if err != nil {
		if isNew {
			// Not all of it succeeded; after some errors the kubelet believes that nothing did.
			err = errors.Join(err, n.unmount(ctx, r.TargetPath))
		}
		return nil, statusOf(err)
	}
	return &csispec.NodePublishVolumeResponse{}, nil
}

// validatePublish checks the arguments and returns the pod and the mount flags.
func validatePublish(r *csispec.NodePublishVolumeRequest) (volumes.PodRef, []string, error) {
	invalid := func(format string, a ...any) (volumes.PodRef, []string, error) {
		return volumes.PodRef{}, nil, status.Errorf(codes.InvalidArgument, format, a...)
	}
	if r.VolumeId == "" {
		return invalid("volume_id is missing")
	}
	if !isPath(r.TargetPath) {
		return invalid("target_path is %q: it must be an absolute path without ..", r.TargetPath)
	}
	capability := r.GetVolumeCapability()
	switch {
	case capability == nil:
		return invalid("volume_capability is missing")
	case capability.GetBlock() != nil:
		return invalid("an inline volume cannot be a raw block device")
	case capability.GetMount() == nil:
		return invalid("volume_capability names neither mount nor block")
	case r.Readonly:
		return invalid("readonly is set, but an inline volume starts empty: nobody could ever write to it")
	}
	switch mode := capability.GetAccessMode().GetMode(); mode {
	case csispec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER,
		csispec.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER,
		csispec.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER:
	default:
		return invalid("access mode %v is not supported: the volume is on a disk of one node", mode)
	}
	if err := diskv1alpha1.ValidateFSType(capability.GetMount().FsType); err != nil {
		return invalid("%v", err)
	}
	if r.VolumeContext[contextEphemeral] != "true" {
		return invalid("%s is not \"true\" in volume_context: only inline volumes are served yet, no persistent ones", contextEphemeral)
	}
	if _, err := diskv1alpha1.ParseAttributes(r.VolumeContext); err != nil {
		return invalid("%v", err)
	}
	pod := volumes.PodRef{
		Namespace: r.VolumeContext[contextPodNamespace],
		Name:      r.VolumeContext[contextPodName],
		UID:       types.UID(r.VolumeContext[contextPodUID]),
	}
	if pod.Namespace == "" || pod.Name == "" || pod.UID == "" {
		return invalid("volume_context does not name the pod: the CSIDriver object needs podInfoOnMount: true")
	}
	return pod, capability.GetMount().MountFlags, nil
}

// isPath holds that a path is absolute and leads nowhere by way of "..".
func isPath(path string) bool { return filepath.IsAbs(path) && filepath.Clean(path) == path }

// mount mounts the device on the target, or finds that it is.
func (n *Node) mount(ctx context.Context, device, target, fsType string, flags []string) (isNew bool, err error) {
	at, err := mountedAt(target)
	if err != nil {
		return false, err
	}
	if at != nil {
		// By number too: the device of that name may have been another one.
		targets, err := disk.Mounts(device)
		if err != nil {
			return false, err
		}
		if at.Source == device && slices.Contains(targets, at.Mountpoint) {
			return false, nil
		}
		return false, fmt.Errorf("%s is mounted on %s already, where %s belongs: unmount it", at.Source, target, device)
	}
	if err := os.MkdirAll(target, 0o750); err != nil {
		return false, fmt.Errorf("cannot make the mount point: %w", err)
	}
	if info, err := os.Lstat(target); err != nil || !info.IsDir() {
		return false, errors.Join(fmt.Errorf("mount point %s is a link, not a folder", target), err)
	}
	if err := n.mountDevice(device, target, fsType, flags); err != nil {
		return false, fmt.Errorf("cannot mount %s on %s as %s; the volume may hold data and is not formatted again: %w", device, target, fsType, err)
	}
	klog.FromContext(ctx).Info("Volume is mounted", "device", device, "target", target, "fsType", fsType)
	return true, nil
}

// mountDevice asks the kernel itself where it can: to start mount(8) takes longer than to
// mount. But that program understands flags, and says more about why it failed.
func (n *Node) mountDevice(device, target, fsType string, flags []string) error {
	if len(flags) == 0 && syscall.Mount(device, target, fsType, 0, "") == nil {
		return nil
	}
	return n.mounter.Mount(device, target, fsType, flags)
}

// mountedAt returns what is mounted on the target, nil if nothing is. Of several mounts
// the last is the visible one.
func mountedAt(target string) (*mountinfo.Info, error) {
	// The mount table has real paths, the kubelet's may lead over a link.
	if real, err := filepath.EvalSymlinks(target); err == nil {
		target = real
	}
	infos, err := mountinfo.GetMounts(func(info *mountinfo.Info) (skip, stop bool) { return info.Mountpoint != target, false })
	if err != nil {
		return nil, fmt.Errorf("cannot read the mount table: %w", err)
	}
	if len(infos) == 0 {
		return nil, nil
	}
	return infos[len(infos)-1], nil
}

// NodeUnpublishVolume unmounts a volume and then asks for its release.
func (n *Node) NodeUnpublishVolume(ctx context.Context, r *csispec.NodeUnpublishVolumeRequest) (*csispec.NodeUnpublishVolumeResponse, error) {
	if r.VolumeId == "" {
		return nil, status.Error(codes.InvalidArgument, "volume_id is missing")
	}
	if !isPath(r.TargetPath) {
		return nil, status.Errorf(codes.InvalidArgument, "target_path is %q: it must be an absolute path without ..", r.TargetPath)
	}
	release, err := n.claim(r.VolumeId)
	if err != nil {
		return nil, err
	}
	defer release()
	if err := n.unmount(ctx, r.TargetPath); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	n.volumes.Release(r.VolumeId)
	return &csispec.NodeUnpublishVolumeResponse{}, nil
}

// unmount unmounts all there is on the target and removes it.
func (n *Node) unmount(ctx context.Context, target string) error {
	for {
		at, err := mountedAt(target)
		if err != nil {
			return err
		}
		if at == nil {
			break
		}
		if err := n.mounter.Unmount(target); err != nil {
			return fmt.Errorf("cannot unmount %s from %s: %w", at.Source, target, err)
		}
		klog.FromContext(ctx).Info("Volume is unmounted", "device", at.Source, "target", target)
	}
	// Remove, not RemoveAll: what is not empty here is not ours.
	if err := os.Remove(target); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot remove the mount point: %w", err)
	}
	return nil
}

// NodeGetVolumeStats says how full a volume is.
func (n *Node) NodeGetVolumeStats(_ context.Context, r *csispec.NodeGetVolumeStatsRequest) (*csispec.NodeGetVolumeStatsResponse, error) {
	if r.VolumeId == "" {
		return nil, status.Error(codes.InvalidArgument, "volume_id is missing")
	}
	if !isPath(r.VolumePath) {
		return nil, status.Errorf(codes.InvalidArgument, "volume_path is %q: it must be an absolute path without ..", r.VolumePath)
	}
	at, err := mountedAt(r.VolumePath)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	if at == nil {
		return nil, status.Errorf(codes.NotFound, "no volume is mounted on %s", r.VolumePath)
	}
	var s syscall.Statfs_t
	if err := syscall.Statfs(r.VolumePath, &s); err != nil {
		return nil, status.Errorf(codes.Internal, "cannot read the usage of %s: %v", r.VolumePath, err)
	}
	return &csispec.NodeGetVolumeStatsResponse{Usage: []*csispec.VolumeUsage{
		{
			Unit:      csispec.VolumeUsage_BYTES,
			Total:     int64(s.Blocks) * s.Bsize,
			Available: int64(s.Bavail) * s.Bsize,
			Used:      int64(s.Blocks-s.Bfree) * s.Bsize,
		},
		{
			Unit:      csispec.VolumeUsage_INODES,
			Total:     int64(s.Files),
			Available: int64(s.Ffree),
			Used:      int64(s.Files - s.Ffree),
		},
	}}, nil
}

// NodeGetInfo names the node. It sets no limit on volumes: the disks are the limit.
func (n *Node) NodeGetInfo(context.Context, *csispec.NodeGetInfoRequest) (*csispec.NodeGetInfoResponse, error) {
	return &csispec.NodeGetInfoResponse{NodeId: n.name}, nil
}

// NodeGetCapabilities names the one optional call that is served.
func (n *Node) NodeGetCapabilities(context.Context, *csispec.NodeGetCapabilitiesRequest) (*csispec.NodeGetCapabilitiesResponse, error) {
	return &csispec.NodeGetCapabilitiesResponse{Capabilities: []*csispec.NodeServiceCapability{{
		Type: &csispec.NodeServiceCapability_Rpc{Rpc: &csispec.NodeServiceCapability_RPC{
			Type: csispec.NodeServiceCapability_RPC_GET_VOLUME_STATS,
		}},
	}}}, nil
}

// statusOf gives an error of package volumes its code. The kubelet shows the message
// in the pod's FailedMount event.
func statusOf(err error) error {
	code := codes.Internal
	switch {
	case errors.Is(err, volumes.ErrInvalid):
		code = codes.InvalidArgument
	case errors.Is(err, volumes.ErrNoRoom):
		code = codes.ResourceExhausted
	case errors.Is(err, volumes.ErrWaiting), errors.Is(err, volumes.ErrOutOfService):
		code = codes.Unavailable
	case errors.Is(err, volumes.ErrPodGone):
		code = codes.FailedPrecondition
	case errors.Is(err, context.DeadlineExceeded):
		code = codes.DeadlineExceeded
	case errors.Is(err, context.Canceled):
		code = codes.Canceled
	}
	return status.Error(code, err.Error())
}
