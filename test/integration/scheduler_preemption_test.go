package integration

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/units"
)

// TestSchedulerPreempts: who is preempted, and when the space of those who were is given away.
func TestSchedulerPreempts(t *testing.T) {
	s := startSchedulers(t)
	for _, test := range []struct {
		name string
		run  func(*testing.T, *schedulers)
	}{
		{"fifty in a row", fiftyPreemptions},
		{"fewest victims", fewestVictims},
		{"least important victim", leastImportantVictim},
		{"nomination is kept", nominationIsKept},
		{"nomination is kept beside others", nominationIsKeptBesideOthers},
		{"disruption budget", disruptionBudget},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Cleanup(func() { s.clear(t) })
			test.run(t, s)
		})
	}
}

// ofPriority is a pod of a class that it makes, of that priority.
func (s *schedulers) ofPriority(t *testing.T, pod *corev1.Pod, value int32) *corev1.Pod {
	t.Helper()
	class := &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("priority-%d", value)}, Value: value}
	switch err := s.client.Create(t.Context(), class); {
	case err == nil:
		// The API server itself sees a new class a little later.
		s.eventually(t, func(ctx context.Context) error {
			probe := plainPod("probe", "berth")
			probe.Spec.PriorityClassName = class.Name
			return s.client.Create(ctx, probe, client.DryRunAll)
		})
		t.Cleanup(func() {
			if err := s.client.Delete(context.WithoutCancel(t.Context()), class); err != nil {
				t.Error(err)
			}
		})
	case client.IgnoreAlreadyExists(err) != nil:
		t.Fatal(err)
	}
	pod.Spec.PriorityClassName = class.Name
	return pod
}

// waitHolds waits until the node holds so many GiB.
func (s *schedulers) waitHolds(t *testing.T, node *simNode, wantGiB int64) {
	t.Helper()
	s.eventually(t, func(context.Context) error {
		if used := node.check(t); used != wantGiB*units.GiB {
			return fmt.Errorf("node %s holds %d GiB, want %d", node.name, used/units.GiB, wantGiB)
		}
		return nil
	})
}

// fiftyPreemptions: on a full disk, each pod is more important than all before it. After every
// step no two volumes share a byte, and in the order in which the API server wrote it all down
// no pod was bound to an extent that was not published as free and had no other owner.
func fiftyPreemptions(t *testing.T, s *schedulers) {
	const rounds, size, piece = 50, 12, 3
	history := recordHistory(t, s)
	node := newSimNode(t, s.client, "sim-0", size, diskv1alpha1.DriverName)
	follow(t, s.client, node)
	fillers := 0
	start := time.Now()
	for round := range int32(rounds) {
		for used := node.check(t); used < size*units.GiB; used += piece * units.GiB {
			fillers++
			s.create(t, diskPod(fmt.Sprintf("filler-%d", fillers), piece))
		}
		s.waitHolds(t, node, size)
		slow := round%2 == 1
		node.setSlow(slow)
		// One volume or two, of 3 or 6 GiB in all, now and then the whole disk.
		preemptor := diskPod(fmt.Sprintf("preemptor-%d", round), []int64{3, 6, 3, 6, 12}[round%5])
		if round%5 == 3 {
			preemptor = withVolumeOf(diskPod(preemptor.Name, 3), "more", 3)
		}
		s.create(t, s.ofPriority(t, preemptor, round+1))
		if slow {
			// The victims go, their bytes stay for a while.
			s.eventually(t, func(ctx context.Context) error {
				if err := s.client.Get(ctx, client.ObjectKeyFromObject(preemptor), preemptor); err != nil {
					return err
				}
				if preemptor.Status.NominatedNodeName == "" || len(history.ending()) > 0 {
					return errors.New("the preemption is not done")
				}
				return nil
			})
			if preemptor.Spec.NodeName != "" {
				t.Errorf("%s is bound before its node has wiped anything", preemptor.Name)
			}
			node.setSlow(false)
		}
		s.waitNode(t, preemptor)
		history.check(t)
		node.check(t)
		// The disk is as the pods are, before the next comes.
		s.eventually(t, func(context.Context) error {
			var asked int64
			for _, pod := range s.bound(t) {
				for _, v := range recordOf(t, &pod) {
					asked += v.Len()
				}
			}
			if used := node.check(t); used != asked {
				return fmt.Errorf("the node holds %d GiB, its pods have %d", used/units.GiB, asked/units.GiB)
			}
			return nil
		})
	}
	if moved, evicted := node.counts(); moved+evicted > 0 {
		t.Errorf("the node moved %d volumes and evicted %d pods", moved, evicted)
	}
	// The node publishes the last volume, too.
	s.eventually(t, func(context.Context) error {
		if history.check(t); history.bindings != history.boundPods() {
			return fmt.Errorf("%d bindings of %d were looked at", history.bindings, history.boundPods())
		}
		return nil
	})
	t.Logf("%d preemptions, one every %s; %d bindings and %d publications looked at",
		rounds, (time.Since(start) / rounds).Round(time.Millisecond), history.bindings, history.publications)
}

