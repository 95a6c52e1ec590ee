package volumes

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/client"
	"github.com/berthdev/berth/pkg/agent/discovery"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/placement"
)

// Options of a Manager.
type Options struct {
	Client *client.Client
	// Pods watches the pods of the node; the manager sets its transform.
	Pods cache.SharedIndexInformer
	// Volumes watches the PersistentVolumes of the node; the manager sets its transform and index.
	Volumes cache.SharedIndexInformer
	// Capacities watches the node's own NodeDiskCapacity: what people note on it is their word.
	Capacities cache.SharedIndexInformer
	Inventory  *discovery.Inventory
	Recorder   *client.Recorder
	// Published is what the node published before this agent.
	Published []diskv1alpha1.Disk
	// ReclaimStopped is whether it published that orphans are not reclaimed.
	ReclaimStopped bool
	// Wiping is how volumes on disks of a class are wiped now, as far as the class says it.
	Wiping func(class string) disk.WipeOptions
	// Placement is the policy of a class now.
	Placement func(class string) placement.Policy
	// DefaultFSType is the file system of a class's volumes that ask for none.
	DefaultFSType func(class string) string
	// OrphanGrace is how long an ephemeral volume is kept after it was found that its pod is
	// gone and that nobody saw it end, OrphanLimit how many there may be of them: if there
	// are more, none is reclaimed without a person's word.
	OrphanGrace time.Duration
	OrphanLimit int
	// EvictionGrace is how long a pod whose volumes do not fit stays before it is evicted.
	EvictionGrace time.Duration
	// OwnersChanged is called when what Owner answers may have changed.
	OwnersChanged func()
}

// Manager brings the disks in line with the pods.
//
// Invariants:
//  1. A partition is made only for a pod that was seen alive after the volume's lock
//     was taken, so that a release that ran before finds it afterwards.
//  2. A formatted partition is never formatted again.
//  3. A partition is wiped only after the API server itself, not a cache, has said that
//     its pod is gone, and while nothing is mounted; or to finish a wipe that was begun;
//     or in phase Reserved, when the pod's other volumes do not fit: it never held data.
//     Unless the pod was seen to end, the grace period must be over, and such orphans be few.
//  4. An extent that is about to become a partition is in claimed until it is one, so that
//     two decisions never choose the same.
type Manager struct {
	options Options
	node    string

	// volumeLocks are by partition: making, formatting, mounting and wiping of one
	// volume exclude each other. podLocks are by UID: the volumes of a pod are placed together.
	volumeLocks, podLocks locks

	pods     workqueue.TypedRateLimitingInterface[types.NamespacedName]
	releases workqueue.TypedRateLimitingInterface[string]

	// persistent is what is known of PersistentVolumes.
	persistent persistent

	mu      sync.Mutex
	owners  map[string]owner
	claimed map[string]hold
	// waiting are the pods that a change on a disk may help.
	waiting map[types.NamespacedName]struct{}
	// noRoomSince is by pod UID, told by that or by partition: what was last said about it.
	noRoomSince map[types.UID]time.Time
	told        map[types.UID]string
	// wiping are the wipes under way, by partition, and progressShown is when their progress
	// was last published.
	wiping        map[string]*wiping
	progressShown time.Time
	// orphans are the volumes that nobody speaks for.
	orphans orphans
	// serving are the disks that were in service when last looked.
	serving map[string]bool

	// fresh are the partitions that this agent has made, until mkfs: they have never been
	// mounted. True are those whose bytes are zeros that the agent wrote itself.
	fresh map[string]bool
	// made are the file systems of partitions in phase Reserved that only need the phase
	// Formatted, which the next holder of the volume's lock writes. After a restart nobody
	// knows of them, and they are made again: nobody has had them yet.
	made map[string]string
	// publishing counts the kubelet's calls that wait for a volume's lock to mount it.
	publishing map[string]int
	// changes counts how often followDisks woke the waiting.
	changes int
	// wipeSlots and formatSlots bound the wipes and the formatting of each disk.
	wipeSlots, formatSlots slots

	disksChanged chan struct{}
	wipes        sync.WaitGroup
	// wipeBackoff is for wipes that fail: they run outside of the queue's workers.
	wipeBackoff workqueue.TypedRateLimiter[string]
}

