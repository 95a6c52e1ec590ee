package diskcapacity

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/framework"
	st "k8s.io/kubernetes/pkg/scheduler/testing"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/request"
	"github.com/berthdev/berth/test/testenv"
)

// TestFilter asserts for each node whether the pod fits, what the message says, and whether preemption may help.
func TestFilter(t *testing.T) {
	const never, notNow = fwk.UnschedulableAndUnresolvable, fwk.Unschedulable
	type want struct {
		code fwk.Code
		says string
	}
	plain := st.MakePod().Namespace("default").Name("plain").UID("plain").Obj()
	tests := map[string]struct {
		pod     *corev1.Pod
		prepare func(t *testing.T, b *bench)
		want    want
	}{
		"exact fit":         {podOf("a", 10), nil, want{fwk.Success, ""}},
		"too large now":     {podOf("a", 8), func(t *testing.T, b *bench) { b.publish(t, "n1", 7, volumeOf(podOf("x", 3), 0, 3)) }, want{notNow, "largest free extent of class ssd is 7Gi, wants 8Gi"}},
		"too large for all": {podOf("a", 11), nil, want{never, "largest free extent of class ssd is 10Gi, wants 11Gi"}},
		"two together": {withVolume(podOf("a", 6), "more", "6Gi", "ssd"), nil,
			want{never, "free space of class ssd is 10Gi"}},
		"no disk of the class": {withVolume(st.MakePod().Name("a").UID("a").Obj(), "data", "1Gi", "hdd"), nil, want{never, "no disk of class hdd"}},
		"no such class": {withVolume(st.MakePod().Name("a").UID("a").Obj(), "data", "1Gi", "tape"), nil,
			want{never, `volume "data": DiskClass "tape" does not exist: there are hdd, ssd`}},
		"size missing": {withVolume(st.MakePod().Name("a").UID("a").Obj(), "data", "", "ssd"), nil,
			want{never, `volume "data": attribute disk.berth.dev/size is missing: set it to a size such as 10Gi`}},
		"size malformed": {withVolume(st.MakePod().Name("a").UID("a").Obj(), "data", "10Gib", "ssd"), nil, want{never, `"10Gib", which is not a size`}},
		"size absurd":    {withVolume(st.MakePod().Name("a").UID("a").Obj(), "data", "9223372036854775808", "ssd"), nil, want{never, "no disk is that large"}},
		"300 volumes":    {manyVolumes(300), nil, want{never, "the pod has 300 volumes of disk.berth.dev, at most 256 are possible"}},
		"100 volumes":    {manyVolumes(100), nil, want{fwk.Success, ""}},
		"a very long class": {withVolume(st.MakePod().Name("a").UID("a").Obj(), "data", "1Gi", strings.Repeat("x", 1<<20)), nil,
			want{never, `xxx" does not exist: there are hdd, ssd`}},
		"a very long attribute": {func() *corev1.Pod {
			pod := podOf("a", 1)
			pod.Spec.Volumes[0].CSI.VolumeAttributes[strings.Repeat("x", 1<<20)] = "1"
			return pod
		}(), nil, want{never, `xxx": the attributes are`}},
		"2^63 bytes and more": {podOf("a", 1<<33), nil, want{never, "no disk is that large"}},
		"sum beyond int64": {withVolume(withVolume(st.MakePod().Name("a").UID("a").Obj(), "data", "5Ei", "ssd"), "more", "5Ei", "ssd"), nil,
			want{never, "largest free extent of class ssd is 10Gi, wants 5Ei"}},
		"agent not registered": {podOf("a", 1), func(t *testing.T, b *bench) { b.agent(t, "n1", "other.example.com") },
			want{never, "the agent of Berth is not registered with the kubelet of this node"}},
		"not published": {podOf("a", 1), func(_ *testing.T, b *bench) { b.plugin.ledger.DeleteCapacity("n1", 100) }, want{never, "has not published"}},
		"invalid capacity published": {podOf("a", 1), func(t *testing.T, b *bench) {
			ndc := b.capacity("n1", 10)
			ndc.Status.Disks[0].Size = 1
			if err := b.plugin.feed.capacities.Add(ndc); err != nil {
				t.Fatal(err)
			}
		}, want{never, "contradicts itself: disk " + diskOf("n1") + ": free extent"}},
		"not loaded yet": {podOf("a", 1), func(_ *testing.T, b *bench) { b.plugin.feed.capacities.listed.Store(false) },
			want{fwk.Error, "not loaded yet"}},
		"not ours": {plain, func(t *testing.T, b *bench) {
			b.agent(t, "n1")
			b.plugin.ledger.DeleteCapacity("n1", 100)
			b.plugin.feed.capacities.listed.Store(false)
		}, want{fwk.Success, ""}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, nil, "n1")
			b.publish(t, "n1", 10)
			if test.prepare != nil {
				test.prepare(t, b)
			}
			_, statuses := b.filter(t, test.pod)
			s := statuses["n1"]
			if s.Code() != test.want.code || !strings.Contains(s.Message(), test.want.says) {
				t.Errorf("got %v %q, want %v %q", s.Code(), s.Message(), test.want.code, test.want.says)
			}
			if len(s.Message()) > 300 {
				t.Errorf("a message of %d bytes", len(s.Message()))
			}
		})
	}
}

