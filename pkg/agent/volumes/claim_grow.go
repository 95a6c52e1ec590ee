package volumes

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/pkg/extent"
)

// compare holds that the partition is the volume of the PersistentVolume, and says where
// they differ in what the disk decides.
func (m *Manager) compare(ctx context.Context, pv *corev1.PersistentVolume, v claim.Volume) error {
	disks := m.options.Inventory.Disks()
	d, on, found := findIn(disks, v.Partition)
	if !found || !d.Ready() {
		return nil
	}
	if err := same(disks, on, v); err != nil {
		return err
	}
	if on.Raw != v.Block {
		return fmt.Errorf("%w: %w", errMismatch, otherMode(requestOf(v)))
	}
	if len(m.volumesOf(v.Partition)) > 1 {
		return fmt.Errorf("%w: another PersistentVolume has the volumeHandle %s too: delete the one that is wrong; the volume is wiped on behalf of neither", errMismatch, v.ID)
	}
	if err := m.noteMove(ctx, pv, v, d.ID()); err != nil {
		return err
	}
	if on.Extent.Len() > v.Size {
		return fmt.Errorf("%w: the capacity of PersistentVolume %s is %d bytes, its partition has %d; volumes never shrink", errMismatch, pv.Name, v.Size, on.Extent.Len())
	}
	return nil
}

// noteMove notes on the PersistentVolume which disk has its volume, if that is another one
// than it was made for: whoever looks for the volume must know which disk to wait for.
func (m *Manager) noteMove(ctx context.Context, pv *corev1.PersistentVolume, v claim.Volume, disk string) error {
	noted := pv.Annotations[diskv1alpha1.AnnotationMovedTo]
	if noted == disk || noted == "" && v.Place.Disk == disk {
		return nil
	}
	if err := m.options.Client.AnnotateVolume(ctx, pv, diskv1alpha1.AnnotationMovedTo, disk); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("cannot note on PersistentVolume %s that its volume is on disk %s: %w", pv.Name, disk, err)
	}
	return nil
}

// diskFor is the disk that has the volume of a PersistentVolume, or is to have it.
func diskFor(pv *corev1.PersistentVolume, v claim.Volume) string {
	if moved := pv.Annotations[diskv1alpha1.AnnotationMovedTo]; moved != "" {
		return moved
	}
	return v.Place.Disk
}

// growTo brings the partition to the size that its PersistentVolume was granted.
func (m *Manager) growTo(ctx context.Context, volumeID string, size int64) error {
	partition := diskv1alpha1.PartitionID(volumeID)
	if _, on, err := m.usable(partition); err != nil || on.Extent.Len() >= size {
		return err
	}
	unlock, err := m.volumeLocks.lock(ctx, partition)
	if err != nil {
		return err
	}
	defer unlock()
	return m.grow(ctx, volumeID, size, promises{})
}

// grow makes the partition longer, if nobody else has, or will have, what lies behind it.
// The caller holds the volume's lock.
func (m *Manager) grow(ctx context.Context, volumeID string, size int64, others promises) error {
	partition := diskv1alpha1.PartitionID(volumeID)
	d, on, err := m.usable(partition)
	if err != nil || on.Extent.Len() >= size {
		return err
	}
	if err := m.holdTail(on, size, others); err != nil {
		return fmt.Errorf("volume %s: %w", volumeID, err)
	}
	defer func() {
		m.mu.Lock()
		delete(m.claimed, partition)
		m.mu.Unlock()
	}()
	if _, err := d.Engine.Grow(ctx, partition, size); err != nil {
		if errors.Is(err, disk.ErrOverlap) {
			return fmt.Errorf("%w: volume %s: %w", ErrNotGrown, volumeID, err)
		}
		return fmt.Errorf("cannot grow volume %s to %d bytes: %w", volumeID, size, err)
	}
	klog.FromContext(ctx).Info("Volume has grown", "volume", volumeID, "partition", partition, "from", on.Extent.Len(), "to", size)
	return nil
}

