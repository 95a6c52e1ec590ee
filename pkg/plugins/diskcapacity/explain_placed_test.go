package diskcapacity

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/util/flowcontrol"
	"k8s.io/component-base/metrics/testutil"
	fwk "k8s.io/kube-scheduler/framework"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

// place runs a pod's cycle to its end on a node, as if it were bound there.
func (b *bench) place(t testing.TB, pod *corev1.Pod, node string) fwk.CycleState {
	t.Helper()
	state, _ := b.filter(t, pod)
	if status := b.framework.RunReservePluginsReserve(b.ctx, state, pod, node); !status.IsSuccess() {
		t.Fatal(status)
	}
	b.framework.RunPostBindPlugins(b.ctx, state, pod, node)
	return state
}

// events are those that were recorded since.
func (b *bench) events() []string {
	var all []string
	for {
		select {
		case e := <-b.recorder.Events:
			all = append(all, e)
		default:
			return all
		}
	}
}

// TestPlacedEvent: the pod is told where its volumes are and what that leaves, in one event.
func TestPlacedEvent(t *testing.T) {
	disk := diskOf("n1")
	tests := map[string]struct {
		pod  func(*testing.T, *bench) *corev1.Pod
		want string
	}{
		"leaves some": {func(*testing.T, *bench) *corev1.Pod { return podOf("a", 6) },
			"Normal DiskPlaced volume data: 6Gi at 1Mi of ssd disk " + disk + ", leaves 4Gi of 10Gi free there"},
		"exactly": {func(*testing.T, *bench) *corev1.Pod { return podOf("a", 10) },
			"Normal DiskPlaced volume data: 10Gi at 1Mi of ssd disk " + disk + ", fills a free extent exactly"},
		"side by side": {func(*testing.T, *bench) *corev1.Pod { return withVolume(podOf("a", 6), "log", "1536Mi", "ssd") },
			"Normal DiskPlaced volume data: 6Gi at 1Mi of ssd disk " + disk + ", leaves 2560Mi of 10Gi free there; " +
				"volume log: 1536Mi at 6145Mi of ssd disk " + disk + ", leaves 2560Mi of 10Gi free there"},
		"of a claim": {func(t *testing.T, b *bench) *corev1.Pod {
			b.storageClass(t, "ssd", nil)
			b.claim(t, "data", "ssd", 6, nil)
			return claimPod("a", "data")
		}, "Normal DiskPlaced claim default/data: 6Gi at 1Mi of ssd disk " + disk + ", leaves 4Gi of 10Gi free there"},
		"a place of its own from before": {func(t *testing.T, b *bench) *corev1.Pod {
			b.storageClass(t, "ssd", nil)
			b.claim(t, "data", "ssd", 6, nil)
			b.reserve(t, claimPod("other", "data"), "n1")
			return withClaim(podOf("a", 1), "data")
		}, "Normal DiskPlaced volume data: 1Gi at 6145Mi of ssd disk " + disk + ", leaves 3Gi of 4Gi free there"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, nil, "n1")
			b.publish(t, "n1", 10)
			b.place(t, test.pod(t, b), "n1")
			if have := b.events(); len(have) != 1 || have[0] != test.want {
				t.Errorf("got  %q\nwant %q", have, test.want)
			}
		})
	}
}

// TestPlacedEventIsBounded: what the API server takes is 1024 bytes.
func TestPlacedEventIsBounded(t *testing.T) {
	b := newBench(t, nil, "n1")
	b.publish(t, "n1", 100)
	pod := manyVolumes(diskv1alpha1.MaxVolumes)
	for i := range pod.Spec.Volumes {
		pod.Spec.Volumes[i].Name = fmt.Sprintf("%063d", i)
	}
	b.place(t, pod, "n1")
	have := b.events()
	if len(have) != 1 {
		t.Fatalf("%d events", len(have))
	}
	note := strings.TrimPrefix(have[0], "Normal DiskPlaced ")
	named := strings.Count(note, "volume ")
	if len(note) > 1024 || named < 4 || !strings.HasSuffix(note, fmt.Sprintf("; and %d more", diskv1alpha1.MaxVolumes-named)) {
		t.Errorf("%d bytes: %s", len(note), note)
	}
}

// TestPlacedEventsAreFew: a burst does not cost the API server an event for each pod.
func TestPlacedEventsAreFew(t *testing.T) {
	withheld := func() float64 {
		value, err := testutil.GetCounterMetricValue(eventsWithheldTotal)
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
	b := newBench(t, nil, "n1")
	b.publish(t, "n1", 100)
	b.plugin.placements = flowcontrol.NewTokenBucketPassiveRateLimiter(0.001, 3)
	before := withheld()
	for i := range 5 {
		b.place(t, podOf(fmt.Sprint("pod-", i), 1), "n1")
	}
	if have := b.events(); len(have) != 3 || withheld()-before != 2 {
		t.Errorf("%d events, %v withheld, want 3 and 2", len(have), withheld()-before)
	}
	b.plugin.placements = nil
	b.place(t, podOf("off", 1), "n1")
	if have := b.events(); len(have) != 0 || withheld()-before != 2 {
		t.Errorf("turned off: %q, %v withheld", have, withheld()-before)
	}
}

func TestPlacementEventArgs(t *testing.T) {
	rate := func(n int32) *DiskCapacityArgs { return &DiskCapacityArgs{PlacementEventsPerSecond: &n} }
	for _, test := range []struct {
		given *DiskCapacityArgs
		want  int32
		ok    bool
	}{
		{&DiskCapacityArgs{}, 20, true},
		{rate(0), 0, true},
		{rate(1000), 1000, true},
		{rate(-1), -1, false},
	} {
		args, err := argsFrom(test.given)
		if (err == nil) != test.ok || *args.PlacementEventsPerSecond != test.want {
			t.Errorf("%d, %v, want %d", *args.PlacementEventsPerSecond, err, test.want)
		}
	}
}
