package whatif

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/apis/config"
	"k8s.io/kubernetes/pkg/scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/nodevolumelimits"
	frameworkruntime "k8s.io/kubernetes/pkg/scheduler/framework/runtime"
	"k8s.io/utils/ptr"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/pkg/plugins/diskcapacity"
	"github.com/berthdev/berth/pkg/plugins/volumebinding"
	"github.com/berthdev/berth/pkg/request"
	"github.com/berthdev/berth/test/objects"
	"github.com/berthdev/berth/test/units"
)

// clusters and podsEach are how much TestVerdicts tries: 10,000 pods.
const clusters, podsEach = 250, 40

// TestVerdicts asserts, for random clusters and pods, that the verdict on each node is that of the scheduler: of its
// plugins as the program runs them, with informers and watches.
func TestVerdicts(t *testing.T) {
	seen := map[string]int{}
	for seed := range uint64(clusters) {
		random := rand.New(rand.NewPCG(seed, 7))
		o, pods := randomCluster(random)
		ctx, cancel := context.WithCancel(klog.NewContext(t.Context(), klog.Logger{}))
		still, err := New(ctx, o)
		if err != nil {
			t.Fatal(err)
		}
		running := runningScheduler(ctx, t, o)
		for _, pod := range pods {
			want := running.verdicts(ctx, pod)
			have := map[string]string{}
			for _, info := range still.nodes {
				v, _ := still.Node(ctx, pod, info.Node().Name)
				have[info.Node().Name] = v.Plugin
				seen[v.Plugin]++
			}
			for node, plugin := range want {
				if have[node] != plugin {
					t.Fatalf("cluster %d, pod %s on %s: %q refuses it, want %q", seed, pod.Name, node, have[node], plugin)
				}
			}
			checkSums(t, still.Pod(ctx, pod), want)
		}
		cancel()
	}
	t.Logf("verdicts by plugin that refuses, empty for none: %v", seen)
	for _, plugin := range []string{"", diskcapacity.Name, "TaintToleration", "NodeAffinity", "NodeResourcesFit", volumebinding.Name} {
		if seen[plugin] < 100 {
			t.Errorf("only %d verdicts are of %q: the clusters show too little", seen[plugin], plugin)
		}
	}
}

// checkSums asserts that the verdict on a pod has all nodes once, and a plan for each that fits.
func checkSums(t *testing.T, v *Verdict, want map[string]string) {
	t.Helper()
	if v.Invalid != "" {
		return
	}
	n := len(v.Fits)
	for _, f := range v.Fits {
		if want[f.Node] != "" {
			t.Errorf("%s fits, but %s refuses it", f.Node, want[f.Node])
		}
	}
	for _, r := range v.Refused {
		n += len(r.Nodes)
		if r.Nearest != "" && !slices.Contains(r.Nodes, r.Nearest) {
			t.Errorf("%s is the nearest of others: %v", r.Nearest, r.Nodes)
		}
	}
	if n != v.Nodes || n != len(want) {
		t.Errorf("%d verdicts for %d nodes", n, len(want))
	}
}

// running is the plugins as a scheduler runs them.
type running struct {
	framework framework.Framework
	nodes     []fwk.NodeInfo
}

// verdicts are the plugins that refuse the pod, by node; empty where it fits.
func (r *running) verdicts(ctx context.Context, pod *corev1.Pod) map[string]string {
	state := framework.NewCycleState()
	result, status, _ := r.framework.RunPreFilterPlugins(ctx, state, pod)
	out := map[string]string{}
	for _, info := range r.nodes {
		name := info.Node().Name
		switch {
		case !status.IsSuccess():
			out[name] = status.Plugin()
		case result != nil && !result.AllNodes() && !result.NodeNames.Has(name):
			out[name] = preFiltered
		default:
			out[name] = ""
			if status := r.framework.RunFilterPluginsWithNominatedPods(ctx, state, pod, info); !status.IsSuccess() {
				out[name] = status.Plugin()
			}
		}
	}
	return out
}

