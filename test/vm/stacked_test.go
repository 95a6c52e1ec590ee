package vm

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/discovery"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/test/vm/wire"
)

const (
	stackedBytes = 76 * mib
	lunName      = 0x5000c50015ea71ac
	luksHeader   = 4 * mib
)

// newStacked makes two disks that are devices of the device mapper: a LUKS device, and one with two paths. One of
// the paths fails on every second boot.
func newStacked(t *testing.T, dir string) ([]*victim, []drive) {
	t.Helper()
	b := wire.Burst{Workers: 2, From: 2 * mib, SlotBytes: 12 * mib, Slots: 6}
	lun := newVictim(t, dir, "lun", stackedBytes, 512, b)
	vault := newVictim(t, dir, "vault", luksHeader+stackedBytes, 512, b)
	lun.mapped, vault.mapped, vault.encrypted = true, true, true
	boots, isNew := 0, true
	lun.stack = func(t *testing.T, ctx context.Context, m *machine) string {
		t.Helper()
		var paths []string
		if err := m.call(ctx, "paths", strconv.FormatUint(lunName, 16), &paths); err != nil {
			t.Fatal(err)
		}
		table := fmt.Sprintf("0 %d multipath 0 0 1 1 round-robin 0 2 1 %s 1 %s 1", stackedBytes/512, paths[0], paths[1])
		device := mapDevice(t, ctx, m, "lun", "mpath-"+fmt.Sprintf("3%x", uint64(lunName)), table)
		for _, path := range paths {
			inspect(t, ctx, m, path, disk.Busy, "select "+device)
		}
		if boots++; boots%2 == 0 {
			succeed(t, ctx, m, "dmsetup", "message", "lun", "0", "fail_path", paths[boots/2%2])
		}
		return device
	}
	vault.stack = func(t *testing.T, ctx context.Context, m *machine) string {
		t.Helper()
		var below string
		if err := m.call(ctx, "find", "vault", &below); err != nil {
			t.Fatal(err)
		}
		if isNew {
			succeed(t, ctx, m, "cryptsetup", "luksFormat", "--batch-mode", "--type=luks2", "--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000",
				"--offset="+strconv.Itoa(luksHeader/512), "--key-file="+luksKey, below)
		}
		inspect(t, ctx, m, below, disk.Foreign, "crypto_LUKS")
		succeed(t, ctx, m, "cryptsetup", "luksOpen", "--allow-discards", "--key-file="+luksKey, below, "vault")
		const device = "/dev/mapper/vault"
		inspect(t, ctx, m, below, disk.Busy, "select "+device)
		if isNew {
			// Decrypted zeros are not zeros.
			isNew = false
			inspect(t, ctx, m, device, disk.Foreign, "not zero")
			if err := m.call(ctx, "zero", device, nil); err != nil {
				t.Fatal(err)
			}
		}
		return device
	}
	drives := []drive{vault.drive()}
	for _, path := range []string{"lun-a", "lun-b"} {
		drives = append(drives, drive{name: path, socket: lun.platter.socket(), sector: 512, wwn: lunName})
	}
	return []*victim{lun, vault}, drives
}

// mapDevice makes a device of the device mapper, and returns its path.
func mapDevice(t *testing.T, ctx context.Context, m *machine, name, uuid, table string) string {
	t.Helper()
	succeed(t, ctx, m, "dmsetup", "create", name, "--uuid", uuid, "--table", table)
	return "/dev/mapper/" + name
}

// succeed runs a program of the machine.
func succeed(t *testing.T, ctx context.Context, m *machine, argv ...string) {
	t.Helper()
	var e wire.Exited
	// The machine has no udev: dmsetup makes the device nodes itself.
	if err := m.call(ctx, "exec", wire.Exec{Argv: argv, Env: []string{"DM_DISABLE_UDEV=1"}}, &e); err != nil || e.Code != 0 {
		t.Fatalf("%v: %v, %+v", argv, err, e)
	}
}

