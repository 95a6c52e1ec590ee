package volumes

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/disk"
)

// mkfsTimeout bounds mkfs on a disk that hangs.
const mkfsTimeout = 10 * time.Minute

// blkidTimeout bounds the reading of a file system's type.
const blkidTimeout = 30 * time.Second

// mkfs makes a file system on a volume that holds nothing of worth. It neither
// discards nor clears more than it must: the extent was wiped before it was free. The
// file system gets the partition's GUID as its UUID: whoever sees either knows the volume.
func mkfs(ctx context.Context, fsType string, v disk.Volume) error {
	ctx, cancel := context.WithTimeout(ctx, mkfsTimeout)
	defer cancel()
	program, arguments := mkfsCommand(fsType, v)
	out, err := exec.CommandContext(ctx, program, arguments...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("cannot make an %s file system on %s: %w: %s", fsType, v.Device, err, oneLine(out))
	}
	return nil
}

func mkfsCommand(fsType string, v disk.Volume) (program string, arguments []string) {
	if fsType == diskv1alpha1.FSTypeXFS {
		// -f overwrites what an mkfs left that was interrupted.
		return "mkfs.xfs", []string{"-q", "-f", "-K", "-m", "uuid=" + v.Partition, v.Device}
	}
	extended := "nodiscard,lazy_itable_init=1,lazy_journal_init=1"
	if v.Prezeroed {
		extended = "nodiscard,assume_storage_prezeroed=1"
	}
	return "mkfs.ext4", []string{"-q", "-F", "-m0", "-U", v.Partition, "-E", extended, v.Device}
}

// fileSystemOn reads which file system a device holds.
func fileSystemOn(ctx context.Context, device string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, blkidTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, "blkid", "-p", "-u", "filesystem", "-s", "TYPE", "-o", "value", device).Output()
	var exit *exec.ExitError
	if err != nil && (ctx.Err() != nil || !errors.As(err, &exit) || !exit.Exited()) {
		return "", fmt.Errorf("cannot read what file system %s holds: %w", device, errors.Join(ctx.Err(), err))
	}
	fsType := strings.TrimSpace(string(out))
	if err != nil || diskv1alpha1.ValidateFSType(fsType) != nil || fsType == "" {
		return "", fmt.Errorf("%s was formatted, but has no file system that can be recognised; it is not formatted again, because it may hold data", device)
	}
	return fsType, nil
}

// mounted reports whether the device is mounted anywhere that the agent can see. Mounts
// that it cannot see keep the device busy, and then the engine refuses to wipe it.
func mounted(device string) (bool, error) {
	targets, err := disk.Mounts(device)
	return len(targets) > 0, err
}

// oneLine makes a program's output fit into a message.
func oneLine(out []byte) string {
	const limit = 400
	line := strings.Join(strings.Fields(string(out)), " ")
	if len(line) > limit {
		line = line[:limit] + "..."
	}
	return line
}
