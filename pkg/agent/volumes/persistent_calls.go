package volumes

import (
	"context"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/pkg/placement"
	"github.com/berthdev/berth/pkg/request"
)

// VolumeRequest is what a CSI CreateVolume call requests.
type VolumeRequest struct {
	// ID is the CSI volume ID of the new volume. See diskv1alpha1.NamedVolumeID.
	ID    string
	Class string
	// FSType is ext4, xfs or empty for the class's default.
	FSType string
	// Size is the least size in bytes, and Limit the largest one unless it is 0.
	Size, Limit int64
	Block       bool
	// Apart requests a disk that no other volume of the same request is on. A request of one volume always satisfies
	// it.
	Apart bool
	// Note is kept on the disk beside the volume. It names the claim, as far as the caller does.
	Note claim.Note
}

// requestedByCall says why no place is recorded for a volume of a CSI call: the scheduler did not place it.
const requestedByCall = "a CSI call asked for it"

// provisioner serves the calls of CSI controllers: upstream sidecars that run beside the agent.
type provisioner struct {
	node    *node
	volumes volumeStore
	placer  *placer
	maker   *partitionMaker
	stager  *stager
	reclaim reclaimer
	// orphanGrace is how long a new volume may be without a PersistentVolume before it is reported as an orphan.
	orphanGrace time.Duration
}

// CreateVolume makes a persistent volume on the node's own disks, or finds the existing one. The volume is recorded on
// the disk only: the caller of the CSI service makes the PersistentVolume afterwards.
func (p *provisioner) CreateVolume(ctx context.Context, r VolumeRequest) (Volume, error) {
	if _, ok := diskv1alpha1.VolumeUUID(r.ID); !ok {
		return Volume{}, fmt.Errorf("%w: %.64q is not the ID of a persistent volume", ErrInvalid, r.ID)
	}
	size := diskv1alpha1.AlignUp(r.Size)
	if r.Limit > 0 && size > r.Limit {
		return Volume{}, fmt.Errorf("%w: volume %s: sizes are multiples of %d bytes, and there is none from %d to %d", ErrInvalid, r.ID, diskv1alpha1.Alignment, r.Size, r.Limit)
	}
	v := request.Volume{
		Name: r.ID, ID: r.ID, Partition: diskv1alpha1.PartitionID(r.ID), FSType: r.FSType, Block: r.Block,
		Request: placement.Request{Class: r.Class, Size: size, Apart: r.Apart},
	}
	note, err := r.Note.Encode()
	if err != nil {
		return Volume{}, fmt.Errorf("cannot note whose volume %s is: %w", r.ID, err)
	}
	at, err := p.maker.ensurePartition(ctx, unplacedVolume{Volume: v, noRecordReason: requestedByCall}, note, func(context.Context) error { return nil })
	if err != nil {
		return Volume{}, err
	}
	made, found := p.node.Lookup(r.ID)
	switch {
	case !found:
		return Volume{}, fmt.Errorf("volume %s is gone already: %w", r.ID, ErrNotFound)
	case at.disk == "":
		// The volume existed before this call.
		if err := made.satisfies(r, size); err != nil {
			return Volume{}, err
		}
	default:
		// After the grace it has a PersistentVolume, or it is reported as an orphan.
		p.reclaim.enqueue(v.Partition, p.orphanGrace)
	}
	// The file system is made now, so that the start of the pod does not wait for it.
	if err := p.stager.makeReady(ctx, v, nil); err != nil {
		return Volume{}, err
	}
	made, _ = p.node.Lookup(r.ID)
	return made, nil
}

// satisfies returns nil if the existing volume satisfies the request.
func (v *Volume) satisfies(r VolumeRequest, size int64) error {
	var differs string
	switch {
	case v.Phase == disk.Wiping:
		return fmt.Errorf("volume %s is being wiped: %w", v.ID, ErrWaiting)
	case v.Size < size || r.Limit > 0 && v.Size > r.Limit:
		differs = fmt.Sprintf("it has %d bytes", v.Size)
	case v.Class != r.Class:
		differs = fmt.Sprintf("it is on a disk of class %q", v.Class)
	case v.Block != r.Block:
		differs = "it is of the other volume mode"
	default:
		return nil
	}
	return fmt.Errorf("%w: volume %s: %s", ErrExists, v.ID, differs)
}

