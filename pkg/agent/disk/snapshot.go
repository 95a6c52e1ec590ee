package disk

import (
	"errors"
	"fmt"

	"github.com/berthdev/berth/pkg/extent"
)

// Errors that callers branch on. Every error of this package that has one of these causes wraps it.
var (
	// ErrOverlap means that the requested extent is not free. Place the volume elsewhere.
	ErrOverlap = errors.New("extent is not free")
	// ErrNoEntry means that the table has no room for another volume.
	ErrNoEntry = errors.New("partition table has no free entry")
	// ErrInUse means that the volume, or the disk, is mounted or a process has its device open. It also means that the
	// volume is being wiped or moved.
	ErrInUse = errors.New("volume is in use")
	// ErrNotFound means that the disk has no such volume.
	ErrNotFound = errors.New("no such volume")
	// ErrIncomplete means that the table does not have all pieces of the volume, or has more. Another program changed it.
	// Only Wipe is possible.
	ErrIncomplete = errors.New("volume is incomplete")
	// ErrNoMapper means that the kernel has no device mapper, which a volume of several pieces needs.
	ErrNoMapper = errors.New("the kernel has no device mapper")
	// ErrOutOfService means that the disk's state is unknown or its device is gone. Nothing is
	// read from it or written to it any more; it must be opened again.
	ErrOutOfService = errors.New("disk is out of service")
)

// Phase is a volume's phase. On the disk it is the type of the partition.
type Phase string

const (
	// Reserved means that the extent is the volume's, and holds no data yet.
	Reserved Phase = "Reserved"
	// Formatted means that the extent holds a file system and, maybe, data.
	Formatted Phase = "Formatted"
	// Wiping means that the volume is deleted and has no device. Its bytes are being zeroed and checked.
	Wiping Phase = "Wiping"
	// Copying means that the extent is the target of a move, and holds an incomplete copy of another volume. It has no
	// device. Its Partition is the copy's, and Name and attributes are those of the volume.
	Copying Phase = "Copying"
	// Arriving is Copying for a volume of another disk. From the moment at which that disk has Moved in its place, the
	// copy is complete and the volume.
	Arriving Phase = "Arriving"
	// Moved means that the volume has left for another disk, which has all of it. The extent holds what the volume held.
	// It has no device. Its Partition is the one that the mover chose, and Name and attributes are those of the volume.
	Moved Phase = "Moved"
	// OrphanPiece means that the extent is a piece of a volume whose first piece is not on the disk. Another program
	// removed it. It has no device and no attributes, and its Partition is the piece's. Wipe is possible, and only an
	// operator may decide that.
	OrphanPiece Phase = "OrphanPiece"
)

// HasDevice reports whether the kernel shows volumes of that phase.
func (p Phase) HasDevice() bool { return p == Reserved || p == Formatted }

// checkUsable returns an error for a volume in a phase without device: ErrInUse, or ErrIncomplete for a piece alone.
func (p Phase) checkUsable(partition string) error {
	switch p {
	case Wiping:
		return fmt.Errorf("volume %s is being wiped: %w", partition, ErrInUse)
	case Copying, Arriving:
		return fmt.Errorf("volume %s is the target of a move: %w", partition, ErrInUse)
	case Moved:
		return fmt.Errorf("volume %s is the place that a volume has left for another disk: %w", partition, ErrInUse)
	case OrphanPiece:
		return fmt.Errorf("%s is a piece of a volume whose first piece is gone: %w", partition, ErrIncomplete)
	}
	return nil
}

// Attachment is the way in which the kernel shows a volume.
type Attachment string

const (
	// Partition is a partition of the kernel, or a loop device where its numbers end. It can only grow in place while it
	// is in use.
	Partition Attachment = "Partition"
	// DeviceMapper is a linear device of the device mapper. It can get another piece while it is in use.
	DeviceMapper Attachment = "DeviceMapper"
)

// Piece is a further piece of a volume: a partition of its own.
type Piece struct {
	// Partition is the piece's GUID in lower case: partition.PieceID of the volume's and of the number.
	Partition string
	// Number of the piece, from 1. If the volume is complete, it is one more than the index in Volume.Pieces.
	Number int
	// Extent on the disk, aligned to 1 MiB.
	Extent extent.Extent
	// Index of the table's entry, from 1.
	Index int
}

