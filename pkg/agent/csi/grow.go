package csi

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

// missing returns by how many bytes the device's file system is smaller than it could be.
// That it cannot be told is no reason not to mount it.
func (n *Node) missing(ctx context.Context, device, fsType string) int64 {
	missing, err := missingOn(device, fsType)
	if err != nil {
		klog.FromContext(ctx).Error(err, "Size of a file system could not be read", "device", device)
	}
	return missing
}

// errOnlyUnmounted: the kernel does not let this agent grow the mounted file system.
var errOnlyUnmounted = errors.New("it can only grow while it is not mounted")

// growStaged lets the file system grow that was just mounted on the staging path. Mounted
// it grows at once and safely; only where that is not possible it is unmounted once more,
// checked, which takes long for a large one, and grown by resize2fs. It returns an error
// only if the volume is not mounted then: a volume that is too small still serves.
func (n *Node) growStaged(ctx context.Context, device, target, fsType string, flags []string) error {
	logger := klog.FromContext(ctx).WithValues("device", device)
	// It is not interrupted by a kubelet that gives up: resize2fs must not be. The next
	// call finds the work done.
	ctx = context.WithoutCancel(ctx)
	mounts, err := mountsOf(device)
	if err == nil {
		err = growMounted(ctx, device, mounts)
	}
	if errors.Is(err, errOnlyUnmounted) {
		if err := n.unmount(ctx, target); err != nil {
			return err
		}
		// A kubelet's folder that is mounted at two shared places shows one mount twice, and
		// both are gone now. What is left is a use that must not be disturbed.
		var left []*mountinfo.Info
		if left, err = mountsOf(device); err == nil && len(left) > 0 {
			err = fmt.Errorf("%s is mounted on %s, too: %w", device, left[0].Mountpoint, errOnlyUnmounted)
		}
		if err == nil {
			err = growUnmounted(ctx, device)
		}
		if _, mountErr := n.mount(ctx, device, target, fsType, flags); mountErr != nil {
			return errors.Join(mountErr, err)
		}
	}
	if err != nil {
		logger.Error(err, "File system could not grow and is mounted as it is")
	}
	return nil
}

// growMounted lets a mounted file system grow to the size of its device. Of its mounts one
// must not be read-only.
func growMounted(ctx context.Context, device string, mounts []*mountinfo.Info) error {
	writable := slices.IndexFunc(mounts, func(m *mountinfo.Info) bool { return !isReadOnly(m) })
	if writable < 0 {
		return fmt.Errorf("%s is mounted read-only everywhere: %w", device, errOnlyUnmounted)
	}
	begin := time.Now()
	m := mounts[writable]
	var err error
	if m.FSType == diskv1alpha1.FSTypeXFS {
		_, err = run(ctx, "xfs_growfs", "-d", m.Mountpoint)
	} else {
		var said string
		// The kernel wants CAP_SYS_RESOURCE, and a file system without errors.
		if said, err = run(ctx, "resize2fs", device); err != nil && strings.Contains(said, "Permission denied") {
			err = fmt.Errorf("%w: %w", errOnlyUnmounted, err)
		}
	}
	if err != nil {
		return err
	}
	klog.FromContext(ctx).Info("File system fills its volume", "device", device, "fsType", m.FSType, "duration", time.Since(begin))
	return nil
}

// growUnmounted lets an ext4 file system grow that is not mounted. resize2fs demands that
// it be checked before.
func growUnmounted(ctx context.Context, device string) error {
	begin := time.Now()
	const repaired, reboot = 1, 2
	said, err := run(ctx, "e2fsck", "-f", "-p", device)
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode()&^(repaired|reboot) != 0) {
		return err
	}
	checked := time.Since(begin)
	if _, err := run(ctx, "resize2fs", device); err != nil {
		return err
	}
	klog.FromContext(ctx).Info("File system has grown while it was not mounted", "device", device, "check", said,
		"checkDuration", checked, "duration", time.Since(begin))
	return nil
}

// run runs a program, and returns what it said.
func run(ctx context.Context, program string, arguments ...string) (string, error) {
	command := exec.CommandContext(ctx, program, arguments...)
	// Its messages are looked at.
	command.Env = append(os.Environ(), "LC_ALL=C")
	out, err := command.CombinedOutput()
	said := strings.Join(strings.Fields(string(out)), " ")
	if err != nil {
		return said, fmt.Errorf("%s %s: %w: %.400s", program, strings.Join(arguments, " "), err, said)
	}
	return said, nil
}
