package provisioner

import (
	"context"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	appslisters "k8s.io/client-go/listers/apps/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	storagelisters "k8s.io/client-go/listers/storage/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/events"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/pkg/controller"
	"github.com/berthdev/berth/pkg/ledger"
	"github.com/berthdev/berth/pkg/placement"
	"github.com/berthdev/berth/pkg/plugins/diskcapacity"
)

const (
	// claimWorkers is how many claims are served at once. Each waits for the API server once or twice. More workers
	// only help when hundreds of claims come at once.
	claimWorkers = 4
	// firstRetry is the pause after the first failure of a claim or node.
	firstRetry = 200 * time.Millisecond
)

// Options are what the controllers work with.
type Options struct {
	Client kubernetes.Interface
	// Factory has the scheduler's informers. The controllers read them and add none but
	// those of the objects that the scheduler does not watch.
	Factory informers.SharedInformerFactory
	Shared  *diskcapacity.Shared
	// Recorder writes events, and cuts notes that are too long.
	Recorder events.EventRecorder
	// Clock is that of the process; another one in tests.
	Clock clock.PassiveClock
	// PublishCapacity is true to publish CSIStorageCapacity objects, in Namespace.
	PublishCapacity bool
	Namespace       string
}

// cluster is the part of diskcapacity.Shared that knows nodes and classes. Tests replace it.
type cluster interface {
	// ApplyClass adds to a request what its DiskClass says.
	ApplyClass(r *placement.Request) error
	// MaxPieces is of how many pieces volumes of a DiskClass consist at most.
	MaxPieces(class string) int
	// UnfitReason returns why a node can have no volumes of claims; empty if it can.
	UnfitReason(nodeName string) string
	// ReleasesAfter is how long a node must be gone before its volumes of a DiskClass are released; false if they are
	// kept.
	ReleasesAfter(class string) (after time.Duration, ok bool)
}

// Controllers are all controllers of this package. Use New before the informers are started, and Run when this process
// leads.
type Controllers struct {
	client   kubernetes.Interface
	shared   *diskcapacity.Shared
	ledger   *ledger.Ledger
	recorder events.EventRecorder
	clock    clock.PassiveClock
	cluster  cluster
	memory   *claimMemory

	claims  corelisters.PersistentVolumeClaimLister
	volumes corelisters.PersistentVolumeLister
	nodes   corelisters.NodeLister
	classes storagelisters.StorageClassLister
	// For claims whose node is gone.
	pods       corelisters.PodLister
	namespaces corelisters.NamespaceLister
	sets       appslisters.StatefulSetLister

	claimInformer, volumeInformer, nodeInformer, classInformer, csiNodeInformer, podInformer cache.SharedIndexInformer

	// claimQueue has claims, as namespace/name.
	claimQueue controller.Queue
	// lostQueue has values of LabelNode of nodes that may be gone, or are back. gone knows since when they are gone, and
	// lost of which of their volumes an event has said so.
	lostQueue controller.Queue
	gone      *controller.Absences
	lost      lostVolumes
	// drainQueue has names of nodes whose volumes may have to leave their disks.
	drainQueue        controller.Queue
	drains            drains
	storageCapacities *storageCapacities
}

// New makes the controllers, and requests the informers that they need from the factory. They do nothing before Run: a
// scheduler on standby must not.
func New(o Options) *Controllers {
	core, storage := o.Factory.Core().V1(), o.Factory.Storage().V1()
	c := &Controllers{
		client: o.Client, shared: o.Shared, ledger: o.Shared.Ledger, recorder: o.Recorder, clock: o.Clock, cluster: o.Shared, memory: newClaimMemory(),
		claims: core.PersistentVolumeClaims().Lister(), claimInformer: core.PersistentVolumeClaims().Informer(),
		volumes: core.PersistentVolumes().Lister(), volumeInformer: core.PersistentVolumes().Informer(),
		nodes: core.Nodes().Lister(), nodeInformer: core.Nodes().Informer(),
		classes: storage.StorageClasses().Lister(), classInformer: storage.StorageClasses().Informer(),
		csiNodeInformer: storage.CSINodes().Informer(), podInformer: core.Pods().Informer(),
		pods: core.Pods().Lister(), namespaces: core.Namespaces().Lister(), sets: o.Factory.Apps().V1().StatefulSets().Lister(),
	}
	if c.clock == nil {
		c.clock = clock.RealClock{}
	}
	c.gone = controller.NewAbsences(c.clock.Now)
	c.storageCapacities = newStorageCapacities(c, &o)
	return c
}

