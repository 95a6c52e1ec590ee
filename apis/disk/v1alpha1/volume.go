package v1alpha1

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berthdev/berth/apis/disk/partition"
)

// DriverName is the name of the CSI driver.
const DriverName = GroupName

// Attributes of a volume: keys of an inline volume's volumeAttributes.
const (
	// AttributeSize is the requested size, a Kubernetes quantity such as 10Gi. It is rounded up to a multiple of
	// Alignment.
	AttributeSize = GroupName + "/size"
	// AttributeClass is the name of a DiskClass.
	AttributeClass = GroupName + "/class"
	// AttributeSpread set to SpreadDisk requests that the volume shares no disk with the pod's other volumes that have
	// it set.
	AttributeSpread = GroupName + "/spread"

	// SpreadDisk is the only value of AttributeSpread.
	SpreadDisk = "disk"
)

// kubeletAttributePrefix is the prefix of the attributes that the kubelet adds to those of the pod (podInfoOnMount).
const kubeletAttributePrefix = "csi.storage.k8s.io/"

// Attributes are the parsed attributes of a volume.
type Attributes struct {
	// Class is the name of a DiskClass, never empty.
	Class string
	// Size in bytes, positive, a multiple of Alignment.
	Size int64
	// Spread is true when the volume must not share a disk with the pod's other volumes that have it set.
	Spread bool
}

// ParseAttributes reads a volume's attributes. The error names the attribute that is missing, unknown or malformed, and
// says what it should be.
func ParseAttributes(attributes map[string]string) (Attributes, error) {
	// In order, so that the same mistake gets the same message every time.
	for _, key := range slices.Sorted(maps.Keys(attributes)) {
		switch {
		case key == AttributeSize, key == AttributeClass, key == AttributeSpread:
		case strings.HasPrefix(key, kubeletAttributePrefix):
		default:
			return Attributes{}, fmt.Errorf("unknown attribute %.64q: the attributes are %s, %s and %s",
				key, AttributeSize, AttributeClass, AttributeSpread)
		}
	}
	size, err := parseSize(attributes[AttributeSize])
	if err != nil {
		return Attributes{}, err
	}
	class := attributes[AttributeClass]
	if class == "" {
		return Attributes{}, fmt.Errorf("attribute %s is missing: set it to the name of a DiskClass", AttributeClass)
	}
	spread := attributes[AttributeSpread]
	if spread != "" && spread != SpreadDisk {
		return Attributes{}, fmt.Errorf("attribute %s is %.64q: it can only be %q", AttributeSpread, spread, SpreadDisk)
	}
	return Attributes{Class: class, Size: size, Spread: spread == SpreadDisk}, nil
}

// sizePattern is the form of the values that are passed on to ParseQuantity. Attributes are not checked before, and
// ParseQuantity computes 10^exponent in full. With "1e999999999" one pod would hold up the scheduler for minutes.
var sizePattern = regexp.MustCompile(`^[+-]?[0-9.]{1,40}([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]{1,2})?$`)

// parseSize reads AttributeSize, and rounds it up to a multiple of Alignment.
func parseSize(value string) (int64, error) {
	if value == "" {
		return 0, fmt.Errorf("attribute %s is missing: set it to a size such as 10Gi", AttributeSize)
	}
	if !sizePattern.MatchString(value) {
		return 0, errNotASize(value)
	}
	quantity, err := resource.ParseQuantity(value)
	if err != nil {
		return 0, errNotASize(value)
	}
	if quantity.Sign() <= 0 {
		return 0, fmt.Errorf("attribute %s is %q: it must be larger than zero", AttributeSize, value)
	}
	// Value() of a quantity that is too large is clamped, so compare before calling it.
	if quantity.CmpInt64(math.MaxInt64-Alignment) > 0 {
		return 0, fmt.Errorf("attribute %s is %q: no disk is that large", AttributeSize, value)
	}
	return AlignUp(quantity.Value()), nil
}

func errNotASize(value string) error {
	return fmt.Errorf("attribute %s is %.64q, which is not a size: write it like 10Gi or 500Mi", AttributeSize, value)
}

// AlignUp rounds a size in bytes up to a multiple of Alignment. The size must be at most MaxInt64-Alignment.
func AlignUp(size int64) int64 {
	return (size + Alignment - 1) / Alignment * Alignment
}

// InlineVolumeID is the CSI volume ID of a pod's inline volume. It is the kubelet's own formula, so that scheduler and
// agent know the volume before the kubelet calls the driver.
func InlineVolumeID(pod types.UID, volume string) string {
	return fmt.Sprintf("csi-%x", sha256.Sum256([]byte(string(pod)+volume)))
}

// PartitionID is the GUID of the partition that holds a volume, in lower case. It follows from the volume ID alone, so
// that a retry finds what the first try made.
func PartitionID(volumeID string) string { return partition.ID(volumeID) }

// CopyID is the GUID of the partition to which a volume is copied when it is moved.
func CopyID(guid string) string { return partition.CopyID(guid) }

// LeftID is the GUID of the place that a volume has left for another disk.
func LeftID(guid string) string { return partition.LeftID(guid) }

// PieceID is the GUID of a further piece of a volume, given the volume's GUID and the number of the piece from 1.
func PieceID(guid string, number int) string { return partition.PieceID(guid, number) }

// PieceIDs are the GUIDs of all further pieces that a volume can have, in their order.
func PieceIDs(guid string) []string {
	ids := make([]string, 0, MaxPieces-1)
	for number := 1; number < MaxPieces; number++ {
		ids = append(ids, PieceID(guid, number))
	}
	return ids
}
