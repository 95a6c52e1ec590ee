package volumes

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"

	"github.com/berthdev/berth/pkg/agent/disk"
)

// An orphan is a volume without an owner. A persistent one has no PersistentVolume. An ephemeral one has no pod, and
// the agent did not see the pod's end. Both are kept and listed. The persistent ones stay orphans until an operator
// acts. The ephemeral ones are reclaimed after the grace period (see sweep).
//
// Usually the pod's end is seen, and then its volume is no orphan. Either the watch showed the pod being deleted, ended
// or removed, or the API server itself does now.
type orphan struct {
	// since is published for operators. A jump of the wall clock moves it.
	since time.Time
	// graceBegin begins the grace period, on this process's monotonic clock. After a restart the period begins again,
	// because the agent cannot know how long it was away.
	graceBegin time.Time
	// reclaimAllowed is set when an operator confirmed that it may be reclaimed.
	reclaimAllowed bool
}

// maxOrphanEvents bounds the events about single orphans. Beyond it only the condition counts them.
const maxOrphanEvents = 50

// Orphans are the names of the volumes without an owner, for messages.
type Orphans struct {
	Persistent, Ephemeral []string
	// Stopped is true while none of the ephemeral ones is reclaimed.
	Stopped bool
}

// orphans knows which volumes are orphans, by partition.
type orphans struct {
	node    *node
	volumes volumeStore
	// grace is how long the ephemeral ones are kept.
	grace time.Duration
	// ownerOf names a volume for messages.
	ownerOf func(v disk.Volume) (volume, ownerOf string)

	mu          sync.Mutex
	byPartition map[string]orphan
}

// get returns the orphan in a partition, if it is one.
func (o *orphans) get(partition string) (orphan, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	of, is := o.byPartition[partition]
	return of, is
}

// all returns a copy.
func (o *orphans) all() map[string]orphan {
	o.mu.Lock()
	defer o.mu.Unlock()
	return maps.Clone(o.byPartition)
}

// restore records an orphan that was published before this agent started.
func (o *orphans) restore(partition string, since time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.byPartition[partition] = orphan{since: since, graceBegin: o.node.clock.Now()}
}

func (o *orphans) remove(partition string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.byPartition, partition)
}

// allow records that an operator confirmed that the orphan may be reclaimed.
func (o *orphans) allow(partition string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if of, is := o.byPartition[partition]; is {
		of.reclaimAllowed = true
		o.byPartition[partition] = of
	}
}

// removeOfPod removes the volumes of a pod that exists (again): they are no orphans. It reports whether one was.
func (o *orphans) removeOfPod(pod *corev1.Pod) (were bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for partition := range partitionsOf(pod) {
		_, was := o.byPartition[partition]
		delete(o.byPartition, partition)
		were = were || was
	}
	return were
}

// OrphanedSince returns since when the volume has had no owner, and whether that is so.
func (o *orphans) OrphanedSince(v disk.Volume) (since time.Time, orphaned bool) {
	if v.Phase == disk.Wiping {
		return time.Time{}, false
	}
	if !v.Ephemeral && v.Phase != disk.OrphanPiece {
		if _, ok := persistentVolumeID(v); !ok || len(o.volumes.of(v.Partition)) > 0 {
			return time.Time{}, false
		}
	}
	of, orphaned := o.get(v.Partition)
	return of.since, orphaned
}

// setOrphaned records whether a volume is an orphan, and reports a change.
func (o *orphans) setOrphaned(ctx context.Context, v disk.Volume, orphaned bool) {
	o.mu.Lock()
	_, was := o.byPartition[v.Partition]
	if orphaned && !was {
		now := o.node.clock.Now()
		o.byPartition[v.Partition] = orphan{since: now, graceBegin: now}
	} else if !orphaned {
		delete(o.byPartition, v.Partition)
	}
	count := len(o.byPartition)
	o.mu.Unlock()
	if was == orphaned {
		return
	}
	o.node.changed()
	if !orphaned {
		klog.FromContext(ctx).Info("Volume is no orphan any more", "partition", v.Partition, "name", v.Name)
		return
	}
	klog.FromContext(ctx).Info("Volume is an orphan", "partition", v.Partition, "name", v.Name, "device", v.Device, "ephemeral", v.Ephemeral)
	if count > maxOrphanEvents {
		return
	}
	becomes := "no PersistentVolume; it is kept until one is made and deleted"
	if v.Phase == disk.OrphanPiece {
		becomes = "no first piece in the table, which another program has changed; it is kept until its entry is restored or deleted"
	}
	if v.Ephemeral {
		becomes = fmt.Sprintf("no pod, and its pod's end was not seen; it is kept for %v, then wiped", o.grace)
	}
	d, _, _ := o.node.findVolume(v.Partition)
	volume, owner := o.ownerOf(v)
	o.node.reports.nodeEvent(corev1.EventTypeWarning, eventOrphaned, describeVolume(d, v, volume, owner)+" has "+becomes)
}

// list lists the orphans on the disks.
func (o *orphans) list() Orphans {
	var out Orphans
	disks := o.node.inventory.Disks()
	for i := range disks {
		for _, v := range disks[i].Snapshot.Volumes {
			if _, orphaned := o.OrphanedSince(v); !orphaned {
				continue
			}
			if v.Phase == disk.OrphanPiece {
				out.Persistent = append(out.Persistent, fmt.Sprintf("piece %s on disk %s, whose first piece is gone", v.Partition, disks[i].ID()))
				continue
			}
			if v.Ephemeral {
				out.Ephemeral = append(out.Ephemeral, fmt.Sprintf("%s (%s)", v.Partition, v.Name))
				continue
			}
			id, _ := persistentVolumeID(v)
			if owner := claimInNote(v); owner != "" {
				id += " (made for claim " + owner + ")"
			}
			out.Persistent = append(out.Persistent, id)
		}
	}
	return out
}
