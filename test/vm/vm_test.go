package vm

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/vm/wire"
)

// build is where the kernel and the files made from it are kept between runs.
const build = "../../.build/vm"

const mib = 1 << 20

// needImage builds the files from which machines boot. The test is skipped only if a program is missing.
func needImage(t testing.TB) image {
	t.Helper()
	testenv.NeedProgram(t, "qemu-system-x86_64", "cryptsetup")
	ctx := t.Context()
	dir, err := filepath.Abs(build)
	if err != nil {
		t.Fatal(err)
	}
	k, err := fetchKernel(ctx, dir)
	if err != nil {
		t.Fatal(err)
	}
	ours := map[string]string{"/init": filepath.Join(t.TempDir(), "init")}
	goBuild(t, "build", "-trimpath", "-o", ours["/init"], "./guest")
	ours["/bin/disk.test"] = filepath.Join(t.TempDir(), "disk.test")
	goBuild(t, "test", "-c", "-tags", "vm", "-o", ours["/bin/disk.test"], "../../pkg/agent/disk")
	ours["/bin/volumes.test"] = filepath.Join(t.TempDir(), "volumes.test")
	goBuild(t, "test", "-c", "-tags", "vm", "-o", ours["/bin/volumes.test"], "../../pkg/agent/volumes")
	i := image{kernel: k.image, initramfs: filepath.Join(t.TempDir(), "initramfs")}
	if err := writeInitramfs(ctx, i.initramfs, k, ours); err != nil {
		t.Fatal(err)
	}
	return i
}

func goBuild(t testing.TB, args ...string) {
	t.Helper()
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, out)
	}
}

// newMachineDir is a directory for one machine, with a path short enough for sockets. If the test fails, the kernel's
// output is shown.
func newMachineDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "berth-vm-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(dir, "console.log"))
			t.Logf("the machine's console:\n%s", log[max(0, len(log)-4000):])
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// bootOnce boots a machine that runs until the end of the test.
func bootOnce(t testing.TB, drives ...drive) *machine {
	t.Helper()
	i := needImage(t)
	began := time.Now()
	m, err := boot(t.Context(), newMachineDir(t), i, drives...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.cut)
	t.Logf("booted in %v", time.Since(began).Round(time.Millisecond))
	return m
}

// TestBoot is the shortest test that uses everything.
func TestBoot(t *testing.T) {
	p, err := newPlatter(filepath.Join(newMachineDir(t), "disk"), 256*mib, 512)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.close() })
	m := bootOnce(t, drive{name: "one", socket: p.socket(), sector: p.sector})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var device string
	var s wire.State
	v := wire.Volume{Partition: "aaaaaaaa-aaaa-4aaa-8aaa-aaaaaaaaaaaa", Start: 2 * mib, Length: 32 * mib}
	if err := m.call(ctx, "find", "one", &device); err != nil {
		t.Fatal(err)
	}
	v.Disk = device
	for _, step := range []struct {
		do   string
		args any
	}{
		{"initialize", device}, {"open", device}, {"create", v}, {"format", v}, {"mount", v}, {"fill", v}, {"unmount", v}, {"verify", v},
	} {
		began := time.Now()
		if err := m.call(ctx, step.do, step.args, nil); err != nil {
			t.Fatal(err)
		}
		t.Log(step.do, time.Since(began).Round(time.Millisecond))
	}
	if err := m.call(ctx, "state", device, &s); err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", s)
	var e wire.Exited
	if err := m.call(ctx, "exec", wire.Exec{Argv: []string{"blkid", "-p", device + "1"}}, &e); err != nil {
		t.Fatal(err)
	}
	if e.Code != 0 || !strings.Contains(e.Output, v.Partition) {
		t.Errorf("blkid of the volume: %+v", e)
	}
}

// engineTests are the tests of package disk that need the device mapper: how their names begin, after "Test".
var engineTests = []string{"Mapp", "HighVolume", "StrayLoop", "ClaimedBy", "VolumeBelow", "Pieces"}

// TestEngine runs those tests of package disk that need the device mapper.
func TestEngine(t *testing.T) { runInGuest(t, "disk", engineTests, 19) }

// TestPieces runs the shorter ones of these tests: make vm has no time for all.
func TestPieces(t *testing.T) {
	runInGuest(t, "disk", []string{"PiecesGrowOnline", "PiecesOfPartition", "PiecesLeftovers", "PiecesDetach"}, 4)
}

// agentTests are the tests of package volumes that need the device mapper, as engineTests.
var agentTests = []string{"PiecesOf", "PieceWaits", "AttachmentOf", "PiecesWithout"}

// TestAgent runs those tests of package volumes that need the device mapper.
func TestAgent(t *testing.T) { runInGuest(t, "volumes", agentTests, 5) }

// runInGuest runs tests of a package of the agent in a virtual machine. names are how their names begin, after "Test",
// and at least so many must pass.
func runInGuest(t *testing.T, of string, names []string, least int) {
	t.Helper()
	m := bootOnce(t)
	var e wire.Exited
	argv := []string{"/bin/" + of + ".test", "-test.v", "-test.run", "^Test(" + strings.Join(names, "|") + ")"}
	if err := m.call(t.Context(), "exec", wire.Exec{Argv: argv, Env: []string{"CI=true"}}, &e); err != nil {
		t.Fatal(err)
	}
	passed := strings.Count(e.Output, "--- PASS")
	t.Logf("%d tests of package %s passed with the device mapper:\n%s", passed, of, e.Output)
	if e.Code != 0 || passed < least {
		t.Errorf("they ended with code %d", e.Code)
	}
	for _, name := range names {
		if !strings.Contains(e.Output, "=== RUN   Test"+name) {
			t.Errorf("no test of package %s begins with Test%s: correct the list", of, name)
		}
	}
}
