package volumes

import (
	"context"
	"fmt"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/client"
	"github.com/berthdev/berth/pkg/agent/discovery"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/placement"
)

// Options of a Manager.
type Options struct {
	Client *client.Client
	// Pods watches the pods of the node; the manager sets its transform.
	Pods cache.SharedIndexInformer
	// Volumes watches the PersistentVolumes of the node; the manager sets its transform and index.
	Volumes cache.SharedIndexInformer
	// Capacities watches the node's own NodeDiskCapacity, on which operators set annotations.
	Capacities cache.SharedIndexInformer
	Inventory  Inventory
	Recorder   Recorder
	// Published is what the node published before this agent started.
	Published []diskv1alpha1.Disk
	// ReclaimStopped is whether the node published that orphans are not reclaimed.
	ReclaimStopped bool
	// Wiping returns how volumes on disks of a class are wiped now, and false if there is no such class.
	Wiping func(class string) (disk.WipeSettings, bool)
	// MoveRate returns how many bytes a second the moves of a disk of a class may read and write; 0 without limit.
	MoveRate func(class string) int64
	// Attachment returns how the volumes of a class are attached.
	Attachment func(class string) disk.Attachment
	// Placement returns the policy of a class now.
	Placement func(class string) placement.Policy
	// DefaultFSType returns the file system of a class's volumes that request none.
	DefaultFSType func(class string) string
	FileSystems   FileSystems
	// OrphanGrace is how long an ephemeral volume is kept after the agent found its pod gone without having seen its
	// end. OrphanLimit is how many such volumes are reclaimed while the API server's data is in doubt. If there are
	// more, none is reclaimed until an operator confirms it. With 0 that holds without a doubt, too.
	OrphanGrace time.Duration
	OrphanLimit int
	// EvictionGrace is how long a pod whose volumes do not fit stays before its eviction is requested.
	EvictionGrace time.Duration
	// OwnersChanged is called when the result of Owner may have changed.
	OwnersChanged func()
	// Clock is the clock that is used. The default is the machine's own.
	Clock clock.WithTicker
}

// Manager brings the disks in line with the pods and PersistentVolumes. It connects the parts that do that work, and
// follows the disks. The methods for package csi are those of the embedded parts.
type Manager struct {
	*inlineController
	*stager
	*grower
	*provisioner
	*releaser

	node       *node
	reclaim    *reclaimController
	persistent *persistentController
	drainer    *drainer

	// inService are the disks that were in service at the last change. Only followDisks uses it.
	inService    map[string]bool
	disksChanged chan struct{}
}

// stopTimeout is how long Run waits at its end for operations on the disks.
const stopTimeout = 10 * time.Second

// New returns a manager. It does its work in Run.
func New(o Options) (*Manager, error) {
	m := connect(o)
	m.readPublished(o.Published)
	registerMetrics()
	if err := m.persistent.watchVolumes(); err != nil {
		return nil, err
	}
	if err := m.inlineController.watchPods(); err != nil {
		return nil, err
	}
	_, err := o.Capacities.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    m.reclaim.sweeper.onCapacity,
		UpdateFunc: func(_, now any) { m.reclaim.sweeper.onCapacity(now) },
	})
	if err != nil {
		return nil, fmt.Errorf("cannot watch the NodeDiskCapacity: %w", err)
	}
	// What a drain waits for is published, and which pods are evicted for it.
	if _, err := o.Pods.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: m.drainer.onPod, UpdateFunc: func(_, now any) { m.drainer.onPod(now) }, DeleteFunc: m.drainer.onPod,
	}); err != nil {
		return nil, fmt.Errorf("cannot watch pods: %w", err)
	}
	return m, nil
}

