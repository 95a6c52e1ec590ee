package v1alpha1

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berthdev/berth/apis/disk/partition"
)

const (
	// LabelNode is the label of a node by which PersistentVolumes name it. It is the topology key of the driver: the
	// kubelet sets it when the agent registers. On a PersistentVolume it is how the node's agent finds its own. The
	// value is the node's name, or a hash of it if the name is too long for a label.
	LabelNode = GroupName + "/node"

	// LabelOnNodeGone on a namespace allows the scheduler to delete all claims of the namespace whose DiskClass has policy
	// Release, when their node is gone. Its value is Release.
	LabelOnNodeGone = GroupName + "/on-node-gone"

	// FinalizerVolume keeps a PersistentVolume until the node's agent has wiped its volume, or leaves it to an operator
	// (reclaim policy Retain).
	FinalizerVolume = GroupName + "/volume"

	// AnnotationMovedTo on a PersistentVolume is the id of the disk that has its volume. The node sets it when it put
	// the volume on another disk than the one in its attributes, which cannot change. While that disk is away the
	// volume is not made again.
	AnnotationMovedTo = GroupName + "/moved-to"
	// AnnotationMoveTo on a PersistentVolume is the place to which the node's agent moves the volume while no pod uses
	// it. It is DISK/START/LENGTH: the id of the disk, and bytes. The scheduler sets it when the volume must grow and
	// cannot where it is, or when its disk is drained or compacted. The extent is reserved from then on. The scheduler
	// removes the annotation when the node publishes the volume there.
	AnnotationMoveTo = GroupName + "/move-to"
	// AnnotationNodeGone on a PersistentVolume means that it is removed without its node, which is gone, once its claim
	// is gone. Its value is the reclaim policy that the PersistentVolume had before. Meanwhile the policy is Retain: if
	// the node is back, it wipes nothing. The scheduler sets it as the DiskClass says, and an operator by hand.
	AnnotationNodeGone = GroupName + "/node-gone"
	// AnnotationPieces on a PersistentVolume are the further pieces of its volume, in their order, without the first
	// one: DISK/START/LENGTH,DISK/START/LENGTH. The scheduler sets it in the write that raises the capacity, which is the
	// sum of all pieces. The extents are reserved from then on. A volume of one piece has no such annotation.
	AnnotationPieces = GroupName + "/pieces"
	// AnnotationSettled on a PersistentVolume is the version that it had when the scheduler did not know whether its
	// capacity had been raised. Writing the annotation makes a new version. So a raise that was still under way is
	// refused as a conflict.
	AnnotationSettled = GroupName + "/settled"
)

// Parameters of a StorageClass, beside AttributeClass and AttributeSpread.
const (
	// ParameterFSType is ext4 or xfs; without it the DiskClass's default.
	ParameterFSType = "csi.storage.k8s.io/fstype"
	// ParameterHeadroom is how much must be free behind a new volume, so that it can grow. It is a quantity such as
	// 20Gi, or a percentage of the volume's size such as 50%.
	ParameterHeadroom = GroupName + "/headroom"
)

// Attributes of a PersistentVolume: where the scheduler placed it. They are a placement, never a permission. Once the
// volume is on a disk, the disk is authoritative.
const (
	// AttributeDisk is the id of the disk, as in NodeDiskCapacity: a GUID in lower case.
	AttributeDisk = GroupName + "/disk"
	// AttributeStart is where the volume begins on the disk, in bytes. It is a multiple of Alignment.
	AttributeStart = GroupName + "/start"
	// AttributeLength is how long the volume is, in bytes. It is a multiple of Alignment.
	AttributeLength = GroupName + "/length"
)

// volumeIDPrefix begins the names of provisioned volumes, as with other provisioners.
const volumeIDPrefix = "pvc-"

// ClaimVolumeID is the CSI volume ID of a claim's volume, and the name of its PersistentVolume.
func ClaimVolumeID(claim types.UID) string { return volumeIDPrefix + string(claim) }

// NamedVolumeID is the CSI volume ID of a volume that a CSI CreateVolume call names. It is the name itself if it is a
// claim's, else an ID of the same form that is derived from the name.
func NamedVolumeID(name string) string {
	if _, ok := VolumeUUID(name); ok {
		return name
	}
	return volumeIDPrefix + uuid.NewSHA1(partition.Namespace, []byte("name:"+name)).String()
}

// VolumeUUID is the part of a persistent volume's ID that fits into the name of its partition. PersistentVolumeID makes
// the ID from it again.
func VolumeUUID(volumeID string) (string, bool) {
	id, ok := strings.CutPrefix(volumeID, volumeIDPrefix)
	if !ok {
		return "", false
	}
	parsed, err := uuid.Parse(id)
	return id, err == nil && parsed.String() == id
}

