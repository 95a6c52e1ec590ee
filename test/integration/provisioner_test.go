package integration

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/request"
	"github.com/berthdev/berth/test/objects"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// TestProvisioner runs the scheduler's controllers against a real API server and the
// PersistentVolume controller.
func TestProvisioner(t *testing.T) {
	p := startProvisioning(t)
	for _, test := range []struct {
		name string
		run  func(*testing.T, *provisioning)
	}{
		{"placed by the stock scheduler", placedByStock},
		{"another node", anotherNode},
		{"given back slowly", givenBackSlowly},
		{"refused", refusedClaims},
		{"placed at once", placedAtOnce},
		{"placed in pieces at once", placedInPiecesAtOnce},
		{"pod with a node", podWithNode},
		{"crash after the volume", crashAfterVolume},
		{"claim gone before binding", goneBeforeBinding},
		{"grows", grows},
		{"grows as far as possible", growsAsFarAsPossible},
		{"grows in pieces", growsInPieces},
		{"grows elsewhere", growsElsewhere},
		{"one of two gets the gap", oneGetsTheGap},
		{"crash while growing", crashWhileGrowing},
		{"lost answers", lostAnswers},
		{"node gone", nodeGone},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Cleanup(func() { p.clear(t) })
			test.run(t, p)
		})
	}
	t.Run("capacity", func(t *testing.T) { publishedCapacity(t, p) })
	t.Run("standby", func(t *testing.T) {
		t.Cleanup(func() { p.clear(t) })
		standby(t, p)
	})
}

// stockPod is a pod of the stock profile with a claim.
func stockPod(name, claim string) *corev1.Pod {
	pod := plainPod(name, "default-scheduler")
	pod.Namespace = provisionerTests
	pod.Spec.Volumes = []corev1.Volume{objects.ClaimVolume("data", claim)}
	return pod
}

// preferring has a pod prefer a node.
func preferring(pod *corev1.Pod, node string) *corev1.Pod {
	pod.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{PreferredDuringSchedulingIgnoredDuringExecution: []corev1.PreferredSchedulingTerm{{
		Weight: 100, Preference: corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{
			{Key: diskv1alpha1.LabelNode, Operator: corev1.NodeSelectorOpIn, Values: []string{node}},
		}},
	}}}}
	return pod
}

// placedByStock: the whole way, of a pod that knows nothing of our scheduler.
func placedByStock(t *testing.T, p *provisioning) {
	p.node(t, "prov-a", 10)
	p.scheduler(t, false)
	p.pvc(t, "data", "ssd", "2Gi", "", nil)
	p.create(t, stockPod("stock", "data"))
	pvc, pv := p.bound(t, "data")
	v, err := claim.ReadVolume(pv)
	if err != nil || v.Node != "prov-a" || v.Place.Disk != simDisk("prov-a") || v.Size != 2*units.GiB || !claim.IsFor(pv, pvc) {
		t.Errorf("the volume is %+v, %v", v, err)
	}
	p.eventually(t, func(context.Context) error {
		var pod corev1.Pod
		if p.get(t, &pod, "stock"); pod.Spec.NodeName != "prov-a" {
			return fmt.Errorf("the pod is on node %q", pod.Spec.NodeName)
		}
		return nil
	})
}

// anotherNode: a node without room, without an agent, or that does not exist is given back,
// and another is tried.
func anotherNode(t *testing.T, p *provisioning) {
	p.node(t, "prov-small", 5)
	p.node(t, "prov-large", 20)
	newSimNode(t, p.client, "prov-bare", 20)
	p.scheduler(t, false)
	for node, says := range map[string]string{
		"prov-small": "node prov-small, which the claim's scheduler chose: largest free extent of class ssd is 5Gi, wants 10Gi",
		"prov-bare":  "the agent of Berth is not registered with the kubelet of this node",
		"prov-none":  "the node does not exist",
	} {
		name := "from-" + node
		p.pvc(t, name, "ssd", "10Gi", node, nil)
		p.until(t, name, func(pvc *corev1.PersistentVolumeClaim) bool { return pvc.Annotations[selectedNode] == "" })
		p.said(t, name, "ProvisioningFailed", says)
	}
	p.choose(t, "from-prov-small", "prov-large")
	if _, pv := p.bound(t, "from-prov-small"); pv.Labels[diskv1alpha1.LabelNode] != "prov-large" {
		t.Errorf("the volume is on node %s", pv.Labels[diskv1alpha1.LabelNode])
	}
	// The whole way: a scheduler that does not know what is free prefers the wrong node.
	p.pvc(t, "stock", "ssd", "9Gi", "", nil)
	p.create(t, preferring(stockPod("stock", "stock"), "prov-small"))
	p.said(t, "stock", "ProvisioningFailed", "node prov-small")
	for _, name := range []string{"prov-small", "prov-bare"} {
		var node corev1.Node
		p.get(t, &node, name)
		node.Spec.Unschedulable = true
		if err := p.client.Update(t.Context(), &node); err != nil {
			t.Fatal(err)
		}
	}
	if _, pv := p.bound(t, "stock"); pv.Labels[diskv1alpha1.LabelNode] != "prov-large" {
		t.Errorf("the volume is on node %s", pv.Labels[diskv1alpha1.LabelNode])
	}
}

