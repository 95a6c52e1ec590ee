package volumes

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/discovery"
	"github.com/berthdev/berth/pkg/agent/disk"
)

// inUseRetry is how often a volume is looked at whose pod is gone and that is still
// mounted or open. Its unmounting through NodeUnpublish wakes the release at once.
const inUseRetry = 30 * time.Second

// Release asks that the volume be wiped if its pod is gone. It returns at once.
func (m *Manager) Release(volumeID string) {
	m.releases.Add(diskv1alpha1.PartitionID(volumeID))
}

// verdict is what becomes of a volume.
type verdict int

const (
	keep  verdict = iota
	inUse         // its pod is gone or going, but it is mounted
	wipe
)

// judge decides from the pod as the API server itself has just shown it, nil if there
// is none with that name; uid is that of the pod whose volume it is.
func judge(pod *corev1.Pod, uid types.UID, isMounted bool) verdict {
	// A pod that is being deleted may still run; only the mount tells.
	gone := pod == nil || pod.UID != uid || terminal(pod) || pod.DeletionTimestamp != nil
	switch {
	case !gone:
		return keep
	case isMounted:
		return inUse
	}
	return wipe
}

// release wipes the volume of the partition if it is due.
func (m *Manager) release(ctx context.Context, partition string) error {
	if partition == sweepKey {
		return m.sweep(ctx)
	}
	if m.beingWiped(partition) {
		// Its end brings the volume back here if anything is left to do.
		return nil
	}
	unlock, err := m.volumeLocks.lock(ctx, partition)
	if err != nil {
		return err
	}
	begun := false
	defer func() {
		if !begun {
			unlock()
		}
	}()
	d, v, found := m.find(partition)
	if !found {
		m.disown(partition)
		m.wakeVolumes(partition)
		return nil
	}
	if !d.Ready() {
		// followDisks comes back here with the disk.
		return nil
	}
	if v.Phase != disk.Wiping {
		if !v.Ephemeral {
			return m.lookForVolume(ctx, v)
		}
		due, err := m.due(ctx, v)
		if err != nil || !due {
			return err
		}
	}
	begun = true
	m.begin(ctx, d, v, unlock)
	return nil
}

func (m *Manager) beingWiped(partition string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, wiping := m.wiping[partition]
	return wiping
}

// begin wipes the volume in the background, so that a large slow disk holds up nothing
// but itself. unlock gives back the volume's lock at the end.
func (m *Manager) begin(ctx context.Context, d discovery.Disk, v disk.Volume, unlock func()) {
	m.mu.Lock()
	m.wiping[v.Partition] = struct{}{}
	m.mu.Unlock()
	m.wipes.Go(func() {
		again := m.wipe(ctx, d, v)
		unlock()
		m.mu.Lock()
		delete(m.wiping, v.Partition)
		m.mu.Unlock()
		again()
	})
}

// due asks the API server whether the volume's pod is gone.
func (m *Manager) due(ctx context.Context, v disk.Volume) (bool, error) {
	if o, known := m.owner(v.Partition); known {
		// To keep, the watch is word enough; it comes back here with the pod's end.
		if pod := m.cached(o.pod, o.uid); pod != nil && alive(pod) {
			return false, nil
		}
	}
	isMounted, err := mounted(v.Device)
	if err != nil {
		return false, err
	}
	pod, uid, err := m.livePod(ctx, v)
	if err != nil {
		return false, err
	}
	switch judge(pod, uid, isMounted) {
	case wipe:
		return true, nil
	case inUse:
		if (pod == nil || pod.UID != uid) && m.isNews(types.UID(v.Partition), "mounted") {
			klog.FromContext(ctx).Info("Volume's pod is gone, but it is mounted; it is wiped once it is not", "partition", v.Partition, "device", v.Device)
		}
		m.releases.AddAfter(v.Partition, inUseRetry)
	case keep:
		if pod.Spec.NodeName != m.node {
			m.warn(pod, eventStrayed, fmt.Sprintf("the volume in partition %s is on a disk of node %s, the pod is on node %q: was the disk moved? The volume is kept until the pod is gone", v.Partition, m.node, pod.Spec.NodeName))
			m.releases.AddAfter(v.Partition, m.options.OrphanGrace)
		}
	}
	return false, nil
}

// livePod asks the API server, not the cache, for the pod whose volume the partition
// holds, and for that volume's UID; nil if there is no such pod. An error means that
// nothing is known, and then nothing may be wiped.
func (m *Manager) livePod(ctx context.Context, v disk.Volume) (*corev1.Pod, types.UID, error) {
	o, known := m.owner(v.Partition)
	if !known {
		if err := m.findOwners(ctx, []disk.Volume{v}); err != nil {
			return nil, "", err
		}
		if o, known = m.owner(v.Partition); !known {
			return nil, "", nil
		}
	}
	pod, err := m.options.Client.Pod(ctx, o.pod.Namespace, o.pod.Name)
	if apierrors.IsNotFound(err) {
		return nil, o.uid, nil
	}
	if err != nil {
		return nil, "", fmt.Errorf("cannot ask the API server for pod %s, its volume is kept: %w", o.pod, err)
	}
	return pod, o.uid, nil
}

func (m *Manager) owner(partition string) (owner, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	o, known := m.owners[partition]
	return o, known
}

