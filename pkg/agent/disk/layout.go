package disk

import (
	"errors"
	"fmt"

	"github.com/berthdev/berth/pkg/extent"
)

// Numbers of the format. docs/understand/on-disk-format.md explains them.
const (
	// Alignment of volumes on the disk, in bytes.
	Alignment int64 = 1 << 20
	// EntryCount is the number of entries of each copy of the table.
	EntryCount = 1024
	// MetaEntry is the entry of the meta partition, and the last number that the kernel gives to a partition.
	MetaEntry = 255
	// MaxVolumes is the number of entries that may hold a volume: all but the meta partition's.
	MaxVolumes = EntryCount - 1

	entrySize  = 128
	arrayBytes = EntryCount * entrySize
	// minDiskSize leaves room for the two copies of the table, the meta partition, and one volume of 1 MiB.
	minDiskSize = 4 * Alignment
	// maxDiskSize keeps every sum of two offsets within an int64.
	maxDiskSize = 1 << 60
)

// Types of our partitions: of the meta partition, of a volume by its phase, and of a further piece of a volume.
const (
	TypeMeta      = "7a94c41c-0015-4d60-b769-dc4877ee5efd"
	TypePiece     = "5b1f7c0e-61d2-4f0a-9c53-2e7a90d4b8f6"
	TypeReserved  = "fea44b31-d2d4-414c-b7a3-cbfbbdd1620f"
	TypeFormatted = "838cf6ab-1c2e-4455-bc96-31cb71706c79"
	TypeWiping    = "d1d645c5-53d4-4695-a071-e0662fe23b2e"
	TypeCopying   = "89f1573b-262b-482f-9281-fa91739bf7e7"
	TypeArriving  = "6c1d0a5e-93b8-4f0e-8d8e-3a54c0f2b917"
	TypeMoved     = "b7e2f4c9-5a06-4c7d-9f31-0e8d6a1c2b45"
)

// Attributes of a volume's entry. Bits 48 to 63 belong to the partition's type.
const (
	// AttributeEphemeral marks a volume that ends with its pod.
	AttributeEphemeral uint64 = 1 << 48
	// AttributeRaw marks a raw block volume: it has no file system of ours.
	AttributeRaw uint64 = 1 << 49
	// pieceBits of a volume's entry are how many further pieces the volume has. Those of a piece's entry are its number.
	pieceBits  uint64 = 0xf << pieceShift
	pieceShift        = 50
)

// metaName is the name of the meta partition. It is only displayed.
const metaName = "berth meta"

// layout knows where on a disk the parts of its table lie. It is the only type that counts sectors, whose numbers are
// called LBA. All other code counts bytes.
type layout struct {
	size, sector int64
}

// newLayout returns the layout of a disk of size bytes in sectors of sector bytes.
func newLayout(size, sector int64) (layout, error) {
	if reason := unsuitable(size, sector); reason != "" {
		return layout{}, errors.New(reason)
	}
	return layout{size: size, sector: sector}, nil
}

// unsuitable says why a disk of that size cannot be used. It is empty if it can.
func unsuitable(size, sector int64) string {
	switch {
	case sector != 512 && sector != 1024 && sector != 2048 && sector != 4096:
		return fmt.Sprintf("sectors of %d bytes are not supported: they must be 512, 1024, 2048 or 4096", sector)
	case size < minDiskSize:
		return fmt.Sprintf("%d bytes are too small: a disk needs at least %d", size, minDiskSize)
	case size > maxDiskSize || size%sector != 0:
		return fmt.Sprintf("a size of %d bytes makes no sense with sectors of %d", size, sector)
	}
	return ""
}

func (l layout) lastLBA() uint64      { return uint64(l.size/l.sector) - 1 }
func (l layout) arraySectors() uint64 { return uint64(arrayBytes / l.sector) }

// firstUsable and lastUsable are the sectors between the two copies of the table.
func (l layout) firstUsable() uint64 { return 2 + l.arraySectors() }
func (l layout) lastUsable() uint64  { return l.lastLBA() - l.arraySectors() - 1 }

// location is the place of one copy of the table: a header of one sector, and the array of the entries. They touch, so
// that a copy is one run of bytes.
type location struct {
	name string
	// otherLBA is the header of the other copy.
	headerLBA, otherLBA, arrayLBA uint64
}

// primary is the copy at the beginning of the disk.
func (l layout) primary() location {
	return location{"primary", 1, l.lastLBA(), 2}
}

// backup is the copy at the end of the disk.
func (l layout) backup() location {
	return location{"backup", l.lastLBA(), 1, l.lastLBA() - l.arraySectors()}
}

// copyBytes is the length of a copy, and copyOffset where it begins.
func (l layout) copyBytes() int64             { return l.sector + arrayBytes }
func (l layout) copyOffset(at location) int64 { return l.offset(min(at.headerLBA, at.arrayLBA)) }

// split splits the bytes of a copy into the header and the array.
func (l layout) split(at location, b []byte) (header, array []byte) {
	if at.headerLBA < at.arrayLBA {
		return b[:l.sector], b[l.sector:]
	}
	return b[arrayBytes:], b[:arrayBytes]
}

// offset is where a sector begins, in bytes.
func (l layout) offset(lba uint64) int64 { return int64(lba) * l.sector }

// usable are the bytes between the two copies of the table.
func (l layout) usable() extent.Extent {
	return extent.Extent{Start: l.offset(l.firstUsable()), End: l.offset(l.lastUsable() + 1)}
}

// managed are the bytes that volumes and the meta partition share: the usable ones, aligned.
func (l layout) managed() extent.Extent {
	u := l.usable()
	return extent.Extent{Start: alignUp(u.Start), End: alignDown(u.End)}
}

// meta is the place of the meta partition. It is at the beginning, so that it stays in place when a disk grows.
func (l layout) meta() extent.Extent { return extent.New(Alignment, Alignment) }

func alignDown(n int64) int64 { return n / Alignment * Alignment }
func alignUp(n int64) int64   { return alignDown(n + Alignment - 1) }
func aligned(e extent.Extent) bool {
	return !e.Empty() && e.Start%Alignment == 0 && e.End%Alignment == 0
}
