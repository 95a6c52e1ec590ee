// Package whatif says what the scheduler would do with a pod, on the objects as they are now. It has no rules of its
// own: it runs the plugins of Berth's profile, Berth's own and the stock ones, over objects that do not change
// (scheduler.go), and reads their verdicts (pod.go). What it says of sizes (fit.go) it has from the scheduler's ledger.
//
// It does not read the API, and prints nothing. Not considered are devices of DRA, gangs, and extenders.
package whatif

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/apis/config"
	"k8s.io/kubernetes/pkg/scheduler/apis/config/latest"
	schedulercache "k8s.io/kubernetes/pkg/scheduler/backend/cache"
	"k8s.io/kubernetes/pkg/scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/names"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/nodevolumelimits"
	frameworkruntime "k8s.io/kubernetes/pkg/scheduler/framework/runtime"
	"k8s.io/kubernetes/pkg/scheduler/metrics"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/plugins/diskcapacity"
	"github.com/berthdev/berth/pkg/plugins/volumebinding"
)

// Objects are those of the API that decide where a pod can run.
type Objects struct {
	Capacities     []diskv1alpha1.NodeDiskCapacity
	Classes        []diskv1alpha1.DiskClass
	Nodes          []corev1.Node
	CSINodes       []storagev1.CSINode
	Pods           []corev1.Pod
	Claims         []corev1.PersistentVolumeClaim
	Volumes        []corev1.PersistentVolume
	StorageClasses []storagev1.StorageClass
}

// Scheduler is Berth's profile over objects that do not change.
type Scheduler struct {
	framework framework.Framework
	still     *diskcapacity.Still
	// nodes are sorted by name.
	nodes []fwk.NodeInfo
	pods  []corev1.Pod
}

// filters are the stock plugins that decide whether a node can take a pod. The others only choose between nodes.
var filters = []string{
	names.NodeUnschedulable, names.NodeName, names.TaintToleration, names.NodeAffinity, names.NodePorts, names.NodeResourcesFit,
	names.VolumeRestrictions, names.NodeVolumeLimits, names.VolumeZone, names.PodTopologySpread, names.InterPodAffinity,
}

var registerMetrics = sync.OnceFunc(metrics.Register)

