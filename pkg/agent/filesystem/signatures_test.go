package filesystem

import (
	"encoding/binary"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"k8s.io/apimachinery/pkg/util/uuid"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/signature"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

const imageSize = 512 * units.MiB

// oldLabel is the former content of the volume's space: parts at offsets, negative ones from the end.
type oldLabel map[int64][]byte

func text(at int64, s string) oldLabel { return oldLabel{at: []byte(s)} }

// zfs are all four labels of a ZFS pool's member. ZFS is recognized by their uberblocks.
func zfs() oldLabel {
	l := oldLabel{}
	for _, base := range []int64{0, 256 << 10, imageSize - 512<<10, imageSize - 256<<10} {
		for i := range int64(16) {
			l[base+128<<10+i<<10] = testenv.Padded(512, map[int][]byte{0: testenv.LE32(0x00bab10c), 8: testenv.LE32(5000)})
		}
	}
	return l
}

// be32 are numbers as big-endian formats have them.
func be32(values ...uint32) (b []byte) {
	for _, v := range values {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	return b
}

// lvm2 is the label of an LVM2 member, in sector 1. Its checksum is a CRC-32 with a start of its own.
func lvm2() oldLabel {
	b := testenv.Padded(512, map[int][]byte{0: []byte("LABELONE"), 8: testenv.LE32(1), 20: testenv.LE32(32), 24: []byte("LVM2 001"), 32: []byte(strings.Repeat("a", 32))})
	copy(b[16:], testenv.LE32(rawCRC32(0xf597a6cf, b[20:])))
	return oldLabel{512: b}
}

// nilfs2 has its checksum in the superblock, where it counts as zero.
func nilfs2() oldLabel {
	b := testenv.Padded(1024, map[int][]byte{0: testenv.LE32(2), 6: {0x34, 0x34}, 8: {0, 4}, 32: testenv.LE32(uint32(imageSize))})
	copy(b[16:], testenv.LE32(rawCRC32(0, b)))
	return oldLabel{1024: b}
}

func stratis() oldLabel {
	b := testenv.Padded(512, map[int][]byte{4: []byte("!Stra0tis\x86\xff\x02^Arh")})
	copy(b, testenv.LE32(crc32.Checksum(b[4:], crc32.MakeTable(crc32.Castagnoli))))
	return oldLabel{512: b}
}

func mpool() oldLabel {
	b := testenv.Padded(62, map[int][]byte{0: []byte("mpoolDev"), 8: []byte("pool"), 56: {1, 0, 1}})
	return oldLabel{0: append(b, testenv.LE32(crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))...)}
}

// rawCRC32 is CRC-32 without the inversions at its beginning and end.
func rawCRC32(start uint32, b []byte) uint32 { return ^crc32.Update(^start, crc32.IEEETable, b) }

// ext is a superblock of the ext family with its features, by which libblkid distinguishes the members, and flags.
func ext(compatible, incompatible, flags uint32) oldLabel {
	return oldLabel{1024: testenv.Padded(1024, map[int][]byte{0: testenv.LE32(1000, 4000), 56: {0x53, 0xef}, 76: testenv.LE32(1), 92: testenv.LE32(compatible, incompatible), 352: testenv.LE32(flags)})}
}

// listedVersion is the version of libblkid of which oldLabels has every name.
const listedVersion = "2.38.1"

// oldLabels are labels by the name that libblkid gives them, at the places where it looks. Some names have several
// forms, which a further word distinguishes. TestOldLabels compares the names with those that blkid lists.
func oldLabels() map[string]oldLabel {
	// A volume descriptor of CD-ROMs, and of DVDs.
	iso := oldLabel{32768: []byte("\x01CD001\x01"), 32768 + 80: []byte("\x00\x00\x00\x01")}
	udf := oldLabel{32768: []byte("\x00BEA01\x01"), 34816: []byte("\x00NSR02\x01"), 36864: []byte("\x00TEA01\x01"), 256 * 2048: testenv.LE32(2<<16|2, 3, 0, 256, 16*2048, 257)}
	fat := testenv.Padded(512, map[int][]byte{0: {0xeb, 0x58, 0x90}, 3: []byte("mkfs.fat"), 11: {0, 2, 8, 32, 0, 2}, 21: {0xf8}, 32: testenv.LE32(1 << 20), 36: testenv.LE32(1024), 44: testenv.LE32(2), 82: []byte("FAT32   "), 510: {0x55, 0xaa}})
	ntfs := testenv.Padded(512, map[int][]byte{3: []byte("NTFS    "), 11: {0, 2, 8}, 21: {0xf8}, 40: testenv.LE32(1 << 20), 48: testenv.LE32(4), 64: {0xf6}, 510: {0x55, 0xaa}})
	exfat := testenv.Padded(512, map[int][]byte{0: {0xeb, 0x76, 0x90}, 3: []byte("EXFAT   "), 72: testenv.LE32(1 << 20), 80: testenv.LE32(128, 256, 1024, 10000, 5), 108: {9, 3, 1}, 510: {0x55, 0xaa}})
	bitLocker := testenv.Padded(512, map[int][]byte{0: []byte("\xeb\x58\x90-FVE-FS-"), 11: {0, 2}, 176: testenv.LE32(4096)})
	exfs := testenv.Padded(208, map[int][]byte{0: []byte("EXFS"), 4: be32(4096), 12: be32(65536), 80: be32(1, 65536, 1), 100: {0, 4, 2, 0, 2, 0, 0, 8}, 120: {12, 9, 9, 3, 16}})
	befs := testenv.Padded(160, map[int][]byte{32: []byte("1SFBEGIB"), 40: testenv.LE32(1024, 10), 68: testenv.LE32(0xdd121031), 112: testenv.LE32(0x15b6830e), 116: testenv.LE32(0, 1<<16|4)})
	bcache := testenv.Padded(256, map[int][]byte{8: testenv.LE32(8, 0, 1), 24: {0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba, 0x6d, 0x81}})
	return map[string]oldLabel{
		"linux_raid_member 1.0": {-8192: testenv.MDSuperblock(imageSize - 8192)}, "linux_raid_member 1.1": {0: testenv.MDSuperblock(0)}, "linux_raid_member 1.2": {4096: testenv.MDSuperblock(4096)},
		"linux_raid_member 0.90": {-65536: testenv.LE32(0xa92b4efc, 0, 90, 0, 0, 0x12345678)}, "isw_raid_member": text(-1024, "Intel Raid ISM Cfg Sig. 1.0.00"), "ddf_raid_member": {-512: {0xde, 0x11, 0xde, 0x11}},
		"silicon_medley_raid_member": {-512: testenv.Padded(512, map[int][]byte{0x60: testenv.LE32(0x2f000000), 0x13e: {0x00, 0xd1}})}, "promise_fasttrack_raid_member": text(-63*512, "Promise Technology, Inc."),
		"adaptec_raid_member": {-512: be32(0x37fc4d1e), -512 + 256: []byte("DPTM")}, "lsi_mega_raid_member": text(-512, "$XIDE$"), "via_raid_member": {-512: testenv.Padded(51, map[int][]byte{0: {0x55, 0xaa}, 50: {0xff}})},
		"nvidia_raid_member": text(-1024, "NVIDIA  "), "hpt45x_raid_member": {-11 * 512: testenv.LE32(0x5a7816f3)}, "hpt37x_raid_member": {4608 + 32: testenv.LE32(0x5a7816f0)}, "jmicron_raid_member": {-512: []byte("JM\x00\x00\xb6\xb2")},
		"drbd": {-4096 + 0x3c: {0x83, 0x74, 0x02, 0x6b}}, "drbdmanage_control_volume": text(0, "$DRBDmgr=q0"+strings.Repeat("0123456789abcdef", 2)+"\n"), "drbdproxy_datalog": text(0, "DRBDdlh*"),
		"LVM1_member": text(0, "HM\x01\x00"), "LVM2_member": lvm2(), "LVM2_member without checksum": text(512, "LABELONE\x01"), "DM_snapshot_cow": text(0, "SnAp"), "DM_verity_hash": text(0, "verity\x00\x00\x01\x00\x00\x00"),
		"DM_integrity": text(0, "integrt\x00\x01"), "vdo": text(0, "dmvdo001"), "stratis": stratis(), "mpool": mpool(), "bcache": {4096: bcache}, "ceph_bluestore": text(0, "bluestore block device"), "oracleasm": text(32, "ORCLDISK"),
		"zfs_member": zfs(), "crypto_LUKS": text(0, "LUKS\xba\xbe\x00\x02"), "BitLocker": {0: bitLocker, 4096: []byte("-FVE-FS-\x40\x00\x02\x00")},
		"swsuspend": text(4086, "S1SUSPEND"), "swap": {1024: testenv.LE32(1, 1000), 4086: []byte("SWAPSPACE2")},
		"xfs_external_log": {0: be32(0xfeedbabe, 1, 2, 512), 300: be32(1)}, "exfs": {0: exfs}, "ext3": ext(4, 2, 0), "ext4dev": ext(4, 0x42, 4), "jbd": ext(0, 8, 0),
		"btrfs": text(0x10040, "_BHRfS_M"), "f2fs": {1024: testenv.LE32(0xf2f52010)}, "nilfs2": nilfs2(), "zonefs": {0: testenv.LE32(0x5a4f4653)}, "ubi": text(0, "UBI#"), "ubifs": {0: {0x31, 0x18, 0x10, 0x06}},
		"squashfs": {0: []byte("hsqs"), 28: {4}}, "squashfs3": {0: []byte("sqsh"), 28: {0, 3}}, "cramfs": {0: {0x45, 0x3d, 0xcd, 0x28}}, "romfs": text(0, "-rom1fs-"), "erofs": {1024: {0xe2, 0xe1, 0xf5, 0xe0}},
		"jfs": {32768: testenv.Padded(184, map[int][]byte{0: []byte("JFS1"), 16: testenv.LE32(4096, 3<<16|12, 512, 9)})}, "reiserfs": {65536: testenv.LE32(1000, 10, 8, 100), 65536 + 44: {0, 16}, 65536 + 52: []byte("ReIsEr2Fs")}, "reiser4": text(65536, "ReIsEr4"),
		"ocfs": text(8192, "OracleCFS"), "ocfs2": text(4096, "OCFSV2"), "gfs": {65536: be32(0x01161970, 1, 0, 0, 100, 0, 1309, 1401)}, "gfs2": {65536: be32(0x01161970, 1, 0, 0, 100, 0, 1801, 1900)},
		"VMFS_volume_member": {1 << 20: testenv.LE32(0xc001d00d)}, "VMFS": {2 << 20: testenv.LE32(0x2fabf15e)}, "vxfs": {1024: {0xf5, 0xfc, 0x01, 0xa5}}, "nss": text(4096, "SPB5"),
		"minix": {1024: {100, 0, 0xe8, 3, 1, 0, 1, 0, 10, 0, 0, 0, 0, 0x1c, 8, 0x10, 0x7f, 0x13}}, "sysv": {512 + 504: {0xfd, 0x18, 0x7e, 0x20}}, "xenix": {2048: {0x2b, 0x55, 0x44}}, "ufs": {8192 + 1372: {0x19, 0x01, 0x54, 0x19}},
		"hfs": {1024: []byte("BD"), 1024 + 20: be32(512)}, "hfsplus": {1024: []byte("H+\x00\x04"), 1024 + 40: be32(4096)}, "apfs": {24: {1}, 32: []byte("NXSB"), 36: testenv.LE32(4096)}, "befs": {0: befs, 4096: testenv.LE32(0x3bbe0ad9)}, "bfs": {0: {0xce, 0xfa, 0xad, 0x1b}},
		"hpfs": {8192: testenv.LE32(0xf995e849), 8704: testenv.LE32(0xf9911849)}, "vfat": {0: fat}, "ntfs": {0: ntfs, 4 * 4096: []byte("FILE"), 4*4096 + 3072: []byte("FILE")}, "exfat": {0: exfat}, "ReFS": text(0, "\x00\x00\x00ReFS\x00"), "iso9660": iso, "udf": udf,
		"boot sector": {0: testenv.Padded(512, map[int][]byte{446: {0x80, 1, 1, 0, 0x0c, 1, 1, 1, 63}, 458: testenv.LE32(1000), 510: {0x55, 0xaa}})},
	}
}

func (l oldLabel) write(t *testing.T, device string) {
	t.Helper()
	f, err := os.OpenFile(device, os.O_WRONLY|syscall.O_SYNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for at, part := range l {
		if at < 0 {
			at += imageSize
		}
		if _, err := f.WriteAt(part, at); err != nil {
			t.Fatal(err)
		}
	}
}

// TestOldLabels asserts that a volume gets its file system over any former content that libblkid knows. blkid finds
// nothing else there, and the volume can be mounted a second time.
func TestOldLabels(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.NeedProgram(t, "losetup")
	m := newMaker(t)
	labels := oldLabels()
	var recognized sync.Map // the names that libblkid gave a former content
	// Made by the tools themselves.
	tools := map[string][]string{
		"swap by mkswap": {"mkswap"}, "ext2 by mke2fs": {"mkfs.ext2", "-q", "-F"}, "ext4 by mke2fs": {"mkfs.ext4", "-q", "-F"}, "xfs by mkfs.xfs": {"mkfs.xfs", "-q", "-f"},
	}
	for name := range tools {
		labels[name] = nil
	}
	t.Run("each", func(t *testing.T) {
		for name, l := range labels {
			for _, fsType := range []string{diskv1alpha1.FSTypeExt4, diskv1alpha1.FSTypeXFS} {
				t.Run(name+" below "+fsType, func(t *testing.T) {
					t.Parallel()
					device := testenv.Loop(t, testenv.Image(t, imageSize), "512")
					if tool, ok := tools[name]; ok {
						testenv.NeedProgram(t, tool[0])
						testenv.Run(t, tool[0], append(tool[1:], device)...)
					}
					l.write(t, device)
					if before, err := signature.Find(t.Context(), device); err != nil {
						t.Fatal(err)
					} else if len(before) > 0 {
						for _, found := range before {
							recognized.Store(found, true)
						}
					} else {
						t.Log("libblkid does not recognize this label: it wants more of it")
					}
					// xfs refuses to mount two file systems of one UUID at the same time.
					unique := Volume{Device: device, UUID: string(uuid.NewUUID())}
					if err := m.Make(t.Context(), fsType, unique, Settings{}); err != nil {
						t.Fatal(err)
					}
					if found, err := signature.Find(t.Context(), device); err != nil || len(found) != 1 || found[0] != fsType {
						t.Errorf("found are %v, want %s: %v", found, fsType, err)
					}
					target := filepath.Join(t.TempDir(), "mount")
					if err := os.Mkdir(target, 0o700); err != nil {
						t.Fatal(err)
					}
					for range 2 {
						if err := syscall.Mount(device, target, fsType, 0, ""); err != nil {
							t.Fatal(err)
						}
						if err := syscall.Unmount(target, 0); err != nil {
							t.Fatal(err)
						}
					}
				})
			}
		}
	})
	checkAllRecognized(t, func(name string) bool { _, ok := recognized.Load(name); return ok })
}

// checkAllRecognized asserts that libblkid recognized a label of every kind that blkid lists. Another version than
// listedVersion may know other names and verify more of a label: then they are only logged.
func checkAllRecognized(t *testing.T, recognized func(name string) bool) {
	t.Helper()
	var missing []string
	names := strings.Fields(testenv.Run(t, "blkid", "-k"))
	for _, name := range names {
		if !recognized(name) {
			missing = append(missing, name)
		}
	}
	t.Logf("libblkid recognized a label of %d of the %d names that blkid -k lists", len(names)-len(missing), len(names))
	version := testenv.Run(t, "blkid", "-V")
	switch {
	case len(names) < 70:
		t.Errorf("blkid -k lists only %d names: %v", len(names), names)
	case len(missing) == 0:
	case strings.Contains(version, "libblkid "+listedVersion+","):
		t.Errorf("no label was recognized as %v: add one of each to oldLabels", missing)
	default:
		t.Logf("%s is not %s, and recognized no label as %v", strings.TrimSpace(version), listedVersion, missing)
	}
}
