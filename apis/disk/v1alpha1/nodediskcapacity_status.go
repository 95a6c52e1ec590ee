package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// NodeDiskCapacityStatus is what the agent observed.
type NodeDiskCapacityStatus struct {
	// Disks are the disks that Berth manages on the node, sorted by id.
	// +optional
	// +listType=map
	// +listMapKey=id
	// +kubebuilder:validation:MaxItems=128
	Disks []Disk `json:"disks,omitempty"`

	// Devices are the whole block devices of the node that could be disks, sorted by name.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=256
	Devices []Device `json:"devices,omitempty"`

	// DeviceMapper is true when the node's kernel has the device mapper. Without it volumes have one piece each.
	// +optional
	DeviceMapper bool `json:"deviceMapper,omitempty"`

	// Conditions: Ready, DevicesRefused, OrphanedVolumes, ReclaimStopped and further ones.
	// +optional
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=16
	Conditions []metav1.Condition `json:"conditions,omitempty"`

	// Evictions are pods of the node whose volumes do not fit on it, and which a controller makes again. The agent
	// writes the list. The scheduler's leader evicts those that it may.
	// +optional
	// +listType=map
	// +listMapKey=uid
	// +kubebuilder:validation:MaxItems=64
	Evictions []EvictionRequest `json:"evictions,omitempty"`

	// Summary has the columns of `kubectl get ndc`.
	// +optional
	Summary Summary `json:"summary,omitempty"`
}

// EvictionRequest names a pod that must be evicted.
type EvictionRequest struct {
	// Namespace of the pod.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Namespace string `json:"namespace"`
	// Name of the pod.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`
	// UID of the pod. Another pod of that name is not evicted.
	UID types.UID `json:"uid"`
}

// DeviceState says what the agent does with a device.
//
// +kubebuilder:validation:Enum=InUse;Candidate;Excluded;Foreign;Busy;Failed
type DeviceState string

const (
	// DeviceInUse is a disk of Berth's in service.
	DeviceInUse DeviceState = "InUse"
	// DeviceCandidate is blank, selected and not taken yet. It waits for approval, or until newDeviceGrace has passed.
	// Reasons says for which of them.
	DeviceCandidate DeviceState = "Candidate"
	// DeviceExcluded is selected by no class, or must not be used. It is not read.
	DeviceExcluded DeviceState = "Excluded"
	// DeviceForeign holds something that is not Berth's, or belongs to another node.
	DeviceForeign DeviceState = "Foreign"
	// DeviceBusy is open, mounted or held by something else.
	DeviceBusy DeviceState = "Busy"
	// DeviceFailed could not be read, or is a disk of Berth's that cannot serve.
	DeviceFailed DeviceState = "Failed"
)

// Device is a whole block device of the node.
type Device struct {
	// Name is the kernel's name now, such as nvme0n1. It may be another one after a reboot.
	// +kubebuilder:validation:MaxLength=64
	Name string `json:"name"`
	// ByID is the device's most stable path: below /dev/disk/by-id if it has one, else below
	// /dev/mapper or /dev/disk/by-path.
	// +optional
	// +kubebuilder:validation:MaxLength=256
	ByID string `json:"byID,omitempty"`
	// WWN is the world wide name.
	// +optional
	// +kubebuilder:validation:MaxLength=128
	WWN string `json:"wwn,omitempty"`
	// Serial is the serial number.
	// +optional
	// +kubebuilder:validation:MaxLength=128
	Serial string `json:"serial,omitempty"`
	// Model is the model that the device reports.
	// +optional
	// +kubebuilder:validation:MaxLength=128
	Model string `json:"model,omitempty"`
	// Transport is how the device is connected.
	Transport Transport `json:"transport"`
	// Size of the device in bytes.
	// +kubebuilder:validation:Minimum=0
	Size int64 `json:"size"`
	// Rotational is true for disks with moving heads.
	Rotational bool `json:"rotational"`
	// State says what the agent does with the device.
	State DeviceState `json:"state"`
	// Class is the DiskClass that has the device, or would take it.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	Class string `json:"class,omitempty"`
	// Disk is the ID of the disk on the device, if it is Berth's.
	// +optional
	// +kubebuilder:validation:MaxLength=36
	Disk string `json:"disk,omitempty"`
	// Reasons are all reasons why the device is not taken.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MaxLength=512
	Reasons []string `json:"reasons,omitempty"`
	// Fingerprint is a hash of the device's identity and of what was found on it. An approval repeats it. Only
	// candidates have one.
	// +optional
	// +kubebuilder:validation:MaxLength=16
	Fingerprint string `json:"fingerprint,omitempty"`
}

// DiskState says whether a disk takes new volumes.
//
// +kubebuilder:validation:Enum=Ready;Cordoned;Draining;Failed
type DiskState string