// givenBackSlowly: a scheduler that chooses the same node without end is slowed down, and
// is served at once when there is room.
func givenBackSlowly(t *testing.T, p *provisioning) {
	n := p.node(t, "prov-full", 1)
	p.scheduler(t, false)
	p.pvc(t, "stubborn", "ssd", "2Gi", "prov-full", nil)
	start := time.Now()
	// 0s, 1s, 2s.
	for range 3 {
		p.until(t, "stubborn", func(pvc *corev1.PersistentVolumeClaim) bool { return pvc.Annotations[selectedNode] == "" })
		p.choose(t, "stubborn", "prov-full")
	}
	if took := time.Since(start); took < 3*time.Second {
		t.Errorf("given back three times in %s", took)
	}
	n.mu.Lock()
	n.size = 10 * units.GiB
	n.mu.Unlock()
	if err := n.publish(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.bound(t, "stubborn")
}

// refusedClaims: what no node can answer is said once, with what to use.
func refusedClaims(t *testing.T, p *provisioning) {
	p.node(t, "prov-a", 10)
	p.class(t, "tape", func(c *storagev1.StorageClass) { c.Parameters[diskv1alpha1.AttributeClass] = "tape" })
	p.class(t, "misspelled", func(c *storagev1.StorageClass) { c.Parameters["kind"] = "ssd" })
	p.scheduler(t, false)
	tests := map[string]struct {
		class  string
		change func(*corev1.PersistentVolumeClaim)
		says   string
	}{
		"shared": {"ssd", func(pvc *corev1.PersistentVolumeClaim) {
			pvc.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany}
		}, "access mode ReadWriteMany is not possible, the volume is on a disk of one node: use ReadWriteOnce or ReadWriteOncePod"},
		"read-only": {"ssd", func(pvc *corev1.PersistentVolumeClaim) {
			pvc.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadOnlyMany}
		}, "access mode ReadOnlyMany is not possible"},
		"clone": {"ssd", func(pvc *corev1.PersistentVolumeClaim) {
			pvc.Spec.DataSource = &corev1.TypedLocalObjectReference{Kind: "PersistentVolumeClaim", Name: "other"}
		}, "dataSource is set"},
		"selector": {"ssd", func(pvc *corev1.PersistentVolumeClaim) {
			pvc.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}}
		}, "selector is set"},
		"tape":       {"tape", nil, `StorageClass tape: DiskClass "tape" does not exist: there are ssd`},
		"misspelled": {"misspelled", nil, `StorageClass misspelled: unknown parameter "kind"`},
		"too large": {"ssd", func(pvc *corev1.PersistentVolumeClaim) {
			pvc.Spec.Resources.Requests[corev1.ResourceStorage] = resource.MustParse("5Ei")
		}, "no disk is larger"},
	}
	for name, test := range tests {
		name = strings.ReplaceAll(name, " ", "-")
		p.pvc(t, name, test.class, "1Gi", "prov-a", test.change)
		p.said(t, name, "ProvisioningFailed", test.says)
	}
	for name := range tests {
		name = strings.ReplaceAll(name, " ", "-")
		for i := range 3 {
			p.edit(t, name, func(pvc *corev1.PersistentVolumeClaim) {
				metav1.SetMetaDataLabel(&pvc.ObjectMeta, "edited", strconv.Itoa(i))
			})
		}
	}
	// What is served behind all of them shows that they were looked at again.
	p.pvc(t, "good", "ssd", "1Gi", "prov-a", nil)
	p.bound(t, "good")
	for name := range tests {
		name = strings.ReplaceAll(name, " ", "-")
		p.once(t, name, "ProvisioningFailed")
		var pvc corev1.PersistentVolumeClaim
		if p.get(t, &pvc, name); pvc.Annotations[selectedNode] != "prov-a" {
			t.Errorf("claim %s lost its node, and no other would do", name)
		}
	}
}

// placedAtOnce: the claim of a class that does not wait for a pod is placed where it fits best.
func placedAtOnce(t *testing.T, p *provisioning) {
	p.node(t, "prov-a", 10)
	p.node(t, "prov-b", 4)
	p.class(t, "immediate", func(c *storagev1.StorageClass) {
		mode := storagev1.VolumeBindingImmediate
		c.VolumeBindingMode = &mode
	})
	p.scheduler(t, false)
	p.pvc(t, "tight", "immediate", "3Gi", "", nil)
	if _, pv := p.bound(t, "tight"); pv.Labels[diskv1alpha1.LabelNode] != "prov-b" {
		t.Errorf("the volume is on %s, want the node that it fits best", pv.Labels[diskv1alpha1.LabelNode])
	}
	p.said(t, "tight", "ProvisioningSucceeded", "pods with the claim can run on that node only")
	p.pvc(t, "huge", "immediate", "20Gi", "", nil)
	p.said(t, "huge", "ProvisioningFailed", "no node that StorageClass immediate allows")
}

