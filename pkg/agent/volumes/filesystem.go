package volumes

import (
	"context"
	"fmt"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/agent/mounts"
	"github.com/berthdev/berth/pkg/agent/signature"
)

// FileSystems makes the file systems of volumes, as their classes say.
type FileSystems interface {
	// Make makes one on a volume that holds nothing of worth.
	Make(ctx context.Context, class, fsType string, v disk.Volume) error
}

// fileSystemOn reads which file system a device holds: one that volumes can have. What else
// lay there before is not looked for.
func fileSystemOn(ctx context.Context, device string) (string, error) {
	fsType, err := signature.FileSystem(ctx, device, diskv1alpha1.FSTypeExt4, diskv1alpha1.FSTypeXFS)
	if err != nil {
		return "", fmt.Errorf("cannot read what file system %s holds: %w", device, err)
	}
	if diskv1alpha1.ValidateFSType(fsType) != nil || fsType == "" {
		return "", fmt.Errorf("%s was formatted, but has no file system that can be recognised; it is not formatted again, because it may hold data", device)
	}
	return fsType, nil
}

// mounted reports whether the device is mounted anywhere that the agent can see. Mounts
// that it cannot see keep the device busy, and then the engine refuses to wipe it.
func mounted(device string) (bool, error) {
	found, err := mounts.OfDevice(device)
	return len(found) > 0, err
}
