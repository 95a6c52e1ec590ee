package v1alpha1

import (
	"fmt"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// DiskClass says which disks of which nodes belong to Berth, and what pods call
// them. A disk that no class selects is never looked into; one that is selected is
// taken only if it is blank, or already Berth's.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster
// +kubebuilder:printcolumn:name="Rotational",type=string,JSONPath=`.spec.devices.rotational`
// +kubebuilder:printcolumn:name="Models",type=string,JSONPath=`.spec.devices.models`
// +kubebuilder:printcolumn:name="Paths",type=string,JSONPath=`.spec.devices.paths`
// +kubebuilder:printcolumn:name="Min",type=string,JSONPath=`.spec.devices.minSize`
// +kubebuilder:printcolumn:name="Max",type=string,JSONPath=`.spec.devices.maxSize`
// +kubebuilder:printcolumn:name="FSType",type=string,JSONPath=`.spec.fsType`
// +kubebuilder:printcolumn:name="Placement",type=string,JSONPath=`.spec.placementPolicy`
// +kubebuilder:printcolumn:name="Wipe",type=string,JSONPath=`.spec.wipePolicy`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type DiskClass struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec DiskClassSpec `json:"spec"`
}

// DiskClassList is a list of DiskClass.
//
// +kubebuilder:object:root=true
type DiskClassList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []DiskClass `json:"items"`
}

// File systems that a volume can have.
const (
	FSTypeExt4 = "ext4"
	FSTypeXFS  = "xfs"
)

// DiskClassSpec selects disks and says how they are treated.
//
// +kubebuilder:validation:XValidation:rule="!has(self.wipeRate) || quantity(string(self.wipeRate)).compareTo(quantity('1Mi')) >= 0",message="wipeRate must be at least 1Mi, in bytes a second"
type DiskClassSpec struct {
	// NodeSelector selects nodes by their labels; without it, all nodes.
	// +optional
	NodeSelector *metav1.LabelSelector `json:"nodeSelector,omitempty"`

	// Devices selects disks of those nodes. Every criterion that is given must hold.
	Devices DeviceSelector `json:"devices"`

	// FSType is the file system of volumes that ask for none: ext4 or xfs.
	// +optional
	// +kubebuilder:default=ext4
	// +kubebuilder:validation:Enum=ext4;xfs
	FSType string `json:"fsType,omitempty"`

	// PlacementPolicy says which of the places that a volume fits it gets. A change counts for
	// the next volume; those that are there stay where they are.
	// +optional
	// +kubebuilder:default=BestFit
	PlacementPolicy PlacementPolicy `json:"placementPolicy,omitempty"`

	// WipePolicy says what is done to a volume's bytes before its space is free again. It
	// counts as it is when a wipe begins, or is resumed after a restart; volumes on a disk
	// that no class selects any more are wiped with Zero.
	// +optional
	// +kubebuilder:default=Zero
	WipePolicy WipePolicy `json:"wipePolicy,omitempty"`

	// WipeRate bounds, in bytes a second and disk, what wiping writes and reads back, so that
	// it leaves something of a slow disk to others; without it there is no bound. Punching
	// holes and discarding write nothing and are bounded only in their step.
	// +optional
	WipeRate *resource.Quantity `json:"wipeRate,omitempty"`
}

// PlacementPolicy chooses among the free extents of a class that are large enough.
//
// +kubebuilder:validation:Enum=BestFit;Spread
type PlacementPolicy string

const (
	// PlaceBestFit keeps large extents whole, for large volumes: a volume goes to the smallest
	// free extent that holds it. It makes the most of the disks.
	PlaceBestFit PlacementPolicy = "BestFit"
	// PlaceSpread keeps disks equally full: a volume goes to the disk with the most free bytes
	// of those where it fits. So the fewest volumes share a disk's speed, and its failure; but
	// soon no disk has room for a large volume.
	PlaceSpread PlacementPolicy = "Spread"
)

// WipePolicy says how a volume that is gone is wiped.
//
// +kubebuilder:validation:Enum=Zero;Overwrite;SecureDiscard;None
type WipePolicy string

const (
	// WipeZero makes the volume read as zeros by the quickest way that the disk has
	// (punching a hole, the disk's own command for zeros, writing them), and proves it by
	// samples and by reading both ends. What it held may be in the medium's cells still.
	WipeZero WipePolicy = "Zero"
	// WipeOverwrite writes zeros over every byte, and reads all of them back.
	WipeOverwrite WipePolicy = "Overwrite"
	// WipeSecureDiscard has the device destroy what the volume held, copies of it that the
	// device made by itself included, and zeroes what does not read as zeros afterwards.
	// Where the device cannot, it is wiped with Overwrite, and the record of it says so.
	WipeSecureDiscard WipePolicy = "SecureDiscard"
	// WipeNone is unsafe: nothing is wiped, and what the volume held stays on the disk, below
	// the next file system there, for whoever can read the device or has the disk in hand.
	// Only what raw block volumes and growing ones get there is zeroed, first. It is for
	// clusters that hold nothing of worth, such as those of tests.
	WipeNone WipePolicy = "None"
)

// DeviceSelector selects block devices. It must name at least one criterion, so
// that nobody hands over every blank disk of a cluster by leaving a field out.
//
// +kubebuilder:validation:XValidation:rule="has(self.rotational) || (has(self.models) && size(self.models) > 0) || (has(self.paths) && size(self.paths) > 0) || has(self.minSize) || has(self.maxSize)",message="devices must name at least one of rotational, models, paths, minSize, maxSize"
// +kubebuilder:validation:XValidation:rule="!has(self.minSize) || !has(self.maxSize) || quantity(string(self.minSize)).compareTo(quantity(string(self.maxSize))) <= 0",message="minSize must not be larger than maxSize"
type DeviceSelector struct {
	// Rotational selects disks with (true) or without (false) moving heads.
	// +optional
	Rotational *bool `json:"rotational,omitempty"`
	// Models are shell patterns (*, ?, [a-z]) for the model a device says it is; one must match.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=128
	Models []string `json:"models,omitempty"`
	// Paths are shell patterns for the device's path, or for one of its links below
	// /dev/disk; one must match. Loop devices, device-mapper and md devices are selected
	// only by a path.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:Pattern=`^/dev/.+`
	// +kubebuilder:validation:items:MaxLength=256
	Paths []string `json:"paths,omitempty"`
	// MinSize is the least size a disk must have.
	// +optional
	MinSize *resource.Quantity `json:"minSize,omitempty"`
	// MaxSize is the largest size a disk may have.
	// +optional
	MaxSize *resource.Quantity `json:"maxSize,omitempty"`
}

// MinSizeXFS is the least size of an xfs volume, in bytes: mkfs.xfs makes no smaller one.
// ext4 fits into the smallest volume there is, of one Alignment.
const MinSizeXFS int64 = 300 << 20

// ValidateFSSize refuses a volume that is too small for its file system.
func ValidateFSSize(fsType string, size int64) error {
	if fsType == FSTypeXFS && size < MinSizeXFS {
		return fmt.Errorf("%d bytes are too small for %s: ask for at least 300Mi, or use %s", size, FSTypeXFS, FSTypeExt4)
	}
	return nil
}

// ValidateFSType refuses a file system that volumes cannot have. The empty string
// stands for the class's default.
func ValidateFSType(fsType string) error {
	switch fsType {
	case "", FSTypeExt4, FSTypeXFS:
		return nil
	}
	return fmt.Errorf("file system %q is not supported: use %s or %s", fsType, FSTypeExt4, FSTypeXFS)
}
