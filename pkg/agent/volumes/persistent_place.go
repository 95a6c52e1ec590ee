package volumes

import (
	"context"
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/discovery"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/claim"
)

// partitionMaker makes the partitions of PersistentVolumes.
type partitionMaker struct {
	node      *node
	volumes   volumeStore
	placer    *placer
	formatter *formatter
	policies  *policies
	finalized *finalizedVolumes
	// formatted are the partitions that were formatted, as far as the agent knows. One that vanishes without having
	// been wiped is not made again: its data may be where the new one would be.
	formatted *partitionSet
	// attachment returns how the volumes of a class are attached.
	attachment func(class string) disk.Attachment
	// placementLocks are by partition.
	placementLocks locks
}

// finalizedVolumes are the PersistentVolumes whose finalizer the agent has removed. The watch may still show them, but
// no partition is made for them any more.
type finalizedVolumes struct {
	mu    sync.Mutex
	byUID map[types.UID]struct{}
}

func (f *finalizedVolumes) add(uid types.UID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.byUID == nil {
		f.byUID = map[types.UID]struct{}{}
	}
	f.byUID[uid] = struct{}{}
}

func (f *finalizedVolumes) remove(uid types.UID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.byUID, uid)
}

func (f *finalizedVolumes) has(uid types.UID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, is := f.byUID[uid]
	return is
}

// partitionSet is a set of partitions' GUIDs. Several goroutines may use it.
type partitionSet struct {
	mu      sync.Mutex
	members map[string]struct{}
}

func (p *partitionSet) add(partition string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.members == nil {
		p.members = map[string]struct{}{}
	}
	p.members[partition] = struct{}{}
}

func (p *partitionSet) remove(partition string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.members, partition)
}

func (p *partitionSet) has(partition string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, is := p.members[partition]
	return is
}

// permission is called under the volume's lock, and fails if the partition may not be made.
type permission func(ctx context.Context) error

// stillWatched permits a partition for a PersistentVolume from the watch, if the API server has it, too. After a pause,
// the watch may begin again with a list that is out of date. A volume for a PersistentVolume that is gone would be an
// orphan for ever.
func (m *partitionMaker) stillWatched(pv *corev1.PersistentVolume) permission {
	return func(ctx context.Context) error {
		if !m.isServed(m.volumes.get(pv.Name), pv) {
			return fmt.Errorf("PersistentVolume %s: %w", pv.Name, ErrReleased)
		}
		live, err := m.node.client.Volume(ctx, pv.Name)
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("cannot ask the API server for PersistentVolume %s, nothing is made for it: %w", pv.Name, err)
		}
		if err != nil || !m.isServed(live, pv) {
			return fmt.Errorf("PersistentVolume %s is not what the watch shows: %w", pv.Name, ErrReleased)
		}
		return nil
	}
}

// stillLive permits a partition for a PersistentVolume that the API server has just returned. The watch may not show it
// yet.
func (m *partitionMaker) stillLive(pv *corev1.PersistentVolume) permission {
	return func(context.Context) error {
		now := m.volumes.get(pv.Name)
		if now == nil || now.UID != pv.UID {
			now = pv
		}
		if !m.isServed(now, pv) {
			return fmt.Errorf("PersistentVolume %s: %w", pv.Name, ErrReleased)
		}
		return nil
	}
}

// isServed reports whether now is the same PersistentVolume, and neither released nor finalized.
func (m *partitionMaker) isServed(now, pv *corev1.PersistentVolume) bool {
	return now != nil && now.UID == pv.UID && claim.IsOurs(now) && now.Spec.CSI.VolumeHandle == pv.Spec.CSI.VolumeHandle &&
		actionFor(now) == actionServe && !m.finalized.has(now.UID)
}

// ensureForVolume makes the partition of a PersistentVolume, unless it has one.
func (m *partitionMaker) ensureForVolume(ctx context.Context, pv *corev1.PersistentVolume, v claim.Volume, mayMake permission) error {
	w := unplacedVolume{Volume: requestOf(v)}
	if err := errAway(m.node.inventory.Disks(), v); err != nil {
		return err
	}
	w.requiredDisk = diskFor(pv, v)
	w.recorded = &diskv1alpha1.RecordVolume{
		Name: w.Name, Disk: v.Place.Disk, Extent: diskv1alpha1.Extent{Start: v.Place.Start, Length: firstLength(v)},
	}
	w.Request.Size = w.recorded.Length
	note, err := claim.NoteOf(pv, v).Encode()
	if err != nil {
		return fmt.Errorf("cannot note whose volume %s is: %w", v.ID, err)
	}
	at, err := m.ensurePartition(ctx, w, note, mayMake)
	if err != nil || at.deviation == "" {
		return err
	}
	m.node.reports.volumeEvent(pv, corev1.EventTypeWarning, eventReplaced, fmt.Sprintf("the volume was put on disk %s at %d by the node itself: %s", at.disk, at.extent.Start, at.deviation))
	return nil
}

// ensurePartition makes the partition of a persistent volume, unless it has one. Then the place is empty.
func (m *partitionMaker) ensurePartition(ctx context.Context, w unplacedVolume, note string, mayMake permission) (place, error) {
	unlock, err := m.placementLocks.lock(ctx, w.Partition)
	if err != nil {
		return place{}, err
	}
	defer unlock()
	for try := 1; ; try++ {
		at, found, err := m.choose(w)
		if err != nil || found {
			return place{}, err
		}
		if err = m.create(ctx, at, note, mayMake); err == nil || !canRetryPlace(err, try) {
			return at, err
		}
	}
}

