package holders

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthdev/berth/test/testenv"
)

// fakeHost is a fake /proc and /sys. Descriptors are links, as in /proc.
type fakeHost struct {
	t *testing.T
	roots
}

func newFakeHost(t *testing.T) fakeHost {
	h := fakeHost{t, roots{t.TempDir(), t.TempDir(), t.TempDir()}}
	h.file(h.sys, "dev/block/.keep", "")
	h.link(h.proc, "self", "77")
	h.process(1, "systemd", "0::/init.scope", "mnt:[1]", "")
	h.process(77, "nodeagent", "0::/kubepods.slice/kubepods-pod00000000_0000_4000_8000_000000000077.slice/x", "mnt:[77]", "")
	h.link(h.proc, "77/ns/pid", "pid:[4026531836]")
	return h
}

func (h fakeHost) file(root, name, content string) {
	h.t.Helper()
	path := filepath.Join(root, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o600)); err != nil {
		h.t.Fatal(err)
	}
}

func (h fakeHost) link(root, name, target string) {
	h.t.Helper()
	path := filepath.Join(root, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.Symlink(target, path)); err != nil {
		h.t.Fatal(err)
	}
}

// process adds a process with a mount table.
func (h fakeHost) process(pid int, comm, cgroup, namespace, mountinfo string) {
	h.t.Helper()
	dir := strconv.Itoa(pid)
	h.file(h.proc, dir+"/comm", comm+"\n")
	h.file(h.proc, dir+"/cgroup", cgroup+"\n")
	h.file(h.proc, dir+"/mountinfo", mountinfo)
	h.file(h.proc, dir+"/fd/0", "")
	h.link(h.proc, dir+"/ns/mnt", namespace)
}

// open adds a descriptor.
func (h fakeHost) open(pid, fd int, path, flags string) {
	h.t.Helper()
	h.link(h.proc, fmt.Sprintf("%d/fd/%d", pid, fd), path)
	h.file(h.proc, fmt.Sprintf("%d/fdinfo/%d", pid, fd), "pos:\t0\nflags:\t"+flags+"\nmnt_id:\t29\n")
}

func (h fakeHost) look() *System {
	h.t.Helper()
	s, err := readSystem(h.t.Context(), h.roots, &System{backingDevice: backingDevice, loopTimeout: time.Minute})
	if err != nil {
		h.t.Fatal(err)
	}
	return s
}

func (h fakeHost) number(device string) uint64 {
	h.t.Helper()
	number, err := numberOf(device)
	if err != nil {
		h.t.Fatal(err)
	}
	return number
}

// loops are two block devices that exist and are not used.
func loops(t *testing.T) (one, other string) {
	t.Helper()
	testenv.NeedRoot(t)
	found, err := filepath.Glob("/dev/loop[0-9]*")
	if err != nil || len(found) < 2 {
		testenv.SkipUnfit(t, "two loop devices are needed: %v, %v", found, err)
	}
	return found[0], found[1]
}

func sentences(found []Holder) (all []string) {
	for _, h := range found {
		all = append(all, h.String())
	}
	return all
}

const podUID = "0f1cb0e4-4edb-4da9-8c91-e8d9878d0441"

