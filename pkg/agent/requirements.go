package agent

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// programs are those that the agent runs: package signature to read a device, package filesystem to make, check and
// grow file systems, mount-utils to mount.
var programs = []string{"blkid", "wipefs", "mkfs.ext4", "mkfs.xfs", "e2fsck", "resize2fs", "xfs_growfs", "mount", "umount"}

// CheckRequirements returns an error that says what the agent lacks on this machine.
func CheckRequirements() error {
	if os.Geteuid() != 0 {
		return errors.New("the agent partitions and mounts disks: run it as root, in a privileged container")
	}
	var missing []string
	for _, program := range programs {
		if _, err := exec.LookPath(program); err != nil {
			missing = append(missing, program)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("the agent needs programs that are not in PATH: %s (Debian: e2fsprogs, xfsprogs, util-linux, mount)", strings.Join(missing, ", "))
	}
	return nil
}
