// Package bench measures Berth against what it stands beside, always in one run on
// one machine, so that a figure is a ratio and not a property of the machine.
package bench

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

const (
	fakeNodes = 1000
	podsARun  = 2000
)

var rounds = flag.Int("rounds", 3, "how often the two workloads run, in turn")

const gi = int64(1) << 30

// throughput is what one run of one workload showed.
type throughput struct {
	podsPerSecond float64
	// claimsPerSecond is of their claims, until they are Bound.
	claimsPerSecond float64
	writesPerPod    float64
	// writes a pod, by resource and verb.
	writes map[string]float64
}

// run creates the pods while no scheduler runs, starts one, and measures from the
// first pod that is bound to the last: the speed of scheduling, not of creating pods.
func run(ctx context.Context, tb testing.TB, f *fakeCluster, workload string, pod func(i int) *corev1.Pod) throughput {
	tb.Helper()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: workload + "-"}}
	f.must(tb, f.client.Create(ctx, namespace))
	f.parallel(ctx, tb, podsARun, func(ctx context.Context, i int) error {
		p := pod(i)
		p.Namespace, p.Name = namespace.Name, fmt.Sprintf("pod-%05d", i)
		return f.client.Create(ctx, p)
	})

	bound := f.watchBound(ctx, tb, namespace.Name)
	before := f.writes(ctx, tb)
	stop := f.startScheduler(ctx, tb)
	defer stop()
	var first, last time.Time
	for i := range podsARun {
		select {
		case last = <-bound:
			if i == 0 {
				first = last
			}
		case <-ctx.Done():
			tb.Fatalf("%s: not all pods were bound: %v", workload, context.Cause(ctx))
		}
	}
	// Events are sent behind the bindings; they are part of what a pod costs.
	after := f.settledWrites(ctx, tb)
	stop()
	f.deletePods(ctx, tb, namespace.Name)

	result := throughput{podsPerSecond: float64(podsARun-1) / last.Sub(first).Seconds(), writes: map[string]float64{}}
	result.count(before, after, podsARun)
	tb.Logf("%-12s %7.1f pods/s  %.2f API writes a pod  %v", workload, result.podsPerSecond, result.writesPerPod, describe(result.writes))
	return result
}

// count divides the writes between two looks by the number of pods.
func (t *throughput) count(before, after map[string]float64, pods float64) {
	for key, n := range after {
		if d := n - before[key]; d > 0 {
			t.writes[key] = d / pods
			if !strings.Contains(key, refused) {
				t.writesPerPod += d / pods
			}
		}
	}
}

func describe(writes map[string]float64) string {
	var parts []string
	for key, n := range writes {
		if n >= 0.005 {
			parts = append(parts, fmt.Sprintf("%s %.2f", key, n))
		}
	}
	slices.Sort(parts)
	return strings.Join(parts, ", ")
}

// BenchmarkPodsPerSecond compares pods without volumes on the stock profile with the
// same pods with one inline volume on Berth's, on 1000 fake nodes.
func BenchmarkPodsPerSecond(b *testing.B) {
	for b.Loop() {
		ctx, cancel := context.WithTimeoutCause(b.Context(), 20*time.Minute, fmt.Errorf("the benchmark took over 20 minutes"))
		defer cancel()
		f := newFakeCluster(ctx, b)
		var ratios, stockRate, berthRate, stockWrites, berthWrites []float64
		for range *rounds {
			stock := run(ctx, b, f, "stock", func(int) *corev1.Pod { return plainPod() })
			berth := run(ctx, b, f, "berth", func(int) *corev1.Pod { return diskPod(10 * gi) })
			stockRate = append(stockRate, stock.podsPerSecond)
			berthRate = append(berthRate, berth.podsPerSecond)
			stockWrites = append(stockWrites, stock.writesPerPod)
			berthWrites = append(berthWrites, berth.writesPerPod)
			ratios = append(ratios, berth.podsPerSecond/stock.podsPerSecond)
		}
		b.ReportMetric(median(stockRate), "stock-pods/s")
		b.ReportMetric(median(berthRate), "berth-pods/s")
		b.ReportMetric(median(ratios), "berth/stock")
		b.ReportMetric(median(stockWrites), "stock-writes/pod")
		b.ReportMetric(median(berthWrites), "berth-writes/pod")
	}
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

func plainPod() *corev1.Pod {
	return &corev1.Pod{Spec: corev1.PodSpec{
		SchedulerName: corev1.DefaultSchedulerName,
		Containers: []corev1.Container{{
			Name: "main", Image: "pause",
			Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
				corev1.ResourceCPU:    resource.MustParse("100m"),
				corev1.ResourceMemory: resource.MustParse("128Mi"),
			}},
		}},
	}}
}

