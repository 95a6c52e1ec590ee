// Package agent is the program that runs on every node with disks: it ties together
// the packages below it, and owns nothing but their order of starting and stopping.
package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/flowcontrol"
	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/client"
	"github.com/berthdev/berth/pkg/agent/csi"
	"github.com/berthdev/berth/pkg/agent/discovery"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/agent/publish"
	"github.com/berthdev/berth/pkg/agent/volumes"
	"github.com/berthdev/berth/pkg/placement"
	"github.com/berthdev/berth/pkg/request"
)

// Options of the agent.
type Options struct {
	NodeName string
	Config   *rest.Config
	// CSISocket is where the kubelet calls, RegistrationDir where it looks for drivers.
	CSISocket       string
	RegistrationDir string
	// Devices are patterns for device paths; when there are any, no other device is looked at.
	Devices []string
	// OrphanGrace and EvictionGrace are those of package volumes.
	OrphanGrace   time.Duration
	EvictionGrace time.Duration
	// OrphanLimit is that of package volumes.
	OrphanLimit int
	// DevicePatience is how long a device may take to answer; 0 is a default.
	DevicePatience time.Duration
	// Sys is /sys/block; the default is the machine's own.
	Sys fs.FS
}

// programs are what the agent runs: package disk to look at a device, package volumes
// to make file systems and to recognise them, package csi to let them grow, mount-utils to mount.
var programs = []string{"blkid", "wipefs", "mkfs.ext4", "mkfs.xfs", "e2fsck", "resize2fs", "xfs_growfs", "mount", "umount"}

// Check says what the agent lacks on this machine.
func Check() error {
	if os.Geteuid() != 0 {
		return errors.New("the agent partitions and mounts disks: run it as root, in a privileged container")
	}
	var missing []string
	for _, program := range programs {
		if _, err := exec.LookPath(program); err != nil {
			missing = append(missing, program)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("the agent needs programs that are not in PATH: %s (Debian: e2fsprogs, xfsprogs, util-linux, mount)", strings.Join(missing, ", "))
	}
	return nil
}

// agent is a running agent.
type agent struct {
	options    Options
	client     *client.Client
	classes    cache.SharedIndexInformer
	nodes      cache.SharedIndexInformer
	capacities cache.SharedIndexInformer
	podsOfNode cache.SharedIndexInformer
	// persistent are the PersistentVolumes of the node.
	persistent cache.SharedIndexInformer
	inventory  *discovery.Inventory
	publisher  *publish.Publisher
	manager    *volumes.Manager
	// rescans asks for a rescan of the devices.
	rescans chan struct{}
	// changed says that something about the disks has changed.
	changed chan struct{}
	// failed says that a disk in service failed, and should be opened again after a while.
	failed chan struct{}
	// forget is set when the next rescan is to forget disks that are gone.
	forget atomic.Bool
}

// Run runs the agent until the context ends or something fails that a new start may
// repair. Partitions and mounts stay.
func Run(ctx context.Context, o Options) error {
	if o.Sys == nil {
		o.Sys = os.DirFS("/sys/block")
	}
	c, err := client.New(o.Config, o.NodeName)
	if err != nil {
		return err
	}
	a := &agent{
		options: o, client: c, rescans: make(chan struct{}, 1), failed: make(chan struct{}, 1), changed: make(chan struct{}, 1),
		classes: c.ClassInformer(), nodes: c.NodeInformer(), capacities: c.CapacityInformer(), podsOfNode: c.PodInformer(),
		persistent: c.VolumeInformer(),
	}
	ctx = klog.NewContext(ctx, klog.FromContext(ctx).WithValues("node", o.NodeName))
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	recorder := c.NewRecorder()
	group.Go(func() error { recorder.Run(ctx); return nil })
	if err := a.observe(); err != nil {
		return err
	}
	// What the node published before tells which disks it had.
	if !a.sync(ctx, group, "DiskClasses, the Node and its NodeDiskCapacity", a.classes, a.nodes, a.capacities) {
		return group.Wait()
	}
	a.inventory = discovery.NewInventory(discovery.Options{
		Sys: o.Sys, Dev: "/dev", Only: o.Devices,
		Classes: a.classList, NodeLabels: func() map[string]string { return a.node().Labels },
		Changed: a.disksChanged, Known: a.published(), Patience: o.DevicePatience,
	})
	a.manager, err = volumes.New(volumes.Options{
		Client: c, Pods: a.podsOfNode, Volumes: a.persistent, Capacities: a.capacities, Inventory: a.inventory, Recorder: recorder,
		DefaultFSType: a.defaultFSType, Placement: a.placement, Wiping: a.wiping,
		Published: a.published(), ReclaimStopped: meta.IsStatusConditionTrue(a.publishedStatus().Conditions, diskv1alpha1.ConditionReclaimStopped),
		OrphanGrace: o.OrphanGrace, OrphanLimit: o.OrphanLimit, EvictionGrace: o.EvictionGrace,
		OwnersChanged: func() { a.publisher.Kick() },
	})
	if err != nil {
		return err
	}
	a.publisher, err = publish.New(publish.Options{
		Client: c, Capacities: a.capacities, Status: a.status,
		NodeUID: func() types.UID { return a.node().UID },
	})
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
	registerMetrics()
	group.Go(func() error { a.followService(ctx, recorder); return nil })
	a.start(ctx, group, retry)
	return group.Wait()
}

// start starts all that goes on until the end.
func (a *agent) start(ctx context.Context, group *errgroup.Group, retry bool) {
	group.Go(func() error { a.publisher.Run(ctx); return nil })
	group.Go(func() error { a.manager.Run(ctx); return nil })
	group.Go(func() error { return discovery.WatchDevices(ctx, a.wantRescan) })
	group.Go(func() error { a.rescanOnDemand(ctx, retry); return nil })
	// The kubelet hears of the driver last, when all of it works.
	node := csi.NewNode(a.options.NodeName, a.manager)
	controller := csi.NewController(a.options.NodeName, a.manager, a.manager)
	group.Go(func() error { return csi.Serve(ctx, a.options.CSISocket, node, controller) })
	group.Go(func() error { return csi.Register(ctx, a.options.RegistrationDir, a.options.CSISocket) })
	// What the start has needed is not needed any more; left alone it would be kept for long.
	debug.FreeOSMemory()
	klog.FromContext(ctx).Info("Agent is running", "disks", len(a.inventory.Disks()), "refused", len(a.inventory.Refused()), "socket", a.options.CSISocket)
}

// observe makes changes of classes and of the node's labels cause a rescan. Whoever
// deletes the NodeDiskCapacity wants its disks that are gone for good forgotten.
func (a *agent) observe() error {
	if err := a.nodes.SetTransform(stripNode); err != nil {
		return fmt.Errorf("cannot watch the node: %w", err)
	}
	_, err := a.classes.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { a.wantRescan() },
		UpdateFunc: func(any, any) { a.wantRescan() },
		DeleteFunc: func(any) { a.wantRescan() },
	})
	if err != nil {
		return fmt.Errorf("cannot watch DiskClasses: %w", err)
	}
	_, err = a.capacities.AddEventHandler(cache.ResourceEventHandlerFuncs{DeleteFunc: func(any) {
		a.forget.Store(true)
		a.wantRescan()
	}})
	if err != nil {
		return fmt.Errorf("cannot watch the NodeDiskCapacity: %w", err)
	}
	_, err = a.nodes.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { a.wantRescan() },
		UpdateFunc: func(before, now any) {
			// The kubelet updates its Node all the time.
			b, _ := before.(*corev1.Node)
			n, _ := now.(*corev1.Node)
			if b == nil || n == nil || b.UID != n.UID || !maps.Equal(b.Labels, n.Labels) {
				a.wantRescan()
			}
		},
	})
	if err != nil {
		return fmt.Errorf("cannot watch the node: %w", err)
	}
	return nil
}