// choose decides where a persistent volume without a partition goes, and holds the extent. create releases it.
func (m *partitionMaker) choose(w unplacedVolume) (at place, found bool, err error) {
	places, err := m.placer.choose(w.Partition, func(disks []discovery.Disk) ([]unplacedVolume, map[string]bool, error) {
		if _, _, found := findVolume(disks, w.Partition); found {
			return nil, nil, nil
		}
		if _, away := departed(disks, w.Partition); away {
			return nil, nil, fmt.Errorf("volume %s moves to another disk: %w", w.ID, ErrWaiting)
		}
		if _, ok := inService(disks, w.requiredDisk); w.requiredDisk != "" && !ok {
			// It may come back with the volume's data.
			return nil, nil, fmt.Errorf("%w: disk %s, which the volume was put on, is not in service on node %s; nothing is made elsewhere, the data may be on it", errDiskMissing, w.requiredDisk, m.node.name)
		}
		if w.requiredDisk != "" && m.formatted.has(w.Partition) {
			return nil, nil, fmt.Errorf("%w: node %s had the volume, and no disk has it any more; nothing is made in its place. Restore the entry of partition %s, or, if the data may be lost, delete the claim", errVanished, m.node.name, w.Partition)
		}
		if w.recorded != nil {
			if d, ok := inService(disks, w.recorded.Disk); ok && w.Request.Class == "" {
				w.Request.Class = d.Class
			}
		}
		return []unplacedVolume{w}, nil, m.placer.checkSize(w.Volume)
	})
	if err != nil || len(places) == 0 {
		return place{}, err == nil, err
	}
	return places[0], false, nil
}

// create makes the partition at its place, and releases the extent that was held.
func (m *partitionMaker) create(ctx context.Context, at place, note string, mayMake permission) error {
	defer m.placer.releaseHeld(at.Partition)
	unlock, err := m.node.locks.lock(ctx, at.Partition)
	if err != nil {
		return err
	}
	defer unlock()
	if err := mayMake(ctx); err != nil {
		return err
	}
	d, err := m.node.diskInService(at.disk)
	if err != nil {
		return err
	}
	e, err := engineOf(&d)
	if err != nil {
		return err
	}
	name, ok := diskv1alpha1.VolumeUUID(at.ID)
	if !ok {
		return fmt.Errorf("%w: %.64q is not the ID of a persistent volume", ErrInvalid, at.ID)
	}
	settings, _ := m.policies.ofClass(&d)
	v, err := e.Create(ctx, disk.CreateOptions{
		Partition: at.Partition, Name: name, Extent: at.extent, Raw: at.Block, Note: note, Wipe: settings, Attachment: m.attachment(d.Class),
	})
	if err != nil {
		return fmt.Errorf("cannot make a partition for volume %s at %v of disk %s: %w", at.ID, at.extent, at.disk, err)
	}
	m.formatter.recordNew(at.Partition, v.Prezeroed)
	klog.FromContext(ctx).Info("Volume has its partition", "volume", at.ID, "partition", at.Partition, "device", v.Device, "disk", at.disk,
		"extent", at.extent, "deviation", at.deviation)
	return nil
}

// volumeFor returns the PersistentVolume with the volume ID, if its volume must exist. It comes from the watch, or
// from the API server if the watch has not shown it yet.
func (m *partitionMaker) volumeFor(ctx context.Context, volumeID string) (pv *corev1.PersistentVolume, mayMake permission, err error) {
	for _, pv := range m.volumes.of(diskv1alpha1.PartitionID(volumeID)) {
		if actionFor(pv) == actionServe && pv.Spec.CSI.VolumeHandle == volumeID {
			return pv, m.stillWatched(pv), nil
		}
	}
	pv, err = m.node.client.Volume(ctx, volumeID)
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil, fmt.Errorf("%w: no disk of node %s holds %s, and there is no PersistentVolume of that name", ErrNotFound, m.node.name, volumeID)
	case err != nil:
		return nil, nil, fmt.Errorf("cannot read PersistentVolume %s: %w", volumeID, err)
	case !claim.IsOurs(pv) || pv.Spec.CSI.VolumeHandle != volumeID:
		return nil, nil, fmt.Errorf("%w: PersistentVolume %s is of another driver or volume", ErrNotFound, volumeID)
	case actionFor(pv) != actionServe:
		return nil, nil, fmt.Errorf("PersistentVolume %s is %s or being deleted, and its volume is not made any more: %w", volumeID, pv.Status.Phase, ErrReleased)
	}
	return pv, m.stillLive(pv), nil
}

// recordMove records on the PersistentVolume which disk has its volume, if that is another disk than the one in its
// attributes. The agent must know which disk to wait for.
func (m *partitionMaker) recordMove(ctx context.Context, pv *corev1.PersistentVolume, v claim.Volume, diskID string) error {
	return m.node.recordDisk(ctx, pv, v, diskID)
}

// recordDisk is recordMove.
func (n *node) recordDisk(ctx context.Context, pv *corev1.PersistentVolume, v claim.Volume, diskID string) error {
	noted := pv.Annotations[diskv1alpha1.AnnotationMovedTo]
	if noted == diskID || noted == "" && v.Place.Disk == diskID {
		return nil
	}
	if err := n.client.AnnotateVolume(ctx, pv, diskv1alpha1.AnnotationMovedTo, diskID); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("cannot note on PersistentVolume %s that its volume is on disk %s: %w", pv.Name, diskID, err)
	}
	return nil
}
