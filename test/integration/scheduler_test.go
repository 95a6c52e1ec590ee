package integration

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/units"
)

// TestScheduler runs the real scheduler against a real API server.
func TestScheduler(t *testing.T) {
	s := startSchedulers(t)
	for _, test := range []struct {
		name string
		run  func(*testing.T, *schedulers)
	}{
		{"overcommit race", overcommitRace},
		{"stale publisher", stalePublisher},
		{"two schedulers", twoSchedulers},
		{"scheduler killed", schedulerKilled},
		{"forged records", forgedRecords},
		{"plain pods", plainPods},
		{"reasons", reasons},
		{"deletion wakes", deletionWakes},
		{"capacity contradicts itself", nonsense},
		{"preemption", preemption},
		{"preemption while wiping", preemptionWhileWiping},
		{"policies", policies},
		{"narrowing", narrowing},
		{"with other constraints", withOtherConstraints},
		{"both profiles", bothProfiles},
		{"rights", schedulerRights},
		{"gang", gang},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Cleanup(func() { s.clear(t) })
			test.run(t, s)
		})
	}
}

// fleet makes five nodes with room for so many volumes of 1 GiB each.
func fleet(t *testing.T, s *schedulers, each int64) []*simNode {
	t.Helper()
	nodes := make([]*simNode, 5)
	for i := range nodes {
		nodes[i] = newSimNode(t, s.client, fmt.Sprintf("sim-%d", i), each, diskv1alpha1.DriverName)
	}
	return nodes
}

func overcommitRace(t *testing.T, s *schedulers) {
	nodes := fleet(t, s, 10)
	follow(t, s.client, nodes...)
	start := time.Now()
	s.createMany(t, 200, 1)
	s.waitBound(t, 50)
	t.Logf("50 pods bound %s after the first of 200 was created", time.Since(start).Round(time.Millisecond))
	bound := s.waitDecided(t)
	if len(bound) != 50 {
		t.Errorf("%d pods are bound, want 50", len(bound))
	}
	places(t, bound, 1)
	var used int64
	for _, n := range nodes {
		used += n.check(t)
		if moved, evicted := n.counts(); moved+evicted > 0 {
			t.Errorf("node %s moved %d volumes and evicted %d pods", n.name, moved, evicted)
		}
	}
	s.eventually(t, func(context.Context) error {
		used = 0
		for _, n := range nodes {
			used += n.check(t)
		}
		if used != 50*units.GiB {
			return fmt.Errorf("the nodes hold %d GiB, want 50", used/units.GiB)
		}
		return nil
	})
}

