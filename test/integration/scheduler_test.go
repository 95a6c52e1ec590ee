package integration

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/controller-runtime/pkg/client"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/cluster"
)

// schedulerTests is the namespace of all pods here.
const schedulerTests = "scheduler-tests"

// pause is the time between two looks of something that looks again and again.
func pause(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(50 * time.Millisecond):
	}
}

// schedulers is a control plane with our scheduler, and nodes that are simulated.
type schedulers struct {
	cluster *cluster.Cluster
	client  client.Client
}

// TestScheduler runs the real scheduler against a real API server.
func TestScheduler(t *testing.T) {
	plane := controlPlane(t)
	s := &schedulers{cluster: plane, client: plane.Client()}
	if err := s.client.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: schedulerTests}}); client.IgnoreAlreadyExists(err) != nil {
		t.Fatal(err)
	}
	if err := plane.StartScheduler(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := plane.StopScheduler(); err != nil {
			t.Error(err)
		}
	})
	s.class(t, "ssd")
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
		{"rights", schedulerRights},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Cleanup(func() { s.clear(t) })
			test.run(t, s)
		})
	}
}

func (s *schedulers) class(t *testing.T, name string) {
	t.Helper()
	size := resource.MustParse("1Gi")
	class := &diskv1alpha1.DiskClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: diskv1alpha1.DiskClassSpec{Devices: diskv1alpha1.DeviceSelector{MinSize: &size}}}
	if err := s.client.Create(t.Context(), class); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.client.Delete(context.WithoutCancel(t.Context()), class); err != nil {
			t.Error(err)
		}
	})
}

// clear deletes all pods and waits until they are gone.
func (s *schedulers) clear(t *testing.T) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	if err := s.client.DeleteAllOf(ctx, &corev1.Pod{}, client.InNamespace(schedulerTests), client.GracePeriodSeconds(0)); err != nil {
		t.Error(err)
	}
	s.eventually(t, func(ctx context.Context) error {
		if pods := s.pods(t); len(pods) > 0 {
			return fmt.Errorf("%d pods are left", len(pods))
		}
		return nil
	})
}

func (s *schedulers) eventually(t *testing.T, condition func(context.Context) error) {
	t.Helper()
	if err := cluster.Eventually(context.WithoutCancel(t.Context()), 2*patience, condition); err != nil {
		t.Fatal(err)
	}
}

func (s *schedulers) pods(t *testing.T) []corev1.Pod {
	t.Helper()
	var list corev1.PodList
	if err := s.client.List(context.WithoutCancel(t.Context()), &list, client.InNamespace(schedulerTests)); err != nil {
		t.Fatal(err)
	}
	return list.Items
}

// diskPod asks for one volume of so many GiB.
func diskPod(name string, sizeGiB int64) *corev1.Pod {
	pod := plainPod(name, "berth")
	pod.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{
		Driver: diskv1alpha1.DriverName,
		VolumeAttributes: map[string]string{
			diskv1alpha1.AttributeSize: fmt.Sprintf("%dGi", sizeGiB), diskv1alpha1.AttributeClass: "ssd",
		},
	}}}}
	return pod
}

func plainPod(name, scheduler string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: schedulerTests, Name: name},
		Spec:       corev1.PodSpec{SchedulerName: scheduler, Containers: []corev1.Container{{Name: "main", Image: "any"}}},
	}
}

func plainPodIn(namespace, name string) *corev1.Pod {
	pod := plainPod(name, "berth")
	pod.Namespace = namespace
	return pod
}

func (s *schedulers) create(t *testing.T, pods ...*corev1.Pod) {
	t.Helper()
	for _, pod := range pods {
		if err := s.client.Create(t.Context(), pod); err != nil {
			t.Fatal(err)
		}
	}
}

