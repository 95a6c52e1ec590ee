package diskcapacity

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	st "k8s.io/kubernetes/pkg/scheduler/testing"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

// TestPublicationWakes: a publication wakes the pods for which it made room, and not those
// that have room on the node but are kept away from it by another plugin.
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
			ndc.Status.Disks[0].Free = append(ndc.Status.Disks[0].Free, diskv1alpha1.Extent{Start: diskv1alpha1.Alignment + 8*gib, Length: 4 * gib})
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
			for i := range 2 { // the second time it is no news
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

// TestOffer: of many pods that want the same room, no more are tried than fit together; the
// rest when those have not taken it, each once.
func TestOffer(t *testing.T) {
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
	expect("room for two", "pod-90", "pod-91")
	b.pass()
	expect("the two have not come to their turn")
	// One takes its place, the other is refused, by others.
	state, _ := b.filter(t, pods[90])
	if status := b.framework.RunReservePluginsReserve(b.ctx, state, pods[90], "n1"); !status.IsSuccess() {
		t.Fatal(status)
	}
	b.filter(t, pods[91])
	b.pass()
	expect("one place is left, and one was in vain", "pod-92", "pod-93")
	b.filter(t, pods[92])
	b.filter(t, pods[93])
	b.pass()
	expect("more were in vain", "pod-94", "pod-95", "pod-96")
	// Somebody else takes it.
	record(t, b, podOf("other", 4), 4)
	for range 20 {
		b.pass()
	}
	expect("the room is gone")
	if len(b.plugin.feed.waiting.offers) > 0 {
		t.Error("the offer is kept")
	}
}

// TestOfferReachesAll: whoever the room is for, all are tried in the end.
func TestOfferReachesAll(t *testing.T) {
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
		b.pass()
	}
	if woken != count || rounds > 20 {
		t.Errorf("%d of %d pods were tried in %d rounds", woken, count, rounds)
	}
	if len(b.later) > 0 {
		t.Error("there is a round more when all were tried")
	}
}

// TestWokenByLateWatch: a pod is being tried when the publication comes that makes room, or
// was created just before. It is not left behind.
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
	if _, known := b.plugin.feed.waiting.requestsOf(gone.UID); known {
		t.Error("a pod that is gone is remembered")
	}
}

// TestClassWakes: a DiskClass wakes the pods that it was missing for.
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

// TestNotForOthersReasons: a pod that only other plugins keep from every node is not tried
// when a node makes room.
func TestNotForOthersReasons(t *testing.T) {
	b := newBench(t, nil, "n1")
	b.publish(t, "n1", 10)
	pod := podOf("a", 6)
	b.store(t, pod)
	state, _ := b.filter(t, pod)
	b.framework.RunPostFilterPlugins(b.ctx, state, pod, nil)
	b.publish(t, "n1", 5)
	if b.publish(t, "n1", 10); b.woken(pod) {
		t.Error("woken by room, which it does not lack")
	}
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
				pod := podOf(fmt.Sprintf("pod-%d", i), bench.size(i))
				if err := env.plugin.feed.pods.Add(pod); err != nil {
					b.Fatal(err)
				}
				state := env.plugin.feed.waiting.begin(pod)
				asks, err := env.plugin.feed.ask(pod)
				if err != nil {
					b.Fatal(err)
				}
				env.plugin.feed.waiting.asks(state, env.plugin.newState(pod, asks))
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
