package integration

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/cluster"
	"github.com/berthdev/berth/test/objects"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// goesOn is how long a StatefulSet may take to go on after one of its nodes is gone.
const goesOn = 2 * time.Minute

// startGone starts a control plane with the controllers of StatefulSets and of pods whose node is gone, Berth's
// scheduler under its policies, and four nodes with real agents. The first disk of each is of DiskClass ssd, which
// releases volumes, the second one of class kept.
func startGone(t *testing.T) *schedulers {
	t.Helper()
	testenv.NeedRoot(t)
	testenv.NeedProgram(t, "losetup", "mkfs.ext4", "blkdiscard")
	nodes := make([]cluster.NodeOptions, 4)
	for i := range nodes {
		name := fmt.Sprintf("gone%d", i+1)
		nodes[i] = cluster.NodeOptions{Name: name, Labels: map[string]string{diskv1alpha1.LabelNode: diskv1alpha1.NodeLabel(name)}}
		nodes[i].Disks = []cluster.DiskOptions{{Size: 264 * units.MiB}, {Size: 264 * units.MiB}}
	}
	c, err := cluster.Start(t.Context(), cluster.Options{
		Name: t.Name(), Log: t.Output(), Nodes: nodes, Agents: true, Scheduler: true, ControllerManager: true,
		// A persistent volume without PersistentVolume is called an orphan after this time.
		AgentArgs:   []string{"--orphan-grace=3s"},
		Controllers: append(slices.Clone(claimControllers), "statefulset-controller", "pod-garbage-collector-controller"),
		Manifests:   []string{"config/crd", "config/admission", "config/nodeagent/csidriver.yaml", "config/nodeagent/rbac.yaml", "config/scheduler/rbac.yaml"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	s := &schedulers{cluster: c, client: c.Client()}
	s.make(t, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: schedulerTests}})
	for i, name := range []string{"ssd", "kept"} {
		class := objects.DiskClass(name)
		class.Spec.Devices = diskv1alpha1.DeviceSelector{}
		class.Spec.Adoption, class.Spec.NewDeviceGrace = diskv1alpha1.AdoptAutomatic, &metav1.Duration{}
		for _, n := range c.Nodes() {
			class.Spec.Devices.Paths = append(class.Spec.Devices.Paths, n.Disks[i].Path)
		}
		if name == "ssd" {
			class.Spec.OnNodeGone = &diskv1alpha1.OnNodeGone{Policy: diskv1alpha1.NodeGoneRelease, After: &metav1.Duration{Duration: time.Second}}
		}
		s.make(t, class, objects.StorageClass(name, name))
	}
	s.eventually(t, func(ctx context.Context) error {
		account := &corev1.ServiceAccount{}
		if err := s.client.Get(ctx, client.ObjectKey{Namespace: schedulerTests, Name: "default"}, account); err != nil {
			return err
		}
		var list diskv1alpha1.NodeDiskCapacityList
		if err := s.client.List(ctx, &list); err != nil {
			return err
		}
		ready := 0
		for _, ndc := range list.Items {
			for _, d := range ndc.Status.Disks {
				if d.State == diskv1alpha1.DiskReady && d.Class != "" {
					ready++
				}
			}
		}
		if ready != 2*len(nodes) {
			return fmt.Errorf("%d disks are in service", ready)
		}
		return nil
	})
	return s
}

// spread is a StatefulSet whose replicas are on different nodes.
func spread(name, class string) *appsv1.StatefulSet {
	labels := map[string]string{"app": name}
	pod := plainPod("x", "berth")
	pod.Spec.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{
		RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{{TopologyKey: corev1.LabelHostname, LabelSelector: &metav1.LabelSelector{MatchLabels: labels}}},
	}}
	return &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: schedulerTests, Name: name},
		Spec: appsv1.StatefulSetSpec{
			Replicas: ptr.To[int32](3), ServiceName: name, Selector: &metav1.LabelSelector{MatchLabels: labels}, PodManagementPolicy: appsv1.ParallelPodManagement,
			Template:             corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: pod.Spec},
			VolumeClaimTemplates: []corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Name: "data"}, Spec: objects.ClaimSpec(class, "64Mi")}},
		},
	}
}

