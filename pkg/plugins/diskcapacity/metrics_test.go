package diskcapacity

import (
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/component-base/metrics/legacyregistry"
	"k8s.io/component-base/metrics/testutil"
	"k8s.io/kubernetes/pkg/scheduler/framework"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/ledger"
	"github.com/berthdev/berth/test/units"
)

// scrape returns the samples of our counters and histograms, by name and labels.
func scrape(t *testing.T) map[string]float64 {
	t.Helper()
	families, err := legacyregistry.DefaultGatherer.Gather()
	if err != nil {
		t.Fatal(err)
	}
	samples := map[string]float64{}
	for _, family := range families {
		name, ours := strings.CutPrefix(family.GetName(), "berth_scheduler_")
		for _, m := range family.GetMetric() {
			if !ours {
				continue
			}
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetValue())
			}
			key := strings.TrimSuffix(name+" "+strings.Join(labels, " "), " ")
			samples[key] = m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return samples
}

// TestMetricsOfDecisions asserts that each way in which a cycle can end is counted once.
func TestMetricsOfDecisions(t *testing.T) {
	many := make([]string, 12)
	for i := range many {
		many[i] = string(rune('a' + i))
	}
	postFilter := func(t *testing.T, b *bench, pod string, sizeGiB int64) {
		p := podOf(pod, sizeGiB)
		state, statuses := b.filter(t, p)
		byNode := framework.NewDefaultNodeToStatus()
		for node, status := range statuses {
			byNode.Set(node, status)
		}
		b.framework.RunPostFilterPlugins(b.ctx, state, p, byNode)
	}
	tests := map[string]struct {
		nodes []string
		run   func(*testing.T, *bench)
		want  map[string]float64
	}{
		"bound": {[]string{"n1"}, func(t *testing.T, b *bench) { b.describeReserved(t, podOf("a", 1), "n1") },
			map[string]float64{"decisions_total bound": 1, "searches_total all": 1, "plan_duration_seconds search": 1, "plan_duration_seconds reserve": 1}},
		"invalid": {[]string{"n1"}, func(t *testing.T, b *bench) { b.filter(t, withVolume(podOf("a", 1), "bad", "10Gib", "ssd")) },
			map[string]float64{"decisions_total invalid": 1}},
		"unschedulable": {many, func(t *testing.T, b *bench) {
			b.agent(t, "a")
			b.plugin.ledger.DeleteCapacity("b", 1<<40)
			nonsense := b.capacity("c", 10)
			nonsense.Status.Disks[0].Size = 1
			if err := b.plugin.feed.capacities.Add(nonsense); err != nil {
				t.Fatal(err)
			}
			postFilter(t, b, "x", 20)
		}, map[string]float64{
			"decisions_total unschedulable": 1, "searches_total all": 1, "plan_duration_seconds search": 1,
			"unschedulable_reasons_total ssd extent_too_small": 1, "unschedulable_reasons_total  no_agent": 1,
			"unschedulable_reasons_total  not_published": 1, "unschedulable_reasons_total  contradictory": 1,
		}},
		"lost": {[]string{"n1"}, func(t *testing.T, b *bench) {
			pod := podOf("a", 6)
			state, _ := b.filter(t, pod)
			b.reserve(t, podOf("b", 6), "n1")
			b.framework.RunReservePluginsReserve(b.ctx, state, pod, "n1")
			b.framework.RunReservePluginsUnreserve(b.ctx, state, pod, "n1")
		}, map[string]float64{"decisions_total lost": 1, "searches_total all": 2, "plan_duration_seconds search": 2, "plan_duration_seconds reserve": 2}},
		"undone": {[]string{"n1"}, func(t *testing.T, b *bench) {
			pod := podOf("a", 6)
			state, _ := b.filter(t, pod)
			b.framework.RunReservePluginsReserve(b.ctx, state, pod, "n1")
			b.framework.RunBindPlugins(b.ctx, state, pod, "n1") // nothing answers
			b.framework.RunReservePluginsUnreserve(b.ctx, state, pod, "n1")
		}, map[string]float64{
			"decisions_total undone": 1, "bind_failures_total not_bound": 1, "searches_total all": 1,
			"plan_duration_seconds search": 1, "plan_duration_seconds reserve": 1,
		}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, respondWith(http.StatusNotFound, &apierrors.NewNotFound(schema.GroupResource{Resource: "pods"}, "a").ErrStatus, nil), test.nodes...)
			for _, node := range test.nodes {
				b.publish(t, node, 10, volumeOf(podOf("old", 90), 0, 90))
			}
			before := scrape(t)
			test.run(t, b)
			have := scrape(t)
			for name, value := range before {
				if have[name] -= value; have[name] == 0 {
					delete(have, name)
				}
			}
			if !maps.Equal(have, test.want) {
				t.Errorf("got  %v\nwant %v", have, test.want)
			}
		})
	}
}

