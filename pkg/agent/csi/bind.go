package csi

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// mountAttributes are the mount options that each mount of a file system has for itself.
// All others are the file system's own: they were given when it was staged.
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

// bind mounts the source, a folder or a device, on the target as well, with the source's
// own options and those of the given that a bind mount can have.
//
// The options are set before the mount shows anywhere. One that is changed afterwards
// changes in the agent's container only: the host, and the next agent, would go on to see
// a read-only volume as a writable one.
func bind(source, target string, options []string) error {
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

// unmountHere unmounts what is on the target, of the kernel itself: umount(8) looks at the
// target first, which a broken disk does not let it.
func unmountHere(target string) error { return unix.Unmount(target, unix.UMOUNT_NOFOLLOW) }
