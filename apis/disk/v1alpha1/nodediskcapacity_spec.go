package v1alpha1

// NodeDiskCapacitySpec is what operators, and the scheduler's leader, decided about the node's devices.
type NodeDiskCapacitySpec struct {
	// Adopt approves devices of status.devices whose state is Candidate.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=256
	Adopt []DeviceApproval `json:"adopt,omitempty"`
	// OwnedDisks are the IDs of disks that were seen on this node first. A disk that another node publishes as well
	// serves on this one only. The scheduler's leader writes it.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:MaxLength=36
	OwnedDisks []string `json:"ownedDisks,omitempty"`
	// Disks are decisions about single disks of the node.
	// +optional
	// +listType=map
	// +listMapKey=id
	// +kubebuilder:validation:MaxItems=128
	Disks []DiskDecision `json:"disks,omitempty"`
}

// DiskDecision is what an operator decided about one disk.
type DiskDecision struct {
	// ID is the disk's ID, as in status.disks.
	// +kubebuilder:validation:Pattern=`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`
	ID string `json:"id"`
	// Unschedulable means that the disk takes no new volume, and that no volume grows there.
	// +optional
	Unschedulable bool `json:"unschedulable,omitempty"`
	// Drain means that the disk takes no new volume, and that its volumes leave it. Persistent volumes are moved to
	// other disks of its class on the node, inline volumes end with their pods.
	// +optional
	Drain *DiskDrain `json:"drain,omitempty"`
	// Compact means that persistent volumes that no pod uses are moved towards the start of the disk, if its largest free
	// extent grows by that. A disk that takes no new volume is not compacted.
	// +optional
	Compact bool `json:"compact,omitempty"`
}

// DrainMode says what happens to pods that use volumes of a disk that is drained.
//
// +kubebuilder:validation:Enum=Move;Evict
type DrainMode string

const (
	// DrainMove waits until no pod uses a volume.
	DrainMove DrainMode = "Move"
	// DrainEvict evicts the pods that use volumes of the disk, within their disruption budgets.
	DrainEvict DrainMode = "Evict"
)

// DiskDrain says how a disk is drained.
type DiskDrain struct {
	// Mode says what happens to pods that use volumes of the disk.
	// +optional
	// +kubebuilder:default=Move
	Mode DrainMode `json:"mode,omitempty"`
	// Reason is for people. Status repeats it.
	// +optional
	// +kubebuilder:validation:MaxLength=256
	Reason string `json:"reason,omitempty"`
}

// Decision returns what an operator decided about a disk. It is zero if nothing was.
func (s *NodeDiskCapacitySpec) Decision(disk string) DiskDecision {
	for _, d := range s.Disks {
		if d.ID == disk {
			return d
		}
	}
	return DiskDecision{}
}

// IsCordoned reports whether the disk takes no new volume.
func (d DiskDecision) IsCordoned() bool { return d.Unschedulable || d.Drain != nil }

// DeviceApproval allows the agent to initialize one device. It names the device by a property that does not change with
// a reboot, never by the kernel's name.
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
	// Fingerprint is the device's fingerprint in status.devices when it was approved. The approval is void if the
	// device has changed since.
	// +kubebuilder:validation:Pattern=`^[0-9a-f]{16}$`
	Fingerprint string `json:"fingerprint"`
	// ApprovedBy names the approver. Berth does not read it.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	ApprovedBy string `json:"approvedBy,omitempty"`
}