// PersistentVolumeID is the CSI volume ID of the persistent volume whose partition has that name and GUID, if the two
// belong together.
func PersistentVolumeID(partitionName, guid string) (string, bool) {
	id := volumeIDPrefix + partitionName
	_, ok := VolumeUUID(id)
	return id, ok && PartitionID(id) == guid
}

// CopiedVolumeID is the CSI volume ID of the persistent volume to whose move the partition with that name and GUID
// belongs: as its copy, or as the place that it has left. Both bear the name of their volume.
func CopiedVolumeID(partitionName, guid string) (string, bool) {
	id := volumeIDPrefix + partitionName
	_, ok := VolumeUUID(id)
	return id, ok && (CopyID(PartitionID(id)) == guid || LeftID(PartitionID(id)) == guid)
}

// NodeLabel is the value of LabelNode for a node: its name, or a hash of it if the name is too long for a label.
func NodeLabel(node string) string {
	const limit = 63
	if len(node) <= limit {
		return node
	}
	sum := sha256.Sum256([]byte(node))
	return "node-" + hex.EncodeToString(sum[:16])
}

// Parameters are the parsed parameters of a StorageClass.
type Parameters struct {
	// Class is the name of a DiskClass, never empty.
	Class string
	// FSType is ext4, xfs or empty.
	FSType string
	// Spread is as in Attributes.
	Spread bool

	headroom        int64
	headroomPercent int64
}

// ParseParameters reads a StorageClass's parameters. The error names the parameter that is missing, unknown or
// malformed, and says what it should be.
func ParseParameters(parameters map[string]string) (Parameters, error) {
	var p Parameters
	for _, key := range slices.Sorted(maps.Keys(parameters)) {
		value := parameters[key]
		var err error
		switch key {
		case AttributeClass:
			p.Class = value
		case AttributeSpread:
			if p.Spread = value == SpreadDisk; !p.Spread && value != "" {
				err = fmt.Errorf("parameter %s is %.64q: it can only be %q", key, value, SpreadDisk)
			}
		case ParameterFSType:
			p.FSType, err = value, ValidateFSType(value)
		case ParameterHeadroom:
			p.headroom, p.headroomPercent, err = parseHeadroom(value)
		default:
			err = fmt.Errorf("unknown parameter %.64q: the parameters are %s, %s, %s and %s", key, AttributeClass, ParameterFSType, AttributeSpread, ParameterHeadroom)
		}
		if err != nil {
			return Parameters{}, err
		}
	}
	if p.Class == "" {
		return Parameters{}, fmt.Errorf("parameter %s is missing: set it to the name of a DiskClass", AttributeClass)
	}
	return p, nil
}

// MaxVolumeSize is more than any disk has, and small enough for sums and products of sizes to stay within an int64.
const MaxVolumeSize int64 = 1 << 52

// maxHeadroomPercent is far beyond use, and keeps the product with MaxVolumeSize within an int64.
const maxHeadroomPercent = 1000

// parseHeadroom reads a headroom, which is either bytes or a percentage.
func parseHeadroom(value string) (bytes, percent int64, err error) {
	if digits, ok := strings.CutSuffix(value, "%"); ok {
		percent, err := strconv.ParseInt(digits, 10, 64)
		if err != nil || percent < 0 || percent > maxHeadroomPercent {
			return 0, 0, fmt.Errorf("parameter %s is %.64q: a percentage is a whole number from 0%% to %d%%", ParameterHeadroom, value, maxHeadroomPercent)
		}
		return 0, percent, nil
	}
	malformed := fmt.Errorf("parameter %s is %.64q: write it like 20Gi or 50%%", ParameterHeadroom, value)
	if !sizePattern.MatchString(value) {
		return 0, 0, malformed
	}
	quantity, err := resource.ParseQuantity(value)
	if err != nil || quantity.Sign() < 0 || quantity.CmpInt64(MaxVolumeSize) > 0 {
		return 0, 0, malformed
	}
	return AlignUp(quantity.Value()), 0, nil
}

// Headroom is how many bytes must be free behind a new volume of that size, at most MaxInt64 rounded down to Alignment.
func (p Parameters) Headroom(size int64) int64 {
	if p.headroomPercent == 0 {
		return p.headroom
	}
	if size/100 >= (math.MaxInt64-2*Alignment)/p.headroomPercent {
		// More than any disk has.
		return math.MaxInt64 / Alignment * Alignment
	}
	return AlignUp(size/100*p.headroomPercent + size%100*p.headroomPercent/100)
}