func diskPod(size int64) *corev1.Pod {
	pod := plainPod()
	pod.Spec.SchedulerName = "berth"
	pod.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{
		Driver: diskv1alpha1.DriverName,
		VolumeAttributes: map[string]string{
			diskv1alpha1.AttributeSize:  strconv.FormatInt(size, 10),
			diskv1alpha1.AttributeClass: "ssd",
		},
	}}}}
	return pod
}

// fakeCluster is a real control plane with nodes that exist only as objects.
type fakeCluster struct {
	config *rest.Config
	client client.WithWatch
	// start starts the scheduler's process and returns what ends it.
	start func(ctx context.Context) (stop func() error, err error)
}

func (f *fakeCluster) must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func (f *fakeCluster) startScheduler(ctx context.Context, tb testing.TB) func() {
	tb.Helper()
	stop, err := f.start(ctx)
	f.must(tb, err)
	return sync.OnceFunc(func() {
		if err := stop(); err != nil {
			tb.Error(err)
		}
	})
}

// parallel calls do for 0..n-1 from a few goroutines.
func (f *fakeCluster) parallel(ctx context.Context, tb testing.TB, n int, do func(context.Context, int) error) {
	tb.Helper()
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(16)
	for i := range n {
		group.Go(func() error { return do(ctx, i) })
	}
	f.must(tb, group.Wait())
}

// watchBound sends the time at which each pod of the namespace was seen to be bound. It
// is an informer, because the API server ends watches that are slow to read.
func (f *fakeCluster) watchBound(ctx context.Context, tb testing.TB, namespace string) <-chan time.Time {
	tb.Helper()
	factory := informers.NewSharedInformerFactoryWithOptions(f.clientset(tb), 0, informers.WithNamespace(namespace))
	bound := make(chan time.Time, podsARun)
	seen := map[string]bool{}
	_, err := factory.Core().V1().Pods().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		UpdateFunc: func(_, obj any) {
			if pod, ok := obj.(*corev1.Pod); ok && pod.Spec.NodeName != "" && !seen[pod.Name] {
				seen[pod.Name] = true
				bound <- time.Now()
			}
		},
	})
	f.must(tb, err)
	factory.StartWithContext(ctx)
	factory.WaitForCacheSync(ctx.Done())
	return bound
}

// clientset is for informers of many objects.
func (f *fakeCluster) clientset(tb testing.TB) kubernetes.Interface {
	tb.Helper()
	config := rest.CopyConfig(f.config)
	config.ContentType, config.AcceptContentTypes = runtime.ContentTypeProtobuf, runtime.ContentTypeProtobuf
	clientset, err := kubernetes.NewForConfig(config)
	f.must(tb, err)
	return clientset
}

func (f *fakeCluster) deletePods(ctx context.Context, tb testing.TB, namespace string) {
	tb.Helper()
	f.must(tb, f.client.DeleteAllOf(ctx, &corev1.Pod{}, client.InNamespace(namespace), client.GracePeriodSeconds(0)))
	left := &corev1.PodList{}
	f.must(tb, f.client.List(ctx, left, client.InNamespace(namespace)))
	if n := len(left.Items); n > 0 {
		tb.Fatalf("%d pods are left of the run in %s and would weigh on the next", n, namespace)
	}
}

// notOfPods are resources whose writes follow time or requests, not pods: leases and
// the API server's own book-keeping, and questions that are asked by POST.
var notOfPods = []string{"leases", "apiservices", "tokenreviews", "subjectaccessreviews"}

// refused marks requests that the API server answered without writing.
const refused = " answered "

// writes reads from the API server's own metrics how many requests that write it has served, by
// resource and verb.
func (f *fakeCluster) writes(ctx context.Context, tb testing.TB) map[string]float64 {
	tb.Helper()
	httpClient, err := rest.HTTPClientFor(f.config)
	f.must(tb, err)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, f.config.Host+"/metrics", http.NoBody)
	f.must(tb, err)
	response, err := httpClient.Do(request)
	f.must(tb, err)
	defer response.Body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bufio.NewReader(response.Body))
	f.must(tb, err)
	family := families["apiserver_request_total"]
	if family == nil {
		tb.Fatal("the API server has no metric apiserver_request_total")
	}
	counts := map[string]float64{}
	for _, m := range family.Metric {
		label := map[string]string{}
		for _, l := range m.Label {
			label[l.GetName()] = l.GetValue()
		}
		if !slices.Contains([]string{"POST", "PUT", "PATCH", "APPLY", "DELETE"}, label["verb"]) || slices.Contains(notOfPods, label["resource"]) {
			continue
		}
		what := label["resource"]
		if label["subresource"] != "" {
			what += "/" + label["subresource"]
		}
		// A client that is faster than the API server is told so and comes again: nothing is
		// written, but it is shown.
		if code := label["code"]; !strings.HasPrefix(code, "2") {
			what += refused + code
		}
		counts[label["verb"]+" "+what] += m.GetCounter().GetValue()
	}
	return counts
}