// connect makes the parts and connects them.
func connect(o Options) *Manager {
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	name := o.Client.NodeName()
	pods, volumes := podStore{o.Pods}, volumeStore{o.Volumes, name}
	capacities := capacityStore{o.Capacities, name}
	n := &node{name: name, client: o.Client, inventory: o.Inventory, reports: newReports(o.Recorder, capacities), capacities: capacities, clock: o.Clock, changed: o.OwnersChanged}
	podQueue, volumeQueue := queue[types.NamespacedName]("pods", o.Clock), queue[string]("volumes", o.Clock)
	podWaiters, volumeWaiters := newWaiters(podQueue), newWaiters(volumeQueue)
	placer := &placer{node: n, pods: pods, volumes: volumes, placement: o.Placement, fsType: o.DefaultFSType, held: map[string]heldExtent{}, recordWaits: recordWaits{}}
	formatter := newFormatter(n, o.DefaultFSType, o.FileSystems)
	owners := newOwners(n, pods)
	finalized, formatted := &finalizedVolumes{}, &partitionSet{}
	policies := &policies{ofClassNow: o.Wiping, lastOfDisk: map[string]disk.WipeSettings{}}

	r := &reclaimController{node: n, queue: queue[string]("releases", o.Clock), formatter: formatter}
	r.orphans = &orphans{node: n, volumes: volumes, grace: o.OrphanGrace, ownerOf: r.ownerOf, byPartition: map[string]orphan{}}
	r.blocked = &blockedVolumes{node: n, volumes: volumes, ownerOf: r.ownerOf, byPartition: map[string]*blockedVolume{}}
	r.wiper = &wiper{
		node: n, policies: policies, ownerOf: r.ownerOf, enqueue: r.enqueue, formatted: formatted, blocked: r.blocked, backoff: backoff[string](), progress: newProgressBoard(n), wipes: map[string]disk.WipePolicy{},
	}
	r.sweeper = &sweeper{
		node: n, owners: owners, orphans: r.orphans, capacities: capacities, grace: o.OrphanGrace, limit: o.OrphanLimit,
		isWiping: r.isWiping, enqueue: r.enqueue, reclaimOrphan: r.reclaimOrphan, suspects: map[string]struct{}{}, stopped: o.ReclaimStopped,
	}
	inline := &inlineController{
		node: n, pods: pods, owners: owners, placer: placer, formatter: formatter, policies: policies, reclaim: r, orphans: r.orphans,
		options: inlineOptions{orphanGrace: o.OrphanGrace, evictionGrace: o.EvictionGrace}, queue: podQueue, waiters: podWaiters,
	}
	releaser := &releaser{
		node: n, volumes: volumes, reclaim: r, orphans: r.orphans, blocked: r.blocked, queue: volumeQueue, waiters: volumeWaiters, finalized: finalized,
	}
	maker := &partitionMaker{node: n, volumes: volumes, placer: placer, formatter: formatter, policies: policies, finalized: finalized, formatted: formatted, attachment: o.Attachment}
	r.mover = &mover{node: n, volumes: volumes, reclaim: r, rate: o.MoveRate, queue: volumeQueue, backoff: backoff[string](), progress: newProgressBoard(n), moves: map[string]*runningMove{}}
	grower := &grower{node: n, volumes: volumes, placer: placer, maker: maker, mover: r.mover}
	stager := &stager{node: n, volumes: volumes, maker: maker, formatter: formatter, mover: r.mover, grower: grower, attachment: o.Attachment}
	p := &persistentController{
		node: n, volumes: volumes, maker: maker, stager: stager, grower: grower, mover: r.mover, releaser: releaser, reclaim: r, queue: volumeQueue, waiters: volumeWaiters,
	}
	r.inline, r.persistent, r.enqueueUnwatched = inline, releaser, releaser.enqueueUnwatched
	return &Manager{
		inlineController: inline, stager: stager, grower: grower, releaser: releaser,
		provisioner: &provisioner{
			node: n, volumes: volumes, placer: placer, maker: maker, stager: stager, reclaim: r, orphanGrace: o.OrphanGrace,
		},
		node: n, reclaim: r, persistent: p, drainer: &drainer{node: n, pods: pods, volumes: volumes, placer: placer, mover: r.mover, ownerOf: r.ownerOf, announced: map[string]diskv1alpha1.DiskState{}}, inService: map[string]bool{}, disksChanged: make(chan struct{}, 1),
	}
}

// readPublished reads what the node published before this agent started: since when volumes have had no owner, and
// which persistent volumes were formatted. If a disk has lost one of those, no empty volume is made in its place.
func (m *Manager) readPublished(published []diskv1alpha1.Disk) {
	for i := range published {
		for _, a := range published[i].Allocations {
			if a.OrphanedSince != nil {
				m.reclaim.orphans.restore(a.Partition, a.OrphanedSince.Time)
			}
			if _, ok := diskv1alpha1.VolumeUUID(a.Volume); ok && a.Phase == diskv1alpha1.PhaseFormatted {
				m.persistent.maker.formatted.add(a.Partition)
			}
		}
	}
}

// Run works until the context ends. Then it waits for the operations on the disks, unless a disk hangs. The informers
// must have synced, and the inventory must have scanned once.
func (m *Manager) Run(ctx context.Context) {
	var workers sync.WaitGroup
	workers.Go(func() {
		processQueue(ctx, m.inlineController.queue, "Pod's volumes could not be realized", m.inlineController.sync)
	})
	workers.Go(func() { processQueue(ctx, m.reclaim.queue, "Volume could not be released", m.reclaim.release) })
	workers.Go(func() {
		processQueue(ctx, m.persistent.queue, "PersistentVolume could not be brought in line", m.persistent.sync)
	})
	workers.Go(func() { m.followDisks(ctx) })
	m.DisksChanged()
	<-ctx.Done()
	m.inlineController.queue.ShutDown()
	m.reclaim.queue.ShutDown()
	m.persistent.queue.ShutDown()
	m.reclaim.mover.endAll()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		workers.Wait()
		m.reclaim.wiper.running.Wait()
		m.reclaim.mover.running.Wait()
	}()
	select {
	case <-ended:
	case <-time.After(stopTimeout):
		klog.FromContext(ctx).Info("Agent ends although work on a disk has not; the next agent finishes it")
	}
}

