package provisioner

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/berthdev/berth/pkg/answer"
	"github.com/berthdev/berth/test/objects"
)

// grown is a bench with a bound claim of 4 GiB on n1.
func grown(t *testing.T) *bench {
	t.Helper()
	b := newBench(t)
	if err := b.sync(t, onNode("n1")); err != nil {
		t.Fatal(err)
	}
	b.notifyVolumes(t)
	b.pvc.Spec.VolumeName = b.api.volumes(t)[0].Name
	b.pvc.Status.Phase = corev1.ClaimBound
	b.pvc.Status.Capacity = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("4Gi")}
	if err := b.sync(t, nil); err != nil || b.free("n1") != 6 {
		t.Fatalf("%v, %d GiB are free", err, b.free("n1"))
	}
	return b
}

func asking(size string) func(*corev1.PersistentVolumeClaim) {
	return func(pvc *corev1.PersistentVolumeClaim) {
		pvc.Spec.Resources.Requests = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}
	}
}

// TestGrowthInDoubt asserts which space is withheld after a write that raises a capacity has failed. When the request
// was lowered or the claim is gone, only the PersistentVolume's capacity is withheld.
func TestGrowthInDoubt(t *testing.T) {
	for name, test := range map[string]struct {
		outcome outcome
		doubt   int64 // GiB free after the write
		lower   string
		free    int64 // GiB free at last
		volume  string
	}{
		"not done, lowered":               {failed, 1, "5Gi", 5, "5Gi"},
		"done, lowered":                   {lost, 1, "5Gi", 1, "9Gi"},
		"not done, lowered to what it is": {failed, 1, "4Gi", 6, "4Gi"},
		"done, lowered to what it was":    {lost, 1, "4Gi", 1, "9Gi"},
		"not done, the claim is gone":     {failed, 1, "", 6, "4Gi"},
		"done, the claim is gone":         {lost, 1, "", 1, "9Gi"},
		"forbidden, lowered":              {forbidden, 6, "4Gi", 6, "4Gi"},
		"busy, lowered":                   {busy, 6, "4Gi", 6, "4Gi"},
		"busy, the claim is gone":         {busy, 6, "", 6, "4Gi"},
	} {
		t.Run(name, func(t *testing.T) {
			b := grown(t)
			b.api.answerNext("PATCH", test.outcome)
			b.api.objects["namespaces/default/persistentvolumeclaims/data/status"] = map[string]any{"metadata": map[string]any{}, "status": map[string]any{}}
			if err := b.sync(t, asking("9Gi")); err == nil {
				t.Fatal("the write succeeded")
			}
			if b.free("n1") != test.doubt {
				t.Errorf("%d GiB are free after the write, want %d", b.free("n1"), test.doubt)
			}
			for range 3 { // The informer of PersistentVolumes lags behind at first.
				if test.lower != "" {
					_ = b.sync(t, asking(test.lower))
				} else {
					b.store(t, b.claimInformer.GetIndexer().Delete, b.pvc)
					if err := b.syncClaim(t.Context(), keyOf(b.pvc)); err != nil {
						t.Fatal(err)
					}
				}
				b.notifyVolumes(t)
			}
			if b.free("n1") != test.free {
				t.Errorf("%d GiB are free at last, want %d", b.free("n1"), test.free)
			}
			pv := b.api.volumes(t)[0]
			if want := resource.MustParse(test.volume); capacitySize(pv).Cmp(want) != 0 {
				t.Errorf("the volume has %s, want %s", capacitySize(pv), test.volume)
			}
			if len(b.memory.unsettled(keyOf(b.pvc))) > 0 {
				t.Error("it is still in doubt")
			}
		})
	}
}

// TestSlowGrowth asserts that a write that is still on its way is refused once the growth is settled.
func TestSlowGrowth(t *testing.T) {
	b := grown(t)
	was := b.api.volumes(t)[0].ResourceVersion
	b.api.answerNext("PATCH", failed)
	if err := b.sync(t, asking("9Gi")); err == nil {
		t.Fatal("the write succeeded")
	}
	_ = b.sync(t, asking("4Gi"))
	if now := b.api.volumes(t)[0].ResourceVersion; now == was {
		t.Errorf("the PersistentVolume still has version %s, of which the write was", was)
	}
}

