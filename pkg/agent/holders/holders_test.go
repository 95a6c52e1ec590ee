package holders

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/berthdev/berth/test/mountns"
	"github.com/berthdev/berth/test/testenv"
)

// newDevice makes a loop device over a file.
func newDevice(t *testing.T) string {
	t.Helper()
	testenv.NeedRoot(t)
	testenv.NeedProgram(t, "losetup", "mkfs.ext4", "unshare")
	return testenv.Loop(t, testenv.Image(t, 16<<20), "512")
}

func holdersOf(t *testing.T, device string) []Holder {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	found, _, err := OfDevice(ctx, device)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func ofKind(found []Holder, kind Kind) []Holder {
	return slices.DeleteFunc(slices.Clone(found), func(h Holder) bool { return h.Kind != kind })
}

// TestProcess asserts that a process which has the device open is reported, and not any more once it has ended. This
// process is recognized as the own one.
func TestProcess(t *testing.T) {
	device := newDevice(t)
	if found := holdersOf(t, device); len(found) != 0 {
		t.Errorf("a device that is not used: %v", sentences(found))
	}
	pid, stop := testenv.StartScript(t, "sh", "-c", "exec 3>>"+device+"; echo ready; read x; true")
	want := Holder{Kind: Open, Name: device, Process: Process{PID: pid, Command: "sh"}, Writing: true}
	if found := holdersOf(t, device); !slices.Equal(found, []Holder{want}) {
		t.Errorf("a device that is open: %+v", found)
	}
	stop()
	f, err := os.Open(device)
	if err != nil {
		t.Fatal(err)
	}
	found := holdersOf(t, device)
	if len(found) != 1 || !found[0].Process.Own || found[0].Writing || found[0].Process.PID != os.Getpid() {
		t.Errorf("a device that this process has open: %+v", found)
	}
	f.Close()
	if found := holdersOf(t, device); len(found) != 0 {
		t.Errorf("a device that is closed again: %v", sentences(found))
	}
}

// startApart starts a shell script in its own mount namespace.
func startApart(t *testing.T, script string) (pid int, stop func()) {
	t.Helper()
	return testenv.StartScript(t, mountns.Command(mountns.Private, "", "sh", "-c", script)...)
}

// TestOtherNamespace asserts that holders in another mount namespace are found. These are a mount of the file system, a
// mount of the device's node, and a file that is open after a lazy unmount.
func TestOtherNamespace(t *testing.T) {
	device := newDevice(t)
	dir := t.TempDir()
	node := filepath.Join(dir, "node")
	if err := os.WriteFile(node, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	pid, stop := startApart(t, "mount --bind "+device+" "+node+" && echo ready; read x; true")
	want := Holder{Kind: Bind, Name: node, Process: Process{PID: pid, Command: "sh"}}
	if found := holdersOf(t, device); !slices.Equal(found, []Holder{want}) {
		t.Errorf("a device node that is mounted: %+v", found)
	}
	stop()
	if out, err := exec.Command("mkfs.ext4", "-q", device).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	pid, stop = startApart(t, "mount "+device+" "+dir+" && echo ready; read x; true")
	want = Holder{Kind: Mount, Name: dir, Process: Process{PID: pid, Command: "sh"}}
	if found := ofKind(holdersOf(t, device), Mount); !slices.Equal(found, []Holder{want}) {
		t.Errorf("a file system that is mounted: %+v", found)
	}
	stop()
	pid, stop = startApart(t,
		"mount "+device+" "+dir+" && exec 3>"+dir+"/file && umount --lazy "+dir+" && echo ready; read x; true")
	found := ofKind(holdersOf(t, device), File)
	if len(found) != 1 || found[0].Process.PID != pid || !strings.HasSuffix(found[0].Name, "/file") {
		t.Errorf("a file system that is unmounted lazily: %+v", found)
	}
	stop()
}

// TestLoop asserts that a loop device over the device is found.
func TestLoop(t *testing.T) {
	device := newDevice(t)
	above := testenv.Loop(t, device, "512")
	want := Holder{Kind: Loop, Name: filepath.Base(above)}
	if found := holdersOf(t, device); !slices.Equal(found, []Holder{want}) {
		t.Errorf("holders: %+v, want %+v", found, want)
	}
	// Another path to the same device, like the kubelet's.
	node := filepath.Join(t.TempDir(), "node")
	if out, err := exec.Command("cp", "-a", device, node).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	second := testenv.Loop(t, node, "512")
	if found := ofKind(holdersOf(t, device), Loop); len(found) != 2 {
		t.Errorf("holders: %+v, want %s and %s", found, above, second)
	}
}

// TestTimeout asserts that a search ends with its context.
func TestTimeout(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if s, err := ReadSystem(ctx); err == nil {
		t.Errorf("a search that was ended found %v", s)
	}
	if _, _, err := OfDevice(t.Context(), t.TempDir()); err == nil {
		t.Error("a folder is taken for a device")
	}
}
