package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Alignment is the unit of placement: every extent starts at a multiple of it and
// is a multiple of it long, in bytes.
const Alignment int64 = 1 << 20

// NodeDiskCapacity says which block devices a node has, which of them Berth manages, and
// which extents of those are free and which hold volumes. It is named after its node. Only
// that node's agent writes its status; spec is written by operators and by the scheduler's
// leader, never by an agent.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName=ndc
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name="Disks",type=integer,JSONPath=`.status.summary.disks`
// +kubebuilder:printcolumn:name="Size",type=string,JSONPath=`.status.summary.size`
// +kubebuilder:printcolumn:name="Free",type=string,JSONPath=`.status.summary.free`
// +kubebuilder:printcolumn:name="Largest",type=string,JSONPath=`.status.summary.largest`
// +kubebuilder:printcolumn:name="Volumes",type=integer,JSONPath=`.status.summary.volumes`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type NodeDiskCapacity struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +optional
	Spec NodeDiskCapacitySpec `json:"spec,omitempty"`
	// +optional
	Status NodeDiskCapacityStatus `json:"status,omitempty"`
}

// NodeDiskCapacitySpec is what operators decided about the node's devices.
type NodeDiskCapacitySpec struct {
	// Adopt approves devices of status.devices whose state is Candidate.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=256
	Adopt []DeviceApproval `json:"adopt,omitempty"`
	// OwnedDisks are the IDs of disks that were seen on this node first. A disk that another
	// node publishes as well serves on this one only. The scheduler's leader writes it.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:MaxLength=36
	OwnedDisks []string `json:"ownedDisks,omitempty"`
}

// DeviceApproval allows the agent to initialize one device. It names the device by what
// does not change with a reboot, never by the kernel's name.
//
// +kubebuilder:validation:XValidation:rule="[has(self.wwn), has(self.serial), has(self.byID)].exists_one(x, x)",message="name the device by exactly one of wwn, serial, byID"
type DeviceApproval struct {
	// WWN is the device's world wide name, as in status.devices.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=128
	WWN string `json:"wwn,omitempty"`
	// Serial is the device's serial number, as in status.devices.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=128
	Serial string `json:"serial,omitempty"`
	// ByID is the device's path below /dev/disk/by-id, /dev/disk/by-path or /dev/mapper, as in
	// status.devices.
	// +optional
	// +kubebuilder:validation:Pattern=`^/dev/(disk/by-(id|path)|mapper)/[^/]+$`
	// +kubebuilder:validation:MaxLength=256
	ByID string `json:"byID,omitempty"`
	// Class is the DiskClass that takes the device.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Class string `json:"class"`
	// Fingerprint is that of status.devices when the device was approved. The approval is
	// void if the device has changed since.
	// +kubebuilder:validation:Pattern=`^[0-9a-f]{16}$`
	Fingerprint string `json:"fingerprint"`
	// ApprovedBy is who approved the device, for people.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	ApprovedBy string `json:"approvedBy,omitempty"`
}

// NodeDiskCapacityList is a list of NodeDiskCapacity.
//
// +kubebuilder:object:root=true
type NodeDiskCapacityList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []NodeDiskCapacity `json:"items"`
}

// Types and reasons of a NodeDiskCapacity's conditions.
const (
	// ConditionReady is True when every disk that a DiskClass selects on the node
	// is in service, or there is none to select.
	ConditionReady = "Ready"
	// ConditionDevicesRefused is True when a DiskClass selects a device that the
	// agent will not use; the message names each device and what was found on it.
	ConditionDevicesRefused = "DevicesRefused"
	// ConditionOrphanedVolumes is True when disks hold orphaned volumes: the
	// message names the persistent ones without a PersistentVolume, which are kept, and
	// those of pods that vanished unseen, which are kept until the grace period is over.
	ConditionOrphanedVolumes = "OrphanedVolumes"
	// ConditionReclaimStopped is True when so many volumes have lost their pods that the
	// API server is to be doubted rather than the volumes: they are all kept until their
	// pods are back, or a person sets AnnotationReclaimOrphans.
	ConditionReclaimStopped = "ReclaimStopped"
	// ConditionPublicationLimited is True when the node has more volumes than the object can
	// list. All are served; the node offers no space until there are fewer.
	ConditionPublicationLimited = "PublicationLimited"
	// ConditionDisksShared is True when another node publishes a disk of the node, too; the
	// message says which, and on which node it serves. The scheduler's leader writes it.
	ConditionDisksShared = "DisksShared"
	// ConditionReclaimBlocked is True when volumes are to be wiped and something holds them: a
	// mount, a process that has the device open, or the kernel. The message names it.
	ConditionReclaimBlocked = "ReclaimBlocked"
)

