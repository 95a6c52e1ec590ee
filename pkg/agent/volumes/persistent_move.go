package volumes

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/discovery"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/pkg/extent"
)

// movesPerDisk bounds the moves of a disk, so that its users keep most of its speed.
const movesPerDisk = 1

// mover moves persistent volumes that are not in use to the places that their PersistentVolumes name, each in a
// goroutine of its own.
//
// Invariant: what the copy holds is wanted only while the PersistentVolume names its place. Every other copy is wiped.
// That is always safe, because until the move is complete the volume itself is at its earlier place.
type mover struct {
	node    *node
	volumes volumeStore
	reclaim reclaimer
	// rate returns how many bytes a second the moves of a disk of that class may read and write; 0 without limit.
	rate       func(class string) int64
	queue      workqueue.TypedRateLimitingInterface[string]
	semaphores diskSemaphores
	backoff    workqueue.TypedRateLimiter[string]
	running    sync.WaitGroup
	progress   *progressBoard

	mu sync.Mutex
	// moves are those in progress, by the partition of the volume.
	moves map[string]*runningMove
}

// runningMove is a move that a goroutine of the agent works on.
type runningMove struct {
	to     diskv1alpha1.Place
	cancel context.CancelFunc
	ended  chan struct{}
}

// pending returns the place to which the volume must be moved; nil if it is there, or cannot be moved now.
func (m *mover) pending(v claim.Volume) *diskv1alpha1.Place {
	if d, has := departed(m.node.inventory.Disks(), v.Partition); has && d.hasTarget {
		to := d.place()
		return &to
	}
	if v.MoveTo == nil {
		return nil
	}
	d, onDisk, found := m.node.findVolume(v.Partition)
	if !found || !d.Ready() || onDisk.Phase != disk.Formatted || isAt(d.ID(), onDisk, *v.MoveTo) {
		return nil
	}
	return v.MoveTo
}

// pendingByPartition is pending for the volume of a partition, with its PersistentVolume.
func (m *mover) pendingByPartition(partition string) (*corev1.PersistentVolume, claim.Volume, *diskv1alpha1.Place) {
	for _, pv := range m.volumes.of(partition) {
		if v, err := m.volumes.read(pv); err == nil && m.mayMove(pv, v.MoveTo) {
			if to := m.pending(v); to != nil {
				return pv, v, to
			}
		}
	}
	return nil, claim.Volume{}, nil
}

// mayMove reports whether a volume may be moved to that place. One that is retained does not grow any more, but it
// leaves a disk that is drained.
func (m *mover) mayMove(pv *corev1.PersistentVolume, to *diskv1alpha1.Place) bool {
	switch actionFor(pv) {
	case actionServe:
		return true
	case actionRetain:
		if pv.DeletionTimestamp != nil || to == nil {
			return false
		}
		d, _, found := m.node.findVolume(diskv1alpha1.PartitionID(pv.Spec.CSI.VolumeHandle))
		return found && d.ID() != to.Disk
	case actionFinalize, actionReclaim:
	}
	return false
}

// await moves the volume, if it must be moved, and waits until that has ended. A volume that could not be moved is
// served where it is, and the move is tried again. The error says how far the move is shortly before ctx ends.
func (m *mover) await(ctx context.Context, volumeID string) error {
	pv, v, to := m.pendingByPartition(diskv1alpha1.PartitionID(volumeID))
	if to == nil {
		return nil
	}
	run := m.begin(ctx, pv, v, *to)
	if deadline, ok := ctx.Deadline(); ok {
		// The caller does not get an answer that comes at its deadline.
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, deadline.Add(-time.Until(deadline)/20))
		defer cancel()
	}
	select {
	case <-run.ended:
		return nil
	case <-ctx.Done():
		p := m.progress.of(v.Partition)
		return fmt.Errorf("%w: %d of %d bytes of volume %s are copied: it is mounted when that is done", ErrMoving, p.done, p.length, volumeID)
	}
}

