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
	clock   clock.WithTicker
	// changed is called when the result of Owner, Orphans or Wiping may have changed.
	changed func()
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

// classOf is the class that a disk has now. If it has none, it is the class that it had.
func (n *node) classOf(d discovery.Disk) string {
	for _, now := range n.inventory.Disks() {
		if now.ID() == d.ID() {
			return now.Class
		}
	}
	return d.Class
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
