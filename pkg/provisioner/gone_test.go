package provisioner

import (
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

// TestReleaseStep asserts the next step of a volume of a node that is gone.
func TestReleaseStep(t *testing.T) {
	const (
		remove = corev1.PersistentVolumeReclaimDelete
		retain = corev1.PersistentVolumeReclaimRetain
	)
	type volume struct {
		policy   corev1.PersistentVolumeReclaimPolicy
		marked   bool
		phase    corev1.PersistentVolumePhase
		deleting bool
		noFinal  bool
		claim    string // "", live or deleting
		due      bool
		kept     bool // the claim may not be deleted
	}
	for name, test := range map[string]struct {
		volume
		want releaseStep
	}{
		"too early":                                   {volume{policy: remove, claim: "live"}, stepKeep},
		"too early, and its claim ends":               {volume{policy: remove, claim: "deleting"}, stepKeep},
		"too early, and released":                     {volume{policy: remove, phase: corev1.VolumeReleased}, stepKeep},
		"too early, and deleted":                      {volume{policy: remove, deleting: true}, stepKeep},
		"a claim that is not made again":              {volume{policy: remove, claim: "live", due: true, kept: true}, stepKeep},
		"a claim that is not made again, and retains": {volume{policy: retain, claim: "live", due: true, kept: true}, stepKeep},
		"first the mark":                              {volume{policy: remove, claim: "live", due: true}, stepMark},
		"then the claim":                              {volume{policy: retain, marked: true, claim: "live", due: true}, stepDeleteClaim},
		"a retained one keeps its volume":             {volume{policy: retain, claim: "live", due: true}, stepDeleteClaim},
		"the claim ends":                              {volume{policy: retain, marked: true, claim: "deleting", due: true}, stepWait},
		"the claim of one marked by hand stays":       {volume{policy: retain, marked: true, claim: "live"}, stepKeep},
		"the claim of one marked by hand ends":        {volume{policy: retain, marked: true, claim: "deleting"}, stepWait},
		"then the volume":                             {volume{policy: retain, marked: true, phase: corev1.VolumeReleased, due: true}, stepDeleteVolume},
		"marked by hand, without claim":               {volume{policy: retain, marked: true, phase: corev1.VolumeReleased}, stepDeleteVolume},
		"a retained one without claim":                {volume{policy: retain, phase: corev1.VolumeReleased, due: true}, stepKeep},
		"one that no claim has had":                   {volume{policy: remove, phase: corev1.VolumeAvailable, due: true}, stepKeep},
		"released by a user":                          {volume{policy: remove, phase: corev1.VolumeReleased, due: true}, stepMark},
		"then the finalizer":                          {volume{policy: retain, marked: true, deleting: true}, stepFinalize},
		"deleted by a user":                           {volume{policy: retain, deleting: true, due: true}, stepFinalize},
		"others have finalizers":                      {volume{policy: retain, marked: true, deleting: true, noFinal: true}, stepWait},
	} {
		now := metav1.Now()
		l := lostVolume{pv: &corev1.PersistentVolume{}, due: test.due, releasable: !test.kept}
		l.pv.Spec.PersistentVolumeReclaimPolicy, l.pv.Status.Phase = test.policy, test.phase
		if test.marked {
			l.pv.Annotations = map[string]string{diskv1alpha1.AnnotationNodeGone: string(remove)}
		}
		if test.deleting {
			l.pv.DeletionTimestamp = &now
		}
		l.pv.Finalizers = []string{"other", diskv1alpha1.FinalizerVolume}
		if test.noFinal {
			l.pv.Finalizers = l.pv.Finalizers[:1]
		}
		switch test.claim {
		case "live":
			l.pvc = &corev1.PersistentVolumeClaim{}
		case "deleting":
			l.pvc = &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{DeletionTimestamp: &now}}
		}
		if got := l.next(); got != test.want {
			t.Errorf("%s: got step %d, want %d", name, got, test.want)
		}
	}
}

// TestMakesClaim asserts of which claims a StatefulSet makes another one.
func TestMakesClaim(t *testing.T) {
	set := &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Name: "web"}}
	set.Spec.Replicas = ptr.To[int32](3)
	set.Spec.VolumeClaimTemplates = []corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Name: "data"}}, {ObjectMeta: metav1.ObjectMeta{Name: "log"}}}
	for name, want := range map[string]bool{
		"data-web-0": true, "log-web-2": true, "data-web-3": false, "data-web-03": false, "data-web-+1": false, "data-web--1": false,
		"data-web-": false, "data-web": false, "other-web-0": false, "data-web-0-0": false, "data-db-0": false,
	} {
		if got := makesClaim(set, name); got != want {
			t.Errorf("%s: %v", name, got)
		}
	}
	set.Spec.Ordinals = &appsv1.StatefulSetOrdinals{Start: 5}
	if makesClaim(set, "data-web-0") || !makesClaim(set, "data-web-7") || makesClaim(set, "data-web-8") {
		t.Error("the first ordinal does not count")
	}
	set.DeletionTimestamp = &metav1.Time{}
	if makesClaim(set, "data-web-7") {
		t.Error("a StatefulSet that is deleted makes claims")
	}
}

