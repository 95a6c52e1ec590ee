// Package extent is the arithmetic of space on a disk: runs of bytes, and sets of them. It owns no policy and knows
// neither disks nor volumes.
//
// Free space is a set of bytes, not a count of them. Subtracting an extent that is already gone changes nothing. So a
// caller that sees the same volume twice, or two facts in the wrong order, reports too little free space, never too
// much.
package extent

import "fmt"

// Extent is the run of bytes [Start, End) on a disk.
type Extent struct {
	Start, End int64
}

// New returns the extent of length bytes from start. The sum must not overflow.
func New(start, length int64) Extent {
	return Extent{Start: start, End: start + length}
}

// Len is the length in bytes.
func (e Extent) Len() int64 { return e.End - e.Start }

// Empty reports whether the extent holds no byte.
func (e Extent) Empty() bool { return e.End <= e.Start }

// Contains reports whether every byte of other is in e. The empty extent is in every extent.
func (e Extent) Contains(other Extent) bool {
	return other.Empty() || (e.Start <= other.Start && other.End <= e.End)
}

// Overlaps reports whether e and other share a byte.
func (e Extent) Overlaps(other Extent) bool {
	return max(e.Start, other.Start) < min(e.End, other.End)
}

// String writes the extent as [start,end).
func (e Extent) String() string { return fmt.Sprintf("[%d,%d)", e.Start, e.End) }
