package diskcapacity

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/component-helpers/storage/volume"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/framework"
	st "k8s.io/kubernetes/pkg/scheduler/testing"
	"k8s.io/utils/ptr"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/test/objects"
	"github.com/berthdev/berth/test/units"
)

// storageClass makes a StorageClass of ours with that name, for DiskClass ssd.
func (b *bench) storageClass(t testing.TB, name string, change func(*storagev1.StorageClass)) *storagev1.StorageClass {
	t.Helper()
	class := objects.StorageClass(name, "ssd")
	if change != nil {
		change(class)
	}
	if err := b.factory.Storage().V1().StorageClasses().Informer().GetIndexer().Add(class); err != nil {
		t.Fatal(err)
	}
	return class
}

// uidOf derives a UID from a name.
func uidOf(name string) types.UID { return types.UID(diskv1alpha1.PartitionID("uid of " + name)) }

func (b *bench) claim(t testing.TB, name, class string, sizeGiB int64, change func(*corev1.PersistentVolumeClaim)) *corev1.PersistentVolumeClaim {
	t.Helper()
	pvc := objects.Claim("default", name, class, objects.GiB(sizeGiB))
	pvc.UID = uidOf(name)
	if change != nil {
		change(pvc)
	}
	if err := b.factory.Core().V1().PersistentVolumeClaims().Informer().GetIndexer().Add(pvc); err != nil {
		t.Fatal(err)
	}
	return pvc
}

func (b *bench) volume(t testing.TB, pvc *corev1.PersistentVolumeClaim, node string, startGiB int64) *corev1.PersistentVolume {
	t.Helper()
	class, err := b.plugin.feed.claims.classes.Get(*pvc.Spec.StorageClassName)
	if err != nil {
		t.Fatal(err)
	}
	wanted, err := claim.Request(pvc, class)
	if err != nil {
		t.Fatal(err)
	}
	pv := claim.NewVolume(pvc, class, wanted, node, diskv1alpha1.Place{
		Disk: diskOf(node), Extent: diskv1alpha1.Extent{Start: diskv1alpha1.Alignment + startGiB*units.GiB, Length: wanted.Request.Size},
	})
	pv.UID = uidOf("volume of " + pvc.Name)
	return pv
}

// storeVolume puts the volume into the informer's store and folds in its event.
func (b *bench) storeVolume(t testing.TB, pv *corev1.PersistentVolume) {
	t.Helper()
	if err := b.plugin.feed.volumes.Add(pv); err != nil {
		t.Fatal(err)
	}
	b.plugin.feed.foldVolume(klog.Background(), pv)
}

func withClaim(pod *corev1.Pod, names ...string) *corev1.Pod {
	for _, name := range names {
		pod.Spec.Volumes = append(pod.Spec.Volumes, objects.ClaimVolume("claim-"+name, name))
	}
	return pod
}

func claimPod(name string, claims ...string) *corev1.Pod {
	return withClaim(st.MakePod().Namespace("default").Name(name).UID(name).SchedulerName("berth").Obj(), claims...)
}

func withEphemeral(pod *corev1.Pod, name string) *corev1.Pod {
	pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}})
	return pod
}

func ownedBy(pod *corev1.Pod) func(*corev1.PersistentVolumeClaim) {
	return func(pvc *corev1.PersistentVolumeClaim) {
		pvc.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(pod, corev1.SchemeGroupVersion.WithKind("Pod"))}
	}
}