func manyVolumes(count int) *corev1.Pod {
	pod := st.MakePod().Namespace("default").Name("many").UID("many").Obj()
	for i := range count {
		withVolume(pod, fmt.Sprint("data-", i), "100Mi", "ssd")
	}
	return pod
}

// TestManyVolumes asserts that the largest number of volumes with the longest names fits into a record.
func TestManyVolumes(t *testing.T) {
	b := newBench(t, nil, "n1")
	b.publish(t, "n1", 100)
	pod := manyVolumes(diskv1alpha1.MaxVolumes)
	for i := range pod.Spec.Volumes {
		pod.Spec.Volumes[i].Name = fmt.Sprintf("%063d", i)
	}
	state, _ := b.filter(t, pod)
	if status := b.framework.RunReservePluginsReserve(b.ctx, state, pod, "n1"); !status.IsSuccess() {
		t.Fatal(status)
	}
	value, err := b.plugin.encodeRecord(pod, "n1", mustVolumes(t, pod))
	if err != nil {
		t.Fatal(err)
	}
	pod.Spec.NodeName = "n1"
	pod.Annotations = map[string]string{diskv1alpha1.AnnotationAllocation: value}
	if records, err := recordsOf(pod); err != nil || len(records) != diskv1alpha1.MaxVolumes {
		t.Errorf("%d records, %v, of an annotation of %d bytes", len(records), err, len(value))
	}
}

// TestReasonsOfManyNodes asserts that nodes with the same reason are counted, not listed, and that the nearest one is
// named.
func TestReasonsOfManyNodes(t *testing.T) {
	var names []string
	for i := range 12 {
		names = append(names, fmt.Sprint("n", i))
	}
	b := newBench(t, nil, names...)
	for i, name := range names {
		taken := volumeOf(podOf("x", 90), 0, 90)
		b.publish(t, name, int64(i+1), taken)
	}
	pod := podOf("a", 60)
	state, statuses := b.filter(t, pod)
	byNode := framework.NewDefaultNodeToStatus()
	for node, status := range statuses {
		byNode.Set(node, status)
		if have := status.Message(); have != "largest free extent of class ssd is below 60Gi" {
			t.Errorf("node %s says %q", node, have)
		}
	}
	_, status := b.framework.RunPostFilterPlugins(b.ctx, state, pod, byNode)
	if have, want := status.Message(), "Best is 12Gi on n11"; have != want {
		t.Errorf("all together say %q, want %q", have, want)
	}
}

// TestWaitsInVainOnce asserts that only one pod waits for the informers in vain: while it waits, no pod of any profile
// is scheduled.
func TestWaitsInVainOnce(t *testing.T) {
	b := newBench(t, nil, "n1")
	b.plugin.feed.classes.listed.Store(false)
	if err := b.plugin.feed.waitForSync(b.ctx, time.Millisecond); err == nil {
		t.Fatal("it did not wait")
	}
	ended := make(chan error, 1)
	go func() { ended <- b.plugin.feed.waitForSync(b.ctx, time.Hour) }()
	if err := testenv.Receive(t, "the second pod", ended); err == nil {
		t.Error("it found the informers in sync")
	}
	b.plugin.feed.classes.listed.Store(true)
	if err := b.plugin.feed.waitForSync(b.ctx, time.Minute); err != nil {
		t.Error(err)
	}
}

