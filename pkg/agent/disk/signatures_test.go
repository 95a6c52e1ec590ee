package disk

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// signatureCase is what a foreign disk has: parts at offsets, the negative ones from the end.
type signatureCase struct {
	name   string
	reason string // part of it, in lower case
	parts  map[int64][]byte
}

// lvmLabel is the second sector of a physical volume.
func lvmLabel() []byte {
	b := testenv.Padded(512, map[int][]byte{0: []byte("LABELONE\x01"), 20: testenv.LE32(32), 24: []byte("LVM2 001"), 32: bytes.Repeat([]byte("x"), 32)})
	copy(b[16:], testenv.LE32(^crc32.Update(^uint32(0xf597a6cf), crc32.IEEETable, b[20:])))
	return b
}

// bcacheSuperblock is one of a backing device.
func bcacheSuperblock() []byte {
	b := testenv.Padded(4096, map[int][]byte{
		8: testenv.LE32(8), 16: testenv.LE32(1),
		24: {0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba, 0x6d, 0x81},
	})
	const keys = 208 // where they begin; there are none
	sum := ^uint64(0)
	for _, c := range b[8:keys] {
		sum ^= uint64(c) << 56
		for range 8 {
			carry := sum >> 63
			sum = sum<<1 ^ carry*0x42f0e1eba9ea3693
		}
	}
	binary.LittleEndian.PutUint64(b, ^sum)
	return b
}

// zfsLabels are the two at the beginning. ZFS is recognized by their uberblocks.
func zfsLabels() map[int64][]byte {
	parts := map[int64][]byte{}
	for label := range int64(2) {
		for i := range int64(8) {
			parts[label<<18+1<<17+i<<10] = testenv.Padded(512, map[int][]byte{0: testenv.LE32(0x00bab10c), 8: testenv.LE32(5000)})
		}
	}
	return parts
}

// signatures of disks of 80 MiB.
func eightySignatures() []signatureCase {
	const size = 80 << 20
	noise := make([]byte, units.MiB)
	for i := range noise {
		noise[i] = byte(rand.Uint32())
	}
	one := func(at int64, b []byte) map[int64][]byte { return map[int64][]byte{at: b} }
	return []signatureCase{
		{"LUKS 1", "luks", one(0, []byte("LUKS\xba\xbe\x00\x01"))},
		{"LUKS 2", "luks", one(0, []byte("LUKS\xba\xbe\x00\x02"))},
		{"LVM", "lvm2", one(512, lvmLabel())},
		{"md 0.90", "linux_raid", one(size-65536, testenv.LE32(0xa92b4efc, 0, 90, 0, 0, 0x12345678))},
		{"md 1.0", "linux_raid", one(size-8192, testenv.MDSuperblock(size-8192))},
		{"md 1.1", "linux_raid", one(0, testenv.MDSuperblock(0))},
		{"md 1.2", "linux_raid", one(4096, testenv.MDSuperblock(4096))},
		{"RAID of a BIOS", "isw_raid", one(-1024, []byte("Intel Raid ISM Cfg Sig. 1.0.00"))},
		{"DDF", "ddf_raid", one(-512, []byte{0xde, 0x11, 0xde, 0x11})},
		{"ZFS", "zfs", zfsLabels()},
		{"bcache", "bcache", one(4096, bcacheSuperblock())},
		{"DRBD", "drbd", one(-4096+0x3c, []byte{0x83, 0x74, 0x02, 0x6b})},
		{"Ceph", "ceph", one(0, []byte("bluestore block device"))},
		{"Oracle ASM", "oracleasm", one(32, []byte("ORCLDISK"))},
		{"hibernation", "swsuspend", one(4086, []byte("S1SUSPEND"))},
		{"btrfs", "btrfs", one(0x10040, []byte("_BHRfS_M"))},
		{"f2fs", "f2fs", one(1024, testenv.LE32(0xf2f52010))},
		{"verity", "verity", one(0, []byte("verity\x00\x00\x01\x00\x00\x00"))},
		// The first MiB is zero, and so is the last.
		{"VMFS", "vmfs", one(units.MiB, testenv.LE32(0xc001d00d))},
		{"boot sector of DOS", "dos", one(0, testenv.Padded(512, map[int][]byte{446: {0x80, 1, 1, 0, 0x0c, 1, 1, 1, 63}, 458: testenv.LE32(1000), 510: {0x55, 0xaa}}))},
		// Data that no tool recognizes: encrypted without a header, or a database's.
		{"noise all over", "not zero", map[int64][]byte{0: noise, 7 << 20: noise, -units.MiB: noise}},
		{"noise at the end", "not zero", one(-units.MiB, noise)},
		{"an unknown signature", "not zero", one(512, []byte("MYRAWDB1"))},
	}
}

