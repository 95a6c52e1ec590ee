package csi

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"google.golang.org/grpc/codes"

	"github.com/berthdev/berth/pkg/agent/mounts"
)

// Kubelet is the kubelet's folder as this process sees it. Volumes are mounted only below it, and only where the host
// sees the mount, too. Otherwise a pod would write to the node's root disk.
type Kubelet struct {
	// dir is the folder as it was given, resolved without links.
	dir, resolved string
	// onHost is true when this process has no mount namespace of its own.
	onHost bool
}

// kubeletDirHint ends each refusal of a path.
const kubeletDirHint = "set the agent's --kubelet-dir to the kubelet's --root-dir, and mount that folder into the agent's container " +
	"at the same path with mountPropagation: Bidirectional"

// NewKubelet returns the kubelet's folder. The error says what keeps volumes from being mounted there.
func NewKubelet(dir string) (*Kubelet, error) {
	if err := checkPath("--kubelet-dir", dir); err != nil {
		return nil, err
	}
	resolved, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, fmt.Errorf("--kubelet-dir: cannot find the kubelet's folder: %w: %s", err, kubeletDirHint)
	}
	k := &Kubelet{dir: dir, resolved: resolved, onHost: onHost()}
	if err := k.checkPropagation(resolved); err != nil {
		return nil, fmt.Errorf("--kubelet-dir: %w: %s", err, kubeletDirHint)
	}
	if err := checkPodsFolder(resolved); err != nil {
		return nil, fmt.Errorf("--kubelet-dir: %w: %s", err, kubeletDirHint)
	}
	return k, checkBindSupport(resolved)
}

// checkPodsFolder returns an error unless a kubelet uses the folder. Every kubelet makes its pods folder when it
// starts. The existence of /var/lib/kubelet alone is no sign: device plugins are always there.
func checkPodsFolder(folder string) error {
	if info, err := os.Stat(filepath.Join(folder, "pods")); err != nil || !info.IsDir() {
		return errors.Join(fmt.Errorf("%s is not the --root-dir of a kubelet: it has no folder pods", folder), err)
	}
	return nil
}

// checkPath returns an error unless a field is an absolute path without "..".
func checkPath(field, path string) error {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path {
		return errWithCode(codes.InvalidArgument, "%s is %.256q: it must be an absolute path without ..", field, path)
	}
	return nil
}

// checkTarget returns an error unless the parent of a path lies in the kubelet's folder, and the host sees mounts
// there.
func (k *Kubelet) checkTarget(field, path string) error {
	if err := checkPath(field, path); err != nil {
		return err
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(path))
	inside := parent == k.resolved || below(parent, k.resolved)
	switch {
	case !inside && !below(path, k.dir) && !below(path, k.resolved):
		return errWithCode(codes.FailedPrecondition, "%s %.256q is not below the kubelet's folder, as the agent knows it, %s: %s", field, path, k.dir, kubeletDirHint)
	case errors.Is(err, fs.ErrNotExist):
		return errWithCode(codes.FailedPrecondition, "%s %.256q: the kubelet makes the folder that this path lies in, and the agent does not see that folder: %s", field, path, kubeletDirHint)
	case err != nil:
		return fmt.Errorf("%s: cannot look at the folder of %.256q: %w", field, path, err)
	case !inside:
		return errWithCode(codes.FailedPrecondition, "%s %.256q leads over a link to %s, out of the kubelet's folder %s", field, path, parent, k.resolved)
	}
	if err := k.checkPropagation(parent); err != nil {
		return errWithCode(codes.FailedPrecondition, "%s %.256q: %v: %s", field, path, err, kubeletDirHint)
	}
	return nil
}

// checkPropagation returns an error unless the host sees what is mounted in the folder.
func (k *Kubelet) checkPropagation(folder string) error {
	if info, err := os.Stat(folder); err != nil || !info.IsDir() {
		return errors.Join(fmt.Errorf("%s is not a folder", folder), err)
	}
	if k.onHost {
		return nil
	}
	table, err := mounts.Read()
	if err != nil {
		return err
	}
	m, found := table.Holding(folder)
	if !found || m.Shared() == 0 {
		return fmt.Errorf("%s lies on the mount %s (%s of %s), which does not propagate to the host", folder, m.Mountpoint, m.FSType, m.Source)
	}
	return nil
}

// below reports whether the path is below the folder, by its name alone.
func below(path, dir string) bool {
	return strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// onHost reports whether this process has the mount namespace of the host's first process. In its own PID namespace it
// cannot see that process.
func onHost() bool {
	const firstPIDNamespace = "pid:[4026531836]"
	pid, err := os.Readlink("/proc/self/ns/pid")
	if err != nil || pid != firstPIDNamespace {
		return false
	}
	first, err := os.Readlink("/proc/1/ns/mnt")
	if err != nil {
		return false
	}
	own, err := os.Readlink("/proc/self/ns/mnt")
	return err == nil && own == first
}
