package diskcapacity

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/events"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/backend/cache"
	"k8s.io/kubernetes/pkg/scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/defaultbinder"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/queuesort"
	frameworkruntime "k8s.io/kubernetes/pkg/scheduler/framework/runtime"
	"k8s.io/kubernetes/pkg/scheduler/metrics"
	st "k8s.io/kubernetes/pkg/scheduler/testing"
	tf "k8s.io/kubernetes/pkg/scheduler/testing/framework"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/placement"
	"github.com/berthdev/berth/test/objects"
	"github.com/berthdev/berth/test/units"
)

// bench is a scheduler's framework with our plugin and the default binder, a real client,
// and informers whose stores the test fills itself.
type bench struct {
	ctx       context.Context
	plugin    *Plugin
	framework framework.Framework
	factory   informers.SharedInformerFactory
	nodes     []fwk.NodeInfo
	nominated nominator
	activated activations
	// recorder has the events.
	recorder *events.FakeRecorder
	// later are the functions that the plugin has deferred.
	later    []func()
	revision int
}

// newBench makes nodes with an agent each. answer serves the requests to the API server.
func newBench(t testing.TB, answer http.HandlerFunc, nodeNames ...string) *bench {
	t.Helper()
	return benchOf(t, answer, nil, nodeNames...)
}

func newBenchExtended(t testing.TB, extenders []fwk.Extender, nodeNames ...string) *bench {
	t.Helper()
	return benchOf(t, nil, extenders, nodeNames...)
}

func benchOf(t testing.TB, answer http.HandlerFunc, extenders []fwk.Extender, nodeNames ...string) *bench {
	t.Helper()
	metrics.Register()
	_, ctx := ktesting.NewTestContext(t)
	ctx, cancel := context.WithCancel(ctx)
	t.Cleanup(cancel)
	if answer == nil {
		answer = http.NotFound
	}
	server := httptest.NewServer(answer)
	t.Cleanup(server.Close)
	kubeConfig := &rest.Config{Host: server.URL}
	client, err := kubernetes.NewForConfig(kubeConfig)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{ctx: ctx, factory: informers.NewSharedInformerFactory(client, 0), nominated: nominator{}, activated: activations{}, recorder: events.NewFakeRecorder(100)}
	feed, err := newFeed(ctx, b.factory)
	if err != nil {
		t.Fatal(err)
	}
	feed.podsSynced = func() bool { return true }
	feed.volumesSynced, feed.agentsSynced, feed.nodesSynced = feed.podsSynced, feed.podsSynced, feed.podsSynced
	feed.activate = b.activated.Activate
	feed.later = func(_ time.Duration, do func()) { b.later = append(b.later, do) }
	args, err := argsFrom(nil)
	if err != nil {
		t.Fatal(err)
	}
	args.SyncTimeout.Duration = 10 * time.Millisecond
	factory := func(_ context.Context, _ runtime.Object, handle fwk.Handle) (fwk.Plugin, error) {
		b.plugin = newPlugin(handle, feed, args, func() error { return nil })
		return b.plugin, nil
	}
	var nodes []*corev1.Node
	for _, name := range nodeNames {
		node := st.MakeNode().Name(name).Label(diskv1alpha1.LabelNode, diskv1alpha1.NodeLabel(name)).
			Capacity(map[corev1.ResourceName]string{corev1.ResourcePods: "110", corev1.ResourceCPU: "8", corev1.ResourceMemory: "64Gi"}).Obj()
		nodes = append(nodes, node)
		if err := b.factory.Core().V1().Nodes().Informer().GetIndexer().Add(node); err != nil {
			t.Fatal(err)
		}
	}
	snapshot := cache.NewSnapshot(nil, nodes)
	b.framework, err = tf.NewFramework(ctx, []tf.RegisterPluginFunc{
		tf.RegisterQueueSortPlugin(queuesort.Name, queuesort.New),
		tf.RegisterPluginAsExtensionsWithWeight(Name, 10, factory, "PreFilter", "Filter", "PostFilter", "PreScore", "Score", "Reserve", "Bind", "PostBind"),
		tf.RegisterBindPlugin(defaultbinder.Name, defaultbinder.New),
	}, "berth", frameworkruntime.WithInformerFactory(b.factory), frameworkruntime.WithClientSet(client), frameworkruntime.WithKubeConfig(kubeConfig),
		frameworkruntime.WithSnapshotSharedLister(snapshot), frameworkruntime.WithPodNominator(b.nominated), frameworkruntime.WithPodActivator(b.activated),
		frameworkruntime.WithEventRecorder(b.recorder), frameworkruntime.WithExtenders(extenders))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range nodeNames {
		b.agent(t, name, diskv1alpha1.DriverName)
	}
	b.nodes, err = snapshot.NodeInfos().List()
	if err != nil {
		t.Fatal(err)
	}
	feed.classes.listed.Store(true)
	feed.classes.policies["ssd"] = placement.BestFit
	feed.classes.policies["hdd"] = placement.BestFit
	feed.capacities.listed.Store(true)
	return b
}

func (b *bench) agent(t testing.TB, node string, drivers ...string) {
	t.Helper()
	b.plugin.feed.foldCSINodeEvent(klog.Background(), b.csiNode(t, node, drivers...))
}

// csiNode is put into the scheduler's informer. The plugin's handler has not seen it yet.
func (b *bench) csiNode(t testing.TB, node string, drivers ...string) *storagev1.CSINode {
	t.Helper()
	csiNode := objects.CSINode(node, drivers...)
	if err := b.factory.Storage().V1().CSINodes().Informer().GetIndexer().Add(csiNode); err != nil {
		t.Fatal(err)
	}
	return csiNode
}