// createMany creates pods from several clients at once.
func (s *schedulers) createMany(t *testing.T, count int, sizeGiB int64) {
	t.Helper()
	results := make(chan error)
	const workers = 10
	for w := range workers {
		go func() {
			var failed error
			for i := w; i < count; i += workers {
				failed = errors.Join(failed, s.client.Create(t.Context(), diskPod(fmt.Sprintf("pod-%03d", i), sizeGiB)))
			}
			results <- failed
		}()
	}
	for range workers {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
}

// bound returns the pods that have a node.
func (s *schedulers) bound(t *testing.T) []corev1.Pod {
	t.Helper()
	var bound []corev1.Pod
	for _, pod := range s.pods(t) {
		if pod.Spec.NodeName != "" {
			bound = append(bound, pod)
		}
	}
	return bound
}

func (s *schedulers) waitBound(t *testing.T, want int) []corev1.Pod {
	t.Helper()
	var bound []corev1.Pod
	s.eventually(t, func(context.Context) error {
		if bound = s.bound(t); len(bound) < want {
			return fmt.Errorf("%d pods are bound, want %d", len(bound), want)
		}
		return nil
	})
	return bound
}

// waitDecided waits until every pod is either bound or was told that there is no room, and
// no pod changes its mind for as long as the scheduler would retry one.
func (s *schedulers) waitDecided(t *testing.T) []corev1.Pod {
	t.Helper()
	s.eventually(t, func(context.Context) error {
		for _, pod := range s.pods(t) {
			if pod.Spec.NodeName == "" && !wasRejected(&pod) {
				return fmt.Errorf("pod %s is neither bound nor rejected", pod.Name)
			}
		}
		return nil
	})
	return s.bound(t)
}

func wasRejected(pod *corev1.Pod) bool {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse && c.Reason == corev1.PodReasonUnschedulable {
			return true
		}
	}
	return false
}