// runningScheduler starts the plugins with informers. Berth's API is served by HTTP, as its plugin watches that itself.
func runningScheduler(ctx context.Context, t *testing.T, o *Objects) *running {
	t.Helper()
	server := httptest.NewServer(serveBerth(ctx, o))
	t.Cleanup(server.Close)
	var all []runtime.Object
	all = appendObjects(all, o.Nodes)
	all = appendObjects(all, o.CSINodes)
	all = appendObjects(all, o.Pods)
	all = appendObjects(all, o.Claims)
	all = appendObjects(all, o.Volumes)
	all = appendObjects(all, o.StorageClasses)
	client := fake.NewClientset(all...)
	factory := informers.NewSharedInformerFactory(client, 0)
	registry := plugins.NewInTreeRegistry()
	registry[diskcapacity.Name] = func(ctx context.Context, obj runtime.Object, handle fwk.Handle) (fwk.Plugin, error) {
		return diskcapacity.New(ctx, obj, complete{handle})
	}
	registry[volumebinding.Name] = func(ctx context.Context, obj runtime.Object, handle fwk.Handle) (fwk.Plugin, error) {
		return volumebinding.New(ctx, obj, complete{handle})
	}
	profile, err := profileOf()
	if err != nil {
		t.Fatal(err)
	}
	snapshot := snapshotOf(o)
	f, err := frameworkruntime.NewFramework(ctx, registry, profile,
		frameworkruntime.WithInformerFactory(factory), frameworkruntime.WithClientSet(client), frameworkruntime.WithKubeConfig(&rest.Config{Host: server.URL, QPS: -1}),
		frameworkruntime.WithSnapshotSharedLister(snapshot), frameworkruntime.WithPodNominator(nominatorOf(o.Pods)), frameworkruntime.WithPodActivator(noActivator{}),
		frameworkruntime.WithSharedCSIManager(nodevolumelimits.NewCSIManager(factory.Storage().V1().CSINodes().Lister())))
	if err != nil {
		t.Fatal(err)
	}
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	nodes, err := snapshot.NodeInfos().List()
	if err != nil {
		t.Fatal(err)
	}
	return &running{f, nodes}
}

// complete is a handle whose profile has all extension points. The test's profile has only those that decide about
// nodes, and the plugins refuse to run in such a one.
type complete struct{ fwk.Handle }

func (complete) ProfileName() string { return diskv1alpha1.SchedulerName }

func (complete) ListPlugins() *config.Plugins {
	both := config.PluginSet{Enabled: []config.Plugin{{Name: volumebinding.Name}, {Name: diskcapacity.Name}}}
	return &config.Plugins{
		PreEnqueue: both, PreFilter: both, Filter: both, PostFilter: both, PreScore: both, Score: both, Reserve: both,
		PreBind: both, Bind: both, PostBind: both,
	}
}

func appendObjects[T any, P interface {
	*T
	runtime.Object
}](all []runtime.Object, items []T) []runtime.Object {
	for i := range items {
		all = append(all, P(&items[i]).DeepCopyObject())
	}
	return all
}

// serveBerth serves lists of Berth's objects, and watches without events.
func serveBerth(ctx context.Context, o *Objects) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if r.URL.Query().Get("watch") != "" {
			if r.URL.Query().Get("sendInitialEvents") != "" {
				w.WriteHeader(http.StatusUnprocessableEntity)
				_ = json.NewEncoder(w).Encode(metav1.Status{Status: metav1.StatusFailure, Reason: metav1.StatusReasonInvalid, Code: http.StatusUnprocessableEntity})
				return
			}
			w.WriteHeader(http.StatusOK)
			_ = http.NewResponseController(w).Flush()
			select {
			case <-ctx.Done():
			case <-r.Context().Done():
			}
			return
		}
		version := metav1.TypeMeta{APIVersion: diskv1alpha1.SchemeGroupVersion.String()}
		if strings.HasSuffix(r.URL.Path, "diskclasses") {
			version.Kind = "DiskClassList"
			_ = json.NewEncoder(w).Encode(&diskv1alpha1.DiskClassList{TypeMeta: version, ListMeta: metav1.ListMeta{ResourceVersion: "9000"}, Items: o.Classes})
			return
		}
		version.Kind = "NodeDiskCapacityList"
		_ = json.NewEncoder(w).Encode(&diskv1alpha1.NodeDiskCapacityList{TypeMeta: version, ListMeta: metav1.ListMeta{ResourceVersion: "9000"}, Items: o.Capacities})
	}
}

// chance is true in that many of 100 cases.
func chance(random *rand.Rand, percent int) bool { return random.IntN(100) < percent }

