// Package partition derives the GUIDs of partitions. Scheduler, provisioner and agent compute the same GUID, each from
// what it knows, so that a retry finds what the first try made.
//
// Changing a name space or a prefix would orphan every existing volume.
package partition

import (
	"strconv"

	"github.com/google/uuid"
)

// MaxPieces is how many pieces a volume can have, with its first one.
const MaxPieces = 16

// Namespace is the UUIDv5 name space of all GUIDs here. It is derived from the name of the API group.
var Namespace = uuid.NewSHA1(uuid.NameSpaceDNS, []byte("disk.berth.dev"))

// ID is the GUID of the partition that holds a volume, in lower case. It follows from the CSI volume ID alone. If the
// volume has several pieces, it is the GUID of the first one, and identifies the volume.
func ID(volumeID string) string { return derive(volumeID) }

// CopyID is the GUID of the partition to which a volume is copied when it is moved. When the copy is complete, the two
// partitions exchange their GUIDs: from then on this is the GUID of the earlier place, which is wiped.
func CopyID(volume string) string { return derive("copy:" + volume) }

// LeftID is the GUID of the place that a volume has left for another disk, until that place is wiped.
func LeftID(volume string) string { return derive("left:" + volume) }

// PieceID is the GUID of piece number of a volume, given the GUID of its first piece. The first piece is number 0, and
// further ones are 1 to MaxPieces-1. The earlier place of a volume that has moved is a set of pieces as well: its first
// GUID is the CopyID.
func PieceID(volume string, number int) string {
	if number == 0 {
		return volume
	}
	return derive("piece:" + strconv.Itoa(number) + ":" + volume)
}

func derive(name string) string { return uuid.NewSHA1(Namespace, []byte(name)).String() }
