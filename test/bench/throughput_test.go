// Package bench measures Berth beside its alternatives, always in one run on one machine. So a figure is a ratio, and
// not a property of the machine.
package bench

import (
	"context"
	"flag"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"

	"github.com/berthdev/berth/test/fleet"
	"github.com/berthdev/berth/test/units"
)

const (
	fakeNodes = 1000
	podsARun  = 2000
)

var rounds = flag.Int("rounds", 3, "how often the two workloads run, in turn")

// throughput is the result of one run of one workload.
type throughput struct {
	podsPerSecond float64
	// claimsPerSecond is the rate at which their claims become Bound.
	claimsPerSecond float64
	writesPerPod    float64
	// writes per pod.
	writes fleet.Writes
}

// run creates the pods while no scheduler runs, starts one, and measures from the first pod that is bound to the last.
// So it measures the speed of scheduling, not of creating pods.
func run(ctx context.Context, tb testing.TB, f *fakeCluster, workload string, pod func() *corev1.Pod) throughput {
	tb.Helper()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: workload + "-"}}
	f.must(tb, f.Client.Create(ctx, namespace))
	f.must(tb, fleet.Parallel(ctx, podsARun, func(ctx context.Context, i int) error {
		p := pod()
		p.Namespace, p.Name = namespace.Name, fmt.Sprintf("pod-%05d", i)
		return f.Client.Create(ctx, p)
	}))

	bound := f.watchBound(ctx, tb, namespace.Name)
	before, err := f.Writes(ctx)
	f.must(tb, err)
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
	// Events are sent after the bindings. They are part of the cost of a pod.
	after, err := f.SettledWrites(ctx)
	f.must(tb, err)
	stop()
	f.must(tb, f.DeletePods(ctx, namespace.Name))

	result := throughput{podsPerSecond: float64(podsARun-1) / last.Sub(first).Seconds(), writes: after.Since(before, podsARun)}
	result.writesPerPod = result.writes.Total()
	tb.Logf("%-12s %7.1f pods/s  %.2f API writes a pod  %v", workload, result.podsPerSecond, result.writesPerPod, result.writes)
	return result
}

// BenchmarkPodsPerSecond compares pods without volumes on the stock profile with the same pods with one inline volume
// on Berth's profile, on 1000 fake nodes.
func BenchmarkPodsPerSecond(b *testing.B) {
	for b.Loop() {
		ctx, cancel := context.WithTimeoutCause(b.Context(), 20*time.Minute, fmt.Errorf("the benchmark took over 20 minutes"))
		defer cancel()
		f := newFakeCluster(ctx, b)
		var ratios, stockRate, berthRate, stockWrites, berthWrites []float64
		for range *rounds {
			stock := run(ctx, b, f, "stock", func() *corev1.Pod { return fleet.PlainPod(corev1.DefaultSchedulerName) })
			berth := run(ctx, b, f, "berth", func() *corev1.Pod { return fleet.DiskPod(10 * units.GiB) })
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

// fakeCluster is a real control plane with nodes that exist only as objects.
type fakeCluster struct {
	*fleet.Fleet
	// start starts the scheduler's process, and returns a function that stops it.
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

// watchBound sends the time at which each pod of the namespace was seen as bound. It uses an informer, because the API
// server ends watches that are slow to read.
func (f *fakeCluster) watchBound(ctx context.Context, tb testing.TB, namespace string) <-chan time.Time {
	tb.Helper()
	factory := informers.NewSharedInformerFactoryWithOptions(f.Clientset, 0, informers.WithNamespace(namespace))
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
