package diskcapacity

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"
	st "k8s.io/kubernetes/pkg/scheduler/testing"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/ledger"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// TestPublicationWakes asserts that a publication wakes the pods that fit since then, and not those that fitted before
// and that another plugin refuses there.
func TestPublicationWakes(t *testing.T) {
	two := func(name string, sizeGiB int64) *corev1.Pod {
		return withVolume(podOf(name, sizeGiB), "more", fmt.Sprintf("%dGi", sizeGiB), "ssd")
	}
	free := func(sizeGiB int64) func(*bench) *diskv1alpha1.NodeDiskCapacity {
		return func(b *bench) *diskv1alpha1.NodeDiskCapacity { return b.capacity("n1", sizeGiB) }
	}
	other := podOf("other", 4)
	tests := map[string]struct {
		pod      *corev1.Pod
		old, now func(b *bench) *diskv1alpha1.NodeDiskCapacity
		prepare  func(t *testing.T, b *bench)
		want     bool
	}{
		"nothing changed":         {podOf("a", 6), free(10), free(10), nil, false},
		"less":                    {podOf("a", 6), free(10), free(8), nil, false},
		"more, but enough before": {podOf("a", 6), free(6), free(10), nil, false},
		"grown to the request":    {podOf("a", 6), free(5), free(6), nil, true},
		"not yet":                 {podOf("a", 6), free(2), free(5), nil, false},
		"grown for one of two":    {two("a", 3), free(3), free(5), nil, false},
		"grown for both":          {two("a", 3), free(5), free(6), nil, true},
		"a node that is new":      {podOf("a", 6), nil, free(10), nil, true},
		"was nonsense": {podOf("a", 6), func(b *bench) *diskv1alpha1.NodeDiskCapacity {
			ndc := b.capacity("n1", 10)
			ndc.Status.Disks[0].Size = 1
			return ndc
		}, free(10), nil, true},
		"moved, and large enough now": {podOf("a", 6), func(b *bench) *diskv1alpha1.NodeDiskCapacity {
			ndc := b.capacity("n1", 5)
			ndc.Status.Disks[0].Free = append(ndc.Status.Disks[0].Free, diskv1alpha1.Extent{Start: diskv1alpha1.Alignment + 8*units.GiB, Length: 4 * units.GiB})
			return ndc
		}, free(6), nil, true},
		"taken by a record before and now": {podOf("a", 7), free(8), free(10), func(t *testing.T, b *bench) { record(t, b, other, 0) }, false},
		"the record's place, which the node did not use": {podOf("a", 6), free(8), func(b *bench) *diskv1alpha1.NodeDiskCapacity {
			ndc := b.capacity("n1", 8)
			ndc.Status.Disks[0].Allocations = []diskv1alpha1.Allocation{volumeOf(other, 20, 4)}
			return ndc
		}, func(t *testing.T, b *bench) { record(t, b, other, 0) }, true},
		"of a class that is gone": {withVolume(st.MakePod().Namespace("default").Name("a").UID("a").Obj(), "data", "1Gi", "gone"), nil, func(b *bench) *diskv1alpha1.NodeDiskCapacity {
			ndc := b.capacity("n1", 10)
			ndc.Status.Disks[0].Class = "gone"
			return ndc
		}, nil, false},
		"without an agent": {podOf("a", 6), free(5), free(6), func(t *testing.T, b *bench) { b.agent(t, "n1") }, false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, nil, "n1")
			if test.old != nil {
				b.fold(t, test.old(b))
			}
			if test.prepare != nil {
				test.prepare(t, b)
			}
			b.store(t, test.pod)
			b.filter(t, test.pod)
			now := test.now(b)
			for i := range 2 { // the second time nothing changes
				b.fold(t, now)
				if want := test.want && i == 0; b.woken(test.pod) != want {
					t.Errorf("woken: %v, want %v", !want, want)
				}
			}
		})
	}
}

func (b *bench) fold(t testing.TB, ndc *diskv1alpha1.NodeDiskCapacity) {
	t.Helper()
	if err := b.plugin.feed.capacities.Add(ndc); err != nil {
		t.Fatal(err)
	}
}

