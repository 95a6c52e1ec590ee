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

// VolumeRequest is what a CSI CreateVolume call asks for.
type VolumeRequest struct {
	// ID is the CSI volume ID to be; see diskv1alpha1.NamedVolumeID.
	ID    string
	Class string
	// FSType is ext4, xfs or empty for the class's default.
	FSType string
	// Size in bytes that the volume has at least, and Limit at most, unless that is 0.
	Size, Limit int64
	Block       bool
	// Apart asks for a disk that no other volume of the same request is on. A request of
	// one volume is always so.
	Apart bool
	// Note is kept on the disk beside the volume: for whom it is, as far as the caller says.
	Note claim.Note
}

// byCall is why no place is recorded for a volume of a CSI call.
const byCall = "a CSI call asked for it"

// provisioner serves the calls of CSI controllers: stock sidecars that run beside the agent.
type provisioner struct {
	node    *node
	volumes volumeStore
	placer  *placer
	maker   *maker
	stager  *stager
	reclaim reclaimer
	// orphanGrace is that of Options.
	orphanGrace time.Duration
}

// CreateVolume makes a persistent volume on the node's own disks, or finds that it is there.
// Nothing is recorded of it but on the disk: the caller of the CSI service makes the
// PersistentVolume afterwards.
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
	at, err := p.maker.ensure(ctx, wanted{Volume: v, unrecorded: byCall}, note, func(context.Context) error { return nil })
	if err != nil {
		return Volume{}, err
	}
	made, found := p.node.Lookup(r.ID)
	switch {
	case !found:
		return Volume{}, fmt.Errorf("volume %s is gone already: %w", r.ID, ErrNotFound)
	case at.disk == "":
		// It was there.
		if err := made.answers(r, size); err != nil {
			return Volume{}, err
		}
	default:
		// By then there is a PersistentVolume for it, or people should know.
		p.reclaim.look(v.Partition, p.orphanGrace)
	}
	// In advance: the pod waits for the kubelet only.
	if err := p.stager.makeReady(ctx, v, nil); err != nil {
		return Volume{}, err
	}
	made, _ = p.node.Lookup(r.ID)
	return made, nil
}

// answers reports whether the volume that is there could be the one that is asked for.
func (v *Volume) answers(r VolumeRequest, size int64) error {
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

// DeleteVolume wipes a persistent volume and returns when that is done. It does not while a
// PersistentVolume says that the volume is of use.
func (p *provisioner) DeleteVolume(ctx context.Context, volumeID string) error {
	partition := diskv1alpha1.PartitionID(volumeID)
	unlock, err := p.node.locks.lock(ctx, partition)
	if err != nil {
		return err
	}
	d, on, err := p.node.usable(partition)
	switch {
	case errors.Is(err, ErrNotFound):
		unlock()
		return nil
	case errors.Is(err, ErrOutOfService):
		// Also of a volume in phase Wiping: its disk's return brings it back to reclaim.
		unlock()
		return err
	case on.Phase == disk.Wiping:
		// A wipe was begun; nothing can stop it.
	case err != nil:
		unlock()
		return err
	default:
		if err := p.mayDelete(ctx, volumeID, on); err != nil {
			unlock()
			return err
		}
	}
	klog.FromContext(ctx).Info("Volume is deleted by a CSI call", "volume", volumeID, "partition", partition, "disk", d.ID())
	// The caller may give up; the wiping goes on.
	p.reclaim.begin(context.WithoutCancel(ctx), d, on, unlock)
	if unlock, err = p.node.locks.lock(ctx, partition); err != nil {
		return err
	}
	defer unlock()
	if _, on, err := p.node.usable(partition); !errors.Is(err, ErrNotFound) {
		why := "it is in phase " + string(on.Phase)
		if err != nil {
			why = err.Error()
		}
		return fmt.Errorf("volume %s could not be wiped, the agent tries again: %s: %w", volumeID, why, ErrInUse)
	}
	return nil
}

// mayDelete fails if the volume is needed: by what is mounted, and by what the API
// server itself says now.
func (p *provisioner) mayDelete(ctx context.Context, volumeID string, on disk.Volume) error {
	why, err := inUseBy(on.Device)
	if err != nil {
		return err
	}
	if why != "" {
		return fmt.Errorf("volume %s: %s: %w", volumeID, why, ErrInUse)
	}
	names := []string{volumeID}
	for _, pv := range p.volumes.of(on.Partition) {
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
		case claim.IsOurs(pv) && pv.Spec.CSI.VolumeHandle == volumeID && actionFor(pv) != reclaimNow:
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
		for _, on := range disks[i].Snapshot.Volumes {
			if id, ok := persistentID(on); ok && on.Phase != disk.Wiping {
				volumes = append(volumes, volumeOn(&disks[i], on, id))
			}
		}
	}
	return volumes
}

// Capacity returns how many bytes of a class, or of all if it is empty, are free and not
// promised, and the largest volume that fits.
func (p *provisioner) Capacity(class string) (free, largest int64) { return p.placer.capacity(class) }