// TestPlaceInDoubt asserts whether a claim's place stays held when its PersistentVolume may have been made and the
// claim's node is taken back.
func TestPlaceInDoubt(t *testing.T) {
	for name, test := range map[string]struct {
		outcome outcome
		// free are the GiB on n1: after the write, without the node, when the watch has shown it, and after
		// answer.SettleAfter.
		free [4]int64
	}{
		"not made":  {failed, [4]int64{6, 6, 6, 10}},
		"made":      {lost, [4]int64{6, 6, 6, 6}},
		"forbidden": {forbidden, [4]int64{10, 10, 10, 10}},
		"busy":      {busy, [4]int64{10, 10, 10, 10}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.api.answerNext("POST", test.outcome)
			check := func(step int) {
				t.Helper()
				if b.free("n1") != test.free[step] {
					t.Errorf("step %d: %d GiB are free, want %d", step, b.free("n1"), test.free[step])
				}
				if err := b.ledger.Validate(); err != nil {
					t.Error(err)
				}
			}
			if err := b.sync(t, onNode("n1")); err == nil {
				t.Fatal("the write succeeded")
			}
			check(0)
			taken := func(pvc *corev1.PersistentVolumeClaim) { pvc.Annotations = nil }
			if err := b.sync(t, taken); err != nil {
				t.Fatal(err)
			}
			check(1)
			b.notifyVolumes(t)
			if err := b.sync(t, nil); err != nil {
				t.Fatal(err)
			}
			check(2)
			b.time.SetTime(b.time.Now().Add(answer.SettleAfter))
			if err := b.sync(t, nil); err != nil {
				t.Fatal(err)
			}
			check(3)
			if b.ledger.Holds(holderOf(b.pvc.UID)) {
				t.Error("its place is held beside the PersistentVolume's")
			}
		})
	}
}

// TestPlaceInDoubtEnds asserts that no place stays held for a claim that is gone or was made again. The claim's next
// try on another node also settles it.
func TestPlaceInDoubtEnds(t *testing.T) {
	for name, end := range map[string]func(t *testing.T, b *bench) error{
		"gone": func(t *testing.T, b *bench) error {
			b.store(t, b.claimInformer.GetIndexer().Delete, b.pvc)
			return b.syncClaim(t.Context(), keyOf(b.pvc))
		},
		"made again": func(t *testing.T, b *bench) error {
			return b.sync(t, func(pvc *corev1.PersistentVolumeClaim) { pvc.UID = "another" })
		},
		"served elsewhere": func(t *testing.T, b *bench) error {
			err := b.sync(t, onNode("n2"))
			if b.free("n2") != 6 {
				t.Errorf("%d GiB are free where it is", b.free("n2"))
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.api.answerNext("POST", failed)
			if err := b.sync(t, onNode("n1")); err == nil {
				t.Fatal("the write succeeded")
			}
			if err := b.sync(t, func(pvc *corev1.PersistentVolumeClaim) { pvc.Annotations = nil }); err != nil {
				t.Fatal(err)
			}
			if b.free("n1") != 6 {
				t.Errorf("%d GiB are free while the volume may exist", b.free("n1"))
			}
			if err := end(t, b); err != nil {
				t.Fatal(err)
			}
			if b.free("n1") != 10 {
				t.Errorf("%d GiB are free, want 10", b.free("n1"))
			}
		})
	}
}

// TestMadeElsewhere asserts that a volume which an earlier try has made on another node keeps its place there.
func TestMadeElsewhere(t *testing.T) {
	b := newBench(t)
	b.api.answerNext("POST", lost)
	if err := b.sync(t, onNode("n1")); err == nil {
		t.Fatal("the write succeeded")
	}
	if err := b.sync(t, onNode("n2")); err != nil && !strings.Contains(err.Error(), "already") {
		t.Fatal(err)
	}
	if b.free("n1") != 6 || b.free("n2") != 10 {
		t.Errorf("%d GiB are free where it is, %d where it is not", b.free("n1"), b.free("n2"))
	}
}

// TestAnotherNodeInDoubt asserts that a claim whose scheduler chooses another node keeps the place of an earlier try.
// The place stays held until it is known whether that volume was made.
func TestAnotherNodeInDoubt(t *testing.T) {
	b := newBench(t)
	b.api.answerNext("POST", failed, failed)
	for _, node := range []string{"n1", "n2"} {
		if err := b.sync(t, onNode(node)); err == nil {
			t.Fatal("the write succeeded")
		}
	}
	if b.free("n1") != 6 || b.free("n2") != 6 {
		t.Errorf("%d and %d GiB are free while either volume may exist", b.free("n1"), b.free("n2"))
	}
	if err := b.sync(t, nil); err != nil {
		t.Fatal(err)
	}
	if b.free("n1") != 10 || b.free("n2") != 6 {
		t.Errorf("%d and %d GiB are free when the volume is made", b.free("n1"), b.free("n2"))
	}
}

