package diskcapacity

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	fwk "k8s.io/kube-scheduler/framework"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

// reserveCycle runs a pod's cycle up to Reserve on a node.
func (b *bench) reserveCycle(t testing.TB, pod *corev1.Pod, node string) fwk.CycleState {
	t.Helper()
	state, _ := b.filter(t, pod)
	if status := b.framework.RunReservePluginsReserve(b.ctx, state, pod, node); !status.IsSuccess() {
		t.Fatal(status)
	}
	return state
}

// describeReserved runs a pod's cycle to its end on a node, as if it were bound there. It returns what the event says
// about its places.
func (b *bench) describeReserved(t testing.TB, pod *corev1.Pod, node string) string {
	t.Helper()
	state := b.reserveCycle(t, pod, node)
	places := b.describePlaces(pod, 1000)
	b.framework.RunPostBindPlugins(b.ctx, state, pod, node)
	if again := b.describePlaces(pod, 1000); again != "" {
		t.Errorf("bound, and still: %s", again)
	}
	return places
}

func (b *bench) describePlaces(pod *corev1.Pod, most int) string {
	return (&Shared{feed: b.plugin.feed}).DescribePlaces(pod, most)
}

// TestDescribePlaces asserts that the event says where the pod's volumes are and what that leaves.
func TestDescribePlaces(t *testing.T) {
	disk := diskOf("n1")
	tests := map[string]struct {
		pod  func(*testing.T, *bench) *corev1.Pod
		want string
	}{
		"leaves some": {func(*testing.T, *bench) *corev1.Pod { return podOf("a", 6) },
			"volume data: 6Gi at 1Mi of ssd disk " + disk + ", leaves 4Gi of 10Gi free there"},
		"exactly": {func(*testing.T, *bench) *corev1.Pod { return podOf("a", 10) },
			"volume data: 10Gi at 1Mi of ssd disk " + disk + ", fills a free extent exactly"},
		"side by side": {func(*testing.T, *bench) *corev1.Pod { return withVolume(podOf("a", 6), "log", "1536Mi", "ssd") },
			"volume data: 6Gi at 1Mi of ssd disk " + disk + ", leaves 2560Mi of 10Gi free there; " +
				"volume log: 1536Mi at 6145Mi of ssd disk " + disk + ", leaves 2560Mi of 10Gi free there"},
		"of a claim": {func(t *testing.T, b *bench) *corev1.Pod {
			b.storageClass(t, "ssd", nil)
			b.claim(t, "data", "ssd", 6, nil)
			return claimPod("a", "data")
		}, "claim default/data: 6Gi at 1Mi of ssd disk " + disk + ", leaves 4Gi of 10Gi free there"},
		"a place of its own from before": {func(t *testing.T, b *bench) *corev1.Pod {
			b.storageClass(t, "ssd", nil)
			b.claim(t, "data", "ssd", 6, nil)
			b.reserve(t, claimPod("other", "data"), "n1")
			return withClaim(podOf("a", 1), "data")
		}, "volume data: 1Gi at 6145Mi of ssd disk " + disk + ", leaves 3Gi of 4Gi free there"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, nil, "n1")
			b.publish(t, "n1", 10)
			if have := b.describeReserved(t, test.pod(t, b), "n1"); have != test.want {
				t.Errorf("got  %q\nwant %q", have, test.want)
			}
		})
	}
}

// TestDescribePlacesIsBounded asserts that the text is cut to the given number of bytes, because an event has at most
// 1024.
func TestDescribePlacesIsBounded(t *testing.T) {
	b := newBench(t, nil, "n1")
	b.publish(t, "n1", 100)
	pod := manyVolumes(diskv1alpha1.MaxVolumes)
	for i := range pod.Spec.Volumes {
		pod.Spec.Volumes[i].Name = fmt.Sprintf("%063d", i)
	}
	places := b.describeReserved(t, pod, "n1")
	named := strings.Count(places, "volume ")
	if len(places) > 1000 || named < 4 || !strings.HasSuffix(places, fmt.Sprintf("; and %d more", diskv1alpha1.MaxVolumes-named)) {
		t.Errorf("%d bytes: %s", len(places), places)
	}
}

// TestDescribePlacesOfOtherPods asserts that the event is not extended for a pod without disk volumes, nor for one
// whose place was given up.
func TestDescribePlacesOfOtherPods(t *testing.T) {
	b := newBench(t, nil, "n1")
	b.publish(t, "n1", 10)
	pod := podOf("a", 1)
	if places := b.describePlaces(pod, 1000); places != "" {
		t.Errorf("not placed: %s", places)
	}
	state := b.reserveCycle(t, pod, "n1")
	if places := b.describePlaces(pod, 20); places != "" {
		t.Errorf("no space to say it: %s", places)
	}
	b.framework.RunReservePluginsUnreserve(b.ctx, state, pod, "n1")
	if places := b.describePlaces(pod, 1000); places != "" {
		t.Errorf("given up: %s", places)
	}
}