// TestSignatures asserts that the reason names what another program has written onto a disk, and that no byte of the
// disk changes.
func TestSignatures(t *testing.T) {
	all := eightySignatures()
	for _, test := range all {
		t.Run(test.name, func(t *testing.T) {
			l := newLoopDisk(t, 80<<20, 512)
			f, err := os.OpenFile(l.image, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			for off, b := range test.parts {
				if off < 0 {
					off += 80 << 20
				}
				if _, err := f.WriteAt(b, off); err != nil {
					t.Fatal(err)
				}
			}
			l.checkRefused(t, test.reason)
		})
	}
	t.Logf("%d kinds of disks were left alone", len(all))
}

// checkRefused asserts that the disk is foreign for that reason, and that nothing changes it.
func (l *loopDisk) checkRefused(t *testing.T, reason string) {
	t.Helper()
	before := l.hash(t)
	found, err := Inspect(t.Context(), l.path)
	if err != nil || found.State != Foreign || !strings.Contains(strings.ToLower(found.Reason), reason) || found.Reason == "" {
		t.Errorf("Inspect: %+v, %v; want %q", found, err, reason)
	}
	if id, err := Initialize(t.Context(), l.path, Owner{}); err == nil {
		t.Errorf("Initialize succeeded: %s", id)
	}
	if d, err := Open(t.Context(), l.path, Options{SeenBefore: func(string) bool { return true }}); err == nil {
		d.Close()
		t.Error("Open succeeded")
	}
	if l.hash(t) != before {
		t.Error("the disk was written to")
	}
	if parts := l.partitions(t); len(parts) > 0 {
		t.Errorf("partitions were attached: %v", parts)
	}
}

// TestOurGUIDWithOthersPartitions asserts that a table of another program, or an invalid one, is left alone. It has the
// GUID of a known disk of ours.
func TestOurGUIDWithOthersPartitions(t *testing.T) {
	testenv.NeedProgram(t, "sgdisk")
	for _, test := range []struct {
		name   string
		tool   []string
		reason string
	}{
		{"of 128 entries", []string{"-o", "-U", diskID, "-n", "1:0:+5M"}, "gpt"},
		{"of 1024 entries", []string{"-o", "-S", "1024", "-U", diskID, "-n", "1:0:+5M", "-n", "255:0:+1M"}, "gpt"},
		{"with our name in it", []string{"-o", "-S", "1024", "-U", diskID, "-n", "255:1M:+1M", "-c", "255:" + metaName}, "gpt"},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := newLoopDisk(t, 64*units.MiB, 512)
			testenv.Run(t, "sgdisk", append(test.tool, l.path)...)
			l.removePartitions(t)
			l.checkRefused(t, test.reason)
		})
	}
	t.Run("ours, and invalid", func(t *testing.T) {
		l := initialized(t, 64*units.MiB, 512)
		// A volume over the meta partition.
		testenv.Run(t, "sgdisk", "-d", "255", "-n", "255:2M:+1M", "-t", "255:"+TypeMeta, l.path)
		l.removePartitions(t)
		before := l.hash(t)
		if d, err := Open(t.Context(), l.path, Options{}); err == nil || !strings.Contains(err.Error(), "invalid") {
			if err == nil {
				d.Close()
			}
			t.Errorf("Open: %v", err)
		}
		if l.hash(t) != before {
			t.Error("the disk was written to")
		}
	})
}

// TestSwapIsLeftAlone asserts that swap in use is left alone.
func TestSwapIsLeftAlone(t *testing.T) {
	testenv.NeedProgram(t, "mkswap", "swapon", "swapoff")
	l := newLoopDisk(t, 64*units.MiB, 512)
	testenv.Run(t, "mkswap", l.path)
	testenv.Run(t, "swapon", l.path)
	t.Cleanup(func() { testenv.Run(t, "swapoff", l.path) })
	found, err := Inspect(t.Context(), l.path)
	if err != nil || found.State != Busy || !strings.Contains(found.Reason, "swap") {
		t.Errorf("Inspect: %+v, %v", found, err)
	}
	if _, err := Initialize(t.Context(), l.path, Owner{}); err == nil {
		t.Error("Initialize succeeded")
	}
}

// TestOtherPath asserts that two devices in sysfs with the same identity are two paths to one disk.
func TestOtherPath(t *testing.T) {
	sys := t.TempDir()
	for file, text := range map[string]string{
		"sda/device/wwid":  "naa.5000c500a1b2c3d4\n",
		"sdb/device/wwid":  "naa.5000c500a1b2c3d4\n",
		"sdc/device/wwid":  "naa.5000c500a1b2c3d5\n",
		"nvme0n1/wwid":     "eui.0025385b71b00001\n",
		"nvme1n1/wwid":     "eui.0025385b71b00002\n",
		"sdd/device/wwid":  "\n",
		"sde/device/wwid":  "\n",
		"loop0/size":       "8\n",
		"nvme0c0n1/wwid":   "eui.0025385b71b00001\n",
		"nvme0c0n1/hidden": "1\n",
	} {
		path := filepath.Join(sys, file)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{"sda": "sdb", "sdb": "sda", "sdc": "", "sdd": "", "sde": "", "loop0": "", "nvme0n1": "", "nvme1n1": "", "gone": ""} {
		if got := otherPath(sys, name); got != want {
			t.Errorf("another path to %s: %q, want %q", name, got, want)
		}
	}
}