// TestBusyIsNotRefused asserts that events do not say "refused" when the API server was too busy.
func TestBusyIsNotRefused(t *testing.T) {
	for what, want := range map[outcome]bool{busy: false, failed: false, forbidden: true} {
		b := newBench(t)
		b.api.answerNext("POST", what)
		if err := b.sync(t, onNode("n1")); err == nil {
			t.Fatal("the write succeeded")
		}
		if said := b.said(); strings.Contains(said, "refused") != want {
			t.Errorf("outcome %d: said %q", what, said)
		}
	}
}

// TestBoundInDoubt asserts that a claim which is bound after a try of unknown outcome keeps that try's place only until
// it is known what became of the volume, also while the claim asks for more.
func TestBoundInDoubt(t *testing.T) {
	for name, test := range map[string]struct {
		deleted bool
		free    int64 // GiB free at last
	}{
		"the volume is seen":    {false, 1},
		"the volume is deleted": {true, 10},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.api.answerNext("POST", lost)
			if err := b.sync(t, onNode("n1")); err == nil {
				t.Fatal("the write succeeded")
			}
			pv := b.api.volumes(t)[0]
			b.api.objects["namespaces/default/persistentvolumeclaims/data/status"] = map[string]any{"metadata": map[string]any{}, "status": map[string]any{}}
			b.pvc.Spec.VolumeName, b.pvc.Status.Phase = pv.Name, corev1.ClaimBound
			b.pvc.Status.Capacity = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("4Gi")}
			if err := b.sync(t, asking("9Gi")); err != nil {
				t.Fatal(err)
			}
			if b.free("n1") != 6 {
				t.Errorf("%d GiB are free while the volume is not seen, want 6", b.free("n1"))
			}
			if test.deleted {
				delete(b.api.objects, "persistentvolumes/"+pv.Name)
				b.time.SetTime(b.time.Now().Add(answer.SettleAfter))
			} else {
				b.notifyVolumes(t)
			}
			// The write of the claim's status after the growth is in conflict, which does not matter here.
			if err := b.sync(t, nil); err != nil && !strings.Contains(err.Error(), "writing the status") {
				t.Fatal(err)
			}
			if b.free("n1") != test.free {
				t.Errorf("%d GiB are free at last, want %d", b.free("n1"), test.free)
			}
			if b.ledger.Holds(holderOf(b.pvc.UID)) {
				t.Error("the place of the try is still held")
			}
		})
	}
}

// TestNotServedInDoubt asserts that the place of a try of unknown outcome is held while the volume may be made, and not
// longer, for claims that are not served after it.
func TestNotServedInDoubt(t *testing.T) {
	setClass := func(change func(*storagev1.StorageClass)) func(*testing.T, *bench) {
		return func(t *testing.T, b *bench) {
			b.class = b.class.DeepCopy()
			change(b.class)
			b.store(t, b.classInformer.GetIndexer().Update, b.class)
		}
	}
	for name, stop := range map[string]func(*testing.T, *bench){
		"the class is another driver's": setClass(func(class *storagev1.StorageClass) { class.Provisioner = "other" }),
		"the class is wrong":            setClass(func(class *storagev1.StorageClass) { class.Parameters = map[string]string{"wrong": "yes"} }),
		"the pod's node is unfit": func(t *testing.T, b *bench) {
			b.unfit["n1"] = "no agent"
			b.onPod(nil, &corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "db", UID: "db-uid"},
				Spec:       corev1.PodSpec{NodeName: "n1", Volumes: []corev1.Volume{objects.ClaimVolume("data", "data")}},
			})
			b.pvc.Annotations = nil
		},
		"no node is fit": func(t *testing.T, b *bench) {
			b.unfit["n1"], b.unfit["n2"] = "no agent", "no agent"
			setClass(func(class *storagev1.StorageClass) {
				class.VolumeBindingMode = ptr.To(storagev1.VolumeBindingImmediate)
			})(t, b)
			provisioned(b.pvc)
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.api.answerNext("POST", failed)
			if err := b.sync(t, onNode("n1")); err == nil {
				t.Fatal("the write succeeded")
			}
			stop(t, b)
			if err := b.sync(t, nil); err != nil {
				t.Fatal(err)
			}
			if b.free("n1") != 6 {
				t.Errorf("%d GiB are free while the volume may exist, want 6", b.free("n1"))
			}
			b.time.SetTime(b.time.Now().Add(answer.SettleAfter))
			if err := b.sync(t, nil); err != nil {
				t.Fatal(err)
			}
			if b.free("n1") != 10 || b.ledger.Holds(holderOf(b.pvc.UID)) {
				t.Errorf("%d GiB are free when it is known that there is no volume, want 10", b.free("n1"))
			}
		})
	}
}
