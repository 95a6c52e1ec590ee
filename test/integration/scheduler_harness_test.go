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
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/controller-runtime/pkg/client"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/cluster"
	"github.com/berthdev/berth/test/objects"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
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

func (s *schedulers) class(t *testing.T, name string) {
	t.Helper()
	class := objects.DiskClass(name)
	if err := s.client.Create(t.Context(), class); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.client.Delete(context.WithoutCancel(t.Context()), class); err != nil {
			t.Error(err)
		}
	})
}

// setMaxPieces changes a DiskClass until the test ends.
func setMaxPieces(t *testing.T, c client.Client, name string, most *int32) {
	t.Helper()
	set := func(ctx context.Context, most *int32) error {
		return retry.RetryOnConflict(retry.DefaultRetry, func() error {
			class := &diskv1alpha1.DiskClass{}
			if err := c.Get(ctx, client.ObjectKey{Name: name}, class); err != nil {
				return err
			}
			class.Spec.MaxPieces = most
			return c.Update(ctx, class)
		})
	}
	if err := set(t.Context(), most); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := set(context.WithoutCancel(t.Context()), nil); err != nil {
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
	pod.Spec.Volumes = []corev1.Volume{objects.InlineVolume("data", "ssd", objects.GiB(sizeGiB))}
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
		if err := testenv.Receive(t, "the pods of a client", results); err != nil {
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

// waitDecided waits until every pod is either bound or has the event that there is no room, and
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
		if !ok || place.Disk != simDisk(pod.Spec.NodeName) || place.Length != sizeGiB*units.GiB {
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

// startPlane starts a control plane of the test's own.
func startPlane(t *testing.T, o cluster.Options) *schedulers {
	t.Helper()
	o.Name, o.Log = t.Name(), t.Output()
	c, err := cluster.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	return &schedulers{cluster: c, client: c.Client()}
}

// killScheduler ends the scheduler as a crash would. restart starts it again.
func (s *schedulers) killScheduler(t *testing.T) (restart func()) {
	t.Helper()
	if err := s.cluster.KillScheduler(); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := s.cluster.StartScheduler(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// onControlPlane is the shared control plane with the namespace of the tests, and without a scheduler.
func onControlPlane(t *testing.T) *schedulers {
	t.Helper()
	plane := controlPlane(t)
	s := &schedulers{cluster: plane, client: plane.Client()}
	if err := s.client.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: schedulerTests}}); client.IgnoreAlreadyExists(err) != nil {
		t.Fatal(err)
	}
	return s
}

// startSchedulers runs the scheduler on the shared control plane, until the test ends.
func startSchedulers(t *testing.T) *schedulers {
	t.Helper()
	s := onControlPlane(t)
	plane := s.cluster
	if err := plane.StartScheduler(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := plane.StopScheduler(); err != nil {
			t.Error(err)
		}
	})
	s.class(t, "ssd")
	return s
}

// waitEvent waits for an event about why a pod is not placed that says something; a name that ends
// with "-" stands for all pods whose names begin so.
func (s *schedulers) waitEvent(t *testing.T, pod, says string) {
	t.Helper()
	s.waitNote(t, pod, "FailedScheduling", says)
}

// waitNote is waitEvent for events of any reason. The condition of a pod that was refused counts as its event: the
// recorder adds a second event about the same version of a pod to the first one, whose note stays.
func (s *schedulers) waitNote(t *testing.T, pod, reason, says string) {
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
		var notes []string
		for _, e := range list.Items {
			is := e.Regarding.Name == pod || strings.HasSuffix(pod, "-") && strings.HasPrefix(e.Regarding.Name, pod)
			if !is || e.Reason != reason {
				continue
			}
			if strings.Contains(e.Note, says) {
				t.Logf("%s: %s", pod, e.Note)
				return nil
			}
			notes = append(notes, e.Note)
		}
		for _, message := range s.refusals(t, pod) {
			if reason == "FailedScheduling" && strings.Contains(message, says) {
				t.Logf("%s: %s", pod, message)
				return nil
			}
		}
		return fmt.Errorf("pod %s has no event %s %q, but %q", pod, reason, says, notes)
	})
}

// withoutPolicy lifts the admission policies, if the control plane has them: a client that can
// write past them, or a cluster without them, must do no harm.
func (s *schedulers) withoutPolicy(t *testing.T) {
	t.Helper()
	var bindings admissionv1.ValidatingAdmissionPolicyBindingList
	if err := s.client.List(t.Context(), &bindings); err != nil {
		t.Fatal(err)
	}
	probe := func(ctx context.Context) error {
		pod := diskPod("probe", 1)
		pod.Annotations = map[string]string{diskv1alpha1.AnnotationAllocation: "probe"}
		return s.client.Create(ctx, pod, client.DryRunAll)
	}
	had := probe(t.Context()) != nil
	// This runs when the bindings are restored. The API server sees that late: the next test would delete bindings that
	// are not in force yet, and find them in force afterwards.
	t.Cleanup(func() {
		s.eventually(t, func(ctx context.Context) error {
			if err := probe(ctx); had && err == nil {
				return errors.New("the admission policies are not in force again")
			}
			return nil
		})
	})
	for i := range bindings.Items {
		binding := &bindings.Items[i]
		if !strings.HasSuffix(binding.Spec.PolicyName, diskv1alpha1.GroupName) {
			continue
		}
		if err := s.client.Delete(t.Context(), binding); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			restored := &admissionv1.ValidatingAdmissionPolicyBinding{ObjectMeta: metav1.ObjectMeta{Name: binding.Name}, Spec: binding.Spec}
			if err := s.client.Create(context.WithoutCancel(t.Context()), restored); err != nil {
				t.Error(err)
			}
		})
	}
	s.eventually(t, probe)
}

// refusals are the messages of the pod's condition PodScheduled while it is refused.
func (s *schedulers) refusals(t *testing.T, pod string) (messages []string) {
	t.Helper()
	for _, p := range s.pods(t) {
		for _, c := range p.Status.Conditions {
			if p.Name == pod && c.Type == corev1.PodScheduled && c.Reason == corev1.PodReasonUnschedulable {
				messages = append(messages, c.Message)
			}
		}
	}
	return messages
}