// placedInPiecesAtOnce: a claim with mode Immediate that no free extent holds gets pieces, if its class allows them.
func placedInPiecesAtOnce(t *testing.T, p *provisioning) {
	n := p.node(t, "prov-a", 10)
	n.hasMapper = true
	neighbor := diskv1alpha1.PartitionID("neighbor")
	p.publish(t, n, map[string]extent.Extent{neighbor: extent.New(diskv1alpha1.Alignment+4*units.GiB, units.GiB)}, "")
	p.class(t, "at-once", func(c *storagev1.StorageClass) {
		mode := storagev1.VolumeBindingImmediate
		c.VolumeBindingMode = &mode
	})
	setMaxPieces(t, p.client, "ssd", ptr.To[int32](3))
	p.scheduler(t, false)
	p.pvc(t, "data", "at-once", "9Gi", "", nil)
	_, pv := p.bound(t, "data")
	v, err := claim.ReadVolume(pv)
	if err != nil || v.FirstLength() != 5*units.GiB || len(v.Pieces) != 1 || v.Pieces[0].Length != 4*units.GiB {
		t.Errorf("the volume is %+v: %v", v, err)
	}
	p.pvc(t, "more", "at-once", "1Gi", "", nil)
	p.said(t, "more", "ProvisioningFailed", "has 1Gi of class ssd free in at most 3 pieces of one disk")
}

// podWithNode: a pod that names its node has its claims served there, those that are made for it too.
func podWithNode(t *testing.T, p *provisioning) {
	p.node(t, "prov-a", 10)
	p.scheduler(t, false)
	p.pvc(t, "data", "ssd", "1Gi", "", nil)
	pod := stockPod("pinned", "data")
	pod.Spec.NodeName = "prov-a"
	pod.Spec.Volumes = append(pod.Spec.Volumes, objects.EphemeralVolume("tmp", "ssd", "2Gi"))
	p.create(t, pod)
	for _, name := range []string{"data", "pinned-tmp"} {
		p.eventually(t, func(ctx context.Context) error {
			return p.client.Get(ctx, client.ObjectKey{Namespace: provisionerTests, Name: name}, &corev1.PersistentVolumeClaim{})
		})
		if _, pv := p.bound(t, name); pv.Labels[diskv1alpha1.LabelNode] != "prov-a" {
			t.Errorf("the volume of %s is on %s", name, pv.Labels[diskv1alpha1.LabelNode])
		}
		p.said(t, name, "ProvisioningSucceeded", "pod pinned names node prov-a itself")
	}
	p.said(t, "pinned", "ProvisioningSucceeded", "the volume is made there")
}

// answerFor creates the PersistentVolume of a claim, as a scheduler does that ends then.
func (p *provisioning) answerFor(t *testing.T, pvc *corev1.PersistentVolumeClaim, node string, start int64) *corev1.PersistentVolume {
	t.Helper()
	var class storagev1.StorageClass
	p.get(t, &class, *pvc.Spec.StorageClassName)
	v, err := claim.Request(pvc, &class)
	if err != nil {
		t.Fatal(err)
	}
	pv := claim.NewVolume(pvc, &class, v, node, diskv1alpha1.Place{Disk: simDisk(node), Extent: diskv1alpha1.Extent{Start: start, Length: v.Request.Size}})
	p.create(t, pv)
	return pv
}

// crashAfterVolume: what an earlier scheduler made is found, and its place is not sold again.
func crashAfterVolume(t *testing.T, p *provisioning) {
	p.node(t, "prov-a", 4)
	pvc := p.pvc(t, "data", "ssd", "2Gi", "", nil)
	made := p.answerFor(t, pvc, "prov-a", diskv1alpha1.Alignment)
	p.scheduler(t, false)
	p.choose(t, "data", "prov-a")
	if _, pv := p.bound(t, "data"); pv.UID != made.UID {
		t.Errorf("another volume was made")
	}
	p.pvc(t, "next", "ssd", "2Gi", "prov-a", nil)
	_, pv := p.bound(t, "next")
	if v, err := claim.ReadVolume(pv); err != nil || v.Place.Start != diskv1alpha1.Alignment+2*units.GiB {
		t.Errorf("the next volume is at %+v, %v", v.Place, err)
	}
}