// DisksChanged signals that something about the disks has changed. It never blocks.
func (m *Manager) DisksChanged() {
	select {
	case m.disksChanged <- struct{}{}:
	default:
	}
}

// followDisks queues what depends on the disks after each change on them.
func (m *Manager) followDisks(ctx context.Context) {
	var storing sync.WaitGroup
	defer storing.Wait()
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.disksChanged:
		}
		m.compareDisks(m.node.inventory.Disks())
		// In the background: a disk that hangs must not delay the other disks' volumes.
		storing.Go(func() { m.reclaim.wiper.policies.storeOnDisks(ctx, m.node.inventory) })
	}
}

// compareDisks compares the disks with those of its last call. For disks that have come into service it checks all
// volumes. After any change it retries the volumes that wait for one.
func (m *Manager) compareDisks(disks []discovery.Disk) {
	serving, arrived := map[string]bool{}, false
	for i := range disks {
		d := &disks[i]
		if !d.Ready() {
			continue
		}
		serving[d.ID()] = true
		if !m.inService[d.ID()] {
			arrived = true
			m.reclaim.resumeWipes(d)
		}
	}
	m.inService = serving
	if arrived {
		m.reclaim.enqueue(sweepKey, 0)
		// Not at once: after CreateVolume, the caller may need some time to make the PersistentVolume.
		m.reclaim.enqueue(unwatchedKey, m.reclaim.orphans.grace)
		m.inlineController.enqueueAll()
		m.persistent.enqueueAll()
	}
	m.inlineController.waiters.enqueueAll()
	m.persistent.waiters.enqueueAll()
}

// Lookup returns the persistent volume that is on a disk, even if the disk is out of service.
func (m *Manager) Lookup(volumeID string) (Volume, bool) { return m.node.Lookup(volumeID) }

// Owner returns the CSI volume ID of a volume on a disk, and namespace/name of its pod or claim. Both are empty if they
// are not known. The owner is empty if there is none.
func (m *Manager) Owner(v disk.Volume) (volume, owner string) { return m.reclaim.ownerOf(v) }

// OrphanedSince returns since when the volume has had no owner, and whether that is so.
func (m *Manager) OrphanedSince(v disk.Volume) (since time.Time, orphaned bool) {
	return m.reclaim.orphans.OrphanedSince(v)
}

// Wiping returns whether a volume is being wiped now, with which policy, and how many of its bytes are done.
func (m *Manager) Wiping(partition string) (policy disk.WipePolicy, done int64, wiping bool) {
	return m.reclaim.wiper.Wiping(partition)
}

// Copied returns how many bytes of a volume are copied to the partition of a move that is in progress.
func (m *Manager) Copied(v disk.Volume) int64 { return m.reclaim.mover.Copied(v) }

// Departed returns the partition of the volume that has left this place for another disk, if no disk has it yet.
func (m *Manager) Departed(v disk.Volume) string {
	if v.Phase != disk.Moved {
		return ""
	}
	_, partition, ok := volumeOfCopy(v)
	if _, has := departed(m.node.inventory.Disks(), partition); !ok || !has {
		return ""
	}
	return partition
}

// Orphans lists the volumes on the disks that have no owner.
func (m *Manager) Orphans() Orphans {
	o := m.reclaim.orphans.list()
	o.Stopped = m.reclaim.sweeper.isStopped() && len(o.Ephemeral) > 0
	countOrphans(o)
	return o
}

// Evictions are the pods that must be evicted: their volumes do not fit, or are on a disk that is drained with
// evictions.
func (m *Manager) Evictions() []diskv1alpha1.EvictionRequest {
	return limitEvictions(append(m.inlineController.evictions(), m.drainer.evictions()...))
}

// Drains completes the published state of the disks about which operators decided something. It returns how many take
// no new volume because of that.
func (m *Manager) Drains(disks []diskv1alpha1.Disk) (cordoned int32) {
	return m.drainer.complete(disks)
}

// State is the state of a disk, as it is published.
func (m *Manager) State(d *discovery.Disk) diskv1alpha1.DiskState {
	decision := m.node.decisions().Decision(d.ID())
	switch {
	case !d.Ready():
		return diskv1alpha1.DiskFailed
	case decision.Drain != nil:
		return diskv1alpha1.DiskDraining
	case decision.IsCordoned():
		return diskv1alpha1.DiskCordoned
	}
	return diskv1alpha1.DiskReady
}

// Blocked lists the volumes that cannot be wiped because something holds them, each with the holder.
func (m *Manager) Blocked() []string {
	sentences, kinds := m.reclaim.blocked.list()
	countBlocked(kinds)
	return sentences
}
