package mounts

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berthdev/berth/test/testenv"
)

// exampleTable is a node's: a disk mounted twice, a raw block volume, and the kubelet's folder.
const exampleTable = `22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
23 22 0:5 / /dev rw,nosuid shared:2 - devtmpfs udev rw
30 22 0:40 / /var/lib/kubelet rw shared:7 master:3 - tmpfs tmpfs rw
31 30 8:17 / /var/lib/kubelet/pods/a/mount rw,relatime master:9 - ext4 /dev/sdb1 rw
32 30 8:17 /sub /var/lib/kubelet/pods/b/mount ro,relatime - ext4 /dev/sdb1 rw
33 30 0:5 /sdc /var/lib/kubelet/plugins/c rw - devtmpfs udev rw
34 31 0:41 / /var/lib/kubelet/pods/a/mount ro - tmpfs tmpfs rw
35 22 0:42 / /var/lib/kubelet2 rw propagate_from:4 - tmpfs tmpfs rw
`

func read(t *testing.T) Table {
	t.Helper()
	found, err := ReadFrom(strings.NewReader(exampleTable))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func ids(found []Mount) string {
	var all []string
	for _, m := range found {
		all = append(all, strconv.Itoa(m.ID))
	}
	return strings.Join(all, " ")
}

// TestTable asserts what is found in a table by device, by path and below a path.
func TestTable(t *testing.T) {
	mounts := read(t)
	if got := ids(mounts.Of(unix.Mkdev(8, 17))); got != "31 32" {
		t.Errorf("mounts of 8:17: %s", got)
	}
	if got := mounts.Of(unix.Mkdev(8, 1)); got != nil {
		t.Errorf("mounts of 8:1: %v", got)
	}
	for path, want := range map[string]int{
		"/":                             22,
		"/var/lib/kubelet":              30,
		"/var/lib/kubelet/pods/a/mount": 34, // the later one hides the earlier one
		"/var/lib":                      0,
	} {
		m, ok := mounts.At(path)
		if ok != (want != 0) || ok && m.ID != want {
			t.Errorf("At(%s): %v, %v", path, m, ok)
		}
	}
	for path, want := range map[string]int{
		"/var/lib/kubelet/pods/a/mount/x/y": 34,
		"/var/lib/kubelet/pods":             30,
		"/var/lib/kubelet3":                 22,
		"/":                                 22,
	} {
		if m, ok := mounts.Holding(path); !ok || m.ID != want {
			t.Errorf("Holding(%s): %v, %v", path, m, ok)
		}
	}
	if got := ids(mounts.Below("/var/lib/kubelet")); got != "31 32 33 34" {
		t.Errorf("Below: %s", got)
	}
	if _, err := ReadFrom(strings.NewReader("nonsense\n")); err == nil {
		t.Error("a broken table was read")
	}
	if _, ok := (Table{}).Holding("/x"); ok {
		t.Error("an empty table holds /x")
	}
}

// TestPropagation asserts that the optional fields are distinguished.
func TestPropagation(t *testing.T) {
	for _, m := range read(t) {
		want := map[int][2]int{22: {1, 0}, 23: {2, 0}, 30: {7, 3}, 31: {0, 9}}[m.ID]
		if got := [2]int{m.Shared(), m.Master()}; got != want {
			t.Errorf("mount %d: shared and master are %v, want %v", m.ID, got, want)
		}
		if want := m.ID == 32 || m.ID == 34; m.ReadOnly() != want {
			t.Errorf("mount %d: read-only is %v", m.ID, !want)
		}
	}
}

// TestBindsOf asserts that a bind mount of a device's node is found by number, also below another mount. Another
// device's is not.
func TestBindsOf(t *testing.T) {
	testenv.NeedRoot(t)
	one, other := devices(t)
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	node := filepath.Join(dir, "node")
	for at, device := range map[string]string{"one": one, "other": other} {
		target := filepath.Join(dir, at)
		if err := os.WriteFile(target, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount(device, target, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
	}
	check := func(want ...string) {
		t.Helper()
		found, err := BindsOfDevice(one)
		if err != nil {
			t.Fatal(err)
		}
		var at []string
		for _, m := range found {
			if strings.HasPrefix(m.Mountpoint, dir) {
				at = append(at, strings.TrimPrefix(m.Mountpoint, dir+"/"))
			}
		}
		if strings.Join(at, " ") != strings.Join(want, " ") {
			t.Errorf("bind mounts of %s: %v, want %v", one, at, want)
		}
	}
	check("one")
	// The same device under another name, in a tmpfs like on a node that is a container.
	if number, err := Number(one); err != nil {
		t.Fatal(err)
	} else if err := unix.Mknod(node, unix.S_IFBLK|0o600, int(number)); err != nil {
		t.Fatal(err)
	}
	bound := filepath.Join(dir, "bound")
	if err := os.WriteFile(bound, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(node, bound, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	check("one", "bound")
	if err := unix.Mount(other, filepath.Join(dir, "one"), "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	check("one", "bound")
	if !SameDevice(node, one) || SameDevice(one, other) || SameDevice(one, dir) || SameDevice(dir, one) {
		t.Error("SameDevice is wrong")
	}
	if _, err := OfDevice(dir); err == nil {
		t.Error("a folder is taken for a device")
	}
}

// devices are two block devices, which need no medium to be bind-mounted.
func devices(t *testing.T) (one, other string) {
	t.Helper()
	found, err := filepath.Glob("/dev/loop[0-9]*")
	if err != nil || len(found) < 2 {
		testenv.SkipUnfit(t, "two loop devices are needed: %v, %v", found, err)
	}
	return found[0], found[1]
}

// TestAt asserts that a path with a link is found, and a path without a mount is not.
func TestAt(t *testing.T) {
	testenv.NeedRoot(t)
	dir := t.TempDir()
	target := filepath.Join(dir, "real", "target")
	if err := os.MkdirAll(target, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("real", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "link", "target")
	if m, ok, err := At(path); ok || err != nil {
		t.Errorf("nothing is mounted, and yet there is %v, %v", m, err)
	}
	if err := unix.Mount("none", target, "tmpfs", unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(target, unix.MNT_DETACH)
	if m, ok, err := At(path); !ok || err != nil || m.FSType != "tmpfs" || !m.ReadOnly() {
		t.Errorf("At(%s): %v, %v, %v", path, m, ok, err)
	}
}