func TestPodRequest(t *testing.T) {
	immediate := storagev1.VolumeBindingImmediate
	tests := map[string]struct {
		pod     func(t *testing.T, b *bench) *corev1.Pod
		sizes   []int64 // GiB, with the headroom
		settled bool
		err     string
	}{
		"inline and claims": {func(t *testing.T, b *bench) *corev1.Pod {
			b.claim(t, "data", "ssd", 2, nil)
			b.claim(t, "log", "ssd", 3, nil)
			return withClaim(podOf("a", 1), "data", "log")
		}, []int64{1, 2, 3}, false, ""},
		"the same claim twice": {func(t *testing.T, b *bench) *corev1.Pod {
			b.claim(t, "data", "ssd", 2, nil)
			return claimPod("a", "data", "data")
		}, []int64{2}, false, ""},
		"room to grow": {func(t *testing.T, b *bench) *corev1.Pod {
			b.storageClass(t, "roomy", func(c *storagev1.StorageClass) { c.Parameters[diskv1alpha1.ParameterHeadroom] = "3Gi" })
			b.claim(t, "data", "roomy", 2, nil)
			return claimPod("a", "data")
		}, []int64{5}, false, ""},
		"ephemeral": {func(t *testing.T, b *bench) *corev1.Pod {
			pod := withEphemeral(claimPod("a"), "tmp")
			b.claim(t, "a-tmp", "ssd", 2, ownedBy(pod))
			return pod
		}, []int64{2}, false, ""},
		"a claim of its name that is not the pod's": {func(t *testing.T, b *bench) *corev1.Pod {
			b.claim(t, "a-tmp", "ssd", 2, nil)
			return withEphemeral(claimPod("a"), "tmp")
		}, nil, true, ""},
		"bound": {func(t *testing.T, b *bench) *corev1.Pod {
			b.claim(t, "data", "ssd", 2, func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = "pv" })
			return claimPod("a", "data")
		}, nil, true, ""},
		"another driver's": {func(t *testing.T, b *bench) *corev1.Pod {
			b.storageClass(t, "other", func(c *storagev1.StorageClass) { c.Provisioner, c.Parameters = "other", nil })
			b.claim(t, "data", "ssd", 2, nil)
			b.claim(t, "foreign", "other", 9, nil)
			return claimPod("a", "data", "foreign")
		}, []int64{2}, true, ""},
		"missing": {func(*testing.T, *bench) *corev1.Pod { return claimPod("a", "data") }, nil, true, ""},
		"class missing": {func(t *testing.T, b *bench) *corev1.Pod {
			b.claim(t, "data", "gone", 2, nil)
			return claimPod("a", "data")
		}, nil, true, ""},
		"being deleted": {func(t *testing.T, b *bench) *corev1.Pod {
			b.claim(t, "data", "ssd", 2, func(c *corev1.PersistentVolumeClaim) { c.DeletionTimestamp = &metav1.Time{} })
			return claimPod("a", "data")
		}, nil, true, ""},
		"selected before": {func(t *testing.T, b *bench) *corev1.Pod {
			b.claim(t, "data", "ssd", 2, func(c *corev1.PersistentVolumeClaim) {
				c.Annotations = map[string]string{volume.AnnSelectedNode: "n1"}
			})
			return claimPod("a", "data")
		}, []int64{2}, true, ""},
		"immediate": {func(t *testing.T, b *bench) *corev1.Pod {
			b.storageClass(t, "now", func(c *storagev1.StorageClass) { c.VolumeBindingMode = &immediate })
			b.claim(t, "data", "now", 2, nil)
			return claimPod("a", "data")
		}, nil, false, "claim default/data: it is not bound yet: StorageClass now has volumeBindingMode Immediate"},
		"unknown DiskClass": {func(t *testing.T, b *bench) *corev1.Pod {
			b.storageClass(t, "tape", func(c *storagev1.StorageClass) { c.Parameters[diskv1alpha1.AttributeClass] = "tape" })
			b.claim(t, "data", "tape", 2, nil)
			return claimPod("a", "data")
		}, nil, false, `claim default/data: StorageClass tape: DiskClass "tape" does not exist: there are hdd, ssd`},
		"unknown parameter": {func(t *testing.T, b *bench) *corev1.Pod {
			b.storageClass(t, "odd", func(c *storagev1.StorageClass) { c.Parameters["speed"] = "fast" })
			b.claim(t, "data", "odd", 2, nil)
			return claimPod("a", "data")
		}, nil, false, `unknown parameter "speed"`},
		"for many": {func(t *testing.T, b *bench) *corev1.Pod {
			b.claim(t, "data", "ssd", 2, func(c *corev1.PersistentVolumeClaim) {
				c.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany}
			})
			return claimPod("a", "data")
		}, nil, false, "claim default/data: access mode ReadWriteMany is not possible"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, nil, "n1")
			b.storageClass(t, "ssd", nil)
			req, err := b.plugin.feed.requestOf(test.pod(t, b))
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Errorf("got %v, want %q", err, test.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var sizes []int64
			for _, r := range req.requests() {
				sizes = append(sizes, r.Size/units.GiB)
			}
			if !slices.Equal(sizes, test.sizes) || req.limitedByClaims != test.settled {
				t.Errorf("requests %v GiB, limited by claims %v", sizes, req.limitedByClaims)
			}
		})
	}
}

// reserve runs a pod's cycle to the end of Reserve on the node.
func (b *bench) reserve(t testing.TB, pod *corev1.Pod, node string) {
	t.Helper()
	state, statuses := b.filter(t, pod)
	if !statuses[node].IsSuccess() {
		t.Fatalf("pod %s on %s: %v", pod.Name, node, statuses[node])
	}
	if status := b.plugin.Reserve(b.ctx, state, pod, node); !status.IsSuccess() {
		t.Fatal(status)
	}
}

func (b *bench) freeGiB(node string) int64 {
	return b.plugin.ledger.Snapshot(node).Node.Disks[0].Free.Total() / units.GiB
}