func TestPlainPodIsSkipped(t *testing.T) {
	b := newBench(t, nil, "n1")
	pod := st.MakePod().Namespace("default").Name("plain").UID("plain").Obj()
	state := framework.NewCycleState()
	if _, status, _ := b.framework.RunPreFilterPlugins(b.ctx, state, pod); !status.IsSuccess() {
		t.Fatal(status)
	}
	if !state.GetSkipFilterPlugins().Has(Name) {
		t.Error("Filter is not skipped")
	}
	if status := b.framework.RunPreScorePlugins(b.ctx, state, pod, b.nodes); !status.IsSuccess() {
		t.Fatal(status)
	}
	if !state.GetSkipScorePlugins().Has(Name) {
		t.Error("Score is not skipped")
	}
	if status := b.framework.RunReservePluginsReserve(b.ctx, state, pod, "n1"); !status.IsSuccess() {
		t.Error(status)
	}
	b.framework.RunReservePluginsUnreserve(b.ctx, state, pod, "n1")
	if status := b.plugin.Bind(b.ctx, state, pod, "n1"); !status.IsSkip() {
		t.Errorf("Bind says %v, want Skip", status)
	}
	if fragments, status := b.plugin.SignPod(b.ctx, pod); fragments != nil || status != nil {
		t.Errorf("SignPod says %v, %v", fragments, status)
	}
	if _, status := b.plugin.SignPod(b.ctx, podOf("a", 1)); status.Code() != fwk.Unschedulable {
		t.Errorf("SignPod of a disk pod says %v", status)
	}
}

func TestScorePrefersTheTightestFit(t *testing.T) {
	b := newBench(t, nil, "wide", "tight", "exact")
	b.publish(t, "wide", 100)
	b.publish(t, "tight", 12)
	b.publish(t, "exact", 10)
	pod := podOf("a", 10)
	state, _ := b.filter(t, pod)
	if status := b.framework.RunPreScorePlugins(b.ctx, state, pod, b.nodes); !status.IsSuccess() {
		t.Fatal(status)
	}
	list, status := b.framework.RunScorePlugins(b.ctx, state, pod, b.nodes)
	if !status.IsSuccess() {
		t.Fatal(status)
	}
	score := map[string]int64{}
	for _, s := range list {
		score[s.Name] = s.TotalScore
	}
	if score["exact"] <= score["tight"] || score["tight"] <= score["wide"] {
		t.Errorf("scores are %v, want exact > tight > wide", score)
	}
}

func TestReserveTakesSpaceAndUnreserveGivesItBack(t *testing.T) {
	b := newBench(t, nil, "n1")
	b.publish(t, "n1", 10)
	first, second := podOf("a", 6), podOf("b", 6)
	state, _ := b.filter(t, first)
	late, statuses := b.filter(t, second)
	if !statuses["n1"].IsSuccess() {
		t.Fatal(statuses["n1"])
	}
	for range 2 { // re-runnable
		if status := b.framework.RunReservePluginsReserve(b.ctx, state, first, "n1"); !status.IsSuccess() {
			t.Fatal(status)
		}
	}
	if status := b.framework.RunReservePluginsReserve(b.ctx, late, second, "n1"); status.Code() != fwk.Error {
		t.Errorf("a reservation of space that was taken meanwhile: %v, want an error, which is retried soon", status)
	}
	b.framework.RunReservePluginsUnreserve(b.ctx, late, second, "n1")
	if _, statuses := b.filter(t, second); statuses["n1"].Code() != fwk.Unschedulable {
		t.Errorf("the space is reserved, yet %v", statuses["n1"])
	}
	b.framework.RunReservePluginsUnreserve(b.ctx, state, first, "n1")
	b.framework.RunReservePluginsUnreserve(b.ctx, state, first, "n1")
	if _, statuses := b.filter(t, second); !statuses["n1"].IsSuccess() {
		t.Errorf("the space was given back, yet %v", statuses["n1"])
	}
}

