package holders

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// readProcesses reads the mounts and the open files of all processes in proc.
func (s *System) readProcesses(ctx context.Context, proc string) {
	entries, err := os.ReadDir(proc)
	if err != nil {
		s.addUnchecked("processes cannot be listed: %v", err)
		return
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	if !showsHost(proc) {
		s.addUnchecked("only the processes of the agent's own container are visible: set hostPID")
	}
	found := namespaces{byName: map[string]*namespace{}, host: hostNamespace(proc)}
	unreadable := 0
	for _, pid := range pids {
		if ctx.Err() != nil {
			return
		}
		p := process{dir: filepath.Join(proc, strconv.Itoa(pid)), pid: pid}
		mounted, err := found.add(p)
		err = errors.Join(err, p.addFiles(s, mounted))
		if err != nil && !hasEnded(err) {
			unreadable++
		}
	}
	found.addTo(s)
	if unreadable > 0 {
		s.addUnchecked("%d processes could not be looked at in full", unreadable)
	}
}

// initialNamespace names the PID namespace with which the kernel starts. Its inode is a constant of the kernel.
const initialNamespace = "pid:[4026531836]"

// showsHost reports whether proc shows the processes of the whole node. Without hostPID process 1 is of the agent's own
// container. A node that is a container itself has no initial namespace, but its process 1 is in another mount
// namespace than the agent.
func showsHost(proc string) bool {
	if own, err := os.Readlink(filepath.Join(proc, "self/ns/pid")); err == nil && own == initialNamespace {
		return true
	}
	own, err := os.Readlink(filepath.Join(proc, "self/ns/mnt"))
	if err != nil {
		return false
	}
	first, err := os.Readlink(filepath.Join(proc, "1/ns/mnt"))
	return err == nil && first != own
}

// hasEnded reports whether a process ended while it was read. A kernel thread and a zombie have no mounts, which reads
// as EINVAL.
func hasEnded(err error) bool {
	for _, gone := range []error{fs.ErrNotExist, unix.ESRCH, unix.EINVAL} {
		if errors.Is(err, gone) {
			return true
		}
	}
	return false
}

// process is a process that is being read.
type process struct {
	dir string
	pid int
}

// identify reads the identity of the process. It is called for holders only.
func (p process) identify() Process {
	command, _ := os.ReadFile(filepath.Join(p.dir, "comm"))
	cgroup, _ := os.ReadFile(filepath.Join(p.dir, "cgroup"))
	self, _ := os.Readlink(filepath.Join(filepath.Dir(p.dir), "self"))
	return Process{
		PID: p.pid, Command: strings.TrimSpace(string(command)), PodUID: podOf(string(cgroup)),
		Own: self == filepath.Base(p.dir),
	}
}

// podName is a pod in the name of a cgroup: with dashes, with underscores as systemd writes it, or a static pod's hash.
var podName = regexp.MustCompile(`pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})\b`)

// podOf returns the UID of the pod that the cgroup names, or nothing.
func podOf(cgroup string) string {
	found := podName.FindStringSubmatch(cgroup)
	if found == nil {
		return ""
	}
	return strings.ReplaceAll(found[1], "_", "-")
}

// addFiles adds the devices that the process has open. An open file on a device is reported unless the file system is
// mounted in the process's namespace: then the mount is reported. mounted is nil if the table cannot be read, and then
// open files are left out.
func (p process) addFiles(s *System, mounted map[uint64]bool) error {
	threads, err := p.threads()
	for _, dir := range threads {
		entries, readErr := os.ReadDir(filepath.Join(dir, "fd"))
		if readErr != nil {
			err = readErr
			continue
		}
		paths := []string{filepath.Join(dir, "cwd"), filepath.Join(dir, "root")}
		for _, e := range entries {
			paths = append(paths, filepath.Join(dir, "fd", e.Name()))
		}
		for _, path := range paths {
			p.addFile(s, path, mounted)
		}
	}
	return err
}

// threads are the folders with the process's descriptors. Threads share them, so the first one is enough, unless it has
// ended: a killed process can have other threads that wait for a disk.
func (p process) threads() ([]string, error) {
	stat, _ := os.ReadFile(filepath.Join(p.dir, "stat"))
	if _, after, _ := strings.Cut(string(stat), ") "); !strings.HasPrefix(after, "Z") {
		return []string{p.dir}, nil
	}
	entries, err := os.ReadDir(filepath.Join(p.dir, "task"))
	var dirs []string
	for _, e := range entries {
		if e.Name() != strconv.Itoa(p.pid) {
			dirs = append(dirs, filepath.Join(p.dir, "task", e.Name()))
		}
	}
	return dirs, err
}

// addFile adds the device that one open file is, or is on.
func (p process) addFile(s *System, path string, mounted map[uint64]bool) {
	var st unix.Statx_t
	// DONT_SYNC: it sends no request to a file server, which may hang.
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st); err != nil {
		return // closed meanwhile
	}
	fileSystem := unix.Mkdev(st.Dev_major, st.Dev_minor)
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFBLK:
		device := unix.Mkdev(st.Rdev_major, st.Rdev_minor)
		name, _ := os.Readlink(path)
		s.add(device, Holder{Kind: Open, Name: name, Process: p.identify(), Writing: isWritable(path)})
	// Devices with major number 0 are of file systems without a block device.
	case mounted != nil && st.Dev_major != 0 && !mounted[fileSystem]:
		name, _ := os.Readlink(path)
		s.add(fileSystem, Holder{Kind: File, Name: name, Process: p.identify()})
	}
}

// isWritable reports whether a descriptor is open for writing.
func isWritable(fd string) bool {
	info, err := os.ReadFile(filepath.Join(filepath.Dir(filepath.Dir(fd)), "fdinfo", filepath.Base(fd)))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(info)) {
		var flags int
		if _, err := fmt.Sscanf(line, "flags: %o", &flags); err == nil {
			return flags&unix.O_ACCMODE != unix.O_RDONLY
		}
	}
	return false
}
