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

// reclaimer is what inline and persistent ask of reclaim.
type reclaimer interface {
	// look has the volume of a partition looked at after a while: is it to be wiped?
	look(partition string, after time.Duration)
	// begin wipes a volume, whose owner has decided so. unlock gives back the volume's lock
	// when the wipe has ended.
	begin(ctx context.Context, d discovery.Disk, v disk.Volume, unlock func())
	// isWiping reports whether a wipe of the volume is under way.
	isWiping(partition string) bool
}

// decider is what reclaim asks of inline and persistent: it decides about the volumes of one
// kind.
type decider interface {
	// verdict says what is to become of a volume that is not being wiped. It asks the API
	// server itself. With an error nothing is known, and the volume is kept.
	verdict(ctx context.Context, v disk.Volume) (verdict, error)
	// gone is called when no disk holds the partition (any more).
	gone(partition string)
	// ownerOf names the volume by its CSI ID, and its pod or claim by namespace/name.
	ownerOf(v disk.Volume) (volume, owner string)
}

// verdict is what becomes of a volume.
type verdict int

const (
	keep    verdict = iota
	ending          // its pod is going, and it is mounted
	inUse           // its pod is gone, and it is mounted
	suspect         // its pod is gone, and its end was not seen
	wipe
)

const (
	// inUseRetry is how often a volume is looked at whose pod is gone and that is still
	// mounted or open. Its unmounting through NodeUnpublish wakes the release at once.
	inUseRetry = 30 * time.Second
	// sweepKey in the queue stands for all ephemeral volumes that may be orphans, askKey for
	// the persistent ones without a PersistentVolume on the watch.
	sweepKey = ""
	askKey   = "persistent"
)

// reclaim looks at volumes that may have lost their owner, and wipes those that have.
//
// Invariant: a partition is wiped only after the API server itself, not a cache, has said that
// its owner is gone, and while nothing is mounted; or to finish a wipe that was begun; or in
// phase Reserved, when the pod's other volumes do not fit: it never held data. Unless the pod
// was seen to end, the grace period must be over, and such orphans be few (see sweep).
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
	// ask has the persistent volumes looked at that have no PersistentVolume on the watch.
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

// deciderFor is who decides about the volume.
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

// release wipes the volume of the partition if it is due.
func (r *reclaim) release(ctx context.Context, partition string) error {
	switch partition {
	case sweepKey:
		return r.sweeper.sweep(ctx)
	case askKey:
		r.ask()
		return nil
	}
	if r.isWiping(partition) {
		// Its end brings the volume back here if anything is left to do.
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
		// followDisks comes back here with the disk.
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

// due reports whether the volume is to be wiped now.
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

// gone drops what is known of a partition that is on no disk.
func (r *reclaim) gone(partition string) {
	r.formatter.forget(partition)
	r.node.reports.forget(types.UID(partition))
	r.orphans.remove(partition)
	r.blocked.cleared(partition)
	r.inline.gone(partition)
	r.persistent.gone(partition)
}

// resume goes on with the wipes that were begun on a disk that came into service.
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
