package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/component-base/metrics/testutil"
	"sigs.k8s.io/controller-runtime/pkg/client"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/cluster"
	"github.com/berthdev/berth/test/objects"
	"github.com/berthdev/berth/test/units"
)

// TestSchedulerExplains asserts what an operator gets to know from a scheduler that runs: why a pod fits
// nowhere, where one was placed, and what the metrics say of both.
func TestSchedulerExplains(t *testing.T) {
	s := onControlPlane(t)
	plane := s.cluster
	s.class(t, "ssd")
	s.storageClass(t, "explained", nil)
	// Of twelve nodes with disks of 128 GiB, two have no agent any more. On the others 21 to 30 GiB
	// are free; on node sim-3, 96 GiB in two pieces.
	var nodes []*simNode
	for i := range 12 {
		var drivers []string
		foreign := diskv1alpha1.PartitionID(fmt.Sprint("foreign on ", i))
		if i >= 2 {
			drivers = append(drivers, diskv1alpha1.DriverName)
		}
		n := newSimNode(t, s.client, fmt.Sprintf("sim-%d", i), 128, drivers...)
		switch {
		case i == 3:
			n.claimed[foreign] = extent.New(diskv1alpha1.Alignment+90*units.GiB, 32*units.GiB)
		case i >= 2:
			n.claimed[foreign] = extent.New(diskv1alpha1.Alignment+int64(19+i)*units.GiB, int64(109-i)*units.GiB)
		}
		n.must(t, n.publish(t.Context()))
		nodes = append(nodes, n)
	}
	silent := nodes[11]
	silent.setSilent(true)
	if err := plane.StartScheduler(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := plane.StopScheduler(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { s.clear(t) })
	follow(t, s.client, nodes...)

	// Where it was placed, and how well it fits there. What is placed on sim-9 for a claim, and on
	// sim-11, is never published.
	// Each pod is to be tried once. Claims and pods come to the scheduler over two watches, so the
	// claim is made long before its pod.
	s.make(t, objects.Claim(schedulerTests, "explained", "explained", "6Gi"))
	t.Cleanup(func() { s.removeClaims(t) })
	behind := diskPod("behind", 30)
	behind.Spec.NodeSelector = map[string]string{corev1.LabelHostname: silent.name}
	s.create(t, behind, diskPod("tight", 20))
	s.waitBound(t, 2)
	s.waitNote(t, "behind", "Scheduled", "volume data: 30Gi at 1Mi of ssd disk "+simDisk("sim-11")+", fills a free extent exactly")
	s.waitNote(t, "tight", "Scheduled", "volume data: 20Gi at 1Mi of ssd disk "+simDisk("sim-2")+", leaves 1Gi of 21Gi free there")
	several := withClaims(diskPod("several", 22), "explained")
	several.Spec.NodeSelector = map[string]string{corev1.LabelHostname: "sim-9"}
	s.create(t, several)
	s.waitBound(t, 3)
	s.waitNote(t, "several", "Scheduled", "volume data: 22Gi at 1Mi of ssd disk "+simDisk("sim-9")+", fills a free extent exactly; "+
		"claim "+schedulerTests+"/explained: 6Gi at 22529Mi of ssd disk "+simDisk("sim-9")+", fills a free extent exactly")

	// Why it fits nowhere, and how near the nearest node comes.
	s.create(t, diskPod("large", 100))
	s.waitNote(t, "large", "FailedScheduling", "0/12 nodes are available: 2 no free space of class ssd, "+
		"2 the agent of Berth is not registered with the kubelet of this node, 8 largest free extent of class ssd is below 100Gi. "+
		"Best is 90Gi on sim-3, ")
	s.create(t, withVolumeOf(diskPod("pieces", 60), "more", 60))
	s.waitNote(t, "pieces", "FailedScheduling", "1 not enough free space of class ssd, 2 volumes (60Gi + 60Gi) want 120Gi")
	s.waitNote(t, "pieces", "FailedScheduling", "Best is 29Gi on sim-10, 96Gi in all on sim-3, ")
	s.create(t, diskPodOf("classless", "tape"))
	s.waitNote(t, "classless", "FailedScheduling", `0/12 nodes are available: volume "data": DiskClass "tape" does not exist: there are ssd.`)

	s.eventually(t, func(context.Context) error {
		if have := s.metrics(t, "scheduler").byLabel["lagging_nodes"]; have != 2 {
			return fmt.Errorf("%v nodes lag, want 2", have)
		}
		return nil
	})
	// Nodes of other tests may have left theirs behind. They have no disks of this class, and count
	// only where the Node exists.
	var published diskv1alpha1.NodeDiskCapacityList
	if err := s.client.List(t.Context(), &published); err != nil || len(published.Items) < len(nodes) {
		t.Fatalf("%d nodes publish, want %d at least; %v", len(published.Items), len(nodes), err)
	}
	var existing corev1.NodeList
	if err := s.client.List(t.Context(), &existing); err != nil {
		t.Fatal(err)
	}
	offering := slices.DeleteFunc(published.Items, func(ndc diskv1alpha1.NodeDiskCapacity) bool {
		return !slices.ContainsFunc(existing.Items, func(n corev1.Node) bool { return n.Name == ndc.Name })
	})
	m := s.metrics(t, "scheduler")
	checkReference(t, string(m.text), "berth_scheduler_", []string{"berth_scheduler_bind_failures_total"})
	m.want(t, map[string]float64{
		`decisions_total{result="bound"}`:         3,
		`decisions_total{result="unschedulable"}`: 2,
		`decisions_total{result="invalid"}`:       1,
		`searches_total{scope="all"}`:             5,
		// Once for each pod, though nodes lack space in more than one way.
		`unschedulable_reasons_total{class="ssd",reason="extent_too_small"}`: 2,
		`unschedulable_reasons_total{class="ssd",reason="too_little_space"}`: 1,
		`unschedulable_reasons_total{class="",reason="no_agent"}`:            2,

		`plan_duration_seconds{step="search"}`:  5,
		`plan_duration_seconds{step="reserve"}`: 3,
		`replaced_volumes_total`:                0,
		`publish_delay_seconds`:                 2,

		`nodes{state="published"}`:               float64(len(offering)),
		`nodes{state="contradictory"}`:           0,
		`usable_bytes{class="ssd"}`:              float64(1536 * units.GiB),
		`free_bytes{class="ssd"}`:                float64(507 * units.GiB),
		`free_extents{class="ssd"}`:              11,
		`largest_free_extent_bytes{class="ssd"}`: float64(128 * units.GiB),
		`fragmentation_ratio{class="ssd"}`:       1 - 501.0/507,
		`unpublished_volumes`:                    2,
		`waiting_pods{class="ssd"}`:              2,
		`waiting_pods{class=""}`:                 1,
	})
	for _, node := range []string{"sim-9", "sim-11"} {
		if have := m.byLabel[fmt.Sprintf("node_lag_seconds{node=%q}", node)]; have < 10 || have > m.byLabel["oldest_unpublished_volume_age_seconds"] {
			t.Errorf("node %s lags %v s", node, have)
		}
	}

	// It publishes at last.
	silent.setSilent(false)
	silent.must(t, silent.publish(t.Context()))
	s.eventually(t, func(context.Context) error {
		m = s.metrics(t, "scheduler")
		if _, lags := m.byLabel[`node_lag_seconds{node="sim-11"}`]; lags || m.byLabel["publish_delay_seconds"] != 3 {
			return fmt.Errorf("node sim-11 lags: %v, %v delays", lags, m.byLabel["publish_delay_seconds"])
		}
		return nil
	})
	m.want(t, map[string]float64{"unpublished_volumes": 1, "lagging_nodes": 1})
}

// removeClaims ends the claims of the namespace and what was made for them.
func (s *schedulers) removeClaims(t *testing.T) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	s.clear(t)
	var claims corev1.PersistentVolumeClaimList
	if err := s.client.List(ctx, &claims, client.InNamespace(schedulerTests)); err != nil {
		t.Error(err)
	}
	for i := range claims.Items {
		pvc := &claims.Items[i]
		volume := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: pvc.Spec.VolumeName}}
		for _, o := range []client.Object{pvc, volume} {
			if o.GetName() == "" {
				continue
			}
			finalizers := []byte(`{"metadata":{"finalizers":null}}`)
			if err := errors.Join(s.client.Delete(ctx, o), client.IgnoreNotFound(s.client.Patch(ctx, o, client.RawPatch("application/merge-patch+json", finalizers)))); err != nil {
				t.Error(err)
			}
		}
	}
}

