package volumes

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/discovery"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/claim"
)

// persistentController makes the volumes of PersistentVolumes. This file follows the watch and makes volumes in
// advance. persistent_place.go makes partitions, and persistent_stage.go serves the kubelet. persistent_grow.go makes
// volumes larger, and persistent_move.go moves them. persistent_calls.go serves CSI controllers. persistent_release.go
// decides about the end.
type persistentController struct {
	node     *node
	volumes  volumeStore
	maker    *partitionMaker
	stager   *stager
	grower   *grower
	mover    *mover
	releaser *releaser
	reclaim  reclaimer

	// queue is of names of PersistentVolumes.
	queue   workqueue.TypedRateLimitingInterface[string]
	waiters *waiters[string]
}

var (
	// errDiskMissing: the disk that a PersistentVolume names is not in service here. It may have the volume.
	errDiskMissing = errors.New("disk is missing")
	// errVanished: the partition existed, and was not wiped here.
	errVanished = errors.New("partition has vanished")
	// errMismatch: the PersistentVolume and the partition are not the same volume.
	errMismatch = errors.New("PersistentVolume and partition do not match")
)

// watchVolumes follows the node's PersistentVolumes.
func (p *persistentController) watchVolumes() error {
	if err := p.volumes.prepare(); err != nil {
		return err
	}
	_, err := p.volumes.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    p.onVolume,
		UpdateFunc: func(_, now any) { p.onVolume(now) },
		DeleteFunc: p.onVolumeGone,
	})
	if err != nil {
		return fmt.Errorf("cannot watch PersistentVolumes: %w", err)
	}
	return nil
}

// onVolume handles a PersistentVolume from the watch.
func (p *persistentController) onVolume(object any) {
	pv, ok := object.(*corev1.PersistentVolume)
	if !ok {
		return
	}
	p.mover.followVolume(pv)
	p.queue.Add(pv.Name)
	p.node.changed()
}

// onVolumeGone handles a PersistentVolume that is gone, or is not labeled for this node any more.
func (p *persistentController) onVolumeGone(object any) {
	if gone, ok := object.(cache.DeletedFinalStateUnknown); ok {
		object = gone.Obj
	}
	pv, ok := object.(*corev1.PersistentVolume)
	if !ok {
		return
	}
	p.waiters.remove(pv.Name)
	p.maker.finalized.remove(pv.UID)
	p.node.reports.forget(pv.UID)
	if claim.IsOurs(pv) {
		// Another one with the same handle may have waited for this, or the partition has no owner now.
		partition := diskv1alpha1.PartitionID(pv.Spec.CSI.VolumeHandle)
		p.mover.end(partition)
		p.reclaim.enqueue(partition, 0)
		p.mover.checkCopy(partition)
	}
	p.node.changed()
}

// enqueueAll queues every PersistentVolume again.
func (p *persistentController) enqueueAll() {
	for _, name := range p.volumes.informer.GetStore().ListKeys() {
		p.queue.Add(name)
	}
}

// sync brings the disks in line with a PersistentVolume.
func (p *persistentController) sync(ctx context.Context, name string) error {
	pv := p.volumes.get(name)
	if pv == nil {
		return nil
	}
	ctx = klog.NewContext(ctx, klog.FromContext(ctx).WithValues("volume", name))
	next := actionFor(pv)
	p.mover.checkCopy(diskv1alpha1.PartitionID(pv.Spec.CSI.VolumeHandle))
	if next != actionReclaim {
		p.releaser.blocked.remove(diskv1alpha1.PartitionID(pv.Spec.CSI.VolumeHandle))
	}
	switch next {
	case actionReclaim, actionFinalize:
		return p.releaser.release(ctx, pv)
	case actionRetain:
		p.moveRetained(ctx, pv)
		return nil
	case actionServe:
	}
	warn := p.node.reports.warnVolume
	v, err := p.volumes.read(pv)
	if err != nil {
		// This does not change: most of a PersistentVolume is immutable.
		warn(pv, eventInvalid, err.Error())
		return nil
	}
	seen := p.waiters.changeCount()
	err = p.serve(ctx, pv, v)
	if left, waits := waitsForRecord(err); waits {
		klog.FromContext(ctx).Info("Volume waits for its recorded extent", "reason", err.Error())
		p.queue.AddAfter(name, left)
		p.waiters.add(name, seen)
		return nil
	}
	switch {
	case err == nil:
		p.node.reports.forget(pv.UID)
		return nil
	case errors.Is(err, ErrReleased), errors.Is(err, ErrPodGone):
		return nil
	case errors.Is(err, errPieceWaits):
		// Unstaged queues it, too. A process that has the device open is not noticed otherwise.
		warn(pv, eventNotGrown, err.Error()+"; delete the pod and start it again")
		p.queue.AddAfter(name, inUseRetry)
		return nil
	case errors.Is(err, ErrMoving):
		// The move reports its end, and must not repeat itself. It queues the PersistentVolume again.
		return nil
	}
	reason, known := reasonOf(err)
	warn(pv, reason, err.Error())
	if !known {
		return err
	}
	p.waiters.add(name, seen)
	return nil
}