// Run works until the context ends.
func (c *Controllers) Run(ctx context.Context) {
	defer utilruntime.HandleCrashWithContext(ctx)
	logger := klog.LoggerWithName(klog.FromContext(ctx), "provisioner")
	ctx = klog.NewContext(ctx, logger)
	c.claimQueue, c.lostQueue = controller.NewQueue("berth_claims", firstRetry), controller.NewQueue("berth_lost_nodes", firstRetry)
	c.drainQueue = controller.NewQueue("berth_drains", firstRetry)
	defer c.claimQueue.ShutDown()
	defer c.lostQueue.ShutDown()
	defer c.drainQueue.ShutDown()

	synced, err := c.addHandlers()
	if err != nil {
		// Only a stopped informer refuses a handler: the process is ending.
		logger.Error(err, "The controllers of claims do not run")
		return
	}
	// An incomplete ledger would give away space that is taken.
	if !cache.WaitForCacheSync(ctx.Done(), append(synced, c.shared.Synced)...) {
		return
	}
	logger.Info("Serving claims that others placed, and claims that grow", "publishCapacity", c.storageCapacities.enabled)
	var running sync.WaitGroup
	for range claimWorkers {
		running.Go(func() { controller.Work(ctx, c.claimQueue, "claim", controller.Once(c.syncClaim)) })
	}
	running.Go(func() { controller.Work(ctx, c.lostQueue, "node", c.syncLost) })
	running.Go(func() { controller.Work(ctx, c.drainQueue, "node", controller.Once(c.syncDrain)) })
	running.Go(func() { c.storageCapacities.run(ctx) })
	c.shared.EachReport(func(node string, _ *diskcapacity.Report) { c.checkDrain(node) })
	<-ctx.Done()
	c.claimQueue.ShutDown()
	c.lostQueue.ShutDown()
	c.drainQueue.ShutDown()
	running.Wait()
}

// addHandlers adds the handlers. They get all existing objects as additions first. They are not added earlier, so that
// a scheduler on standby collects nothing.
func (c *Controllers) addHandlers() (synced []cache.InformerSynced, err error) {
	for _, f := range []struct {
		informer cache.SharedIndexInformer
		handle   func(old, now any)
	}{
		{c.claimInformer, c.onClaim},
		{c.podInformer, c.onPod},
		{c.volumeInformer, c.onVolume},
		{c.classInformer, c.onStorageClass},
		{c.csiNodeInformer, c.onCSINode},
		{c.nodeInformer, c.onNode},
	} {
		has, err := controller.Follow(f.informer, f.handle)
		if err != nil {
			return nil, err
		}
		synced = append(synced, has)
	}
	c.shared.OnCapacity(func(node string) {
		c.queueWaiting(diskv1alpha1.NodeLabel(node))
		c.storageCapacities.nodeChanged(node)
		c.checkDrain(node)
	})
	return synced, nil
}

func keyOf(pvc *corev1.PersistentVolumeClaim) string { return pvc.Namespace + "/" + pvc.Name }

// onClaim queues a claim that needs a sync.
func (c *Controllers) onClaim(old, now any) {
	pvc, ok := now.(*corev1.PersistentVolumeClaim)
	if !ok {
		if pvc, ok = old.(*corev1.PersistentVolumeClaim); ok && c.memory.knows(keyOf(pvc)) {
			c.claimQueue.Add(keyOf(pvc))
		}
		return
	}
	unbound := pvc.Spec.VolumeName == "" && c.classOf(pvc) != nil
	if unbound || wantsGrowth(pvc) || c.memory.knows(keyOf(pvc)) {
		c.claimQueue.Add(keyOf(pvc))
	}
}

// classOf returns the claim's StorageClass, if it is one of ours.
func (c *Controllers) classOf(pvc *corev1.PersistentVolumeClaim) *storagev1.StorageClass {
	return claim.OurClass(c.classes, pvc)
}

