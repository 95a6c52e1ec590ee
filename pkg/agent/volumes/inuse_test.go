package volumes

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/berthdev/berth/test/testenv"
)

// TestPublishedFromTmpfs asserts that a device node of a tmpfs counts as in use: a node that is a container publishes
// raw block volumes this way.
func TestPublishedFromTmpfs(t *testing.T) {
	testenv.NeedRoot(t)
	// A loop device that cannot exist. Its number is compared, and it is never opened.
	const number = 7<<8 | 0xfe
	dir := t.TempDir()
	mount := func(source, target, fsType string, flags uintptr) {
		t.Helper()
		if err := syscall.Mount(source, target, fsType, flags, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := syscall.Unmount(target, 0); err != nil {
				t.Error(err)
			}
		})
	}
	mount("tmpfs", dir, "tmpfs", 0)
	device, another, target := filepath.Join(dir, "sdx1"), filepath.Join(dir, "other", "sdx1"), filepath.Join(t.TempDir(), "volume")
	if err := errors.Join(
		os.Mkdir(filepath.Dir(another), 0o700), os.WriteFile(target, nil, 0o600),
		syscall.Mknod(device, syscall.S_IFBLK|0o600, number), syscall.Mknod(another, syscall.S_IFBLK|0o600, number-1),
	); err != nil {
		t.Fatal(err)
	}
	if why, err := describeUse(device); why != "" || err != nil {
		t.Errorf("in use before it is published: %s, %v", why, err)
	}
	mount(device, target, "", syscall.MS_BIND)
	if why, err := describeUse(device); !strings.Contains(why, target) || err != nil {
		t.Errorf("published on %s, but in use by %q, %v", target, why, err)
	}
	if why, err := describeUse(another); why != "" || err != nil {
		t.Errorf("another device of that name is in use: %s, %v", why, err)
	}
}

// TestVolumeWithoutDevice asserts that a volume that the kernel does not show counts as unused: it can be wiped.
func TestVolumeWithoutDevice(t *testing.T) {
	if why, err := describeUse(""); why != "" || err != nil {
		t.Errorf("it is in use: %q, %v", why, err)
	}
	if is, err := isDeviceMounted(""); is || err != nil {
		t.Errorf("it is mounted: %v, %v", is, err)
	}
}