// recordOf are the extents of a bound pod, on the one disk that there is.
func recordOf(t *testing.T, pod *corev1.Pod) []extent.Extent {
	t.Helper()
	record, err := diskv1alpha1.DecodeRecord(pod.Annotations[diskv1alpha1.AnnotationAllocation])
	if err != nil {
		t.Errorf("pod %s is bound without a record: %v", pod.Name, err)
		return nil
	}
	var extents []extent.Extent
	for _, v := range record.Volumes {
		extents = append(extents, extent.New(v.Start, v.Length))
	}
	return extents
}

// history is what the API server has written about pods and about the disk of one node.
type history struct {
	mu     sync.Mutex
	events []happening
	// checked is how many have been looked at.
	bindings, publications int
}

type happening struct {
	revision uint64
	pod      *corev1.Pod
	gone     bool
	capacity *diskv1alpha1.NodeDiskCapacity
}

// recordHistory watches until the test ends.
func recordHistory(t *testing.T, s *schedulers) *history {
	t.Helper()
	c, err := client.NewWithWatch(s.cluster.RESTConfig(), client.Options{Scheme: s.client.Scheme()})
	if err != nil {
		t.Fatal(err)
	}
	h := &history{}
	for _, list := range []client.ObjectList{&corev1.PodList{}, &diskv1alpha1.NodeDiskCapacityList{}} {
		w, err := c.Watch(t.Context(), list)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(w.Stop)
		go func() {
			for event := range w.ResultChan() {
				h.add(event)
			}
		}()
	}
	return h
}

func (h *history) add(event watch.Event) {
	happened := happening{gone: event.Type == watch.Deleted}
	object, ok := event.Object.(client.Object)
	if !ok {
		return
	}
	happened.revision, _ = strconv.ParseUint(object.GetResourceVersion(), 10, 64)
	switch o := event.Object.(type) {
	case *corev1.Pod:
		happened.pod = o
	case *diskv1alpha1.NodeDiskCapacity:
		happened.capacity = o
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.events = append(h.events, happened)
}

// ending are the pods that are being deleted.
func (h *history) ending() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	ending := map[string]bool{}
	for _, e := range h.events {
		if e.pod != nil && (e.pod.DeletionTimestamp != nil || e.gone) {
			ending[e.pod.Name] = !e.gone
		}
	}
	var names []string
	for name, still := range ending {
		if still {
			names = append(names, name)
		}
	}
	return names
}

