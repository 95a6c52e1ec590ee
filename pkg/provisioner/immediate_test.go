package provisioner

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/component-helpers/storage/volume"
	"k8s.io/utils/ptr"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/ledger"
	"github.com/berthdev/berth/test/units"
)

// madeOn is the node of the only PersistentVolume; empty if there is none.
func (b *bench) madeOn(t *testing.T) string {
	t.Helper()
	volumes := b.api.volumes(t)
	if len(volumes) == 0 {
		return ""
	}
	v, err := claim.ReadVolume(volumes[0])
	if err != nil || len(volumes) > 1 {
		t.Fatalf("%d volumes, %v", len(volumes), err)
	}
	return v.Node
}

// now sets volumeBindingMode Immediate, and makes n2 the tighter node: 5 GiB are free there.
func (b *bench) now(t *testing.T, change func(*storagev1.StorageClass)) {
	t.Helper()
	b.class = b.class.DeepCopy()
	b.class.VolumeBindingMode = ptr.To(storagev1.VolumeBindingImmediate)
	if change != nil {
		change(b.class)
	}
	b.store(t, b.classInformer.GetIndexer().Update, b.class)
	b.ledger.SetCapacity("n2", &ledger.Capacity{Revision: 10, Disks: []ledger.Disk{{
		ID: diskv1alpha1.PartitionID("disk of n2"), Class: "ssd", Ready: true, Size: 11 * units.GiB, Free: []extent.Extent{extent.New(diskv1alpha1.Alignment, 5*units.GiB)},
	}}})
	for _, node := range []string{"n1", "n2"} {
		b.ledger.SetAgent(node, true)
	}
}

func (b *bench) node(t *testing.T, name string, change func(*corev1.Node)) {
	t.Helper()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"zone": "of-" + name}}}
	if change != nil {
		change(node)
	}
	b.store(t, b.nodeInformer.GetIndexer().Update, node)
}

// provisioned is what the PersistentVolume controller writes when no volume exists for the claim.
func provisioned(pvc *corev1.PersistentVolumeClaim) {
	pvc.Annotations = map[string]string{volume.AnnStorageProvisioner: diskv1alpha1.DriverName}
}

// TestPlaceImmediate asserts on which node the volume of a claim is made whose StorageClass has volumeBindingMode
// Immediate.
func TestPlaceImmediate(t *testing.T) {
	tainted := func(n *corev1.Node) {
		n.Spec.Taints = []corev1.Taint{{Key: "a", Effect: corev1.TaintEffectNoSchedule}}
	}
	in := func(values ...string) func(*storagev1.StorageClass) {
		return func(c *storagev1.StorageClass) {
			c.AllowedTopologies = []corev1.TopologySelectorTerm{{MatchLabelExpressions: []corev1.TopologySelectorLabelRequirement{{Key: "zone", Values: values}}}}
		}
	}
	for name, test := range map[string]struct {
		class  func(*storagev1.StorageClass)
		n2     func(*corev1.Node)
		unfit  string
		size   string
		want   string
		before bool // the PersistentVolume controller has not looked yet
	}{
		"the best":                {want: "n2"},
		"too large for the best":  {size: "6Gi", want: "n1"},
		"too large for all":       {size: "11Gi"},
		"cordoned":                {n2: func(n *corev1.Node) { n.Spec.Unschedulable = true }, want: "n1"},
		"tainted":                 {n2: tainted, want: "n1"},
		"without an agent":        {unfit: "n2", want: "n1"},
		"allowed elsewhere":       {class: in("of-n1", "of-n3"), want: "n1"},
		"allowed nowhere":         {class: in("of-n3")},
		"a volume may exist":      {before: true},
		"allowed here and beyond": {class: in("of-n1", "of-n2"), want: "n2"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.now(t, test.class)
			b.node(t, "n1", nil)
			b.node(t, "n2", test.n2)
			b.unfit[test.unfit] = "no agent"
			if test.size != "" {
				asking(test.size)(b.pvc)
			}
			change := provisioned
			if test.before {
				change = nil
			}
			if err := b.sync(t, change); err != nil {
				t.Fatal(err)
			}
			if have := b.madeOn(t); have != test.want {
				t.Errorf("made on %q, want %q", have, test.want)
			}
			said := b.said()
			switch {
			case test.before && said != "", test.want != "" && !strings.Contains(said, "pods with the claim can run on that node only"),
				test.want == "" && !test.before && !strings.Contains(said, "no node that StorageClass ssd allows"):
				t.Errorf("said %q", said)
			}
		})
	}
}

