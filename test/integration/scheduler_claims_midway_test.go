package integration

import (
	"context"
	"errors"
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/units"
)

// TestSchedulerClaimsMidway: claims, when something else happens to the same space or the same
// objects meanwhile.
func TestSchedulerClaimsMidway(t *testing.T) {
	s := claimSchedulers(t)
	s.runClaimTests(t, []claimTest{
		{"class deleted midway", classDeletedMidway},
		{"both sides", claimsOfBothSides},
		{"headroom", claimHeadroom},
		{"gang", claimGang},
	})
}

// classDeletedMidway: the StorageClass is deleted when the volume was made and the claim was not
// written, and the scheduler is another one by then. Nothing of it is needed any more.
func classDeletedMidway(t *testing.T, s *schedulers) {
	node := newSimNode(t, s.client, "sim-0", 10, diskv1alpha1.DriverName)
	followClaims(t, s.client, node)
	class := s.storageClass(t, "fleeting", nil)
	if err := s.cluster.KillScheduler(); err != nil {
		t.Fatal(err)
	}
	waiting := runScheduler(t, s.cluster, "", "bindTimeoutSeconds: 600", "controllerPatience: 10m", "leaderElect: true", "leaderElect: false")
	thaw := s.freeze(t, "kube-controller-manager")
	s.pvc(t, "data", class.Name, 4)
	pod := claimPod("db", "data")
	s.create(t, pod)
	s.eventually(t, func(context.Context) error {
		if len(s.volumes(t)) != 1 {
			return errors.New("there is no volume yet")
		}
		return nil
	})
	waiting.kill()
	made := s.volumes(t)[0].UID
	if err := s.client.Delete(t.Context(), class); err != nil {
		t.Fatal(err)
	}
	if err := s.cluster.StartScheduler(t.Context()); err != nil {
		t.Fatal(err)
	}
	thaw()
	s.waitNode(t, pod)
	if pv, v := s.volumeOf(t, "data"); pv.UID != made || v.Size != 4*units.GiB {
		t.Errorf("the claim is bound to %s of %d bytes", pv.Name, v.Size)
	}
	if total := s.holdApart(t); total != 4*units.GiB {
		t.Errorf("%d GiB are recorded, want 4", total/units.GiB)
	}
}

// claimsOfBothSides: pods of the stock profile, whose scheduler chooses nodes for their claims
// without knowing what is free, and pods of ours, with claims and inline volumes, want the same
// space at the same time. All of it is given away, once.
func claimsOfBothSides(t *testing.T, s *schedulers) {
	const each, wanted = 8, 60
	nodes := fleet(t, s, each)
	followClaims(t, s.client, nodes...)
	for i := range wanted {
		name := fmt.Sprintf("side-%02d", i)
		if i%3 == 0 {
			s.create(t, diskPod(name, 1))
			continue
		}
		s.pvc(t, name, "ssd", 1)
		pod := claimPod(name, name)
		if i%3 == 1 {
			pod.Spec.SchedulerName = corev1.DefaultSchedulerName
		}
		s.create(t, pod)
	}
	room := each * len(nodes)
	stock := 0
	for _, pod := range s.waitBound(t, room) {
		if pod.Spec.SchedulerName == corev1.DefaultSchedulerName {
			stock++
		}
	}
	t.Logf("%d of %d places went to pods of the stock profile", stock, room)
	if stock == 0 || stock == room {
		t.Errorf("%d of %d places went to pods of the stock profile: this shows nothing", stock, room)
	}
	if total := s.holdApart(t); total != int64(room)*units.GiB {
		t.Errorf("%d GiB are recorded, want %d", total/units.GiB, room)
	}
	for _, n := range nodes {
		n.check(t)
		if moved, evicted := n.counts(); moved+evicted > 0 {
			t.Errorf("node %s moved %d volumes and evicted %d pods: space was sold twice", n.name, moved, evicted)
		}
	}
}