// goneBeforeBinding: the claim goes between its volume's making and the binding.
func goneBeforeBinding(t *testing.T, p *provisioning) {
	n := p.node(t, "prov-a", 4)
	p.scheduler(t, false)
	gone := objects.Claim(provisionerTests, "gone", "ssd", "4Gi")
	gone.UID = "6b1b3d62-64ea-4bd5-a2ac-5a3a2b5a4c11"
	pv := p.answerFor(t, gone, "prov-a", diskv1alpha1.Alignment)
	// Its place is taken for as long as it is there.
	p.pvc(t, "data", "ssd", "1Gi", "prov-a", nil)
	p.said(t, "data", "ProvisioningFailed", "no free space of class ssd, wants 1Gi")
	p.release(t, n, pv.Name)
	p.choose(t, "data", "prov-a")
	p.bound(t, "data")
}

// grows: the capacity first, then the claim's status, then the component that finishes it.
func grows(t *testing.T, p *provisioning) {
	n := p.node(t, "prov-a", 20)
	p.scheduler(t, false)
	_, pv := p.served(t, "data", "2Gi", "prov-a", false)
	p.realize(t, n, pv.Name)
	p.resize(t, "data", "3500M")
	size := resource.MustParse("3338Mi") // rounded up
	pvc := p.until(t, "data", func(pvc *corev1.PersistentVolumeClaim) bool {
		return pvc.Status.AllocatedResourceStatuses[corev1.ResourceStorage] == corev1.PersistentVolumeClaimNodeResizePending
	})
	p.get(t, pv, pv.Name)
	if pv.Spec.Capacity.Storage().Cmp(size) != 0 || pvc.Status.AllocatedResources.Storage().Cmp(size) != 0 {
		t.Errorf("the volume has %s, the claim is to have %s, want %s", pv.Spec.Capacity.Storage(), pvc.Status.AllocatedResources.Storage(), &size)
	}
	if pvc.Status.Capacity.Storage().Cmp(resource.MustParse("2Gi")) != 0 || !hasCondition(pvc, corev1.PersistentVolumeClaimFileSystemResizePending) {
		t.Errorf("the claim has %+v before its file system grew", pvc.Status)
	}
	p.said(t, "data", "FileSystemResizeRequired", "3338Mi")
	p.realize(t, n, pv.Name)
	p.kubeletExpands(t, "data")
	// And once more.
	p.resize(t, "data", "5Gi")
	p.until(t, "data", func(pvc *corev1.PersistentVolumeClaim) bool {
		return pvc.Status.AllocatedResources.Storage().Cmp(resource.MustParse("5Gi")) == 0
	})

	// A block volume has nothing to grow but its partition.
	_, raw := p.served(t, "raw", "2Gi", "prov-a", true)
	p.realize(t, n, pv.Name, raw.Name)
	p.resize(t, "raw", "4Gi")
	pvc = p.until(t, "raw", func(pvc *corev1.PersistentVolumeClaim) bool {
		return hasCondition(pvc, corev1.PersistentVolumeClaimResizing)
	})
	if pvc.Status.Capacity.Storage().Cmp(resource.MustParse("2Gi")) != 0 {
		t.Errorf("the claim has %+v before its partition grew", pvc.Status)
	}
	p.realize(t, n, pv.Name, raw.Name)
	pvc = p.until(t, "raw", func(pvc *corev1.PersistentVolumeClaim) bool {
		return pvc.Status.Capacity.Storage().Cmp(resource.MustParse("4Gi")) == 0
	})
	if len(slices.DeleteFunc(pvc.Status.Conditions, isUnused)) > 0 || len(pvc.Status.AllocatedResourceStatuses) > 0 {
		t.Errorf("the claim has all it wants, and its status is %+v", pvc.Status)
	}
	p.said(t, "raw", "VolumeResizeSuccessful", "4Gi")
}

// served makes a claim that is bound.
func (p *provisioning) served(t *testing.T, name, size, node string, block bool) (*corev1.PersistentVolumeClaim, *corev1.PersistentVolume) {
	t.Helper()
	p.pvc(t, name, "ssd", size, node, func(pvc *corev1.PersistentVolumeClaim) {
		if block {
			mode := corev1.PersistentVolumeBlock
			pvc.Spec.VolumeMode = &mode
		}
	})
	return p.bound(t, name)
}

func hasCondition(pvc *corev1.PersistentVolumeClaim, kind corev1.PersistentVolumeClaimConditionType) bool {
	for _, c := range pvc.Status.Conditions {
		if c.Type == kind && c.Status == corev1.ConditionTrue {
			return true
		}
	}
	return false
}

// kubeletExpands does what the kubelet does after NodeExpandVolume.
func (p *provisioning) kubeletExpands(t *testing.T, name string) {
	t.Helper()
	p.eventually(t, func(ctx context.Context) error {
		var pvc corev1.PersistentVolumeClaim
		p.get(t, &pvc, name)
		pvc.Status.Capacity[corev1.ResourceStorage] = *pvc.Status.AllocatedResources.Storage()
		pvc.Status.AllocatedResourceStatuses, pvc.Status.Conditions = nil, nil
		return p.client.Status().Update(ctx, &pvc)
	})
}

