package volumes

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/disk"
)

// An orphan is a volume that nobody speaks for: a persistent one without a
// PersistentVolume, or an ephemeral one whose pod is gone without that anybody here saw
// it end. Both are kept and listed. The persistent ones stay that until a person acts. The
// ephemeral ones are reclaimed after the grace period; but when they are suddenly many,
// it is rather the API server that lost its data than the pods that went, and then all
// are kept until the pods are back or a person says how many may go.
//
// A pod whose end was seen is the usual case, and its volume is no orphan: the watch
// showed it being deleted, ended or going, or the API server itself does now.
type orphan struct {
	since time.Time
	// allowed is set when a person said that it may be reclaimed.
	allowed bool
}

// orphans is what the manager knows of them; its mu guards it.
type orphans struct {
	// found is by partition.
	found map[string]orphan
	// suspected are volumes whose pod is gone while its end has not been seen, yet: the
	// watch may be behind.
	suspected map[string]struct{}
	// stopped is set while nothing is reclaimed. It ends with the last orphan, not when they
	// are few again: half of the pods being back says nothing about the other half.
	stopped bool
}

const (
	// sweepSoon collects what vanishes at the same time.
	sweepSoon = time.Second
	// sweepAgain is how often the API server is asked again whether pods are back.
	sweepAgain = 5 * time.Minute
	// orphanEvents bounds the events of single orphans: of very many, only the sum is of use.
	orphanEvents = 50
)

// Reasons of events about the node's NodeDiskCapacity.
const (
	eventWiped          = "VolumeWiped"
	eventNotWiped       = "VolumeNotWiped"
	eventOrphaned       = "VolumeOrphaned"
	eventReclaimStopped = "ReclaimStopped"
	eventReclaimAllowed = "ReclaimAllowed"
)

// Orphans are the volumes that nobody speaks for, named for people.
type Orphans struct {
	Persistent, Ephemeral []string
	// Stopped means that none of the ephemeral ones is reclaimed.
	Stopped bool
}

// Orphans lists the volumes on the disks that nobody speaks for.
func (m *Manager) Orphans() Orphans {
	var o Orphans
	disks := m.options.Inventory.Disks()
	for i := range disks {
		for _, v := range disks[i].Snapshot.Volumes {
			if _, orphaned := m.OrphanedSince(v); !orphaned {
				continue
			}
			if v.Ephemeral {
				o.Ephemeral = append(o.Ephemeral, fmt.Sprintf("%s (%s)", v.Partition, v.Name))
				continue
			}
			id, _ := persistentID(v)
			if owner := noted(v); owner != "" {
				id += " (made for claim " + owner + ")"
			}
			o.Persistent = append(o.Persistent, id)
		}
	}
	m.mu.Lock()
	o.Stopped = m.orphans.stopped && len(o.Ephemeral) > 0
	m.mu.Unlock()
	orphanedVolumes.WithLabelValues("persistent").Set(float64(len(o.Persistent)))
	orphanedVolumes.WithLabelValues("ephemeral").Set(float64(len(o.Ephemeral)))
	reclaimStopped.Set(0)
	if o.Stopped {
		reclaimStopped.Set(1)
	}
	return o
}

