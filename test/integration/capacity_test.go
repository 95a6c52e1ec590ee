package integration

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/cluster"
	"github.com/berthdev/berth/test/objects"
)

// upkeep is a control plane with Berth's scheduler, which runs with the rights of its own
// account and under the admission policies, and nodes that are simulated.
type upkeep struct {
	*testing.T
	client client.Client
}

func startUpkeep(t *testing.T) *upkeep {
	t.Helper()
	c, err := cluster.Start(t.Context(), cluster.Options{
		Name: t.Name(), Log: t.Output(), Scheduler: true, SchedulerArgs: []string{"--node-gone-grace=1s"},
		Manifests: []string{"config/crd", "config/admission", "config/nodeagent/rbac.yaml", "config/scheduler/rbac.yaml"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	u := &upkeep{t, c.Client()}
	u.create(objects.DiskClass("ssd"))
	return u
}

func (u *upkeep) create(o client.Object) {
	u.Helper()
	if err := u.client.Create(u.Context(), o); err != nil {
		u.Fatal(err)
	}
}

// node makes a Node with the start-up taint and another one, and what the kubelet and the agent
// write of it.
func (u *upkeep) node(name string, disks ...string) {
	u.Helper()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{Taints: []corev1.Taint{
		{Key: diskv1alpha1.TaintNotReady, Effect: corev1.TaintEffectNoSchedule}, {Key: "other", Effect: corev1.TaintEffectNoSchedule},
	}}}
	u.create(node)
	csiNode := objects.CSINode(name, diskv1alpha1.DriverName)
	csiNode.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: name, UID: node.UID}}
	u.create(csiNode)
	u.create(&diskv1alpha1.NodeDiskCapacity{ObjectMeta: metav1.ObjectMeta{Name: name}})
	u.publish(name, disks...)
}

func (u *upkeep) publish(name string, disks ...string) {
	u.Helper()
	u.status(name, func(s *diskv1alpha1.NodeDiskCapacityStatus) {
		s.Disks, s.Devices = nil, []diskv1alpha1.Device{
			{Name: "sdx", Class: "ssd", Transport: diskv1alpha1.TransportSATA, State: diskv1alpha1.DeviceCandidate},
			{Name: "sdy", Class: "ssd", Transport: diskv1alpha1.TransportSATA, State: diskv1alpha1.DeviceBusy, Reasons: []string{"it is mounted"}},
		}
		for _, d := range disks {
			s.Disks = append(s.Disks, diskv1alpha1.Disk{
				ID: diskv1alpha1.PartitionID(d), Device: d, Class: "ssd", SectorSize: 512, Size: 11 << 30, State: diskv1alpha1.DiskReady,
				Free: []diskv1alpha1.Extent{{Start: 1 << 20, Length: 10 << 30}},
			})
		}
		slices.SortFunc(s.Disks, func(a, b diskv1alpha1.Disk) int { return strings.Compare(a.ID, b.ID) })
		meta.SetStatusCondition(&s.Conditions, metav1.Condition{Type: diskv1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: "Test"})
	})
}

// status changes what the node has published.
func (u *upkeep) status(name string, change func(*diskv1alpha1.NodeDiskCapacityStatus)) {
	u.Helper()
	u.eventually(func(ctx context.Context) error {
		ndc := &diskv1alpha1.NodeDiskCapacity{}
		if err := u.client.Get(ctx, client.ObjectKey{Name: name}, ndc); err != nil {
			return err
		}
		change(&ndc.Status)
		return u.client.Status().Update(ctx, ndc)
	})
}

func (u *upkeep) eventually(condition func(context.Context) error) {
	u.Helper()
	if err := cluster.Eventually(u.Context(), 2*patience, condition); err != nil {
		u.Fatal(err)
	}
}

// capacity waits until a NodeDiskCapacity is as it should be.
func (u *upkeep) capacity(name string, is func(*diskv1alpha1.NodeDiskCapacity) bool) {
	u.Helper()
	u.eventually(func(ctx context.Context) error {
		ndc := &diskv1alpha1.NodeDiskCapacity{}
		if err := u.client.Get(ctx, client.ObjectKey{Name: name}, ndc); err != nil {
			return err
		}
		if !is(ndc) {
			return fmt.Errorf("NodeDiskCapacity %s has the spec %+v and the conditions %+v", name, ndc.Spec, ndc.Status.Conditions)
		}
		return nil
	})
}

func owns(disks ...string) func(*diskv1alpha1.NodeDiskCapacity) bool {
	ids := make([]string, len(disks))
	for i, d := range disks {
		ids[i] = diskv1alpha1.PartitionID(d)
	}
	slices.Sort(ids)
	return func(ndc *diskv1alpha1.NodeDiskCapacity) bool { return slices.Equal(ndc.Spec.OwnedDisks, ids) }
}

func shares(status metav1.ConditionStatus) func(*diskv1alpha1.NodeDiskCapacity) bool {
	return func(ndc *diskv1alpha1.NodeDiskCapacity) bool {
		return meta.IsStatusConditionPresentAndEqual(ndc.Status.Conditions, diskv1alpha1.ConditionDisksShared, status)
	}
}

