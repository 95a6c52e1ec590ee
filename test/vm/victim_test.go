package vm

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/test/vm/wire"
)

// victim is a disk whose power is cut.
type victim struct {
	name     string
	platter  *platter
	model    *model
	burst    wire.Burst
	mapped   bool // its volumes are devices of the device mapper
	crowded  bool // it has more volumes than partition numbers
	verified int  // volumes whose data was whole
	// stack makes the disk from the disks of the machine, and returns its path. It is nil if the disk is one of them.
	stack     func(t *testing.T, ctx context.Context, m *machine) string
	encrypted bool // the platter's content cannot be read
}

// newVictims makes two disks: one with few volumes and small sectors, and one with large sectors. The second one has
// more volumes than the kernel has numbers for, so it is mapped from its second boot on.
func newVictims(t *testing.T, dir string) ([]*victim, []drive) {
	t.Helper()
	victims := []*victim{
		newVictim(t, dir, "small", 512*mib, 512, wire.Burst{Workers: 3, From: 2 * mib, SlotBytes: 12 * mib, Slots: 18, Pieces: true}),
		newVictim(t, dir, "crowded", 512*mib, 4096, wire.Burst{Workers: 3, From: 300 * mib, SlotBytes: 12 * mib, Slots: 15, Pieces: true}),
	}
	victims[1].mapped, victims[1].crowded = true, true
	var drives []drive
	for _, v := range victims {
		drives = append(drives, v.drive())
	}
	return victims, drives
}

func (v *victim) drive() drive {
	return drive{name: v.name, socket: v.platter.socket(), sector: v.platter.sector}
}

func newVictim(t *testing.T, dir, name string, size, sector int64, b wire.Burst) *victim {
	t.Helper()
	p, err := newPlatter(filepath.Join(dir, name), size, sector)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.close(); err != nil {
			t.Error(err)
		}
	})
	return &victim{name: name, platter: p, model: newModel(), burst: b}
}

func step(t *testing.T, r wire.Reply) wire.Step {
	t.Helper()
	var s wire.Step
	if err := json.Unmarshal(r.Result, &s); err != nil {
		t.Fatal(err)
	}
	return s
}

func (v *victim) device(t *testing.T, ctx context.Context, m *machine) string {
	t.Helper()
	if v.stack != nil {
		v.burst.Disk = v.stack(t, ctx, m)
	} else if err := m.call(ctx, "find", v.name, &v.burst.Disk); err != nil {
		t.Fatal(err)
	}
	return v.burst.Disk
}

// prepare makes the disk ours, and uses up the partition numbers of a disk that must be mapped.
func (v *victim) prepare(t *testing.T, ctx context.Context, m *machine) {
	t.Helper()
	device := v.device(t, ctx, m)
	for _, do := range []string{"initialize", "open"} {
		if err := m.call(ctx, do, device, nil); err != nil {
			t.Fatal(err)
		}
	}
	if !v.crowded {
		return
	}
	for i := range int64(260) {
		filler := wire.Step{Do: "create", Partition: fmt.Sprintf("f0000000-0000-4000-8000-%012d", i), Start: (2 + i) * mib, Length: mib, Done: true}
		v.model.take(filler)
		if err := m.call(ctx, "create", wire.Volume{Disk: device, Partition: filler.Partition, Start: filler.Start, Length: filler.Length}, nil); err != nil {
			t.Fatal(err)
		}
	}
}

// check opens the disk after a power cut and asserts that nothing is missing from it.
func (v *victim) check(t *testing.T, ctx context.Context, m *machine, cut int) {
	t.Helper()
	var s wire.State
	if err := m.call(ctx, "open", v.device(t, ctx, m), &s); err != nil {
		t.Fatalf("cut %d, %s: %v", cut, v.name, err)
	}
	for _, found := range s.Volumes {
		// A volume that is being wiped has no device.
		if found.Phase != string(disk.Wiping) && (v.mapped || len(found.Pieces) > 0) != strings.HasPrefix(found.Device, "/dev/dm-") {
			t.Errorf("cut %d, %s: a volume in phase %s is %q", cut, v.name, found.Phase, found.Device)
		}
	}
	whole, err := v.model.check(s)
	if err != nil {
		t.Fatalf("cut %d, %s: %v", cut, v.name, err)
	}
	for _, partition := range whole {
		if err := m.call(ctx, "verify", wire.Volume{Disk: v.burst.Disk, Partition: partition, More: v.model.volumes[partition].more == done}, nil); err != nil {
			t.Errorf("cut %d, %s: the data of volume %s: %v", cut, v.name, partition, err)
		}
		v.verified++
	}
	// All free bytes read as zeros: this disk held nothing else before.
	for _, free := range s.Free {
		if at := v.soiled(t, ctx, m, free); at >= 0 {
			t.Errorf("cut %d, %s: byte %d is free and not zero", cut, v.name, at)
		}
	}
	t.Logf("cut %d, %s: %d volumes, %d with data, %d were in between", cut, v.name, len(s.Volumes), len(whole), v.model.open)
}

// soiled returns the first byte of a part of the disk that is not zero, or -1.
func (v *victim) soiled(t *testing.T, ctx context.Context, m *machine, e wire.Span) (at int64) {
	t.Helper()
	if v.encrypted {
		part := wire.Volume{Disk: v.burst.Disk, Start: e.Start, Length: e.End - e.Start}
		if err := m.call(ctx, "soiled", part, &at); err != nil {
			t.Fatal(err)
		}
		return at
	}
	b := make([]byte, mib)
	for off := e.Start; off < e.End; off += mib {
		if err := v.platter.read(b, off); err != nil {
			t.Fatal(err)
		}
		if i := bytes.IndexFunc(b, func(r rune) bool { return r != 0 }); i >= 0 {
			return off + int64(i)
		}
	}
	return -1
}

// strict asserts that the common partition tools find nothing wrong with the table.
func (v *victim) strict(t *testing.T) {
	t.Helper()
	path := v.platter.file.Name()
	out, err := exec.Command("losetup", "--find", "--show", "--sector-size", strconv.FormatInt(v.platter.sector, 10), path).Output()
	if err != nil {
		t.Fatalf("losetup: %v", err)
	}
	loop := strings.TrimSpace(string(out))
	defer func() {
		if err := exec.Command("losetup", "--detach", loop).Run(); err != nil {
			t.Error(err)
		}
	}()
	for _, check := range []struct {
		argv []string
		good string
	}{
		{[]string{"sgdisk", "--verify", loop}, "No problems found"},
		{[]string{"sfdisk", "--verify", loop}, "No errors detected"},
		{[]string{"parted", "--script", loop, "print"}, "Partition Table: gpt"},
	} {
		cmd := exec.Command(check.argv[0], check.argv[1:]...)
		cmd.Env = append(os.Environ(), "LC_ALL=C")
		out, err := cmd.CombinedOutput()
		bad := false
		for _, word := range []string{"Caution", "Warning", "Error", "corrupt", "Problem"} {
			bad = bad || bytes.Contains(out, []byte(word))
		}
		if err != nil || bad || !bytes.Contains(out, []byte(check.good)) {
			t.Errorf("%s: %v: %v\n%s", v.name, check.argv, err, out)
		}
	}
}
