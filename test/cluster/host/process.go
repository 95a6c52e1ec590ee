package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Process identifies a process for as long as the machine is up: process IDs are
// used again, a process ID with its start time is not.
type Process struct {
	PID int `json:"pid"`
	// Start is in clock ticks since boot (field 22 of /proc/<pid>/stat).
	Start string `json:"start"`
}

// Self is the calling process.
func Self() (Process, error) {
	start, err := startTime(os.Getpid())
	if err != nil {
		return Process{}, err
	}
	return Process{PID: os.Getpid(), Start: start}, nil
}

// Alive says whether the process still runs.
func (p Process) Alive() bool {
	start, err := startTime(p.PID)
	return err == nil && start == p.Start
}

func startTime(pid int) (string, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	// The second field is the program's name in parentheses and may hold anything.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	const state, start = 0, 19
	if len(fields) <= start {
		return "", fmt.Errorf("/proc/%d/stat has only %d fields", pid, len(fields))
	}
	if fields[state] == "Z" {
		return "", fmt.Errorf("process %d has ended", pid)
	}
	return fields[start], nil
}

// Processes returns the IDs of the cluster's processes: those that inherited the
// cluster's mark, and those of pods, which have an environment of their own but live
// in the cluster's control group.
func (s *State) Processes() ([]int, error) { return processes(s.component("")) }

// processes returns those that belong.
func processes(belongs func(pid int) bool) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() || !belongs(pid) {
			continue
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// component matches the processes of a component and what it started; empty means all of
// the cluster.
func (s *State) component(name string) func(pid int) bool {
	return func(pid int) bool { return s.owns(pid, name) }
}

func (s *State) owns(pid int, component string) bool {
	// Unreadable means that it has ended, or is no process of this user.
	if _, err := startTime(pid); err != nil {
		return false
	}
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	environ, err := os.ReadFile(filepath.Join(dir, "environ"))
	if err != nil {
		return false
	}
	variables := strings.Split(string(environ), "\x00")
	if slices.Contains(variables, idVariable+"="+s.ID) {
		return component == "" || slices.Contains(variables, componentVariable+"="+component)
	}
	return component == "" && inCgroup(dir, s.Cgroup())
}

// inCgroup says whether the process of that directory is in the control group or below it.
func inCgroup(dir, group string) bool {
	cgroups, err := os.ReadFile(filepath.Join(dir, "cgroup"))
	if err != nil {
		return false
	}
	for line := range strings.SplitSeq(string(cgroups), "\n") {
		if _, path, ok := strings.Cut(line, group); ok && (path == "" || path[0] == '/') {
			return true
		}
	}
	return false
}

// Kill ends a component and everything that it started; empty means all processes of
// the cluster. New ones may appear while it does so (a shim that starts a container),
// so it looks again until it finds none.
func (s *State) Kill(ctx context.Context, component string) error {
	return kill(ctx, s.component(component))
}

// killCgroup ends what runs in the control group of that name below the cluster's.
func (s *State) killCgroup(ctx context.Context, name string) error {
	group := filepath.Join(s.Cgroup(), name)
	return kill(ctx, func(pid int) bool {
		_, err := startTime(pid)
		return err == nil && inCgroup(filepath.Join("/proc", strconv.Itoa(pid)), group)
	})
}

func kill(ctx context.Context, belongs func(pid int) bool) error {
	for {
		pids, err := processes(belongs)
		if err != nil || len(pids) == 0 {
			return err
		}
		if err := killAll(ctx, pids, belongs); err != nil {
			return err
		}
	}
}

// killAll signals all processes before it waits for any.
func killAll(ctx context.Context, pids []int, belongs func(pid int) bool) error {
	var killed []int
	defer func() {
		for _, fd := range killed {
			unix.Close(fd)
		}
	}()
	for _, pid := range pids {
		fd, err := killOne(pid, belongs)
		if err != nil {
			return err
		}
		if fd >= 0 {
			killed = append(killed, fd)
		}
	}
	for _, fd := range killed {
		if err := waitEnded(ctx, fd); err != nil {
			return fmt.Errorf("wait for processes %v to end: %w", pids, err)
		}
	}
	return nil
}

// killOne signals through a descriptor of the process and looks again after opening
// it, so that it can't hit another process that was given the same ID. It returns the
// descriptor, or -1 when the process has ended.
func killOne(pid int, belongs func(pid int) bool) (fd int, err error) {
	fd, err = unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return -1, nil
	}
	if err != nil {
		return -1, fmt.Errorf("open process %d: %w", pid, err)
	}
	if !belongs(pid) {
		unix.Close(fd)
		return -1, nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		unix.Close(fd)
		return -1, fmt.Errorf("end process %d: %w", pid, err)
	}
	return fd, nil
}

// waitEnded waits until the last thread of a process has ended. /proc is no witness
// for that: it shows the process as a zombie as soon as its first thread is one, while
// others still hold its files.
func waitEnded(ctx context.Context, fd int) error {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100)
		if n > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// pause is the interval at which clean-up looks whether the kernel is done; it has
// no event for these.
func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(20 * time.Millisecond):
		return nil
	}
}
