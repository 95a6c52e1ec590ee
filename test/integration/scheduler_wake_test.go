package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/component-base/metrics/testutil"
	"sigs.k8s.io/controller-runtime/pkg/client"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/plugins/diskcapacity"
	"github.com/berthdev/berth/test/cluster"
	"github.com/berthdev/berth/test/units"
)

// TestSchedulerWakes: which pods are tried again, and when.
func TestSchedulerWakes(t *testing.T) {
	s := startSchedulers(t)
	for _, test := range []struct {
		name string
		run  func(*testing.T, *schedulers)
	}{
		{"exactly", wakesExactly},
		{"among ten thousand", wakesAmongTenThousand},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Cleanup(func() { s.clear(t) })
			test.run(t, s)
		})
	}
}

// counted sums a metric of the scheduler over those of its labels that are given.
func (s *schedulers) counted(t *testing.T, name string, labels map[string]string) (sum float64) {
	t.Helper()
	families, err := testutil.TextToMetricFamilies(bytes.NewReader(s.metrics(t, "scheduler").text))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range families[name].GetMetric() {
		matches := 0
		for _, l := range m.GetLabel() {
			if labels[l.GetName()] == l.GetValue() {
				matches++
			}
		}
		if matches == len(labels) {
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return sum
}

// attempts is how often the scheduler has tried a pod.
func (s *schedulers) attempts(t *testing.T) int {
	t.Helper()
	return int(s.counted(t, "scheduler_schedule_attempts_total", nil))
}

// tried is how often since then, once it is as often as wanted: a pod is counted a little
// after it is bound.
func (s *schedulers) tried(t *testing.T, before, want int) (tried int) {
	t.Helper()
	s.eventually(t, func(context.Context) error {
		if tried = s.attempts(t) - before; tried < want {
			return fmt.Errorf("%d pods were tried, want %d", tried, want)
		}
		return nil
	})
	return tried
}

// take puts a volume on the node without an owner, and gives back what was there; not
// published yet.
func (n *simNode) take(sizeGiB int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.volumes, takenPartition)
	if sizeGiB > 0 {
		n.volumes[takenPartition] = extent.New(diskv1alpha1.Alignment+n.size-sizeGiB*units.GiB, sizeGiB*units.GiB)
	}
}

var takenPartition = diskv1alpha1.PartitionID("without an owner")

// wakesExactly: of pods that wait for different things, each event has those tried that it
// helps, and no other.
func wakesExactly(t *testing.T, s *schedulers) {
	grows := newSimNode(t, s.client, "sim-grows", 100, diskv1alpha1.DriverName)
	unregistered := newSimNode(t, s.client, "sim-unregistered", 200)
	s.storageClass(t, "wakes", nil)
	holder := diskPod("holder", 5)
	s.create(t, holder)
	s.waitBound(t, 1)
	publish := func(takenGiB int64) {
		t.Helper()
		grows.take(takenGiB)
		if err := grows.publish(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	publish(95)

	tape := diskPod("tape", 1)
	tape.Spec.Volumes[0].CSI.VolumeAttributes[diskv1alpha1.AttributeClass] = "tape"
	waiting := []*corev1.Pod{
		diskPod("wants-4", 4), diskPod("wants-5", 5), diskPod("wants-6", 6), withVolumeOf(diskPod("wants-4-and-4", 4), "more", 4),
		diskPod("wants-150", 150), diskPod("wants-300", 300), tape, claimPod("wants-claim", "wakes"),
	}
	s.create(t, waiting...)
	s.waitDecided(t)
	pvcs := func(name string) func() { return func() { s.pvc(t, name, "wakes", 20) } }
	for i, step := range []struct {
		event string
		do    func()
		// tried is how many pods are tried for it, bound is the one that gets its place.
		tried int
		bound string
	}{
		{"3 GiB, for no pod", func() { publish(92) }, 0, ""},
		{"less again", func() { publish(95) }, 0, ""},
		{"4 GiB", func() { publish(91) }, 1, "wants-4"},
		{"the end of a pod whose volume was never published", func() {
			if err := s.client.Delete(t.Context(), holder, client.GracePeriodSeconds(0)); err != nil {
				t.Fatal(err)
			}
		}, 1, "wants-5"},
		{"the same once more", func() { publish(91) }, 0, ""},
		{"a DiskClass, of which no node has disks", func() { s.class(t, "tape") }, 1, ""},
		{"a claim that no pod wants", pvcs("unwanted"), 0, ""},
		{"6 GiB in one piece", func() { publish(85) }, 1, "wants-6"},
		{"8 GiB", func() { publish(77) }, 1, "wants-4-and-4"},
		{"an agent that registers", func() {
			csiNode := &storagev1.CSINode{ObjectMeta: metav1.ObjectMeta{Name: unregistered.name}}
			s.reload(t, csiNode)
			csiNode.Spec.Drivers = []storagev1.CSINodeDriver{{Name: diskv1alpha1.DriverName, NodeID: unregistered.name}}
			if err := s.client.Update(t.Context(), csiNode); err != nil {
				t.Fatal(err)
			}
		}, 1, "wants-150"},
		{"27 GiB, which only the pod without its claim could use", func() { publish(50) }, 0, ""},
		{"the claim", pvcs("wakes"), 1, "wants-claim"},
	} {
		before := s.attempts(t)
		step.do()
		if step.bound != "" {
			s.waitNode(t, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: schedulerTests, Name: step.bound}})
		}
		// A pod that comes later is tried later. Three, so that rounds of an offer pass.
		for j := range 3 {
			marker := plainPod(fmt.Sprintf("marker-%d-%d", i, j), "berth")
			s.create(t, marker)
			s.waitNode(t, marker)
		}
		if tried := s.tried(t, before, step.tried+3) - 3; tried != step.tried {
			t.Errorf("%s: %d pods were tried, want %d", step.event, tried, step.tried)
		}
	}
}

// crowd is the namespace of those who wait in vain.
const crowd = "scheduler-crowd"

// wakesAmongTenThousand: pods without a place cost the others nothing that one would notice.
func wakesAmongTenThousand(t *testing.T, s *schedulers) {
	const count, throughputPods = 10_000, 300
	nodes := make([]*simNode, 10)
	for i := range nodes {
		nodes[i] = newSimNode(t, s.client, fmt.Sprintf("sim-%d", i), 200, diskv1alpha1.DriverName)
	}
	const large = 20_000
	late := newSimNode(t, s.client, "sim-late", large, diskv1alpha1.DriverName)
	late.take(large - 1)
	late.publishNow(t)
	// While the rate is measured, agents publish what is no news to those who wait.
	rate := func(name string) float64 {
		ctx, cancel := context.WithCancel(t.Context())
		var publishing errgroup.Group
		publishing.Go(func() error {
			for round := 0; ctx.Err() == nil; round++ {
				for i, n := range nodes {
					n.take(int64(1 + (i+round)%2))
					if err := n.publish(ctx); err != nil && ctx.Err() == nil {
						return err
					}
				}
				pause(ctx)
			}
			return nil
		})
		result := s.rate(t, name, throughputPods)
		cancel()
		if err := publishing.Wait(); err != nil {
			t.Error(err)
		}
		return result
	}
	alone := rate("alone")

	s.make(t, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: crowd}})
	t.Cleanup(func() {
		// One call for so many pods may take longer than the API server gives it, which then answers that it timed
		// out, or ends the stream. The next call deletes the rest.
		if err := cluster.Eventually(context.WithoutCancel(t.Context()), 10*time.Minute, func(ctx context.Context) error {
			return s.client.DeleteAllOf(ctx, &corev1.Pod{}, client.InNamespace(crowd), client.GracePeriodSeconds(0))
		}); err != nil {
			t.Error(err)
		}
	})
	config := s.cluster.RESTConfig()
	config.ContentType = runtime.ContentTypeProtobuf
	clientset, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	s.parallel(t, count, func(ctx context.Context, i int) error {
		// A tenth of them want what will be there once.
		size := int64(500)
		if i%10 > 0 {
			size = 2000 + int64(i)
		}
		pod := diskPod(fmt.Sprintf("waits-%05d", i), size)
		pod.Namespace = crowd
		_, err := clientset.CoreV1().Pods(crowd).Create(ctx, pod, metav1.CreateOptions{})
		return err
	})
	created := time.Since(start)
	if err := cluster.Eventually(t.Context(), 10*time.Minute, func(context.Context) error {
		if n := s.counted(t, "scheduler_pending_pods", map[string]string{"queue": "unschedulable"}); n < count {
			return fmt.Errorf("%v pods are unschedulable, want %d", n, count)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d pods created in %s, all found unschedulable after %s", count, created.Round(time.Millisecond), time.Since(start).Round(time.Millisecond))

	// Room for one pod appears, several times.
	var took []time.Duration
	taken := int64(large - 1)
	for i := range 5 {
		pod := diskPod(fmt.Sprintf("fits-%d", i), 300)
		s.create(t, pod)
		s.waitCondition(t, pod.Name, "300Gi")
		before := s.attempts(t)
		taken -= 300
		late.take(taken)
		start := time.Now()
		late.publishNow(t)
		s.waitNode(t, pod)
		took = append(took, time.Since(start))
		if tried := s.tried(t, before, 1); tried != 1 {
			t.Errorf("%d pods were tried when there was room for one, that one wanted", tried)
		}
	}
	t.Logf("a fitting pod among %d was bound after %v of its room being published", count, took)

	crowded := rate("crowded")
	t.Logf("%d plain and %d disk pods: %.0f pods/s with none waiting, %.0f pods/s with %d: %.2f",
		throughputPods/2, throughputPods/2, alone, crowded, count, crowded/alone)

	s.asksNone(t, "crowded", throughputPods)

	// Room for one of a thousand that want the same.
	before := s.attempts(t)
	late.take(taken - 500)
	start = time.Now()
	late.publishNow(t)
	s.eventually(t, func(ctx context.Context) error {
		if n := s.counted(t, "scheduler_pending_pods", map[string]string{"queue": "unschedulable"}); n != count-1 {
			return fmt.Errorf("%v pods are unschedulable, want one less than %d", n, count)
		}
		return nil
	})
	plain := plainPod("passer-by", "berth")
	s.create(t, plain)
	s.waitNode(t, plain)
	tried := s.tried(t, before, 2) - 1
	t.Logf("of 1000 that want the same room, %d were tried until one had it, after %s", tried, time.Since(start).Round(time.Millisecond))
	if tried > 100 {
		t.Errorf("%d pods were tried for room that one takes", tried)
	}
}

// asksNone deletes the pods of a rate, half of them with volumes, and holds that none of those
// who wait is asked whether that helps. Hints are counted up to a second later, and of many only
// a thousand a second.
func (s *schedulers) asksNone(t *testing.T, name string, count int) {
	t.Helper()
	asked := func() float64 {
		return s.counted(t, "scheduler_queueing_hint_execution_duration_seconds", map[string]string{"plugin": diskcapacity.Name})
	}
	before := asked()
	s.parallel(t, count, func(ctx context.Context, i int) error {
		return s.client.Delete(ctx, plainPod(fmt.Sprintf("%s-%d", name, i), ""), client.GracePeriodSeconds(0))
	})
	// It is bound when all that came before it has been handled.
	marker := plainPod("after-"+name, "berth")
	s.create(t, marker)
	s.waitNode(t, marker)
	if asked := asked() - before; asked > 0 {
		t.Errorf("pods that wait were asked %.0f times when others ended that do not help them", asked)
	}
}

func (n *simNode) publishNow(t *testing.T) {
	t.Helper()
	n.must(t, n.publish(t.Context()))
}

// rate creates half plain pods, half with a volume, and returns how many were bound a second.
func (s *schedulers) rate(t *testing.T, name string, count int) float64 {
	t.Helper()
	before := len(s.bound(t))
	start := time.Now()
	s.parallel(t, count, func(ctx context.Context, i int) error {
		pod := plainPod(fmt.Sprintf("%s-%d", name, i), "berth")
		if i%2 == 0 {
			pod = diskPod(pod.Name, 1)
		}
		return s.client.Create(ctx, pod)
	})
	s.waitBound(t, before+count)
	return float64(count) / time.Since(start).Seconds()
}

// parallel does it for 0..n-1, from a few goroutines.
func (s *schedulers) parallel(t *testing.T, n int, do func(context.Context, int) error) {
	t.Helper()
	group, ctx := errgroup.WithContext(t.Context())
	group.SetLimit(16)
	for i := range n {
		group.Go(func() error { return do(ctx, i) })
	}
	if err := group.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}
