package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

// narrowing asserts that of a large cluster a pod is tried on the fifty best of the nodes that can take it, and on all
// when another plugin refuses those: here the other pods of the nodes repel the pod, all but one node's.
func narrowing(t *testing.T, s *schedulers) {
	const (
		count, tightest = 150, 100
		repelled        = "repelled"
	)
	nodes := make([]*simNode, count)
	for i := range nodes {
		size := int64(10)
		switch {
		case i == count-1:
			size = 40
		case i >= tightest:
			size = 20
		}
		nodes[i] = newSimNode(t, s.client, fmt.Sprintf("sim-%03d", i), size, diskv1alpha1.DriverName)
		switch {
		case i == count-1:
			nodes[i].limitCPU(t, "10")
		case i%2 == 0:
			nodes[i].limitCPU(t, "0")
		default:
			nodes[i].taint(t)
		}
	}
	roomy := nodes[count-1]
	follow(t, s.client, nodes...)
	const narrowed = "Only the nodes that the volumes fit best were tried"
	waitBoundThere := func(name string) {
		t.Helper()
		start := time.Now()
		s.eventually(t, func(context.Context) error {
			for _, pod := range s.bound(t) {
				if pod.Name == name {
					if pod.Spec.NodeName != roomy.name {
						t.Fatalf("pod %s is bound to %s", name, pod.Spec.NodeName)
					}
					return nil
				}
			}
			return fmt.Errorf("pod %s is not bound", name)
		})
		t.Logf("%s was bound after %s", name, time.Since(start).Round(time.Millisecond))
	}

	s.create(t, withCPU(diskPod("greedy", 5), "100"))
	s.waitLog(t, "greedy", "0/150 nodes are available: 74 node(s) had untolerated taint(s), 76 Insufficient cpu")
	s.waitCondition(t, "greedy", "0/150 nodes are available: 74 node(s) had untolerated taint(s), 76 Insufficient cpu")
	// Of nodes with CPU and without a taint only one is there, of whatever size the disks of the others are.
	s.create(t, withCPU(diskPod("fits", 20), "6"))
	waitBoundThere("fits")

	// Now all nodes could take a pod, and run one that repels it.
	for _, n := range nodes[:count-1] {
		n.limitCPU(t, "10")
		n.untaint(t)
		s.create(t, repelling(n.name, repelled))
	}
	class := s.important(t)
	important := func(name string, sizeGiB int64) *corev1.Pod {
		pod := diskPod(name, sizeGiB)
		pod.Labels = map[string]string{repelled: "true"}
		pod.Spec.PriorityClassName = class.Name
		return pod
	}
	s.create(t, important("refused", 5))
	waitBoundThere("refused")
	s.waitLog(t, "refused", narrowed)

	// Preemption comes after all nodes were looked at, and is as good as ever. The pod is of an origin of its own: one
	// of this namespace was narrowed in vain a moment ago.
	preempting := important("important", 18)
	preempting.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "other", UID: "other", Controller: new(true)}}
	s.create(t, preempting)
	waitBoundThere("important")
	s.waitLog(t, "important", narrowed)
}

// repelling is a pod on a node beside which no pod with the label may be scheduled, and that no other preempts.
func repelling(node, label string) *corev1.Pod {
	pod := plainPod("repelling-"+node, "berth")
	pod.Spec.NodeName, pod.Spec.PriorityClassName = node, "system-node-critical"
	pod.Spec.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{{
		LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{label: "true"}}, TopologyKey: corev1.LabelHostname,
	}}}}
	return pod
}

// waitLog waits until the scheduler has said that of the pod. A pod that is tried again is
// refused twice within milliseconds, and of two such events, sent side by side under the
// same key, one may not come through; the log has both.
func (s *schedulers) waitLog(t *testing.T, pod, says string) {
	t.Helper()
	s.eventually(t, func(context.Context) error {
		log, err := os.ReadFile(filepath.Join(s.cluster.LogDir(), "scheduler.log"))
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(log)) {
			if strings.Contains(line, fmt.Sprintf(`pod="%s/%s" err=`, schedulerTests, pod)) && strings.Contains(line, says) {
				return nil
			}
		}
		return fmt.Errorf("the scheduler has not said of pod %s: %s", pod, says)
	})
}

// waitCondition waits until the pod itself says why it is not scheduled.
func (s *schedulers) waitCondition(t *testing.T, name, says string) {
	t.Helper()
	s.eventually(t, func(ctx context.Context) error {
		pod := &corev1.Pod{}
		if err := s.client.Get(ctx, client.ObjectKey{Namespace: schedulerTests, Name: name}, pod); err != nil {
			return err
		}
		for _, c := range pod.Status.Conditions {
			if c.Type == corev1.PodScheduled && strings.Contains(c.Message, says) {
				return nil
			}
		}
		return fmt.Errorf("pod %s does not say %q, but %+v", name, says, pod.Status.Conditions)
	})
}

func withCPU(pod *corev1.Pod, cpu string) *corev1.Pod {
	pod.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu)}
	return pod
}

func (n *simNode) limitCPU(t *testing.T, cpu string) {
	t.Helper()
	node := &corev1.Node{}
	n.must(t, n.client.Get(t.Context(), client.ObjectKey{Name: n.name}, node))
	node.Status.Capacity[corev1.ResourceCPU] = resource.MustParse(cpu)
	node.Status.Allocatable[corev1.ResourceCPU] = resource.MustParse(cpu)
	n.must(t, n.client.Status().Update(t.Context(), node))
}

func (n *simNode) taint(t *testing.T) {
	t.Helper()
	node := &corev1.Node{}
	n.must(t, n.client.Get(t.Context(), client.ObjectKey{Name: n.name}, node))
	node.Spec.Taints = []corev1.Taint{{Key: "example.com/reserved", Effect: corev1.TaintEffectNoSchedule}}
	n.must(t, n.client.Update(t.Context(), node))
}

func (n *simNode) untaint(t *testing.T) {
	t.Helper()
	node := &corev1.Node{}
	n.must(t, n.client.Get(t.Context(), client.ObjectKey{Name: n.name}, node))
	node.Spec.Taints = nil
	n.must(t, n.client.Update(t.Context(), node))
}