// TestClaimIsReserved asserts that a claim is reserved together with the inline volume while the pod is pending, and
// that its PersistentVolume then replaces the reservation.
func TestClaimIsReserved(t *testing.T) {
	b := newBench(t, nil, "n1", "n2")
	b.storageClass(t, "ssd", nil)
	b.publish(t, "n1", 10)
	b.publish(t, "n2", 6)
	pvc := b.claim(t, "data", "ssd", 5, nil)
	pod := withClaim(podOf("a", 3), "data")
	if _, statuses := b.filter(t, pod); !statuses["n1"].IsSuccess() || statuses["n2"].Code() != fwk.UnschedulableAndUnresolvable && statuses["n2"].Code() != fwk.Unschedulable {
		t.Errorf("statuses %v", statuses)
	}
	b.reserve(t, pod, "n1")
	if b.freeGiB("n1") != 2 {
		t.Errorf("%d GiB are free", b.freeGiB("n1"))
	}
	// Another pod of the claim is limited to the same node, and requests nothing more.
	second := claimPod("b", "data")
	if _, statuses := b.filter(t, second); !statuses["n1"].IsSuccess() || !strings.Contains(statuses["n2"].Message(), "claim default/data is on node n1 already") {
		t.Errorf("statuses %v", statuses)
	}
	b.reserve(t, second, "n1")
	b.plugin.Unreserve(b.ctx, framework.NewCycleState(), pod, "n1")
	if b.freeGiB("n1") != 5 {
		t.Errorf("%d GiB are free, want 5: the second pod has a share in the claim", b.freeGiB("n1"))
	}
	b.storeVolume(t, b.volume(t, pvc, "n1", 0))
	bound := second.DeepCopy()
	bound.Spec.NodeName = "n1"
	b.store(t, bound)
	if node, _ := b.plugin.ledger.Records("b"); node != "" {
		t.Error("a bound pod without inline volumes still has records")
	}
	if b.freeGiB("n1") != 5 {
		t.Errorf("%d GiB are free, want 5", b.freeGiB("n1"))
	}
	if status := b.plugin.Bind(b.ctx, nil, second, "n1"); status.Code() != fwk.Skip {
		t.Errorf("Bind of a pod without inline volumes: %v", status)
	}
}

// TestClaimInDoubt asserts that a claim fits where its volume may have been made, even if that volume fills the disk.
func TestClaimInDoubt(t *testing.T) {
	b := newBench(t, nil, "n1")
	b.storageClass(t, "ssd", nil)
	b.publish(t, "n1", 10)
	pvc, pod := b.claim(t, "data", "ssd", 8, nil), claimPod("a", "data")
	b.reserve(t, pod, "n1")
	b.plugin.ledger.Share(diskv1alpha1.PartitionID(diskv1alpha1.ClaimVolumeID(pvc.UID)), nil, "binding")
	b.plugin.ledger.Doubt("binding")
	b.plugin.Unreserve(b.ctx, framework.NewCycleState(), pod, "n1")
	b.reserve(t, pod, "n1")
	b.claim(t, "more", "ssd", 8, nil)
	if _, statuses := b.filter(t, claimPod("b", "more")); statuses["n1"].IsSuccess() {
		t.Error("another claim fits where a volume may be")
	}
}

// TestFoldPieces asserts that the further pieces of a PersistentVolume are withheld, that its first piece has the rest
// of its capacity, and that the ledger knows of the node and the volume what decides about pieces.
func TestFoldPieces(t *testing.T) {
	b := newBench(t, nil, "n1")
	b.storageClass(t, "ssd", nil)
	pv := b.volume(t, b.claim(t, "data", "ssd", 4, nil), "n1", 0)
	first := diskv1alpha1.PartitionID(pv.Name)
	ndc := b.capacity("n1", 10)
	ndc.Status.DeviceMapper = true
	if err := b.plugin.feed.capacities.Add(ndc); err != nil {
		t.Fatal(err)
	}
	piece := diskv1alpha1.Place{Disk: diskOf("n1"), Extent: diskv1alpha1.Extent{Start: diskv1alpha1.Alignment + 7*units.GiB, Length: 2 * units.GiB}}
	pv.Annotations = map[string]string{diskv1alpha1.AnnotationPieces: piece.String()}
	pv.Spec.Capacity[corev1.ResourceStorage] = *resource.NewQuantity(7*units.GiB, resource.BinarySI)
	pv.ResourceVersion = "7"
	b.storeVolume(t, pv)
	if free := b.plugin.ledger.Snapshot("n1").Node.Disks[0].Free; free.Total() != 3*units.GiB || free.At(0).Start != diskv1alpha1.Alignment+5*units.GiB || free.Len() != 2 {
		t.Errorf("free is %v", free)
	}
	if node, r, ok := b.plugin.ledger.Where(diskv1alpha1.PieceID(first, 1)); !ok || node != "n1" || r.Extent.Len() != piece.Length {
		t.Errorf("the piece is at %+v on %q: %t", r, node, ok)
	}
	s := b.plugin.ledger.Snapshot("n1")
	if !s.DeviceMapper() || s.IsMapped(first) {
		t.Errorf("the node has the device mapper: %t, the volume is attached by it: %t", s.DeviceMapper(), s.IsMapped(first))
	}
	b.publish(t, "n1", 3, diskv1alpha1.Allocation{
		Partition: first, Phase: diskv1alpha1.PhaseFormatted, Attachment: diskv1alpha1.AttachDeviceMapper,
		Extent: diskv1alpha1.Extent{Start: diskv1alpha1.Alignment, Length: 5 * units.GiB},
	})
	if s := b.plugin.ledger.Snapshot("n1"); s.DeviceMapper() || !s.IsMapped(first) {
		t.Errorf("the node has the device mapper: %t, the volume is attached by it: %t", s.DeviceMapper(), s.IsMapped(first))
	}
	whole := pv.DeepCopy()
	whole.Annotations, whole.ResourceVersion = nil, "8"
	if err := b.plugin.feed.volumes.Update(whole); err != nil {
		t.Fatal(err)
	}
	b.plugin.feed.foldVolume(klog.Background(), whole)
	if _, _, ok := b.plugin.ledger.Where(diskv1alpha1.PieceID(first, 1)); ok {
		t.Error("a piece is left of a volume that has none any more")
	}
}