// TestMetricsOfCapacity asserts the metrics of free space, of fragmentation and of nodes that are behind.
func TestMetricsOfCapacity(t *testing.T) {
	b := newBench(t, nil, "n1", "n2", "n3", "n4")
	f, now := b.plugin.feed, time.Now()
	collect := func(want string, names ...string) {
		t.Helper()
		c := &collector{feed: func() *feed { return f }, now: func() time.Time { return now }}
		for i := range names {
			names[i] = "berth_scheduler_" + names[i]
		}
		if err := testutil.CustomCollectAndCompare(c, strings.NewReader(want), names...); err != nil {
			t.Error(err)
		}
	}
	ndc := b.capacity("n1", 10)
	ndc.Status.Disks[0].Free = append(ndc.Status.Disks[0].Free, diskv1alpha1.Extent{Start: 100 * units.GiB, Length: 30 * units.GiB})
	if err := f.capacities.Add(ndc); err != nil {
		t.Fatal(err)
	}
	b.publish(t, "n2", 20)
	nonsense := b.capacity("n3", 10)
	nonsense.Status.Disks[0].Size = 1
	if err := f.capacities.Add(nonsense); err != nil {
		t.Fatal(err)
	}
	collect(`
# HELP berth_scheduler_fragmentation_ratio [ALPHA] Part of a disk class's free bytes that lies outside of the largest free extent of its disk. It is 0 if all free space is in one piece on each disk.
# TYPE berth_scheduler_fragmentation_ratio gauge
berth_scheduler_fragmentation_ratio{class="ssd"} 0.16666666666666663
# HELP berth_scheduler_free_bytes [ALPHA] Free bytes of a disk class, less what was placed and is not published yet.
# TYPE berth_scheduler_free_bytes gauge
berth_scheduler_free_bytes{class="ssd"} 6.442450944e+10
# HELP berth_scheduler_free_extents [ALPHA] Extents that the free bytes of a disk class are in.
# TYPE berth_scheduler_free_extents gauge
berth_scheduler_free_extents{class="ssd"} 3
# HELP berth_scheduler_largest_free_extent_bytes [ALPHA] The largest free extent of a disk class: no larger volume fits anywhere.
# TYPE berth_scheduler_largest_free_extent_bytes gauge
berth_scheduler_largest_free_extent_bytes{class="ssd"} 3.221225472e+10
# HELP berth_scheduler_nodes [ALPHA] Nodes that publish their disks, by state: published, contradictory, whose NodeDiskCapacity contradicts itself, or absent, without a Node.
# TYPE berth_scheduler_nodes gauge
berth_scheduler_nodes{state="absent"} 0
berth_scheduler_nodes{state="contradictory"} 1
berth_scheduler_nodes{state="published"} 2
`, "fragmentation_ratio", "free_bytes", "free_extents", "largest_free_extent_bytes", "nodes")

	const lagHelp = `
# HELP berth_scheduler_lagging_nodes [ALPHA] Nodes with a volume that was placed more than 10 seconds ago and that they have not published.
# TYPE berth_scheduler_lagging_nodes gauge
berth_scheduler_lagging_nodes LAGGING
# HELP berth_scheduler_oldest_unpublished_volume_age_seconds [ALPHA] How long the oldest of the unpublished volumes has waited; 0 if there is none.
# TYPE berth_scheduler_oldest_unpublished_volume_age_seconds gauge
berth_scheduler_oldest_unpublished_volume_age_seconds OLDEST
# HELP berth_scheduler_unpublished_volumes [ALPHA] Volumes that were placed and that their nodes have not published yet.
# TYPE berth_scheduler_unpublished_volumes gauge
berth_scheduler_unpublished_volumes VOLUMES
`
	lag := func(volumes, oldest, lagging string) string {
		return strings.NewReplacer("VOLUMES", volumes, "OLDEST", oldest, "LAGGING", lagging).Replace(lagHelp)
	}
	names := func() []string {
		return []string{"lagging_nodes", "oldest_unpublished_volume_age_seconds", "unpublished_volumes", "node_lag_seconds"}
	}
	collect(lag("0", "0", "0"), names()...)

	delays, replaced := scrape(t)["publish_delay_seconds"], scrape(t)["replaced_volumes_total"]
	first, second := podOf("first", 5), podOf("second", 5)
	b.describeReserved(t, first, "n1")
	b.describeReserved(t, second, "n2")
	for partition, u := range f.lag.volumes["n1"] {
		u.since = now
		f.lag.volumes["n1"][partition] = u
	}
	for partition, u := range f.lag.volumes["n2"] {
		u.since = now.Add(9 * time.Second)
		f.lag.volumes["n2"][partition] = u
	}
	now = now.Add(12 * time.Second)
	collect(lag("2", "12", "1")+`
# HELP berth_scheduler_node_lag_seconds [ALPHA] How long the oldest unpublished volume of a node has waited, for the lagging nodes only, at most the 100 that are furthest behind.
# TYPE berth_scheduler_node_lag_seconds gauge
berth_scheduler_node_lag_seconds{node="n1"} 12
`, names()...)

	// One is published where it was placed, the other elsewhere, and one was never ours.
	b.publish(t, "n1", 20, volumeOf(first, 0, 5))
	b.publish(t, "n2", 15, volumeOf(podOf("foreign", 1), 0, 1), volumeOf(second, 1, 5))
	collect(lag("0", "0", "0"), names()...)
	have := scrape(t)
	if have["publish_delay_seconds"]-delays != 2 || have["replaced_volumes_total"]-replaced != 1 {
		t.Errorf("%v delays observed, %v volumes replaced, want 2 and 1", have["publish_delay_seconds"]-delays, have["replaced_volumes_total"]-replaced)
	}
	if len(f.lag.volumes) != 0 {
		t.Errorf("still waiting for %v", f.lag.volumes)
	}

	// The age of what another scheduler placed begins when it is first seen here. What was given back has none.
	third := podOf("third", 5)
	state := b.reserveCycle(t, third, "n1")
	b.framework.RunReservePluginsUnreserve(b.ctx, state, third, "n1")
	b.reserveElsewhere(t, "n2")
	collect(lag("1", "0", "0"), names()...)
	now = now.Add(time.Minute)
	collect(lag("1", "60", "1")+`
# HELP berth_scheduler_node_lag_seconds [ALPHA] How long the oldest unpublished volume of a node has waited, for the lagging nodes only, at most the 100 that are furthest behind.
# TYPE berth_scheduler_node_lag_seconds gauge
berth_scheduler_node_lag_seconds{node="n2"} 60
`, names()...)
}