// reasonOf is the reason of the event about an error. known is true if a retry alone does not help, so that the volume
// waits for a change.
func reasonOf(err error) (reason string, known bool) {
	for _, r := range []struct {
		err    error
		reason string
	}{
		{errMismatch, eventMismatch},
		{errDiskMissing, eventDiskMissing},
		{errVanished, eventVanished},
		// The class's default may change.
		{ErrInvalid, eventInvalid},
		{ErrNoRoom, eventNoRoom},
		{ErrNotGrown, eventNotGrown},
		{ErrWaiting, eventFailed},
		{ErrOutOfService, eventFailed},
		{ErrNotAttached, eventFailed},
	} {
		if errors.Is(err, r.err) {
			return r.reason, true
		}
	}
	return eventFailed, false
}

// moveRetained moves a volume whose claim is gone, if it must leave its disk.
func (p *persistentController) moveRetained(ctx context.Context, pv *corev1.PersistentVolume) {
	v, err := p.volumes.read(pv)
	if err != nil || !p.mover.mayMove(pv, v.MoveTo) {
		return
	}
	if to := p.mover.pending(v); to != nil {
		p.mover.begin(ctx, pv, v, *to)
	}
}

// serve makes the volume's partition, if there is none, and makes it ready to be mounted.
func (p *persistentController) serve(ctx context.Context, pv *corev1.PersistentVolume, v claim.Volume) error {
	if away, has := departed(p.node.inventory.Disks(), v.Partition); has && away.hasTarget {
		p.mover.begin(ctx, pv, v, away.place())
		return ErrMoving
	}
	if err := p.maker.ensureForVolume(ctx, pv, v, p.maker.stillWatched(pv)); err != nil {
		return err
	}
	if err := p.checkPartition(ctx, pv, v); err != nil {
		return err
	}
	if _, onDisk, found := p.node.findVolume(v.Partition); found && onDisk.Phase == disk.Reserved && hasPieces(v) {
		// Its file system is made over all of its pieces.
		if err := p.grower.growToGranted(ctx, v); err != nil && !errors.Is(err, errPieceWaits) {
			return err
		}
	}
	if to := p.mover.pending(v); to != nil {
		// It has its file system, and grows when it is moved. One that is not attached here can be at its new place.
		p.maker.formatted.add(v.Partition)
		p.mover.begin(ctx, pv, v, *to)
		return ErrMoving
	}
	if err := p.stager.makeReady(ctx, requestOf(v), nil); err != nil {
		return err
	}
	p.maker.formatted.add(v.Partition)
	if _, err := claim.ReadMoveTo(pv); err != nil {
		return fmt.Errorf("%w: %w", errMismatch, err)
	}
	if _, err := claim.ReadPieces(pv); err != nil {
		return fmt.Errorf("%w: %w", errMismatch, err)
	}
	return p.grower.growToGranted(ctx, v)
}

// checkPartition fails unless the partition is the volume of the PersistentVolume. It names the differences in what the
// disk decides.
func (p *persistentController) checkPartition(ctx context.Context, pv *corev1.PersistentVolume, v claim.Volume) error {
	disks := p.node.inventory.Disks()
	d, onDisk, found := findVolume(disks, v.Partition)
	if !found || !d.Ready() {
		return nil
	}
	if err := checkSameVolume(disks, onDisk, v); err != nil {
		return err
	}
	if onDisk.Raw != v.Block {
		return fmt.Errorf("%w: %w", errMismatch, errOtherMode(requestOf(v)))
	}
	if len(p.volumes.of(v.Partition)) > 1 {
		return fmt.Errorf("%w: another PersistentVolume has the volumeHandle %s too: delete the one that is wrong; the volume is wiped on behalf of neither", errMismatch, v.ID)
	}
	if err := p.maker.recordMove(ctx, pv, v, d.ID()); err != nil {
		return err
	}
	if length := onDisk.Length(); length > v.Size {
		return fmt.Errorf("%w: the capacity of PersistentVolume %s is %d bytes, its partition has %d; volumes never shrink", errMismatch, pv.Name, v.Size, length)
	}
	return checkPieces(v, d.ID(), onDisk)
}

// checkSameVolume fails unless the partition is the volume of the PersistentVolume, and the only partition with its
// GUID.
func checkSameVolume(disks []discovery.Disk, onDisk disk.Volume, v claim.Volume) error {
	if id, ok := persistentVolumeID(onDisk); !ok || id != v.ID {
		return fmt.Errorf("%w: partition %s holds another volume, %q, not %s", errMismatch, onDisk.Partition, onDisk.Name, v.ID)
	}
	return checkSingleCopy(disks, onDisk.Partition)
}