// TestMaxPieces asserts of how many pieces volumes consist, by what their class says.
func TestMaxPieces(t *testing.T) {
	c := newClasses()
	for name, limit := range map[string]*int32{"unset": nil, "one": ptr.To[int32](1), "four": ptr.To[int32](4)} {
		class := &diskv1alpha1.DiskClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: diskv1alpha1.DiskClassSpec{MaxPieces: limit}}
		if err := c.Add(class); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]int{"unset": 16, "one": 1, "four": 4, "unknown": 1} {
		if got := c.maxPieces(name); got != want {
			t.Errorf("class %s allows %d pieces, want %d", name, got, want)
		}
	}
}

// TestFoldVolumes asserts that the present state of a PersistentVolume is folded in, in whatever order its events come.
func TestFoldVolumes(t *testing.T) {
	b := newBench(t, nil, "n1")
	b.storageClass(t, "ssd", nil)
	b.publish(t, "n1", 10)
	pvc := b.claim(t, "data", "ssd", 4, nil)
	pv := b.volume(t, pvc, "n1", 2)
	// An event that comes after the deletion of its object.
	b.plugin.feed.foldVolume(klog.Background(), pv)
	if b.freeGiB("n1") != 10 {
		t.Errorf("%d GiB are free with no volume in the store", b.freeGiB("n1"))
	}
	pv.UID = "another"
	b.storeVolume(t, pv)
	if b.freeGiB("n1") != 6 {
		t.Errorf("%d GiB are free", b.freeGiB("n1"))
	}
	larger := pv.DeepCopy()
	larger.Spec.Capacity[corev1.ResourceStorage] = *resource.NewQuantity(5*units.GiB, resource.BinarySI)
	if err := b.plugin.feed.volumes.Update(larger); err != nil {
		t.Fatal(err)
	}
	// The old event folds in the present state.
	b.plugin.feed.foldVolume(klog.Background(), pv)
	if b.freeGiB("n1") != 5 {
		t.Errorf("%d GiB are free after the volume was made larger", b.freeGiB("n1"))
	}
	if err := b.plugin.feed.volumes.Delete(larger); err != nil {
		t.Fatal(err)
	}
	b.plugin.feed.foldVolume(klog.Background(), larger)
	if b.freeGiB("n1") != 10 {
		t.Errorf("%d GiB are free after the end of the volume", b.freeGiB("n1"))
	}
	// Volumes of other drivers and invalid ones reserve nothing.
	foreign := b.volume(t, pvc, "n1", 2)
	foreign.UID, foreign.Spec.CSI.Driver = "foreign", "other"
	b.storeVolume(t, foreign)
	nonsense := b.volume(t, pvc, "n1", 2)
	nonsense.UID, nonsense.Spec.CSI.VolumeAttributes = "nonsense", nil
	b.storeVolume(t, nonsense)
	if b.freeGiB("n1") != 10 {
		t.Errorf("%d GiB are free", b.freeGiB("n1"))
	}
}

