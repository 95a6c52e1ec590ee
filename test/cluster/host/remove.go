package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// removeTimeout is how long the kernel may take to release things after the last
// process has ended; it takes milliseconds.
const removeTimeout = 60 * time.Second

// Remove takes away everything that belongs to the cluster. It goes on after an
// error, so that one stuck thing does not keep the others, and returns all of them.
func (s *State) Remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, removeTimeout)
	defer cancel()
	// The order matters: processes hold everything else.
	errs := []error{
		s.Kill(ctx, ""),
		s.removeMounts(),
		s.removeLoops(ctx),
		s.removeLinks(ctx),
		s.removeCgroups(ctx),
	}
	if err := errors.Join(errs...); err != nil {
		// The state stays, so that the next attempt finds what is left.
		return fmt.Errorf("remove cluster %s (%s): %w", s.ID, s.Dir, err)
	}
	unlock, err := lock(s.Root)
	if err != nil {
		return err
	}
	defer unlock()
	if err := s.restoreSysctls(); err != nil {
		return err
	}
	return s.removeDir()
}

// Sweep removes the remains of clusters whose owner is gone without having removed them.
func Sweep(ctx context.Context, root string, log io.Writer) error {
	states, err := List(root)
	if err != nil {
		return err
	}
	var errs []error
	for _, s := range states {
		if s.Kept || s.Owner.Alive() {
			continue
		}
		fmt.Fprintf(log, "removing what cluster %s (%s) left behind\n", s.Name, s.ID)
		errs = append(errs, s.Remove(ctx))
	}
	return errors.Join(errs...)
}

// removeMounts removes mounts below the state directory. There should be none: nodes
// mount in namespaces of their own.
func (s *State) removeMounts() error {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(s.Dir))
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	var errs []error
	for i := len(mounts) - 1; i >= 0; i-- {
		if err := unix.Unmount(mounts[i].Mountpoint, unix.MNT_DETACH); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", mounts[i].Mountpoint, err))
		}
	}
	return errors.Join(errs...)
}

// removeLinks removes the bridge and the host's ends of the nodes' links. The kernel
// removes those by itself, some time after the node's namespace is gone.
func (s *State) removeLinks(ctx context.Context) error {
	for {
		links, err := s.links()
		if err != nil || len(links) == 0 {
			return err
		}
		var failed error
		for _, l := range links {
			out, err := exec.CommandContext(ctx, "ip", "link", "delete", l).CombinedOutput()
			if err != nil {
				failed = fmt.Errorf("remove network link %s: %w: %s", l, err, out)
			}
		}
		if failed != nil {
			// Gone meanwhile, or busy: the next look shows it.
			if err := pause(ctx); err != nil {
				return failed
			}
		}
	}
}

// RemoveLink removes one of the cluster's links, if it is still there.
func (s *State) RemoveLink(ctx context.Context, suffix string) error {
	name := s.Link(suffix)
	for {
		links, err := s.links()
		if err != nil || !slices.Contains(links, name) {
			return err
		}
		out, err := exec.CommandContext(ctx, "ip", "link", "delete", name).CombinedOutput()
		// After an error it may be gone nevertheless: the next look shows it.
		if err != nil && pause(ctx) != nil {
			return fmt.Errorf("remove network link %s: %w: %s", name, err, out)
		}
	}
}

func (s *State) links() ([]string, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list network links: %w", err)
	}
	var names []string
	for _, i := range all {
		if strings.HasPrefix(i.Name, s.Link("")) {
			names = append(names, i.Name)
		}
	}
	return names, nil
}

// Cgroups returns the cluster's control groups as directories, one a hierarchy.
func (s *State) Cgroups() ([]string, error) {
	v2 := "/sys/fs/cgroup" + s.Cgroup()
	v1, err := filepath.Glob("/sys/fs/cgroup/*" + s.Cgroup())
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(v2); err == nil {
		v1 = append(v1, v2)
	}
	return v1, nil
}

// RemoveCgroup kills what runs in the control group of that name below the cluster's, and
// removes it.
func (s *State) RemoveCgroup(ctx context.Context, name string) error {
	groups, err := s.Cgroups()
	if err != nil {
		return err
	}
	for _, g := range groups {
		if err := s.killCgroup(ctx, name); err != nil {
			return err
		}
		if err := removeGroup(ctx, filepath.Join(g, name)); err != nil {
			return err
		}
	}
	return nil
}

func (s *State) removeCgroups(ctx context.Context) error {
	groups, err := s.Cgroups()
	if err != nil {
		return err
	}
	var errs []error
	for _, g := range groups {
		errs = append(errs, removeGroup(ctx, g))
	}
	return errors.Join(errs...)
}

func removeGroup(ctx context.Context, dir string) error {
	for {
		err := removeTree(dir)
		if err == nil {
			return nil
		}
		// The kernel counts a process for a moment longer than /proc shows it.
		if pause(ctx) != nil {
			return fmt.Errorf("remove control group %s: %w", dir, err)
		}
	}
}

// removeTree removes a control group and those below it; their files can't be
// removed and need not be.
func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

// restoreSysctls puts the kernel's settings back when no other cluster needs the
// kubelets' values. The caller holds the lock.
func (s *State) restoreSysctls() error {
	others, err := List(s.Root)
	if err != nil {
		return err
	}
	for _, o := range others {
		if o.ID != s.ID && len(o.Sysctls) > 0 {
			return nil
		}
	}
	for name, value := range s.Sysctls {
		path := "/proc/sys/" + name
		if now, err := os.ReadFile(path); err == nil && string(now) == value {
			continue
		}
		if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
			return fmt.Errorf("restore the kernel setting %s to %s: %w", name, strings.TrimSpace(value), err)
		}
	}
	return nil
}

// removeDir removes the state directory but keeps the logs of the last cluster of
// this name, to find out what went wrong.
func (s *State) removeDir() error {
	kept := filepath.Join(s.Root, "logs", s.Name)
	if logs := filepath.Join(s.Dir, "logs"); s.Name != "" {
		if _, err := os.Stat(logs); err == nil {
			if err := os.RemoveAll(kept); err != nil {
				return err
			}
			if err := os.MkdirAll(filepath.Dir(kept), 0o755); err != nil {
				return err
			}
			// Another file system: the logs are not worth a copy.
			_ = os.Rename(logs, kept)
		}
	}
	if err := os.RemoveAll(s.Dir); err != nil {
		return err
	}
	return os.RemoveAll(filepath.Join(s.Root, s.ID))
}
