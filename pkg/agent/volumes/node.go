package volumes

import (
	"fmt"
	"time"

	"k8s.io/utils/clock"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/client"
	"github.com/berthdev/berth/pkg/agent/discovery"
	"github.com/berthdev/berth/pkg/agent/disk"
)

// Inventory lists the node's disks as they are now.
type Inventory interface {
	Disks() []discovery.Disk
}

// node is what the controllers of inline volumes, persistent volumes and reclaim share: the disks, the API server, and
// a lock for each volume.
type node struct {
	name      string
	client    *client.Client
	inventory Inventory
	// locks are by partition. Making, formatting, mounting and wiping of one volume exclude each other.
	locks   locks
	reports *reports
	// capacities has what operators decided about the disks.
	capacities capacityStore
	clock      clock.WithTicker
	// changed is called when the result of Owner, Orphans or Wiping may have changed.
	changed func()
}

// decisions are what operators decided about the disks.
func (n *node) decisions() *diskv1alpha1.NodeDiskCapacitySpec {
	if ndc := n.capacities.get(); ndc != nil {
		return &ndc.Spec
	}
	return &diskv1alpha1.NodeDiskCapacitySpec{}
}

// useChanged publishes again after pods or mounts have changed, if a drain or a compaction may wait for that.
func (n *node) useChanged() {
	if len(n.decisions().Disks) > 0 {
		n.changed()
	}
}

// since is the time since a moment of the node's clock.
func (n *node) since(moment time.Time) time.Duration { return n.clock.Since(moment) }

// findVolume returns the disk and the volume of a partition.
func (n *node) findVolume(partition string) (discovery.Disk, disk.Volume, bool) {
	return findVolume(n.inventory.Disks(), partition)
}

// diskInService returns a disk that is in service.
func (n *node) diskInService(id string) (discovery.Disk, error) {
	if d, ok := inService(n.inventory.Disks(), id); ok {
		return d, nil
	}
	return discovery.Disk{}, fmt.Errorf("disk %s: %w", id, ErrOutOfService)
}

// Volume is a persistent volume as it is on a disk now.
type Volume struct {
	// ID is the CSI volume ID, Partition the GUID of its partition.
	ID, Partition string
	// Device is its block device; empty while its disk is out of service.
	Device string
	// Disk is the ID of its disk, Class that disk's DiskClass.
	Disk, Class string
	// Problem says why the disk is out of service. It is empty if the disk is in service.
	Problem string
	// FSType is the file system on it. It is set only where documented.
	FSType string
	// Start is where its first piece begins, and Size the length of all pieces, in bytes.
	Start, Size int64
	// Block is true for a raw block volume.
	Block bool
	Phase disk.Phase
}

// volumeOn is the persistent volume in a partition of the disk, with what callers of this package need of both.
func volumeOn(d *discovery.Disk, onDisk disk.Volume, id string) Volume {
	return Volume{
		ID: id, Partition: onDisk.Partition, Device: onDisk.Device, Disk: d.ID(), Class: d.Class, Problem: d.Problem,
		Start: onDisk.Extent.Start, Size: onDisk.Length(), Block: onDisk.Raw, Phase: onDisk.Phase,
	}
}

// Lookup returns the persistent volume that is on a disk, even if the disk is out of service.
func (n *node) Lookup(volumeID string) (Volume, bool) {
	d, onDisk, found := n.findVolume(diskv1alpha1.PartitionID(volumeID))
	if !found {
		return Volume{}, false
	}
	if id, ok := persistentVolumeID(onDisk); !ok || id != volumeID {
		return Volume{}, false
	}
	return volumeOn(&d, onDisk, volumeID), true
}

// usable returns a persistent volume. The error is nil only if the volume is on a disk in service and not being wiped.
func (n *node) usable(partition string) (discovery.Disk, disk.Volume, error) {
	disks := n.inventory.Disks()
	d, onDisk, found := findVolume(disks, partition)
	id, persistent := persistentVolumeID(onDisk)
	err := checkSingleCopy(disks, partition)
	switch {
	case !found || !persistent:
		return discovery.Disk{}, disk.Volume{}, fmt.Errorf("%w: no disk of node %s holds partition %s", ErrNotFound, n.name, partition)
	case !d.Ready():
		return d, onDisk, fmt.Errorf("volume %s: %w", id, outOfService(&d))
	case onDisk.Phase == disk.Wiping:
		return d, onDisk, fmt.Errorf("volume %s is being wiped: %w", id, ErrReleased)
	}
	return d, onDisk, err
}
