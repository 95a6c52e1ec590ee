package bench

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/cluster"
	"github.com/berthdev/berth/test/fleet"
)

// claimWorkload is a scheduler and provisioner that give a pod its claim's volume.
type claimWorkload struct {
	name string
	// pods is the number of pods of a run. They take some seconds.
	pods int
	// profile is the pods' schedulerName, class their claims' storageClassName.
	profile, class string
	// stub is true where the stub provisioner makes the volumes. Elsewhere it does not run, because it would watch all
	// claims, too.
	stub  bool
	start func(context.Context) error
	stop  func() error
}

// idleClaims is how many pods are timed one after the other.
const idleClaims = 15

// BenchmarkClaims compares pods with one claim each, on 1000 fake nodes, in alternating runs. It compares Berth with
// the stock VolumeBinding and a provisioner that takes no time, with and without CSIStorageCapacity.
// kube-controller-manager does its part of a claim's work in all runs, as fast as the machine allows.
func BenchmarkClaims(b *testing.B) {
	for b.Loop() {
		ctx, cancel := context.WithTimeoutCause(b.Context(), 25*time.Minute, fmt.Errorf("the benchmark took over 25 minutes"))
		defer cancel()
		f, c := newClaimCluster(ctx, b)
		waiting := waitingConfig(b, c)
		workloads := []claimWorkload{
			{"berth", 1000, "berth", diskv1alpha1.DriverName, false, c.StartScheduler, c.StopScheduler},
			{"waiting", 1000, "berth", diskv1alpha1.DriverName, false,
				func(ctx context.Context) error { return c.StartSchedulerConfigured(ctx, "waiting", waiting) },
				func() error { return c.StopSchedulerNamed("waiting") }},
			{"stock", 1000, corev1.DefaultSchedulerName, fleet.StubProvisioner, true, c.StartStockScheduler, c.StopStockScheduler},
			{"capacity", 40, corev1.DefaultSchedulerName, fleet.CapacityProvisioner, true, c.StartStockScheduler, c.StopStockScheduler},
		}
		rate, claims, writes := map[string][]float64{}, map[string][]float64{}, map[string][]float64{}
		for range *rounds {
			for _, w := range workloads {
				t := f.runClaims(ctx, b, w)
				rate[w.name] = append(rate[w.name], t.podsPerSecond)
				claims[w.name] = append(claims[w.name], t.claimsPerSecond)
				writes[w.name] = append(writes[w.name], t.writesPerPod)
			}
		}
		for _, w := range workloads {
			b.ReportMetric(milliseconds(f.idleClaims(ctx, b, w)), w.name+"-idle-ms")
			b.ReportMetric(median(rate[w.name]), w.name+"-pods/s")
			b.ReportMetric(median(claims[w.name]), w.name+"-claims/s")
			b.ReportMetric(median(writes[w.name]), w.name+"-writes/pod")
		}
		b.ReportMetric(median(quotients(rate["berth"], rate["stock"])), "berth/stock")
		b.ReportMetric(median(quotients(rate["berth"], rate["capacity"])), "berth/capacity")
	}
}

// waitingConfig is the shipped configuration, but pods wait in the scheduler until kube-controller-manager has bound
// their claims.
func waitingConfig(tb testing.TB, c *cluster.Cluster) string {
	tb.Helper()
	repository, err := cluster.Repository()
	if err != nil {
		tb.Fatal(err)
	}
	config, err := os.ReadFile(filepath.Join(repository, "config/scheduler/kube-scheduler-config.yaml"))
	if err != nil {
		tb.Fatal(err)
	}
	const argument = "bindTimeoutSeconds: 600\n"
	at := bytes.Index(config, []byte(argument))
	if at < 0 {
		tb.Fatal("the scheduler's configuration has no bindTimeoutSeconds")
	}
	path := filepath.Join(c.Dir(), "waiting-config.yaml")
	changed := slices.Concat(config[:at], []byte("controllerPatience: 10m\n      "), config[at:])
	if err := os.WriteFile(path, changed, 0o600); err != nil {
		tb.Fatal(err)
	}
	return path
}