// New makes the scheduler. It lives until the context ends.
func New(ctx context.Context, o *Objects) (*Scheduler, error) {
	registerMetrics()
	ctx = klog.NewContext(ctx, klog.Logger{})
	// The plugins keep the client for writes, which Filter does not make. No request can leave the process.
	kubeConfig := &rest.Config{Host: "127.0.0.1:1"}
	client, err := kubernetes.NewForConfig(kubeConfig)
	if err != nil {
		return nil, err
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	if err := fill(factory, o); err != nil {
		return nil, err
	}
	factoryOf, made := diskcapacity.NewStill(o.Capacities, o.Classes)
	registry := plugins.NewInTreeRegistry()
	registry[diskcapacity.Name], registry[volumebinding.Name] = factoryOf, volumebinding.New
	profile, err := profileOf()
	if err != nil {
		return nil, err
	}
	snapshot := snapshotOf(o)
	s := &Scheduler{pods: o.Pods}
	s.framework, err = frameworkruntime.NewFramework(ctx, registry, profile,
		frameworkruntime.WithInformerFactory(factory), frameworkruntime.WithClientSet(client), frameworkruntime.WithKubeConfig(kubeConfig),
		frameworkruntime.WithSnapshotSharedLister(snapshot), frameworkruntime.WithPodNominator(nominatorOf(o.Pods)),
		frameworkruntime.WithPodActivator(noActivator{}),
		frameworkruntime.WithSharedCSIManager(nodevolumelimits.NewCSIManager(factory.Storage().V1().CSINodes().Lister())))
	if err != nil {
		return nil, fmt.Errorf("making the scheduler's plugins: %w", err)
	}
	s.still = made()
	if s.nodes, err = snapshot.NodeInfos().List(); err != nil {
		return nil, err
	}
	slices.SortFunc(s.nodes, func(a, b fwk.NodeInfo) int { return cmp.Compare(a.Node().Name, b.Node().Name) })
	return s, nil
}

// fill puts the objects into the informers' stores.
func fill(factory informers.SharedInformerFactory, o *Objects) error {
	core, storage := factory.Core().V1(), factory.Storage().V1()
	return firstError(
		addAll(core.Nodes().Informer(), o.Nodes), addAll(storage.CSINodes().Informer(), o.CSINodes),
		addAll(core.Pods().Informer(), o.Pods), addAll(core.PersistentVolumeClaims().Informer(), o.Claims),
		addAll(core.PersistentVolumes().Informer(), o.Volumes), addAll(storage.StorageClasses().Informer(), o.StorageClasses),
	)
}

func addAll[T any](informer cache.SharedIndexInformer, items []T) error {
	for i := range items {
		if err := informer.GetStore().Add(&items[i]); err != nil {
			return err
		}
	}
	return nil
}

func firstError(all ...error) error {
	for _, err := range all {
		if err != nil {
			return err
		}
	}
	return nil
}

// profileOf is the profile berth as far as it decides which nodes can take a pod, with the stock plugins' default
// arguments.
func profileOf() (*config.KubeSchedulerProfile, error) {
	defaults, err := latest.Default()
	if err != nil {
		return nil, fmt.Errorf("reading the scheduler's defaults: %w", err)
	}
	var enabled []config.Plugin
	for _, name := range append(slices.Clone(filters), volumebinding.Name, diskcapacity.Name) {
		enabled = append(enabled, config.Plugin{Name: name})
	}
	// DiskCapacity comes first at PreFilter, as in the profile that is shipped: the plugin for claims asks it.
	preFilter := append([]config.Plugin{{Name: diskcapacity.Name}}, enabled[:len(enabled)-1]...)
	// Not all plugins have both points, and the framework refuses a name at a point that its plugin lacks.
	profile := &config.KubeSchedulerProfile{SchedulerName: diskv1alpha1.SchedulerName, Plugins: &config.Plugins{
		QueueSort: config.PluginSet{Enabled: []config.Plugin{{Name: names.PrioritySort}}},
		Bind:      config.PluginSet{Enabled: []config.Plugin{{Name: names.DefaultBinder}}},
		PreFilter: config.PluginSet{Enabled: slices.DeleteFunc(preFilter, func(p config.Plugin) bool { return slices.Contains(withoutPreFilter, p.Name) })},
		Filter:    config.PluginSet{Enabled: enabled},
	}}
	for _, of := range defaults.Profiles[0].PluginConfig {
		if slices.Contains(filters, of.Name) {
			profile.PluginConfig = append(profile.PluginConfig, of)
		}
	}
	return profile, nil
}

// withoutPreFilter are the plugins that have no PreFilter.
var withoutPreFilter = []string{names.NodeUnschedulable, names.NodeName, names.TaintToleration}

// snapshotOf has the nodes with the pods that run or will run there. Pods that have ended hold nothing, and pods of a
// Node that is gone are on none.
func snapshotOf(o *Objects) *schedulercache.Snapshot {
	nodes, exist := make([]*corev1.Node, len(o.Nodes)), map[string]bool{}
	for i := range o.Nodes {
		nodes[i], exist[o.Nodes[i].Name] = &o.Nodes[i], true
	}
	var pods []*corev1.Pod
	for i := range o.Pods {
		if p := &o.Pods[i]; exist[p.Spec.NodeName] && !ended(p) {
			pods = append(pods, p)
		}
	}
	return schedulercache.NewSnapshot(pods, nodes)
}

func ended(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// nominator has the pods that preempted others and wait on a node for their space.
type nominator map[string][]fwk.PodInfo

func nominatorOf(pods []corev1.Pod) nominator {
	n := nominator{}
	for i := range pods {
		p := &pods[i]
		if p.Spec.NodeName != "" || p.Status.NominatedNodeName == "" || ended(p) {
			continue
		}
		if info, err := framework.NewPodInfo(p); err == nil {
			n[p.Status.NominatedNodeName] = append(n[p.Status.NominatedNodeName], info)
		}
	}
	return n
}

func (n nominator) AddNominatedPod(klog.Logger, fwk.PodInfo, *fwk.NominatingInfo) {}
func (n nominator) DeleteNominatedPodIfExists(*corev1.Pod)                        {}
func (n nominator) UpdateNominatedPod(klog.Logger, *corev1.Pod, fwk.PodInfo)      {}
func (n nominator) NominatedPodsForNode(node string) []fwk.PodInfo                { return n[node] }

// noActivator is for plugins that wake pods: here none waits in a queue.
type noActivator struct{}

func (noActivator) Activate(klog.Logger, map[string]*corev1.Pod) {}
