package v1alpha1

import (
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// DiskClass says which disks of which nodes may belong to Berth, and by which name pods request them. A device that no
// class selects is never read. A selected device is written to only if it is blank, and only after an operator approved
// it, unless the class says Automatic.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name="Adoption",type=string,JSONPath=`.spec.adoption`
// +kubebuilder:printcolumn:name="Nodes",type=integer,JSONPath=`.status.nodes`
// +kubebuilder:printcolumn:name="Disks",type=integer,JSONPath=`.status.disks`
// +kubebuilder:printcolumn:name="Candidates",type=integer,JSONPath=`.status.candidates`
// +kubebuilder:printcolumn:name="Refused",type=integer,JSONPath=`.status.refusedDevices`
// +kubebuilder:printcolumn:name="Size",type=string,JSONPath=`.status.size`
// +kubebuilder:printcolumn:name="Free",type=string,JSONPath=`.status.free`
// +kubebuilder:printcolumn:name="Largest",type=string,JSONPath=`.status.largest`
// +kubebuilder:printcolumn:name="FSType",type=string,JSONPath=`.spec.fsType`,priority=1
// +kubebuilder:printcolumn:name="Placement",type=string,JSONPath=`.spec.placementPolicy`,priority=1
// +kubebuilder:printcolumn:name="Wipe",type=string,JSONPath=`.spec.wipePolicy`,priority=1
// +kubebuilder:printcolumn:name="Rotational",type=string,JSONPath=`.spec.devices.rotational`,priority=1
// +kubebuilder:printcolumn:name="Models",type=string,JSONPath=`.spec.devices.models`,priority=1
// +kubebuilder:printcolumn:name="Paths",type=string,JSONPath=`.spec.devices.paths`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type DiskClass struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec DiskClassSpec `json:"spec"`
	// +optional
	Status DiskClassStatus `json:"status,omitempty"`
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
// +kubebuilder:validation:XValidation:rule="!has(self.mkfsOptions) || (has(self.fsType) && self.fsType == 'xfs') || self.mkfsOptions.all(o, o.matches('^(-b (1024|2048|4096)|-i [1-9][0-9]{3,7}|-I (256|512|1024)|-m ([0-9]|[1-4][0-9]|50)|-J size=[1-9][0-9]{0,4}|-E (stride|stripe_width)=[1-9][0-9]{0,5}|-E packed_meta_blocks=[01]|-O (project|quota|verity|fast_commit))$'))",message="mkfsOptions has an option that ext4 volumes cannot be made with: docs/operate/file-systems.md lists them"
// +kubebuilder:validation:XValidation:rule="!has(self.mkfsOptions) || !has(self.fsType) || self.fsType != 'xfs' || self.mkfsOptions.all(o, o.matches('^(-b size=(1024|2048|4096)|-d agcount=[1-9][0-9]{0,3}|-d su=[1-9][0-9]{0,4}k,sw=[1-9][0-9]{0,2}|-i size=(512|1024|2048)|-i maxpct=([1-9]?[0-9]|100)|-l size=[1-9][0-9]{1,3}m|-m (reflink|rmapbt)=[01]|-n size=(4096|8192|16384|32768|65536))$'))",message="mkfsOptions has an option that xfs volumes cannot be made with: docs/operate/file-systems.md lists them"
// +kubebuilder:validation:XValidation:rule="!has(self.mountOptions) || self.mountOptions.all(o, o.matches('^(noatime|relatime|strictatime|lazytime|nodiratime|nosuid|nodev|noexec|nosymfollow|(no)?discard|sync|dirsync|(usr|grp|prj)quota)$') || o.matches('^(commit=[1-9][0-9]{0,3}|data=(ordered|journal|writeback)|errors=(continue|remount-ro)|stripe=[0-9]{1,6}|init_itable=[1-9][0-9]{0,3}|noinit_itable|(no)?delalloc|(no)?auto_da_alloc|journal_checksum)$') || o.matches('^(allocsize=[1-9][0-9]{0,5}[kmg]|inode64|(no)?largeio|logbsize=(16|32|64|128|256)k|logbufs=[2-8]|swalloc|wsync)$'))",message="mountOptions has an option that volumes cannot be mounted with: docs/operate/file-systems.md lists them"
// +kubebuilder:validation:XValidation:rule="!has(self.wipeRate) || quantity(string(self.wipeRate)).compareTo(quantity('1Mi')) >= 0",message="wipeRate must be at least 1Mi, in bytes a second"
// +kubebuilder:validation:XValidation:rule="!has(self.moveRate) || quantity(string(self.moveRate)).compareTo(quantity('1Mi')) >= 0",message="moveRate must be at least 1Mi, in bytes a second"
type DiskClassSpec struct {
	// NodeSelector selects nodes by their labels. Without it, all nodes are selected.
	// +optional
	NodeSelector *metav1.LabelSelector `json:"nodeSelector,omitempty"`

	// Devices selects disks of those nodes. A device must match every criterion that is given.
	Devices DeviceSelector `json:"devices"`

	// Adoption says what must happen before a blank device that the class selects is initialized. A disk that is
	// already Berth's needs no approval.
	// +optional
	// +kubebuilder:default=Approve
	Adoption Adoption `json:"adoption,omitempty"`

	// NewDeviceGrace is how long a device that appears while the agent runs must stay blank and unopened before a class
	// with adoption Automatic takes it. 0s takes it at once.
	// +optional
	// +kubebuilder:default="10m"
	NewDeviceGrace *metav1.Duration `json:"newDeviceGrace,omitempty"`

	// FSType is the file system of volumes that request none: ext4 or xfs.
	// +optional
	// +kubebuilder:default=ext4
	// +kubebuilder:validation:Enum=ext4;xfs
	FSType string `json:"fsType,omitempty"`

	// FSFeatures is the set of features that new file systems get. lts_5.15 and lts_6.1 are what these kernels can
	// mount. default is what the agent's mkfs programs choose.
	// +optional
	// +kubebuilder:default=lts_5.15
	FSFeatures FSFeatures `json:"fsFeatures,omitempty"`

	// MkfsOptions are further options of mkfs, each as one string such as "-i 65536".
	// docs/operate/file-systems.md lists those that are allowed.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=64
	MkfsOptions []string `json:"mkfsOptions,omitempty"`

	// MountOptions are options with which inline volumes of the class are mounted, such as noatime or discard. Claims
	// have the mount options of their StorageClass as well, which come after these. docs/operate/file-systems.md lists
	// those that are allowed.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=64
	MountOptions []string `json:"mountOptions,omitempty"`

	// PlacementPolicy chooses among the places where a volume fits. A change applies to new volumes. Existing volumes
	// are not moved.
	// +optional
	// +kubebuilder:default=BestFit
	PlacementPolicy PlacementPolicy `json:"placementPolicy,omitempty"`

	// WipePolicy says what is done to a volume's bytes before its space is free again. The policy that counts is the
	// one when a wipe begins, or is resumed after a restart. Volumes whose class is deleted are wiped with the policy
	// that it had last.
	// +optional
	// +kubebuilder:default=Zero
	WipePolicy WipePolicy `json:"wipePolicy,omitempty"`

	// WipeRate bounds how many bytes a second wiping and zeroing process on each disk, by any method. So a slow disk
	// keeps some of its speed for other work. Without it there is no bound.
	// +optional
	WipeRate *resource.Quantity `json:"wipeRate,omitempty"`

	// MoveRate bounds how many bytes a second a volume that is moved costs on its disk. Each of its bytes is read,
	// written and read back. Without it there is no bound.
	// +optional
	MoveRate *resource.Quantity `json:"moveRate,omitempty"`

	// Attachment says how volumes of one piece become block devices: as partitions, or by the device mapper. A change
	// applies to a volume when it is attached the next time. Volumes of several pieces are always attached by the device
	// mapper. Where the kernel has none, volumes are partitions, and the node has condition DeviceMapperMissing.
	// +optional
	// +kubebuilder:default=Partition
	Attachment Attachment `json:"attachment,omitempty"`

	// MaxPieces bounds of how many pieces a volume consists, each one an extent of the disk. 1 forbids pieces: volumes
	// grow where they are, or are moved. Without it a volume begins with one piece, and grows to 16 at most. With 2 or
	// more, a new volume of a claim may begin with several pieces of one disk, if no free extent holds it. Inline volumes
	// always have one piece. Pieces need the device mapper in the node's kernel.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=16
	MaxPieces *int32 `json:"maxPieces,omitempty"`

	// OnNodeGone says what happens to the persistent volumes of a node that is gone. Without it they are kept.
	// +optional
	OnNodeGone *OnNodeGone `json:"onNodeGone,omitempty"`
}

// NodeGonePolicy says whether volumes of a node that is gone are kept for its return.
//
// +kubebuilder:validation:Enum=Keep;Release
type NodeGonePolicy string

const (
	// NodeGoneKeep keeps claims and PersistentVolumes until an operator acts: the disks may come back.
	NodeGoneKeep NodeGonePolicy = "Keep"
	// NodeGoneRelease deletes the claims of StatefulSets, which make them again on another node, with empty volumes. In
	// namespaces with LabelOnNodeGone it deletes all claims of the class. It removes the PersistentVolumes whose
	// reclaim policy is Delete. Their data stays on the disks: if these come back, the volumes are orphans.
	NodeGoneRelease NodeGonePolicy = "Release"
)

// NodeGoneAfter is the default of OnNodeGone.After: some clouds delete a Node and make it again when its machine
// restarts. LeastNodeGoneAfter is the least that counts.
const (
	NodeGoneAfter      = 10 * time.Minute
	LeastNodeGoneAfter = 10 * time.Second
)

// OnNodeGone says what happens to the persistent volumes of a node that is gone. A node is gone while its Node does not
// exist. It is gone, too, while its Node has the taint node.kubernetes.io/out-of-service and is not ready.
type OnNodeGone struct {
	// Policy says whether the volumes are kept.
	// +optional
	// +kubebuilder:default=Keep
	Policy NodeGonePolicy `json:"policy,omitempty"`
	// After is how long the node must be gone without a break. Less than 10s counts as 10s. It begins again when another
	// scheduler leads.
	// +optional
	// +kubebuilder:default="10m"
	After *metav1.Duration `json:"after,omitempty"`
}

// ReleasesAfter is how long a node must be gone before its volumes of the class are released. ok is false if they are
// kept.
func (s *DiskClassSpec) ReleasesAfter() (after time.Duration, ok bool) {
	switch o := s.OnNodeGone; {
	case o == nil || o.Policy != NodeGoneRelease:
		return 0, false
	case o.After == nil:
		return NodeGoneAfter, true
	default:
		return max(o.After.Duration, LeastNodeGoneAfter), true
	}
}

// Attachment says how a volume becomes a block device.
//
// +kubebuilder:validation:Enum=Partition;DeviceMapper
type Attachment string

const (
	// AttachPartition shows a volume as a partition of its disk, or as a loop device. While a pod uses the volume it
	// grows only into the space behind it. It gets further pieces at its next mount.
	AttachPartition Attachment = "Partition"
	// AttachDeviceMapper shows a volume as a linear device. It gets further pieces while a pod uses it. The node's kernel
	// must have the device mapper.
	AttachDeviceMapper Attachment = "DeviceMapper"
)

// PiecesAllowed is of how many pieces a volume of the class consists at most.
func (s *DiskClassSpec) PiecesAllowed() int {
	if s.MaxPieces == nil {
		return MaxPieces
	}
	return min(max(int(*s.MaxPieces), 1), MaxPieces)
}

// PiecesWhenPlaced is of how many pieces a new volume of a claim consists at most.
func (s *DiskClassSpec) PiecesWhenPlaced() int {
	if s.MaxPieces == nil {
		return 1
	}
	return s.PiecesAllowed()
}

// Adoption says what decides that a blank device becomes a disk.
//
// +kubebuilder:validation:Enum=Approve;Automatic
type Adoption string

const (
	// AdoptApprove lists selected blank devices as candidates in status.devices of the NodeDiskCapacity. The agent
	// takes one when spec.adopt of that object names it.
	AdoptApprove Adoption = "Approve"
	// AdoptAutomatic takes selected blank devices without approval. It is for fleets with one kind of hardware.
	AdoptAutomatic Adoption = "Automatic"
)

// FSFeatures names a set of file system features.
//
// +kubebuilder:validation:Enum=default;lts_5.15;lts_6.1
type FSFeatures string

const (
	// FSFeaturesDefault is what the agent's mkfs programs choose.
	FSFeaturesDefault FSFeatures = "default"
	// FSFeatures515 can be mounted by Linux 5.15 and later.
	FSFeatures515 FSFeatures = "lts_5.15"
	// FSFeatures61 can be mounted by Linux 6.1 and later.
	FSFeatures61 FSFeatures = "lts_6.1"
)

// DiskClassStatus sums up, over all nodes, what the class selects. The scheduler's leader writes it.
type DiskClassStatus struct {
	// Nodes is how many nodes have disks of the class in service.
	// +optional
	Nodes int32 `json:"nodes,omitempty"`
	// Disks is how many disks of the class are in service.
	// +optional
	Disks int32 `json:"disks,omitempty"`
	// Candidates is how many devices wait for approval.
	// +optional
	Candidates int32 `json:"candidates,omitempty"`
	// RefusedDevices is how many devices the class selects but the agents do not take.
	// +optional
	RefusedDevices int32 `json:"refusedDevices,omitempty"`
	// Refused are the reasons why these devices are not taken, the most frequent first.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=16
	Refused []RefusedDevices `json:"refused,omitempty"`
	// Size of all disks of the class in service, in bytes, as a quantity such as 136.2Ti.
	// +optional
	Size string `json:"size,omitempty"`
	// Free space on them.
	// +optional
	Free string `json:"free,omitempty"`
	// Largest free extent: the largest volume that fits now.
	// +optional
	Largest string `json:"largest,omitempty"`
	// Conditions: Ready.
	// +optional
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=8
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// RefusedDevices counts the devices that are not taken for the same reason.
type RefusedDevices struct {
	// Reason says why the devices are not taken.
	// +kubebuilder:validation:MaxLength=256
	Reason string `json:"reason"`
	// Count is how many devices have this reason.
	Count int32 `json:"count"`
	// Example is one of these devices, as node/device.
	// +kubebuilder:validation:MaxLength=320
	Example string `json:"example"`
}

// PlacementPolicy chooses among the free extents of a class that are large enough.
//
// +kubebuilder:validation:Enum=BestFit;Spread
type PlacementPolicy string

const (
	// PlaceBestFit keeps large extents whole, for large volumes. A volume goes to the smallest free extent that can
	// hold it. It fits the most volumes on the disks.
	PlaceBestFit PlacementPolicy = "BestFit"
	// PlaceSpread keeps disks equally full. A volume goes to the disk with the most free bytes of those where it fits.
	// So the fewest volumes share a disk's speed, and are lost with it. But soon no disk has room for a large volume.
	PlaceSpread PlacementPolicy = "Spread"
)

// WipePolicy says how a deleted volume is wiped.
//
// +kubebuilder:validation:Enum=Zero;Overwrite;SecureDiscard;None
type WipePolicy string

const (
	// WipeZero makes the volume read as zeros by the fastest way of the disk: punching a hole, its own command for
	// zeros, or writing them. It verifies samples and both ends. The medium's cells may still have the old bytes.
	WipeZero WipePolicy = "Zero"
	// WipeOverwrite writes zeros over every byte, and reads all of them back.
	WipeOverwrite WipePolicy = "Overwrite"
	// WipeSecureDiscard has the device destroy the volume's bytes, and the copies of them that the device made. What
	// does not read as zeros afterwards is zeroed. Where the device cannot, the volume is wiped with Overwrite, and the
	// agent's log says Overwrite.
	WipeSecureDiscard WipePolicy = "SecureDiscard"
	// WipeNone is unsafe: nothing is wiped. The volume's bytes stay on the disk, below the next file system there. They
	// are readable by anything that can read the device. Only the space that raw block volumes and growing volumes get
	// is zeroed first. It is for clusters without valuable data, such as test clusters.
	WipeNone WipePolicy = "None"
)

// DeviceSelector selects block devices. It must name at least one criterion, so
// that a field left out does not hand over every blank disk of a cluster.
//
// +kubebuilder:validation:XValidation:rule="has(self.rotational) || (has(self.models) && size(self.models) > 0) || (has(self.paths) && size(self.paths) > 0) || (has(self.serials) && size(self.serials) > 0) || (has(self.wwns) && size(self.wwns) > 0) || has(self.minSize) || has(self.maxSize)",message="devices must name at least one of rotational, models, paths, serials, wwns, minSize, maxSize"
// +kubebuilder:validation:XValidation:rule="!has(self.minSize) || !has(self.maxSize) || quantity(string(self.minSize)).compareTo(quantity(string(self.maxSize))) <= 0",message="minSize must not be larger than maxSize"
type DeviceSelector struct {
	// Rotational selects disks with (true) or without (false) moving heads.
	// +optional
	Rotational *bool `json:"rotational,omitempty"`
	// Models are shell patterns (*, ?, [a-z]) for the model that a device reports; one must match.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=128
	Models []string `json:"models,omitempty"`
	// Serials are shell patterns for the device's serial number; one must match.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=128
	Serials []string `json:"serials,omitempty"`
	// WWNs are shell patterns for the device's world wide name, such as
	// eui.0025385b11b2c3d4; one must match.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=128
	WWNs []string `json:"wwns,omitempty"`
	// Transports are how the device is connected; one must match. With adoption Automatic
	// and without a path, the default is pcie, sata and sas.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=16
	Transports []Transport `json:"transports,omitempty"`
	// Exclude are shell patterns of devices that are not selected, even if everything else matches. They are compared
	// with the path, a link below /dev/disk, the model, the serial number and the world wide name.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=256
	Exclude []string `json:"exclude,omitempty"`
	// Paths are shell patterns for the device's path, or for one of its links below
	// /dev/disk or /dev/mapper. One must match. Loop, device-mapper, md, rbd, nbd, drbd, zvol,
	// bcache, zram and pmem devices, zoned and removable ones are selected only by a path.
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

// Transport is how a device is connected to its node.
//
// +kubebuilder:validation:Enum=pcie;sata;sas;virtio;usb;mmc;iscsi;fc;nvme-tcp;nvme-rdma;nvme-fc;xen;vmbus;virtual;unknown
type Transport string

// Transports.
const (
	TransportPCIe     Transport = "pcie" // NVMe in the node
	TransportSATA     Transport = "sata"
	TransportSAS      Transport = "sas"
	TransportVirtio   Transport = "virtio"
	TransportUSB      Transport = "usb"
	TransportMMC      Transport = "mmc"
	TransportISCSI    Transport = "iscsi"
	TransportFC       Transport = "fc"
	TransportNVMeTCP  Transport = "nvme-tcp"
	TransportNVMeRDMA Transport = "nvme-rdma"
	TransportNVMeFC   Transport = "nvme-fc"
	TransportXen      Transport = "xen"
	TransportVMBus    Transport = "vmbus"   // Hyper-V and Azure
	TransportVirtual  Transport = "virtual" // made by the kernel: loop, dm, md, zram and others
	TransportUnknown  Transport = "unknown"
)

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

// ValidateFSType refuses a file system that volumes cannot have. The empty string means the class's default.
func ValidateFSType(fsType string) error {
	switch fsType {
	case "", FSTypeExt4, FSTypeXFS:
		return nil
	}
	return fmt.Errorf("file system %q is not supported: use %s or %s", fsType, FSTypeExt4, FSTypeXFS)
}