func quotients(a, b []float64) []float64 {
	var q []float64
	for i := range a {
		q = append(q, a[i]/b[i])
	}
	return q
}

// newClaimCluster is newFakeCluster with the controllers that process claims.
func newClaimCluster(ctx context.Context, tb testing.TB) (*fakeCluster, *cluster.Cluster) {
	tb.Helper()
	c, err := cluster.Start(ctx, cluster.Options{
		Name: "bench-claims", Log: os.Stderr, Manifests: []string{"config/crd", "config/nodeagent/csidriver.yaml"}, ControllerManager: true,
		// Not the others: they would notice that the nodes have no kubelet.
		Controllers: []string{
			"serviceaccount-controller", "persistentvolume-binder-controller",
			"persistentvolume-protection-controller", "persistentvolumeclaim-protection-controller",
		},
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := c.Stop(); err != nil {
			tb.Error(err)
		}
	})
	f := &fakeCluster{}
	f.Fleet, err = fleet.New(c.RESTConfig())
	f.must(tb, err)
	f.must(tb, f.Populate(ctx, fakeNodes))
	f.must(tb, f.CreateStorageClasses(ctx))
	f.must(tb, f.PublishCapacity(ctx, fakeNodes))
	return f, c
}

// runClaims creates claims and pods while no scheduler runs, starts one, and measures from the first pod that is bound
// to the last. The creation of pod and claim, the binding and the events do not count as writes: a pod without a claim
// causes them, too.
func (f *fakeCluster) runClaims(ctx context.Context, tb testing.TB, w claimWorkload) throughput {
	tb.Helper()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	namespace := f.claimNamespace(ctx, tb, w)
	f.must(tb, fleet.Parallel(ctx, w.pods, func(ctx context.Context, i int) error { return f.createClaim(ctx, namespace, w, i) }))
	f.must(tb, fleet.Parallel(ctx, w.pods, func(ctx context.Context, i int) error {
		return f.Client.Create(ctx, claimPod(namespace, w, i))
	}))
	f.must(tb, cluster.Eventually(ctx, patience, func(ctx context.Context) error { return f.ClaimsReviewed(ctx, namespace) }))
	bound, claims := f.watchBound(ctx, tb, namespace), f.watchClaims(ctx, tb, namespace)
	before, err := f.SettledWrites(ctx)
	f.must(tb, err)
	f.must(tb, w.start(ctx))
	first, last := f.firstAndLast(ctx, tb, w, bound)
	_, ready := f.firstAndLast(ctx, tb, w, claims)
	after, err := f.SettledWrites(ctx)
	f.must(tb, err)
	f.must(tb, w.stop())
	f.must(tb, f.DeletePods(ctx, namespace))
	f.must(tb, f.RemoveVolumes(ctx, namespace))

	t := throughput{
		podsPerSecond: float64(w.pods-1) / last.Sub(first).Seconds(), writes: after.Since(before, w.pods),
		claimsPerSecond: float64(w.pods-1) / ready.Sub(first).Seconds(),
	}
	// The number of events depends on how long pods have waited.
	t.writesPerPod = t.writes.Total() - t.writes["POST pods/binding"] - t.writes["POST events"] - t.writes["PATCH events"]
	tb.Logf("%-8s %7.1f pods/s (%d pods in %.1f s, their claims Bound after %.1f s)  %.2f API writes a pod for its claim  %v",
		w.name, t.podsPerSecond, w.pods, last.Sub(first).Seconds(), ready.Sub(first).Seconds(), t.writesPerPod, t.writes)
	return t
}

// firstAndLast receives a time for each pod of the workload, and returns the first and the last one.
func (f *fakeCluster) firstAndLast(ctx context.Context, tb testing.TB, w claimWorkload, times <-chan time.Time) (first, last time.Time) {
	tb.Helper()
	for i := range w.pods {
		select {
		case last = <-times:
			if i == 0 {
				first = last
			}
		case <-ctx.Done():
			tb.Fatalf("%s: %d of %d pods are through: %v", w.name, i, w.pods, context.Cause(ctx))
		}
	}
	return first, last
}