// findOwners has the API server itself list the node's pods, and those that may have
// brought the volumes here from another node, and remembers whose the volumes are.
// Without an error the pod of a volume without a known owner does not exist.
func (m *Manager) findOwners(ctx context.Context, volumes []disk.Volume) error {
	own := func(pod *corev1.Pod) {
		for partition := range partitionsOf(pod) {
			if slices.ContainsFunc(volumes, func(v disk.Volume) bool { return v.Partition == partition }) {
				m.own(pod)
			}
		}
	}
	err := m.options.Client.PodsOfNode(ctx, own)
	namespaces := map[string]bool{}
	for _, v := range volumes {
		if _, known := m.owner(v.Partition); !known {
			namespaces[namespaceOf(v)] = true
		}
	}
	for namespace := range namespaces {
		if err == nil {
			err = m.options.Client.PodsOfNamespace(ctx, namespace, own)
		}
	}
	if err != nil {
		return fmt.Errorf("cannot ask the API server for pods, volumes without a known pod are kept: %w", err)
	}
	return nil
}

// namespaceOf is the namespace of the volume's pod, by the name that partitionName gave
// it; empty, which stands for all, if the name does not tell.
func namespaceOf(v disk.Volume) string {
	namespace, _, whole := strings.Cut(v.Name, "/")
	if !whole {
		return ""
	}
	return namespace
}

// wipe wipes the volume. The caller holds its lock; nobody else has business with it.
// The function it returns is to be called when the lock is free: it sees to what is left.
func (m *Manager) wipe(ctx context.Context, d discovery.Disk, v disk.Volume) (again func()) {
	logger := klog.FromContext(ctx).WithValues("partition", v.Partition, "disk", d.ID(), "device", v.Device)
	leave, err := m.wipeSlots.take(ctx, d.ID(), wipesPerDisk)
	if err != nil {
		return func() {}
	}
	defer leave()
	_, owner := m.Owner(v)
	logger.V(2).Info("Volume is being wiped", "owner", owner, "name", v.Name, "extent", v.Extent)
	begin := time.Now()
	_, err = d.Engine.Wipe(ctx, v.Partition, disk.WipeOptions{})
	switch {
	case err == nil, errors.Is(err, disk.ErrNotFound):
		logger.Info("Volume is wiped and its space is free", "owner", owner, "duration", time.Since(begin))
		m.wipeBackoff.Forget(v.Partition)
		m.mu.Lock()
		delete(m.persistent.had, v.Partition)
		m.mu.Unlock()
		// Once more: it is disowned when no disk holds it, or a copy of it.
		return func() { m.releases.Add(v.Partition) }
	case errors.Is(err, disk.ErrInUse):
		if m.isNews(types.UID(v.Partition), err.Error()) {
			logger.Info("Volume is still in use and is wiped later", "reason", err.Error())
		}
		return func() { m.releases.AddAfter(v.Partition, inUseRetry) }
	}
	if ctx.Err() != nil {
		// The agent is stopping; the next one finds the phase Wiping and goes on.
		return func() {}
	}
	logger.Error(err, "Volume could not be wiped")
	return func() { m.releases.AddAfter(v.Partition, m.wipeBackoff.When(v.Partition)) }
}

// disown forgets the owner of a partition that does not exist (any more), unless the
// pod is still there and may get it yet.
func (m *Manager) disown(partition string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.fresh, partition)
	delete(m.made, partition)
	delete(m.told, types.UID(partition))
	delete(m.persistent.orphaned, partition)
	if o, ok := m.owners[partition]; ok && m.cached(o.pod, o.uid) == nil {
		delete(m.owners, partition)
	}
}

// sweep reclaims the partitions whose pod nobody here has ever seen: it went while the
// agent was down. What the API server itself lists now decides for all.
func (m *Manager) sweep(ctx context.Context) error {
	m.askForVolumes()
	orphans := m.orphans()
	if len(orphans) == 0 {
		return nil
	}
	if err := m.findOwners(ctx, orphans); err != nil {
		return err
	}
	for _, v := range orphans {
		if _, known := m.owner(v.Partition); known {
			m.releases.Add(v.Partition)
			continue
		}
		if err := m.reclaim(ctx, v.Partition); err != nil {
			return err
		}
	}
	return nil
}

// orphans are the ephemeral volumes on disks in service whose pod is not known.
func (m *Manager) orphans() []disk.Volume {
	disks := m.options.Inventory.Disks()
	m.mu.Lock()
	defer m.mu.Unlock()
	var orphans []disk.Volume
	for i := range disks {
		if !disks[i].Ready() {
			continue
		}
		for _, v := range disks[i].Snapshot.Volumes {
			if _, known := m.owners[v.Partition]; !known && v.Ephemeral && v.Phase != disk.Wiping {
				orphans = append(orphans, v)
			}
		}
	}
	return orphans
}

// reclaim wipes a partition that belongs to no pod of the node.
func (m *Manager) reclaim(ctx context.Context, partition string) error {
	unlock, err := m.volumeLocks.lock(ctx, partition)
	if err != nil {
		return err
	}
	d, v, found := m.find(partition)
	if !found || !d.Ready() {
		unlock()
		return nil
	}
	isMounted, err := mounted(v.Device)
	if err != nil || isMounted {
		unlock()
		m.releases.AddAfter(sweepKey, inUseRetry)
		return err
	}
	klog.FromContext(ctx).Info("Volume has no pod any more and is reclaimed", "partition", partition, "disk", d.ID(), "name", v.Name)
	m.begin(ctx, d, v, unlock)
	return nil
}