// DeleteVolume wipes a persistent volume and returns when that is done. It refuses while a PersistentVolume needs the
// volume.
func (p *provisioner) DeleteVolume(ctx context.Context, volumeID string) error {
	partition := diskv1alpha1.PartitionID(volumeID)
	unlock, err := p.node.locks.lock(ctx, partition)
	if err != nil {
		return err
	}
	d, onDisk, err := p.node.usable(partition)
	switch {
	case errors.Is(err, ErrNotFound):
		unlock()
		return nil
	case errors.Is(err, ErrOutOfService):
		// This includes a volume in phase Wiping: its wipe goes on when the disk is back.
		unlock()
		return err
	case onDisk.Phase == disk.Wiping:
		// The wipe has begun and cannot be stopped.
	case err != nil:
		unlock()
		return err
	default:
		if err := p.checkDelete(ctx, volumeID, onDisk); err != nil {
			unlock()
			return err
		}
	}
	klog.FromContext(ctx).Info("Volume is deleted by a CSI call", "volume", volumeID, "partition", partition, "disk", d.ID())
	// The caller may give up, the wipe goes on.
	p.reclaim.begin(context.WithoutCancel(ctx), d, onDisk, unlock)
	if unlock, err = p.node.locks.lock(ctx, partition); err != nil {
		return err
	}
	defer unlock()
	if _, onDisk, err := p.node.usable(partition); !errors.Is(err, ErrNotFound) {
		why := "it is in phase " + string(onDisk.Phase)
		if err != nil {
			why = err.Error()
		}
		return fmt.Errorf("volume %s could not be wiped, the agent tries again: %s: %w", volumeID, why, ErrInUse)
	}
	return nil
}

// checkDelete fails if the volume is in use, or if a PersistentVolume needs it. It reads the PersistentVolume from the
// API server.
func (p *provisioner) checkDelete(ctx context.Context, volumeID string, onDisk disk.Volume) error {
	why, err := describeUse(onDisk.Device)
	if err != nil {
		return err
	}
	if why != "" {
		return fmt.Errorf("volume %s: %s: %w", volumeID, why, ErrInUse)
	}
	names := []string{volumeID}
	for _, pv := range p.volumes.of(onDisk.Partition) {
		if pv.Name != volumeID {
			names = append(names, pv.Name)
		}
	}
	for _, name := range names {
		pv, err := p.node.client.Volume(ctx, name)
		switch {
		case apierrors.IsNotFound(err):
		case err != nil:
			return fmt.Errorf("cannot ask the API server for PersistentVolume %s, its volume is kept: %w", name, err)
		case claim.IsOurs(pv) && pv.Spec.CSI.VolumeHandle == volumeID && actionFor(pv) != actionReclaim:
			return fmt.Errorf("volume %s: PersistentVolume %s is %s with reclaim policy %s: %w", volumeID, name, pv.Status.Phase, pv.Spec.PersistentVolumeReclaimPolicy, ErrInUse)
		}
	}
	return nil
}

// ListVolumes returns the persistent volumes on the disks, sorted by disk and start.
func (p *provisioner) ListVolumes() []Volume {
	var volumes []Volume
	disks := p.node.inventory.Disks()
	for i := range disks {
		for _, onDisk := range disks[i].Snapshot.Volumes {
			if id, ok := persistentVolumeID(onDisk); ok && onDisk.Phase != disk.Wiping {
				volumes = append(volumes, volumeOn(&disks[i], onDisk, id))
			}
		}
	}
	return volumes
}

// Capacity returns how many bytes of a class are free and not reserved, and the largest volume that fits. An empty
// class means all classes.
func (p *provisioner) Capacity(class string) (free, largest int64) { return p.placer.capacity(class) }