// settledWrites waits until two looks in a row show the same counts.
func (f *fakeCluster) settledWrites(ctx context.Context, tb testing.TB) map[string]float64 {
	tb.Helper()
	sum := func(counts map[string]float64) (total float64) {
		for _, n := range counts {
			total += n
		}
		return total
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	counts := f.writes(ctx, tb)
	changed := ""
	for {
		select {
		case <-ctx.Done():
			tb.Fatalf("the API server's count of writes never settled, in the end because of %s", changed)
		case <-time.After(2 * time.Second):
		}
		next := f.writes(ctx, tb)
		for key := range next {
			if next[key] != counts[key] {
				changed = key
			}
		}
		if sum(next) == sum(counts) {
			return next
		}
		counts = next
	}
}

// populate makes the nodes: each with two disks whose free space is in several pieces.
func (f *fakeCluster) populate(ctx context.Context, tb testing.TB) {
	tb.Helper()
	f.must(tb, f.client.Create(ctx, &diskv1alpha1.DiskClass{
		ObjectMeta: metav1.ObjectMeta{Name: "ssd"},
		Spec:       diskv1alpha1.DiskClassSpec{Devices: diskv1alpha1.DeviceSelector{Paths: []string{"/dev/nvme*"}}},
	}))
	f.parallel(ctx, tb, fakeNodes, func(ctx context.Context, i int) error {
		name := fmt.Sprintf("node-%04d", i)
		capacity := corev1.ResourceList{
			corev1.ResourceCPU:    resource.MustParse("64"),
			corev1.ResourceMemory: resource.MustParse("256Gi"),
			corev1.ResourcePods:   resource.MustParse("250"),
		}
		node := &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
				corev1.LabelHostname: name, diskv1alpha1.LabelNode: diskv1alpha1.NodeLabel(name),
			}},
			Status: corev1.NodeStatus{
				Capacity: capacity, Allocatable: capacity,
				Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
			},
		}
		if err := f.client.Create(ctx, node); err != nil {
			return err
		}
		// The API server gives every new node a taint that its kubelet would take away.
		node.Spec.Taints = nil
		if err := f.client.Update(ctx, node); err != nil {
			return err
		}
		if err := f.client.Create(ctx, &storagev1.CSINode{
			ObjectMeta: metav1.ObjectMeta{Name: name, OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: name, UID: node.UID}}},
			Spec: storagev1.CSINodeSpec{Drivers: []storagev1.CSINodeDriver{{
				Name: diskv1alpha1.DriverName, NodeID: name, TopologyKeys: []string{diskv1alpha1.LabelNode},
			}}},
		}); err != nil {
			return err
		}
		ndc := &diskv1alpha1.NodeDiskCapacity{ObjectMeta: metav1.ObjectMeta{Name: name}}
		if err := f.client.Create(ctx, ndc); err != nil {
			return err
		}
		ndc.Status = fakeStatus(i)
		return f.client.Status().Update(ctx, ndc)
	})
}

// fakeStatus is two disks of 1 TiB with their free space in eight pieces each, of
// sizes that differ from node to node.
func fakeStatus(node int) diskv1alpha1.NodeDiskCapacityStatus {
	const size, piece, pieces = 1024 * gi, 100 * gi, 8
	status := diskv1alpha1.NodeDiskCapacityStatus{}
	for d := range 2 {
		disk := diskv1alpha1.Disk{
			ID:     diskv1alpha1.PartitionID(fmt.Sprintf("node %d disk %d", node, d)),
			Device: fmt.Sprintf("nvme%dn1", d), Class: "ssd", SectorSize: 512, Size: size, State: diskv1alpha1.DiskReady,
		}
		free := int64(0)
		for p := range int64(pieces) {
			e := diskv1alpha1.Extent{Start: gi + p*(piece+gi), Length: piece - int64((node*7+d*3+int(p)*5)%40)*gi}
			disk.Free = append(disk.Free, e)
			free += e.Length
		}
		disk.Overhead = size - free
		status.Disks = append(status.Disks, disk)
	}
	slices.SortFunc(status.Disks, func(a, b diskv1alpha1.Disk) int { return strings.Compare(a.ID, b.ID) })
	return status
}

func newScheme(tb testing.TB) *runtime.Scheme {
	tb.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, diskv1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			tb.Fatal(err)
		}
	}
	return scheme
}
