package csi

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

// missingOn returns by how many bytes the file system on a device that is not mounted is
// smaller than it could be. It reads the superblock only: this is done at every mount.
func missingOn(device, fsType string) (int64, error) {
	f, err := os.Open(device)
	if err != nil {
		return 0, fmt.Errorf("cannot read the size of the file system: %w", err)
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, fmt.Errorf("cannot read the size of %s: %w", device, err)
	}
	super := make([]byte, 2048)
	if _, err := f.ReadAt(super, 0); err != nil {
		return 0, fmt.Errorf("cannot read the superblock of %s: %w", device, err)
	}
	var missing int64
	if fsType == diskv1alpha1.FSTypeXFS {
		missing, err = missingXFS(super, size)
	} else {
		missing, err = missingExt4(super[1024:], size)
	}
	if err != nil {
		return 0, fmt.Errorf("superblock of %s: %w", device, err)
	}
	return missing, nil
}

var errNoSuperblock = errors.New("it is not one")

// missingXFS knows the superblock of XFS: sb_magicnum, sb_blocksize, sb_dblocks.
func missingXFS(super []byte, size int64) (int64, error) {
	block, blocks := int64(binary.BigEndian.Uint32(super[4:])), int64(binary.BigEndian.Uint64(super[8:]))
	if string(super[:4]) != "XFSB" || block < 512 || block > 1<<16 || blocks < 0 || blocks > size/block {
		return 0, errNoSuperblock
	}
	return (size/block - blocks) * block, nil
}

// missingExt4 knows the superblock of ext4, and that mke2fs and resize2fs leave out a last
// block group that is too small for its own tables: such a file system is not smaller
// than it could be, and to find that out anew at each mount could take e2fsck hours.
func missingExt4(super []byte, size int64) (int64, error) {
	u16 := func(at int) int64 { return int64(binary.LittleEndian.Uint16(super[at:])) }
	u32 := func(at int) int64 { return int64(binary.LittleEndian.Uint32(super[at:])) }
	const wide, sparse = 0x80, 0x1 // INCOMPAT_64BIT, RO_COMPAT_SPARSE_SUPER
	block := int64(1024) << min(u32(0x18), 6)
	blocks, first, perGroup := u32(0x04), u32(0x14), u32(0x20)
	descriptor := int64(32)
	if u32(0x60)&wide != 0 {
		blocks |= u32(0x150) << 32
		descriptor = max(u16(0xfe), descriptor)
	}
	possible := size / block
	if u16(0x38) != 0xef53 || perGroup == 0 || blocks <= first || blocks > possible {
		return 0, errNoSuperblock
	}
	groups := (possible - first + perGroup - 1) / perGroup
	overhead := 3 + (u32(0x28)*u16(0x58)+block-1)/block
	if u32(0x64)&sparse == 0 || hasSuperblock(groups-1) {
		overhead += 1 + (groups*descriptor+block-1)/block + u16(0xce)
	}
	const useful = 50
	if tail := (possible - first) % perGroup; groups > 1 && tail < overhead+useful {
		possible -= tail
	}
	return max(possible-blocks, 0) * block, nil
}

// hasSuperblock reports whether a block group has a copy of a sparse superblock.
func hasSuperblock(group int64) bool {
	if group <= 1 {
		return true
	}
	for _, base := range []int64{3, 5, 7} {
		power := base
		for power < group {
			power *= base
		}
		if power == group {
			return true
		}
	}
	return false
}
