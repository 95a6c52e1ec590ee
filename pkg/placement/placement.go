package placement

import "github.com/berthdev/berth/pkg/extent"

// Alignment is the unit of placement in bytes: sizes and free extents are multiples of it.
const Alignment int64 = 1 << 20

// Request requests room for one volume.
type Request struct {
	// Class of disk wanted.
	Class string
	// Size in bytes, positive, a multiple of 1 MiB.
	Size int64
	// Apart requests that the volume shares no disk with the plan's other requests that have it set.
	Apart bool
	// Policy chooses among the places where the volume fits.
	Policy Policy
	// MaxPieces is of how many free extents of one disk the volume may consist if no single one holds it. Zero and one
	// mean that it lies inside one extent.
	MaxPieces int
}

// Splits reports whether the volume may consist of several extents.
func (r *Request) Splits() bool { return r.MaxPieces > 1 }

// Disk is the part of a disk's state that placement needs.
type Disk struct {
	// ID is the disk's identity and breaks ties.
	ID string
	// Class of the disk.
	Class string
	// Free space, aligned to 1 MiB.
	Free extent.Set
	// Usable is how many bytes volumes could have if the disk had none: its size less its overhead. Zero means not
	// known. Only [NoFit] reads it, to distinguish "full" from "never large enough".
	Usable int64
}

// Node is the disks of one node that take volumes, sorted by ID. Nothing in this package changes it, so many goroutines
// may read one Node.
type Node struct {
	Disks []Disk
	// Pieces is true if the node can attach volumes of several pieces. Otherwise each volume lies inside one extent.
	Pieces bool
}

// Assignment is the place of one request.
type Assignment struct {
	// Disk is the ID of the disk.
	Disk string
	// Extent is exactly as long as the request's Size, together with Further.
	Extent extent.Extent
	// Further are the other pieces of a volume that no single extent holds, in their order. They are on the same disk.
	Further []extent.Extent
}
