package volumes

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	"github.com/berthdev/berth/pkg/agent/discovery"
	"github.com/berthdev/berth/pkg/agent/disk"
)

// wipesPerDisk bounds the wipes of a disk, so that its users keep most of its speed.
const wipesPerDisk = 2

// wiper wipes volumes, each in a goroutine of its own.
type wiper struct {
	node     *node
	policies *policies
	// ownerOf names a volume for the report. enqueue queues its partition again.
	ownerOf func(v disk.Volume) (volume, ownerOf string)
	enqueue func(partition string, after time.Duration)
	// formatted drops the volumes that are wiped. blocked records those that cannot be.
	formatted  *partitionSet
	blocked    *blockedVolumes
	semaphores diskSemaphores
	backoff    workqueue.TypedRateLimiter[string]
	running    sync.WaitGroup
	progress   *progressBoard

	mu sync.Mutex
	// wipes are those in progress, by partition, with their policy. It is empty while a wipe waits for a slot.
	wipes map[string]disk.WipePolicy
}

func (w *wiper) isWiping(partition string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, is := w.wipes[partition]
	return is
}

// Wiping returns with which policy a volume is being wiped now, and how many of its bytes are done.
func (w *wiper) Wiping(partition string) (policy disk.WipePolicy, done int64, is bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if policy = w.wipes[partition]; policy == "" {
		return "", 0, false
	}
	return policy, w.progress.of(partition).published, true
}

// begin wipes the volume in the background, so that a large slow disk delays only itself. At the end unlock releases
// the volume's lock.
func (w *wiper) begin(ctx context.Context, d discovery.Disk, v disk.Volume, unlock func()) {
	w.mu.Lock()
	w.wipes[v.Partition] = ""
	w.mu.Unlock()
	w.progress.begin(v.Partition, v.Length())
	w.running.Go(func() {
		next := w.wipe(ctx, d, v)
		unlock()
		w.progress.end(v.Partition)
		w.mu.Lock()
		delete(w.wipes, v.Partition)
		w.mu.Unlock()
		if next.wanted {
			w.enqueue(v.Partition, next.after)
		}
	})
}

// retry is whether, and after which time, reclaimController checks a volume again after a wipe.
type retry struct {
	wanted bool
	after  time.Duration
}

// wipe wipes the volume. The caller holds its lock.
func (w *wiper) wipe(ctx context.Context, d discovery.Disk, v disk.Volume) retry {
	logger := klog.FromContext(ctx).WithValues("partition", v.Partition, "disk", d.ID(), "device", v.Device)
	leave, err := w.semaphores.acquire(ctx, d.ID(), wipesPerDisk)
	if err != nil {
		return retry{}
	}
	defer leave()
	// The wipe may have waited for long, so the class may have changed.
	d.Class = w.node.classOf(d)
	settings := w.policies.of(&d, v)
	o := disk.WipeOptions{Policy: settings.Policy, Rate: settings.Rate, Progress: func(done int64) { w.progress.set(v.Partition, done) }}
	w.mu.Lock()
	w.wipes[v.Partition] = o.Policy
	w.mu.Unlock()
	e, err := engineOf(&d)
	if err != nil {
		// When the disk is back, the volume is queued again.
		logger.Info("Volume is wiped once its disk is back", "reason", err.Error())
		return retry{}
	}
	result, err := e.Wipe(ctx, v.Partition, o)
	switch {
	case err == nil, errors.Is(err, disk.ErrNotFound):
		if err == nil {
			w.reportWipe(ctx, d, v, result)
		}
		w.backoff.Forget(v.Partition)
		w.formatted.remove(v.Partition)
		// Look again: what is known of the volume is dropped when no disk has it, or a copy of it is found.
		return retry{wanted: true}
	case errors.Is(err, disk.ErrInUse):
		if w.node.reports.isNew(types.UID(v.Partition), err.Error()) {
			logger.Info("Volume is still in use and is wiped later", "reason", err.Error())
		}
		w.blocked.recordHeld(ctx, d, v, err.Error())
		// The holder may release it soon: a mount is copied with its namespace.
		return retry{true, min(w.backoff.When(v.Partition), inUseRetry)}
	}
	if ctx.Err() != nil {
		// The agent is stopping. The next one finds the phase Wiping and continues.
		return retry{}
	}
	countWipe(d.Class, v.Length(), result, resultFailed)
	logger.Error(err, "Volume could not be wiped, its space is not free", "policy", o.Policy, "method", result.Method)
	if w.node.reports.isNew(types.UID(v.Partition), err.Error()) {
		volume, owner := w.ownerOf(v)
		w.node.reports.nodeEvent(corev1.EventTypeWarning, eventNotWiped, fmt.Sprintf("%s: %v. Its space is not free; it is tried again", describeVolume(d, v, volume, owner), err))
	}
	return retry{true, w.backoff.When(v.Partition)}
}

// classOf is the class that a disk has now. If it has none, it is the class that it had.
func (n *node) classOf(d discovery.Disk) string {
	for _, now := range n.inventory.Disks() {
		if now.ID() == d.ID() {
			return now.Class
		}
	}
	return d.Class
}

// reportWipe reports a wipe that satisfied its policy: in the log, in the metrics, and as an event of the node's
// NodeDiskCapacity.
func (w *wiper) reportWipe(ctx context.Context, d discovery.Disk, v disk.Volume, done disk.WipeResult) {
	countWipe(d.Class, v.Length(), done, resultDone)
	volume, owner := w.ownerOf(v)
	logger := klog.FromContext(ctx).WithValues("volume", volume, "owner", owner, "name", v.Name, "partition", v.Partition,
		"disk", d.ID(), "device", v.Device, "class", d.Class, "extents", v.Extents(), "policy", done.Policy, "method", done.Method,
		"verified", done.Verified, "began", done.Began, "duration", done.Took)
	if done.Policy == disk.WipeNone {
		logger.Info("Volume's space is free and was NOT wiped: what the volume held stays on the disk")
	} else {
		logger.Info("Volume is wiped and its space is free")
	}
	eventType, message := describeWipe(done)
	w.node.reports.nodeEvent(eventType, eventWiped, describeVolume(d, v, volume, owner)+message)
}

// describeWipe describes what was done.
func describeWipe(w disk.WipeResult) (eventType, message string) {
	took := w.Took.Round(time.Millisecond)
	if w.Policy == disk.WipeNone {
		return corev1.EventTypeWarning, fmt.Sprintf(": its space is free and was NOT wiped (policy None, which is unsafe): what the volume held stays on the disk, below the next file system there; in %v", took)
	}
	proof := "not read back"
	if w.Verified {
		proof = "read back as zeros"
		if w.Policy == disk.WipeZero {
			proof = "samples and both ends read back as zeros"
		}
	}
	why := ""
	if w.Policy == disk.WipeSecureDiscard && w.Method != methodSecureDiscard {
		why = " (the device has no secure discard)"
	}
	return corev1.EventTypeNormal, fmt.Sprintf(": wiped with policy %s by %s%s, %s, in %v", w.Policy, w.Method, why, proof, took)
}

// methodSecureDiscard is the method of a wipe that the device itself did.
const methodSecureDiscard = "BLKSECDISCARD"