// TestEveryKind asserts that each kind of holder is found, with its process and pod, and in a fixed order.
func TestEveryKind(t *testing.T) {
	h := newFakeHost(t)
	one, other := loops(t)
	device := h.number(one)
	number := fmt.Sprintf("%d:%d", unix.Major(device), unix.Minor(device))
	h.file(h.sys, "dev/block/"+number+"/holders/dm-3/dm/name", "vg-data\n")
	h.file(h.sys, "dev/block/"+number+"/holders/md0/md/level", "raid1\n")
	h.file(h.sys, "dev/block/7:99/loop/backing_file", one+"\n")
	h.file(h.sys, "dev/block/7:98/loop/backing_file", other+"\n")
	h.file(h.proc, "swaps", "Filename\tType\n"+one+" partition 1 0 -2\n")
	pod := "0::/kubepods.slice/kubepods-burstable-pod" + strings.ReplaceAll(podUID, "-", "_") + ".slice/cri-containerd-x.scope"
	table := "31 1 " + number + " / /var/lib/mysql rw - ext4 " + one + " rw\n32 1 0:5 / /dev rw - devtmpfs udev rw\n"
	h.process(100, "mysqld", pod, "mnt:[100]", table)
	h.process(101, "mysqld-child", pod, "mnt:[100]", table)
	h.process(102, "dd", "0::/kubepods/besteffort/pod"+podUID+"/c0ffee", "mnt:[102]", "")
	h.open(102, 3, one, "0100002")
	h.open(102, 4, one, "0100000")
	h.open(102, 5, other, "0100001")
	h.process(103, "observer", "0::/", "mnt:[103]", "9 1 0:5 /x /tmp/raw rw - devtmpfs udev rw\n")
	h.link(h.proc, "103/root", "/")
	got := sentences(h.look().Of(device))
	want := []string{
		"it is part of dm-3 (vg-data)",
		"it is part of md0 (raid1)",
		"loop device 7:99 lies on it",
		"it is used as swap",
		"it is mounted at /var/lib/mysql in the mount namespace of process 100 (mysqld) of pod " + podUID,
		"process 102 (dd) of pod " + podUID + " has it open for writing",
		"process 102 (dd) of pod " + podUID + " has it open",
	}
	if !slices.Equal(got, want) {
		t.Errorf("holders:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if short := Describe(h.look().Of(device)); !strings.HasSuffix(short, "; and 3 more") || strings.Count(short, "; ") != 4 {
		t.Errorf("sentence: %s", short)
	}
}

// TestRepresentative asserts how a mount namespace is named: as the host's, or by the first process of a pod in it.
// Otherwise it is named by the first process that is not a kernel thread.
func TestRepresentative(t *testing.T) {
	one, _ := loops(t)
	const pod = "0::/kubepods/besteffort/pod" + podUID + "/c0ffee"
	stat := func(h fakeHost, pid int, flags string) {
		h.file(h.proc, strconv.Itoa(pid)+"/stat", strconv.Itoa(pid)+" (a) (b) S 2 0 0 0 -1 "+flags+" 0 0")
	}
	for name, test := range map[string]struct {
		add  func(h fakeHost, table string)
		want string
	}{
		"the host": {func(h fakeHost, table string) {
			h.file(h.proc, "1/mountinfo", table)
			h.process(2, "kthreadd", "0::/", "mnt:[1]", table)
			h.process(3, "nsenter", pod, "mnt:[1]", table)
		}, "the host's mount namespace"},
		"a container": {func(h fakeHost, table string) {
			h.process(200, "nsenter", "0::/user.slice", "mnt:[200]", table)
			h.process(201, "pause", pod, "mnt:[200]", table)
			h.process(202, "mysqld", pod, "mnt:[200]", table)
		}, "the mount namespace of process 201 (pause) of pod " + podUID},
		"no pod": {func(h fakeHost, table string) {
			h.process(20, "kdevtmpfs", "0::/", "mnt:[200]", table)
			stat(h, 20, "2129984")
			h.process(200, "containerd", "0::/", "mnt:[200]", table)
			stat(h, 200, "4194560")
			h.process(201, "runc", "0::/", "mnt:[200]", table)
		}, "the mount namespace of process 200 (containerd)"},
		"the kernel's alone": {func(h fakeHost, table string) {
			h.process(20, "kdevtmpfs", "0::/", "mnt:[200]", table)
			stat(h, 20, "2129984")
		}, "the mount namespace of process 20 (kdevtmpfs)"},
	} {
		h := newFakeHost(t)
		device := h.number(one)
		test.add(h, fmt.Sprintf("31 1 %d:%d / /data rw - ext4 %s rw\n", unix.Major(device), unix.Minor(device), one))
		if got := sentences(h.look().Of(device)); len(got) != 1 || got[0] != "it is mounted at /data in "+test.want {
			t.Errorf("%s: %q", name, got)
		}
	}
	// Without hostPID process 1 is of the agent's own container.
	h := newFakeHost(t)
	h.link(h.proc, "77/ns/pid.new", "pid:[4026532000]")
	if err := errors.Join(
		os.Rename(filepath.Join(h.proc, "77/ns/pid.new"), filepath.Join(h.proc, "77/ns/pid")),
		os.Remove(filepath.Join(h.proc, "1/ns/mnt")),
	); err != nil {
		t.Fatal(err)
	}
	h.link(h.proc, "1/ns/mnt", "mnt:[77]")
	device := h.number(one)
	h.file(h.proc, "1/mountinfo", fmt.Sprintf("31 1 %d:%d / /data rw - ext4 %s rw\n", unix.Major(device), unix.Minor(device), one))
	if got := sentences(h.look().Of(device)); len(got) != 1 || !strings.Contains(got[0], "of process 77 (nodeagent) of pod") {
		t.Errorf("without hostPID: %q", got)
	}
}

// TestBindInAnotherNamespace asserts that a device node mounted in a container is found by its number, through the
// container's root.
func TestBindInAnotherNamespace(t *testing.T) {
	h := newFakeHost(t)
	one, other := loops(t)
	root := t.TempDir()
	h.process(200, "pause", "0::/", "mnt:[200]", "9 1 0:99 /x /raw rw - tmpfs tmpfs rw\n10 1 0:99 /y /plain rw - tmpfs tmpfs rw\n")
	h.link(h.proc, "200/root", root)
	h.file(root, "plain", "")
	if err := unix.Mknod(filepath.Join(root, "raw"), unix.S_IFBLK|0o600, int(h.number(one))); err != nil {
		t.Fatal(err)
	}
	want := []Holder{{Kind: Bind, Name: "/raw", Process: Process{PID: 200, Command: "pause"}}}
	if got := h.look().Of(h.number(one)); !slices.Equal(got, want) {
		t.Errorf("holders: %+v", got)
	}
	if got := h.look().Of(h.number(other)); len(got) != 0 {
		t.Errorf("holders of another device: %+v", got)
	}
}

// TestUnchecked asserts that the search reports what it could not look at.
func TestUnchecked(t *testing.T) {
	one, _ := loops(t)
	h := newFakeHost(t)
	if s := h.look(); len(s.Unchecked()) != 0 {
		t.Errorf("on a whole host: %v", s.Unchecked())
	}
	own := filepath.Join(h.proc, "77/ns/pid")
	if err := os.Remove(own); err != nil {
		t.Fatal(err)
	}
	h.link(h.proc, "77/ns/pid", "pid:[4026532000]")
	if s := h.look(); len(s.Unchecked()) != 0 {
		t.Errorf("on a node that is a container: %v", s.Unchecked())
	}
	first := filepath.Join(h.proc, "1/ns/mnt")
	if err := os.Remove(first); err != nil {
		t.Fatal(err)
	}
	h.link(h.proc, "1/ns/mnt", "mnt:[77]")
	if s := h.look(); !hasUnchecked(s, "hostPID") {
		t.Errorf("in a container of its own: %v", s.Unchecked())
	}
	h.file(h.proc, "300/comm", "x")
	h.link(h.proc, "300/ns/mnt", "mnt:[300]")
	h.file(h.proc, "300/mountinfo", "nonsense\n")
	h.link(h.proc, "300/fd/3", one)
	if s := h.look(); !hasUnchecked(s, "1 processes could not be looked at") || len(s.Of(h.number(one))) != 1 {
		t.Errorf("with a process that cannot be read: %v, %v", s.Unchecked(), s.Of(h.number(one)))
	}
	h.file(h.sys, "dev/block/7:12345/loop/backing_file", "/nowhere\n")
	if s := h.look(); !hasUnchecked(s, "loop device") {
		t.Errorf("with a loop device that cannot be asked: %v", s.Unchecked())
	}
	if err := os.RemoveAll(h.proc); err != nil {
		t.Fatal(err)
	}
	if s := h.look(); !hasUnchecked(s, "processes cannot be listed") {
		t.Errorf("without /proc: %v", s.Unchecked())
	}
	if err := os.RemoveAll(h.sys); err != nil {
		t.Fatal(err)
	}
	if s := h.look(); !hasUnchecked(s, "block devices cannot be listed") {
		t.Errorf("without /sys: %v", s.Unchecked())
	}
}

// TestPodOf asserts which cgroups name a pod.
func TestPodOf(t *testing.T) {
	const static = "0123456789abcdef0123456789abcdef"
	for cgroup, want := range map[string]string{
		"0::/kubepods/burstable/pod" + podUID + "/abc":                                                       podUID,
		"0::/../../kubepods-besteffort-pod0f1cb0e4_4edb_4da9_8c91_e8d9878d0441.slice/cri-containerd-1.scope": podUID,
		"11:cpu:/kubepods/pod" + static + "/abc\n0::/":                                                       static,
		"0::/system.slice/podman.service":                                                                    "",
		"0::/":                                                                                               "",
		"":                                                                                                   "",
	} {
		if got := podOf(cgroup); got != want {
			t.Errorf("pod of %q: %q, want %q", cgroup, got, want)
		}
	}
}

// TestKubeletVolumes asserts that the kubelet's raw block volumes are found below its folder: links of pods, and
// devices of plugins.
func TestKubeletVolumes(t *testing.T) {
	h := newFakeHost(t)
	one, other := loops(t)
	h.link(h.kubelet, "pods/"+podUID+"/volumeDevices/kubernetes.io~csi/pvc-1", one)
	h.link(h.kubelet, "plugins/kubernetes.io/local-volume/volumeDevices/pv-2/"+podUID, one)
	h.link(h.kubelet, "plugins/example.com/volumeDevices/pv-3", other)
	h.link(h.kubelet, "pods/"+podUID+"/volumes/kubernetes.io~csi/link", other)
	h.link(h.kubelet, "plugins/kubernetes.io/csi/volumeDevices/dangling", "/dev/does-not-exist")
	node := filepath.Join(h.kubelet, "plugins/kubernetes.io/csi/volumeDevices/publish/pvc-4")
	if err := os.MkdirAll(filepath.Dir(node), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(node, unix.S_IFBLK|0o600, int(h.number(one))); err != nil {
		t.Fatal(err)
	}
	s := h.look()
	for device, want := range map[string][]string{
		one: {
			"plugins/kubernetes.io/csi/volumeDevices/publish/pvc-4",
			"plugins/kubernetes.io/local-volume/volumeDevices/pv-2/" + podUID,
			"pods/" + podUID + "/volumeDevices/kubernetes.io~csi/pvc-1",
		},
		other: {"plugins/example.com/volumeDevices/pv-3"},
	} {
		var got []string
		for _, found := range s.Of(h.number(device)) {
			if found.Kind != Published {
				t.Errorf("holder: %v", found)
			}
			got = append(got, strings.TrimPrefix(found.Name, h.kubelet+"/"))
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s is published at %v, want %v", device, got, want)
		}
	}
	if len(s.Unchecked()) != 0 {
		t.Errorf("limits: %v", s.Unchecked())
	}
}

// hasUnchecked reports whether the text is in what was not checked.
func hasUnchecked(s *System, what string) bool {
	return slices.ContainsFunc(s.Unchecked(), func(l string) bool { return strings.Contains(l, what) })
}

// TestHungLoop asserts that a loop device which does not answer delays the search only for a moment. It is reported as
// not known, and gets one request from any number of searches.
func TestHungLoop(t *testing.T) {
	h := newFakeHost(t)
	for _, loop := range []string{"7:501", "7:502", "7:503"} {
		h.file(h.sys, "dev/block/"+loop+"/loop/backing_file", "/mnt/file\n")
	}
	synctest.Test(t, func(t *testing.T) {
		hang, asked := make(chan struct{}), 0
		answer := func(loop string) (uint64, error) {
			if loop == "/dev/7:503" {
				return unix.Mkdev(8, 1), nil
			}
			if loop == "/dev/7:501" {
				asked++
			}
			<-hang
			return 0, nil
		}
		for range 3 {
			start := time.Now()
			s, err := readSystem(t.Context(), h.roots, &System{backingDevice: answer, loopTimeout: loopTimeout})
			if err != nil {
				t.Fatal(err)
			}
			if took := time.Since(start); took != loopTimeout {
				t.Errorf("the search took %v, want %v", took, loopTimeout)
			}
			if !hasUnchecked(s, "loop device 7:501 hangs") || !hasUnchecked(s, "loop device 7:502 hangs") || len(s.Unchecked()) != 2 {
				t.Errorf("limits are %q", s.Unchecked())
			}
			if found := s.Of(unix.Mkdev(8, 1)); len(found) != 1 || found[0].Name != "7:503" {
				t.Errorf("the loop device that answers: %v", found)
			}
		}
		if asked != 1 {
			t.Errorf("the loop device was asked %d times", asked)
		}
		close(hang)
		synctest.Wait()
	})
}