func stripNode(object any) (any, error) {
	node, ok := object.(*corev1.Node)
	if !ok {
		return object, nil
	}
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{
		Name: node.Name, UID: node.UID, Labels: node.Labels, ResourceVersion: node.ResourceVersion,
	}}, nil
}

// sync starts informers and waits until they have seen what there is. It says what it
// waits for: a missing CRD or permission would otherwise look like a hang.
func (a *agent) sync(ctx context.Context, group *errgroup.Group, what string, informers ...cache.SharedIndexInformer) bool {
	logger := klog.FromContext(ctx)
	synced := make([]cache.InformerSynced, len(informers))
	for i, informer := range informers {
		group.Go(func() error { informer.RunWithContext(ctx); return nil })
		synced[i] = informer.HasSynced
	}
	slow := time.AfterFunc(5*time.Second, func() {
		logger.Info("Waiting for the API server; are its address, the CRDs and the agent's permissions right?", "waitingFor", what)
	})
	defer slow.Stop()
	return cache.WaitForCacheSync(ctx.Done(), synced...)
}

func (a *agent) node() *corev1.Node {
	if object, ok, err := a.nodes.GetStore().GetByKey(a.options.NodeName); err == nil && ok {
		if node, ok := object.(*corev1.Node); ok {
			return node
		}
	}
	return &corev1.Node{}
}

func (a *agent) classList() []*diskv1alpha1.DiskClass {
	objects := a.classes.GetStore().List()
	classes := make([]*diskv1alpha1.DiskClass, 0, len(objects))
	for _, object := range objects {
		if class, ok := object.(*diskv1alpha1.DiskClass); ok {
			classes = append(classes, class)
		}
	}
	return classes
}

func (a *agent) defaultFSType(class string) string {
	for _, c := range a.classList() {
		if c.Name == class && c.Spec.FSType != "" {
			return c.Spec.FSType
		}
	}
	return diskv1alpha1.FSTypeExt4
}

func (a *agent) placement(class string) placement.Policy {
	for _, c := range a.classList() {
		if c.Name == class {
			return request.PolicyOf(c.Spec.PlacementPolicy)
		}
	}
	return placement.BestFit
}