// begin moves the volume in the background, unless that is in progress. When it has ended, the PersistentVolume is
// synced again, if anything is left to do.
func (m *mover) begin(ctx context.Context, pv *corev1.PersistentVolume, v claim.Volume, to diskv1alpha1.Place) *runningMove {
	m.mu.Lock()
	defer m.mu.Unlock()
	if run := m.moves[v.Partition]; run != nil {
		return run
	}
	// A call of the kubelet that begins a move does not end it.
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	run := &runningMove{to: to, cancel: cancel, ended: make(chan struct{})}
	m.moves[v.Partition] = run
	m.progress.begin(v.Partition, to.Length)
	m.running.Go(func() {
		defer cancel()
		moved, err := m.move(ctx, v, run)
		// Before the next move of the volume can begin.
		m.progress.end(v.Partition)
		m.mu.Lock()
		delete(m.moves, v.Partition)
		m.mu.Unlock()
		close(run.ended)
		m.node.changed()
		m.report(ctx, pv, run, moved, err)
		// The earlier place, or what is not wanted any more. The PersistentVolume may be gone.
		m.checkCopy(v.Partition)
	})
	return run
}

// report reports the end of a move, and has a failed one tried again.
func (m *mover) report(ctx context.Context, pv *corev1.PersistentVolume, run *runningMove, moved bool, err error) {
	logger := klog.FromContext(ctx).WithValues("volume", pv.Name, "to", run.to)
	switch {
	case moved:
		m.backoff.Forget(pv.Name)
		m.node.reports.volumeEvent(pv, corev1.EventTypeNormal, eventMoved,
			fmt.Sprintf("the volume was moved to %d of disk %s, where it can have %d bytes", run.to.Start, run.to.Disk, run.to.Length))
		m.queue.Add(pv.Name)
	case err == nil:
		// It need not be moved any more.
		m.queue.Add(pv.Name)
	case ctx.Err() != nil:
		logger.Info("Move of a volume was ended before it was complete; what is copied is compared at the next try")
		m.queue.Add(pv.Name)
	case errors.Is(err, ErrInUse):
		// Unstaged queues the PersistentVolume, too. A process that has the device open is not noticed otherwise.
		m.node.reports.warnVolume(pv, eventNotMoved, fmt.Sprintf("the volume is moved when it is not in use: %v; delete the pod and start it again", err))
		m.queue.AddAfter(pv.Name, inUseRetry)
	case errors.Is(err, ErrWaiting):
		m.queue.AddAfter(pv.Name, m.backoff.When(pv.Name))
	default:
		logger.Error(err, "Volume could not be moved, and is served where it is")
		m.node.reports.warnVolume(pv, eventNotMoved, fmt.Sprintf("the volume is served where it is, and the move is tried again: %v", err))
		m.queue.AddAfter(pv.Name, m.backoff.When(pv.Name))
	}
}

// move moves the volume, if it still must be, and reports whether it did.
func (m *mover) move(ctx context.Context, v claim.Volume, run *runningMove) (moved bool, err error) {
	copyID := diskv1alpha1.CopyID(v.Partition)
	// The volume's lock first, in every place that takes both.
	for _, partition := range []string{v.Partition, copyID} {
		unlock, err := m.node.locks.lock(ctx, partition)
		if err != nil {
			return false, err
		}
		defer unlock()
	}
	if _, _, to := m.pendingByPartition(v.Partition); to == nil || *to != run.to {
		return false, nil
	}
	if away, has := departed(m.node.inventory.Disks(), v.Partition); has {
		err := m.finish(ctx, v.Partition, away)
		return err == nil, err
	}
	d, onDisk, err := m.node.usable(v.Partition)
	if err != nil {
		return false, err
	}
	target, copying := extent.New(run.to.Start, run.to.Length), disk.Copying
	if d.ID() != run.to.Disk {
		copying = disk.Arriving
	}
	if at, other, found := m.node.findVolume(copyID); found && (at.ID() != run.to.Disk || other.Phase != copying || other.Extent != target) {
		m.reclaim.enqueue(copyID, 0)
		return false, fmt.Errorf("the place of an earlier move of volume %s is wiped first: %w", v.ID, ErrWaiting)
	}
	why, err := describeUse(onDisk.Device)
	if err != nil {
		return false, err
	}
	if why != "" {
		return false, fmt.Errorf("%s: %w", why, ErrInUse)
	}
	if d.ID() != run.to.Disk {
		err := m.moveToOther(ctx, d, onDisk, run.to)
		return err == nil, err
	}
	e, err := engineOf(&d)
	if err != nil {
		return false, err
	}
	leave, err := m.semaphores.acquire(ctx, d.ID(), movesPerDisk)
	if err != nil {
		return false, err
	}
	defer leave()
	err = m.copy(ctx, e, d, onDisk, target)
	return err == nil, err
}