// inspect asserts the engine's state of a device.
func inspect(t *testing.T, ctx context.Context, m *machine, device string, state disk.State, reason string) disk.Contents {
	t.Helper()
	var c disk.Contents
	if err := m.call(ctx, "inspect", device, &c); err != nil {
		t.Fatal(err)
	}
	if c.State != state || !strings.Contains(c.Reason, reason) {
		t.Errorf("%s is %+v, want %s: %q", device, c, state, reason)
	}
	return c
}

// TestPowerCutStacked is TestPowerCut for a disk with two paths and an encrypted one. All their volumes are devices of
// the device mapper from the start.
func TestPowerCutStacked(t *testing.T) {
	dir := newMachineDir(t)
	victims, drives := newStacked(t, dir)
	cutPower(t, dir, victims, drives, 3, 1)
}

// decide asserts what the agent of node "second" decides about a device, in a cluster that has the other nodes.
func decide(t *testing.T, ctx context.Context, m *machine, device string, others []string, state diskv1alpha1.DeviceState, reason string) {
	t.Helper()
	var v discovery.Verdict
	if err := m.call(ctx, "discover", wire.Discover{Disk: device, Node: "second", Others: others}, &v); err != nil {
		t.Fatal(err)
	}
	if v.State != state || !strings.Contains(strings.Join(v.Reasons, "; "), reason) || reason == "" && len(v.Reasons) > 0 {
		t.Errorf("the agent decides %+v, want %s: %q", v, state, reason)
	}
}

// TestSharedLUN asserts that of two machines with the same disk the second one sees that it belongs to the first, and
// its agent refuses it. That is so while the first makes volumes, and after it has ended, until its Node is deleted.
func TestSharedLUN(t *testing.T) {
	i := needImage(t)
	dirs := []string{newMachineDir(t), newMachineDir(t)}
	p, err := newPlatter(dirs[0]+"/lun", 64*mib, 512)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.close() })
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	var machines []*machine
	var devices []string
	for _, dir := range dirs {
		m, err := boot(ctx, dir, i, drive{name: "lun", socket: p.socket(), sector: p.sector})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(m.cut)
		var device string
		if err := m.call(ctx, "find", "lun", &device); err != nil {
			t.Fatal(err)
		}
		machines, devices = append(machines, m), append(devices, device)
		inspect(t, ctx, m, device, disk.Blank, "")
	}
	if err := machines[0].call(ctx, "adopt", wire.Adopt{Disk: devices[0], Node: "first"}, nil); err != nil {
		t.Fatal(err)
	}
	if err := machines[0].call(ctx, "open", devices[0], nil); err != nil {
		t.Fatal(err)
	}
	v := wire.Volume{Disk: devices[0], Partition: "aaaaaaaa-aaaa-4aaa-8aaa-aaaaaaaaaaaa", Start: 2 * mib, Length: 16 * mib}
	for _, do := range []string{"create", "format", "mount", "fill"} {
		if err := machines[0].call(ctx, do, v, nil); err != nil {
			t.Fatal(err)
		}
	}
	owned := func() {
		t.Helper()
		c := inspect(t, ctx, machines[1], devices[1], disk.Ours, "")
		if c.Owner != (disk.Owner{NodeUID: "uid-of-first", NodeName: "first", MachineID: "machine-of-first"}) {
			t.Errorf("the second machine sees the owner %+v", c.Owner)
		}
		if err := machines[1].call(ctx, "adopt", wire.Adopt{Disk: devices[1], Node: "second"}, nil); err == nil {
			t.Error("the second machine made it its own")
		}
		decide(t, ctx, machines[1], devices[1], []string{"first"}, diskv1alpha1.DeviceForeign, "belongs to node first")
	}
	owned()
	for _, do := range []string{"unmount", "verify"} {
		if err := machines[0].call(ctx, do, v, nil); err != nil {
			t.Error(err)
		}
	}
	machines[0].cut()
	owned()
	decide(t, ctx, machines[1], devices[1], nil, diskv1alpha1.DeviceInUse, "")
}