func diskPodOf(name, class string) *corev1.Pod {
	pod := diskPod(name, 1)
	pod.Spec.Volumes[0].CSI.VolumeAttributes[diskv1alpha1.AttributeClass] = class
	return pod
}

func withVolumeOf(pod *corev1.Pod, name string, sizeGiB int64) *corev1.Pod {
	pod.Spec.Volumes = append(pod.Spec.Volumes, objects.InlineVolume(name, "ssd", objects.GiB(sizeGiB)))
	return pod
}

// samples are what a scheduler's /metrics says.
type samples struct {
	text    []byte
	byLabel map[string]float64
}

// metrics asks a scheduler that the cluster runs, at its secure address.
func (s *schedulers) metrics(t *testing.T, component string) samples {
	t.Helper()
	pid, err := s.cluster.PID(component)
	if err != nil {
		t.Fatal(err)
	}
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		t.Fatal(err)
	}
	var address, port string
	for arg := range strings.SplitSeq(string(line), "\x00") {
		if value, ok := strings.CutPrefix(arg, "--bind-address="); ok {
			address = value
		}
		if value, ok := strings.CutPrefix(arg, "--secure-port="); ok {
			port = value
		}
	}
	// It serves with a certificate that it makes itself, and asks the API server who is asking:
	// right after its start it cannot know what that one may do, and refuses.
	config := s.cluster.RESTConfig()
	config.Insecure, config.CAFile, config.CAData = true, "", nil
	asking, err := rest.HTTPClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	var text []byte
	err = cluster.Eventually(t.Context(), patience, func(ctx context.Context) error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+address+":"+port+"/metrics", http.NoBody)
		if err != nil {
			return err
		}
		answer, err := asking.Do(request)
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		if text, err = io.ReadAll(answer.Body); err == nil && answer.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s: %s", answer.Status, text)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return samples{text: text, byLabel: parse(t, text)}
}