// TestPreemption runs the steps of DefaultPreemption: it removes victims on clones, for many nodes in parallel, and
// adds those again that can stay.
func TestPreemption(t *testing.T) {
	b := newBench(t, nil, "n1", "n2")
	published, recorded := podOf("published", 4), podOf("recorded", 3)
	published.Spec.NodeName, recorded.Spec.NodeName = "n1", "n1"
	b.publish(t, "n1", 6, volumeOf(published, 0, 4))
	b.publish(t, "n2", 3)
	if _, err := b.plugin.ledger.Reserve(string(recorded.UID), "n1", volumeRequestsOf(mustVolumes(t, recorded))); err != nil {
		t.Fatal(err)
	}
	pod := podOf("important", 6)
	state, statuses := b.filter(t, pod)
	if code := statuses["n1"].Code(); code != fwk.Unschedulable {
		t.Fatalf("n1 says %v, want Unschedulable: preemption could help", code)
	}
	if code := statuses["n2"].Code(); code != fwk.UnschedulableAndUnresolvable {
		t.Fatalf("n2 says %v, want UnschedulableAndUnresolvable: it is too small", code)
	}
	info := func(pod *corev1.Pod) fwk.PodInfo {
		out, err := framework.NewPodInfo(pod)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	node := b.node("n1")
	fits := func(state fwk.CycleState) bool {
		return b.framework.RunFilterPlugins(b.ctx, state, pod, node).IsSuccess()
	}
	done := make(chan struct{})
	for range 4 {
		go func() {
			defer func() { done <- struct{}{} }()
			mine := state.Clone()
			b.framework.RunPreFilterExtensionRemovePod(b.ctx, mine, pod, info(published), node)
			if fits(mine) {
				t.Error("fits without the published pod alone: 4 and 3 GiB lie apart")
			}
			b.framework.RunPreFilterExtensionRemovePod(b.ctx, mine, pod, info(recorded), node)
			if !fits(mine) {
				t.Error("does not fit without both")
			}
			b.framework.RunPreFilterExtensionAddPod(b.ctx, mine, pod, info(published), node)
			if !fits(mine) {
				t.Error("does not fit without the recorded pod alone")
			}
			b.framework.RunPreFilterExtensionAddPod(b.ctx, mine, pod, info(recorded), node)
			if fits(mine) {
				t.Error("fits although all are back")
			}
		}()
	}
	for range 4 {
		testenv.Receive(t, "a clone", done)
	}
	if fits(state) {
		t.Error("the clones changed the original")
	}
}

func TestNominatedPodsAreCountedOnce(t *testing.T) {
	b := newBench(t, nil, "n1")
	b.publish(t, "n1", 10)
	waiting := podOf("waiting", 4)
	b.nominated.nominate(t, "n1", waiting)
	b.nominated.nominate(t, "n1", waiting)
	if _, statuses := b.filter(t, podOf("a", 6)); !statuses["n1"].IsSuccess() {
		t.Errorf("4 GiB of 10 are kept, but not 6 free: %v", statuses["n1"])
	}
	if _, statuses := b.filter(t, podOf("b", 7)); statuses["n1"].IsSuccess() {
		t.Error("7 of 10 GiB fit although 4 are kept")
	}
	// Once the pod has reserved, the ledger counts it.
	state, _ := b.filter(t, waiting)
	if status := b.framework.RunReservePluginsReserve(b.ctx, state, waiting, "n1"); !status.IsSuccess() {
		t.Fatal(status)
	}
	if _, statuses := b.filter(t, podOf("c", 6)); !statuses["n1"].IsSuccess() {
		t.Errorf("the nominated pod is counted twice: %v", statuses["n1"])
	}
}

// TestNominatedPodsKeepWhatTheyWaitFor asserts that a pod that has preempted another keeps the free space beside the
// other's, which it needs, too. No less important pod may take that meanwhile.
func TestNominatedPodsKeepWhatTheyWaitFor(t *testing.T) {
	ending := podOf("ending", 4)
	ending.Spec.NodeName = "n1"
	tests := map[string]struct {
		phase  diskv1alpha1.AllocationPhase
		onNode *corev1.Pod
		small  bool // a pod of 1 GiB fits
	}{
		"still running":  {diskv1alpha1.PhaseFormatted, ending, true},
		"being deleted":  {diskv1alpha1.PhaseFormatted, func() *corev1.Pod { p := ending.DeepCopy(); p.DeletionTimestamp = &metav1.Time{}; return p }(), false},
		"being wiped":    {diskv1alpha1.PhaseWiping, nil, false},
		"gone and wiped": {"", nil, false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, nil, "n1")
			volume := volumeOf(ending, 0, 4)
			volume.Phase = test.phase
			if test.phase == "" {
				b.publish(t, "n1", 8)
			} else {
				b.publish(t, "n1", 4, volume)
			}
			if test.onNode != nil {
				b.node("n1").(*framework.NodeInfo).AddPod(test.onNode)
			}
			b.nominated.nominate(t, "n1", podOf("waiting", 8))
			if _, statuses := b.filter(t, podOf("small", 1)); statuses["n1"].IsSuccess() != test.small {
				t.Errorf("a small pod gets %v, want it to fit: %v", statuses["n1"], test.small)
			}
		})
	}
}

func (b *bench) node(name string) fwk.NodeInfo {
	return b.nodes[slices.IndexFunc(b.nodes, func(n fwk.NodeInfo) bool { return n.Node().Name == name })]
}

func mustVolumes(t testing.TB, pod *corev1.Pod) []request.Volume {
	t.Helper()
	volumes, err := request.FromPod(pod)
	if err != nil {
		t.Fatal(err)
	}
	return volumes
}

// TestStatusesAreNotShared asserts that each call returns its own status, because the framework writes into it.
func TestStatusesAreNotShared(t *testing.T) {
	b := newBench(t, nil, "n1", "n2")
	_, statuses := b.filter(t, podOf("a", 1))
	if len(slices.Collect(maps.Values(statuses))) != 2 || statuses["n1"] == statuses["n2"] {
		t.Error("two nodes have the same *Status")
	}
}
