package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// Alignment is the unit of placement in bytes: every extent starts at a multiple of it, and its length is a multiple of
// it.
const Alignment int64 = 1 << 20

// NodeDiskCapacity says which block devices a node has, which of them Berth manages, and which extents of those are
// free and which hold volumes. It is named after its node. Only that node's agent writes its status, except the
// condition DisksShared. Operators and the scheduler's leader write spec, an agent never does.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName=ndc
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name="Disks",type=integer,JSONPath=`.status.summary.disks`
// +kubebuilder:printcolumn:name="Size",type=string,JSONPath=`.status.summary.size`
// +kubebuilder:printcolumn:name="Free",type=string,JSONPath=`.status.summary.free`
// +kubebuilder:printcolumn:name="Largest",type=string,JSONPath=`.status.summary.largest`
// +kubebuilder:printcolumn:name="Volumes",type=integer,JSONPath=`.status.summary.volumes`
// +kubebuilder:printcolumn:name="Cordoned",type=integer,JSONPath=`.status.summary.cordoned`
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
	// ConditionReady is True when every disk that a DiskClass selects on the node is in service, or when none is
	// selected.
	ConditionReady = "Ready"
	// ConditionDevicesRefused is True when a DiskClass selects a device that the agent does not use. The message names
	// each device and what was found on it.
	ConditionDevicesRefused = "DevicesRefused"
	// ConditionOrphanedVolumes is True when disks hold orphaned volumes. The message names the persistent ones without
	// a PersistentVolume, which are kept. It also names the volumes of pods whose end the agent did not see, which are
	// kept until the grace period is over.
	ConditionOrphanedVolumes = "OrphanedVolumes"
	// ConditionReclaimStopped is True when many volumes have lost their pods, and the API server's data may be lost or
	// old. All these volumes are kept until their pods are back, or an operator sets AnnotationReclaimOrphans.
	ConditionReclaimStopped = "ReclaimStopped"
	// ConditionPublicationLimited is True when the node has more volumes than the object can list. All are served. The
	// node offers no space until there are fewer.
	ConditionPublicationLimited = "PublicationLimited"
	// ConditionDisksShared is True when another node publishes a disk of the node, too. The message says which disk,
	// and on which node it serves. The scheduler's leader writes it.
	ConditionDisksShared = "DisksShared"
	// ConditionReclaimBlocked is True when volumes cannot be wiped because something holds them: a mount, a process
	// that has the device open, or the kernel. The message names it.
	ConditionReclaimBlocked = "ReclaimBlocked"
	// ConditionDeviceMapperMissing is True when a class of the node's disks wants volumes attached by the device mapper,
	// and the kernel has none. They are attached as partitions. There is no such condition if no class wants it.
	ConditionDeviceMapperMissing = "DeviceMapperMissing"
)

// AnnotationReclaimOrphans on a NodeDiskCapacity is an operator's permission to reclaim orphaned volumes although they
// are many. Its value is the number in the message of condition ReclaimStopped. If there are more orphans by then, they
// are kept. The agent removes the annotation when it has acted on it.
const AnnotationReclaimOrphans = GroupName + "/reclaim-orphans"

// AnnotationForgetDisks on a NodeDiskCapacity makes the agent forget disks that no device of the node holds. Its value
// is a list of disk IDs, separated by commas. The volumes of a forgotten disk are gone: inline volumes are made again,
// empty. The agent removes the annotation when it has acted on it.
const AnnotationForgetDisks = GroupName + "/forget-disks"

// TaintNotReady keeps pods off a node until its disks are in service. The tool that prepares nodes sets it. The
// scheduler's leader removes it.
const TaintNotReady = GroupName + "/not-ready"
