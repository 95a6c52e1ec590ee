package volumes

import (
	"context"
	"fmt"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/agent/mounts"
	"github.com/berthdev/berth/pkg/agent/signature"
)

// FileSystems makes the file systems of volumes by the settings of their classes.
type FileSystems interface {
	// Make makes a file system on a volume whose content may be overwritten.
	Make(ctx context.Context, class, fsType string, v disk.Volume) error
}

// fileSystemOn reads which of the possible file systems a device has. It does not look for other signatures.
func fileSystemOn(ctx context.Context, device string) (string, error) {
	fsType, err := signature.FileSystem(ctx, device, diskv1alpha1.FSTypeExt4, diskv1alpha1.FSTypeXFS)
	if err != nil {
		return "", fmt.Errorf("cannot read what file system %s holds: %w", device, err)
	}
	if diskv1alpha1.ValidateFSType(fsType) != nil || fsType == "" {
		return "", fmt.Errorf("%s was formatted, but has no file system that can be recognized; it is not formatted again, because it may hold data", device)
	}
	return fsType, nil
}

// isDeviceMounted reports whether the device is mounted anywhere that the agent can see. A mount that it cannot see
// keeps the device busy, and then the engine refuses to wipe it.
func isDeviceMounted(device string) (bool, error) {
	found, err := mounts.OfDevice(device)
	return len(found) > 0, err
}