// check replays it in the order of the API server, up to the last publication that the watch has
// shown: what was published before a later binding may not have arrived yet.
func (h *history) check(t *testing.T) {
	t.Helper()
	h.mu.Lock()
	events := slices.Clone(h.events)
	h.mu.Unlock()
	slices.SortStableFunc(events, func(a, b happening) int { return int(int64(a.revision) - int64(b.revision)) })
	var free extent.Set
	owners := map[types.UID][]extent.Extent{}
	h.bindings, h.publications = 0, 0
	last := 0
	for i, e := range events {
		if e.capacity != nil {
			last = i
		}
	}
	for _, e := range events[:min(last+1, len(events))] {
		switch {
		case e.capacity != nil:
			h.publications++
			free = extent.Set{}
			for _, d := range e.capacity.Status.Disks {
				for _, f := range d.Free {
					free = free.Add(extent.New(f.Start, f.Length))
				}
			}
		case e.gone:
			delete(owners, e.pod.UID)
		case e.pod.Spec.NodeName != "" && owners[e.pod.UID] == nil:
			h.bindings++
			extents := recordOf(t, e.pod)
			for _, x := range extents {
				if !free.Contains(x) {
					t.Errorf("pod %s was bound to %v when its node had published as free %v", e.pod.Name, x, free)
				}
				for owner, theirs := range owners {
					if slices.ContainsFunc(theirs, x.Overlaps) {
						t.Errorf("pod %s was bound to %v, which pod %s has", e.pod.Name, x, owner)
					}
				}
			}
			owners[e.pod.UID] = extents
		}
	}
}

// boundPods counts the bound pods among those that the watch has shown.
func (h *history) boundPods() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	bound := map[types.UID]bool{}
	for _, e := range h.events {
		if e.pod != nil && e.pod.Spec.NodeName != "" {
			bound[e.pod.UID] = true
		}
	}
	return len(bound)
}

// remaining are the names of the bound pods that are not being deleted.
func (s *schedulers) remaining(t *testing.T) []string {
	t.Helper()
	var names []string
	for _, pod := range s.bound(t) {
		if pod.DeletionTimestamp == nil {
			names = append(names, pod.Name)
		}
	}
	slices.Sort(names)
	return names
}

func (s *schedulers) waitRemaining(t *testing.T, want ...string) {
	t.Helper()
	slices.Sort(want)
	s.eventually(t, func(context.Context) error {
		if have := s.remaining(t); !slices.Equal(have, want) {
			return fmt.Errorf("%v are bound, want %v", have, want)
		}
		return nil
	})
}

// fewestVictims: where one victim suffices, no pod dies elsewhere, and none beside it.
func fewestVictims(t *testing.T, s *schedulers) {
	many, one := newSimNode(t, s.client, "sim-many", 12, diskv1alpha1.DriverName), newSimNode(t, s.client, "sim-one", 13, diskv1alpha1.DriverName)
	follow(t, s.client, many, one)
	on := func(pod *corev1.Pod, node *simNode) *corev1.Pod {
		pod.Spec.NodeSelector = map[string]string{corev1.LabelHostname: node.name}
		return pod
	}
	s.create(t, on(diskPod("a", 4), many), on(diskPod("b", 4), many), on(diskPod("c", 4), many), on(diskPod("large", 8), one), on(diskPod("d", 5), one))
	s.waitHolds(t, many, 12)
	s.waitHolds(t, one, 13)
	important := s.ofPriority(t, diskPod("important", 8), 1000)
	s.create(t, important)
	s.waitRemaining(t, "a", "b", "c", "d", "important")
	if s.reload(t, important); important.Spec.NodeName != one.name {
		t.Errorf("the pod is on %s", important.Spec.NodeName)
	}
}

// leastImportantVictim: of those whose place would do, the least important goes; and none,
// if those that may go do not make room enough.
func leastImportantVictim(t *testing.T, s *schedulers) {
	node := newSimNode(t, s.client, "sim-0", 12, diskv1alpha1.DriverName)
	follow(t, s.client, node)
	s.create(t, s.ofPriority(t, diskPod("middle", 4), 20), s.ofPriority(t, diskPod("low", 4), 10), s.ofPriority(t, diskPod("high", 4), 30))
	s.waitHolds(t, node, 12)
	// The places of middle and low, at best, are eight.
	s.create(t, s.ofPriority(t, diskPod("greedy", 9), 25))
	s.waitEvent(t, "greedy", "no free space of class ssd, wants 9Gi")
	s.create(t, s.ofPriority(t, diskPod("important", 4), 40))
	s.waitRemaining(t, "high", "important", "middle")
}

