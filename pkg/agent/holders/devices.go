package holders

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/singleflight"
	"golang.org/x/sys/unix"
)

// readDevices finds the block devices that lie on others. dir is /sys/dev/block: every entry is named after a device's
// number and leads to the device's folder.
func (s *System) readDevices(ctx context.Context, dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		s.addUnchecked("the kernel's block devices cannot be listed: %v", err)
		return
	}
	for _, e := range entries {
		device, ok := parseNumber(e.Name())
		if !ok {
			continue
		}
		folder := filepath.Join(dir, e.Name())
		above, err := os.ReadDir(filepath.Join(folder, "holders"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODEV) {
			s.addUnchecked("the holders of device %s cannot be listed: %v", e.Name(), err)
		}
		for _, holder := range above {
			name := nameWithLabel(holder.Name(), filepath.Join(folder, "holders", holder.Name()))
			s.add(device, Holder{Kind: Kernel, Name: name})
		}
		s.readLoop(folder)
	}
	s.collectLoops(ctx)
}

// nameWithLabel is a device's name with its label.
func nameWithLabel(name, folder string) string {
	for _, file := range []string{"dm/name", "md/level"} {
		if label, err := os.ReadFile(filepath.Join(folder, file)); err == nil && len(bytes.TrimSpace(label)) > 0 {
			return fmt.Sprintf("%s (%s)", name, bytes.TrimSpace(label))
		}
	}
	return name
}

// readLoop adds a loop device to the holders of the block device that it lies on, because the kernel does not list it
// there. If the path alone does not identify that device, the loop device is opened, which may hang.
func (s *System) readLoop(folder string) {
	backing, err := os.ReadFile(filepath.Join(folder, "loop/backing_file"))
	if err != nil {
		return // not a loop device, or not a bound one
	}
	path := strings.TrimSuffix(string(bytes.TrimSpace(backing)), " (deleted)")
	name := loopName(folder)
	// For a path in this process's /dev the loop device need not be opened.
	if strings.HasPrefix(path, "/dev/") {
		if device, err := numberOf(path); err == nil {
			s.add(device, Holder{Kind: Loop, Name: name})
			return
		}
	}
	s.loopRequests = append(s.loopRequests, loopRequest{name, runningLoopRequests.DoChan(name, func() (any, error) { return s.backingDevice("/dev/" + name) })})
}

// loopRequest is a request to a loop device.
type loopRequest struct {
	loop   string
	answer <-chan singleflight.Result
}

// runningLoopRequests runs at most one request to each loop device at a time. A call that hangs in the kernel stays
// with the process, and later searches share it.
var runningLoopRequests singleflight.Group

// loopTimeout is how long a loop device may take to answer. One over a file on a file system that hangs never does.
const loopTimeout = time.Second

// collectLoops collects the answers of the loop devices.
func (s *System) collectLoops(ctx context.Context) {
	timer := time.NewTimer(s.loopTimeout)
	defer timer.Stop()
	for _, q := range s.loopRequests {
		select {
		case r := <-q.answer:
			s.addLoop(q.loop, r)
			continue
		default:
		}
		select {
		case r := <-q.answer:
			s.addLoop(q.loop, r)
		case <-ctx.Done():
			return
		case <-timer.C:
			timer.Reset(0)
			s.addUnchecked("loop device %s hangs: what it lies on is not known; look at the file system of its file", q.loop)
		}
	}
}

func (s *System) addLoop(loop string, r singleflight.Result) {
	if r.Err != nil {
		s.addUnchecked("what loop device %s lies on is not known: %v", loop, r.Err)
	} else if device, _ := r.Val.(uint64); device != 0 {
		s.add(device, Holder{Kind: Loop, Name: loop})
	}
}

// loopName is the name of the loop device with that folder in sysfs.
func loopName(folder string) string {
	if resolved, err := filepath.EvalSymlinks(folder); err == nil {
		return filepath.Base(resolved)
	}
	return filepath.Base(folder)
}

// backingDevice is the block device that a loop device lies on, or 0 if it lies on a file.
func backingDevice(loop string) (uint64, error) {
	f, err := os.OpenFile(loop, os.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if errors.Is(err, unix.ENXIO) {
		return 0, nil // unbound meanwhile
	}
	if err != nil {
		return 0, err
	}
	return info.Rdevice, nil
}

// readSwaps finds the devices in /proc/swaps.
func (s *System) readSwaps(file string) {
	content, err := os.ReadFile(file)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			s.addUnchecked("swap space cannot be listed: %v", err)
		}
		return
	}
	for line := range strings.Lines(string(content)) {
		path, _, _ := strings.Cut(line, " ")
		if device, err := numberOf(path); err == nil {
			s.add(device, Holder{Kind: Swap, Name: path})
		}
	}
}

// addUnchecked records what could not be looked at.
func (s *System) addUnchecked(format string, args ...any) {
	s.unchecked = append(s.unchecked, fmt.Sprintf(format, args...))
}

// parseNumber parses a device's number as sysfs has it, such as 8:17.
func parseNumber(text string) (uint64, bool) {
	a, b, ok := strings.Cut(text, ":")
	major, err := strconv.ParseUint(a, 10, 32)
	if !ok || err != nil {
		return 0, false
	}
	minor, err := strconv.ParseUint(b, 10, 32)
	return unix.Mkdev(uint32(major), uint32(minor)), err == nil
}

// numberOf is the number of the block device with that path.
func numberOf(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, fmt.Errorf("device %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return 0, fmt.Errorf("%s is not a block device", path)
	}
	return st.Rdev, nil
}