// AnnotationReclaimOrphans on a NodeDiskCapacity is a person's word that orphaned volumes
// may be reclaimed although they are many. Its value is how many, as the condition
// ReclaimStopped says it: if there are more by then, they are kept. The agent removes it
// when it has acted on it.
const AnnotationReclaimOrphans = GroupName + "/reclaim-orphans"

// AnnotationForgetDisks on a NodeDiskCapacity tells the agent to forget disks that no device
// of the node holds. Its value is a list of disk IDs, separated by commas. The volumes of a
// forgotten disk are gone: inline volumes are made again, empty. The agent removes the
// annotation when it has acted on it.
const AnnotationForgetDisks = GroupName + "/forget-disks"

// TaintNotReady keeps pods off a node until its disks are in service. The tool that prepares nodes
// sets it; the scheduler's leader removes it.
const TaintNotReady = GroupName + "/not-ready"

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

	// Conditions: Ready, DevicesRefused, OrphanedVolumes, ReclaimStopped and further ones.
	// +optional
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=16
	Conditions []metav1.Condition `json:"conditions,omitempty"`

	// Evictions are pods of the node whose volumes do not fit on it, and which a controller makes
	// again: the agent asks for their eviction. The scheduler's leader evicts those that it may.
	// +optional
	// +listType=map
	// +listMapKey=uid
	// +kubebuilder:validation:MaxItems=64
	Evictions []EvictionRequest `json:"evictions,omitempty"`

	// Summary is for people: what `kubectl get ndc` prints.
	// +optional
	Summary Summary `json:"summary,omitempty"`
}

// EvictionRequest names a pod that is to be evicted.
type EvictionRequest struct {
	// Namespace of the pod.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Namespace string `json:"namespace"`
	// Name of the pod.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`
	// UID of the pod: another one of that name stays.
	UID types.UID `json:"uid"`
}

// DeviceState says what the agent does with a device.
//
// +kubebuilder:validation:Enum=InUse;Candidate;Excluded;Foreign;Busy;Failed
type DeviceState string

const (
	// DeviceInUse is a disk of Berth's in service.
	DeviceInUse DeviceState = "InUse"
	// DeviceCandidate is blank, selected and not taken yet: it waits for approval, or for
	// newDeviceGrace to pass. Reasons say which.
	DeviceCandidate DeviceState = "Candidate"
	// DeviceExcluded is selected by no class, or may not be a disk. It is not read.
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
	// Model is what the device says of itself.
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
	// Fingerprint stands for the device's identity and what was found on it. An approval
	// repeats it. Only candidates have one.
	// +optional
	// +kubebuilder:validation:MaxLength=16
	Fingerprint string `json:"fingerprint,omitempty"`
}

// DiskState says whether a disk takes new volumes.
//
// +kubebuilder:validation:Enum=Ready;Draining;Failed
type DiskState string

const (
	// DiskReady takes new volumes.
	DiskReady DiskState = "Ready"
	// DiskDraining keeps its volumes and takes no new one.
	DiskDraining DiskState = "Draining"
	// DiskFailed is out of service: its state is unknown or its device is gone.
	DiskFailed DiskState = "Failed"
)

// That allocations lie on their disk, the scheduler checks. As a rule it would be much of what
// a publication costs the API server.

