package capacity

import (
	"context"
	"errors"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	storagelisters "k8s.io/client-go/listers/storage/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/util/flowcontrol"
	"k8s.io/klog/v2"

	"github.com/berthdev/berth/pkg/controller"
	"github.com/berthdev/berth/pkg/plugins/diskcapacity"
)

const (
	// workers is how many nodes are reconciled at the same time: each waits for the API server.
	workers = 4
	// settle is how long a node's changes are collected: a busy node publishes all the time.
	settle = 500 * time.Millisecond
	// firstRetry is the pause after a node's first failure.
	firstRetry = 500 * time.Millisecond
	// writes and writesBurst bound the writes a second: a new cluster has one for every node, and
	// pods are bound meanwhile.
	writes, writesBurst = 50, 100
)

// Options are what the controllers work with.
type Options struct {
	Client kubernetes.Interface
	// Disks is a client of Berth's API.
	Disks rest.Interface
	// Factory has the scheduler's informers.
	Factory informers.SharedInformerFactory
	Shared  *diskcapacity.Shared
	// Recorder writes events.
	Recorder events.EventRecorder
	// GoneGrace is how long a Node must be gone, without a break, before its NodeDiskCapacity is
	// removed: some clouds delete a Node and make it again when its machine restarts.
	GoneGrace time.Duration
}

// Controllers are all of them. Use New before the informers are started, and Run when this process
// leads.
type Controllers struct {
	client   kubernetes.Interface
	objects  objects
	shared   *diskcapacity.Shared
	recorder events.EventRecorder

	nodes    corelisters.NodeLister
	csiNodes storagelisters.CSINodeLister
	volumes  corelisters.PersistentVolumeLister
	pods     corelisters.PodLister

	nodeInformer, csiNodeInformer cache.SharedIndexInformer

	queue controller.Queue
	// gone has the Nodes that are gone, and goneGrace is Options.GoneGrace.
	gone      *controller.Absences
	goneGrace time.Duration
	peers     *peers
	class     *classes
}

// New makes the controllers. They do nothing yet: in a scheduler that stands by they must not.
func New(o Options) *Controllers {
	core, storage := o.Factory.Core().V1(), o.Factory.Storage().V1()
	berth := objects{client: o.Disks, limiter: flowcontrol.NewTokenBucketRateLimiter(writes, writesBurst)}
	return &Controllers{
		client: o.Client, objects: berth, shared: o.Shared, recorder: o.Recorder,
		nodes: core.Nodes().Lister(), nodeInformer: core.Nodes().Informer(),
		csiNodes: storage.CSINodes().Lister(), csiNodeInformer: storage.CSINodes().Informer(),
		volumes: core.PersistentVolumes().Lister(), pods: core.Pods().Lister(),
		gone: controller.NewAbsences(time.Now), goneGrace: o.GoneGrace, peers: newPeers(), class: newClasses(berth, o.Shared),
	}
}

// Run works until the context ends.
func (c *Controllers) Run(ctx context.Context) {
	defer utilruntime.HandleCrashWithContext(ctx)
	ctx = klog.NewContext(ctx, klog.LoggerWithName(klog.FromContext(ctx), "capacity"))
	c.queue = controller.NewQueue("berth_nodes", firstRetry)
	defer c.queue.ShutDown()
	synced, err := c.follow()
	if err != nil {
		// Only a stopped informer refuses a handler: the process is ending.
		klog.FromContext(ctx).Error(err, "The controllers of NodeDiskCapacities do not run")
		return
	}
	if !cache.WaitForCacheSync(ctx.Done(), append(synced, c.shared.Synced)...) {
		return
	}
	c.shared.EachReport(func(nodeName string, _ *diskcapacity.Report) { c.queue.Add(nodeName) })
	var running sync.WaitGroup
	for range workers {
		running.Go(func() { controller.Work(ctx, c.queue, "node", c.sync) })
	}
	running.Go(func() { c.class.run(ctx) })
	<-ctx.Done()
	c.queue.ShutDown()
	running.Wait()
}

// follow adds the handlers, which get everything there is as additions first.
func (c *Controllers) follow() (synced []cache.InformerSynced, err error) {
	for _, informer := range []cache.SharedIndexInformer{c.nodeInformer, c.csiNodeInformer} {
		has, err := controller.Follow(informer, c.saw)
		if err != nil {
			return nil, err
		}
		synced = append(synced, has)
	}
	c.shared.OnCapacity(func(nodeName string) {
		c.queue.AddAfter(nodeName, settle)
		c.class.changed()
	})
	return synced, nil
}

// saw queues the node that an event is about, if it changes something here: the kubelet updates
// its Node all the time.
func (c *Controllers) saw(old, now any) {
	switch object := cmpOr(now, old).(type) {
	case *corev1.Node:
		if old == nil || now == nil || tainted(object) {
			c.queue.AddAfter(object.Name, settle)
		}
		if old == nil || now == nil {
			c.class.changed()
		}
	case *storagev1.CSINode:
		c.queue.AddAfter(object.Name, settle)
	}
}

func cmpOr(a, b any) any {
	if a != nil {
		return a
	}
	return b
}

// sync does for a node whatever there is to do, and returns when to look again even if nothing
// happens.
func (c *Controllers) sync(ctx context.Context, nodeName string) (again time.Duration, err error) {
	report := c.shared.Report(nodeName)
	if report == nil {
		c.gone.End(nodeName)
		c.wakePeers(nodeName, nil)
		return 0, nil
	}
	node, err := c.nodes.Get(nodeName)
	switch {
	case apierrors.IsNotFound(err):
		again, err = c.syncGone(ctx, nodeName, report)
	case err != nil:
		return 0, err
	default:
		c.gone.End(nodeName)
		err = c.syncTaint(ctx, node, report)
	}
	evictAgain, evictErr := c.syncEvictions(ctx, nodeName, report)
	return sooner(again, evictAgain), errors.Join(err, evictErr, c.syncOwners(ctx, nodeName, report))
}

// sooner is the shorter of two pauses; zero is none.
func sooner(a, b time.Duration) time.Duration {
	if a == 0 || b == 0 {
		return max(a, b)
	}
	return min(a, b)
}
