package csi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"google.golang.org/grpc/codes"
	"k8s.io/klog/v2"

	"github.com/berthdev/berth/pkg/agent/filesystem"
	"github.com/berthdev/berth/pkg/agent/mounts"
)

// mount mounts the device's file system on the target, unless it is mounted there. state is the content of the
// superblock before: a mounted device may show what was there before.
func (n *Node) mount(ctx context.Context, device, target, fsType string, flags []string) (isNew bool, state filesystem.State, err error) {
	logger := klog.FromContext(ctx).WithValues("device", device, "target", target)
	state, err = filesystem.ReadSuperblock(device, fsType)
	if err != nil {
		// The kernel decides whether it can be mounted.
		logger.Error(err, "Superblock could not be read")
	}
	at, found, err := mounts.At(target)
	if err != nil {
		return false, state, err
	}
	if found {
		return false, state, checkSameMount(at, device, target, fsType)
	}
	if err := makeMountPoint(target); err != nil {
		return false, state, err
	}
	if state.NeedsCheck && !slices.Contains(flags, "ro") {
		if err := checkFileSystem(ctx, device); err != nil {
			return false, state, err
		}
	}
	if err := n.mountDevice(device, target, fsType, flags); err != nil {
		return false, state, fmt.Errorf("cannot mount %s on %s as %s; the volume may hold data and is not formatted again: %w", device, target, fsType, err)
	}
	logger.Info("Volume is mounted", "fsType", fsType)
	if state.NeverMounted && !slices.Contains(flags, "ro") {
		// Databases require an empty folder. e2fsck makes it again when it needs it.
		if err := os.Remove(filepath.Join(target, "lost+found")); err != nil && !errors.Is(err, fs.ErrNotExist) {
			logger.Error(err, "lost+found of a new file system could not be removed")
		}
	}
	return true, state, nil
}

// checkFileSystem checks a file system that needs it, unless it is mounted elsewhere. Then the kernel decides whether
// it serves.
func checkFileSystem(ctx context.Context, device string) error {
	mounted, err := mounts.OfDevice(device)
	if err != nil || len(mounted) > 0 {
		return err
	}
	err = filesystem.Check(ctx, device)
	if errors.Is(err, filesystem.ErrDamaged) {
		return errWithCode(codes.FailedPrecondition, "%v", err)
	}
	return err
}

// checkSameMount returns an error unless the device is mounted on the target, with that file system.
func checkSameMount(at mounts.Mount, device, target, fsType string) error {
	mounted, err := mounts.OfDevice(device)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(mounted, func(m mounts.Mount) bool { return m.ID == at.ID }) {
		return errWithCode(codes.FailedPrecondition, "%s is mounted on %s already, where %s belongs: unmount it", at.Source, target, device)
	}
	if at.FSType != fsType {
		return errWithCode(codes.AlreadyExists, "%s is mounted on %s already, as %s and not as %s", device, target, at.FSType, fsType)
	}
	return nil
}

// mountDevice mounts by a system call where it can: starting mount(8) takes longer than mounting. That program is used
// for flags, and after a failure, because its messages say more.
func (n *Node) mountDevice(device, target, fsType string, flags []string) error {
	if len(flags) == 0 && syscall.Mount(device, target, fsType, 0, "") == nil {
		return nil
	}
	return n.mounter.Mount(device, target, fsType, flags)
}

// unmount removes all mounts on the target, by a system call: umount(8) looks at the target first, which fails on a
// broken disk.
func unmount(ctx context.Context, target string) error {
	for {
		at, found, err := mounts.At(target)
		if err != nil || !found {
			return err
		}
		busy, err := unmountTop(target)
		if busy {
			err = fmt.Errorf("%w: %s", err, describeMountUsers(ctx, at))
		}
		if err != nil {
			return fmt.Errorf("cannot unmount %s from %s: %w", at.Source, target, err)
		}
		klog.FromContext(ctx).Info("Volume is unmounted", "device", at.Source, "target", target)
	}
}

// removeTarget removes all mounts on the target, and the target. It keeps a folder that is not empty: that is not ours.
func removeTarget(ctx context.Context, target string) error {
	if err := unmount(ctx, target); err != nil {
		return err
	}
	info, err := os.Lstat(target)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("cannot remove the mount point: %w", err)
	case !info.IsDir() && (!info.Mode().IsRegular() || info.Size() > 0):
		return fmt.Errorf("cannot remove the mount point: %s is neither a folder nor an empty file", target)
	}
	if err := os.Remove(target); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot remove the mount point: %w", err)
	}
	return nil
}
