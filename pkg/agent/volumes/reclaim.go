package volumes

import (
	"context"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	"github.com/berthdev/berth/pkg/agent/discovery"
	"github.com/berthdev/berth/pkg/agent/disk"
)

// reclaimer is what inlineController and persistentController use of reclaimController.
type reclaimer interface {
	// enqueue queues the check, after a while, whether the volume of a partition must be wiped.
	enqueue(partition string, after time.Duration)
	// begin wipes a volume, after its owner has decided so. The wipe calls unlock for the volume's lock when it has
	// ended.
	begin(ctx context.Context, d discovery.Disk, v disk.Volume, unlock func())
	// isWiping reports whether the agent is wiping the volume.
	isWiping(partition string) bool
}

// decider is what reclaimController uses of inlineController and persistentController. Each decides about its own
// volumes.
type decider interface {
	// verdict decides whether a volume that is not being wiped is kept or wiped. It reads from the API server. With an
	// error nothing is known, and the volume is kept.
	verdict(ctx context.Context, v disk.Volume) (verdict, error)
	// partitionGone is called when no disk has the partition (any more).
	partitionGone(partition string)
	// ownerOf names the volume by its CSI ID, and its pod or claim by namespace/name.
	ownerOf(v disk.Volume) (volume, owner string)
}

// verdict is the decision about a volume.
type verdict int

const (
	verdictKeep    verdict = iota
	verdictEnding          // its pod is ending, and it is mounted
	verdictInUse           // its pod is gone, and it is mounted
	verdictSuspect         // its pod is gone, and the pod's end was not seen
	verdictWipe
)

const (
	// inUseRetry is how often reclaim checks a volume whose pod is gone and that is still mounted or open.
	// NodeUnpublish queues it at once.
	inUseRetry = 30 * time.Second
	// The queue has GUIDs of partitions, and two keys for many of them. sweepKey means all ephemeral volumes that may
	// be orphans. unwatchedKey means the persistent ones for which the watch shows no PersistentVolume.
	sweepKey     = ""
	unwatchedKey = "persistent"
)

// reclaimController checks volumes that may have lost their owner, and wipes those that have.
//
// Invariant: a partition is wiped only while nothing is mounted, and only in one of these cases:
//  1. The API server itself, not a cache, has answered that its owner is gone. Unless the pod's end was seen, the grace
//     period must be over, and there must be few such orphans (see sweep).
//  2. A wipe that was begun is finished.
//  3. It is in phase Reserved, when the pod's other volumes do not fit: it never held data.
//  4. It is in phase Copying, and the PersistentVolume does not name its place: the volume is elsewhere.
//  5. It is in phase Arriving, as in 4, and another disk in service has the volume, whole.
//  6. It is in phase Moved, another disk in service has the volume, and its PersistentVolume names that disk.
type reclaimController struct {
	node       *node
	queue      workqueue.TypedRateLimitingInterface[string]
	inline     decider
	persistent decider
	formatter  *formatter
	wiper      *wiper
	mover      *mover
	orphans    *orphans
	sweeper    *sweeper
	blocked    *blockedVolumes
	// enqueueUnwatched queues the persistent volumes for which the watch shows no PersistentVolume.
	enqueueUnwatched func()
}

func (r *reclaimController) enqueue(partition string, after time.Duration) {
	if after > 0 {
		r.queue.AddAfter(partition, after)
		return
	}
	r.queue.Add(partition)
}

func (r *reclaimController) begin(ctx context.Context, d discovery.Disk, v disk.Volume, unlock func()) {
	r.wiper.begin(ctx, d, v, unlock)
}

func (r *reclaimController) isWiping(partition string) bool { return r.wiper.isWiping(partition) }

// deciderFor is the decider of the volume.
func (r *reclaimController) deciderFor(v disk.Volume) decider {
	if v.Ephemeral {
		return r.inline
	}
	return r.persistent
}

// ownerOf names a volume by its CSI ID, and its pod or claim by namespace/name.
func (r *reclaimController) ownerOf(v disk.Volume) (volume, owner string) {
	if id, partition, ok := volumeOfCopy(v); ok {
		_, of, found := r.node.findVolume(partition)
		if !found {
			return id, ""
		}
		v = of
	}
	if _, is := persistentVolumeID(v); is {
		return r.persistent.ownerOf(v)
	}
	return r.inline.ownerOf(v)
}