// TestLongNames asserts that a volume is found on its node when the volume is known before the name behind its label.
func TestLongNames(t *testing.T) {
	name := strings.Repeat("long-", 20) + "name"
	b := newBench(t, nil, name)
	b.storageClass(t, "ssd", nil)
	pv := b.volume(t, b.claim(t, "data", "ssd", 4, nil), name, 0)
	b.storeVolume(t, pv)
	b.publish(t, name, 10)
	if b.freeGiB(name) != 6 {
		t.Errorf("%d GiB are free, want 6", b.freeGiB(name))
	}
	if node, _, ok := b.plugin.ledger.Where(diskv1alpha1.PartitionID(pv.Name)); !ok || node != name {
		t.Errorf("found on %q", node)
	}
	if err := b.plugin.ledger.Validate(); err != nil {
		t.Error(err)
	}
}

// TestBindableVolumes asserts that a claim that the stock plugin binds to an existing volume requests no space, on the
// volume's node and within its limits.
func TestBindableVolumes(t *testing.T) {
	tests := map[string]struct {
		claims   []int64 // GiB
		bindable func(pv *corev1.PersistentVolume)
		fits     bool
	}{
		"fits":             {[]int64{4}, nil, true},
		"too small":        {[]int64{5}, nil, false},
		"one of two":       {[]int64{4, 4}, nil, false},
		"one, and space":   {[]int64{4, 1}, nil, false}, // the smaller is bound to it
		"not available":    {[]int64{4}, func(pv *corev1.PersistentVolume) { pv.Status.Phase = corev1.VolumeReleased }, false},
		"of another class": {[]int64{4}, func(pv *corev1.PersistentVolume) { pv.Spec.StorageClassName = "other" }, false},
		"on another node": {[]int64{4}, func(pv *corev1.PersistentVolume) {
			pv.Spec.NodeAffinity.Required.NodeSelectorTerms[0].MatchExpressions[0].Values = []string{"n2"}
		}, false},
		"for a claim by name": {[]int64{4}, func(pv *corev1.PersistentVolume) {
			pv.Spec.ClaimRef = &corev1.ObjectReference{Namespace: "default", Name: "claim-0"}
		}, true},
		"for another by name": {[]int64{4}, func(pv *corev1.PersistentVolume) {
			pv.Spec.ClaimRef = &corev1.ObjectReference{Namespace: "default", Name: "other"}
		}, false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, nil, "n1")
			b.storageClass(t, "ssd", nil)
			b.publish(t, "n1", 1)
			var names []string
			for i, size := range test.claims {
				names = append(names, fmt.Sprint("claim-", i))
				b.claim(t, names[i], "ssd", size, nil)
			}
			pv := b.volume(t, b.claim(t, "old", "ssd", 4, nil), "n1", 100)
			pv.Spec.ClaimRef, pv.Status.Phase = nil, corev1.VolumeAvailable
			if test.bindable != nil {
				test.bindable(pv)
			}
			b.storeVolume(t, pv)
			pod := claimPod("a", names...)
			state, statuses := b.filter(t, pod)
			if statuses["n1"].IsSuccess() != test.fits {
				t.Fatalf("status %v", statuses["n1"])
			}
			if !test.fits {
				return
			}
			if status := b.plugin.Reserve(b.ctx, state, pod, "n1"); !status.IsSuccess() {
				t.Fatal(status)
			}
			if b.freeGiB("n1") != 1 {
				t.Errorf("%d GiB are free, want 1", b.freeGiB("n1"))
			}
			if hint := b.hint(t, fwk.PersistentVolume, fwk.Add, pod, nil, pv); hint != fwk.Queue {
				t.Error("not woken by the volume")
			}
			// It is taken.
			taken := pv.DeepCopy()
			taken.Spec.ClaimRef = &corev1.ObjectReference{Namespace: "default", Name: "x", UID: "x"}
			b.plugin.Unreserve(b.ctx, framework.NewCycleState(), pod, "n1")
			b.storeVolume(t, taken)
			if len(b.plugin.feed.bindableVolumes.byClass) != 0 {
				t.Error("a volume that a claim has is still bindable")
			}
			if _, statuses := b.filter(t, pod); statuses["n1"].IsSuccess() {
				t.Error("the volume is counted on although it is taken")
			}
		})
	}
}