// publish publishes one ssd disk of the node, with the volumes and that many free GiB behind them.
func (b *bench) publish(t testing.TB, node string, freeGiB int64, volumes ...diskv1alpha1.Allocation) *diskv1alpha1.NodeDiskCapacity {
	t.Helper()
	ndc := b.capacity(node, freeGiB, volumes...)
	if err := b.plugin.feed.capacities.Add(ndc); err != nil {
		t.Fatal(err)
	}
	return ndc
}

func (b *bench) capacity(node string, freeGiB int64, volumes ...diskv1alpha1.Allocation) *diskv1alpha1.NodeDiskCapacity {
	b.revision++
	next := diskv1alpha1.Alignment
	for _, v := range volumes {
		next = v.Start + v.Length
	}
	disk := diskv1alpha1.Disk{
		ID: diskOf(node), Device: "sdb", Class: "ssd", SectorSize: 512, Size: 1 << 50,
		State: diskv1alpha1.DiskReady, Allocations: volumes,
	}
	if freeGiB > 0 {
		disk.Free = []diskv1alpha1.Extent{{Start: next, Length: freeGiB * units.GiB}}
	}
	return &diskv1alpha1.NodeDiskCapacity{
		TypeMeta:   metav1.TypeMeta{APIVersion: diskv1alpha1.SchemeGroupVersion.String(), Kind: "NodeDiskCapacity"},
		ObjectMeta: metav1.ObjectMeta{Name: node, ResourceVersion: strconv.Itoa(b.revision)},
		Status:     diskv1alpha1.NodeDiskCapacityStatus{Disks: []diskv1alpha1.Disk{disk}},
	}
}

// diskOf derives a GUID from the node's name.
func diskOf(node string) string { return diskv1alpha1.PartitionID("disk of " + node) }

// volumeOf is the published allocation of a pod's only volume.
func volumeOf(pod *corev1.Pod, start, lengthGiB int64) diskv1alpha1.Allocation {
	return diskv1alpha1.Allocation{
		Partition: diskv1alpha1.PartitionID(diskv1alpha1.InlineVolumeID(pod.UID, "data")),
		Extent:    diskv1alpha1.Extent{Start: diskv1alpha1.Alignment + start*units.GiB, Length: lengthGiB * units.GiB},
		Phase:     diskv1alpha1.PhaseFormatted,
	}
}

// podOf is a pod with one volume of that many GiB.
func podOf(name string, sizeGiB int64) *corev1.Pod {
	return withVolume(st.MakePod().Namespace("default").Name(name).UID(name).SchedulerName("berth").Obj(), "data", objects.GiB(sizeGiB), "ssd")
}

func withVolume(pod *corev1.Pod, name, size, class string) *corev1.Pod {
	pod.Spec.Volumes = append(pod.Spec.Volumes, objects.InlineVolume(name, class, size))
	return pod
}

// store puts the pod into the scheduler's informer.
func (b *bench) store(t testing.TB, pod *corev1.Pod) {
	t.Helper()
	if err := b.plugin.feed.pods.Add(pod); err != nil {
		t.Fatal(err)
	}
	b.plugin.feed.foldPod(klog.Background(), pod)
}

// refuse runs a cycle of the pod that finds no node. The pod waits from then on.
func (b *bench) refuse(t testing.TB, pod *corev1.Pod) {
	t.Helper()
	b.store(t, pod)
	if _, statuses := b.filter(t, pod); statuses["n1"].IsSuccess() {
		t.Fatalf("pod %s fits", pod.Name)
	}
}

// woken reports whether the pod was woken since the last call.
func (b *bench) woken(pod *corev1.Pod) bool {
	name := klog.KObj(pod).String()
	woken := b.activated[name] > 0
	delete(b.activated, name)
	return woken
}

// runLater runs what the plugin has deferred, such as the next round of all requeues.
func (b *bench) runLater() {
	due := b.later
	b.later = nil
	for _, do := range due {
		do()
	}
}

func (b *bench) removeFromStore(t testing.TB, pod *corev1.Pod) {
	t.Helper()
	if err := b.plugin.feed.pods.Delete(pod); err != nil {
		t.Fatal(err)
	}
}

// filter runs a pod's cycle up to Filter and returns the status of each node.
func (b *bench) filter(t testing.TB, pod *corev1.Pod) (fwk.CycleState, map[string]*fwk.Status) {
	t.Helper()
	state := framework.NewCycleState()
	_, status, _ := b.framework.RunPreFilterPlugins(b.ctx, state, pod)
	statuses := map[string]*fwk.Status{}
	for _, n := range b.nodes {
		statuses[n.Node().Name] = status
		if status.IsSuccess() {
			statuses[n.Node().Name] = b.framework.RunFilterPluginsWithNominatedPods(b.ctx, state, pod, n)
		}
	}
	return state, statuses
}

// nominator is a simple implementation of the scheduling queue's.
type nominator map[string][]fwk.PodInfo

func (n nominator) nominate(t testing.TB, node string, pod *corev1.Pod) {
	t.Helper()
	info, err := framework.NewPodInfo(pod)
	if err != nil {
		t.Fatal(err)
	}
	n[node] = append(n[node], info)
}

func (n nominator) AddNominatedPod(klog.Logger, fwk.PodInfo, *fwk.NominatingInfo) {}
func (n nominator) DeleteNominatedPodIfExists(*corev1.Pod)                        {}
func (n nominator) UpdateNominatedPod(klog.Logger, *corev1.Pod, fwk.PodInfo)      {}
func (n nominator) NominatedPodsForNode(node string) []fwk.PodInfo                { return n[node] }

// activations counts how often each pod was activated, by namespace and name.
type activations map[string]int

func (a activations) Activate(_ klog.Logger, pods map[string]*corev1.Pod) {
	for name := range pods {
		a[name]++
	}
}
