package csi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// bindFolder mounts the source's file system on the target as well, which is a folder.
func bindFolder(ctx context.Context, source, target string, a access) error {
	if err := makeMountPoint(target); err != nil {
		return err
	}
	return bind(ctx, source, target, a.bindOptions())
}

// bindDevice mounts a device on the target, which is a file.
func bindDevice(ctx context.Context, device, target string, a access) error {
	if err := makeBindTarget(target); err != nil {
		return err
	}
	return bind(ctx, device, target, a.bindOptions())
}

// bind mounts a copy of the source's mount on the target. Of the options it sets those that a bind mount can have. If
// that fails, it removes the target, which was made for it.
func bind(ctx context.Context, source, target string, options []string) error {
	if err := bindTree(source, target, options); err != nil {
		return errors.Join(err, removeTarget(ctx, target))
	}
	klog.FromContext(ctx).Info("Volume is published", "source", source, "target", target, "options", options)
	return nil
}

// bindOptions are the options of a mount that is bound for one pod.
func (a access) bindOptions() []string {
	if a.readOnly {
		return append(slices.Clone(a.flags), "ro")
	}
	return a.flags
}

// makeMountPoint makes the folder for a mount, but not its parents: those are the kubelet's.
func makeMountPoint(target string) error {
	if err := os.Mkdir(target, 0o750); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("cannot make the mount point: %w", err)
	}
	if info, err := os.Lstat(target); err != nil || !info.IsDir() {
		return errors.Join(fmt.Errorf("mount point %s is a link or a file, not a folder", target), err)
	}
	return nil
}

// makeBindTarget makes the file for a bind mount of a device.
func makeBindTarget(target string) error {
	f, err := os.OpenFile(target, os.O_CREATE|os.O_EXCL, 0o600)
	switch {
	case err == nil:
		err = f.Close()
	case errors.Is(err, fs.ErrExist):
		err = nil
	}
	if err != nil {
		return fmt.Errorf("cannot make the file that the device is bound to: %w", err)
	}
	if info, err := os.Lstat(target); err != nil || !info.Mode().IsRegular() {
		return errors.Join(fmt.Errorf("target %s is a link or a folder, not a file", target), err)
	}
	return nil
}

// mountAttributes are the mount options that each mount of a file system has for itself. All others are the file
// system's own, and were given when it was staged.
var mountAttributes = map[string]uint64{
	"ro":          unix.MOUNT_ATTR_RDONLY,
	"nosuid":      unix.MOUNT_ATTR_NOSUID,
	"nodev":       unix.MOUNT_ATTR_NODEV,
	"noexec":      unix.MOUNT_ATTR_NOEXEC,
	"nosymfollow": unix.MOUNT_ATTR_NOSYMFOLLOW,
	"nodiratime":  unix.MOUNT_ATTR_NODIRATIME,
}

// accessTimes exclude each other.
var accessTimes = map[string]uint64{
	"relatime":    unix.MOUNT_ATTR_RELATIME,
	"noatime":     unix.MOUNT_ATTR_NOATIME,
	"strictatime": unix.MOUNT_ATTR_STRICTATIME,
}

// attributesOf are the mount attributes of those options that a bind mount can have.
func attributesOf(options []string) unix.MountAttr {
	var a unix.MountAttr
	for _, o := range options {
		a.Attr_set |= mountAttributes[o]
		if t, ok := accessTimes[o]; ok {
			a.Attr_clr = unix.MOUNT_ATTR__ATIME
			a.Attr_set = a.Attr_set&^uint64(unix.MOUNT_ATTR__ATIME) | t
		}
	}
	return a
}

// bindTree mounts a copy of the source's mount on the target. Its options are set before it is visible anywhere. A
// later change would apply in the agent's container only, and the host would still see a read-only volume as writable.
func bindTree(source, target string, options []string) error {
	tree, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err == nil {
		defer unix.Close(tree)
		if attributes := attributesOf(options); attributes != (unix.MountAttr{}) {
			err = unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attributes)
		}
	}
	if err == nil {
		err = unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH)
	}
	if errors.Is(err, unix.ENOSYS) {
		return fmt.Errorf("cannot bind %s to %s: the kernel must be Linux 5.12 or later: %w", source, target, err)
	}
	if err != nil {
		return fmt.Errorf("cannot bind %s to %s: %w", source, target, err)
	}
	return nil
}

// checkBindSupport returns an error if the kernel cannot bind mounts as this package does.
func checkBindSupport(dir string) error {
	tree, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err == nil {
		defer unix.Close(tree)
		err = unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NODEV})
	}
	return explainOldKernel(err)
}

// explainOldKernel says which kernel is needed when this one does not have a call. Other errors depend on the folder,
// so they say nothing about the kernel.
func explainOldKernel(err error) error {
	if !errors.Is(err, unix.ENOSYS) {
		return nil
	}
	return fmt.Errorf("the kernel of this node cannot mount volumes read-only for one pod and writable for another: Berth needs Linux 5.12 or later: %w", err)
}

// unmountTop unmounts the top mount on the target. It reports whether that failed because the mount is in use.
func unmountTop(target string) (busy bool, err error) {
	err = unix.Unmount(target, unix.UMOUNT_NOFOLLOW)
	return errors.Is(err, unix.EBUSY), err
}
