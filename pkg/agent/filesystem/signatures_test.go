package filesystem

import (
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"

	"k8s.io/apimachinery/pkg/util/uuid"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/signature"
	"github.com/berthdev/berth/test/testenv"
)

const imageSize = 512 * mib

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

// oldLabels are labels by the name that wipefs gives them, at the places where libblkid looks.
func oldLabels() map[string]oldLabel {
	// A volume descriptor of CD-ROMs, and of DVDs.
	iso := oldLabel{32768: []byte("\x01CD001\x01"), 32768 + 80: []byte("\x00\x00\x00\x01")}
	udf := oldLabel{32768: []byte("\x00BEA01\x01"), 34816: []byte("\x00NSR02\x01"), 36864: []byte("\x00TEA01\x01")}
	fat := testenv.Padded(512, map[int][]byte{0: {0xeb, 0x58, 0x90}, 3: []byte("mkfs.fat"), 11: {0, 2, 8, 32, 0, 2}, 21: {0xf8}, 32: testenv.LE32(1 << 20), 36: testenv.LE32(1024), 44: testenv.LE32(2), 82: []byte("FAT32   "), 510: {0x55, 0xaa}})
	ntfs := testenv.Padded(512, map[int][]byte{3: []byte("NTFS    "), 11: {0, 2, 8}, 21: {0xf8}, 40: testenv.LE32(1 << 20), 48: testenv.LE32(4), 64: {0xf6}, 510: {0x55, 0xaa}})
	exfat := testenv.Padded(512, map[int][]byte{0: {0xeb, 0x76, 0x90}, 3: []byte("EXFAT   "), 72: testenv.LE32(1 << 20), 80: testenv.LE32(128, 256, 1024, 10000, 5), 108: {9, 3, 1}, 510: {0x55, 0xaa}})
	return map[string]oldLabel{
		"zfs_member": zfs(), "crypto_LUKS": text(0, "LUKS\xba\xbe\x00\x02"), "md 1.0": {-8192: testenv.MDSuperblock(imageSize - 8192)}, "md 1.1": {0: testenv.MDSuperblock(0)}, "md 1.2": {4096: testenv.MDSuperblock(4096)},
		"md 0.90": {-65536: testenv.LE32(0xa92b4efc, 0, 90, 0, 0, 0x12345678)}, "isw_raid": text(-1024, "Intel Raid ISM Cfg Sig. 1.0.00"), "ddf": {-512: {0xde, 0x11, 0xde, 0x11}},
		"drbd": {-4096 + 0x3c: {0x83, 0x74, 0x02, 0x6b}}, "ceph_bluestore": text(0, "bluestore block device"), "oracleasm": text(32, "ORCLDISK"),
		"swsuspend": text(4086, "S1SUSPEND"), "swap": text(4086, "SWAPSPACE2"), "btrfs": text(0x10040, "_BHRfS_M"), "f2fs": {1024: testenv.LE32(0xf2f52010)}, "verity": text(0, "verity\x00\x00\x01\x00\x00\x00"),
		"squashfs": text(0, "hsqs"), "cramfs": {0: {0x45, 0x3d, 0xcd, 0x28}}, "romfs": text(0, "-rom1fs-"), "jfs": text(32768, "JFS1"), "reiserfs": text(65536+52, "ReIsEr2Fs"),
		"reiser4": text(65536, "ReIsEr4"), "ocfs2": text(4096, "OCFSV2"), "gfs2": {65536: {1, 0x16, 0x19, 0x70, 0, 0, 0, 1}}, "nilfs2": {1030: {0x34, 0x34}}, "minix": {1040: {0x7f, 0x13}},
		"ufs": {8192 + 1372: {0x19, 0x01, 0x54, 0x19}}, "hfs": text(1024, "BD"), "hfsplus": text(1024, "H+"), "befs": text(32, "1SFB"), "bfs": {0: {0xce, 0xfa, 0xad, 0x1b}},
		"vxfs": {1024: {0xf5, 0xfc, 0x01, 0xa5}}, "VMFS": {1 << 20: testenv.LE32(0xc001d00d)}, "hpfs": {8192: testenv.LE32(0xf995e849), 8704: testenv.LE32(0xf9911849)}, "sysv": {512 + 504: {0xfd, 0x18, 0x7e, 0x20}},
		"iso9660": iso, "udf": udf, "vfat": {0: fat}, "ntfs": {0: ntfs}, "exfat": {0: exfat}, "bcache": {4096: testenv.Padded(64, map[int][]byte{24: {0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba, 0x6d, 0x81}})},
		"silicon": {-512: []byte("\x00")}, "promise": text(-63*512, "Promise Technology, Inc."), "adaptec": {-512: {'D', 'P', 'T', 'M'}}, "lsi": text(-512, "$XIDE$"), "via": {-512: {0x55, 0xaa}},
		"LVM1": text(0, "HM\x01\x00"), "LVM2": text(512, "LABELONE\x01"), "snapshot": text(0, "SnAp"), "stratis": text(512, "!Stra0tis\x86\xff\x02^A\rh"), "erofs": {1024: {0xe2, 0xe1, 0xf5, 0xe0}},
		"apfs": text(32, "NXSB"), "refs": text(0, "\x00\x00\x00ReFS\x00"), "zonefs": {0: testenv.LE32(0x5a4f4653)}, "ubi": text(0, "UBI#"), "ubifs": {0: {0x31, 0x18, 0x10, 0x06}}, "bitlocker": text(0, "\xeb\x58\x90-FVE-FS-"),
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

// TestOldLabels asserts that a volume gets its file system over any former content. blkid finds nothing else there, and
// the volume can be mounted a second time.
func TestOldLabels(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.NeedProgram(t, "losetup")
	m := newMaker(t)
	labels := oldLabels()
	var known atomic.Int32
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
						known.Add(1)
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
	recognized := int(known.Load()) / 2
	t.Logf("%d of %d labels are known to libblkid", recognized, len(labels))
	if recognized < 40 {
		t.Errorf("only %d labels are recognized: the table does not show what it is to show", recognized)
	}
}
