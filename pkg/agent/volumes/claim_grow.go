package volumes

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/claim"
)

// compare holds that the partition is the volume of the PersistentVolume, and says where
// they differ in what the disk decides.
func (m *Manager) compare(pv *corev1.PersistentVolume, v claim.Volume) error {
	disks := m.options.Inventory.Disks()
	d, on, found := findIn(disks, v.Partition)
	if !found || !d.Ready() {
		return nil
	}
	if err := m.same(disks, on, v); err != nil {
		return err
	}
	if len(m.volumesOf(v.Partition)) > 1 {
		return fmt.Errorf("%w: another PersistentVolume has the volumeHandle %s too: delete the one that is wrong; the volume is wiped on behalf of neither", errMismatch, v.ID)
	}
	if on.Extent.Len() > v.Size {
		return fmt.Errorf("%w: the capacity of PersistentVolume %s is %d bytes, its partition has %d; volumes never shrink", errMismatch, pv.Name, v.Size, on.Extent.Len())
	}
	return nil
}

// growTo brings the partition to the size that was granted.
func (m *Manager) growTo(_ context.Context, volumeID string, size int64) error {
	_, on, err := m.usable(diskv1alpha1.PartitionID(volumeID))
	if err != nil || on.Extent.Len() >= size {
		return err
	}
	return fmt.Errorf("%w: volume %s has %d bytes, %d were granted", errNotGrown, volumeID, on.Extent.Len(), size)
}

// Expand waits until the partition has the size that was granted, at least atLeast, and
// then calls grow with it under the volume's lock.
func (m *Manager) Expand(ctx context.Context, volumeID string, atLeast int64, grow func(ctx context.Context, v Volume) error) (Volume, error) {
	partition := diskv1alpha1.PartitionID(volumeID)
	unlock, err := m.volumeLocks.lock(ctx, partition)
	if err != nil {
		return Volume{}, err
	}
	defer unlock()
	d, on, err := m.usable(partition)
	if err != nil {
		return Volume{}, err
	}
	v := volumeOn(&d, on, volumeID)
	if v.Size < atLeast {
		return v, fmt.Errorf("volume %s has %d bytes, %d are wanted: %w", volumeID, v.Size, atLeast, errNotGrown)
	}
	return v, grow(ctx, v)
}
