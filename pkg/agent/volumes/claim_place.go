package volumes

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/discovery"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/placement"
	"github.com/berthdev/berth/pkg/request"
)

var (
	// errDiskMissing: the disk that a PersistentVolume names is not in service here. It may
	// hold the volume.
	errDiskMissing = errors.New("disk is missing")
	// errVanished: the partition was there, and nobody here has wiped it.
	errVanished = errors.New("partition has vanished")
	// errMismatch: the PersistentVolume and what is on the disk are not the same volume.
	errMismatch = errors.New("PersistentVolume and partition do not match")
)

// requestOf is what a PersistentVolume asks of the node.
func requestOf(v claim.Volume) request.Volume {
	return request.Volume{
		// The name is for messages.
		Name: v.ID, ID: v.ID, Partition: v.Partition, FSType: v.FSType, Block: v.Block,
		Request: placement.Request{Class: v.Class, Size: v.Size},
	}
}

// stillWatched reports whether a partition may be made for the PersistentVolume: it is the
// one on the watch, and neither released nor let go. Asked under the volume's lock.
func (m *Manager) stillWatched(pv *corev1.PersistentVolume) func() error {
	return func() error {
		now := m.cachedVolume(pv.Name)
		if now == nil || now.UID != pv.UID || fateOf(now) != serve || m.isFinished(now) {
			return fmt.Errorf("PersistentVolume %s: %w", pv.Name, ErrReleased)
		}
		return nil
	}
}

// stillLive is stillWatched for a PersistentVolume that the API server itself has just
// shown and the watch maybe not yet.
func (m *Manager) stillLive(pv *corev1.PersistentVolume) func() error {
	return func() error {
		if now := m.cachedVolume(pv.Name); now != nil && now.UID == pv.UID {
			return m.stillWatched(now)()
		}
		if m.isFinished(pv) {
			return fmt.Errorf("PersistentVolume %s: %w", pv.Name, ErrReleased)
		}
		return nil
	}
}

func (m *Manager) isFinished(pv *corev1.PersistentVolume) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, finished := m.persistent.finished[pv.UID]
	return finished
}

// realizeVolume makes the partition of a PersistentVolume, unless it has one. permit is
// asked when the volume's lock is held.
func (m *Manager) realizeVolume(ctx context.Context, pv *corev1.PersistentVolume, v claim.Volume, permit func() error) error {
	w := wanted{Volume: requestOf(v)}
	w.home = diskFor(pv, v)
	w.recorded = &diskv1alpha1.RecordVolume{
		Name: w.Name, Disk: v.Place.Disk, Extent: diskv1alpha1.Extent{Start: v.Place.Start, Length: v.Size},
	}
	note, err := claim.NoteOf(pv, v).Encode()
	if err != nil {
		return fmt.Errorf("cannot note whose volume %s is: %w", v.ID, err)
	}
	p, err := m.settle(ctx, w, note, permit)
	if err != nil || p.deviation == "" {
		return err
	}
	m.sayOfVolume(pv, corev1.EventTypeWarning, eventReplaced, fmt.Sprintf("the volume was put on disk %s at %d by the node itself: %s", p.disk, p.extent.Start, p.deviation))
	return nil
}

// settle makes the partition of a persistent volume, unless it has one. The place is empty
// if it had.
func (m *Manager) settle(ctx context.Context, w wanted, note string, permit func() error) (place, error) {
	unlock, err := m.podLocks.lock(ctx, w.Partition)
	if err != nil {
		return place{}, err
	}
	defer unlock()
	for try := 1; ; try++ {
		p, found, err := m.chooseVolume(w)
		if err != nil || found {
			return place{}, err
		}
		err = m.createVolume(ctx, p, note, permit)
		stale := errors.Is(err, disk.ErrOverlap) || errors.Is(err, disk.ErrNoEntry)
		if err == nil || !stale || try == placeTries {
			return p, err
		}
	}
}

// chooseVolume decides where a persistent volume without a partition goes and holds the
// extent; createVolume gives it back.
func (m *Manager) chooseVolume(w wanted) (p place, found bool, err error) {
	others := m.promised(w.Partition)
	m.mu.Lock()
	defer m.mu.Unlock()
	disks := m.options.Inventory.Disks()
	if _, _, found := findIn(disks, w.Partition); found {
		return place{}, true, nil
	}
	if _, inService := diskOf(disks, w.home); w.home != "" && !inService {
		// It may come back with the volume's data.
		return place{}, false, fmt.Errorf("%w: disk %s, which the volume was put on, is not in service on node %s; nothing is made elsewhere, the data may be on it", errDiskMissing, w.home, m.node)
	}
	if _, had := m.persistent.had[w.Partition]; had && w.home != "" {
		return place{}, false, fmt.Errorf("%w: node %s had the volume, and no disk has it any more; nothing is made in its place. Restore the entry of partition %s, or, if the data may be lost, delete the claim", errVanished, m.node, w.Partition)
	}
	if w.recorded != nil {
		if at, ok := diskOf(disks, w.recorded.Disk); ok && w.Request.Class == "" {
			w.Request.Class = at.Class
		}
	}
	m.applyClass(&w.Request)
	if err := m.checkSize(w.Volume); err != nil {
		return place{}, false, err
	}
	spaces := spacesOf(disks)
	m.takeHeld(spaces, disks, others)
	volumes := []wanted{w}
	if _, rest := follow(spaces, nil, volumes); len(rest) > 0 {
		others.take(spaces, disks)
	}
	places, err := decide(spaces, nil, volumes)
	if err != nil {
		return place{}, false, m.refusal(err, volumes)
	}
	m.claimed[w.Partition] = hold{disk: places[0].disk, extent: places[0].extent}
	return places[0], false, nil
}