// onVolume queues the claim of a volume whose capacity, pieces or move have changed, and the node of a volume if that
// may be gone. After the end of a volume it queues the claims that may get its place.
func (c *Controllers) onVolume(old, now any) {
	before, known := old.(*corev1.PersistentVolume)
	pv, ok := now.(*corev1.PersistentVolume)
	if !ok {
		if known && claim.IsOurs(before) {
			// Folded in before any pod is woken: the plugin's handler may be behind this one.
			c.ledger.DeleteVolume(string(before.UID))
			c.queueWaiting(before.Labels[diskv1alpha1.LabelNode])
			if ref := before.Spec.ClaimRef; ref != nil {
				// If it was deleted before it was bound, the claim needs another one.
				c.claimQueue.Add(ref.Namespace + "/" + ref.Name)
			}
		}
		return
	}
	if !claim.IsOurs(pv) {
		return
	}
	c.checkRelease(pv)
	if !known {
		c.checkNodeLater(pv.Labels[diskv1alpha1.LabelNode])
	}
	if moveTo(pv) != "" || piecesOf(pv) != "" {
		c.drains.add(pv.Labels[diskv1alpha1.LabelNode])
	}
	if ref := pv.Spec.ClaimRef; ref != nil && (!known || !capacitySize(before).Equal(*capacitySize(pv)) || moveTo(before) != moveTo(pv) || piecesOf(before) != piecesOf(pv)) {
		c.claimQueue.Add(ref.Namespace + "/" + ref.Name)
	}
}

// onStorageClass queues the claims of a class that is new or has changed.
func (c *Controllers) onStorageClass(_, now any) {
	c.storageCapacities.classesChanged()
	class, ok := now.(*storagev1.StorageClass)
	if !ok || class.Provisioner != diskv1alpha1.DriverName {
		return
	}
	for _, obj := range c.claimInformer.GetStore().List() {
		pvc, ok := obj.(*corev1.PersistentVolumeClaim)
		if ok && pvc.Spec.VolumeName == "" && claim.ClassName(pvc) == class.Name {
			c.claimQueue.Add(keyOf(pvc))
		}
	}
}

// onCSINode queues the claims that wait for a node's agent.
func (c *Controllers) onCSINode(_, now any) {
	if csiNode, ok := now.(*storagev1.CSINode); ok {
		c.queueWaiting(diskv1alpha1.NodeLabel(csiNode.Name))
	}
}

// queueWaiting queues the claims that wait for changes of the node with that value of LabelNode.
func (c *Controllers) queueWaiting(label string) {
	for key := range c.memory.takeWaiting(label) {
		c.claimQueue.Add(key)
	}
}

// syncClaim does the next step for a claim.
func (c *Controllers) syncClaim(ctx context.Context, key string) error {
	namespace, name, err := cache.SplitMetaNamespaceKey(key)
	if err != nil {
		return err
	}
	if err := c.settleGrowth(ctx, key); err != nil {
		return err
	}
	pvc, err := c.claims.PersistentVolumeClaims(namespace).Get(name)
	if apierrors.IsNotFound(err) || err == nil && pvc.DeletionTimestamp != nil {
		c.forget(key)
		return nil
	}
	if err != nil {
		return err
	}
	state, earlier := c.memory.stateOf(key, pvc.UID)
	if earlier != "" {
		// A claim that was made again under its name is another one.
		c.ledger.Release(holderOf(earlier))
	}
	if pvc.Spec.VolumeName != "" {
		// A try to make its volume may have failed although an earlier one succeeded.
		if settled, err := c.settlePlace(ctx, state, pvc); err != nil || !settled {
			return err
		}
		if err := c.endMove(ctx, pvc); err != nil {
			return err
		}
		return c.grow(ctx, state, pvc)
	}
	class := c.classOf(pvc)
	if class == nil {
		settled, err := c.settlePlace(ctx, state, pvc)
		if settled {
			c.forget(key)
		}
		return err
	}
	return c.syncUnbound(ctx, state, pvc, class)
}

// forget drops what is known of a claim that needs no further step.
func (c *Controllers) forget(key string) {
	if uid := c.memory.forget(key); uid != "" {
		c.ledger.Release(holderOf(uid))
	}
}
