package discovery

import (
	"cmp"
	"context"
	"io/fs"
	"slices"
	"sync"
	"time"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/agent/hang"
	"github.com/berthdev/berth/pkg/extent"
)

// Disk is one of the node's disks. Callers get copies, which do not change.
type Disk struct {
	Device Device
	// Class is the DiskClass that selects the disk. It is empty when none does any more.
	Class string
	// Snapshot is the disk's present state. For a disk out of service it is the last one that is known.
	Snapshot disk.Snapshot
	// Problem says why the disk is out of service. It is empty if the disk serves.
	Problem string
	// Engine is the open disk: it reads and writes the device. It is nil when the disk is out of service.
	Engine *disk.Disk
}

// ID is the disk's identity.
func (d *Disk) ID() string { return d.Snapshot.ID }

// Ready reports whether the disk takes volumes.
func (d *Disk) Ready() bool { return d.Problem == "" && d.Engine != nil }

// Available is what volumes can get. Space for which the table has no entry left is overhead.
func (d *Disk) Available() extent.Set {
	if !d.Ready() || d.Snapshot.IsFull() {
		return extent.Set{}
	}
	return d.Snapshot.Free
}

// RefusedDevice is a device that a class selects and that is not used.
type RefusedDevice struct {
	Device string
	Reason string
}

// Options of an Inventory.
type Options struct {
	// Sys is /sys/block.
	Sys fs.FS
	// Dev is /dev.
	Dev string
	// DevicePatterns are patterns for paths. If there are any, no other device is used.
	DevicePatterns []string
	// Classes and NodeLabels return the present classes and labels.
	Classes    func() []*diskv1alpha1.DiskClass
	NodeLabels func() map[string]string
	// Changed is called after anything about the disks or their contents changed. It must not block.
	Changed func()
	// PublishedDisks are the disks that this node had before, as it published them. They stay in the inventory, out of
	// service, until they are found.
	PublishedDisks []diskv1alpha1.Disk
	// PublishedDevices are the devices that this node had before, as it published them.
	PublishedDevices []diskv1alpha1.Device
	// Approvals returns the entries of spec.adopt in the node's NodeDiskCapacity. nil means none.
	Approvals func() []diskv1alpha1.DeviceApproval
	// Owner returns this node, with an empty UID while it has no Node object. nil means an inventory outside of a
	// cluster, which writes no owner.
	Owner func() disk.Owner
	// Cluster reads other nodes and VolumeAttachments. It is needed if Owner is set.
	Cluster Cluster
	// Now is the clock; the default is the machine's own.
	Now func() time.Time
	// KubeletDir is the kubelet's folder, where it keeps its raw block volumes.
	KubeletDir string
	// Loop returns what a loop device shows. The default reads it from the kernel.
	Loop func(path string) (Backing, error)
	// DeviceTimeout is how long a rescan waits for a device that hangs; 0 is the default.
	DeviceTimeout time.Duration
	// CommandTimeout is how long an open disk may take for a command; 0 is the engine's default.
	CommandTimeout time.Duration
}

// Cluster is what an inventory reads from the API server.
type Cluster interface {
	// NodeNamed returns the Node with that name as an owner, or nil if there is none.
	NodeNamed(ctx context.Context, name string) (*disk.Owner, error)
	// Attachments are the VolumeAttachments of this node.
	Attachments(ctx context.Context) ([]Attachment, error)
}

// ListedDevice is a device with the last decision about it.
type ListedDevice struct {
	Device  Device
	Verdict Verdict
}

// Inventory is the disks of a node.
//
// Invariants:
//  1. A device that no class selects is neither read nor written, unless a missing disk of this node was on it.
//  2. A device is written to only after disk.Inspect found it blank, or with a table of ours.
//  3. At most one open disk has a given ID. A copy that appears later does not end its service.
type Inventory struct {
	options Options

	// scanning is held for a whole rescan, which opens and writes disks. mu is held only to access the fields below.
	scanning sync.Mutex

	// newDevices and attachments are used by rescans only.
	newDevices  newDevices
	attachments map[string]time.Time
	// publishedDevices are the devices that the node had published before.
	publishedDevices []Device

	mu    sync.Mutex
	disks map[string]*Disk
	// listed are the devices, refused those of them that a class selects and that are not used.
	listed  []ListedDevice
	refused []RefusedDevice
	// recheckAt is when the next decision may change because time has passed. It is zero if none does.
	recheckAt time.Time

	// hanging are the devices for which an earlier rescan gave up waiting.
	hanging hang.Guard
}

// NewInventory returns an inventory that has no device until Rescan.
func NewInventory(o Options) *Inventory {
	if o.DeviceTimeout == 0 {
		o.DeviceTimeout = defaultTimeout
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Loop == nil {
		o.Loop = ReadLoop
	}
	if o.Approvals == nil {
		o.Approvals = func() []diskv1alpha1.DeviceApproval { return nil }
	}
	i := &Inventory{options: o, disks: map[string]*Disk{}}
	for _, p := range o.PublishedDisks {
		i.disks[p.ID] = diskFromStatus(p)
	}
	for _, p := range o.PublishedDevices {
		d := Device{Name: p.Name, Identity: Identity{p.WWN, p.Serial, p.ByID}, Size: p.Size, Model: p.Model}
		if known := i.disks[p.Disk]; known != nil && (p.State == diskv1alpha1.DeviceInUse || p.State == diskv1alpha1.DeviceFailed) {
			known.Device.Identity = d.Identity
		}
		// Candidates are left out: one that waited as a new device is new again, and waits its whole time.
		if p.State != diskv1alpha1.DeviceCandidate {
			i.publishedDevices = append(i.publishedDevices, d)
		}
	}
	return i
}

// Disks returns the disks as they are now, sorted by ID.
func (i *Inventory) Disks() []Disk {
	i.mu.Lock()
	disks := make([]Disk, 0, len(i.disks))
	for _, d := range i.disks {
		disks = append(disks, *d)
	}
	i.mu.Unlock()
	for n := range disks {
		d := &disks[n]
		if d.Engine == nil {
			continue
		}
		d.Snapshot = d.Engine.Snapshot()
		if d.Snapshot.Err != nil {
			d.Problem = d.Snapshot.Err.Error()
		}
	}
	slices.SortFunc(disks, func(a, b Disk) int { return cmp.Compare(a.ID(), b.ID()) })
	return disks
}

// Failing reports whether an open disk went out of service. It may serve again when it is opened again, and no event
// announces that.
func (i *Inventory) Failing() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, d := range i.disks {
		if d.Engine != nil && d.Engine.Snapshot().Err != nil {
			return true
		}
	}
	return false
}

// Devices returns the devices with the last decision about each, sorted by name.
func (i *Inventory) Devices() []ListedDevice {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Clone(i.listed)
}

// RecheckAfter is the time until a decision may change because time has passed.
func (i *Inventory) RecheckAfter() (time.Duration, bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.recheckAt.IsZero() {
		return 0, false
	}
	return max(0, i.recheckAt.Sub(i.options.Now())), true
}

// Refused returns the devices that are selected and not used, sorted by name.
func (i *Inventory) Refused() []RefusedDevice {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Clone(i.refused)
}

// Close closes all disks. Volumes stay attached and mounted.
func (i *Inventory) Close() error {
	i.scanning.Lock()
	defer i.scanning.Unlock()
	s := &rescanState{inventory: i}
	i.mu.Lock()
	for _, d := range i.disks {
		if d.Engine != nil {
			s.queueClose(d, "the agent is stopping")
		}
	}
	i.mu.Unlock()
	return s.closeEngines(context.Background())
}
