package volumes

import (
	"context"
	"errors"

	"github.com/berthdev/berth/pkg/agent/disk"
)

// VolumeRequest is what a CSI CreateVolume call asks for.
type VolumeRequest struct {
	// ID is the CSI volume ID to be; see diskv1alpha1.NamedVolumeID.
	ID     string
	Class  string
	FSType string
	// Size in bytes; with Limit, if that is not 0, as the most.
	Size, Limit int64
	Block       bool
	// Apart asks for a disk without other volumes of the same request; with one volume it
	// is always so.
	Apart bool
}

var errNotYet = errors.New("not implemented")

// CreateVolume makes a persistent volume on the node's own disks.
func (m *Manager) CreateVolume(context.Context, VolumeRequest) (Volume, error) {
	return Volume{}, errNotYet
}

// DeleteVolume wipes a persistent volume and returns when that is done.
func (m *Manager) DeleteVolume(context.Context, string) error { return errNotYet }

// GrowVolume makes a persistent volume's partition at least size bytes long.
func (m *Manager) GrowVolume(context.Context, string, int64, int64) (Volume, error) {
	return Volume{}, errNotYet
}

// ListVolumes returns the persistent volumes on the disks, sorted by ID of the disk and start.
func (m *Manager) ListVolumes() []Volume {
	var volumes []Volume
	disks := m.options.Inventory.Disks()
	for i := range disks {
		for _, on := range disks[i].Snapshot.Volumes {
			if id, ok := persistentID(on); ok && on.Phase != disk.Wiping {
				volumes = append(volumes, volumeOn(&disks[i], on, id))
			}
		}
	}
	return volumes
}

// Capacity returns the free bytes of a class, and the largest volume that fits.
func (m *Manager) Capacity(class string) (free, largest int64) {
	disks := m.options.Inventory.Disks()
	for _, s := range spacesOf(disks) {
		if s.class == class {
			free += s.free.Total()
			largest = max(largest, s.free.Largest().Len())
		}
	}
	return free, largest
}
