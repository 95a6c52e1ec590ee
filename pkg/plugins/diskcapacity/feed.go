package diskcapacity

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
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

// newFeed makes a feed that uses the scheduler's own pod informer: a second watch of all pods would cost as much again.
// That informer leaves out pods that have ended. So the end of a pod is its deletion, here as in the scheduler.
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
	registration, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) { f.foldObject(logger, obj) },
		UpdateFunc: func(old, obj any) {
			// A pod that was deleted and created again under its name can come as one update.
			before, _ := old.(*corev1.Pod)
			after, _ := obj.(*corev1.Pod)
			if before != nil && after != nil && before.UID != after.UID {
				f.foldPod(logger, before)
			}
			f.foldObject(logger, obj)
		},
		DeleteFunc: func(obj any) { f.foldPodEnd(logger, obj) },
	})
	if err != nil {
		return nil, fmt.Errorf("following pods: %w", err)
	}
	f.podsSynced = registration.HasSynced
	return f, nil
}

// scheduleBegins records that this process schedules pods. A process on standby does not.
func (f *feed) scheduleBegins() { f.beginOnce.Do(func() { close(f.scheduling) }) }

func (f *feed) foldObject(logger klog.Logger, obj any) {
	if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = gone.Obj
	}
	if pod, ok := obj.(*corev1.Pod); ok {
		f.foldPod(logger, pod)
	}
}

// foldPodEnd folds in the deletion of a pod, and wakes the pods that fit since then. A pod may have come after the
// scheduler's own handler of the event, and before this one.
func (f *feed) foldPodEnd(logger klog.Logger, obj any) {
	if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = gone.Obj
	}
	pod, ok := obj.(*corev1.Pod)
	if !ok {
		return
	}
	before := f.ledger.Snapshot(pod.Spec.NodeName)
	f.foldPod(logger, pod)
	if f.ledger.Snapshot(pod.Spec.NodeName) != before {
		f.requeueFitting(logger, pod.Spec.NodeName, before.Node)
	}
}

// foldPod folds in the present state of a pod after an event, not the state in the event. Our handler, the scheduler's
// handler and the queueing hints run at their own pace. So an update can be handled here after a hint has folded in the
// deletion that followed it. The informer's store is ahead of all of them, so the last handler folds in the same as the
// first.
//
// It also distinguishes a deleted pod from one that the scheduler only failed to bind. A hint gets both as the deletion
// of an assigned pod, but the second may be bound (see Doubt in the ledger).
func (f *feed) foldPod(logger klog.Logger, event *corev1.Pod) {
	if !mayHoldSpace(event) {
		return
	}
	f.folding.Lock()
	defer f.folding.Unlock()
	uid := string(event.UID)
	pod := f.storedPod(event)
	switch {
	case pod == nil, pod.Status.Phase == corev1.PodSucceeded, pod.Status.Phase == corev1.PodFailed:
		f.forget(logger, event.UID)
		f.requeueFittingAsync(logger, f.ledger.DeletePod(uid))
	case pod.Spec.NodeName == "":
		// The store does not have it as bound. What Reserve assumed stays.
		f.nominations.set(event.UID, pod.Status.NominatedNodeName)
	case !hasInlineVolumes(pod):
		// The pod is bound, and so are its claims: their PersistentVolumes have the records.
		f.forget(logger, event.UID)
		f.requeueFittingAsync(logger, f.ledger.DeletePod(uid))
	default:
		f.forget(logger, event.UID)
		records, err := recordsOf(pod)
		if err != nil {
			// The record is no reservation, whatever wrote it. The agent finds a place itself and publishes it.
			logger.V(2).Info("Ignored the allocation record of a pod", "pod", klog.KObj(pod), "node", klog.KRef("", pod.Spec.NodeName), "err", err)
		}
		f.requeueFittingAsync(logger, f.ledger.SetPod(uid, pod.Spec.NodeName, records))
	}
}

// forget removes a pod that is not pending any more.
func (f *feed) forget(logger klog.Logger, uid types.UID) {
	f.narrowing.forget(uid)
	f.nominations.set(uid, "")
	f.waiting.forget(uid)
	if f.waiting.isKeptFor(uid) {
		// Not here: the caller may hold the lock of the scheduling queue, see requeueFittingAsync.
		go f.nominationEnded(logger, uid)
	}
}

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

// storedPod returns the pod that the informer has now; nil if it is gone.
func (f *feed) storedPod(event *corev1.Pod) *corev1.Pod {
	key, err := cache.MetaNamespaceKeyFunc(event)
	if err != nil {
		return nil
	}
	obj, exists, err := f.pods.GetByKey(key)
	if err != nil || !exists {
		return nil
	}
	if pod, ok := obj.(*corev1.Pod); ok && pod.UID == event.UID {
		return pod
	}
	return nil
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
