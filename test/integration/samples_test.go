package integration

import (
	"context"
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/cluster"
)

// TestSamples: what config/samples has is accepted as it is, and all its pods and claims get
// their places.
func TestSamples(t *testing.T) {
	s := startPlane(t, cluster.Options{
		Scheduler: true, ControllerManager: true,
		Controllers: append([]string{"deployment-controller", "replicaset-controller", "statefulset-controller"}, claimControllers...),
	})
	c := s.cluster
	// The class of slow disks is left to the reader.
	s.class(t, "hdd")
	for i := range 3 {
		n := newSimNode(t, c.Client(), fmt.Sprintf("sim-%d", i), 1, diskv1alpha1.DriverName)
		var disks []diskv1alpha1.Disk
		for _, class := range []string{"ssd", "hdd"} {
			const size = 20 << 30
			disks = append(disks, diskv1alpha1.Disk{
				ID: diskv1alpha1.PartitionID(n.name + class), Device: class, Class: class, SectorSize: 512, State: diskv1alpha1.DiskReady,
				Size: size + 2*diskv1alpha1.Alignment, Overhead: 2 * diskv1alpha1.Alignment,
				Free: []diskv1alpha1.Extent{{Start: diskv1alpha1.Alignment, Length: size}},
			})
		}
		n.must(t, n.write(t.Context(), disks...))
	}
	if err := c.Apply(t.Context(), "config/samples"); err != nil {
		t.Fatal(err)
	}
	// Of a StatefulSet, the next pod is made when the one before is ready: a kubelet says so.
	const pods, claims = 1 + 1 + 9 + 3, 1 + 3*2
	s.eventually(t, func(ctx context.Context) error {
		var all corev1.PodList
		if err := c.Client().List(ctx, &all, client.InNamespace("default")); err != nil {
			return err
		}
		bound := 0
		for i := range all.Items {
			pod := &all.Items[i]
			if pod.Spec.NodeName == "" {
				continue
			}
			bound++
			if pod.Status.Phase == corev1.PodRunning {
				continue
			}
			pod.Status.Phase = corev1.PodRunning
			pod.Status.Conditions = append(pod.Status.Conditions, corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionTrue})
			if err := c.Client().Status().Update(ctx, pod); err != nil {
				return err
			}
		}
		var pvcs corev1.PersistentVolumeClaimList
		if err := c.Client().List(ctx, &pvcs, client.InNamespace("default")); err != nil {
			return err
		}
		served := 0
		for i := range pvcs.Items {
			if pvcs.Items[i].Status.Phase == corev1.ClaimBound {
				served++
			}
		}
		if bound != pods || served != claims {
			return fmt.Errorf("%d of %d pods and %d of %d claims are bound, want %d and %d", bound, len(all.Items), served, len(pvcs.Items), pods, claims)
		}
		return nil
	})
}