// release checks what a key of the queue stands for, and wipes the volume of a partition if that is due.
func (r *reclaimController) release(ctx context.Context, partition string) error {
	switch partition {
	case sweepKey:
		return r.sweeper.sweep(ctx)
	case unwatchedKey:
		r.enqueueUnwatched()
		return nil
	}
	if r.isWiping(partition) {
		// When the wipe ends, it queues the volume again if anything is left to do.
		return nil
	}
	if _, v, found := r.node.findVolume(partition); found && (v.Phase == disk.Moved || v.Phase == disk.Arriving) {
		// Before its lock, which comes after that of the volume.
		if settled, err := r.mover.settle(ctx, v); settled || err != nil {
			return err
		}
	}
	unlock, err := r.node.locks.lock(ctx, partition)
	if err != nil {
		return err
	}
	begun := false
	defer func() {
		if !begun {
			unlock()
		}
	}()
	d, v, found := r.node.findVolume(partition)
	if !found {
		r.dropPartition(partition)
		return nil
	}
	if !d.Ready() {
		// followDisks queues it again when the disk is back.
		return nil
	}
	if v.Phase != disk.Wiping {
		due, err := r.mustWipe(ctx, d, v)
		if err != nil || !due {
			return err
		}
	}
	begun = true
	r.begin(ctx, d, v, unlock)
	return nil
}

// mustWipe reports whether the volume must be wiped now. If it may be later, it queues the next check.
func (r *reclaimController) mustWipe(ctx context.Context, d discovery.Disk, v disk.Volume) (bool, error) {
	switch v.Phase {
	case disk.Copying:
		return !r.mover.wants(d, v), nil
	case disk.Arriving:
		return r.mover.mayWipeArriving(d, v), nil
	case disk.Moved:
		return r.mover.mayWipeLeft(ctx, d, v)
	case disk.OrphanPiece:
		// What it belongs to is not known: only an operator may decide.
		r.orphans.setOrphaned(ctx, v, true)
		return false, nil
	case disk.Reserved, disk.Formatted, disk.Wiping:
	}
	decision, err := r.deciderFor(v).verdict(ctx, v)
	if err != nil {
		return false, err
	}
	switch decision {
	case verdictWipe:
		return true, nil
	case verdictSuspect:
		r.sweeper.addSuspect(v)
	case verdictEnding:
		r.enqueue(v.Partition, inUseRetry)
	case verdictInUse:
		r.enqueue(v.Partition, inUseRetry)
		r.blocked.recordHeld(ctx, d, v, "it is mounted")
	case verdictKeep:
		if v.Ephemeral {
			r.blocked.remove(v.Partition)
		}
	}
	return false, nil
}

// dropPartition drops what is known of a partition that no disk has.
func (r *reclaimController) dropPartition(partition string) {
	r.formatter.forget(partition)
	r.node.reports.forget(types.UID(partition))
	r.orphans.remove(partition)
	r.blocked.remove(partition)
	r.inline.partitionGone(partition)
	r.persistent.partitionGone(partition)
}

// resumeWipes continues the wipes that were begun on a disk that came into service, and wipes copies that are not
// wanted.
func (r *reclaimController) resumeWipes(d *discovery.Disk) {
	for _, v := range d.Snapshot.Volumes {
		if !v.Phase.HasDevice() {
			r.enqueue(v.Partition, 0)
		}
	}
}

// reclaimOrphan wipes a partition that belongs to no pod.
func (r *reclaimController) reclaimOrphan(ctx context.Context, partition string) error {
	unlock, err := r.node.locks.lock(ctx, partition)
	if err != nil {
		return err
	}
	d, v, found := r.node.findVolume(partition)
	if !found || !d.Ready() {
		unlock()
		return nil
	}
	// A volume in phase Wiping has no device that could be mounted.
	if v.Phase != disk.Wiping {
		isMounted, err := isDeviceMounted(v.Device)
		if err != nil || isMounted {
			unlock()
			r.enqueue(sweepKey, inUseRetry)
			if isMounted {
				r.blocked.recordHeld(ctx, d, v, "it is mounted")
			}
			return err
		}
	}
	klog.FromContext(ctx).Info("Volume has no pod any more and is reclaimed", "partition", partition, "disk", d.ID(), "name", v.Name)
	r.begin(ctx, d, v, unlock)
	return nil
}