// placed is a pod with its claim and its volume.
type placed struct {
	pod   corev1.Pod
	claim corev1.PersistentVolumeClaim
	pv    corev1.PersistentVolume
}

// read reads a pod that is bound, its claim and volume. The volume is on the pod's node, which publishes it.
func (s *schedulers) read(ctx context.Context, pod, claimName string) (*placed, error) {
	var p placed
	if err := s.client.Get(ctx, client.ObjectKey{Namespace: schedulerTests, Name: pod}, &p.pod); err != nil {
		return nil, err
	}
	if err := s.client.Get(ctx, client.ObjectKey{Namespace: schedulerTests, Name: claimName}, &p.claim); err != nil {
		return nil, err
	}
	if p.pod.Spec.NodeName == "" || p.claim.Status.Phase != corev1.ClaimBound || p.claim.DeletionTimestamp != nil {
		return nil, fmt.Errorf("pod %s is on node %q, its claim is %s", pod, p.pod.Spec.NodeName, p.claim.Status.Phase)
	}
	if err := s.client.Get(ctx, client.ObjectKey{Name: p.claim.Spec.VolumeName}, &p.pv); err != nil {
		return nil, err
	}
	_, err := s.onNode(ctx, p.pod.Spec.NodeName, p.pv.Name)
	return &p, err
}

// onNode finds the allocation of a volume on a node.
func (s *schedulers) onNode(ctx context.Context, node, volume string) (*diskv1alpha1.Allocation, error) {
	ndc := &diskv1alpha1.NodeDiskCapacity{}
	if err := s.client.Get(ctx, client.ObjectKey{Name: node}, ndc); err != nil {
		return nil, err
	}
	for _, d := range ndc.Status.Disks {
		for i := range d.Allocations {
			if d.Allocations[i].Volume == volume {
				return &d.Allocations[i], nil
			}
		}
	}
	return nil, fmt.Errorf("node %s does not publish volume %s", node, volume)
}