// watchClaims sends the time at which each claim of the namespace was first seen as Bound, for which kubelets wait. It
// fails the benchmark if a claim does not stay Bound.
func (f *fakeCluster) watchClaims(ctx context.Context, tb testing.TB, namespace string) <-chan time.Time {
	tb.Helper()
	factory := informers.NewSharedInformerFactoryWithOptions(f.Clientset, 0, informers.WithNamespace(namespace))
	bound := make(chan time.Time, podsARun)
	seen := map[string]bool{}
	_, err := factory.Core().V1().PersistentVolumeClaims().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		UpdateFunc: func(_, obj any) {
			pvc, ok := obj.(*corev1.PersistentVolumeClaim)
			switch {
			case !ok:
			case seen[pvc.Name] && pvc.Status.Phase != corev1.ClaimBound:
				tb.Errorf("claim %s was Bound, and is %s", pvc.Name, pvc.Status.Phase)
			case pvc.Status.Phase == corev1.ClaimBound && !seen[pvc.Name]:
				seen[pvc.Name] = true
				bound <- time.Now()
			}
		},
	})
	f.must(tb, err)
	factory.StartWithContext(ctx)
	factory.WaitForCacheSync(ctx.Done())
	return bound
}

// idleClaims takes pods with a claim each from creation to bound, one after the other, and returns the median.
func (f *fakeCluster) idleClaims(ctx context.Context, tb testing.TB, w claimWorkload) time.Duration {
	tb.Helper()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	namespace := f.claimNamespace(ctx, tb, w)
	bound := f.watchBound(ctx, tb, namespace)
	f.must(tb, w.start(ctx))
	var took []time.Duration
	for i := range idleClaims + 1 {
		f.must(tb, f.createClaim(ctx, namespace, w, i))
		begin := time.Now()
		f.must(tb, f.Client.Create(ctx, claimPod(namespace, w, i)))
		select {
		case at := <-bound:
			// For the first one all caches are empty.
			if i > 0 {
				took = append(took, at.Sub(begin))
			}
		case <-ctx.Done():
			tb.Fatalf("%s: a pod was not bound: %v", w.name, context.Cause(ctx))
		}
	}
	f.must(tb, w.stop())
	f.must(tb, f.DeletePods(ctx, namespace))
	f.must(tb, f.RemoveVolumes(ctx, namespace))
	slices.Sort(took)
	tb.Logf("%-8s creation to bound on an idle cluster: median %v, best %v, worst %v", w.name, took[len(took)/2], took[0], took[len(took)-1])
	return took[len(took)/2]
}

// claimNamespace makes a namespace in which pods can be made, and starts the stub's provisioner if it is needed.
func (f *fakeCluster) claimNamespace(ctx context.Context, tb testing.TB, w claimWorkload) string {
	tb.Helper()
	if w.stub {
		f.must(tb, f.Provision(ctx, func(err error) { tb.Error(err) }))
	}
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: w.name + "-"}}
	f.must(tb, f.Client.Create(ctx, namespace))
	f.must(tb, cluster.Eventually(ctx, patience, func(ctx context.Context) error {
		return f.Client.Get(ctx, client.ObjectKey{Namespace: namespace.Name, Name: "default"}, &corev1.ServiceAccount{})
	}))
	return namespace.Name
}

func claimName(i int) string { return fmt.Sprintf("pod-%05d", i) }

func (f *fakeCluster) createClaim(ctx context.Context, namespace string, w claimWorkload, i int) error {
	err := f.Client.Create(ctx, fleet.Claim(namespace, claimName(i), w.class))
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

func claimPod(namespace string, w claimWorkload, i int) *corev1.Pod {
	pod := fleet.ClaimPod(w.profile, claimName(i))
	pod.Namespace, pod.Name = namespace, claimName(i)
	return pod
}