// TestExistingOnly asserts that a claim that no volume is made for fits where an existing volume can be bound to it.
// Elsewhere the pod waits, with a reason. If there is no such volume at all, the pod is refused.
func TestExistingOnly(t *testing.T) {
	selecting := func(c *corev1.PersistentVolumeClaim) {
		c.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"app": "db"}}
	}
	small := func(c *corev1.PersistentVolumeClaim) {
		c.Spec.Resources.Requests = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("100Mi")}
	}
	for name, test := range map[string]struct {
		claim func(*corev1.PersistentVolumeClaim)
		class map[string]string
		pv    func(*corev1.PersistentVolume)
		fits  bool
		says  string
	}{
		"selected":           {selecting, nil, func(pv *corev1.PersistentVolume) { pv.Labels["app"] = "db" }, true, ""},
		"not selected":       {selecting, nil, nil, false, "no volume here can be bound to claim default/data: selector is set"},
		"too small for xfs":  {small, map[string]string{diskv1alpha1.ParameterFSType: "xfs"}, nil, true, ""},
		"too small, no room": {small, map[string]string{diskv1alpha1.ParameterFSType: "xfs"}, func(pv *corev1.PersistentVolume) { pv.Status.Phase = corev1.VolumeReleased }, false, "too small for xfs"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, nil, "n1")
			b.storageClass(t, "ssd", func(c *storagev1.StorageClass) { maps.Copy(c.Parameters, test.class) })
			b.publish(t, "n1", 10)
			b.claim(t, "data", "ssd", 2, test.claim)
			pod := claimPod("a", "data")
			if _, status := b.plugin.PreFilter(b.ctx, framework.NewCycleState(), pod, b.nodes); status.Code() != fwk.UnschedulableAndUnresolvable {
				t.Errorf("without any volume: %v", status)
			}
			pv := b.volume(t, b.claim(t, "old", "ssd", 4, nil), "n1", 100)
			pv.Spec.ClaimRef, pv.Status.Phase = nil, corev1.VolumeAvailable
			if test.pv != nil {
				test.pv(pv)
			}
			b.storeVolume(t, pv)
			state, statuses := b.filter(t, pod)
			if statuses["n1"].IsSuccess() != test.fits || !test.fits && !strings.Contains(statuses["n1"].Message(), test.says) {
				t.Fatalf("status %v, want %q", statuses["n1"], test.says)
			}
			if !test.fits {
				return
			}
			if DelegatedClaims(state) != nil {
				t.Error("the claim is not left to the stock plugin, which binds it")
			}
			if status := b.plugin.Reserve(b.ctx, state, pod, "n1"); !status.IsSuccess() || b.freeGiB("n1") != 10 {
				t.Errorf("%v, %d GiB are free, want 10: the volume exists", status, b.freeGiB("n1"))
			}
		})
	}
}

func TestPreEnqueue(t *testing.T) {
	b := newBench(t, nil, "n1")
	b.storageClass(t, "ssd", nil)
	pod := withEphemeral(withClaim(podOf("a", 1), "data"), "tmp")
	source := pod.Spec.Volumes[len(pod.Spec.Volumes)-1].Ephemeral
	b.storageClass(t, "other", func(c *storagev1.StorageClass) { c.Provisioner = "other.example.com" })
	for name, class := range map[string]*string{"none": nil, "another driver's": ptr.To("other"), "one that does not exist": ptr.To("gone")} {
		source.VolumeClaimTemplate = &corev1.PersistentVolumeClaimTemplate{Spec: corev1.PersistentVolumeClaimSpec{StorageClassName: class}}
		if status := b.plugin.PreEnqueue(b.ctx, pod); !status.IsSuccess() {
			t.Errorf("with StorageClass %s the pod is held: %v", name, status)
		}
	}
	source.VolumeClaimTemplate = &corev1.PersistentVolumeClaimTemplate{Spec: corev1.PersistentVolumeClaimSpec{StorageClassName: ptr.To("ssd")}}
	if status := b.plugin.PreEnqueue(b.ctx, pod); status.Code() != fwk.UnschedulableAndUnresolvable || !strings.Contains(status.Message(), "default/a-tmp") {
		t.Errorf("status %v", status)
	}
	pvc := b.claim(t, "a-tmp", "ssd", 2, ownedBy(pod))
	if status := b.plugin.PreEnqueue(b.ctx, pod); !status.IsSuccess() {
		t.Errorf("status %v", status)
	}
	if hint := b.hint(t, fwk.PersistentVolumeClaim, fwk.Add, pod, nil, pvc); hint != fwk.Queue {
		t.Error("not woken by its claim")
	}
	if hint := b.hint(t, fwk.PersistentVolumeClaim, fwk.Add, withEphemeral(claimPod("b"), "tmp"), nil, pvc); hint != fwk.QueueSkip {
		t.Error("woken by the claim of another")
	}
}