// nominationIsKept: while the victim's bytes are being wiped, pods of any size come that are
// less important than the preemptor, and that would fit what is free already.
func nominationIsKept(t *testing.T, s *schedulers) {
	node := newSimNode(t, s.client, "sim-0", 12, diskv1alpha1.DriverName)
	node.setSlow(true)
	follow(t, s.client, node)
	s.create(t, diskPod("victim", 10))
	s.waitHolds(t, node, 10)
	preemptor := s.ofPriority(t, diskPod("preemptor", 12), 1000)
	s.create(t, preemptor)
	s.waitRemaining(t)
	var thieves []*corev1.Pod
	for _, size := range []int64{12, 10, 2, 1} {
		thieves = append(thieves, diskPod(fmt.Sprintf("thief-%d", size), size), s.ofPriority(t, diskPod(fmt.Sprintf("better-thief-%d", size), size), 500))
	}
	s.create(t, thieves...)
	for _, thief := range thieves {
		s.waitEvent(t, thief.Name, "wants "+thief.Spec.Volumes[0].CSI.VolumeAttributes[diskv1alpha1.AttributeSize])
	}
	node.setSlow(false)
	s.waitNode(t, preemptor)
	s.waitHolds(t, node, 12)
	if have := s.remaining(t); !slices.Equal(have, []string{"preemptor"}) {
		t.Errorf("%v are bound", have)
	}
	if moved, evicted := node.counts(); moved+evicted > 0 {
		t.Errorf("the node moved %d volumes and evicted %d pods", moved, evicted)
	}
}

// nominationIsKeptBesideOthers asserts that a pod that fits beside what is kept for the preemptor is placed there, and
// not where the preemptor would lose its place.
func nominationIsKeptBesideOthers(t *testing.T, s *schedulers) {
	node := newSimNode(t, s.client, "sim-0", 12, diskv1alpha1.DriverName)
	node.setSlow(true)
	follow(t, s.client, node)
	s.create(t, diskPod("victim", 6))
	s.waitHolds(t, node, 6)
	preemptor := s.ofPriority(t, diskPod("preemptor", 10), 1000)
	s.create(t, preemptor)
	s.waitRemaining(t)
	small := diskPod("small", 2)
	s.create(t, small)
	s.waitNode(t, small)
	node.setSlow(false)
	s.waitNode(t, preemptor)
	s.waitHolds(t, node, 12)
	if have := s.remaining(t); !slices.Equal(have, []string{"preemptor", "small"}) {
		t.Errorf("%v are bound", have)
	}
	if moved, evicted := node.counts(); moved+evicted > 0 {
		t.Errorf("the node moved %d volumes and evicted %d pods", moved, evicted)
	}
}

// disruptionBudget: a pod that a budget protects is spared, though it is the less important.
func disruptionBudget(t *testing.T, s *schedulers) {
	node := newSimNode(t, s.client, "sim-0", 10, diskv1alpha1.DriverName)
	follow(t, s.client, node)
	protected := s.ofPriority(t, diskPod("protected", 5), 10)
	protected.Labels = map[string]string{"app": "protected"}
	budget := &policyv1.PodDisruptionBudget{
		ObjectMeta: metav1.ObjectMeta{Namespace: schedulerTests, Name: "protected"},
		Spec: policyv1.PodDisruptionBudgetSpec{
			MinAvailable: new(intstr.FromInt32(1)), Selector: &metav1.LabelSelector{MatchLabels: protected.Labels},
		},
	}
	s.make(t, budget)
	t.Cleanup(func() {
		if err := s.client.Delete(context.WithoutCancel(t.Context()), budget); err != nil {
			t.Error(err)
		}
	})
	s.create(t, protected, s.ofPriority(t, diskPod("other", 5), 20))
	s.waitHolds(t, node, 10)
	s.create(t, s.ofPriority(t, diskPod("important", 5), 1000))
	s.waitRemaining(t, "important", "protected")
}