const (
	// DiskReady takes new volumes.
	DiskReady DiskState = "Ready"
	// DiskCordoned keeps its volumes and takes no new one, as spec.disks says.
	DiskCordoned DiskState = "Cordoned"
	// DiskDraining takes no new volume, and its volumes leave it, as spec.disks says. Or the node has too many volumes.
	DiskDraining DiskState = "Draining"
	// DiskFailed is out of service: its state is unknown or its device is gone.
	DiskFailed DiskState = "Failed"
)

// The schema does not check that allocations lie on their disk: the rule would be much of what a publication costs the
// API server. The scheduler checks it.

// Disk is one disk of a node.
//
// +kubebuilder:validation:XValidation:rule="!has(self.free) || self.free.all(e, e.start + e.length <= self.size)",message="a free extent ends behind the disk"
type Disk struct {
	// ID is the GUID of the disk's partition table, in lower case. It identifies the disk under any device name.
	// +kubebuilder:validation:Pattern=`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`
	ID string `json:"id"`
	// Device is the kernel's name of the disk now, such as nvme0n1.
	// +kubebuilder:validation:MaxLength=64
	Device string `json:"device"`
	// Class is the DiskClass that selects the disk. It is empty when none does any more. Then the disk takes no new
	// volume.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	Class string `json:"class,omitempty"`
	// Model is the model that the device reports.
	// +optional
	// +kubebuilder:validation:MaxLength=128
	Model string `json:"model,omitempty"`
	// Rotational is true for disks with moving heads.
	Rotational bool `json:"rotational"`
	// SectorSize is the logical sector size in bytes.
	// +kubebuilder:validation:Enum=512;1024;2048;4096
	SectorSize int32 `json:"sectorSize"`
	// Size of the device in bytes.
	// +kubebuilder:validation:Minimum=1
	Size int64 `json:"size"`
	// Overhead is the part of Size in bytes that can never hold a volume. It consists of partition tables, Berth's meta
	// partition, foreign partitions and what alignment cuts off. Size = Overhead + free + allocated.
	// +kubebuilder:validation:Minimum=0
	Overhead int64 `json:"overhead"`
	// State says whether the disk takes new volumes.
	State DiskState `json:"state"`
	// Message says why State is not Ready.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	Message string `json:"message,omitempty"`
	// Drain is how far the disk is drained. It is set while spec.disks says that the disk is to be drained.
	// +optional
	Drain *DrainProgress `json:"drain,omitempty"`
	// Compaction is what compacting the disk brings. It is set while spec.disks says that the disk is to be compacted.
	// +optional
	Compaction *Compaction `json:"compaction,omitempty"`
	// Free are the extents that hold no volume, sorted by start. Their former volumes were wiped by the policy of the
	// disk's class.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=1024
	Free []Extent `json:"free,omitempty"`

	// The list is atomic: with type map each allocation would have managed fields, which are longer than itself.

	// Allocations are the volumes on the disk, sorted by start. Of a volume of several pieces each piece is one.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=1024
	Allocations []Allocation `json:"allocations,omitempty"`
}

// Compaction is what moving the volumes of a disk together brings.
type Compaction struct {
	// Done is true when no more can be gained, whatever is in use.
	Done bool `json:"done"`
	// LargestNow is the length of the largest free extent in bytes.
	// +kubebuilder:validation:Minimum=0
	LargestNow int64 `json:"largestNow"`
	// LargestPossible is how long it is after the planned moves.
	// +kubebuilder:validation:Minimum=0
	LargestPossible int64 `json:"largestPossible"`
	// Moves is how many volumes are still to be moved for that.
	// +kubebuilder:validation:Minimum=0
	Moves int32 `json:"moves"`
	// Next is the next move. It is not set while one is in progress.
	// +optional
	Next *CompactionMove `json:"next,omitempty"`
	// Message says what is being done, or what is waited for.
	// +optional
	// +kubebuilder:validation:MaxLength=512
	Message string `json:"message,omitempty"`
}

// CompactionMove is one move of a compaction.
type CompactionMove struct {
	// Partition is the GUID of the volume's partition.
	// +kubebuilder:validation:MaxLength=36
	Partition string `json:"partition"`
	// To is the extent of the disk to which the volume is moved.
	To Extent `json:"to"`
}

// DrainProgress is how far a disk is drained.
type DrainProgress struct {
	// Done is true when the disk holds nothing any more: every place was wiped by the policy of its class.
	Done bool `json:"done"`
	// Volumes is how many volumes are still on the disk, without those that are wiped.
	// +kubebuilder:validation:Minimum=0
	Volumes int32 `json:"volumes"`
	// Bytes is how many bytes these have.
	// +kubebuilder:validation:Minimum=0
	Bytes int64 `json:"bytes"`
	// Waiting says for some of these what each waits for.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=32
	Waiting []DrainWait `json:"waiting,omitempty"`
}