// owner is the pod whose volume a partition holds.
type owner struct {
	pod    types.NamespacedName
	uid    types.UID
	volume string
	// ended is set when the watch has shown that the pod is going, has ended, or went: it
	// did not vanish.
	ended bool
}

// hold is an extent that is about to become a partition, or a part of one.
type hold struct {
	disk   string
	extent extent.Extent
}

const (
	// wipesPerDisk keeps the wiping of many volumes from starving a disk's users.
	wipesPerDisk = 2
	// formatsPerDisk are bounded a disk, not a node: a disk that hangs holds them for ever.
	formatsPerDisk = 4
	// stopPatience is how long the end waits for what was begun on the disks.
	stopPatience = 10 * time.Second
	// sweepKey in the queue of releases stands for all ephemeral volumes that may be orphans,
	// askKey for the persistent ones.
	sweepKey = ""
	askKey   = "persistent"
)

// New returns a manager; Run makes it work.
func New(o Options) (*Manager, error) {
	m := &Manager{
		options:      o,
		node:         o.Client.NodeName(),
		pods:         queue[types.NamespacedName]("pods"),
		releases:     queue[string]("releases"),
		owners:       map[string]owner{},
		claimed:      map[string]hold{},
		waiting:      map[types.NamespacedName]struct{}{},
		noRoomSince:  map[types.UID]time.Time{},
		told:         map[types.UID]string{},
		wiping:       map[string]*wiping{},
		orphans:      orphans{found: map[string]orphan{}, suspected: map[string]struct{}{}, stopped: o.ReclaimStopped},
		serving:      map[string]bool{},
		disksChanged: make(chan struct{}, 1),
		fresh:        map[string]bool{},
		made:         map[string]string{},
		publishing:   map[string]int{},
		wipeBackoff:  backoff[string](),
		persistent:   newPersistent(),
	}
	m.remember(o.Published)
	registerMetrics()
	if err := m.watchVolumes(); err != nil {
		return nil, err
	}
	if err := o.Pods.SetTransform(strip); err != nil {
		return nil, fmt.Errorf("cannot watch pods: %w", err)
	}
	_, err := o.Pods.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(object any) { m.podSeen(object) },
		UpdateFunc: m.podUpdated,
		DeleteFunc: m.podDeleted,
	})
	if err != nil {
		return nil, fmt.Errorf("cannot watch pods: %w", err)
	}
	_, err = o.Capacities.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    m.capacitySeen,
		UpdateFunc: func(_, now any) { m.capacitySeen(now) },
	})
	if err != nil {
		return nil, fmt.Errorf("cannot watch the NodeDiskCapacity: %w", err)
	}
	return m, nil
}

func queue[T comparable](name string) workqueue.TypedRateLimitingInterface[T] {
	return workqueue.NewTypedRateLimitingQueueWithConfig(backoff[T](), workqueue.TypedRateLimitingQueueConfig[T]{Name: name})
}

// backoff begins with 20 ms, so that a race is over quickly, and ends with a minute, so
// that what needs a person costs little.
func backoff[T comparable]() workqueue.TypedRateLimiter[T] {
	return workqueue.NewTypedItemExponentialFailureRateLimiter[T](20*time.Millisecond, time.Minute)
}

// Run works until the context ends, and then until what was begun on the disks has
// ended, unless a disk hangs. The informers must have synced and the inventory must have scanned once.
func (m *Manager) Run(ctx context.Context) {
	var workers sync.WaitGroup
	workers.Go(func() { work(ctx, m.pods, "Pod's volumes could not be realized", m.syncPod) })
	workers.Go(func() { work(ctx, m.releases, "Volume could not be released", m.release) })
	workers.Go(func() { work(ctx, m.persistent.queue, "PersistentVolume could not be brought in line", m.syncVolume) })
	workers.Go(func() { m.followDisks(ctx) })
	m.DisksChanged()
	<-ctx.Done()
	m.pods.ShutDown()
	m.releases.ShutDown()
	m.persistent.queue.ShutDown()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		workers.Wait()
		m.wipes.Wait()
	}()
	select {
	case <-ended:
	case <-time.After(stopPatience):
		klog.FromContext(ctx).Info("Agent ends although work on a disk has not; the next agent finishes it")
	}
}