// wiping is how volumes of a class are wiped now. What this agent does not know, and no
// class, is the default: the volume reads as zeros.
func (a *agent) wiping(class string) disk.WipeOptions {
	o := disk.WipeOptions{Policy: disk.WipeZero}
	for _, c := range a.classList() {
		if c.Name != class {
			continue
		}
		switch c.Spec.WipePolicy {
		case diskv1alpha1.WipeOverwrite:
			o.Policy = disk.WipeOverwrite
		case diskv1alpha1.WipeSecureDiscard:
			o.Policy = disk.WipeSecureDiscard
		case diskv1alpha1.WipeNone:
			o.Policy = disk.WipeNone
		}
		if c.Spec.WipeRate != nil {
			o.Rate = max(c.Spec.WipeRate.Value(), 0)
		}
	}
	return o
}

func (a *agent) published() []diskv1alpha1.Disk { return a.publishedStatus().Disks }

func (a *agent) publishedStatus() diskv1alpha1.NodeDiskCapacityStatus {
	if ndc := a.capacity(); ndc != nil {
		return ndc.Status
	}
	return diskv1alpha1.NodeDiskCapacityStatus{}
}

// capacityUID is the UID of the node's NodeDiskCapacity, empty if there is none.
func (a *agent) capacityUID() types.UID {
	if ndc := a.capacity(); ndc != nil {
		return ndc.UID
	}
	return ""
}

// capacity is the node's NodeDiskCapacity from the watch, nil if there is none.
func (a *agent) capacity() *diskv1alpha1.NodeDiskCapacity {
	object, ok, err := a.capacities.GetStore().GetByKey(a.options.NodeName)
	if err != nil || !ok {
		return nil
	}
	ndc, _ := object.(*diskv1alpha1.NodeDiskCapacity)
	return ndc
}

func (a *agent) status() diskv1alpha1.NodeDiskCapacityStatus {
	status := publish.Status(a.inventory.Disks(), a.inventory.Refused(), a.owner)
	orphans := a.manager.Orphans()
	why := ""
	if orphans.Stopped {
		why = volumes.StoppedMessage(a.options.NodeName, len(orphans.Ephemeral))
	}
	status.Conditions = append(status.Conditions, publish.Orphaned(orphans.Persistent, orphans.Ephemeral), publish.ReclaimStopped(why))
	return status
}

func (a *agent) owner(v disk.Volume) publish.Owner {
	var o publish.Owner
	o.Volume, o.Name = a.manager.Owner(v)
	if since, orphaned := a.manager.OrphanedSince(v); orphaned {
		// As the API server keeps it, or what is published would never be what is to be.
		at := metav1.NewTime(since).Rfc3339Copy()
		o.OrphanedSince = &at
	}
	if policy, done, is := a.manager.Wiping(v.Partition); is && v.Phase == disk.Wiping {
		o.Wiping = &diskv1alpha1.WipeProgress{Policy: diskv1alpha1.WipePolicy(policy), Wiped: done}
	}
	return o
}

// disksChanged is called on every change on a disk, by whoever made it.
func (a *agent) disksChanged() {
	a.publisher.Kick()
	a.manager.DisksChanged()
	select {
	case a.changed <- struct{}{}:
	default:
	}
	if a.inventory.Failing() {
		select {
		case a.failed <- struct{}{}:
		default:
		}
	}
}

func (a *agent) wantRescan() {
	select {
	case a.rescans <- struct{}{}:
	default:
	}
}

func (a *agent) rescan(ctx context.Context) (retry bool) {
	if a.forget.Swap(false) {
		a.inventory.Forget()
	}
	retry, err := a.inventory.Rescan(ctx)
	if err != nil {
		klog.FromContext(ctx).Error(err, "Block devices could not be scanned")
	}
	return retry
}

// rescanRate and rescanBurst bound the rescans, a second.
const rescanRate, rescanBurst = 0.2, 10

// rescanOnDemand looks at the devices when something happened. Only while there is a
// device that is busy or failing, which no event will announce, it looks again by
// itself, more and more rarely.
func (a *agent) rescanOnDemand(ctx context.Context, retry bool) {
	fresh := wait.Backoff{Duration: 10 * time.Second, Factor: 2, Steps: 6, Cap: 5 * time.Minute}
	backoff := fresh
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	defer timer.Stop()
	// Where udev runs, every rescan that fails to open a device may cause an event, and
	// with it the next rescan.
	limiter := flowcontrol.NewTokenBucketRateLimiter(rescanRate, rescanBurst)
	armed := false
	for {
		switch {
		case !retry:
			timer.Stop()
			backoff = fresh
		case !armed:
			timer.Reset(backoff.Step())
		}
		armed = retry
		select {
		case <-ctx.Done():
			return
		case <-a.failed:
			retry = true
			continue
		case <-a.rescans:
		case <-timer.C:
		}
		if limiter.Wait(ctx) != nil {
			return
		}
		retry, armed = a.rescan(ctx), false
	}
}
