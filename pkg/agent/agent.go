// Package agent is the program that runs on every node with disks. It connects the packages below it, and owns the
// order in which they start and stop. It decides neither about devices nor about volumes.
//
// Start reading at Run, which goes through these steps:
//
//	wait for the agent's lock                  lockNode                     lock.go
//	make clients and informers                 newAgent                     agent.go
//	register event handlers                    addHandlers                  watches.go
//	open the disks                             build, rescan                agent.go, rescan.go
//	serve until the context ends               start                        agent.go
//	stop, although a disk may hang             waitWithTimeout              stop.go
//
// The packages below it, from the disks up: disk is one disk and its table, discovery the node's disks. volumes decides
// what is on them, csi mounts it, and publish reports it. client talks to the API server. filesystem, signature, mounts
// and holders look at devices. manifest prints lost PersistentVolumes.
//
// The other files: requirements.go checks the machine before all this. devices.go connects the disks with the API
// server's objects, and forgets disks on request. classes.go and filesystems.go read DiskClasses. status.go makes the
// published status. service.go reports disks that go out of service, registration.go keeps the driver registered, and
// health.go serves health checks. health_metrics.go has them as metrics.
package agent

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/component-base/metrics"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/client"
	"github.com/berthdev/berth/pkg/agent/csi"
	"github.com/berthdev/berth/pkg/agent/discovery"
	"github.com/berthdev/berth/pkg/agent/filesystem"
	"github.com/berthdev/berth/pkg/agent/publish"
	"github.com/berthdev/berth/pkg/agent/usage"
	"github.com/berthdev/berth/pkg/agent/volumes"
)

// Options of the agent.
type Options struct {
	NodeName string
	Config   *rest.Config
	// KubeletDir is the kubelet's folder: volumes are mounted below it only.
	KubeletDir string
	// CSISocket is the socket that the kubelet calls, RegistrationDir the folder in which it looks for drivers.
	CSISocket       string
	RegistrationDir string
	// Devices are patterns for device paths. If there are any, no other device is used.
	Devices []string
	// OrphanGrace and EvictionGrace are those of package volumes.
	OrphanGrace   time.Duration
	EvictionGrace time.Duration
	// OrphanLimit is that of package volumes.
	OrphanLimit int
	// DeviceTimeout is how long a device may take to answer. 0 means the default.
	DeviceTimeout time.Duration
	// Sys is /sys/block. The default is the machine's own.
	Sys fs.FS
	// Health records what the agent does. It is nil without health checks.
	Health *Health
	// Metrics gets the collectors of this agent's disks and volumes. It is nil without metrics.
	Metrics metrics.KubeRegistry
	// VolumeMetricsLimit is how many volumes have metrics of their own.
	VolumeMetricsLimit int
}

// lineageName is a file beside the CSI socket, see client.Lineage. It keeps the newest version of the NodeDiskCapacity
// that the API server has shown. With it the agent notices an API server that has lost its data.
const lineageName = "api-server.json"

// agent is a running agent.
type agent struct {
	options    Options
	client     *client.Client
	classes    cache.SharedIndexInformer
	nodes      cache.SharedIndexInformer
	capacities cache.SharedIndexInformer
	podsOfNode cache.SharedIndexInformer
	csiNodes   cache.SharedIndexInformer
	// persistent are the PersistentVolumes of the node.
	persistent cache.SharedIndexInformer
	inventory  *discovery.Inventory
	publisher  *publish.Publisher
	manager    *volumes.Manager
	// rescanRequests requests a rescan of the devices.
	rescanRequests chan struct{}
	// diskChanges signals that something about the disks has changed.
	diskChanges chan struct{}
	// registrationChecks signals that the Node's labels have changed, or that it is another Node.
	registrationChecks chan struct{}
	// diskFailures signals that a disk in service failed, and should be opened again after a while.
	diskFailures chan struct{}
	recorder     *client.Recorder
}

// Run runs the agent until the context ends, or until an error that a restart may repair. Partitions and mounts stay.
func Run(ctx context.Context, o Options) error {
	if o.Sys == nil {
		o.Sys = os.DirFS("/sys/block")
	}
	if o.Health == nil {
		o.Health = NewHealth()
	}
	// The kubelet's folder is checked first, because the lock is a file below it, too.
	kubelet, err := csi.NewKubelet(o.KubeletDir)
	if err != nil {
		return err
	}
	lock, err := lockNode(ctx, filepath.Join(filepath.Dir(o.CSISocket), lockName), lockPoll)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	defer func() { _ = lock.release() }()
	o.Health.set(stepLock, true)
	a, err := newAgent(o)
	if err != nil {
		return err
	}
	ctx = klog.NewContext(ctx, klog.FromContext(ctx).WithValues("node", o.NodeName))
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { a.recorder.Run(ctx); return nil })
	group.Go(func() error { return lock.keepFile(ctx) })
	return a.run(ctx, group, kubelet)
}

// newAgent returns an agent that has sent no request to the API server yet.
func newAgent(o Options) (*agent, error) {
	lineage, err := client.OpenLineage(filepath.Join(filepath.Dir(o.CSISocket), lineageName), clock.RealClock{})
	if err != nil {
		return nil, err
	}
	c, err := client.NewWithLineage(o.Config, o.NodeName, lineage)
	if err != nil {
		return nil, err
	}
	return &agent{
		options: o, client: c, recorder: c.NewRecorder(),
		rescanRequests: make(chan struct{}, 1), diskFailures: make(chan struct{}, 1), diskChanges: make(chan struct{}, 1), registrationChecks: make(chan struct{}, 1),
		classes: c.ClassInformer(), nodes: c.NodeInformer(), capacities: c.CapacityInformer(), podsOfNode: c.PodInformer(),
		csiNodes: c.CSINodeInformer(), persistent: c.VolumeInformer(),
	}, nil
}

