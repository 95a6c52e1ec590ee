package filesystem

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/mounts"
)

// ErrOnlyUnmounted says that the kernel does not allow this agent to grow the mounted file system.
var ErrOnlyUnmounted = errors.New("it can only grow while it is not mounted")

// ErrTooFar says that the file system cannot grow that far while it is not mounted.
var ErrTooFar = errors.New("its file system is too small to grow that far while it is not mounted")

// MayGrowUnmounted returns an error unless resize2fs can grow the ext4 file system to the size of its device without
// destroying it. The file system may be mounted.
func MayGrowUnmounted(device string) error {
	state, err := ReadSuperblock(device, diskv1alpha1.FSTypeExt4)
	if err != nil {
		return err
	}
	if now := state.size - state.Growable; state.size > state.Limit {
		return fmt.Errorf("%w: it has %d bytes, and descriptors for %d of the %d that the volume has: copy the data to a new claim, "+
			"or give the agent CAP_SYS_RESOURCE, with which the file system grows while it is mounted", ErrTooFar, now, state.Limit, state.size)
	}
	return nil
}

// GrowMounted grows a mounted file system to the size of its device. At least one of its mounts must be writable.
func GrowMounted(ctx context.Context, device string, mounted []mounts.Mount) error {
	writable := slices.IndexFunc(mounted, func(m mounts.Mount) bool { return !m.ReadOnly() })
	if writable < 0 {
		return fmt.Errorf("%s is mounted read-only everywhere: %w", device, ErrOnlyUnmounted)
	}
	begin := time.Now()
	m := mounted[writable]
	var err error
	if m.FSType == diskv1alpha1.FSTypeXFS {
		_, err = run(ctx, "xfs_growfs", "-d", m.Mountpoint)
	} else {
		var output string
		// The kernel requires CAP_SYS_RESOURCE, and a file system without errors.
		if output, err = run(ctx, "resize2fs", device); err != nil && strings.Contains(output, "Permission denied") {
			err = fmt.Errorf("%w: %w", ErrOnlyUnmounted, err)
		}
	}
	if err != nil {
		return err
	}
	klog.FromContext(ctx).Info("File system fills its volume", "device", device, "fsType", m.FSType, "duration", time.Since(begin))
	return nil
}

// GrowUnmounted grows an ext4 file system that is not mounted to the size of its device. resize2fs requires a check
// before.
func GrowUnmounted(ctx context.Context, device string) error {
	if err := MayGrowUnmounted(device); err != nil {
		return err
	}
	begin := time.Now()
	output, err := runE2fsck(ctx, "-f", "-p", device)
	if err != nil {
		return err
	}
	checked := time.Since(begin)
	if _, err := run(ctx, "resize2fs", device); err != nil {
		return err
	}
	klog.FromContext(ctx).Info("File system has grown while it was not mounted", "device", device, "check", output,
		"checkDuration", checked, "duration", time.Since(begin))
	return nil
}
