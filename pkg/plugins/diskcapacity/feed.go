package diskcapacity

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/informers"
	corelisters "k8s.io/client-go/listers/core/v1"
	storagelisters "k8s.io/client-go/listers/storage/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/utils/clock"

	"github.com/berthdev/berth/pkg/ledger"
	"github.com/berthdev/berth/pkg/placement"
)

// feed folds the objects of the API into the ledger. A scheduler has one, not one for each profile: two profiles with a
// ledger each would give away the same space twice.
type feed struct {
	ledger      *ledger.Ledger
	classes     *classes
	narrowing   *narrowing
	nominations *nominationCounts
	lag         *publishLag
	waiting     *waitingPods
	// reservations has the reservations of pods between Reserve and PostBind, by UID.
	reservations sync.Map

	claims          claimReader
	csiNodes        storagelisters.CSINodeLister
	nodes           corelisters.NodeLister
	bindableVolumes *bindableVolumes
	longNames       *longNames

	pods, volumes cache.Indexer
	// folding is held while an object is read from an informer's store and folded in.
	folding sync.Mutex

	podsSynced, volumesSynced, agentsSynced, nodesSynced func() bool

	capacities *capacityStore
	// nodesFolded is done once the Nodes of all capacities are folded in.
	nodesFolded sync.Once
	// loaded is set once everything above has synced, and stays set.
	loaded atomic.Bool
	// syncTimedOut is set once a pod has waited for them in vain.
	syncTimedOut atomic.Bool

	bindSlots bindSlots

	// scheduling is closed when the scheduler tries its first pod.
	scheduling chan struct{}
	beginOnce  sync.Once

	// activate puts pods back into the scheduling queue.
	activate func(klog.Logger, map[string]*corev1.Pod)
	// later is time.AfterFunc, except in tests.
	later func(time.Duration, func())
	// lastPodEnd and lastVolume are what hints have folded in last.
	lastPodEnd atomic.Pointer[podEnd]
	lastVolume atomic.Pointer[foldedVolume]
	// lastSpaceGain is the space gain of the node of the last hint.
	lastSpaceGain atomic.Pointer[spaceGain]
}

// feeds has the feed of every scheduler in this process. All profiles of a scheduler share an informer factory, and no
// two schedulers do.
var feeds = struct {
	sync.Mutex
	byFactory map[informers.SharedInformerFactory]*feed
}{byFactory: map[informers.SharedInformerFactory]*feed{}}

// feedOf returns the scheduler's feed, started if this is its first profile.
func feedOf(ctx context.Context, handle fwk.Handle) (*feed, error) {
	feeds.Lock()
	defer feeds.Unlock()
	factory := handle.SharedInformerFactory()
	if f, ok := feeds.byFactory[factory]; ok {
		return f, nil
	}
	f, err := newFeed(ctx, factory)
	if err != nil {
		return nil, err
	}
	f.activate = handle.Activate
	if err := f.startReflectors(ctx, handle.KubeConfig()); err != nil {
		return nil, err
	}
	f.followUnseen(ctx, handle.ClientSet().CoreV1(), nil)
	feeds.byFactory[factory] = f
	context.AfterFunc(ctx, func() {
		feeds.Lock()
		defer feeds.Unlock()
		delete(feeds.byFactory, factory)
	})
	return f, nil
}

// newFeed makes a feed that follows the scheduler's informers.
func newFeed(ctx context.Context, factory informers.SharedInformerFactory) (*feed, error) {
	l := ledger.New()
	informer := factory.Core().V1().Pods().Informer()
	logger := klog.FromContext(ctx)
	f := &feed{
		ledger: l, classes: newClasses(), narrowing: newNarrowing(clock.RealClock{}), nominations: newNominationCounts(), lag: newPublishLag(l), waiting: newWaitingPods(), pods: informer.GetIndexer(), capacities: newCapacityStore(logger, l),
		claims: claimReader{
			pvcs:    factory.Core().V1().PersistentVolumeClaims().Lister(),
			classes: factory.Storage().V1().StorageClasses().Lister(),
		},
		csiNodes:        factory.Storage().V1().CSINodes().Lister(),
		nodes:           factory.Core().V1().Nodes().Lister(),
		bindableVolumes: newBindableVolumes(), longNames: newLongNames(),
		bindSlots: newBindSlots(), scheduling: make(chan struct{}),
		later: func(d time.Duration, do func()) { time.AfterFunc(d, do) },
	}
	f.capacities.requeueFitting = func(nodeName string, before *placement.Node) { f.requeueFitting(logger, nodeName, before) }
	f.classes.appeared = func() { f.classAppeared(logger) }
	f.classes.allowedMore = func(class string) { f.classAllowedMore(logger, class) }
	f.capacities.beforeFold = func(nodeName string) { f.addNodeName(logger, nodeName) }
	f.capacities.disksServed = func(nodeNames []string) { f.requeueFittingAsync(logger, nodeNames) }
	f.capacities.afterFold = func(nodeName string) { f.foldNode(logger, nodeName) }
	f.capacities.addListener(func(nodeName string) { f.lag.published(nodeName, time.Now()) })
	if err := f.followVolumes(logger, factory.Core().V1().PersistentVolumes().Informer()); err != nil {
		return nil, err
	}
	if err := f.followAgents(logger, factory.Storage().V1().CSINodes().Informer()); err != nil {
		return nil, err
	}
	if err := f.followNodes(logger, factory.Core().V1().Nodes().Informer()); err != nil {
		return nil, err
	}
	if err := f.followPods(logger, informer); err != nil {
		return nil, err
	}
	return f, nil
}

// scheduleBegins records that this process schedules pods. A process on standby does not.
func (f *feed) scheduleBegins() { f.beginOnce.Do(func() { close(f.scheduling) }) }

// requeueFittingAsync is requeueFitting for each of the nodes, in the background. It is for space that becomes free
// without an event for a queueing hint, such as a record in doubt: for the scheduler its pod was just a pending pod.
func (f *feed) requeueFittingAsync(logger klog.Logger, nodeNames []string) {
	if len(nodeNames) == 0 {
		return
	}
	// Not here: the caller may be a hint, which runs under the lock of the scheduling queue.
	go func() {
		for _, name := range nodeNames {
			f.requeueFitting(logger, name, nil)
		}
	}()
}

func (f *feed) hasSynced() bool {
	if !f.podsSynced() || !f.volumesSynced() || !f.agentsSynced() || !f.nodesSynced() || !f.capacities.hasSynced() || !f.classes.hasSynced() {
		return false
	}
	f.foldNodes()
	return true
}

// waitForSync returns when everything that existed when the scheduler started has been folded into the ledger. An
// incomplete ledger would give away space that is taken. Only the first pod waits in vain, because all pods of all
// profiles wait with it.
func (f *feed) waitForSync(ctx context.Context, timeout time.Duration) error {
	if f.loaded.Load() {
		return nil
	}
	if f.syncTimedOut.Load() {
		timeout = 0
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if !f.hasSynced() && !cache.WaitForCacheSync(ctx.Done(), f.hasSynced) {
		f.syncTimedOut.Store(true)
		return errors.New("the published disk space is not loaded yet: if this lasts, see the scheduler's log, and whether Berth's CustomResourceDefinitions are installed")
	}
	f.loaded.Store(true)
	return nil
}
