package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	schedulingv1alpha2 "k8s.io/api/scheduling/v1alpha2"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/cluster"
)

// TestSchedulerWorkloads runs the scheduler with feature gates of Kubernetes 1.36 that are off by default: gangs by
// PodGroups, and calls of the API that the scheduler does not wait for.
func TestSchedulerWorkloads(t *testing.T) {
	s := claimSchedulersWith(t, cluster.Options{
		APIServerArgs: []string{"--feature-gates=GenericWorkload=true,GangScheduling=true", "--runtime-config=scheduling.k8s.io/v1alpha2=true"},
		SchedulerArgs: []string{"--feature-gates=GenericWorkload=true,GangScheduling=true,SchedulerAsyncAPICalls=true"},
	})
	s.runClaimTests(t, []claimTest{
		{"one plan", onePlan},
		{"generic ephemeral", genericEphemeral},
		{"preemption", preemption},
		{"claim preemption", claimPreemption},
		{"gang", workloadGang},
		{"gang of claims", workloadGangOfClaims},
		{"gang that preempts", workloadGangPreempts},
	})
}

// podGroup makes a gang, and returns a function that puts a pod into it.
func (s *schedulers) podGroup(t *testing.T, name string, minCount int32) func(*corev1.Pod) *corev1.Pod {
	t.Helper()
	group := &schedulingv1alpha2.PodGroup{ObjectMeta: metav1.ObjectMeta{Namespace: schedulerTests, Name: name}}
	group.Spec.SchedulingPolicy.Gang = &schedulingv1alpha2.GangSchedulingPolicy{MinCount: minCount}
	s.make(t, group)
	t.Cleanup(func() {
		if err := s.client.Delete(context.WithoutCancel(t.Context()), group); err != nil {
			t.Error(err)
		}
	})
	return func(pod *corev1.Pod) *corev1.Pod {
		pod.Spec.SchedulingGroup = &corev1.PodSchedulingGroup{PodGroupName: &name}
		return pod
	}
}

// waitGroup waits for a reason in the condition of the group.
func (s *schedulers) waitGroup(t *testing.T, name, reason string) {
	t.Helper()
	s.eventually(t, func(ctx context.Context) error {
		group := &schedulingv1alpha2.PodGroup{}
		if err := s.client.Get(ctx, client.ObjectKey{Namespace: schedulerTests, Name: name}, group); err != nil {
			return err
		}
		if c := meta.FindStatusCondition(group.Status.Conditions, schedulingv1alpha2.PodGroupScheduled); c == nil || c.Reason != reason {
			return fmt.Errorf("the condition of group %s is %+v, want %s", name, c, reason)
		}
		return nil
	})
}

// withoutGroupErrors asserts that no cycle of a group ended with an error.
func (s *schedulers) withoutGroupErrors(t *testing.T) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(s.cluster.LogDir(), "scheduler.log"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, "Error scheduling pod group") {
			t.Errorf("the scheduler says %s", line)
		}
	}
}

// workloadGang asserts that the pods of a group get their places all or none, and that a group which was refused is
// woken by a node that makes room.
func workloadGang(t *testing.T, s *schedulers) {
	nodes := []*simNode{newSimNode(t, s.client, "sim-0", 10, diskv1alpha1.DriverName), newSimNode(t, s.client, "sim-1", 10, diskv1alpha1.DriverName)}
	follow(t, s.client, nodes...)
	in := s.podGroup(t, "gang", 5)
	for i := range 5 {
		s.create(t, in(diskPod(fmt.Sprintf("gang-%d", i), 4)))
	}
	s.waitGroup(t, "gang", schedulingv1alpha2.PodGroupReasonUnschedulable)
	if bound := s.bound(t); len(bound) > 0 {
		t.Errorf("%d pods of a group are bound that has no room as a whole", len(bound))
	}
	third := newSimNode(t, s.client, "sim-2", 10, diskv1alpha1.DriverName)
	follow(t, s.client, third)
	places(t, s.waitBound(t, 5), 4)
	s.waitGroup(t, "gang", "Scheduled")
	for _, n := range append(nodes, third) {
		if moved, evicted := n.counts(); moved+evicted > 0 {
			t.Errorf("node %s moved %d volumes and evicted %d pods", n.name, moved, evicted)
		}
	}
	s.withoutGroupErrors(t)
}

// workloadGangOfClaims asserts the same of pods with claims.
func workloadGangOfClaims(t *testing.T, s *schedulers) {
	followClaims(t, s.client, newSimNode(t, s.client, "sim-0", 10, diskv1alpha1.DriverName), newSimNode(t, s.client, "sim-1", 10, diskv1alpha1.DriverName))
	in := s.podGroup(t, "claims", 3)
	for i := range 3 {
		name := fmt.Sprintf("claims-%d", i)
		s.pvc(t, name, "ssd", 3)
		s.create(t, in(withClaims(diskPod(name, 2), name)))
	}
	bound := s.waitBound(t, 3)
	places(t, bound, 2)
	for _, pod := range bound {
		if _, v := s.volumeOf(t, pod.Name); v.Node != pod.Spec.NodeName {
			t.Errorf("pod %s is on node %s, its claim on %s", pod.Name, pod.Spec.NodeName, v.Node)
		}
	}
	s.holdApart(t)
	s.withoutGroupErrors(t)
}

// workloadGangPreempts asserts that a group which preempts waits for its places, nominated, while the nodes wipe the
// victims' volumes, and that a pod which is less important does not get them.
func workloadGangPreempts(t *testing.T, s *schedulers) {
	nodes := []*simNode{newSimNode(t, s.client, "sim-0", 10, diskv1alpha1.DriverName), newSimNode(t, s.client, "sim-1", 10, diskv1alpha1.DriverName)}
	follow(t, s.client, nodes...)
	for i := range 4 {
		s.create(t, diskPod(fmt.Sprintf("victim-%d", i), 5))
	}
	for _, n := range nodes {
		s.waitHolds(t, n, 10)
		n.setSlow(true)
	}
	in := s.podGroup(t, "important", 2)
	for i, n := range nodes {
		pod := s.ofPriority(t, in(diskPod(fmt.Sprintf("important-%d", i), 8)), 1000)
		// Without it both may preempt on the same node: kube-scheduler does not tell a member where the others do.
		pod.Spec.NodeSelector = map[string]string{corev1.LabelHostname: n.name}
		s.create(t, pod)
	}
	s.eventually(t, func(ctx context.Context) error {
		nominated := 0
		for _, pod := range s.pods(t) {
			if strings.HasPrefix(pod.Name, "victim-") {
				return errors.New("a victim is left")
			}
			if pod.Status.NominatedNodeName != "" {
				nominated++
			}
		}
		if nominated != 2 {
			return fmt.Errorf("%d pods are nominated, want 2", nominated)
		}
		return nil
	})
	// It would fit where the group is to go.
	s.create(t, diskPod("less", 6))
	for _, n := range nodes {
		n.setSlow(false)
	}
	s.eventually(t, func(context.Context) error {
		for _, pod := range s.pods(t) {
			if important := strings.HasPrefix(pod.Name, "important-"); important != (pod.Spec.NodeName != "") {
				return fmt.Errorf("pod %s is on node %q", pod.Name, pod.Spec.NodeName)
			}
		}
		return nil
	})
	places(t, s.bound(t), 8)
	s.waitGroup(t, "important", "Scheduled")
	s.withoutGroupErrors(t)
}