// growsAsFarAsPossible: what cannot be had is said with a figure, may be lowered to it, and
// is tried again when the neighbor is gone.
func growsAsFarAsPossible(t *testing.T, p *provisioning) {
	n := p.node(t, "prov-a", 10)
	p.scheduler(t, false)
	_, first := p.served(t, "first", "2Gi", "prov-a", false)
	p.realize(t, n, first.Name)
	_, neighbor := p.served(t, "neighbor", "2Gi", "prov-a", false)
	p.realize(t, n, first.Name, neighbor.Name)

	// No extent of the disk has so much.
	p.resize(t, "first", "7Gi")
	pvc := p.until(t, "first", func(pvc *corev1.PersistentVolumeClaim) bool {
		return hasCondition(pvc, corev1.PersistentVolumeClaimControllerResizeError)
	})
	if pvc.Status.AllocatedResourceStatuses[corev1.ResourceStorage] != corev1.PersistentVolumeClaimControllerResizeInfeasible || pvc.Status.AllocatedResources != nil {
		t.Errorf("the status is %+v", pvc.Status)
	}
	p.said(t, "first", "VolumeResizeFailed", "the volume cannot grow to 7Gi, to 6Gi at most: nothing is free behind it")
	p.said(t, "first", "VolumeResizeFailed", "the largest free extent of the disk has 6Gi")

	p.resize(t, "neighbor", "20Gi")
	p.said(t, "neighbor", "VolumeResizeFailed", "the volume cannot grow to 20Gi, to 8Gi at most")
	p.resize(t, "neighbor", "8Gi")
	pvc = p.until(t, "neighbor", func(pvc *corev1.PersistentVolumeClaim) bool {
		return hasCondition(pvc, corev1.PersistentVolumeClaimFileSystemResizePending)
	})
	if hasCondition(pvc, corev1.PersistentVolumeClaimControllerResizeError) {
		t.Errorf("the condition of the refusal is left: %+v", pvc.Status.Conditions)
	}

	// More is refused, and what was granted goes on.
	p.resize(t, "neighbor", "9Gi")
	p.said(t, "neighbor", "VolumeResizeFailed", "the volume cannot grow to 9Gi: nothing is free behind it")
	p.said(t, "neighbor", "VolumeResizeFailed", "nothing is free elsewhere on the disk")
	if p.get(t, pvc, "neighbor"); pvc.Status.AllocatedResourceStatuses[corev1.ResourceStorage] != corev1.PersistentVolumeClaimNodeResizePending {
		t.Errorf("the growth that was granted was forgotten: %+v", pvc.Status)
	}

	// The neighbor goes.
	if err := p.client.Delete(t.Context(), pvc); err != nil {
		t.Fatal(err)
	}
	p.release(t, n, neighbor.Name, first.Name)
	p.until(t, "first", func(pvc *corev1.PersistentVolumeClaim) bool {
		return pvc.Status.AllocatedResources.Storage().Cmp(resource.MustParse("7Gi")) == 0
	})
	p.get(t, first, first.Name)
	if first.Spec.Capacity.Storage().Cmp(resource.MustParse("7Gi")) != 0 || first.Annotations[diskv1alpha1.AnnotationMoveTo] != "" {
		t.Errorf("the volume has %s, and is to be moved to %q", first.Spec.Capacity.Storage(), first.Annotations[diskv1alpha1.AnnotationMoveTo])
	}
}

// growsInPieces: a volume that cannot grow where it is gets a piece elsewhere, where its node has the device mapper.
// The piece is taken before the node has made it, also by a scheduler that has just started, and grows where it is.
func growsInPieces(t *testing.T, p *provisioning) {
	n := p.node(t, "prov-a", 10)
	n.hasMapper = true
	s := p.scheduler(t, false)
	_, first := p.served(t, "first", "2Gi", "prov-a", false)
	p.realize(t, n, first.Name)
	_, neighbor := p.served(t, "neighbor", "1Gi", "prov-a", false)
	p.realize(t, n, first.Name, neighbor.Name)

	p.resize(t, "first", "4Gi")
	p.until(t, "first", func(pvc *corev1.PersistentVolumeClaim) bool {
		return hasCondition(pvc, corev1.PersistentVolumeClaimFileSystemResizePending)
	})
	p.said(t, "first", "FileSystemResizeRequired", "The volume gets 4Gi in a further piece")
	hasPieces := func(size int64, pieces ...extent.Extent) claim.Volume {
		t.Helper()
		p.get(t, first, first.Name)
		v, err := claim.ReadVolume(first)
		if err != nil || v.Size != size || v.MoveTo != nil || len(v.Pieces) != len(pieces) {
			t.Fatalf("the volume is %+v: %v", v, err)
		}
		for i, e := range pieces {
			if at := v.Pieces[i]; extent.New(at.Start, at.Length) != e {
				t.Errorf("piece %d is at %+v, want %v", i+1, at, e)
			}
		}
		return v
	}
	at := func(startGiB, lengthGiB int64) extent.Extent {
		return extent.New(diskv1alpha1.Alignment+startGiB*units.GiB, lengthGiB*units.GiB)
	}
	v := hasPieces(4*units.GiB, at(3, 2))
	other, err := claim.ReadVolume(neighbor)
	if err != nil {
		t.Fatal(err)
	}

	s.kill()
	s = p.scheduler(t, false)
	p.pvc(t, "large", "ssd", "6Gi", "prov-a", nil)
	p.said(t, "large", "ProvisioningFailed", "wants 6Gi")
	volumes := map[string]extent.Extent{v.Partition: at(0, 2), other.Partition: at(2, 1), diskv1alpha1.PieceID(v.Partition, 1): at(3, 2)}
	p.publish(t, n, volumes, "")
	p.resize(t, "first", "5Gi")
	p.until(t, "first", func(pvc *corev1.PersistentVolumeClaim) bool {
		return pvc.Status.AllocatedResources.Storage().Cmp(resource.MustParse("5Gi")) == 0
	})
	hasPieces(5*units.GiB, at(3, 3))
	s.kill()
}

