package csi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/moby/sys/mountinfo"
	"google.golang.org/grpc/codes"
	"k8s.io/klog/v2"

	"github.com/berthdev/berth/pkg/agent/disk"
)

// mount mounts the device on the target, or finds that it is.
func (n *Node) mount(ctx context.Context, device, target, fsType string, flags []string) (isNew bool, err error) {
	at, err := mountedAt(target)
	if err != nil {
		return false, err
	}
	if at != nil {
		return false, sameMount(at, device, target, fsType)
	}
	if err := os.MkdirAll(target, 0o750); err != nil {
		return false, fmt.Errorf("cannot make the mount point: %w", err)
	}
	if info, err := os.Lstat(target); err != nil || !info.IsDir() {
		return false, errors.Join(fmt.Errorf("mount point %s is a link or a file, not a folder", target), err)
	}
	if err := n.mountDevice(device, target, fsType, flags); err != nil {
		return false, fmt.Errorf("cannot mount %s on %s as %s; the volume may hold data and is not formatted again: %w", device, target, fsType, err)
	}
	klog.FromContext(ctx).Info("Volume is mounted", "device", device, "target", target, "fsType", fsType)
	return true, nil
}

// sameMount holds that what is mounted on the target is the device, with that file system.
func sameMount(at *mountinfo.Info, device, target, fsType string) error {
	mounts, err := mountsOf(device)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(mounts, func(m *mountinfo.Info) bool { return m.ID == at.ID }) {
		return refuse(codes.FailedPrecondition, "%s is mounted on %s already, where %s belongs: unmount it", at.Source, target, device)
	}
	if at.FSType != fsType {
		return refuse(codes.AlreadyExists, "%s is mounted on %s already, as %s and not as %s", device, target, at.FSType, fsType)
	}
	return nil
}

// mountDevice asks the kernel itself where it can: to start mount(8) takes longer than to
// mount. But that program understands flags, and says more about why it failed.
func (n *Node) mountDevice(device, target, fsType string, flags []string) error {
	if len(flags) == 0 && syscall.Mount(device, target, fsType, 0, "") == nil {
		return nil
	}
	return n.mounter.Mount(device, target, fsType, flags)
}

// mountPoint is the path as the mount table has it: the kubelet's may lead over a link. The
// last element is not resolved: it is never a link, and it cannot even be looked at if
// the file system that is mounted there is broken.
func mountPoint(path string) string {
	if parent, err := filepath.EvalSymlinks(filepath.Dir(path)); err == nil {
		return filepath.Join(parent, filepath.Base(path))
	}
	return path
}

// mountedAt returns what is mounted on the target, nil if nothing is. Of several mounts
// the last is the visible one.
func mountedAt(target string) (*mountinfo.Info, error) {
	target = mountPoint(target)
	infos, err := mountinfo.GetMounts(func(info *mountinfo.Info) (skip, stop bool) { return info.Mountpoint != target, false })
	if err != nil {
		return nil, fmt.Errorf("cannot read the mount table: %w", err)
	}
	if len(infos) == 0 {
		return nil, nil
	}
	return infos[len(infos)-1], nil
}

// mountsOf returns the mounts of the file system on a device: by number and by name,
// because the device of that name, or of that number, may have been another one.
func mountsOf(device string) ([]*mountinfo.Info, error) {
	targets, err := disk.Mounts(device)
	if err != nil || len(targets) == 0 {
		return nil, err
	}
	infos, err := mountinfo.GetMounts(func(info *mountinfo.Info) (skip, stop bool) {
		return info.Source != device || !slices.Contains(targets, info.Mountpoint), false
	})
	if err != nil {
		return nil, fmt.Errorf("cannot read the mount table: %w", err)
	}
	return infos, nil
}

// nodesOf returns the mounts of the device's node itself, as a raw block volume has them.
func nodesOf(device string) ([]*mountinfo.Info, error) {
	infos, err := mountinfo.GetMounts(func(info *mountinfo.Info) (skip, stop bool) {
		return filepath.Base(info.Root) != filepath.Base(device) || !sameDevice(info.Mountpoint, device), false
	})
	if err != nil {
		return nil, fmt.Errorf("cannot read the mount table: %w", err)
	}
	return infos, nil
}

// sameDevice reports whether both paths lead to the same block device.
func sameDevice(a, b string) bool {
	numberOf := func(path string) (uint64, bool) {
		info, err := os.Stat(path)
		if err != nil || info.Mode().Type() != fs.ModeDevice {
			return 0, false
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		return st.Rdev, ok
	}
	x, isDevice := numberOf(a)
	y, isToo := numberOf(b)
	return isDevice && isToo && x == y
}

// isReadOnly reports whether a mount, whatever its file system, is read-only.
func isReadOnly(m *mountinfo.Info) bool {
	return slices.Contains(strings.Split(m.Options, ","), "ro")
}

// unmount unmounts all there is on the target.
func (n *Node) unmount(ctx context.Context, target string) error {
	for {
		at, err := mountedAt(target)
		if err != nil {
			return err
		}
		if at == nil {
			return nil
		}
		if err := unmountHere(target); err != nil {
			return fmt.Errorf("cannot unmount %s from %s: %w", at.Source, target, err)
		}
		klog.FromContext(ctx).Info("Volume is unmounted", "device", at.Source, "target", target)
	}
}

// removeTarget unmounts all there is on the target and removes it. What is not empty
// there is not ours.
func (n *Node) removeTarget(ctx context.Context, target string) error {
	if err := n.unmount(ctx, target); err != nil {
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