// randomCluster makes objects of a cluster, and pods that want to run there.
func randomCluster(random *rand.Rand) (*Objects, []*corev1.Pod) {
	o := &Objects{Classes: []diskv1alpha1.DiskClass{*objects.DiskClass("ssd"), *objects.DiskClass("hdd")}}
	o.Classes[1].Spec.PlacementPolicy = diskv1alpha1.PlaceSpread
	ssd, hdd := objects.StorageClass("ssd", "ssd"), objects.StorageClass("hdd", "hdd")
	ssd.Parameters[diskv1alpha1.ParameterHeadroom] = "50%"
	other := objects.StorageClass("other", "ssd")
	other.Provisioner = "other.example.org"
	at := objects.StorageClass("immediate", "ssd")
	at.VolumeBindingMode = ptr.To(storagev1.VolumeBindingImmediate)
	o.StorageClasses = []storagev1.StorageClass{*ssd, *hdd, *other, *at}
	for i := range 2 + random.IntN(5) {
		addNode(random, o, "n"+strconv.Itoa(i))
	}
	var pods []*corev1.Pod
	for i := range podsEach {
		pods = append(pods, randomPod(random, o, "pod-"+strconv.Itoa(i)))
	}
	// Some of the others wait on a node for which they were nominated.
	for _, p := range pods[:3] {
		if chance(random, 50) {
			p.Status.NominatedNodeName = o.Nodes[random.IntN(len(o.Nodes))].Name
		}
		o.Pods = append(o.Pods, *p)
	}
	return o, pods
}

func addNode(random *rand.Rand, o *Objects, name string) {
	node := corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name), Labels: map[string]string{corev1.LabelHostname: name, "zone": strconv.Itoa(random.IntN(3))}}}
	node.Status.Allocatable = corev1.ResourceList{corev1.ResourceCPU: *resource.NewQuantity(int64(1+random.IntN(4)), resource.DecimalSI), corev1.ResourcePods: resource.MustParse("30")}
	if !chance(random, 5) {
		node.Labels[diskv1alpha1.LabelNode] = diskv1alpha1.NodeLabel(name)
	}
	if chance(random, 20) {
		node.Spec.Taints = []corev1.Taint{{Key: "dedicated", Value: "ml", Effect: corev1.TaintEffectNoSchedule}}
	}
	node.Spec.Unschedulable = chance(random, 5)
	drivers := []string{diskv1alpha1.DriverName}
	if chance(random, 10) {
		drivers = nil
	}
	o.CSINodes = append(o.CSINodes, *objects.CSINode(name, drivers...))
	if !chance(random, 8) {
		addCapacity(random, o, name)
	}
	if !chance(random, 5) {
		o.Nodes = append(o.Nodes, node)
	}
	if len(o.Nodes) == 0 {
		o.Nodes = append(o.Nodes, node)
	}
}

// addCapacity makes the node's disks with volumes, their pods and their PersistentVolumes.
func addCapacity(random *rand.Rand, o *Objects, node string) {
	ndc := diskv1alpha1.NodeDiskCapacity{ObjectMeta: metav1.ObjectMeta{Name: node, ResourceVersion: strconv.Itoa(100 + len(o.Capacities))}}
	for d := range 1 + random.IntN(3) {
		disk := diskv1alpha1.Disk{
			ID: diskv1alpha1.PartitionID(node + "/" + strconv.Itoa(d)), Device: "sd" + strconv.Itoa(d), Class: []string{"ssd", "ssd", "hdd", ""}[random.IntN(4)],
			SectorSize: 512, Size: 200 * units.GiB, State: diskv1alpha1.DiskReady,
		}
		if chance(random, 10) {
			disk.State = diskv1alpha1.DiskFailed
		}
		if d > 0 && chance(random, 5) {
			disk.ID = diskv1alpha1.PartitionID("shared")
		}
		start := units.GiB
		for range random.IntN(5) {
			length := (1 + random.Int64N(30)) * units.GiB
			addExtent(random, o, node, &disk, start, length)
			start += length
		}
		ndc.Status.Disks = append(ndc.Status.Disks, disk)
	}
	if chance(random, 4) && len(ndc.Status.Disks[0].Free) > 0 {
		ndc.Status.Disks[0].Free = append(ndc.Status.Disks[0].Free, ndc.Status.Disks[0].Free[0])
	}
	o.Capacities = append(o.Capacities, ndc)
}