// OrphanedSince says since when nobody speaks for the volume, if that is so.
func (m *Manager) OrphanedSince(v disk.Volume) (since time.Time, orphaned bool) {
	if v.Phase == disk.Wiping {
		return time.Time{}, false
	}
	if !v.Ephemeral {
		if _, ok := persistentID(v); !ok || len(m.volumesOf(v.Partition)) > 0 {
			return time.Time{}, false
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	o, orphaned := m.orphans.found[v.Partition]
	return o.since, orphaned
}

// noteOrphan notes whether anybody speaks for a volume, and says so if that is news.
func (m *Manager) noteOrphan(ctx context.Context, v disk.Volume, orphaned bool) {
	m.mu.Lock()
	_, was := m.orphans.found[v.Partition]
	if orphaned && !was {
		m.orphans.found[v.Partition] = orphan{since: time.Now()}
	} else if !orphaned {
		delete(m.orphans.found, v.Partition)
	}
	count := len(m.orphans.found)
	m.mu.Unlock()
	if was == orphaned {
		return
	}
	m.options.OwnersChanged()
	if !orphaned {
		klog.FromContext(ctx).Info("Volume is no orphan any more", "partition", v.Partition, "name", v.Name)
		return
	}
	klog.FromContext(ctx).Info("Volume is an orphan", "partition", v.Partition, "name", v.Name, "device", v.Device, "ephemeral", v.Ephemeral)
	if count > orphanEvents {
		return
	}
	becomes := "no PersistentVolume; it is kept until one is made and deleted"
	if v.Ephemeral {
		becomes = fmt.Sprintf("no pod, and nobody saw its pod end; it is kept for %v, then wiped", m.options.OrphanGrace)
	}
	d, _, _ := m.find(v.Partition)
	m.say(corev1.EventTypeWarning, eventOrphaned, m.nameOf(d, v)+" has "+becomes)
}

// endSeen reports whether the end of the volume's pod was seen: by the watch, or by the
// API server that still has the pod and says that it is going or has ended.
func (m *Manager) endSeen(partition string, pod *corev1.Pod, uid types.UID) bool {
	if pod != nil && pod.UID == uid {
		return true
	}
	o, known := m.owner(partition)
	return known && o.ended
}

// quarantine keeps a volume whose pod is gone and was not seen to end. Whether it is an
// orphan is decided in a moment, by then the watch has shown what it will show.
func (m *Manager) quarantine(v disk.Volume) {
	m.mu.Lock()
	m.orphans.suspected[v.Partition] = struct{}{}
	m.mu.Unlock()
	m.releases.AddAfter(sweepKey, min(sweepSoon, m.options.OrphanGrace))
}

// sweep looks at the ephemeral volumes that nobody here knows a pod of, and reclaims those
// that have been orphans for long enough. What the API server itself lists now decides for all.
func (m *Manager) sweep(ctx context.Context) error {
	allowed, asked := m.allowance(ctx)
	suspects := m.suspects()
	spoken, err := m.spokenFor(ctx, suspects)
	if err != nil {
		for _, v := range suspects {
			m.quarantine(v)
		}
		return err
	}
	var orphaned []disk.Volume
	for _, v := range suspects {
		m.noteOrphan(ctx, v, !spoken[v.Partition])
		if spoken[v.Partition] {
			m.releases.Add(v.Partition)
			continue
		}
		orphaned = append(orphaned, v)
	}
	if asked {
		// First: what was allowed once is not allowed the next time.
		if err := m.options.Client.ForgetReclaimOrphans(ctx); err != nil {
			return fmt.Errorf("cannot remove annotation %s, orphans are kept: %w", diskv1alpha1.AnnotationReclaimOrphans, err)
		}
		m.acceptAllowance(ctx, allowed, orphaned)
	}
	return m.reclaimAll(ctx, orphaned)
}

// reclaimAll reclaims those of the orphans that may go now, and sees to it that the others
// are looked at again.
func (m *Manager) reclaimAll(ctx context.Context, orphaned []disk.Volume) error {
	var doubtful int
	m.mu.Lock()
	found := maps.Clone(m.orphans.found)
	m.mu.Unlock()
	for _, v := range orphaned {
		if !found[v.Partition].allowed {
			doubtful++
		}
	}
	stopped := m.tooMany(ctx, doubtful)
	if stopped {
		m.releases.AddAfter(sweepKey, sweepAgain)
	}
	for _, v := range orphaned {
		o := found[v.Partition]
		left := m.options.OrphanGrace - time.Since(o.since)
		switch {
		case o.allowed:
		case stopped:
			continue
		case left > 0:
			m.releases.AddAfter(sweepKey, left)
			continue
		}
		if err := m.reclaim(ctx, v.Partition); err != nil {
			return err
		}
	}
	return nil
}

// suspects are the ephemeral volumes on disks in service that may be orphans.
func (m *Manager) suspects() []disk.Volume {
	disks := m.options.Inventory.Disks()
	m.mu.Lock()
	defer m.mu.Unlock()
	var suspects []disk.Volume
	suspected := m.orphans.suspected
	m.orphans.suspected = map[string]struct{}{}
	for i := range disks {
		if !disks[i].Ready() {
			continue
		}
		for _, v := range disks[i].Snapshot.Volumes {
			if _, wiping := m.wiping[v.Partition]; wiping || !v.Ephemeral || v.Phase == disk.Wiping {
				continue
			}
			o, known := m.owners[v.Partition]
			_, orphaned := m.orphans.found[v.Partition]
			_, suspect := suspected[v.Partition]
			switch {
			case known && o.ended:
				// Its release is on its way, by what has shown the end.
			case !known || orphaned || suspect:
				suspects = append(suspects, v)
			}
		}
	}
	return suspects
}

// say writes an event about the node's NodeDiskCapacity.
func (m *Manager) say(eventType, reason, message string) {
	var uid types.UID
	if ndc := m.capacity(); ndc != nil {
		uid = ndc.UID
	}
	m.options.Recorder.OfNode(uid, eventType, reason, message)
}

// reclaim wipes a partition that belongs to no pod.
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

// spokenFor has the API server itself list the node's pods, and those that may have
// brought the volumes here from another node, remembers whose the volumes are, and returns
// the partitions of those that have a pod. The pod of any other does not exist.
func (m *Manager) spokenFor(ctx context.Context, volumes []disk.Volume) (map[string]bool, error) {
	spoken := map[string]bool{}
	if len(volumes) == 0 {
		return spoken, nil
	}
	listen := func(pod *corev1.Pod) {
		for partition := range partitionsOf(pod) {
			if slices.ContainsFunc(volumes, func(v disk.Volume) bool { return v.Partition == partition }) {
				spoken[partition] = true
				m.own(pod)
			}
		}
	}
	err := m.options.Client.PodsOfNode(ctx, listen)
	namespaces := map[string]bool{}
	for _, v := range volumes {
		if !spoken[v.Partition] {
			namespaces[namespaceOf(v)] = true
		}
	}
	for namespace := range namespaces {
		if err == nil {
			err = m.options.Client.PodsOfNamespace(ctx, namespace, listen)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("cannot ask the API server for pods, volumes without a known pod are kept: %w", err)
	}
	return spoken, nil
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