func TestClaimHints(t *testing.T) {
	b := newBench(t, nil, "n1")
	ssd := b.storageClass(t, "ssd", nil)
	b.publish(t, "n1", 4)
	pvc := b.claim(t, "data", "ssd", 4, nil)
	pod, other := claimPod("a", "data"), claimPod("b", "other")
	changed := func(change func(*corev1.PersistentVolumeClaim)) *corev1.PersistentVolumeClaim {
		out := pvc.DeepCopy()
		change(out)
		return out
	}
	small := b.volume(t, b.claim(t, "small", "ssd", 1, nil), "n1", 0)
	b.storeVolume(t, small)
	own := b.volume(t, pvc, "n2", 0)
	tests := []struct {
		name     string
		resource fwk.EventResource
		action   fwk.ActionType
		pod      *corev1.Pod
		old, obj any
		want     fwk.QueueingHint
	}{
		{"its claim", fwk.PersistentVolumeClaim, fwk.Add, pod, nil, pvc, fwk.Queue},
		{"another's claim", fwk.PersistentVolumeClaim, fwk.Add, other, nil, pvc, fwk.QueueSkip},
		{"its claim, changed in nothing", fwk.PersistentVolumeClaim, fwk.Update, pod, pvc, changed(func(c *corev1.PersistentVolumeClaim) { c.Labels = map[string]string{"a": "b"} }), fwk.QueueSkip},
		{"its claim, bound", fwk.PersistentVolumeClaim, fwk.Update, pod, pvc, changed(func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = "pv" }), fwk.Queue},
		{"its claim, given the default class", fwk.PersistentVolumeClaim, fwk.Update, pod, changed(func(c *corev1.PersistentVolumeClaim) { c.Spec.StorageClassName = nil }), pvc, fwk.Queue},
		{"its class", fwk.StorageClass, fwk.Add, pod, nil, ssd, fwk.Queue},
		{"another class", fwk.StorageClass, fwk.Add, pod, nil, &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "hdd"}}, fwk.QueueSkip},
		{"a volume of another", fwk.PersistentVolume, fwk.Update, pod, small, small, fwk.QueueSkip},
		{"the label", fwk.Node, fwk.UpdateNodeLabel, claimPod("c", "small"), st.MakeNode().Name("n1").Obj(), b.node("n1").Node(), fwk.Queue},
		{"another label", fwk.Node, fwk.UpdateNodeLabel, claimPod("c", "small"), b.node("n1").Node(), b.node("n1").Node(), fwk.QueueSkip},
		{"the end of the volume that tied it elsewhere", fwk.PersistentVolume, fwk.Delete, pod, own, nil, fwk.Queue},
	}
	for _, test := range tests {
		if have := b.hint(t, test.resource, test.action, test.pod, test.old, test.obj); have != test.want {
			t.Errorf("%s: %v, want %v", test.name, have, test.want)
		}
	}
	// The end of another claim's volume wakes the pod if it fits then.
	if err := b.plugin.feed.volumes.Delete(small); err != nil {
		t.Fatal(err)
	}
	if hint := b.hint(t, fwk.PersistentVolume, fwk.Delete, pod, small, nil); hint != fwk.Queue {
		t.Error("not woken by 4 GiB for 4, the event folded in before")
	}
	b.claim(t, "large", "ssd", 5, nil)
	if hint := b.hint(t, fwk.PersistentVolume, fwk.Delete, claimPod("d", "large"), small, nil); hint != fwk.QueueSkip {
		t.Error("woken by 4 GiB for 5")
	}
}

// TestVictimsWithClaims asserts that the volumes that end with a victim count as free without it.
func TestVictimsWithClaims(t *testing.T) {
	tests := map[string]struct {
		victim func(t *testing.T, b *bench) *corev1.Pod
		fits   bool
	}{
		"persistent claim": {func(t *testing.T, b *bench) *corev1.Pod {
			b.storeVolume(t, b.volume(t, b.claim(t, "data", "ssd", 4, func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = diskv1alpha1.ClaimVolumeID(c.UID) }), "n1", 0))
			return claimPod("victim", "data")
		}, false},
		"ephemeral claim": {func(t *testing.T, b *bench) *corev1.Pod {
			pod := withEphemeral(claimPod("victim"), "tmp")
			b.storeVolume(t, b.volume(t, b.claim(t, "victim-tmp", "ssd", 4, func(c *corev1.PersistentVolumeClaim) {
				ownedBy(pod)(c)
				c.Spec.VolumeName = diskv1alpha1.ClaimVolumeID(c.UID)
			}), "n1", 0))
			return pod
		}, true},
		"ephemeral claim that is retained": {func(t *testing.T, b *bench) *corev1.Pod {
			pod := withEphemeral(claimPod("victim"), "tmp")
			pv := b.volume(t, b.claim(t, "victim-tmp", "ssd", 4, func(c *corev1.PersistentVolumeClaim) {
				ownedBy(pod)(c)
				c.Spec.VolumeName = diskv1alpha1.ClaimVolumeID(c.UID)
			}), "n1", 0)
			pv.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimRetain
			b.storeVolume(t, pv)
			return pod
		}, false},
		"inline": {func(t *testing.T, b *bench) *corev1.Pod {
			pod := podOf("victim", 4)
			b.reserve(t, pod, "n1")
			return pod
		}, true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, nil, "n1")
			b.storageClass(t, "ssd", nil)
			b.publish(t, "n1", 5)
			victim := test.victim(t, b)
			victim.Spec.NodeName = "n1"
			b.claim(t, "mine", "ssd", 5, nil)
			pod := claimPod("important", "mine")
			state, statuses := b.filter(t, pod)
			if statuses["n1"].IsSuccess() {
				t.Fatal("fits with the victim there")
			}
			info, err := framework.NewPodInfo(victim)
			if err != nil {
				t.Fatal(err)
			}
			tried := state.Clone()
			b.plugin.RemovePod(b.ctx, tried, pod, info, b.node("n1"))
			if fits := b.plugin.Filter(b.ctx, tried, pod, b.node("n1")).IsSuccess(); fits != test.fits {
				t.Errorf("fits without the victim: %v", fits)
			}
			b.plugin.AddPod(b.ctx, tried, pod, info, b.node("n1"))
			if b.plugin.Filter(b.ctx, tried, pod, b.node("n1")).IsSuccess() {
				t.Error("fits when the victim is back")
			}
		})
	}
}