// Disk is one disk of a node.
//
// +kubebuilder:validation:XValidation:rule="!has(self.free) || self.free.all(e, e.start + e.length <= self.size)",message="a free extent ends behind the disk"
type Disk struct {
	// ID is the GUID of the disk's partition table, in lower case: the identity of
	// the disk, whatever device name it has today.
	// +kubebuilder:validation:Pattern=`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`
	ID string `json:"id"`
	// Device is the kernel's name of the disk now, such as nvme0n1.
	// +kubebuilder:validation:MaxLength=64
	Device string `json:"device"`
	// Class is the DiskClass that selects the disk; empty when none does any more,
	// and then the disk takes no new volume.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	Class string `json:"class,omitempty"`
	// Model is what the device says of itself.
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
	// Overhead is the part of Size in bytes that can never hold a volume: partition
	// tables, Berth's meta partition, foreign partitions and what alignment cuts off.
	// Size = Overhead + free + allocated.
	// +kubebuilder:validation:Minimum=0
	Overhead int64 `json:"overhead"`
	// State says whether the disk takes new volumes.
	State DiskState `json:"state"`
	// Message says why State is not Ready.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	Message string `json:"message,omitempty"`
	// Free are the extents that hold no volume, sorted by start. What one held was wiped
	// as the disk's class says.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=1024
	Free []Extent `json:"free,omitempty"`

	// As a list of type map each allocation would have managed fields, longer than itself.

	// Allocations are the volumes on the disk, sorted by start.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=1024
	Allocations []Allocation `json:"allocations,omitempty"`
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

// AllocationPhase says how far a volume is. On the disk it is the partition's type.
//
// +kubebuilder:validation:Enum=Reserved;Formatted;Wiping
type AllocationPhase string

const (
	// PhaseReserved: the partition exists and holds nothing yet.
	PhaseReserved AllocationPhase = "Reserved"
	// PhaseFormatted: the partition holds a file system and, maybe, data.
	PhaseFormatted AllocationPhase = "Formatted"
	// PhaseWiping: the volume is gone; its bytes are being wiped as its disk's class says.
	PhaseWiping AllocationPhase = "Wiping"
)

// Allocation is a volume on a disk.
type Allocation struct {
	// Volume is the CSI volume ID; empty for a partition whose owner is not known
	// (any more).
	// +optional
	// +kubebuilder:validation:MaxLength=256
	Volume string `json:"volume,omitempty"`
	// Partition is the partition's GUID, in lower case: the UUIDv5 of the volume ID,
	// and what /dev/disk/by-partuuid calls it.
	// +kubebuilder:validation:Pattern=`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`
	Partition string `json:"partition"`

	Extent `json:",inline"`

	// Phase says how far the volume is.
	Phase AllocationPhase `json:"phase"`
	// Owner is namespace/name of the pod or claim that uses the volume, for people.
	// +optional
	// +kubebuilder:validation:MaxLength=512
	Owner string `json:"owner,omitempty"`
	// OrphanedSince is when the agent found that the volume is an orphan: it has no
	// PersistentVolume, or its pod is gone and the agent did not see it end.
	// +optional
	OrphanedSince *metav1.Time `json:"orphanedSince,omitempty"`
	// Wiping says how far the wiping is while the agent is at it.
	// +optional
	Wiping *WipeProgress `json:"wiping,omitempty"`
}

// WipeProgress says how far the wiping of a volume is. It is brought up to date every few
// seconds.
type WipeProgress struct {
	// Policy that the volume is wiped with.
	Policy WipePolicy `json:"policy"`
	// Wiped is how many of the volume's bytes are done.
	// +kubebuilder:validation:Minimum=0
	Wiped int64 `json:"wiped"`
}

// Summary is for people. Sizes are given a class, such as "hdd=2Ti,ssd=96Gi".
type Summary struct {
	// Disks is how many disks Berth manages on the node.
	Disks int32 `json:"disks"`
	// Size of all disks, a class.
	// +optional
	Size string `json:"size,omitempty"`
	// Free space on disks in service, a class.
	// +optional
	Free string `json:"free,omitempty"`
	// Largest free extent: the largest volume that fits now, a class.
	// +optional
	Largest string `json:"largest,omitempty"`
	// Volumes is how many volumes the disks hold.
	Volumes int32 `json:"volumes"`
}