// run opens the node's disks and serves them until the context ends. The caller holds the lock.
func (a *agent) run(ctx context.Context, group *errgroup.Group, kubelet *csi.Kubelet) error {
	if err := a.addHandlers(); err != nil {
		return err
	}
	// The classes select the devices. The NodeDiskCapacity lists the disks that the node had before.
	if !a.sync(ctx, group, "DiskClasses, the Node and its NodeDiskCapacity", a.classes, a.nodes, a.capacities) {
		return group.Wait()
	}
	fileSystems, err := a.build(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if err := a.inventory.Close(); err != nil {
			klog.FromContext(ctx).Error(err, "Disks did not close cleanly")
		}
	}()
	retry := a.rescan(ctx)
	if !a.sync(ctx, group, "the node's pods and PersistentVolumes", a.podsOfNode, a.persistent) {
		return group.Wait()
	}
	a.options.Health.set(stepSynced, true)
	registerMetrics()
	a.registerCollectors()
	group.Go(func() error { a.reportService(ctx); return nil })
	a.start(ctx, group, csi.NewNode(a.options.NodeName, a.manager, fileSystems, kubelet), retry)
	return waitWithTimeout(ctx, group, stopTimeout)
}

// build makes the parts of the agent from what the node published before.
func (a *agent) build(ctx context.Context) (classFileSystems, error) {
	maker, err := filesystem.NewMaker(ctx)
	if err != nil {
		return classFileSystems{}, err
	}
	fileSystems := classFileSystems{maker: maker, classes: a.classList}
	a.inventory = discovery.NewInventory(a.inventoryOptions())
	// OwnersChanged reads a.publisher when it is called: the publisher is made after the manager.
	a.manager, err = volumes.New(volumes.Options{
		Client: a.client, Pods: a.podsOfNode, Volumes: a.persistent, Capacities: a.capacities, Inventory: a.inventory, Recorder: a.recorder,
		DefaultFSType: a.defaultFSType, FileSystems: fileSystems, Placement: a.placement, Wiping: a.wiping, MoveRate: a.moveRate, Attachment: a.attachment,
		Published: a.published(), ReclaimStopped: meta.IsStatusConditionTrue(a.publishedStatus().Conditions, diskv1alpha1.ConditionReclaimStopped),
		OrphanGrace: a.options.OrphanGrace, OrphanLimit: a.options.OrphanLimit, EvictionGrace: a.options.EvictionGrace,
		OwnersChanged: func() { a.publisher.Trigger() },
	})
	if err != nil {
		return classFileSystems{}, err
	}
	a.publisher, err = publish.New(publish.Options{
		Client: a.client, Capacities: a.capacities, Status: a.status,
		NodeUID: func() types.UID { return a.node().UID }, Progress: publishProgress{a.options.Health},
	})
	return fileSystems, err
}

// registerCollectors registers what collects the metrics of this agent at each scrape.
func (a *agent) registerCollectors() {
	if a.options.Metrics == nil {
		return
	}
	a.options.Metrics.CustomMustRegister(
		usage.NewDiskCollector(a.inventory, a.manager),
		usage.NewVolumeCollector(a.inventory, a.manager, os.DirFS("/sys/class/block"), a.options.VolumeMetricsLimit),
		&healthCollector{health: a.options.Health},
	)
}

// registerTimeout is how long the registration with the kubelet waits for the first publication. Mounting must not
// depend on the API server.
const registerTimeout = 30 * time.Second

// start starts everything that runs until the context ends.
func (a *agent) start(ctx context.Context, group *errgroup.Group, node *csi.Node, retry bool) {
	group.Go(func() error { a.publisher.Run(ctx); return nil })
	group.Go(func() error { a.manager.Run(ctx); return nil })
	group.Go(func() error { return discovery.WatchDevices(ctx, a.requestRescan) })
	group.Go(func() error { a.rescanOnDemand(ctx, retry); return nil })
	// The kubelet calls the driver as soon as it is registered, so that is last.
	controller := csi.NewController(a.options.NodeName, a.manager, a.manager)
	group.Go(func() error { return csi.Serve(ctx, a.options.CSISocket, node, controller) })
	driver := csi.NewRegistration(a.options.RegistrationDir, a.options.CSISocket, func(registered bool) { a.options.Health.set(stepDriver, registered) })
	group.Go(func() error {
		// The start-up taint is removed when the driver is registered, so what is published must be up to date.
		a.options.Health.awaitPublished(ctx, registerTimeout)
		return driver.Run(ctx)
	})
	// Until the CSINode is read, watchRegistration checks only the Node's label.
	group.Go(func() error { a.csiNodes.RunWithContext(ctx); return nil })
	group.Go(func() error { a.watchRegistration(ctx, driver.RegisterAgain); return nil })
	// The start needs more memory than the service. Go would keep it for a long time.
	debug.FreeOSMemory()
	klog.FromContext(ctx).Info("Agent is running", "disks", len(a.inventory.Disks()), "refused", len(a.inventory.Refused()), "socket", a.options.CSISocket)
}
