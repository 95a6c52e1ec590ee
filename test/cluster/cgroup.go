package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const cgroupRoot = "/sys/fs/cgroup"

// makeCgroup makes the control group in which a node's pods live, in every
// hierarchy: the kubelet wants it to be there.
func (c *Cluster) makeCgroup(n *Node) error {
	hierarchies, unified, err := cgroupHierarchies()
	if err != nil {
		return err
	}
	for _, h := range hierarchies {
		dir := h
		for _, name := range []string{c.state.Cgroup(), n.Name} {
			parent := dir
			dir = filepath.Join(dir, name)
			if unified {
				if err := delegateControllers(parent); err != nil {
					return err
				}
			}
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("make the control group of %s: %w", n.Name, err)
			}
			if !unified {
				if err := inheritCPUs(parent, dir); err != nil {
					return err
				}
			}
		}
		if unified {
			if err := delegateControllers(dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// cgroupHierarchies returns the mounted hierarchies: the one of version 2, or those
// of version 1.
func cgroupHierarchies() (dirs []string, unified bool, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(cgroupRoot, &st); err != nil {
		return nil, false, fmt.Errorf("look at %s: %w", cgroupRoot, err)
	}
	if st.Type == unix.CGROUP2_SUPER_MAGIC {
		return []string{cgroupRoot}, true, nil
	}
	entries, err := os.ReadDir(cgroupRoot)
	if err != nil {
		return nil, false, err
	}
	for _, e := range entries {
		dir := filepath.Join(cgroupRoot, e.Name())
		// Links (cpu -> cpu,cpuacct) name a hierarchy that is listed anyway.
		if !e.IsDir() || unix.Statfs(dir, &st) != nil || st.Type != unix.CGROUP_SUPER_MAGIC {
			continue
		}
		dirs = append(dirs, dir)
	}
	if len(dirs) == 0 {
		return nil, false, fmt.Errorf("no control groups are mounted below %s", cgroupRoot)
	}
	return dirs, false, nil
}

// inheritCPUs fills what a new cpuset lacks; nothing can join one without.
func inheritCPUs(parent, dir string) error {
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		value, err := os.ReadFile(filepath.Join(parent, name))
		if errors.Is(err, fs.ErrNotExist) {
			return nil // another hierarchy
		}
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), value, 0o644); err != nil {
			return fmt.Errorf("fill %s of %s: %w", name, dir, err)
		}
	}
	return nil
}

// delegateControllers enables all controllers that dir has for the groups below it
// (version 2).
func delegateControllers(dir string) error {
	have, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return err
	}
	for controller := range strings.FieldsSeq(string(have)) {
		err := enableController(dir, controller)
		if errors.Is(err, unix.EBUSY) {
			// In a container, its processes sit where only the root of the machine may
			// have both processes and controllers.
			if err = moveProcesses(dir, filepath.Join(dir, "init")); err == nil {
				err = enableController(dir, controller)
			}
		}
		if err != nil && isNeeded(controller) {
			return fmt.Errorf("enable the %s controller below %s: %w", controller, dir, err)
		}
	}
	return nil
}

// isNeeded says whether the kubelet insists on the controller.
func isNeeded(controller string) bool {
	switch controller {
	case "cpu", "cpuset", "memory", "pids", "hugetlb":
		return true
	}
	return false
}

func enableController(dir, controller string) error {
	file := filepath.Join(dir, "cgroup.subtree_control")
	if now, err := os.ReadFile(file); err == nil && bytes.Contains(append([]byte(" "), bytes.ReplaceAll(now, []byte("\n"), []byte(" "))...), []byte(" "+controller+" ")) {
		return nil
	}
	return os.WriteFile(file, []byte("+"+controller), 0o644)
}

// moveProcesses moves the processes of a control group into another one.
func moveProcesses(from, to string) error {
	if err := os.Mkdir(to, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	pids, err := os.ReadFile(filepath.Join(from, "cgroup.procs"))
	if err != nil {
		return err
	}
	for pid := range strings.FieldsSeq(string(pids)) {
		err := os.WriteFile(filepath.Join(to, "cgroup.procs"), []byte(pid), 0o644)
		if err != nil && !errors.Is(err, unix.ESRCH) && pid != "0" {
			return fmt.Errorf("move process %s to %s: %w", pid, to, err)
		}
	}
	return nil
}
