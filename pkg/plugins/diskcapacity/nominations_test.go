package diskcapacity

import (
	"maps"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/framework"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// halfWiped has a node with [0,4) being wiped and [4,8) free, and a pod of so many GiB nominated for it.
func halfWiped(t *testing.T, nominatedGiB int64) *bench {
	t.Helper()
	b := newBench(t, nil, "n1", "n2")
	wiping := volumeOf(podOf("victim", 4), 0, 4)
	wiping.Phase = diskv1alpha1.PhaseWiping
	b.publish(t, "n1", 4, wiping)
	b.publish(t, "n2", 0)
	b.nominated.nominate(t, "n1", podOf("preemptor", nominatedGiB))
	return b
}

func (b *bench) tryReserve(t *testing.T, pod *corev1.Pod, node string) *fwk.Status {
	t.Helper()
	state, statuses := b.filter(t, pod)
	if !statuses[node].IsSuccess() {
		t.Fatalf("Filter refuses pod %s on %s: %v", pod.Name, node, statuses[node])
	}
	return b.framework.RunReservePluginsReserve(b.ctx, state, pod, node)
}

// TestReserveLeavesWhatIsKept asserts that Reserve leaves to a nominated pod what Filter keeps for it: the wiped bytes
// and the first two GiB behind them.
func TestReserveLeavesWhatIsKept(t *testing.T) {
	b := halfWiped(t, 6)
	small := podOf("small", 2)
	if status := b.tryReserve(t, small, "n1"); !status.IsSuccess() {
		t.Fatal(status)
	}
	_, records := b.plugin.ledger.Records(string(small.UID))
	if have, want := records[0].Extent.Start, diskv1alpha1.Alignment+6*units.GiB; have != want {
		t.Errorf("reserved at %d, want it at %d, behind what is kept", have, want)
	}
	// When the bytes are wiped, the nominated pod has its place.
	ndc := b.capacity("n1", 8)
	if err := b.plugin.feed.capacities.Add(ndc); err != nil {
		t.Fatal(err)
	}
	if status := b.tryReserve(t, podOf("preemptor", 6), "n1"); !status.IsSuccess() {
		t.Error(status)
	}
}

// TestReserveIgnoresLesserNominations asserts that a more important pod may take what is kept for a nominated one, as
// with the other resources.
func TestReserveIgnoresLesserNominations(t *testing.T) {
	b := halfWiped(t, 8)
	important := podOf("important", 4)
	important.Spec.Priority = new(int32(1000))
	if status := b.tryReserve(t, important, "n1"); !status.IsSuccess() {
		t.Error(status)
	}
}

// TestScoreCountsNominations asserts that the merit of a node is that of what the pod may use there.
func TestScoreCountsNominations(t *testing.T) {
	b := newBench(t, nil, "n1", "n2")
	b.publish(t, "n1", 10)
	b.publish(t, "n2", 8)
	b.nominated.nominate(t, "n1", podOf("waiting", 4))
	pod := podOf("a", 6)
	state, _ := b.filter(t, pod)
	for node, want := range map[string]int64{"n1": 0, "n2": -2 * units.GiB} {
		have, status := b.plugin.Score(b.ctx, state, pod, b.node(node))
		if !status.IsSuccess() || have != want {
			t.Errorf("the merit of %s is %d (%v), want %d", node, have, status, want)
		}
	}
}

// TestKeptSpaceRequeues asserts that a pod that was refused because of a nominated pod is woken. It is woken when the
// nominated pod goes elsewhere, or takes less than was kept for it.
func TestKeptSpaceRequeues(t *testing.T) {
	tests := map[string]struct {
		elsewhere func(*testing.T, *bench, *corev1.Pod)
		size      int64
		want      bool
	}{
		"it takes another node": {func(t *testing.T, b *bench, preemptor *corev1.Pod) {
			b.publish(t, "n2", 8)
			b.woken(podOf("small", 4))
			clear(b.nominated)
			if status := b.tryReserve(t, preemptor, "n2"); !status.IsSuccess() {
				t.Fatal(status)
			}
		}, 4, true},
		"it takes another extent of the node": {func(t *testing.T, b *bench, preemptor *corev1.Pod) {
			ndc := b.capacity("n1", 4, volumeOf(podOf("victim", 4), 0, 4))
			ndc.Status.Disks[0].Free = append(ndc.Status.Disks[0].Free, diskv1alpha1.Extent{Start: diskv1alpha1.Alignment + 20*units.GiB, Length: 8 * units.GiB})
			if err := b.plugin.feed.capacities.Add(ndc); err != nil {
				t.Fatal(err)
			}
			b.woken(podOf("small", 4))
			clear(b.nominated)
			if status := b.tryReserve(t, preemptor, "n1"); !status.IsSuccess() {
				t.Fatal(status)
			}
		}, 4, true},
		"it is still there": {func(*testing.T, *bench, *corev1.Pod) {}, 4, false},
		"too large for what was kept": {func(t *testing.T, b *bench, preemptor *corev1.Pod) {
			b.publish(t, "n2", 8)
			b.woken(podOf("small", 5))
			clear(b.nominated)
			if status := b.tryReserve(t, preemptor, "n2"); !status.IsSuccess() {
				t.Fatal(status)
			}
		}, 5, false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			b := halfWiped(t, 8)
			small := podOf("small", test.size)
			b.refuse(t, small)
			test.elsewhere(t, b, podOf("preemptor", 8))
			b.runLater()
			if b.woken(small) != test.want {
				t.Errorf("woken: %v, want %v", !test.want, test.want)
			}
		})
	}
}