// TestRequeueRounds asserts that of many pods that fit the same space no more are tried than fit together. The others
// are tried when those have not taken it, each once.
func TestRequeueRounds(t *testing.T) {
	const count = 100
	b := newBench(t, nil, "n1")
	b.publish(t, "n1", 1)
	pods := make([]*corev1.Pod, count)
	for i := range pods {
		pods[i] = podOf(fmt.Sprintf("pod-%d", i), 4)
		if i >= 90 { // they come last, and are more important
			priority := int32(10)
			pods[i].Spec.Priority = &priority
		}
		b.refuse(t, pods[i])
	}
	woken := func() (names []string) {
		for _, p := range pods {
			if b.woken(p) {
				names = append(names, p.Name)
			}
		}
		return names
	}
	expect := func(when string, want ...string) {
		t.Helper()
		if got := woken(); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: woken %v, want %v", when, got, want)
		}
	}
	b.publish(t, "n1", 9)
	expect("space for two", "pod-90", "pod-91")
	b.runLater()
	expect("the two were not tried yet")
	// One takes its place. Another plugin refuses the other.
	state, _ := b.filter(t, pods[90])
	if status := b.framework.RunReservePluginsReserve(b.ctx, state, pods[90], "n1"); !status.IsSuccess() {
		t.Fatal(status)
	}
	b.filter(t, pods[91])
	b.runLater()
	expect("one place is left, and one was in vain", "pod-92", "pod-93")
	b.filter(t, pods[92])
	b.filter(t, pods[93])
	b.runLater()
	expect("more were in vain", "pod-94", "pod-95", "pod-96")
	// Another pod takes it.
	record(t, b, podOf("other", 4), 4)
	for range 20 {
		b.runLater()
	}
	expect("the space is taken")
	if len(b.plugin.feed.waiting.requeues) > 0 {
		t.Error("the requeue is kept")
	}
}

// TestRequeueReachesAll asserts that all pods are tried in the end, so that the one that other plugins accept is among
// them.
func TestRequeueReachesAll(t *testing.T) {
	const count = 10_000
	b := newBench(t, nil, "n1")
	b.publish(t, "n1", 1)
	pods := make([]*corev1.Pod, count)
	for i := range pods {
		pods[i] = podOf(fmt.Sprintf("pod-%d", i), 4)
		b.refuse(t, pods[i])
	}
	b.publish(t, "n1", 5)
	rounds, woken := 0, 0
	for ; woken < count && rounds < 100; rounds++ {
		for _, p := range pods {
			if b.woken(p) {
				woken++
				b.filter(t, p) // it does not take it
			}
		}
		b.runLater()
	}
	if woken != count || rounds > 20 {
		t.Errorf("%d of %d pods were tried in %d rounds", woken, count, rounds)
	}
	if len(b.later) > 0 {
		t.Error("there is a round more when all were tried")
	}
}

// TestWokenByLateWatch asserts that a pod is woken that is being tried, or was just created, when the publication comes
// that makes space for it.
func TestWokenByLateWatch(t *testing.T) {
	b := newBench(t, nil, "n1")
	pod := podOf("a", 6)
	b.refuse(t, pod)
	if b.publish(t, "n1", 6); !b.woken(pod) {
		t.Error("a publication that comes after the try does not wake the pod")
	}
	gone := podOf("gone", 6)
	b.refuse(t, withVolume(podOf("two", 6), "more", "1Gi", "ssd"))
	b.filter(t, gone) // deleted before: not in the store
	if b.plugin.feed.waiting.attemptOf(gone.UID) != nil {
		t.Error("a pod that is gone is remembered")
	}
}

// TestClassWakes asserts that a new DiskClass wakes the pods that name it.
func TestClassWakes(t *testing.T) {
	b := newBench(t, nil, "n1")
	pod := podOf("a", 6)
	tape := withVolume(st.MakePod().Namespace("default").Name("b").UID("b").Obj(), "data", "1Gi", "tape")
	b.refuse(t, pod)
	b.refuse(t, tape)
	class := &diskv1alpha1.DiskClass{}
	class.Name = "tape"
	if err := b.plugin.feed.classes.Add(class); err != nil {
		t.Fatal(err)
	}
	if b.woken(pod) {
		t.Error("woken by a class that the pod does not want")
	}
	if !b.woken(tape) {
		t.Error("not woken by the class it wants")
	}
}

// TestPodsOfOtherReasonsAreNotWoken asserts that a pod that only other plugins refuse is not woken when a node has more
// free space.
func TestPodsOfOtherReasonsAreNotWoken(t *testing.T) {
	b := newBench(t, nil, "n1")
	b.publish(t, "n1", 10)
	pod := podOf("a", 6)
	b.store(t, pod)
	state, _ := b.filter(t, pod)
	b.framework.RunPostFilterPlugins(b.ctx, state, pod, nil)
	b.publish(t, "n1", 5)
	if b.publish(t, "n1", 10); b.woken(pod) {
		t.Error("woken by free space, which it does not lack")
	}
}

