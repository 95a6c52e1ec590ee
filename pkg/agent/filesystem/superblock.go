package filesystem

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

// State is read from the superblock of a file system.
type State struct {
	// Growable is how many bytes the file system is smaller than its device allows.
	Growable int64
	// Limit is the size in bytes to which it can grow while it is not mounted.
	Limit int64
	// NeedsCheck is true if the file system had errors, or was not unmounted. Then it must be checked before it is
	// mounted. It is always false for xfs: the kernel replays its log, or refuses to mount it.
	NeedsCheck bool
	// NeverMounted is true if it has never been mounted.
	NeverMounted bool
	// size of the device.
	size int64
}

// ReadSuperblock reads the superblock of a file system, and nothing else, because it runs at every mount.
func ReadSuperblock(device, fsType string) (State, error) {
	f, err := os.Open(device)
	if err != nil {
		return State{}, fmt.Errorf("cannot read the superblock: %w", err)
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return State{}, fmt.Errorf("cannot read the size of %s: %w", device, err)
	}
	super := make([]byte, 2048)
	if _, err := f.ReadAt(super, 0); err != nil {
		return State{}, fmt.Errorf("cannot read the superblock of %s: %w", device, err)
	}
	var state State
	if fsType == diskv1alpha1.FSTypeXFS {
		state, err = xfs(super).state(size)
	} else {
		state, err = ext4(super[1024:]).state(size)
	}
	if err != nil {
		return State{}, fmt.Errorf("superblock of %s: %w", device, err)
	}
	state.size = size
	return state, nil
}

var errNoSuperblock = errors.New("it is not one")

// xfs is a superblock of XFS.
type xfs []byte

// state reads sb_magicnum, sb_blocksize and sb_dblocks.
func (x xfs) state(size int64) (State, error) {
	block, blocks := int64(binary.BigEndian.Uint32(x[4:])), int64(binary.BigEndian.Uint64(x[8:]))
	if string(x[:4]) != "XFSB" || block < 512 || block > 1<<16 || blocks < 0 || blocks > size/block {
		return State{}, errNoSuperblock
	}
	return State{Growable: (size/block - blocks) * block, Limit: math.MaxInt64}, nil
}

// ext4 is a superblock of ext4, from its first byte.
type ext4 []byte

func (e ext4) u16(at int) int64 { return int64(binary.LittleEndian.Uint16(e[at:])) }
func (e ext4) u32(at int) int64 { return int64(binary.LittleEndian.Uint32(e[at:])) }

// Bits of the superblock.
const (
	validFS        = 0x1 // s_state
	errorFS        = 0x2
	resizeInode    = 0x10 // s_feature_compat
	needsRecovery  = 0x4  // s_feature_incompat
	metaGroups     = 0x10
	is64Bit        = 0x80
	sparseSuper    = 0x1 // s_feature_ro_compat
	compatAt       = 0x5c
	incompatAt     = 0x60
	roCompatAt     = 0x64
	reservedGDTAt  = 0xce
	lastMountAt    = 0x2c
	stateAt        = 0x3a
	maxBlockGroups = 1 << 31
)

// state reads the state from the superblock. The numbers are offsets in it, as in ext4's documentation.
func (e ext4) state(size int64) (State, error) {
	block := int64(1024) << min(e.u32(0x18), 6)
	blocks, first, perGroup := e.u32(0x04), e.u32(0x14), e.u32(0x20)
	descriptor := int64(32)
	if e.u32(incompatAt)&is64Bit != 0 {
		blocks |= e.u32(0x150) << 32
		descriptor = min(max(e.u16(0xfe), descriptor), block)
	}
	if e.u16(0x38) != 0xef53 || perGroup == 0 || blocks <= first || blocks > size/block {
		return State{}, errNoSuperblock
	}
	return State{
		Growable:     e.missing(size, block, blocks, first, perGroup, descriptor),
		Limit:        e.limit(block, blocks, first, perGroup, descriptor),
		NeedsCheck:   e.u16(stateAt)&validFS == 0 || e.u16(stateAt)&errorFS != 0 || e.u32(incompatAt)&needsRecovery != 0,
		NeverMounted: e.u32(lastMountAt) == 0,
	}, nil
}

// missing accounts for the last block group, which mke2fs and resize2fs leave out if it is too small for its own
// tables. Such a file system cannot be larger. Finding that out with e2fsck at each mount could take hours.
func (e ext4) missing(size, block, blocks, first, perGroup, descriptor int64) int64 {
	possible := size / block
	groups := (possible - first + perGroup - 1) / perGroup
	overhead := 3 + (e.u32(0x28)*e.u16(0x58)+block-1)/block
	if e.u32(roCompatAt)&sparseSuper == 0 || hasSuperblock(groups-1) {
		overhead += 1 + (groups*descriptor+block-1)/block + e.u16(reservedGDTAt)
	}
	const useful = 50
	if tail := (possible - first) % perGroup; groups > 1 && tail < overhead+useful {
		possible -= tail
	}
	return max(possible-blocks, 0) * block
}

// limit is the size up to which the reserved group descriptors suffice. Beyond it resize2fs has to move inode tables,
// and destroys file systems that it grows about 1000-fold. Without a resize inode, or with descriptors spread over the
// groups (meta_bg), there is no such limit.
func (e ext4) limit(block, blocks, first, perGroup, descriptor int64) int64 {
	if e.u32(compatAt)&resizeInode == 0 || e.u32(incompatAt)&metaGroups != 0 {
		return math.MaxInt64
	}
	perBlock := block / descriptor
	groups := (blocks - first + perGroup - 1) / perGroup
	descriptorBlocks := (groups+perBlock-1)/perBlock + e.u16(reservedGDTAt)
	if groups > maxBlockGroups || perGroup > 8*block {
		// No valid file system has these values: it must not grow.
		return blocks * block
	}
	return (first + descriptorBlocks*perBlock*perGroup) * block
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