// Volume is a partition of ours that holds a volume, or the first piece of one.
type Volume struct {
	// Partition is the partition's GUID in lower case, the identity of the volume.
	Partition string
	// Name is shown by partition tools: ASCII, at most 36 characters.
	Name string
	// Extent on the disk of the first piece, aligned to 1 MiB. Most volumes have no other.
	Extent extent.Extent
	// Pieces are the further pieces on the disk, by number. Their phase is the volume's.
	Pieces []Piece
	// Incomplete says what is wrong with the pieces, as the rest of a sentence about the volume. It is empty if all are
	// there.
	Incomplete string
	// Phase is the volume's phase.
	Phase Phase
	// Ephemeral volumes end with their pod.
	Ephemeral bool
	// Raw volumes are block devices for their users: they never get a file system of ours.
	Raw bool
	// Note names the owner. It is empty if the volume was made without, or if its note is lost.
	Note string
	// Wipe says how the volume will be wiped. It is zero if that is not known. In phase Wiping it says how it is being
	// wiped.
	Wipe WipeSettings
	// Index of the table's entry, from 1. Up to 254 also the number of the kernel's partition.
	Index int
	// Device is the block device of the volume. It is like /dev/dm-7 if the disk is mapped, else like /dev/nvme0n1p3,
	// or /dev/loop7 for an index above 254. It is empty if the kernel does not show the volume: in the phases
	// without device, and while the volume is moved.
	Device string
	// Attachment is the way in which Device shows the volume. It is empty without Device.
	Attachment Attachment
	// NotAttached says why the volume has no device though its phase has one. It is empty if there is no such reason.
	NotAttached string
	// Prezeroed is true when this Disk zeroed the whole extent and nothing has written to it since. Then mkfs need not
	// clear it again.
	Prezeroed bool
}

// Extents are the places of all pieces, in the order of the volume's bytes.
func (v Volume) Extents() []extent.Extent {
	all := []extent.Extent{v.Extent}
	for _, p := range v.Pieces {
		all = append(all, p.Extent)
	}
	return all
}

// Length of all pieces together.
func (v Volume) Length() int64 {
	total := int64(0)
	for _, e := range v.Extents() {
		total += e.Len()
	}
	return total
}

// Snapshot is the state of a disk at one moment. It never changes.
//
// Invariants, which tests check with package test/space:
//  1. Size = Overhead + Free.Total() + the lengths of all Volumes.
//  2. Free and all pieces of volumes are disjoint and aligned to 1 MiB.
//  3. Volumes are sorted by the start of their first piece, and no two pieces share a Partition or an Index.
type Snapshot struct {
	// ID is the GUID of the disk's table in lower case, the identity of the disk.
	ID string
	// Owner is the node that the disk belongs to. It is zero if the disk has none.
	Owner Owner
	// Path of the device as it was opened.
	Path string
	// Size of the device in bytes.
	Size int64
	// SectorSize is the logical sector size in bytes.
	SectorSize int64
	// Overhead is the part of Size in bytes that can never hold a volume: tables, the meta partition, foreign
	// partitions, and what alignment cuts off.
	Overhead int64
	// Free holds no volume. Former volumes there read as zeros, unless one was wiped by WipeNone.
	Free extent.Set
	// Volumes on the disk in any phase, sorted by start.
	Volumes []Volume
	// Err says why the disk is out of service, and wraps ErrOutOfService. It is nil if the disk serves.
	Err error
}

// IsFull reports whether the table has no entry left for another volume or piece.
func (s *Snapshot) IsFull() bool {
	used := len(s.Volumes)
	for i := range s.Volumes {
		used += len(s.Volumes[i].Pieces)
	}
	return used >= MaxVolumes
}

// Volume returns the volume of the given partition GUID.
func (s *Snapshot) Volume(partition string) (Volume, bool) {
	for i := range s.Volumes {
		if s.Volumes[i].Partition == partition {
			return s.Volumes[i], true
		}
	}
	return Volume{}, false
}
