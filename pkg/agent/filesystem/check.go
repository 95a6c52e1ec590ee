package filesystem

import (
	"context"
	"errors"
	"fmt"
	"os/exec"

	"k8s.io/klog/v2"
)

// ErrDamaged says that the file system has errors that only an operator can decide about.
var ErrDamaged = errors.New("the file system has errors that e2fsck does not repair by itself")

// Check has e2fsck repair an ext4 file system whose superblock requires a check, like mount-utils with fsck -a. It must
// not be mounted. A file system with errors is never mounted: each write could destroy more. The error is ErrDamaged if
// e2fsck leaves errors about which it would ask an operator.
func Check(ctx context.Context, device string) error {
	// A kubelet that gives up does not interrupt e2fsck. Its next call finds the check done.
	output, err := runE2fsck(context.WithoutCancel(ctx), "-p", device)
	if err != nil {
		return err
	}
	klog.FromContext(ctx).Info("File system was checked, as its superblock asks for it", "device", device, "e2fsck", output)
	return nil
}

// runE2fsck runs e2fsck with the arguments and returns its output. Errors that it has repaired are no errors.
func runE2fsck(ctx context.Context, arguments ...string) (output string, err error) {
	// Bits of the exit code: errors were repaired, the node should reboot, errors were left.
	const repaired, reboot, left = 1, 2, 4
	output, err = run(ctx, "e2fsck", arguments...)
	var exit *exec.ExitError
	switch {
	case !errors.As(err, &exit) || exit.ExitCode() < 0:
		return output, err
	case exit.ExitCode()&^(repaired|reboot) == 0:
		return output, nil
	case exit.ExitCode()&left != 0:
		device := arguments[len(arguments)-1]
		return output, fmt.Errorf("%w, and is not mounted: run \"e2fsck -f %s\" on the node and answer its questions, or delete the claim or pod to give the data up: %w",
			ErrDamaged, device, err)
	}
	return output, fmt.Errorf("cannot check the file system, which its superblock asks for: %w", err)
}