// TestCapacityControllers asserts, against a real API server and its policies, that the scheduler
// writes down who owns a disk, says of a shared one where it serves, takes the start-up taint off,
// evicts what an agent may have evicted, sums up a DiskClass, and removes the NodeDiskCapacity of a node that is gone.
func TestCapacityControllers(t *testing.T) {
	u := startUpkeep(t)
	u.node("first", "d1", "d2")
	u.capacity("first", owns("d1", "d2"))
	u.eventually(func(ctx context.Context) error {
		node := &corev1.Node{}
		if err := u.client.Get(ctx, client.ObjectKey{Name: "first"}, node); err != nil {
			return err
		}
		has := func(key string) bool {
			return slices.ContainsFunc(node.Spec.Taints, func(t corev1.Taint) bool { return t.Key == key })
		}
		if !has("other") {
			t.Fatal("another taint is gone")
		}
		if has(diskv1alpha1.TaintNotReady) {
			return fmt.Errorf("the node has the taints %v", node.Spec.Taints)
		}
		return nil
	})

	// A second node publishes a disk of the first one: the first goes on serving.
	u.node("second", "d1", "d3")
	u.capacity("second", shares(metav1.ConditionTrue))
	u.capacity("first", shares(metav1.ConditionTrue))
	u.capacity("second", owns("d3"))
	u.capacity("first", owns("d1", "d2"))
	u.class(func(s *diskv1alpha1.DiskClassStatus) bool {
		return s.Nodes == 2 && s.Disks == 3 && s.Candidates == 2 && s.RefusedDevices == 2 && len(s.Refused) == 1 && s.Refused[0].Count == 2 &&
			s.Size == "33Gi" && s.Free == "30Gi" && s.Largest == "10Gi" && meta.IsStatusConditionTrue(s.Conditions, diskv1alpha1.ConditionReady)
	})
	// What one node gives up, the other has.
	u.publish("first", "d2")
	u.capacity("first", owns("d2"))
	u.capacity("second", owns("d1", "d3"))
	u.capacity("second", shares(metav1.ConditionFalse))
	u.capacity("first", shares(metav1.ConditionFalse))

	u.evicts()

	// Of two nodes that are gone, the one on which something is claimed is kept.
	u.create(&corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: "claimed", Labels: map[string]string{diskv1alpha1.LabelNode: "second"}},
		Spec: corev1.PersistentVolumeSpec{
			Capacity: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: diskv1alpha1.DriverName, VolumeHandle: "claimed"}},
		},
	})
	for _, name := range []string{"second", "first"} {
		if err := u.client.Delete(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}); err != nil {
			t.Fatal(err)
		}
	}
	u.eventually(func(ctx context.Context) error {
		err := u.client.Get(ctx, client.ObjectKey{Name: "first"}, &diskv1alpha1.NodeDiskCapacity{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("the NodeDiskCapacity of a node that is gone is still there: %w", err)
	})
	u.capacity("second", owns("d1", "d3"))
	u.class(func(s *diskv1alpha1.DiskClassStatus) bool {
		return s.Nodes == 0 && s.Disks == 0 && s.Candidates == 0 && s.RefusedDevices == 0 && len(s.Refused) == 0 && s.Size == "" &&
			meta.IsStatusConditionFalse(s.Conditions, diskv1alpha1.ConditionReady)
	})
}

// evicts asserts that the scheduler evicts the pod that its node's agent wants evicted, and none
// that is on another node or that no controller makes again.
func (u *upkeep) evicts() {
	u.Helper()
	pod := func(name, node string, change func(*corev1.Pod)) *corev1.Pod {
		u.Helper()
		now := int64(0)
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: name, OwnerReferences: controller()}}
		pod.Spec = corev1.PodSpec{
			NodeName: node, TerminationGracePeriodSeconds: &now, Containers: []corev1.Container{{Name: "main", Image: "none"}},
			Volumes: []corev1.Volume{objects.InlineVolume("data", "ssd", "1Ti")},
		}
		change(pod)
		u.create(pod)
		return pod
	}
	pods := []*corev1.Pod{
		pod("elsewhere", "second", func(*corev1.Pod) {}),
		pod("bare", "first", func(p *corev1.Pod) { p.OwnerReferences = nil }),
		pod("misplaced", "first", func(*corev1.Pod) {}),
	}
	// The one that may be evicted is the last.
	u.status("first", func(s *diskv1alpha1.NodeDiskCapacityStatus) {
		for _, p := range pods {
			s.Evictions = append(s.Evictions, diskv1alpha1.EvictionRequest{Namespace: p.Namespace, Name: p.Name, UID: p.UID})
		}
	})
	u.eventually(func(ctx context.Context) error {
		err := u.client.Get(ctx, client.ObjectKeyFromObject(pods[2]), &corev1.Pod{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("the pod is not evicted: %w", err)
	})
	u.status("first", func(s *diskv1alpha1.NodeDiskCapacityStatus) { s.Evictions = nil })
	for _, p := range pods[:2] {
		if err := u.client.Get(u.Context(), client.ObjectKeyFromObject(p), p); err != nil || p.DeletionTimestamp != nil {
			u.Errorf("pod %s is evicted, %v", p.Name, err)
		}
		if err := u.client.Delete(u.Context(), p); err != nil {
			u.Fatal(err)
		}
	}
}

// class waits until the DiskClass says so.
func (u *upkeep) class(is func(*diskv1alpha1.DiskClassStatus) bool) {
	u.Helper()
	u.eventually(func(ctx context.Context) error {
		class := &diskv1alpha1.DiskClass{}
		if err := u.client.Get(ctx, client.ObjectKey{Name: "ssd"}, class); err != nil {
			return err
		}
		if !is(&class.Status) {
			return fmt.Errorf("the DiskClass has the status %+v", class.Status)
		}
		return nil
	})
}