// work processes a queue. Every key has a goroutine of its own: a fixed number of
// workers would all come to wait for the one disk that hangs. There are never more than
// the node's volumes, and what is scarce is bounded a disk.
func work[T comparable](ctx context.Context, q workqueue.TypedRateLimitingInterface[T], failure string, process func(context.Context, T) error) {
	var workers sync.WaitGroup
	defer workers.Wait()
	for {
		key, shutdown := q.Get()
		if shutdown {
			return
		}
		workers.Go(func() { workOn(ctx, q, key, failure, process) })
	}
}

// workOn processes a key. An error is logged and tried again later, more and more rarely.
func workOn[T comparable](ctx context.Context, q workqueue.TypedRateLimitingInterface[T], key T, failure string, process func(context.Context, T) error) {
	defer q.Done(key)
	if ctx.Err() != nil {
		return
	}
	err := process(ctx, key)
	switch {
	case err == nil:
		q.Forget(key)
	case ctx.Err() == nil:
		klog.FromContext(ctx).Error(err, failure, "key", key, "tries", q.NumRequeues(key)+1)
		q.AddRateLimited(key)
	}
}

// DisksChanged says that something about the disks has changed. It never blocks.
func (m *Manager) DisksChanged() {
	select {
	case m.disksChanged <- struct{}{}:
	default:
	}
}

// followDisks wakes whom a change on the disks concerns.
func (m *Manager) followDisks(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.disksChanged:
		}
		disks := m.options.Inventory.Disks()
		arrived := m.noteServing(disks)
		for i := range disks {
			if !arrived[disks[i].ID()] {
				continue
			}
			for _, v := range disks[i].Snapshot.Volumes {
				if v.Phase == disk.Wiping {
					m.releases.Add(v.Partition)
				}
			}
		}
		if len(arrived) > 0 {
			m.releases.Add(sweepKey)
			// A PersistentVolume may be about to be made.
			m.releases.AddAfter(askKey, m.options.OrphanGrace)
			m.wakeAll()
		}
		m.wakeWaiting()
	}
}

// noteServing returns the disks that came into service since the last call.
func (m *Manager) noteServing(disks []discovery.Disk) map[string]bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	arrived, serving := map[string]bool{}, map[string]bool{}
	for i := range disks {
		if !disks[i].Ready() {
			continue
		}
		serving[disks[i].ID()] = true
		if !m.serving[disks[i].ID()] {
			arrived[disks[i].ID()] = true
		}
	}
	m.serving = serving
	return arrived
}

// wakeAll looks at every pod again: its volumes may be on a disk that came (back), and
// it may have gone while the disk was away.
func (m *Manager) wakeAll() {
	for _, object := range m.options.Pods.GetStore().List() {
		if pod, ok := object.(*corev1.Pod); ok && len(pod.Spec.Volumes) > 0 {
			m.pods.Add(keyOf(pod))
		}
	}
	for _, name := range m.options.Volumes.GetStore().ListKeys() {
		m.persistent.queue.Add(name)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for partition := range m.owners {
		m.releases.Add(partition)
	}
}

func (m *Manager) wakeWaiting() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for key := range m.waiting {
		m.pods.Add(key)
	}
	clear(m.waiting)
	for name := range m.persistent.waiting {
		m.persistent.queue.Add(name)
	}
	clear(m.persistent.waiting)
	m.changes++
}

// find returns the disk and the volume of a partition.
func (m *Manager) find(partition string) (discovery.Disk, disk.Volume, bool) {
	return findIn(m.options.Inventory.Disks(), partition)
}

// findIn believes a disk in service before one that is only remembered.
func findIn(disks []discovery.Disk, partition string) (at discovery.Disk, volume disk.Volume, found bool) {
	for i := range disks {
		v, ok := disks[i].Snapshot.Volume(partition)
		switch {
		case ok && disks[i].Ready():
			return disks[i], v, true
		case ok && !found:
			at, volume, found = disks[i], v, true
		}
	}
	return at, volume, found
}