// claimHeadroom: a claim whose class wants room to grow goes where the room is, not where it fits
// most tightly, and gets that room when it asks for it.
func claimHeadroom(t *testing.T, s *schedulers) {
	s.storageClass(t, "roomy", func(c *storagev1.StorageClass) {
		c.Parameters[diskv1alpha1.ParameterHeadroom] = "50%"
		c.AllowVolumeExpansion = new(true)
	})
	tight := newSimNode(t, s.client, "sim-0", 4, diskv1alpha1.DriverName)
	wide := newSimNode(t, s.client, "sim-1", 6, diskv1alpha1.DriverName)
	followClaims(t, s.client, tight, wide)
	s.pvc(t, "roomy", "roomy", 4)
	roomy := claimPod("roomy", "roomy")
	s.create(t, roomy)
	s.waitNode(t, roomy)
	if roomy.Spec.NodeName != wide.name {
		t.Fatalf("the pod is on %s, where its claim cannot grow", roomy.Spec.NodeName)
	}
	s.pvc(t, "plain", "ssd", 4)
	plain := claimPod("plain", "plain")
	s.create(t, plain)
	s.waitNode(t, plain)
	if plain.Spec.NodeName != tight.name {
		t.Errorf("the pod whose claim needs no headroom is on %s", plain.Spec.NodeName)
	}

	pvc := &corev1.PersistentVolumeClaim{}
	pvc.Namespace, pvc.Name = schedulerTests, "roomy"
	s.reload(t, pvc)
	before := pvc.DeepCopy()
	pvc.Spec.Resources.Requests[corev1.ResourceStorage] = *quantity(6 * units.GiB)
	if err := s.client.Patch(t.Context(), pvc, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
	s.eventually(t, func(context.Context) error {
		s.reload(t, pvc)
		if state := pvc.Status.AllocatedResourceStatuses[corev1.ResourceStorage]; state != corev1.PersistentVolumeClaimNodeResizePending {
			return fmt.Errorf("the status of the claim that grows is %+v", pvc.Status)
		}
		return nil
	})
	if _, v := s.volumeOf(t, "roomy"); v.Size != 6*units.GiB {
		t.Errorf("the volume has %d bytes", v.Size)
	}
	s.create(t, diskPod("late", 1))
	s.waitEvent(t, "late", "no free space of class ssd, wants 1Gi")
	s.holdApart(t)
}

// claimGang: while the pods of a group wait for each other, their claims have places and no
// volumes, so that nothing ties them to nodes if the group has no room as a whole.
func claimGang(t *testing.T, s *schedulers) {
	followClaims(t, s.client, newSimNode(t, s.client, "sim-0", 10, diskv1alpha1.DriverName), newSimNode(t, s.client, "sim-1", 10, diskv1alpha1.DriverName))
	defer s.coschedule(t)()

	// Four of the five have room.
	const members = 5
	group := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "scheduling.x-k8s.io/v1alpha1", "kind": "PodGroup",
		"metadata": map[string]any{"namespace": schedulerTests, "name": "claims"},
		"spec":     map[string]any{"minMember": int64(members)},
	}}
	s.make(t, group)
	for i := range members {
		name := fmt.Sprintf("claims-%d", i)
		s.pvc(t, name, "ssd", 4)
		pod := claimPod(name, name)
		pod.Labels = map[string]string{"scheduling.x-k8s.io/pod-group": group.GetName()}
		s.create(t, pod)
	}
	s.waitEvent(t, "claims-", "wants 4Gi")
	if bound, volumes := len(s.bound(t)), len(s.volumes(t)); bound+volumes > 0 {
		t.Errorf("%d pods of a group that has no room are bound, and there are %d volumes", bound, volumes)
	}
	followClaims(t, s.client, newSimNode(t, s.client, "sim-2", 10, diskv1alpha1.DriverName))
	// It is not new space that has Coscheduling try a group again, but any pod that is bound.
	s.create(t, plainPod("passer-by", "berth"))
	s.waitBound(t, members+1)
	if total := s.holdApart(t); total != members*4*units.GiB {
		t.Errorf("%d GiB are recorded, want %d", total/units.GiB, members*4)
	}
	for i := range members {
		s.volumeOf(t, fmt.Sprintf("claims-%d", i))
	}
}