// growsElsewhere: a volume that cannot grow where it is gets a place that holds all of it, keeps both places until it
// is moved, and can grow again afterwards. A scheduler that is killed in between forgets nothing.
func growsElsewhere(t *testing.T, p *provisioning) {
	n := p.node(t, "prov-a", 10)
	s := p.scheduler(t, false)
	_, first := p.served(t, "first", "2Gi", "prov-a", false)
	p.realize(t, n, first.Name)
	_, neighbor := p.served(t, "neighbor", "1Gi", "prov-a", false)
	p.realize(t, n, first.Name, neighbor.Name)

	p.resize(t, "first", "4Gi")
	pvc := p.until(t, "first", func(pvc *corev1.PersistentVolumeClaim) bool {
		return hasCondition(pvc, corev1.PersistentVolumeClaimFileSystemResizePending)
	})
	if len(pvc.Status.Conditions) == 0 || !strings.Contains(pvc.Status.Conditions[0].Message, "delete the pod and start it again") {
		t.Errorf("the status is %+v", pvc.Status)
	}
	p.said(t, "first", "FileSystemResizeRequired", "The volume gets 4Gi elsewhere")
	p.get(t, first, first.Name)
	v, err := claim.ReadVolume(first)
	if err != nil || v.MoveTo == nil {
		t.Fatalf("the volume is not to be moved: %+v, %v", v, err)
	}
	to := *v.MoveTo
	if to.Length != 4*units.GiB || first.Spec.Capacity.Storage().Value() != 4*units.GiB {
		t.Fatalf("the volume has %s, and is moved to %+v", first.Spec.Capacity.Storage(), to)
	}

	// 3 GiB are left. A scheduler that has just started knows that, too.
	s.kill()
	s = p.scheduler(t, false)
	p.pvc(t, "large", "ssd", "4Gi", "prov-a", nil)
	p.said(t, "large", "ProvisioningFailed", "wants 4Gi")
	// The next request waits for the move.
	p.resize(t, "first", "5Gi")

	// The node moves it.
	other, err := claim.ReadVolume(neighbor)
	if err != nil {
		t.Fatal(err)
	}
	copyID := diskv1alpha1.CopyID(v.Partition)
	place := func(p diskv1alpha1.Place) extent.Extent { return extent.New(p.Start, p.Length) }
	p.publish(t, n, map[string]extent.Extent{v.Partition: place(to), copyID: place(v.Place), other.Partition: place(other.Place)}, copyID)
	p.eventually(t, func(ctx context.Context) error {
		if p.get(t, first, first.Name); first.Annotations[diskv1alpha1.AnnotationMoveTo] != "" {
			return fmt.Errorf("it is still to be moved to %s", first.Annotations[diskv1alpha1.AnnotationMoveTo])
		}
		return nil
	})
	p.until(t, "first", func(pvc *corev1.PersistentVolumeClaim) bool {
		return pvc.Status.AllocatedResources.Storage().Cmp(resource.MustParse("5Gi")) == 0
	})
	if p.get(t, first, first.Name); first.Spec.Capacity.Storage().Value() != 5*units.GiB || first.Annotations[diskv1alpha1.AnnotationMoveTo] != "" {
		t.Errorf("the volume has %s after it was moved, and is to be moved to %q", first.Spec.Capacity.Storage(), first.Annotations[diskv1alpha1.AnnotationMoveTo])
	}
	// Its earlier place is free when it is wiped.
	p.publish(t, n, map[string]extent.Extent{v.Partition: place(to), other.Partition: place(other.Place)}, "")
	p.pvc(t, "small", "ssd", "2Gi", "prov-a", nil)
	_, small := p.bound(t, "small")
	if at, err := claim.ReadVolume(small); err != nil || at.Place.Start != v.Place.Start {
		t.Errorf("the earlier place, at %d, is not used: %+v, %v", v.Place.Start, at, err)
	}
	s.kill()
}