// DrainWait says why a volume is still on a disk that is drained.
type DrainWait struct {
	// Volume is the CSI volume ID, or the partition if that is not known.
	// +kubebuilder:validation:MaxLength=256
	Volume string `json:"volume"`
	// Message says what it waits for.
	// +kubebuilder:validation:MaxLength=512
	Message string `json:"message"`
}

// Extent is a run of bytes on a disk.
type Extent struct {
	// Start in bytes from the beginning of the disk.
	// +kubebuilder:validation:Minimum=1048576
	// +kubebuilder:validation:Maximum=1152921504606846976
	// +kubebuilder:validation:MultipleOf=1048576
	Start int64 `json:"start"`
	// Length in bytes.
	// +kubebuilder:validation:Minimum=1048576
	// +kubebuilder:validation:Maximum=1152921504606846976
	// +kubebuilder:validation:MultipleOf=1048576
	Length int64 `json:"length"`
}

// AllocationPhase is the phase of a volume's life. On the disk it is the partition's type.
//
// +kubebuilder:validation:Enum=Reserved;Formatted;Wiping;Copying
type AllocationPhase string

const (
	// PhaseReserved: the partition exists and holds nothing yet.
	PhaseReserved AllocationPhase = "Reserved"
	// PhaseFormatted: the partition holds a file system and, maybe, data.
	PhaseFormatted AllocationPhase = "Formatted"
	// PhaseWiping: the volume is deleted, and its bytes are being wiped by the policy of its disk's class.
	PhaseWiping AllocationPhase = "Wiping"
	// PhaseCopying: a volume is being moved here. The partition holds an incomplete copy of it.
	PhaseCopying AllocationPhase = "Copying"
)

// Allocation is a volume on a disk, or a further piece of one.
type Allocation struct {
	// Volume is the CSI volume ID. It is empty for a partition whose owner is not known, or not any more.
	// +optional
	// +kubebuilder:validation:MaxLength=256
	Volume string `json:"volume,omitempty"`
	// Partition is the partition's GUID, in lower case. It is the UUIDv5 of the volume ID, and the name in
	// /dev/disk/by-partuuid. The GUID of a further piece follows from it and from the piece's number.
	// +kubebuilder:validation:Pattern=`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`
	Partition string `json:"partition"`

	Extent `json:",inline"`

	// Piece is the number of a further piece of the volume, from 1 on, in the order of the volume's bytes. The first
	// piece has none.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=15
	Piece int32 `json:"piece,omitempty"`

	// Phase is the phase of the volume's life.
	Phase AllocationPhase `json:"phase"`
	// Attachment is DeviceMapper while the volume is attached by the device mapper, so that it gets further pieces while
	// it is used. Further pieces have none.
	// +optional
	Attachment Attachment `json:"attachment,omitempty"`
	// Owner is namespace/name of the pod or claim that uses the volume, for messages.
	// +optional
	// +kubebuilder:validation:MaxLength=512
	Owner string `json:"owner,omitempty"`
	// OrphanedSince is when the agent found that the volume is an orphan. An orphan has no PersistentVolume, or its pod
	// is gone and the agent did not see it end.
	// +optional
	OrphanedSince *metav1.Time `json:"orphanedSince,omitempty"`
	// Wiping is the progress while the agent wipes the volume.
	// +optional
	Wiping *WipeProgress `json:"wiping,omitempty"`
	// Copied is how many bytes of the volume have been copied here, in phase Copying. It is updated every few seconds.
	// +optional
	// +kubebuilder:validation:Minimum=0
	Copied int64 `json:"copied,omitempty"`
}

// WipeProgress is the progress of a wipe. It is updated every few seconds.
type WipeProgress struct {
	// Policy that the volume is wiped with.
	Policy WipePolicy `json:"policy"`
	// Wiped is how many of the volume's bytes are wiped.
	// +kubebuilder:validation:Minimum=0
	Wiped int64 `json:"wiped"`
}

// Summary is for display. Sizes are per class, such as "hdd=2Ti,ssd=96Gi".
type Summary struct {
	// Disks is how many disks Berth manages on the node.
	Disks int32 `json:"disks"`
	// Size of all disks, per class.
	// +optional
	Size string `json:"size,omitempty"`
	// Free space on disks in service, per class.
	// +optional
	Free string `json:"free,omitempty"`
	// Largest free extent, per class: the largest volume that fits now.
	// +optional
	Largest string `json:"largest,omitempty"`
	// Volumes is how many volumes the disks hold. Their further pieces are not counted.
	Volumes int32 `json:"volumes"`
	// Cordoned is how many disks take no new volume because spec.disks says so.
	// +optional
	Cordoned int32 `json:"cordoned,omitempty"`
}