// addExtent adds a free extent to the disk, or a volume: one that is wiped, or one of a pod or of a claim, which the
// node publishes or not yet.
func addExtent(random *rand.Rand, o *Objects, node string, disk *diskv1alpha1.Disk, start, length int64) {
	e := diskv1alpha1.Extent{Start: start, Length: length}
	name := fmt.Sprintf("on-%s-%d-%d", node, len(o.Pods), len(o.Volumes))
	publish := func(volume string, phase diskv1alpha1.AllocationPhase) {
		disk.Allocations = append(disk.Allocations, diskv1alpha1.Allocation{Volume: volume, Partition: diskv1alpha1.PartitionID(volume), Extent: e, Phase: phase})
	}
	switch random.IntN(6) {
	case 0, 1:
		disk.Free = append(disk.Free, e)
	case 2:
		publish("csi-gone-"+name+disk.ID, diskv1alpha1.PhaseWiping)
	case 3, 4:
		pod := podWith(name, objects.InlineVolume("data", "ssd", objects.Bytes(length)))
		pod.Spec.NodeName, pod.Status.Phase = node, corev1.PodRunning
		pod.Spec.Priority = ptr.To(int32(random.IntN(3) - 1))
		record, err := diskv1alpha1.EncodeRecord([]diskv1alpha1.RecordVolume{{Name: "data", Disk: disk.ID, Extent: e}})
		if err != nil {
			panic(err)
		}
		pod.Annotations = map[string]string{diskv1alpha1.AnnotationAllocation: record}
		o.Pods = append(o.Pods, *pod)
		if chance(random, 60) {
			publish(diskv1alpha1.InlineVolumeID(pod.UID, "data"), diskv1alpha1.PhaseFormatted)
		} else {
			disk.Free = append(disk.Free, e)
		}
	case 5:
		pvc := objects.Claim("default", name, "ssd", objects.Bytes(length))
		pvc.UID = types.UID(name)
		volume := request.Volume{ID: diskv1alpha1.ClaimVolumeID(pvc.UID), Claim: "default/" + name}
		volume.Request.Class = "ssd"
		pv := claim.NewVolume(pvc, &o.StorageClasses[0], volume, node, diskv1alpha1.Place{Disk: disk.ID, Extent: e})
		pv.UID, pv.ResourceVersion = types.UID("pv-"+name), strconv.Itoa(len(o.Volumes)+1)
		if chance(random, 70) {
			pvc.Spec.VolumeName, pvc.Status.Phase, pv.Status.Phase = pv.Name, corev1.ClaimBound, corev1.VolumeBound
			metav1.SetMetaDataAnnotation(&pvc.ObjectMeta, "pv.kubernetes.io/bind-completed", "yes")
		}
		o.Claims, o.Volumes = append(o.Claims, *pvc), append(o.Volumes, *pv)
		if chance(random, 60) {
			publish(volume.ID, diskv1alpha1.PhaseFormatted)
		} else {
			disk.Free = append(disk.Free, e)
		}
	}
}

func podWith(name string, volumes ...corev1.Volume) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID(name), Labels: map[string]string{"app": "x"}},
		Spec:       corev1.PodSpec{SchedulerName: diskv1alpha1.SchedulerName, Volumes: volumes, Containers: []corev1.Container{{Name: "main"}}},
		Status:     corev1.PodStatus{Phase: corev1.PodPending},
	}
}

func randomPod(random *rand.Rand, o *Objects, name string) *corev1.Pod {
	pod := podWith(name)
	for i := range random.IntN(4) {
		v := objects.InlineVolume("v"+strconv.Itoa(i), []string{"ssd", "ssd", "ssd", "hdd"}[random.IntN(4)], objects.GiB(1+random.Int64N(25)))
		if chance(random, 30) {
			v.CSI.VolumeAttributes[diskv1alpha1.AttributeSpread] = diskv1alpha1.SpreadDisk
		}
		if chance(random, 2) {
			v.CSI.VolumeAttributes[diskv1alpha1.AttributeClass] = "none"
		}
		pod.Spec.Volumes = append(pod.Spec.Volumes, v)
	}
	if chance(random, 30) {
		pvc := objects.Claim("default", "claim-of-"+name, []string{"ssd", "ssd", "hdd", "other", "immediate"}[random.IntN(5)], objects.GiB(1+random.Int64N(15)))
		pvc.UID = types.UID(pvc.Name)
		o.Claims = append(o.Claims, *pvc)
		pod.Spec.Volumes = append(pod.Spec.Volumes, objects.ClaimVolume("claim", pvc.Name))
	}
	if n := len(o.Claims); n > 0 && chance(random, 15) {
		pod.Spec.Volumes = append(pod.Spec.Volumes, objects.ClaimVolume("another", o.Claims[random.IntN(n)].Name))
	}
	if chance(random, 50) {
		pod.Spec.Tolerations = []corev1.Toleration{{Key: "dedicated", Operator: corev1.TolerationOpExists}}
	}
	if chance(random, 20) {
		pod.Spec.NodeSelector = map[string]string{"zone": strconv.Itoa(random.IntN(3))}
	}
	pod.Spec.Priority = ptr.To(int32(random.IntN(3)))
	pod.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: *resource.NewMilliQuantity(int64(random.IntN(2000)), resource.DecimalSI)}
	return pod
}