// oneGetsTheGap: a volume wants to grow into what a new one wants to have.
func oneGetsTheGap(t *testing.T, p *provisioning) {
	n := p.node(t, "prov-a", 4)
	p.scheduler(t, false)
	for i := range 5 {
		grown, fresh := fmt.Sprint("grown-", i), fmt.Sprint("fresh-", i)
		_, pv := p.served(t, grown, "2Gi", "prov-a", false)
		p.realize(t, n, pv.Name)
		done := make(chan struct{})
		go func() {
			defer close(done)
			p.resize(t, grown, "4Gi")
		}()
		p.pvc(t, fresh, "ssd", "2Gi", "prov-a", nil)
		testenv.Receive(t, "the resize", done)
		var taken extent.Set
		p.eventually(t, func(ctx context.Context) error {
			var g, f corev1.PersistentVolumeClaim
			p.get(t, &g, grown)
			p.get(t, &f, fresh)
			won := hasCondition(&g, corev1.PersistentVolumeClaimFileSystemResizePending)
			lost := hasCondition(&g, corev1.PersistentVolumeClaimControllerResizeError)
			placed, back := f.Status.Phase == corev1.ClaimBound, f.Annotations[selectedNode] == ""
			if won == lost || placed == back {
				return errors.New("it is not decided yet")
			}
			if won == placed {
				return fmt.Errorf("the one that grows has it: %t; the new one has it: %t", won, placed)
			}
			return nil
		})
		var volumes corev1.PersistentVolumeList
		if err := p.client.List(t.Context(), &volumes); err != nil {
			t.Fatal(err)
		}
		for j := range volumes.Items {
			v, err := claim.ReadVolume(&volumes.Items[j])
			if err != nil {
				t.Fatal(err)
			}
			e := extent.New(v.Place.Start, v.Size)
			if taken.Overlaps(e) {
				t.Errorf("round %d: %v is sold twice", i, e)
			}
			taken = taken.Add(e)
		}
		p.clear(t)
		p.realize(t, n)
	}
}

// crashWhileGrowing: the volume was made larger, and the claim's status was not written.
func crashWhileGrowing(t *testing.T, p *provisioning) {
	n := p.node(t, "prov-a", 10)
	s := p.scheduler(t, false)
	_, pv := p.served(t, "data", "2Gi", "prov-a", false)
	_, raw := p.served(t, "raw", "2Gi", "prov-a", true)
	p.realize(t, n, pv.Name, raw.Name)
	s.kill()
	for _, name := range []string{"data", "raw"} {
		p.resize(t, name, "2304Mi")
	}
	grown := raw
	if v, err := claim.ReadVolume(pv); err != nil {
		t.Fatal(err)
	} else if w, err := claim.ReadVolume(raw); err != nil {
		t.Fatal(err)
	} else if v.Place.Start > w.Place.Start {
		grown = pv
	}
	// The one with free space behind it.
	p.get(t, grown, grown.Name)
	grown.Spec.Capacity[corev1.ResourceStorage] = resource.MustParse("2304Mi")
	if err := p.client.Update(t.Context(), grown); err != nil {
		t.Fatal(err)
	}
	p.scheduler(t, false)
	name := grown.Spec.ClaimRef.Name
	p.until(t, name, func(pvc *corev1.PersistentVolumeClaim) bool {
		return pvc.Status.AllocatedResources.Storage().Cmp(resource.MustParse("2304Mi")) == 0
	})
	// The space behind it counts as taken, although nothing shows it yet.
	p.pvc(t, "next", "ssd", "6Gi", "prov-a", nil)
	p.said(t, "next", "ProvisioningFailed", "wants 6Gi")
}

// nodeGone: what can be done is said, nothing is done.
func nodeGone(t *testing.T, p *provisioning) {
	n := p.node(t, "prov-gone", 4)
	p.scheduler(t, false)
	_, pv := p.served(t, "data", "2Gi", "prov-gone", false)
	if err := p.client.Delete(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.name}}); err != nil {
		t.Fatal(err)
	}
	for _, object := range []string{"data", pv.Name} {
		p.said(t, object, "NodeGone", "Node prov-gone is gone")
		p.once(t, object, "NodeGone")
	}
	p.bound(t, "data")
}

// consult says whether other schedulers look at CSIStorageCapacity objects.
func (p *provisioning) consult(t *testing.T, capacity bool) {
	t.Helper()
	var driver storagev1.CSIDriver
	p.get(t, &driver, diskv1alpha1.DriverName)
	driver.Spec.StorageCapacity = &capacity
	if err := p.client.Update(context.WithoutCancel(t.Context()), &driver); err != nil {
		t.Fatal(err)
	}
}