// TestNodeGone asserts, with real agents and kube-controller-manager, that a StatefulSet goes on without a node that is
// gone if its class says Release. Everything else is kept. When the node is back, the released volume is an orphan with
// its owner there, and its place is not used again.
func TestNodeGone(t *testing.T) {
	s := startGone(t)
	s.make(t, spread("web", "ssd"), spread("kept", "kept"))
	var web, kept [3]*placed
	s.eventually(t, func(ctx context.Context) (err error) {
		for i := range web {
			if web[i], err = s.read(ctx, fmt.Sprint("web-", i), fmt.Sprint("data-web-", i)); err != nil {
				return err
			}
			if kept[i], err = s.read(ctx, fmt.Sprint("kept-", i), fmt.Sprint("data-kept-", i)); err != nil {
				return err
			}
		}
		return nil
	})
	lost := web[1]
	node := lost.pod.Spec.NodeName
	// A claim that no StatefulSet makes again.
	s.make(t, objects.Claim(schedulerTests, "single", "ssd", "64Mi"))
	pod := withClaims(plainPod("single", "berth"), "single")
	pod.Spec.NodeSelector = map[string]string{corev1.LabelHostname: node}
	s.create(t, pod)
	var single *placed
	s.eventually(t, func(ctx context.Context) (err error) {
		single, err = s.read(ctx, "single", "single")
		return err
	})

	if err := s.cluster.KillAgent(node); err != nil {
		t.Fatal(err)
	}
	if err := s.client.Delete(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}}); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	err := cluster.Eventually(t.Context(), goesOn, func(ctx context.Context) error {
		now, err := s.read(ctx, lost.pod.Name, lost.claim.Name)
		if err != nil {
			return err
		}
		if now.pod.UID == lost.pod.UID || now.claim.UID == lost.claim.UID || now.pod.Spec.NodeName == node {
			return errors.New("the replica is the one before")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the StatefulSet went on %s after its node was deleted", time.Since(begin))
	s.eventually(t, func(ctx context.Context) error {
		err := s.client.Get(ctx, client.ObjectKeyFromObject(&lost.pv), &corev1.PersistentVolume{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("PersistentVolume %s is still there: %w", lost.pv.Name, err)
	})
	s.untouched(t, append(slices.Clone(kept[:]), web[0], web[2], single)...)

	if err := errors.Join(s.cluster.MakeNode(t.Context(), node), s.cluster.StartAgent(t.Context(), node)); err != nil {
		t.Fatal(err)
	}
	s.eventually(t, func(ctx context.Context) error {
		at, err := s.onNode(ctx, node, lost.pv.Name)
		switch {
		case err != nil:
			return err
		case at.OrphanedSince == nil || at.Phase != diskv1alpha1.PhaseFormatted:
			return fmt.Errorf("the volume is %+v", at)
		}
		ndc := &diskv1alpha1.NodeDiskCapacity{}
		if err := s.client.Get(ctx, client.ObjectKey{Name: node}, ndc); err != nil {
			return err
		}
		c := meta.FindStatusCondition(ndc.Status.Conditions, diskv1alpha1.ConditionOrphanedVolumes)
		if c == nil || !strings.Contains(c.Message, lost.pv.Name+" (made for claim "+schedulerTests+"/"+lost.claim.Name+")") {
			return fmt.Errorf("the condition is %+v", c)
		}
		return nil
	})
	// A pod that wants the node gets another place.
	s.make(t, objects.Claim(schedulerTests, "next", "ssd", "64Mi"))
	next := withClaims(plainPod("next", "berth"), "next")
	next.Spec.NodeSelector = map[string]string{corev1.LabelHostname: node}
	s.create(t, next)
	s.eventually(t, func(ctx context.Context) error {
		now, err := s.read(ctx, "next", "next")
		if err != nil {
			return err
		}
		old, err := s.onNode(ctx, node, lost.pv.Name)
		if err != nil {
			return err
		}
		at, err := s.onNode(ctx, node, now.pv.Name)
		if err == nil && at.Start == old.Start {
			t.Fatalf("the new volume is at %+v, that of the orphan", at)
		}
		return err
	})
	s.untouched(t, append(slices.Clone(kept[:]), web[0], web[2], single)...)
}

// untouched asserts that claims and volumes are as they were.
func (s *schedulers) untouched(t *testing.T, all ...*placed) {
	t.Helper()
	for _, was := range all {
		var pvc corev1.PersistentVolumeClaim
		var pv corev1.PersistentVolume
		s.get(t, client.ObjectKeyFromObject(&was.claim), &pvc)
		s.get(t, client.ObjectKeyFromObject(&was.pv), &pv)
		if pvc.UID != was.claim.UID || pvc.DeletionTimestamp != nil {
			t.Errorf("claim %s was made again or is deleted", pvc.Name)
		}
		_, marked := pv.Annotations[diskv1alpha1.AnnotationNodeGone]
		if pv.UID != was.pv.UID || pv.DeletionTimestamp != nil || marked || pv.Spec.PersistentVolumeReclaimPolicy != was.pv.Spec.PersistentVolumeReclaimPolicy {
			t.Errorf("the PersistentVolume of claim %s is released: %v, %v", pvc.Name, pv.ObjectMeta, pv.Spec.PersistentVolumeReclaimPolicy)
		}
	}
}

func (s *schedulers) get(t *testing.T, key client.ObjectKey, o client.Object) {
	t.Helper()
	if err := s.client.Get(t.Context(), key, o); err != nil {
		t.Fatalf("%T %s: %v", o, key, err)
	}
}