// copy has the engine move the volume. The caller holds the locks of the volume and of the copy.
func (m *mover) copy(ctx context.Context, e engine, d discovery.Disk, onDisk disk.Volume, target extent.Extent) error {
	begin := time.Now()
	_, err := e.Move(ctx, disk.MoveOptions{
		Partition: onDisk.Partition, Copy: diskv1alpha1.CopyID(onDisk.Partition), Extent: target, Rate: m.rate(d.Class),
		Progress: func(done int64) { m.progress.set(onDisk.Partition, done) },
	})
	took := time.Since(begin)
	if ctx.Err() == nil {
		countMove(d.Class, onDisk.Length(), took, err)
	}
	if err != nil {
		return fmt.Errorf("cannot move volume %s from %v to %v of disk %s: %w", onDisk.Partition, onDisk.Extents(), target, d.ID(), err)
	}
	klog.FromContext(ctx).Info("Volume is moved", "partition", onDisk.Partition, "disk", d.ID(), "from", onDisk.Extents(), "to", target, "duration", took)
	return nil
}

// Copied returns how many bytes of a volume are copied to the partition of a move in progress.
func (m *mover) Copied(v disk.Volume) (done int64) {
	_, partition, ok := volumeOfCopy(v)
	if !ok {
		return 0
	}
	return m.progress.of(partition).published
}

// wants reports whether the copy in a partition is wanted: its PersistentVolume names the place.
func (m *mover) wants(d discovery.Disk, v disk.Volume) bool {
	_, partition, ok := volumeOfCopy(v)
	if !ok {
		return false
	}
	_, _, to := m.pendingByPartition(partition)
	return to != nil && to.Disk == d.ID() && to.Start == v.Extent.Start && to.Length == v.Extent.Len()
}

// checkCopy has reclaim check the copy of a volume, and the place that it has left, if a disk has them: a move may have
// left them.
func (m *mover) checkCopy(partition string) {
	for _, p := range []string{diskv1alpha1.CopyID(partition), diskv1alpha1.LeftID(partition)} {
		if _, _, found := m.node.findVolume(p); found {
			m.reclaim.enqueue(p, 0)
		}
	}
}

// followVolume ends a move that the PersistentVolume does not want any more.
func (m *mover) followVolume(pv *corev1.PersistentVolume) {
	if !claim.IsOurs(pv) {
		return
	}
	partition := diskv1alpha1.PartitionID(pv.Spec.CSI.VolumeHandle)
	m.mu.Lock()
	defer m.mu.Unlock()
	if run := m.moves[partition]; run != nil {
		to, err := claim.ReadMoveTo(pv)
		if err != nil || to == nil || *to != run.to || !m.mayMove(pv, to) {
			run.cancel()
		}
	}
}

// end ends the move of the volume with that partition.
func (m *mover) end(partition string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if run := m.moves[partition]; run != nil {
		run.cancel()
	}
}

// endAll ends all moves, when the agent ends.
func (m *mover) endAll() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, run := range m.moves {
		run.cancel()
	}
}

// volumeOfCopy returns the persistent volume to whose move a partition belongs, as its copy or as the place that it has
// left: its CSI volume ID and its own partition.
func volumeOfCopy(v disk.Volume) (volumeID, partition string, ok bool) {
	if v.Ephemeral {
		return "", "", false
	}
	id, ok := diskv1alpha1.CopiedVolumeID(v.Name, v.Partition)
	return id, diskv1alpha1.PartitionID(id), ok
}