// TestWaitsForClaim asserts which pods are deleted because they wait for a claim that is gone.
func TestWaitsForClaim(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*corev1.Pod)
		want   bool
	}{
		"one of a StatefulSet": {func(*corev1.Pod) {}, true},
		"on a node":            {func(p *corev1.Pod) { p.Spec.NodeName = "n" }, false},
		"of a ReplicaSet":      {func(p *corev1.Pod) { p.OwnerReferences[0].Kind = "ReplicaSet" }, false},
		"of nothing":           {func(p *corev1.Pod) { p.OwnerReferences = nil }, false},
		"deleted already":      {func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{} }, false},
		"of another claim":     {func(p *corev1.Pod) { p.Spec.Volumes[0].PersistentVolumeClaim.ClaimName = "other" }, false},
	} {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{OwnerReferences: []metav1.OwnerReference{{Kind: "StatefulSet", Controller: ptr.To(true)}}}}
		pod.Spec.Volumes = []corev1.Volume{{VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}}}
		test.change(pod)
		if got := waitsForClaim(pod, "data"); got != test.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// lostBench is a bench with a bound volume of class ssd on node n1, whose Node is not in the informer.
func lostBench(t *testing.T) (b *bench, pv func() *corev1.PersistentVolume) {
	t.Helper()
	b = newBench(t)
	b.releases = map[string]time.Duration{"ssd": time.Minute}
	if err := b.sync(t, onNode("n1")); err != nil {
		t.Fatal(err)
	}
	b.notifyVolumes(t)
	b.pvc = b.pvc.DeepCopy()
	b.pvc.Spec.VolumeName = diskv1alpha1.ClaimVolumeID(b.pvc.UID)
	b.store(t, b.claimInformer.GetIndexer().Update, b.pvc)
	b.store(t, b.factory.Core().V1().Namespaces().Informer().GetIndexer().Add, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name: b.pvc.Namespace, Labels: map[string]string{diskv1alpha1.LabelOnNodeGone: string(diskv1alpha1.NodeGoneRelease)},
	}})
	b.store(t, b.nodeInformer.GetIndexer().Delete, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}})
	return b, func() *corev1.PersistentVolume { return b.api.volumes(t)[0] }
}

// TestReleaseAsksFirst asserts that a volume is not touched before its time, nor while the API server has the Node, or
// does not say that it has none.
func TestReleaseAsksFirst(t *testing.T) {
	b, pv := lostBench(t)
	look := func() error {
		t.Helper()
		_, err := b.syncLost(t.Context(), "n1")
		b.notifyVolumes(t)
		return err
	}
	marked := func() bool { return pv().Annotations[diskv1alpha1.AnnotationNodeGone] != "" }
	if err := look(); err != nil || marked() {
		t.Fatalf("it is released at once, %v", err)
	}
	b.time.SetTime(b.time.Now().Add(time.Minute))
	b.api.objects["nodes/n1"] = map[string]any{"metadata": map[string]any{"name": "n1"}}
	if err := look(); err != nil || marked() {
		t.Fatalf("it is released although the Node exists, %v", err)
	}
	delete(b.api.objects, "nodes/n1")
	b.api.answerNext("GET", failed)
	if err := look(); err == nil || marked() {
		t.Fatalf("it is released although the API server did not answer, %v", err)
	}
	delete(b.releases, "ssd")
	if err := look(); err != nil || marked() {
		t.Fatalf("it is released although its class keeps volumes, %v", err)
	}
	b.releases["ssd"] = time.Minute
	if err := look(); err != nil || !marked() || pv().Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimRetain {
		t.Fatalf("it is not released: %v, %v", pv().Annotations, err)
	}
	// The Node is back before the claim was deleted.
	b.store(t, b.nodeInformer.GetIndexer().Add, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}})
	if err := look(); err != nil || marked() || pv().Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimDelete {
		t.Fatalf("it is not kept for the node that is back: %v, %v", pv().Spec, err)
	}
	// The time begins again.
	b.store(t, b.nodeInformer.GetIndexer().Delete, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}})
	if err := look(); err != nil || marked() {
		t.Fatalf("it is released at once after the node was back, %v", err)
	}
}
