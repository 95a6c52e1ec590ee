package csi

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/mounts"
	"github.com/berthdev/berth/test/mountns"
	"github.com/berthdev/berth/test/units"
)

// TestReadOnlyOnTheHost asserts that a read-only volume is read-only in the host's mount namespace, too. The agent
// mounts it in its container, and its next container sees the host's mount.
func TestReadOnlyOnTheHost(t *testing.T) {
	v := newVolume(t, diskv1alpha1.FSTypeExt4, 64*units.MiB)
	if err := syscall.Mount("tmpfs", v.dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer func() {
		for _, path := range []string{v.otherTarget(), v.target, v.staging, v.dir} {
			if err := syscall.Unmount(path, 0); err != nil {
				t.Errorf("%s: %v", path, err)
			}
		}
	}()
	if err := syscall.Mount("", v.dir, "", syscall.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	v.folders()
	host := inNamespace(mountns.Slave, v.dir, "cat")
	hold, err := host.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	said, err := host.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := host.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		hold.Close()
		if err := host.Wait(); err != nil {
			t.Error(err)
		}
	}()
	// An echo shows that the namespace exists.
	if _, err := hold.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := said.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	v.checkCode("stage", v.stage(), codes.OK)
	v.checkCode("publish", v.publish(v.target, nil), codes.OK)
	v.checkCode("publish read-only", v.publish(v.otherTarget(), readOnly), codes.OK)
	table, err := os.Open(fmt.Sprintf("/proc/%d/mountinfo", host.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	for path, want := range map[string]bool{v.staging: false, v.target: false, v.otherTarget(): true} {
		if _, err := table.Seek(0, 0); err != nil {
			t.Fatal(err)
		}
		seen, err := mounts.ReadFrom(table)
		if err != nil {
			t.Fatal(err)
		}
		if at, found := seen.At(path); !found || at.ReadOnly() != want {
			t.Errorf("%s: the host sees %+v, want read-only %v", path, at, want)
		}
	}
}

// TestAttributes asserts which mount options become attributes of a bind mount. The last access time option counts.
func TestAttributes(t *testing.T) {
	for options, want := range map[string]unix.MountAttr{
		"":                           {},
		"rw,discard,context=\"a,b\"": {},
		"ro,nosuid,noexec":           {Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC},
		"noatime,nodiratime":         {Attr_set: unix.MOUNT_ATTR_NOATIME | unix.MOUNT_ATTR_NODIRATIME, Attr_clr: unix.MOUNT_ATTR__ATIME},
		"noatime,strictatime":        {Attr_set: unix.MOUNT_ATTR_STRICTATIME, Attr_clr: unix.MOUNT_ATTR__ATIME},
		"relatime":                   {Attr_clr: unix.MOUNT_ATTR__ATIME},
	} {
		got := attributesOf(slices.DeleteFunc(strings.Split(options, ","), func(o string) bool { return o == "" }))
		if got != want {
			t.Errorf("%q: %+v, want %+v", options, got, want)
		}
	}
}
