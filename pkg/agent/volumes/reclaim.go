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

// reclaimer is what inline and persistent use of reclaim.
type reclaimer interface {
	// look has reclaim check, after a while, whether the volume of a partition must be wiped.
	look(partition string, after time.Duration)
	// begin wipes a volume, after its owner has decided so. The wipe calls unlock for the volume's lock when it has
	// ended.
	begin(ctx context.Context, d discovery.Disk, v disk.Volume, unlock func())
	// isWiping reports whether the agent is wiping the volume.
	isWiping(partition string) bool
}

// decider is what reclaim uses of inline and persistent. Each of them decides about its own volumes.
type decider interface {
	// verdict decides what becomes of a volume that is not being wiped. It reads from the API server. With an error
	// nothing is known, and the volume is kept.
	verdict(ctx context.Context, v disk.Volume) (verdict, error)
	// gone is called when no disk has the partition (any more).
	gone(partition string)
	// ownerOf names the volume by its CSI ID, and its pod or claim by namespace/name.
	ownerOf(v disk.Volume) (volume, owner string)
}

// verdict is what becomes of a volume.
type verdict int

const (
	keep    verdict = iota
	ending          // its pod is ending, and it is mounted
	inUse           // its pod is gone, and it is mounted
	suspect         // its pod is gone, and the pod's end was not seen
	wipe
)

const (
	// inUseRetry is how often reclaim checks a volume whose pod is gone and that is still mounted or open.
	// NodeUnpublish has it checked at once.
	inUseRetry = 30 * time.Second
	// sweepKey in the queue means all ephemeral volumes that may be orphans. askKey means the persistent ones for which
	// the watch shows no PersistentVolume.
	sweepKey = ""
	askKey   = "persistent"
)

// reclaim checks volumes that may have lost their owner, and wipes those that have.
//
// Invariant: a partition is wiped only while nothing is mounted, and only in one of these cases:
//  1. The API server itself, not a cache, has answered that its owner is gone. Unless the pod's end was seen, the grace
//     period must be over, and there must be few such orphans (see sweep).
//  2. A wipe that was begun is finished.
//  3. It is in phase Reserved, when the pod's other volumes do not fit: it never held data.
type reclaim struct {
	node       *node
	queue      workqueue.TypedRateLimitingInterface[string]
	inline     decider
	persistent decider
	formatter  *formatter
	wiper      *wiper
	orphans    *orphans
	sweeper    *sweeper
	blocked    *blocked
	// ask has the persistent volumes checked for which the watch shows no PersistentVolume.
	ask func()
}

func (r *reclaim) look(partition string, after time.Duration) {
	if after > 0 {
		r.queue.AddAfter(partition, after)
		return
	}
	r.queue.Add(partition)
}

func (r *reclaim) begin(ctx context.Context, d discovery.Disk, v disk.Volume, unlock func()) {
	r.wiper.begin(ctx, d, v, unlock)
}

func (r *reclaim) isWiping(partition string) bool { return r.wiper.isWiping(partition) }

// deciderFor is the decider of the volume.
func (r *reclaim) deciderFor(v disk.Volume) decider {
	if v.Ephemeral {
		return r.inline
	}
	return r.persistent
}

// ownerOf names a volume by its CSI ID, and its pod or claim by namespace/name.
func (r *reclaim) ownerOf(v disk.Volume) (volume, owner string) {
	if _, is := persistentID(v); is {
		return r.persistent.ownerOf(v)
	}
	return r.inline.ownerOf(v)
}

// release wipes the volume of the partition if that is due.
func (r *reclaim) release(ctx context.Context, partition string) error {
	switch partition {
	case sweepKey:
		return r.sweeper.sweep(ctx)
	case askKey:
		r.ask()
		return nil
	}
	if r.isWiping(partition) {
		// The end of the wipe has the volume looked at again if anything is left to do.
		return nil
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
	d, v, found := r.node.find(partition)
	if !found {
		r.gone(partition)
		return nil
	}
	if !d.Ready() {
		// followDisks has it looked at again when the disk is back.
		return nil
	}
	if v.Phase != disk.Wiping {
		due, err := r.due(ctx, d, v)
		if err != nil || !due {
			return err
		}
	}
	begun = true
	r.begin(ctx, d, v, unlock)
	return nil
}

// due reports whether the volume must be wiped now.
func (r *reclaim) due(ctx context.Context, d discovery.Disk, v disk.Volume) (bool, error) {
	becomes, err := r.deciderFor(v).verdict(ctx, v)
	if err != nil {
		return false, err
	}
	switch becomes {
	case wipe:
		return true, nil
	case suspect:
		r.sweeper.suspect(v)
	case ending:
		r.look(v.Partition, inUseRetry)
	case inUse:
		r.look(v.Partition, inUseRetry)
		r.blocked.held(ctx, d, v, "it is mounted")
	case keep:
		if v.Ephemeral {
			r.blocked.cleared(v.Partition)
		}
	}
	return false, nil
}

// gone drops what is known of a partition that no disk has.
func (r *reclaim) gone(partition string) {
	r.formatter.forget(partition)
	r.node.reports.forget(types.UID(partition))
	r.orphans.remove(partition)
	r.blocked.cleared(partition)
	r.inline.gone(partition)
	r.persistent.gone(partition)
}

// resume continues the wipes that were begun on a disk that came into service.
func (r *reclaim) resume(d *discovery.Disk) {
	for _, v := range d.Snapshot.Volumes {
		if v.Phase == disk.Wiping {
			r.look(v.Partition, 0)
		}
	}
}

// reclaimOrphan wipes a partition that belongs to no pod.
func (r *reclaim) reclaimOrphan(ctx context.Context, partition string) error {
	unlock, err := r.node.locks.lock(ctx, partition)
	if err != nil {
		return err
	}
	d, v, found := r.node.find(partition)
	if !found || !d.Ready() {
		unlock()
		return nil
	}
	// A volume in phase Wiping has no device that could be mounted.
	if v.Phase != disk.Wiping {
		isMounted, err := mounted(v.Device)
		if err != nil || isMounted {
			unlock()
			r.look(sweepKey, inUseRetry)
			if isMounted {
				r.blocked.held(ctx, d, v, "it is mounted")
			}
			return err
		}
	}
	klog.FromContext(ctx).Info("Volume has no pod any more and is reclaimed", "partition", partition, "disk", d.ID(), "name", v.Name)
	r.begin(ctx, d, v, unlock)
	return nil
}
