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
	"sigs.k8s.io/controller-runtime/pkg/client"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

// narrowing: of a large cluster, a pod is tried on the fifty best nodes. Here none of
// them will do, for reasons that have nothing to do with disks, and it must not matter.
func narrowing(t *testing.T, s *schedulers) {
	const count, tightest = 150, 100
	nodes := make([]*simNode, count)
	for i := range nodes {
		size := int64(10)
		if i >= tightest {
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

	// The scheduler must know all nodes: it narrows only a large cluster.
	s.create(t, withCPU(diskPod("greedy", 5), "100"))
	s.waitLog(t, "greedy", narrowed)
	s.waitLog(t, "greedy", "0/150 nodes are available: 74 node(s) had untolerated taint(s), 76 Insufficient cpu")
	s.waitCondition(t, "greedy", "0/150 nodes are available: 74 node(s) had untolerated taint(s), 76 Insufficient cpu")

	afterPause(t)
	s.create(t, withCPU(diskPod("fits", 5), "6"))
	waitBoundThere("fits")
	s.waitLog(t, "fits", narrowed)

	// Preemption comes after all nodes were looked at, and is as good as ever.
	class := s.important(t)
	important := withCPU(diskPod("important", 5), "6")
	important.Spec.PriorityClassName = class.Name
	afterPause(t)
	s.create(t, important)
	waitBoundThere("important")
	s.waitLog(t, "important", narrowed)
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

// afterPause waits until the scheduler narrows again: for ten seconds after it was in vain
// it does not.
func afterPause(t *testing.T) {
	t.Helper()
	select {
	case <-time.After(11 * time.Second):
	case <-t.Context().Done():
	}
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