// holdTail keeps other decisions off the bytes by which the partition is to grow.
func (m *Manager) holdTail(on disk.Volume, size int64, others promises) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	disks := m.options.Inventory.Disks()
	d, now, found := findIn(disks, on.Partition)
	if !found || now.Extent != on.Extent {
		return fmt.Errorf("it changed meanwhile: %w", ErrWaiting)
	}
	// Also on a disk whose table has no entry left: a longer partition needs none.
	spaces := []space{{id: d.ID(), free: d.Snapshot.Free}}
	m.takeHeld(spaces, disks, others)
	others.take(spaces, disks)
	tail := extent.Extent{Start: on.Extent.End, End: on.Extent.Start + size}
	if free := spaces[0].free; !free.Contains(tail) {
		most := on.Extent.Len()
		if behind, ok := free.Holding(extent.New(on.Extent.End, diskv1alpha1.Alignment)); ok {
			most = behind.End - on.Extent.Start
		}
		return fmt.Errorf("%w: it has %d bytes, %d are wanted, and %d are possible where it lies", ErrNotGrown, on.Extent.Len(), size, most)
	}
	m.claimed[on.Partition] = hold{disk: d.ID(), extent: tail}
	return nil
}

// Expand brings the partition to the size that its PersistentVolume was granted, which must
// be at least atLeast, and then calls grow for the file system, under the volume's lock.
func (m *Manager) Expand(ctx context.Context, volumeID string, atLeast int64, grow func(ctx context.Context, v Volume) error) (Volume, error) {
	partition := diskv1alpha1.PartitionID(volumeID)
	unlock, err := m.volumeLocks.lock(ctx, partition)
	if err != nil {
		return Volume{}, err
	}
	defer unlock()
	_, on, err := m.usable(partition)
	if err != nil {
		return Volume{}, err
	}
	atLeast = diskv1alpha1.AlignUp(atLeast)
	granted, err := m.granted(ctx, volumeID, atLeast, on)
	if err != nil {
		return Volume{}, err
	}
	if err := m.grow(ctx, volumeID, granted, promises{}); err != nil {
		return Volume{}, err
	}
	d, on, err := m.usable(partition)
	if err != nil {
		return Volume{}, err
	}
	v := volumeOn(&d, on, volumeID)
	if v.Size < atLeast {
		return v, fmt.Errorf("%w: volume %s has %d bytes, %d are wanted, and no PersistentVolume grants them", ErrNotGrown, volumeID, v.Size, atLeast)
	}
	return v, grow(ctx, v)
}

// granted is the size that the volume's PersistentVolume says; 0 if there is none. The API
// server itself is asked if the watch does not say enough.
func (m *Manager) granted(ctx context.Context, volumeID string, atLeast int64, on disk.Volume) (int64, error) {
	for _, pv := range m.volumesOf(on.Partition) {
		if v, err := m.understand(pv); err == nil && v.Size >= atLeast {
			return v.Size, nil
		}
	}
	if on.Extent.Len() >= atLeast {
		return 0, nil
	}
	pv, _, err := m.volumeFor(ctx, volumeID)
	if errors.Is(err, ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	v, err := m.understand(pv)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return v.Size, nil
}

// GrowVolume makes a persistent volume's partition at least size bytes long, for a CSI
// call. What the scheduler promised to others is left alone.
func (m *Manager) GrowVolume(ctx context.Context, volumeID string, size, limit int64) (Volume, error) {
	size = diskv1alpha1.AlignUp(size)
	if limit > 0 && size > limit {
		return Volume{}, fmt.Errorf("%w: volume %s: sizes are multiples of %d bytes, and %d is above the limit", ErrInvalid, volumeID, diskv1alpha1.Alignment, size)
	}
	partition := diskv1alpha1.PartitionID(volumeID)
	others := m.promised(partition)
	unlock, err := m.volumeLocks.lock(ctx, partition)
	if err != nil {
		return Volume{}, err
	}
	defer unlock()
	if err := m.grow(ctx, volumeID, size, others); err != nil {
		return Volume{}, err
	}
	v, found := m.Lookup(volumeID)
	if !found {
		return Volume{}, fmt.Errorf("%w: %s", ErrNotFound, volumeID)
	}
	return v, nil
}
