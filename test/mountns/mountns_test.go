package mountns

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berthdev/berth/test/testenv"
)

// TestCommand asserts that a new namespace has no copy of another test's volume, but has those of the folder keep. The
// originals stay mounted.
func TestCommand(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.NeedProgram(t, "unshare", "mkfs.ext4", "mount")
	device := testenv.Loop(t, testenv.Image(t, 16<<20), "512")
	testenv.Run(t, "mkfs.ext4", "-q", device)
	for _, host := range []uintptr{unix.MS_PRIVATE, unix.MS_SHARED} {
		parent := t.TempDir()
		mount := func(source, target, kind string, flags uintptr) {
			t.Helper()
			if err := unix.Mount(source, target, kind, flags, ""); err != nil {
				t.Fatal(err)
			}
		}
		mount("tmpfs", parent, "tmpfs", 0)
		t.Cleanup(func() {
			if err := unix.Unmount(parent, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
		mount("", parent, "", host)
		kept, other := filepath.Join(parent, "kept"), filepath.Join(parent, "other")
		testenv.Run(t, "mkdir", kept, other)
		mount(device, kept, "ext4", 0)
		mount(device, other, "ext4", 0)
		for _, propagation := range []Propagation{Private, Slave, Shared, Unchanged} {
			for keep, want := range map[string][2]bool{"": {false, false}, kept: {true, false}} {
				argv := Command(propagation, keep, "cat", "/proc/self/mounts")
				out, err := exec.CommandContext(t.Context(), argv[0], argv[1:]...).Output()
				if err != nil {
					t.Fatal(err)
				}
				inside := [2]bool{strings.Contains(string(out), " "+kept+" "), strings.Contains(string(out), " "+other+" ")}
				if inside != want {
					t.Errorf("%s, %q is kept: the copies of %s and %s: %v, want %v", propagation, keep, kept, other, inside, want)
				}
				if out := testenv.Run(t, "cat", "/proc/self/mounts"); !strings.Contains(out, " "+kept+" ") || !strings.Contains(out, " "+other+" ") {
					t.Fatalf("%s, %q is kept: the original is unmounted:\n%s", propagation, keep, out)
				}
			}
		}
	}
}
