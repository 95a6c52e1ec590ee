package csi

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/mounts"
	"github.com/berthdev/berth/pkg/agent/volumes"
)

// NodeGetVolumeStats returns how full a volume is, and its condition.
func (n *Node) NodeGetVolumeStats(ctx context.Context, r *csispec.NodeGetVolumeStatsRequest) (*csispec.NodeGetVolumeStatsResponse, error) {
	switch {
	case r.VolumeId == "":
		return nil, invalid("volume_id is missing")
	case r.VolumePath == "":
		return nil, invalid("volume_path is missing")
	}
	// The kubelet calls every minute. On a disk that hangs only one call waits, not more and more.
	release, err := n.lockVolume(ctx, "stats of "+r.VolumeId+" on "+r.VolumePath)
	if err != nil {
		return nil, err
	}
	defer release()
	v, found := n.volumes.Lookup(r.VolumeId)
	if found && v.Block {
		return blockStats(v, r.VolumePath)
	}
	at, mounted, err := mounts.At(r.VolumePath)
	if err != nil {
		return nil, statusOf(err)
	}
	if !mounted {
		return nil, statusOf(errWithCode(codes.NotFound, "volume %.128q is not mounted on volume_path %.256q", r.VolumeId, r.VolumePath))
	}
	if found && v.Problem == "" {
		if err := checkMountedAt(v, r.VolumePath); err != nil {
			return nil, statusOf(err)
		}
	}
	response := &csispec.NodeGetVolumeStatsResponse{VolumeCondition: volumeCondition(r.VolumeId, v, found)}
	if !response.VolumeCondition.Abnormal {
		response.VolumeCondition = mountCondition(at, r.VolumePath)
	}
	if response.Usage, err = usageOf(r.VolumePath); err != nil && !response.VolumeCondition.Abnormal {
		response.VolumeCondition = abnormal("the file system does not answer: %v", err)
	}
	return response, nil
}

// blockStats returns the size of a raw block volume.
func blockStats(v volumes.Volume, path string) (*csispec.NodeGetVolumeStatsResponse, error) {
	// While its disk is out of service, a volume has no device.
	if v.Problem == "" && !mounts.SameDevice(path, v.Device) {
		return nil, statusOf(errWithCode(codes.NotFound, "volume %s is not published on volume_path %.256q", v.ID, path))
	}
	response := &csispec.NodeGetVolumeStatsResponse{
		Usage:           []*csispec.VolumeUsage{{Unit: csispec.VolumeUsage_BYTES, Total: v.Size}},
		VolumeCondition: diskCondition(v),
	}
	return response, nil
}

// usageOf is the usage of the file system that is mounted on the path.
func usageOf(path string) ([]*csispec.VolumeUsage, error) {
	u, err := mounts.UsageOf(path)
	if err != nil {
		return nil, err
	}
	return []*csispec.VolumeUsage{
		{Unit: csispec.VolumeUsage_BYTES, Total: u.Size, Available: u.Available, Used: u.Used},
		{Unit: csispec.VolumeUsage_INODES, Total: u.Inodes, Available: u.InodesFree, Used: u.InodesUsed},
	}, nil
}

func abnormal(format string, a ...any) *csispec.VolumeCondition {
	return &csispec.VolumeCondition{Abnormal: true, Message: fmt.Sprintf(format, a...)}
}

// diskCondition returns the condition of the disk that a persistent volume is on.
func diskCondition(v volumes.Volume) *csispec.VolumeCondition {
	if v.Problem != "" {
		return abnormal("disk %s is out of service: %s", v.Disk, v.Problem)
	}
	return &csispec.VolumeCondition{Message: "disk " + v.Disk + " is in service"}
}

// volumeCondition returns whether the volume is still on a disk. For an inline one only its mount is checked: its life
// ends with its pod, not with its disk.
func volumeCondition(volumeID string, v volumes.Volume, found bool) *csispec.VolumeCondition {
	if _, persistent := diskv1alpha1.VolumeUUID(volumeID); !persistent {
		return &csispec.VolumeCondition{}
	}
	if !found {
		return abnormal("the partition of this volume is gone, only its mount is left: its disk is not on this node any more")
	}
	return diskCondition(v)
}

// mountCondition returns whether the file system that is mounted on the path can still be used.
func mountCondition(at mounts.Mount, path string) *csispec.VolumeCondition {
	// The file system's own options, not those of the mount: a volume may be mounted read-only on purpose.
	options := strings.Split(at.VFSOptions, ",")
	switch {
	case slices.Contains(options, "shutdown"):
		return abnormal("the kernel has shut the file system down after errors: see its log, end the pods that use the volume, and check it with fsck")
	case slices.Contains(options, "emergency_ro"), slices.Contains(options, "ro") && !at.ReadOnly():
		return abnormal("the kernel has made the file system read-only after errors: see its log, end the pods that use the volume, and check it with fsck")
	}
	if count := ext4Errors(at.Source); count != "" && count != "0" {
		return abnormal("ext4 has found %s errors in the file system since it was last checked: end the pods that use the volume, and check it with fsck", count)
	}
	// xfs shows nothing of that, but its root is not readable any more.
	if _, err := os.Lstat(path); err != nil {
		return abnormal("the file system does not answer: %v", err)
	}
	return &csispec.VolumeCondition{Message: "the file system is in order"}
}

// ext4Errors is the number of errors that ext4 has recorded in the superblock of a mounted file system. It is empty for
// xfs, which records none.
func ext4Errors(device string) string {
	b, err := os.ReadFile("/sys/fs/ext4/" + filepath.Base(device) + "/errors_count")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