func diskOf(disks []discovery.Disk, id string) (discovery.Disk, bool) {
	for _, d := range disks {
		if d.ID() == id && d.Ready() {
			return d, true
		}
	}
	return discovery.Disk{}, false
}

// checkSize refuses what the file system could not hold.
func (m *Manager) checkSize(v request.Volume) error {
	if v.Block {
		return nil
	}
	fsType := v.FSType
	if fsType == "" {
		fsType = m.options.DefaultFSType(v.Request.Class)
	}
	if err := diskv1alpha1.ValidateFSSize(fsType, v.Request.Size); err != nil {
		return fmt.Errorf("%w: volume %s: %w", ErrInvalid, v.ID, err)
	}
	return nil
}

// createVolume makes the partition at its place, and gives back the extent that was held.
func (m *Manager) createVolume(ctx context.Context, p place, note string, permit func() error) error {
	defer func() {
		m.mu.Lock()
		delete(m.claimed, p.Partition)
		m.mu.Unlock()
	}()
	unlock, err := m.volumeLocks.lock(ctx, p.Partition)
	if err != nil {
		return err
	}
	defer unlock()
	if err := permit(); err != nil {
		return err
	}
	d, err := m.disk(p.disk)
	if err != nil {
		return err
	}
	name, ok := diskv1alpha1.VolumeUUID(p.ID)
	if !ok {
		return fmt.Errorf("%w: %.64q is not the ID of a persistent volume", ErrInvalid, p.ID)
	}
	v, err := d.Engine.Create(ctx, disk.CreateOptions{
		Partition: p.Partition, Name: name, Extent: p.extent, Raw: p.Block, Note: note,
	})
	if err != nil {
		return fmt.Errorf("cannot make a partition for volume %s at %v of disk %s: %w", p.ID, p.extent, p.disk, err)
	}
	m.noteNew(p.Partition, v.Prezeroed)
	klog.FromContext(ctx).Info("Volume has its partition", "volume", p.ID, "partition", p.Partition, "device", v.Device, "disk", p.disk,
		"extent", p.extent, "deviation", p.deviation)
	return nil
}

// promises are what others may count on and have not got yet.
type promises struct {
	pods    []*corev1.Pod
	volumes []claim.Volume
}

// promised lists what the scheduler recorded for others than the pod with that UID, or the
// persistent volume with that partition.
func (m *Manager) promised(except string) promises {
	var p promises
	for _, object := range m.options.Pods.GetStore().List() {
		if pod, ok := object.(*corev1.Pod); ok && string(pod.UID) != except && len(pod.Spec.Volumes) > 0 {
			p.pods = append(p.pods, pod)
		}
	}
	for _, object := range m.options.Volumes.GetStore().List() {
		pv, ok := object.(*corev1.PersistentVolume)
		if !ok || !claim.IsOurs(pv) || fateOf(pv) != serve {
			continue
		}
		if v, err := m.understand(pv); err == nil && v.Partition != except {
			p.volumes = append(p.volumes, v)
		}
	}
	return p
}

// take keeps a decision off the extents that are recorded and are not partitions yet.
func (p promises) take(spaces []space, disks []discovery.Disk) {
	for _, pod := range p.pods {
		takeRecorded(spaces, pod, disks)
	}
	for _, v := range p.volumes {
		if _, _, found := findIn(disks, v.Partition); !found {
			take(spaces, v.Place.Disk, extent.New(v.Place.Start, v.Size))
		}
	}
}

// takeHeld keeps every decision off the extents that are about to become partitions, and
// off those by which partitions were granted to grow: data is waiting for them.
func (m *Manager) takeHeld(spaces []space, disks []discovery.Disk, others promises) {
	for _, h := range m.claimed {
		take(spaces, h.disk, h.extent)
	}
	for _, v := range others.volumes {
		if d, partition, found := findIn(disks, v.Partition); found && v.Size > partition.Extent.Len() {
			take(spaces, d.ID(), extent.Extent{Start: partition.Extent.End, End: partition.Extent.Start + v.Size})
		}
	}
}