// TestKeptSpaceRequeuesAfterDeletion asserts the same for a nominated pod that is deleted.
func TestKeptSpaceRequeuesAfterDeletion(t *testing.T) {
	b := halfWiped(t, 8)
	preemptor, small := podOf("preemptor", 8), podOf("small", 4)
	b.store(t, preemptor)
	b.refuse(t, small)
	woken := make(chan []string, 1)
	b.plugin.feed.activate = func(_ klog.Logger, pods map[string]*corev1.Pod) {
		woken <- slices.Sorted(maps.Keys(pods))
	}
	clear(b.nominated)
	b.removeFromStore(t, preemptor)
	b.plugin.feed.foldPod(klog.Background(), preemptor)
	if names := testenv.Receive(t, "the requeue", woken); !slices.Equal(names, []string{"default/small"}) {
		t.Errorf("%v were woken", names)
	}
}

// TestPublicationWakesDespiteNomination asserts that a publication wakes a pod that fitted before, on space that was
// kept.
func TestPublicationWakesDespiteNomination(t *testing.T) {
	b := halfWiped(t, 8)
	small := podOf("small", 4)
	b.refuse(t, small)
	b.publish(t, "n1", 20)
	if !b.woken(small) {
		t.Error("the pod was not woken")
	}
}

// TestPostFilterOfUnreadPod asserts that PostFilter ends the cycle of a pod that another plugin's PreFilter found
// unresolvable, and of no other. Plugins whose PreFilter did not run are then not called.
func TestPostFilterOfUnreadPod(t *testing.T) {
	b := newBench(t, nil, "n1")
	tests := map[string]struct {
		code    fwk.Code
		skipped bool
		want    fwk.Code
	}{
		"unresolvable":                      {fwk.UnschedulableAndUnresolvable, false, fwk.UnschedulableAndUnresolvable},
		"an eviction may help":              {fwk.Unschedulable, false, fwk.Unschedulable},
		"without disk volumes, and refused": {fwk.UnschedulableAndUnresolvable, true, fwk.Unschedulable},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			state := framework.NewCycleState()
			if test.skipped {
				state.SetSkipFilterPlugins(sets.New(Name))
			}
			statuses := framework.NewDefaultNodeToStatus()
			statuses.SetAbsentNodesStatus(fwk.NewStatus(test.code))
			if _, status := b.plugin.PostFilter(b.ctx, state, podOf("a", 1), statuses); status.Code() != test.want {
				t.Errorf("PostFilter says %v, want %v", status.Code(), test.want)
			}
		})
	}
}