// TestMetricsOfWaitingPods asserts that pods are counted under each class that they wait for, with the time since they
// were first refused, and that a class without waiting pods has zeros.
func TestMetricsOfWaitingPods(t *testing.T) {
	w, now := newWaitingPods(), time.Now()
	check := func(step string, want map[string]waitingOfClass) {
		t.Helper()
		if have := w.byClass(now, slices.Values([]string{"hdd", "ssd"})); !maps.Equal(have, want) {
			t.Errorf("%s: %v, want %v", step, have, want)
		}
	}
	check("at the start", map[string]waitingOfClass{"hdd": {}, "ssd": {}})
	refused := withVolume(podOf("refused", 1), "more", "2Gi", "hdd")
	refused.Status.Conditions = []corev1.PodCondition{{
		Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonUnschedulable, LastTransitionTime: metav1.NewTime(now.Add(-time.Hour)),
	}}
	a := w.begin(refused)
	w.setRequest(a, &state{search: ledger.NewSearch(requestsOf(mustVolumes(t, refused)), maxCycleSteps)})
	check("a pod of two classes", map[string]waitingOfClass{"hdd": {1, time.Hour}, "ssd": {1, time.Hour}})
	unread := w.begin(podOf("unread", 1))
	unread.since = now.Add(-time.Minute)
	now = now.Add(time.Minute)
	check("one that is not read yet", map[string]waitingOfClass{"": {1, 2 * time.Minute}, "hdd": {1, 61 * time.Minute}, "ssd": {1, 61 * time.Minute}})
	// The next attempt does not begin the wait again.
	if again := w.begin(podOf("unread", 1)); again.since != unread.since {
		t.Errorf("the wait begins at %s again, not at %s", again.since, unread.since)
	}
	w.forget(refused.UID)
	check("after one has its place", map[string]waitingOfClass{"": {1, 2 * time.Minute}, "hdd": {}, "ssd": {}})
}

// reserveElsewhere reserves as another scheduler does.
func (b *bench) reserveElsewhere(t *testing.T, node string) {
	t.Helper()
	pod := podOf("elsewhere", 1)
	if _, err := b.plugin.ledger.Reserve("elsewhere", node, volumeRequestsOf(mustVolumes(t, pod))); err != nil {
		t.Fatal(err)
	}
}

// TestMetricsLint asserts that names and units follow the rules of Prometheus.
func TestMetricsLint(t *testing.T) {
	b := newBench(t, nil, "n1")
	b.publish(t, "n1", 10)
	b.describeReserved(t, podOf("a", 1), "n1")
	answer := httptest.NewRecorder()
	legacyregistry.Handler().ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/metrics", http.NoBody))
	if !strings.Contains(answer.Body.String(), "berth_scheduler_decisions_total") {
		t.Fatal("our metrics are missing")
	}
	problems, err := testutil.NewPromLinter(answer.Body).Lint()
	if err != nil {
		t.Fatal(err)
	}
	problems = slices.DeleteFunc(problems, func(p testutil.Problem) bool { return !strings.HasPrefix(p.Metric, "berth_") })
	if len(problems) > 0 {
		t.Error(problems)
	}
}
