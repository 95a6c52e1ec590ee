// Package mounts reads the mount table of this process: by device, by mount point, and the bind mounts of a device's
// own node. Nothing else in the agent parses it.
//
// Mounts in other mount namespaces are not in this table: package holders reads those.
package mounts

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Mount is one line of the mount table.
type Mount struct{ *mountinfo.Info }

// Device is the number of the device with the file system.
func (m Mount) Device() uint64 { return unix.Mkdev(uint32(m.Major), uint32(m.Minor)) }

// ReadOnly reports whether this mount is read-only. Its file system may be writable.
func (m Mount) ReadOnly() bool { return slices.Contains(strings.Split(m.Options, ","), "ro") }

// Shared is the peer group that the mount propagates to and receives from, 0 if there is none.
func (m Mount) Shared() int { return m.peerGroup("shared:") }

// Master is the peer group that the mount only receives from, 0 if there is none.
func (m Mount) Master() int { return m.peerGroup("master:") }

// peerGroup returns the number behind the tag in the optional fields, 0 if there is none.
func (m Mount) peerGroup(tag string) int {
	for field := range strings.FieldsSeq(m.Optional) {
		if number, ok := strings.CutPrefix(field, tag); ok {
			if n, err := strconv.Atoi(number); err == nil {
				return n
			}
		}
	}
	return 0
}

// Table is the mount table, in the kernel's order: of two mounts on one path the later is visible.
type Table []Mount

// Read reads the table of this process.
func Read() (Table, error) {
	infos, err := mountinfo.GetMounts(nil)
	return tableOf(infos, err)
}

// ReadFrom reads a table in the format of /proc/PID/mountinfo.
func ReadFrom(r io.Reader) (Table, error) {
	infos, err := mountinfo.GetMountsFromReader(r, nil)
	return tableOf(infos, err)
}

func tableOf(infos []*mountinfo.Info, err error) (Table, error) {
	if err != nil {
		return nil, fmt.Errorf("cannot read the mount table: %w", err)
	}
	t := make(Table, len(infos))
	for i, info := range infos {
		t[i] = Mount{info}
	}
	return t, nil
}

// Of returns the mounts of the file system on a device. It compares the numbers: the name in the table may be the name
// of another device by now.
func (t Table) Of(device uint64) []Mount {
	return t.filter(func(m Mount) bool { return m.Device() == device })
}

// At returns the visible mount on a path. The path is compared unchanged, see Resolve.
func (t Table) At(path string) (Mount, bool) {
	for _, m := range slices.Backward(t) {
		if m.Mountpoint == path {
			return m, true
		}
	}
	return Mount{}, false
}

// Below returns the mounts below a path, without one on the path itself.
func (t Table) Below(path string) []Mount {
	prefix := strings.TrimSuffix(path, "/") + "/"
	return t.filter(func(m Mount) bool { return m.Mountpoint != path && strings.HasPrefix(m.Mountpoint, prefix) })
}

// Holding returns the mount that a path lies on, or that is mounted on it.
func (t Table) Holding(path string) (Mount, bool) {
	for {
		if m, ok := t.At(path); ok {
			return m, true
		}
		parent := filepath.Dir(path)
		if parent == path {
			return Mount{}, false
		}
		path = parent
	}
}

// BindsOf returns the bind mounts of a block device's node, which a raw block volume has.
func (t Table) BindsOf(device uint64) []Mount {
	name := kernelName(device)
	return t.filter(func(m Mount) bool {
		if number, ok := m.Node("/"); ok && number == device {
			return true
		}
		// Another mount may hide it, and then only its name is visible.
		return m.FSType == "devtmpfs" && name != "" && m.Root == "/"+name
	})
}

// Node returns the block device whose node is mounted here. The node is on devtmpfs, or on a tmpfs where the host is a
// container. Mounts of other file systems are skipped, because they may hang. The table's mount points begin at root,
// such as /proc/PID/root.
func (m Mount) Node(root string) (device uint64, ok bool) {
	if m.Root == "/" || m.FSType != "devtmpfs" && m.FSType != "tmpfs" {
		return 0, false
	}
	var st unix.Stat_t
	err := unix.Lstat(filepath.Join(root, m.Mountpoint), &st)
	return st.Rdev, err == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK
}

func (t Table) filter(is func(Mount) bool) []Mount {
	var found []Mount
	for _, m := range t {
		if is(m) {
			found = append(found, m)
		}
	}
	return found
}

// OfDevice returns the mounts of the file system on the device with that path.
func OfDevice(path string) ([]Mount, error) { return ofDevice(path, Table.Of) }

// BindsOfDevice returns the bind mounts of the device's node, see Table.BindsOf.
func BindsOfDevice(path string) ([]Mount, error) { return ofDevice(path, Table.BindsOf) }

func ofDevice(path string, which func(Table, uint64) []Mount) ([]Mount, error) {
	device, err := Number(path)
	if err != nil {
		return nil, err
	}
	t, err := Read()
	if err != nil {
		return nil, err
	}
	return which(t, device), nil
}

// At returns the visible mount on a path, see Resolve.
func At(path string) (Mount, bool, error) {
	t, err := Read()
	if err != nil {
		return Mount{}, false, err
	}
	m, ok := t.At(Resolve(path))
	return m, ok, nil
}

// Resolve returns the path as it is in the mount table: the kubelet's path may contain a link. The last element is not
// resolved. It is never a link, and a broken file system that is mounted there cannot be read.
func Resolve(path string) string {
	if parent, err := filepath.EvalSymlinks(filepath.Dir(path)); err == nil {
		return filepath.Join(parent, filepath.Base(path))
	}
	return path
}

// SameDevice reports whether both paths lead to the same block device.
func SameDevice(a, b string) bool {
	x, err := Number(a)
	if err != nil {
		return false
	}
	y, err := Number(b)
	return err == nil && x == y
}

var errNoDevice = errors.New("not a block device")

// Number returns the number of a block device.
func Number(path string) (uint64, error) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, fmt.Errorf("device %s: %w", path, err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || info.Mode().Type() != fs.ModeDevice {
		return 0, fmt.Errorf("%s: %w", path, errNoDevice)
	}
	return st.Rdev, nil
}

// kernelName is the name of a device below /dev, empty if the kernel does not know the number.
func kernelName(device uint64) string {
	target, err := os.Readlink(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(device), unix.Minor(device)))
	if err != nil {
		return ""
	}
	return strings.ReplaceAll(filepath.Base(target), "!", "/")
}
