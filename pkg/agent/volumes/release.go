package volumes

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
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
	switch partition {
	case sweepKey:
		return m.sweep(ctx)
	case askKey:
		m.askForVolumes()
		return nil
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
	becomes := judge(pod, uid, isMounted)
	if becomes != keep && !m.endSeen(v.Partition, pod, uid) {
		// It is not for this volume alone to say whether that can be true.
		m.quarantine(v)
		return false, nil
	}
	switch becomes {
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
		if _, err := m.spokenFor(ctx, []disk.Volume{v}); err != nil {
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

// disown forgets the owner of a partition that does not exist (any more), unless the
// pod is still there and may get it yet.
func (m *Manager) disown(partition string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.fresh, partition)
	delete(m.made, partition)
	delete(m.told, types.UID(partition))
	delete(m.orphans.found, partition)
	if o, ok := m.owners[partition]; ok && m.cached(o.pod, o.uid) == nil {
		delete(m.owners, partition)
	}
}