// TestManyDistinctRequestsAreAllWoken asserts that a publication wakes all pods that fit, also when there are more
// distinct requests than it makes plans for.
func TestManyDistinctRequestsAreAllWoken(t *testing.T) {
	b := newBench(t, nil, "n1")
	b.publish(t, "n1", 1)
	var pods []*corev1.Pod
	for i := range 3 * maxPlansPerEvent {
		pod := podWith(fmt.Sprint("pod-", i), 9, func(v int) int64 { return int64(600 + 10*v + i%7) })
		pod.Spec.Volumes[0].CSI.VolumeAttributes[diskv1alpha1.AttributeSize] = fmt.Sprintf("%dMi", 700+i)
		b.refuse(t, pod)
		pods = append(pods, pod)
	}
	b.publish(t, "n1", 100)
	woken := map[string]bool{}
	for range 500 {
		for _, pod := range pods {
			if b.woken(pod) {
				woken[pod.Name] = true
				b.plugin.feed.waiting.forget(pod.UID)
			}
		}
		if len(b.later) == 0 {
			break
		}
		b.runLater()
	}
	if len(woken) != len(pods) {
		t.Errorf("%d of %d pods were woken", len(woken), len(pods))
	}
}

// TestHintsOfManyDistinctRequests asserts that hints make a bounded number of plans, and that the pods that are left
// are checked outside of the hint.
func TestHintsOfManyDistinctRequests(t *testing.T) {
	b := newBench(t, nil, "n1")
	b.publish(t, "n1", 1)
	var pods []*corev1.Pod
	for i := range 2 * maxPlansPerEvent {
		pod := podOf(fmt.Sprint("pod-", i), int64(2+i%3))
		pod.Spec.Volumes[0].CSI.VolumeAttributes[diskv1alpha1.AttributeSize] = fmt.Sprintf("%dMi", 2048+i)
		b.refuse(t, pod)
		pods = append(pods, pod)
	}
	b.plugin.ledger.SetCapacity("n1", &ledger.Capacity{Revision: 1000, Disks: []ledger.Disk{{
		ID: diskOf("n1"), Class: "ssd", Ready: true, Size: 1 << 50, Free: []extent.Extent{extent.New(diskv1alpha1.Alignment, 10*units.GiB)},
	}}})
	var activated atomic.Int64
	done := make(chan struct{}, 1)
	b.plugin.feed.activate = func(_ klog.Logger, pods map[string]*corev1.Pod) {
		activated.Add(int64(len(pods)))
		done <- struct{}{}
	}
	queued := 0
	for _, pod := range pods {
		if b.plugin.queueIfFits(pod, "n1") == fwk.Queue {
			queued++
		}
	}
	if queued != maxPlansPerEvent {
		t.Errorf("hints queue %d pods, want %d", queued, maxPlansPerEvent)
	}
	testenv.Receive(t, "the requeue of the pods that are left", done)
}

// BenchmarkPublicationWorst has a node publish while ten thousand pods wait, each of which requests other sizes for
// sixteen volumes, or for another number. Target: 10 ms.
func BenchmarkPublicationWorst(b *testing.B) {
	for _, volumes := range []int{1, 3, 8, 9, 16, 64} {
		b.Run(fmt.Sprintf("volumes=%d", volumes), func(b *testing.B) {
			env := newBench(b, nil, "n1")
			env.publish(b, "n1", 1)
			for i := range 10_000 {
				pod := podWith(fmt.Sprint("pod-", i), volumes, func(v int) int64 { return int64(9*1024/volumes - v%9*7 + i%97) })
				env.await(b, pod)
			}
			var longest time.Duration
			for i := 0; b.Loop(); i++ {
				start := time.Now()
				env.publish(b, "n1", int64(9+i%2*2))
				longest = max(longest, time.Since(start))
			}
			b.ReportMetric(float64(longest.Microseconds())/1000, "ms/longest")
		})
	}
}

// await makes the pod wait, as if it had been refused.
func (b *bench) await(t testing.TB, pod *corev1.Pod) {
	t.Helper()
	if err := b.plugin.feed.pods.Add(pod); err != nil {
		t.Fatal(err)
	}
	attempt := b.plugin.feed.waiting.begin(pod)
	req, err := b.plugin.feed.requestOf(pod)
	if err != nil {
		t.Fatal(err)
	}
	b.plugin.feed.waiting.setRequest(attempt, b.plugin.newState(pod, req))
}

// BenchmarkPublication has a node publish while ten thousand pods wait.
func BenchmarkPublication(b *testing.B) {
	for _, bench := range []struct {
		name string
		size func(i int) int64
	}{
		{"alike", func(int) int64 { return 100 }},
		{"all different", func(i int) int64 { return int64(100 + i) }},
	} {
		b.Run(bench.name, func(b *testing.B) {
			env := newBench(b, nil, "n1")
			env.publish(b, "n1", 1)
			for i := range 10_000 {
				env.await(b, podOf(fmt.Sprintf("pod-%d", i), bench.size(i)))
			}
			for _, grows := range []bool{true, false} {
				b.Run(fmt.Sprintf("grows=%v", grows), func(b *testing.B) {
					b.ReportAllocs()
					for i := 0; b.Loop(); i++ {
						size := int64(10)
						if grows {
							size += int64(i) % 2
						}
						env.publish(b, "n1", size)
					}
				})
			}
		})
	}
}