// parse reads our samples, by name and labels; of a histogram, how many were observed.
func parse(t *testing.T, text []byte) map[string]float64 {
	t.Helper()
	families, err := testutil.TextToMetricFamilies(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]float64{}
	for name, family := range families {
		name, ours := strings.CutPrefix(name, "berth_scheduler_")
		for _, m := range family.GetMetric() {
			if !ours {
				continue
			}
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			key := name
			if len(labels) > 0 {
				key += "{" + strings.Join(labels, ",") + "}"
			}
			found[key] = m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return found
}

// lint holds names, units and help to what Prometheus wants.
func (m samples) lint(t *testing.T) {
	t.Helper()
	problems, err := testutil.NewPromLinter(bytes.NewReader(m.text)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	problems = slices.DeleteFunc(problems, func(p testutil.Problem) bool { return !strings.HasPrefix(p.Metric, "berth_") })
	if len(problems) > 0 {
		t.Errorf("lint: %v", problems)
	}
}

func (m samples) want(t *testing.T, want map[string]float64) {
	t.Helper()
	for name, value := range want {
		if have, ok := m.byLabel[name]; !ok || math.Abs(have-value) > 1e-9*value {
			t.Errorf("berth_scheduler_%s is %v (there: %v), want %v", name, have, ok, value)
		}
	}
}
