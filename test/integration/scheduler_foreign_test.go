package integration

import (
	"context"
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

// TestForeignScheduler asserts that the example of a scheduler with another main, which registers Berth's plugins by
// Options and nothing else, places a pod with its record, by its own plugin as well, and runs Berth's controllers.
func TestForeignScheduler(t *testing.T) {
	s := onControlPlane(t)
	s.class(t, "ssd")
	nodes := []*simNode{newSimNode(t, s.client, "sim-0", 10, diskv1alpha1.DriverName), newSimNode(t, s.client, "sim-1", 5, diskv1alpha1.DriverName)}
	follow(t, s.client, nodes...)
	closed := client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"labels":{"example.com/maintenance":"true"}}}`))
	if err := s.client.Patch(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "sim-1"}}, closed); err != nil {
		t.Fatal(err)
	}
	programOf(t, s.cluster, "examples/foreign-scheduler", "examples/foreign-scheduler/config.yaml", "")()

	pod := diskPod("foreign", 2)
	pod.Spec.SchedulerName = "foreign"
	s.create(t, pod)
	t.Cleanup(func() { s.clear(t) })
	bound := s.waitBound(t, 1)
	places(t, bound, 2)
	// It would fit sim-1 more tightly.
	if bound[0].Spec.NodeName != "sim-0" {
		t.Errorf("the pod is on node %s", bound[0].Spec.NodeName)
	}
	s.eventually(t, func(ctx context.Context) error {
		class := &diskv1alpha1.DiskClass{}
		if err := s.client.Get(ctx, client.ObjectKey{Name: "ssd"}, class); err != nil {
			return err
		}
		if class.Status.Disks == 0 {
			return fmt.Errorf("the controllers wrote no status of DiskClass ssd, but %+v", class.Status)
		}
		return nil
	})
}