func stalePublisher(t *testing.T, s *schedulers) {
	nodes := fleet(t, s, 10)
	for _, n := range nodes {
		n.setSilent(true)
	}
	follow(t, s.client, nodes...)
	s.createMany(t, 120, 1)
	// What they write is new by its revision and old by its content.
	for _, n := range nodes {
		empty := &simNode{name: n.name, client: n.client, size: n.size}
		if err := empty.publish(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	bound := s.waitDecided(t)
	if len(bound) != 50 {
		t.Fatalf("%d pods are bound, want 50", len(bound))
	}
	places(t, bound, 1)
	// The nodes catch up, and nothing changes.
	for _, n := range nodes {
		n.setSilent(false)
		if err := n.publish(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	// Ten pods go, ten others come.
	for i := range bound[:10] {
		if err := s.client.Delete(t.Context(), &bound[i], client.GracePeriodSeconds(0)); err != nil {
			t.Fatal(err)
		}
	}
	again := s.waitBound(t, 50)
	if len(again) != 50 {
		t.Errorf("%d pods are bound, want 50", len(again))
	}
	places(t, again, 1)
}

// twoSchedulers do not know of each other, so both may sell the same extent. The node has
// the last word: it moves one of the two volumes, or evicts its pod if there is no room.
func twoSchedulers(t *testing.T, s *schedulers) {
	nodes := fleet(t, s, 10)
	follow(t, s.client, nodes...)
	if err := s.cluster.StartSchedulerNamed(t.Context(), "rival"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.cluster.KillSchedulerNamed("rival"); err != nil {
			t.Error(err)
		}
	}()
	s.createMany(t, 200, 1)
	s.eventually(t, func(context.Context) error {
		var used int64
		for _, n := range nodes {
			used += n.check(t)
		}
		if bound := len(s.bound(t)); used != 50*units.GiB || bound != 50 {
			return fmt.Errorf("the nodes hold %d GiB for %d bound pods, want 50 and 50", used/units.GiB, bound)
		}
		return nil
	})
	var moved, evicted int
	for _, n := range nodes {
		m, e := n.counts()
		moved, evicted = moved+m, evicted+e
	}
	t.Logf("the nodes moved %d volumes that both schedulers had given the same place, and evicted %d pods", moved, evicted)
}

// schedulerKilled kills the scheduler's process three times while bindings are in flight.
// Its client is slow: reservations are made in memory much faster than they are written,
// so that at every moment dozens of pods are between Reserve and Bind.
func schedulerKilled(t *testing.T, s *schedulers) {
	const room, wanted = 200, 250
	nodes := fleet(t, s, room/5)
	follow(t, s.client, nodes...)
	defer s.killScheduler(t)()
	s.createMany(t, wanted, 1)
	start := func(qps string) *schedulerProcess {
		return runScheduler(t, s.cluster, "", "qps: 1000", "qps: "+qps, "burst: 2000", "burst: 10", "leaderElect: true", "leaderElect: false")
	}
	for _, at := range []int{1, 40, 80} {
		scheduler := start("40")
		s.waitBound(t, at)
		scheduler.kill()
		bound := len(s.bound(t))
		t.Logf("killed with %d of %d pods bound", bound, room)
		if bound >= room {
			t.Error("it was killed too late to show anything")
		}
	}
	start("1000")
	s.waitBound(t, room)
	bound := s.waitDecided(t)
	if len(bound) != room {
		t.Errorf("%d pods are bound, want %d", len(bound), room)
	}
	places(t, bound, 1)
	for _, n := range nodes {
		n.check(t)
		if moved, evicted := n.counts(); moved+evicted > 0 {
			t.Errorf("node %s moved %d volumes and evicted %d pods: space was sold twice", n.name, moved, evicted)
		}
	}
}

func forgedRecords(t *testing.T, s *schedulers) {
	s.withoutPolicy(t)
	node := newSimNode(t, s.client, "sim-0", 10, diskv1alpha1.DriverName)
	node.setSilent(true)
	record := func(start, length int64) map[string]string {
		value := fmt.Sprintf(`{"v":1,"volumes":[{"name":"data","disk":%q,"start":%d,"length":%d}]}`, simDisk("sim-0"), start, length)
		return map[string]string{diskv1alpha1.AnnotationAllocation: value}
	}
	// Pods that are bound by hand claim the whole disk, or nonsense.
	for i, annotations := range []map[string]string{
		record(1<<20, 10*units.GiB), record(1<<20, -units.GiB), record(9223372036854775807, units.GiB),
		{diskv1alpha1.AnnotationAllocation: "garbage"}, {diskv1alpha1.AnnotationAllocation: `{"v":1,"volumes":null}`},
	} {
		pod := diskPod(fmt.Sprintf("forged-%d", i), 1)
		pod.Spec.NodeName, pod.Annotations = "sim-0", annotations
		s.create(t, pod)
	}
	// One is believed: it says what the pod really asks for, beside the disk's end.
	honest := diskPod("honest", 1)
	honest.Spec.NodeName, honest.Annotations = "sim-0", record(1<<20+9*units.GiB, units.GiB)
	s.create(t, honest)
	// A pod that waits for the scheduler brings a record along.
	victim := diskPod("victim", 9)
	victim.Annotations = record(1<<20+units.GiB, 9*units.GiB)
	s.create(t, victim)
	s.eventually(t, func(ctx context.Context) error {
		if err := s.client.Get(ctx, client.ObjectKeyFromObject(victim), victim); err != nil {
			return err
		}
		if victim.Spec.NodeName == "" {
			return errors.New("the pod of 9 GiB is not bound: a forged record is believed")
		}
		return nil
	})
	got, err := diskv1alpha1.DecodeRecord(victim.Annotations[diskv1alpha1.AnnotationAllocation])
	if err != nil || got.Volumes[0].Start != 1<<20 {
		t.Errorf("the pod has the record %+v, %v, want the scheduler's, from the first MiB", got, err)
	}
}

func plainPods(t *testing.T, s *schedulers) {
	// A node that has nothing to do with Berth.
	newSimNode(t, s.client, "sim-plain", 1)
	if err := s.client.Delete(t.Context(), &diskv1alpha1.NodeDiskCapacity{ObjectMeta: metav1.ObjectMeta{Name: "sim-plain"}}); err != nil {
		t.Fatal(err)
	}
	s.create(t, plainPod("stock", corev1.DefaultSchedulerName), plainPod("ours", "berth"))
	for _, pod := range s.waitBound(t, 2) {
		if len(pod.Annotations) != 0 {
			t.Errorf("pod %s got the annotations %v", pod.Name, pod.Annotations)
		}
	}
}

// reasons are what a user reads in the events of a pending pod, and what helps.
func reasons(t *testing.T, s *schedulers) {
	s.withoutPolicy(t)
	node := newSimNode(t, s.client, "sim-0", 10)
	follow(t, s.client, node)
	s.create(t, diskPod("waits", 10))
	s.waitEvent(t, "waits", "the agent of Berth is not registered with the kubelet of this node")
	csiNode := &storagev1.CSINode{ObjectMeta: metav1.ObjectMeta{Name: "sim-0"}}
	if err := s.client.Get(t.Context(), client.ObjectKeyFromObject(csiNode), csiNode); err != nil {
		t.Fatal(err)
	}
	csiNode.Spec.Drivers = []storagev1.CSINodeDriver{{Name: diskv1alpha1.DriverName, NodeID: "sim-0"}}
	if err := s.client.Update(t.Context(), csiNode); err != nil {
		t.Fatal(err)
	}
	s.waitBound(t, 1)

	s.create(t, diskPod("large", 11), diskPod("small", 1))
	s.waitEvent(t, "large", "no free space of class ssd, wants 11Gi")
	s.waitEvent(t, "small", "no free space of class ssd, wants 1Gi")

	tape := diskPod("tape", 1)
	tape.Spec.Volumes[0].CSI.VolumeAttributes[diskv1alpha1.AttributeClass] = "tape"
	misspelled := diskPod("misspelled", 1)
	misspelled.Spec.Volumes[0].CSI.VolumeAttributes[diskv1alpha1.AttributeSize] = "10Gib"
	unknown := diskPod("unknown", 1)
	unknown.Spec.Volumes[0].CSI.VolumeAttributes["disk.berth.dev/sise"] = "1Gi"
	s.create(t, tape, misspelled, unknown)
	s.waitEvent(t, "tape", `volume "data": DiskClass "tape" does not exist: there are ssd`)
	s.waitEvent(t, "misspelled", `attribute disk.berth.dev/size is "10Gib", which is not a size`)
	s.waitEvent(t, "unknown", `unknown attribute "disk.berth.dev/sise"`)
	// The class appears, and the pod is woken, and its event says that no disk has it.
	s.class(t, "tape")
	s.waitEvent(t, "tape", "no disk of class tape")
}

func deletionWakes(t *testing.T, s *schedulers) {
	node := newSimNode(t, s.client, "sim-0", 10, diskv1alpha1.DriverName)
	follow(t, s.client, node)
	holder, next := diskPod("holder", 8), diskPod("next", 6)
	s.create(t, holder)
	s.waitBound(t, 1)
	s.create(t, next)
	s.waitEvent(t, "next", "largest free extent of class ssd is 2Gi, wants 6Gi")
	start := time.Now()
	if err := s.client.Delete(t.Context(), holder, client.GracePeriodSeconds(0)); err != nil {
		t.Fatal(err)
	}
	s.eventually(t, func(ctx context.Context) error {
		if err := s.client.Get(ctx, client.ObjectKeyFromObject(next), next); err != nil {
			return err
		}
		if next.Spec.NodeName == "" {
			return errors.New("the pod still waits")
		}
		return nil
	})
	// Without a hint it would have taken five minutes, which is longer than was waited.
	t.Logf("bound %s after the deletion that made room", time.Since(start).Round(time.Millisecond))
}

// nonsense: a capacity that was edited by hand offers nothing, and says why.
func nonsense(t *testing.T, s *schedulers) {
	node := newSimNode(t, s.client, "sim-0", 10, diskv1alpha1.DriverName)
	overlapping := diskv1alpha1.Disk{
		ID: simDisk("sim-0"), Device: "sim", Class: "ssd", SectorSize: 512, Size: 20 * units.GiB, State: diskv1alpha1.DiskReady,
		Free: []diskv1alpha1.Extent{{Start: 1 << 20, Length: 2 * units.GiB}, {Start: 1<<20 + units.GiB, Length: 2 * units.GiB}},
	}
	if err := node.write(t.Context(), overlapping); err != nil {
		t.Fatal(err)
	}
	s.create(t, diskPod("waits", 1))
	s.waitEvent(t, "waits", "contradicts itself")
	if err := node.publish(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.waitBound(t, 1)
}

// preemption: a pod takes the place of a less important one, and only when the node has
// wiped that one's volume.
func preemption(t *testing.T, s *schedulers) {
	class := s.important(t)
	node := newSimNode(t, s.client, "sim-0", 10, diskv1alpha1.DriverName)
	follow(t, s.client, node)
	s.create(t, diskPod("victim", 6), diskPod("bystander", 4))
	s.waitBound(t, 2)
	important := diskPod("important", 5)
	important.Spec.PriorityClassName = class.Name
	s.create(t, important)
	s.eventually(t, func(context.Context) error {
		var names []string
		for _, pod := range s.bound(t) {
			names = append(names, pod.Name)
		}
		slices.Sort(names)
		if !slices.Equal(names, []string{"bystander", "important"}) {
			return fmt.Errorf("%v are bound, want bystander and important", names)
		}
		return nil
	})
	if moved, evicted := node.counts(); moved+evicted > 0 {
		t.Errorf("the node moved %d volumes and evicted %d pods", moved, evicted)
	}
}

// important makes a priority class.
func (s *schedulers) important(t *testing.T) *schedulingv1.PriorityClass {
	t.Helper()
	class := &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: "important"}, Value: 1000}
	if err := s.client.Create(t.Context(), class); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.client.Delete(context.WithoutCancel(t.Context()), class); err != nil {
			t.Error(err)
		}
	})
	// Admission knows the classes from a watch.
	s.eventually(t, func(ctx context.Context) error {
		pod := plainPod("probe", "berth")
		pod.Spec.PriorityClassName = class.Name
		return s.client.Create(ctx, pod, client.DryRunAll)
	})
	return class
}

// preemptionWhileWiping: the space of a preempted pod comes back long after the pod has
// gone. A cycle of the pending pod meanwhile must not preempt the next one.
func preemptionWhileWiping(t *testing.T, s *schedulers) {
	class := s.important(t)
	node := newSimNode(t, s.client, "sim-0", 10, diskv1alpha1.DriverName)
	node.setSlow(true)
	follow(t, s.client, node)
	s.create(t, diskPod("one", 5), diskPod("other", 5))
	s.eventually(t, func(context.Context) error {
		if used := node.check(t); used != 10*units.GiB {
			return fmt.Errorf("the node holds %d GiB, want 10", used/units.GiB)
		}
		return nil
	})
	important := diskPod("important", 5)
	important.Spec.PriorityClassName = class.Name
	s.create(t, important)
	s.eventually(t, func(context.Context) error {
		if bound := len(s.bound(t)); bound != 1 {
			return fmt.Errorf("%d pods are bound, want 1: the other is preempted", bound)
		}
		return nil
	})
	survivor := s.bound(t)[0].Name
	// A new scheduler looks at every pending pod.
	if err := s.cluster.KillScheduler(); err != nil {
		t.Fatal(err)
	}
	if err := s.cluster.StartScheduler(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.waitEvent(t, "important", "waiting for node sim-0 to wipe volumes that are gone")
	if bound := s.bound(t); len(bound) != 1 || bound[0].Name != survivor {
		t.Errorf("%d pods are bound, want %s: preempted for space that was on its way", len(bound), survivor)
	}
	node.setSlow(false)
	for _, pod := range s.waitBound(t, 2) {
		if pod.Name != survivor && pod.Name != important.Name {
			t.Errorf("pod %s is bound", pod.Name)
		}
	}
}
