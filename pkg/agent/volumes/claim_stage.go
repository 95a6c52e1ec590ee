package volumes

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/discovery"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/pkg/request"
)

// Volume is a persistent volume as it is on a disk now.
type Volume struct {
	// ID is the CSI volume ID, Partition the GUID of its partition.
	ID, Partition string
	// Device is its block device; empty while its disk is out of service.
	Device string
	// Disk is the ID of its disk, Class that disk's DiskClass.
	Disk, Class string
	// Problem says why the disk is out of service; empty if it serves.
	Problem string
	// FSType is the file system on it; read only where said.
	FSType string
	// Start and Size are its extent, in bytes.
	Start, Size int64
	// Block is true for a raw block volume.
	Block bool
	Phase disk.Phase
}

// StageOptions say how the kubelet wants a volume.
type StageOptions struct {
	// FSType is the file system; empty for the class's default, or what the volume has.
	FSType string
	// Block is true for a raw block volume.
	Block bool
}

// Lookup returns the persistent volume that is on a disk, whether that serves or not.
func (m *Manager) Lookup(volumeID string) (Volume, bool) {
	d, on, found := m.find(diskv1alpha1.PartitionID(volumeID))
	if !found {
		return Volume{}, false
	}
	if id, ok := persistentID(on); !ok || id != volumeID {
		return Volume{}, false
	}
	return volumeOn(&d, on, volumeID), true
}

func volumeOn(d *discovery.Disk, on disk.Volume, id string) Volume {
	return Volume{
		ID: id, Partition: on.Partition, Device: on.Device, Disk: d.ID(), Class: d.Class, Problem: d.Problem,
		Start: on.Extent.Start, Size: on.Extent.Len(), Block: on.Raw, Phase: on.Phase,
	}
}

// Stage makes the persistent volume ready and calls use with its device, and the file
// system on it (empty for a raw block volume), while nobody can release it.
func (m *Manager) Stage(ctx context.Context, volumeID string, o StageOptions, use func(ctx context.Context, device, fsType string) error) error {
	if _, ok := diskv1alpha1.VolumeUUID(volumeID); !ok {
		return fmt.Errorf("%w: no persistent volume has an ID like %.64q", ErrNotFound, volumeID)
	}
	want := request.Volume{
		Name: volumeID, ID: volumeID, Partition: diskv1alpha1.PartitionID(volumeID), FSType: o.FSType, Block: o.Block,
	}
	if on, found := m.Lookup(volumeID); found {
		want.Request.Class = on.Class
	} else {
		pv, permit, err := m.volumeFor(ctx, volumeID)
		if err != nil {
			return err
		}
		v, err := m.understand(pv)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		if v.Block != o.Block {
			return fmt.Errorf("%w: PersistentVolume %s is of another volumeMode than what is asked for", ErrInvalid, pv.Name)
		}
		want.Request.Class = v.Class
		if err := m.realizeVolume(ctx, pv, v, permit); err != nil {
			return err
		}
		// Before there is data in it: once its disk is lost, nothing else would tell that it
		// had been there.
		if on, found := m.Lookup(volumeID); found {
			if err := m.noteMove(ctx, pv, v, on.Disk); err != nil {
				return err
			}
		}
	}
	return m.makeReady(ctx, want, use)
}

// volumeFor returns the PersistentVolume that says that there is to be a volume with the
// ID: from the watch, or from the API server itself if the kubelet was faster.
func (m *Manager) volumeFor(ctx context.Context, volumeID string) (pv *corev1.PersistentVolume, permit func() error, err error) {
	for _, pv := range m.volumesOf(diskv1alpha1.PartitionID(volumeID)) {
		if fateOf(pv) == serve && pv.Spec.CSI.VolumeHandle == volumeID {
			return pv, m.stillWatched(pv), nil
		}
	}
	pv, err = m.options.Client.Volume(ctx, volumeID)
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil, fmt.Errorf("%w: no disk of node %s holds %s, and there is no PersistentVolume of that name", ErrNotFound, m.node, volumeID)
	case err != nil:
		return nil, nil, fmt.Errorf("cannot read PersistentVolume %s: %w", volumeID, err)
	case !claim.IsOurs(pv) || pv.Spec.CSI.VolumeHandle != volumeID:
		return nil, nil, fmt.Errorf("%w: PersistentVolume %s is of another driver or volume", ErrNotFound, volumeID)
	case fateOf(pv) != serve:
		return nil, nil, fmt.Errorf("PersistentVolume %s is %s or being deleted, and its volume is not made any more: %w", volumeID, pv.Status.Phase, ErrReleased)
	}
	return pv, m.stillLive(pv), nil
}

// makeReady brings a persistent volume that has a partition to phase Formatted, and calls
// use, if it is not nil, under the volume's lock. use may run while the phase is being
// written; both have happened when makeReady returns nil.
func (m *Manager) makeReady(ctx context.Context, v request.Volume, use func(ctx context.Context, device, fsType string) error) error {
	if v.Block {
		return m.handOut(ctx, v, use)
	}
	switch _, on, err := m.usable(v.Partition); {
	case err != nil:
		return err
	case on.Raw:
		return otherMode(v)
	}
	if use == nil {
		return m.ready(ctx, v, nil)
	}
	return m.ready(ctx, v, func(ctx context.Context, device, fsType string) error {
		return m.explain(ctx, device, fsType, use(ctx, device, fsType))
	})
}

// handOut calls use with the device of a raw block volume, which is ready as soon as it is there.
func (m *Manager) handOut(ctx context.Context, v request.Volume, use func(ctx context.Context, device, fsType string) error) error {
	unlock, err := m.volumeLocks.lock(ctx, v.Partition)
	if err != nil {
		return err
	}
	defer unlock()
	_, on, err := m.usable(v.Partition)
	switch {
	case err != nil:
		return err
	case !on.Raw:
		return otherMode(v)
	case use == nil:
		return nil
	}
	return use(ctx, on.Device, "")
}

func otherMode(v request.Volume) error {
	if v.Block {
		return fmt.Errorf("%w: volume %s has a file system, it is no raw block volume", ErrInvalid, v.ID)
	}
	return fmt.Errorf("%w: volume %s is a raw block volume, it has no file system", ErrInvalid, v.ID)
}

// explain says, of a file system that could not be mounted, whether it is there at all.
func (m *Manager) explain(ctx context.Context, device, fsType string, err error) error {
	if err == nil {
		return nil
	}
	switch found, lookErr := fileSystemOn(ctx, device); {
	case lookErr != nil:
		return fmt.Errorf("%w; %w", err, lookErr)
	case found != fsType:
		return fmt.Errorf("%w: the volume holds %s, not %s: %w", ErrInvalid, found, fsType, err)
	}
	return err
}

// usable returns a persistent volume, with an error unless it is on a disk in service and
// not being wiped.
func (m *Manager) usable(partition string) (discovery.Disk, disk.Volume, error) {
	disks := m.options.Inventory.Disks()
	d, on, found := findIn(disks, partition)
	id, persistent := persistentID(on)
	err := alone(disks, partition)
	switch {
	case !found || !persistent:
		return discovery.Disk{}, disk.Volume{}, fmt.Errorf("%w: no disk of node %s holds partition %s", ErrNotFound, m.node, partition)
	case !d.Ready():
		return d, on, fmt.Errorf("volume %s is on disk %s (%s), which is out of service: %w: %s", id, d.ID(), d.Device.Name, ErrOutOfService, d.Problem)
	case on.Phase == disk.Wiping:
		return d, on, fmt.Errorf("volume %s is being wiped: %w", id, ErrReleased)
	}
	return d, on, err
}