// TestPlaceImmediateInDoubt asserts that the place of an earlier try, whose volume may have been made, stays held when
// a later try uses another node.
func TestPlaceImmediateInDoubt(t *testing.T) {
	b := newBench(t)
	b.now(t, nil)
	b.api.answerNext("POST", failed, failed)
	if err := b.sync(t, provisioned); err == nil {
		t.Fatal("the write succeeded")
	}
	b.node(t, "n2", func(n *corev1.Node) { n.Spec.Unschedulable = true })
	b.ledger.Doubt(holderOf(b.pvc.UID))
	if err := b.sync(t, nil); err == nil {
		t.Fatal("the write succeeded")
	}
	if b.free("n1") != 6 || b.free("n2") != 1 {
		t.Errorf("%d and %d GiB are free while either volume may exist", b.free("n1"), b.free("n2"))
	}
	if err := b.sync(t, nil); err != nil {
		t.Fatal(err)
	}
	if b.free("n1") != 6 || b.free("n2") != 5 {
		t.Errorf("%d and %d GiB are free when the volume is made", b.free("n1"), b.free("n2"))
	}
}

// TestPins asserts that the claim of a pod that names its node is served there, and which event there is if it cannot
// be.
func TestPins(t *testing.T) {
	pod := func(phase corev1.PodPhase, v corev1.VolumeSource) *corev1.Pod {
		return &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "db", UID: "db-uid"},
			Spec:       corev1.PodSpec{NodeName: "n1", Volumes: []corev1.Volume{{Name: "data", VolumeSource: v}}},
			Status:     corev1.PodStatus{Phase: phase},
		}
	}
	persistent := corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}
	generic := corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}
	owned := func(uid string) func(*corev1.PersistentVolumeClaim) {
		return func(pvc *corev1.PersistentVolumeClaim) {
			pvc.Name = "db-data"
			if uid != "" {
				pvc.OwnerReferences = []metav1.OwnerReference{{Kind: "Pod", Name: "db", UID: "db-uid", Controller: ptr.To(true)}}
				pvc.OwnerReferences[0].UID = metav1.ObjectMeta{UID: "db-uid"}.UID
			}
		}
	}
	for name, test := range map[string]struct {
		pod   *corev1.Pod
		claim func(*corev1.PersistentVolumeClaim)
		late  bool // the claim comes after the pod
		ended bool
		class func(*storagev1.StorageClass)
		unfit string
		made  string
		says  string
	}{
		"persistent":            {pod: pod("", persistent), made: "n1", says: "pod db names node n1 itself: the volume is made there"},
		"the claim comes later": {pod: pod("", persistent), late: true, made: "n1", says: "the volume is made there"},
		"generic ephemeral":     {pod: pod("", generic), claim: owned("db-uid"), late: true, made: "n1", says: "the volume is made there"},
		"not the pod's own":     {pod: pod("", generic), claim: owned(""), late: true},
		"of a pod that ended":   {pod: pod(corev1.PodFailed, persistent)},
		"of a pod that is gone": {pod: pod("", persistent), ended: true},
		"no agent":              {pod: pod("", persistent), unfit: "no agent", says: "pod db names node n1 itself, and the volume cannot be made there: no agent; leave nodeName out and set schedulerName: berth"},
		"not allowed there": {pod: pod("", persistent), class: func(c *storagev1.StorageClass) {
			c.AllowedTopologies = []corev1.TopologySelectorTerm{{MatchLabelExpressions: []corev1.TopologySelectorLabelRequirement{{Key: "zone", Values: []string{"of-n2"}}}}}
		}, says: "does not allow it by its allowedTopologies"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.node(t, "n1", nil)
			b.unfit["n1"] = test.unfit
			if test.class != nil {
				test.class(b.class)
			}
			if test.claim != nil {
				test.claim(b.pvc)
			}
			if !test.late {
				b.store(t, b.claimInformer.GetIndexer().Add, b.pvc)
			}
			b.onPod(nil, test.pod)
			if test.ended {
				b.onPod(test.pod, nil)
			}
			if !test.late && !test.ended && test.pod.Status.Phase == "" && b.claimQueue.Len() != 1 {
				t.Errorf("%d claims are looked at", b.claimQueue.Len())
			}
			if err := b.sync(t, nil); err != nil {
				t.Fatal(err)
			}
			if have := b.madeOn(t); have != test.made {
				t.Errorf("made on %q, want %q", have, test.made)
			}
			said := b.said()
			if test.says == "" && said != "" || !strings.Contains(said, test.says) || test.says != "" && strings.Count(said, "\n") != 1 {
				t.Errorf("said %q, want %q of the claim and the pod", said, test.says)
			}
			if test.says != "" && test.made == "" && b.free("n1") != 10 {
				t.Errorf("%d GiB are free, want 10", b.free("n1"))
			}
			b.onPod(test.pod, nil)
			if len(b.memory.pins) > 0 {
				t.Error("a pod that is gone is remembered")
			}
		})
	}
}