// places are the records of bound pods, held to lie apart and to be as large as asked.
func places(t *testing.T, pods []corev1.Pod, sizeGiB int64) {
	t.Helper()
	taken := map[string]extent.Set{}
	for _, pod := range pods {
		record, err := diskv1alpha1.DecodeRecord(pod.Annotations[diskv1alpha1.AnnotationAllocation])
		if err != nil {
			t.Errorf("pod %s is bound without a record: %v", pod.Name, err)
			continue
		}
		place, ok := record.Volume("data")
		if !ok || place.Disk != simDisk(pod.Spec.NodeName) || place.Length != sizeGiB*gib {
			t.Errorf("pod %s on %s has the record %+v", pod.Name, pod.Spec.NodeName, record)
			continue
		}
		e := extent.New(place.Start, place.Length)
		if taken[place.Disk].Overlaps(e) {
			t.Errorf("pod %s has %v of disk %s, which another pod has", pod.Name, e, place.Disk)
		}
		taken[place.Disk] = taken[place.Disk].Add(e)
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
		if used != 50*gib {
			return fmt.Errorf("the nodes hold %d GiB, want 50", used/gib)
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
		if bound := len(s.bound(t)); used != 50*gib || bound != 50 {
			return fmt.Errorf("the nodes hold %d GiB for %d bound pods, want 50 and 50", used/gib, bound)
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
func schedulerKilled(t *testing.T, s *schedulers) {
	const room, wanted = 500, 600
	nodes := fleet(t, s, room/5)
	follow(t, s.client, nodes...)
	if err := s.cluster.KillScheduler(); err != nil {
		t.Fatal(err)
	}
	s.createMany(t, wanted, 1)
	// All pods are there before the scheduler is, so that it is busy whenever it dies.
	for _, at := range []int{1, 150, 300} {
		started := make(chan struct{})
		go func() {
			defer close(started)
			// It is killed long before it says that it is ready, which is an error.
			_ = s.cluster.StartScheduler(t.Context())
		}()
		s.waitBound(t, at)
		if err := s.cluster.KillScheduler(); err != nil {
			t.Fatal(err)
		}
		<-started
		bound := len(s.bound(t))
		t.Logf("killed with %d of %d pods bound", bound, room)
		if bound >= room {
			t.Error("it was killed too late to tell anything")
		}
	}
	if err := s.cluster.StartScheduler(t.Context()); err != nil {
		t.Fatal(err)
	}
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

// withoutPolicy lifts the admission policy, if the control plane has it: whoever can
// write past it, or has not installed it, must do no harm.
func (s *schedulers) withoutPolicy(t *testing.T) {
	t.Helper()
	binding := &admissionv1.ValidatingAdmissionPolicyBinding{ObjectMeta: metav1.ObjectMeta{Name: diskv1alpha1.GroupName}}
	err := s.client.Get(t.Context(), client.ObjectKeyFromObject(binding), binding)
	if apierrors.IsNotFound(err) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := s.client.Delete(t.Context(), binding); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		anew := &admissionv1.ValidatingAdmissionPolicyBinding{ObjectMeta: metav1.ObjectMeta{Name: binding.Name}, Spec: binding.Spec}
		if err := s.client.Create(context.WithoutCancel(t.Context()), anew); err != nil {
			t.Error(err)
		}
	})
	s.eventually(t, func(ctx context.Context) error {
		probe := diskPod("probe", 1)
		probe.Annotations = map[string]string{diskv1alpha1.AnnotationAllocation: "probe"}
		return s.client.Create(ctx, probe, client.DryRunAll)
	})
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
		record(1<<20, 10*gib), record(1<<20, -gib), record(9223372036854775807, gib),
		{diskv1alpha1.AnnotationAllocation: "garbage"}, {diskv1alpha1.AnnotationAllocation: `{"v":1,"volumes":null}`},
	} {
		pod := diskPod(fmt.Sprintf("forged-%d", i), 1)
		pod.Spec.NodeName, pod.Annotations = "sim-0", annotations
		s.create(t, pod)
	}
	// One is believed: it says what the pod really asks for, beside the disk's end.
	honest := diskPod("honest", 1)
	honest.Spec.NodeName, honest.Annotations = "sim-0", record(1<<20+9*gib, gib)
	s.create(t, honest)
	// A pod that waits for the scheduler brings a record along.
	victim := diskPod("victim", 9)
	victim.Annotations = record(1<<20+gib, 9*gib)
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

// reasons are what a person reads in the events of a pending pod, and what helps.
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
	misspelt := diskPod("misspelt", 1)
	misspelt.Spec.Volumes[0].CSI.VolumeAttributes[diskv1alpha1.AttributeSize] = "10Gib"
	unknown := diskPod("unknown", 1)
	unknown.Spec.Volumes[0].CSI.VolumeAttributes["disk.berth.dev/sise"] = "1Gi"
	s.create(t, tape, misspelt, unknown)
	s.waitEvent(t, "tape", `volume "data": DiskClass "tape" does not exist: there are ssd`)
	s.waitEvent(t, "misspelt", `attribute disk.berth.dev/size is "10Gib", which is not a size`)
	s.waitEvent(t, "unknown", `unknown attribute "disk.berth.dev/sise"`)
	// The class appears, and the pod is woken to hear that no disk has it.
	s.class(t, "tape")
	s.waitEvent(t, "tape", "no disk of class tape")
}

func (s *schedulers) waitEvent(t *testing.T, pod, says string) {
	t.Helper()
	clientset, err := kubernetes.NewForConfig(s.cluster.RESTConfig())
	if err != nil {
		t.Fatal(err)
	}
	s.eventually(t, func(ctx context.Context) error {
		list, err := clientset.EventsV1().Events(schedulerTests).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		var heard []string
		for _, e := range list.Items {
			if e.Regarding.Name == pod && e.Reason == "FailedScheduling" {
				if strings.Contains(e.Note, says) {
					t.Logf("%s: %s", pod, e.Note)
					return nil
				}
				heard = append(heard, e.Note)
			}
		}
		return fmt.Errorf("pod %s has no event %q, but %q", pod, says, heard)
	})
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
	woken := time.Since(start)
	t.Logf("bound %s after the deletion that made room", woken.Round(time.Millisecond))
	// The scheduler's backoff is a second at first; without a hint it would be minutes.
	if woken > 15*time.Second {
		t.Errorf("it took %s", woken)
	}
}

// nonsense: a capacity that was edited by hand offers nothing, and says why.
func nonsense(t *testing.T, s *schedulers) {
	node := newSimNode(t, s.client, "sim-0", 10, diskv1alpha1.DriverName)
	overlapping := diskv1alpha1.Disk{
		ID: simDisk("sim-0"), Device: "sim", Class: "ssd", SectorSize: 512, Size: 20 * gib, State: diskv1alpha1.DiskReady,
		Free: []diskv1alpha1.Extent{{Start: 1 << 20, Length: 2 * gib}, {Start: 1<<20 + gib, Length: 2 * gib}},
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