// TestNominatedWithClaim asserts that space is kept for the claim of a nominated pod.
func TestNominatedWithClaim(t *testing.T) {
	b := newBench(t, nil, "n1")
	b.storageClass(t, "ssd", nil)
	b.publish(t, "n1", 5)
	b.claim(t, "data", "ssd", 3, nil)
	b.nominated.nominate(t, "n1", claimPod("waiting", "data"))
	if _, statuses := b.filter(t, podOf("small", 2)); !statuses["n1"].IsSuccess() {
		t.Errorf("2 GiB beside 3 of 5: %v", statuses["n1"])
	}
	if _, statuses := b.filter(t, podOf("large", 3)); statuses["n1"].IsSuccess() {
		t.Error("3 GiB beside 3 of 5 fit")
	}
}

func TestUnlabeledNode(t *testing.T) {
	b := newBench(t, nil, "n1")
	b.storageClass(t, "ssd", nil)
	b.publish(t, "n1", 5)
	b.claim(t, "data", "ssd", 3, nil)
	delete(b.node("n1").Node().Labels, diskv1alpha1.LabelNode)
	if _, statuses := b.filter(t, claimPod("a", "data")); !strings.Contains(statuses["n1"].Message(), "lacks the label disk.berth.dev/node") {
		t.Errorf("status %v", statuses["n1"])
	}
	if _, statuses := b.filter(t, podOf("a", 1)); !statuses["n1"].IsSuccess() {
		t.Errorf("an inline volume needs no label: %v", statuses["n1"])
	}
}

func TestSignClaims(t *testing.T) {
	b := newBench(t, nil, "n1")
	b.storageClass(t, "ssd", nil)
	b.storageClass(t, "other", func(c *storagev1.StorageClass) { c.Provisioner = "other" })
	b.claim(t, "open", "ssd", 1, nil)
	b.claim(t, "bound", "ssd", 1, func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = "pv" })
	b.claim(t, "foreign", "other", 1, nil)
	for name, batched := range map[string]bool{"open": false, "missing": false, "bound": true, "foreign": true} {
		if _, status := b.plugin.SignPod(b.ctx, claimPod("a", name)); status.IsSuccess() != batched {
			t.Errorf("%s: %v", name, status)
		}
	}
}

// TestNarrowedClaims asserts that pods whose claims are all to be placed are tried on the nodes that fit best.
func TestNarrowedClaims(t *testing.T) {
	b := largeCluster(t, 150)
	b.storageClass(t, "ssd", nil)
	b.storageClass(t, "other", func(c *storagev1.StorageClass) { c.Provisioner = "other" })
	b.claim(t, "open", "ssd", 1, nil)
	b.claim(t, "bound", "ssd", 1, func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = "pv" })
	b.claim(t, "foreign", "other", 1, nil)
	b.claim(t, "selected", "ssd", 1, func(c *corev1.PersistentVolumeClaim) {
		c.Annotations = map[string]string{volume.AnnSelectedNode: "n0001"}
	})
	b.storeVolume(t, b.volume(t, b.claim(t, "made", "ssd", 1, nil), "n0001", 500))
	for name, narrowed := range map[string]bool{"open": true, "bound": false, "foreign": false, "selected": false, "made": false} {
		if _, names := b.triedOn(t, withClaim(podOf("a", 1), name)); (names != nil) != narrowed {
			t.Errorf("%s: tried on %d nodes", name, len(names))
		}
	}
	unlabeled := b.node("n0003").Node().DeepCopy()
	unlabeled.Labels = nil
	if err := b.factory.Core().V1().Nodes().Informer().GetIndexer().Update(unlabeled); err != nil {
		t.Fatal(err)
	}
	if _, names := b.triedOn(t, claimPod("a", "open")); slices.Contains(names, "n0003") || len(names) != narrowTo {
		t.Errorf("tried on %d nodes, among them one that can have no claim", len(names))
	}
}