// publishedCapacity: objects for other schedulers, while they are asked for.
func publishedCapacity(t *testing.T, p *provisioning) {
	n := p.node(t, "prov-a", 10)
	p.node(t, "prov-b", 4)
	p.class(t, "roomy", func(c *storagev1.StorageClass) { c.Parameters[diskv1alpha1.ParameterHeadroom] = "100%" })
	list := func() map[string]storagev1.CSIStorageCapacity {
		all, err := p.set.StorageV1().CSIStorageCapacities(metav1.NamespaceSystem).List(context.WithoutCancel(t.Context()), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]storagev1.CSIStorageCapacity{}
		for _, c := range all.Items {
			out[c.StorageClassName+" on "+c.NodeTopology.MatchLabels[diskv1alpha1.LabelNode]] = c
		}
		return out
	}
	want := func(key, free, largest string) {
		t.Helper()
		p.eventually(t, func(context.Context) error {
			have, ok := list()[key]
			if !ok || have.Capacity.String() != free || have.MaximumVolumeSize.String() != largest {
				return fmt.Errorf("%s: %v %v %v", key, ok, have.Capacity, have.MaximumVolumeSize)
			}
			return nil
		})
	}
	p.consult(t, true)
	defer p.consult(t, false)
	s := p.scheduler(t, false, "--publish-storage-capacity")
	want("ssd on prov-a", "10Gi", "10Gi")
	want("ssd on prov-b", "4Gi", "4Gi")
	want("roomy on prov-a", "10Gi", "5Gi")
	// With them, the stock scheduler does not even try the node that it would like better.
	p.pvc(t, "informed", "ssd", "6Gi", "", nil)
	p.create(t, preferring(stockPod("informed", "informed"), "prov-b"))
	if _, pv := p.bound(t, "informed"); pv.Labels[diskv1alpha1.LabelNode] != "prov-a" {
		t.Errorf("the volume is on node %s", pv.Labels[diskv1alpha1.LabelNode])
	}
	if tries := p.events(t, "informed", "ProvisioningFailed"); len(tries) > 0 {
		t.Errorf("it was tried in vain: %+v", tries)
	}
	p.clear(t)
	// A hole of 1 GiB, and the rest.
	partition := request.Volume{Partition: diskv1alpha1.PartitionID("any")}.Partition
	n.mu.Lock()
	n.volumes[partition] = extent.New(diskv1alpha1.Alignment+units.GiB, 2*units.GiB)
	n.mu.Unlock()
	if err := n.publish(t.Context()); err != nil {
		t.Fatal(err)
	}
	want("ssd on prov-a", "8Gi", "7Gi")
	if err := p.client.Delete(t.Context(), &diskv1alpha1.NodeDiskCapacity{ObjectMeta: metav1.ObjectMeta{Name: "prov-b"}}); err != nil {
		t.Fatal(err)
	}
	if err := p.client.Delete(t.Context(), &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "roomy"}}); err != nil {
		t.Fatal(err)
	}
	p.eventually(t, func(context.Context) error {
		if left := list(); len(left) != 1 {
			return fmt.Errorf("there are %d objects", len(left))
		}
		return nil
	})
	s.kill()
	p.scheduler(t, false)
	p.eventually(t, func(context.Context) error {
		if left := list(); len(left) != 0 {
			return fmt.Errorf("there are %d objects without need", len(left))
		}
		return nil
	})
}

// standby: a scheduler without the lease does nothing, until it has it.
func standby(t *testing.T, p *provisioning) {
	p.node(t, "prov-a", 4)
	holder, seconds, now := "another", int32(3600), metav1.NowMicro()
	lease := &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: "berth-scheduler"},
		Spec:       coordinationv1.LeaseSpec{HolderIdentity: &holder, LeaseDurationSeconds: &seconds, AcquireTime: &now, RenewTime: &now},
	}
	p.create(t, lease)
	s := p.scheduler(t, true, "--v=4")
	p.pvc(t, "data", "ssd", "1Gi", "prov-a", nil)
	// It looks at the lease every two seconds; when it has done so twice after the claim came, it
	// has had the time.
	attempts := func() int { return strings.Count(s.log(), "Failed to acquire lease") }
	before := attempts()
	p.eventually(t, func(context.Context) error {
		if n := attempts(); n < before+2 {
			return fmt.Errorf("it tried %d times", n)
		}
		return nil
	})
	var pvc corev1.PersistentVolumeClaim
	p.get(t, &pvc, "data")
	err := p.client.Get(t.Context(), client.ObjectKey{Name: diskv1alpha1.ClaimVolumeID(pvc.UID)}, &corev1.PersistentVolume{})
	if !apierrors.IsNotFound(err) {
		t.Errorf("a scheduler that stands by made a volume: %v", err)
	}
	if err := p.client.Delete(t.Context(), lease); err != nil {
		t.Fatal(err)
	}
	p.bound(t, "data")
}
