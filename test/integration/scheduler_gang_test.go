package integration

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

// gang: with Coscheduling in the same profile, the pods of a group are placed all or none.
// Those that wait for the others hold their extents, and give them back.
func gang(t *testing.T, s *schedulers) {
	first, second := newSimNode(t, s.client, "sim-0", 10, diskv1alpha1.DriverName), newSimNode(t, s.client, "sim-1", 10, diskv1alpha1.DriverName)
	nodes := []*simNode{first, second}
	follow(t, s.client, nodes...)
	defer s.coschedule(t)()

	// Four of the five have room.
	s.createGang(t, "large", 5, 4)
	s.waitEvent(t, "large-", "wants 4Gi")
	if bound := s.bound(t); len(bound) > 0 {
		t.Errorf("%d pods of a group are bound that has no room as a whole", len(bound))
	}
	third := newSimNode(t, s.client, "sim-2", 10, diskv1alpha1.DriverName)
	follow(t, s.client, third)
	// Coscheduling rejected its pods for the group's sake, and what wakes those is not new
	// space, but any pod that is bound.
	passerby := plainPod("passer-by", "berth")
	s.create(t, passerby)
	var members []corev1.Pod
	s.eventually(t, func(context.Context) error {
		members = slices.DeleteFunc(s.bound(t), func(p corev1.Pod) bool { return p.Name == passerby.Name })
		if len(members) != 5 {
			return fmt.Errorf("%d pods of the group are bound, want 5", len(members))
		}
		return nil
	})
	places(t, members, 4)
	s.clear(t)

	// What was held for a group in vain is free for others.
	s.createGang(t, "vain", 7, 4)
	s.waitEvent(t, "vain-", "wants 4Gi")
	for _, pod := range s.pods(t) {
		if err := s.client.Delete(t.Context(), &pod, client.GracePeriodSeconds(0)); err != nil {
			t.Fatal(err)
		}
	}
	s.create(t, diskPod("a", 10), diskPod("b", 10), diskPod("c", 10))
	s.eventually(t, func(context.Context) error {
		if bound := s.bound(t); len(bound) != 3 {
			return fmt.Errorf("%d pods that need a whole disk are bound, want 3", len(bound))
		}
		return nil
	})
	places(t, s.bound(t), 10)
	for _, n := range append(nodes, third) {
		if moved, evicted := n.counts(); moved+evicted > 0 {
			t.Errorf("node %s moved %d volumes and evicted %d pods", n.name, moved, evicted)
		}
	}
}

// createGang creates a PodGroup and its pods.
func (s *schedulers) createGang(t *testing.T, name string, count int, sizeGiB int64) {
	t.Helper()
	group := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "scheduling.x-k8s.io/v1alpha1", "kind": "PodGroup",
		"metadata": map[string]any{"namespace": schedulerTests, "name": name},
		"spec":     map[string]any{"minMember": int64(count)},
	}}
	if err := s.client.Create(t.Context(), group); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.client.Delete(context.WithoutCancel(t.Context()), group); err != nil {
			t.Error(err)
		}
	})
	var failed error
	for i := range count {
		pod := diskPod(fmt.Sprintf("%s-%d", name, i), sizeGiB)
		pod.ObjectMeta = metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name, Labels: map[string]string{"scheduling.x-k8s.io/pod-group": name}}
		failed = errors.Join(failed, s.client.Create(t.Context(), pod))
	}
	if failed != nil {
		t.Fatal(failed)
	}
}

// coschedule runs, instead of the scheduler, one that also has Coscheduling, until back is called.
func (s *schedulers) coschedule(t *testing.T) (back func()) {
	t.Helper()
	if err := s.cluster.Apply(t.Context(), "test/integration/testdata/podgroups.yaml"); err != nil {
		t.Fatal(err)
	}
	if err := s.cluster.KillScheduler(); err != nil {
		t.Fatal(err)
	}
	runScheduler(t, s.cluster, "",
		"        weight: 10\n", "        weight: 10\n      - name: Coscheduling\n",
		"    postFilter:\n", "    queueSort:\n      enabled: [{name: Coscheduling}]\n      disabled: [{name: \"*\"}]\n    postFilter:\n",
		"  pluginConfig:\n", "  pluginConfig:\n  - name: Coscheduling\n    args: {permitWaitingTimeSeconds: 20}\n",
		"leaderElect: true", "leaderElect: false")
	return func() {
		if err := s.cluster.StartScheduler(t.Context()); err != nil {
			t.Error(err)
		}
	}
}
