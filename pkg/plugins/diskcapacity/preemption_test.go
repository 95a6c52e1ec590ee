package diskcapacity

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/framework"
	st "k8s.io/kubernetes/pkg/scheduler/testing"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/units"
)

// TestPreemptionWaitsForTheWipe asserts that no other pod is preempted while the victims are gone and their space is
// not free yet.
func TestPreemptionWaitsForTheWipe(t *testing.T) {
	victim, bystander := podOf("victim", 6), podOf("bystander", 2)
	wiping := volumeOf(victim, 0, 6)
	wiping.Phase = diskv1alpha1.PhaseWiping
	nominated := func(sizeGiB int64, node string) *corev1.Pod {
		pod := podOf("important", sizeGiB)
		pod.Status.NominatedNodeName = node
		return pod
	}
	plain := st.MakePod().Namespace("default").Name("plain").UID("plain").Obj()
	plain.Status.NominatedNodeName = "n1"
	tests := map[string]struct {
		pod     *corev1.Pod
		volumes []diskv1alpha1.Allocation
		prepare func(*testing.T, *bench)
		waits   bool
	}{
		"wiping makes room":                {nominated(6, "n1"), []diskv1alpha1.Allocation{wiping, volumeOf(bystander, 6, 2)}, nil, true},
		"wiping makes too little":          {nominated(8, "n1"), []diskv1alpha1.Allocation{wiping, volumeOf(bystander, 6, 2)}, nil, false},
		"nothing is wiped":                 {nominated(6, "n1"), []diskv1alpha1.Allocation{volumeOf(victim, 0, 6), volumeOf(bystander, 6, 2)}, nil, false},
		"never preempted before":           {nominated(6, ""), []diskv1alpha1.Allocation{wiping, volumeOf(bystander, 6, 2)}, nil, false},
		"the agent there is gone":          {nominated(6, "n1"), []diskv1alpha1.Allocation{wiping}, func(t *testing.T, b *bench) { b.agent(t, "n1") }, false},
		"not ours, nominated all the same": {plain, []diskv1alpha1.Allocation{wiping}, nil, false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, nil, "n1")
			b.publish(t, "n1", 1, test.volumes...)
			if test.prepare != nil {
				test.prepare(t, b)
			}
			state, statuses := b.filter(t, test.pod)
			byNode := framework.NewDefaultNodeToStatus()
			for node, status := range statuses {
				byNode.Set(node, status)
			}
			result, status := b.framework.RunPostFilterPlugins(b.ctx, state, test.pod, byNode)
			waits := status.Code() == fwk.UnschedulableAndUnresolvable && strings.Contains(status.Message(), "waiting for node n1 to wipe")
			if waits != test.waits || result != nil || status.IsSuccess() {
				t.Errorf("got %v, %v, want it to wait: %v", result, status, test.waits)
			}
			if !test.waits && status.Message() != "" {
				t.Errorf("a message without need: %q", status.Message())
			}
		})
	}
}

// TestPreemptionWaitsForClaims asserts that no other pod is preempted between the end of a pod and the end of the
// volume of its generic ephemeral claim.
func TestPreemptionWaitsForClaims(t *testing.T) {
	victim := withEphemeral(claimPod("victim"), "tmp")
	tests := map[string]struct {
		change func(*testing.T, *bench, *corev1.PersistentVolumeClaim, *corev1.PersistentVolume)
		waits  bool
	}{
		"the pod is there": {func(t *testing.T, b *bench, _ *corev1.PersistentVolumeClaim, _ *corev1.PersistentVolume) {
			b.store(t, victim)
		}, false},
		"the pod is gone": {func(*testing.T, *bench, *corev1.PersistentVolumeClaim, *corev1.PersistentVolume) {}, true},
		"the claim is gone": {func(t *testing.T, b *bench, pvc *corev1.PersistentVolumeClaim, _ *corev1.PersistentVolume) {
			if err := b.factory.Core().V1().PersistentVolumeClaims().Informer().GetIndexer().Delete(pvc); err != nil {
				t.Fatal(err)
			}
		}, true},
		"the volume is deleted": {func(t *testing.T, b *bench, _ *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) {
			b.store(t, victim)
			pv.DeletionTimestamp = &metav1.Time{}
		}, true},
		"the volume is retained": {func(_ *testing.T, _ *bench, _ *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) {
			pv.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimRetain
		}, false},
		"it is on another node": {func(_ *testing.T, _ *bench, _ *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) {
			pv.Spec.NodeAffinity.Required.NodeSelectorTerms[0].MatchExpressions[0].Values = []string{"n2"}
		}, false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, nil, "n1")
			b.storageClass(t, "ssd", nil)
			pvc := b.claim(t, "victim-tmp", "ssd", 6, ownedBy(victim))
			pv := b.volume(t, pvc, "n1", 0)
			b.publish(t, "n1", 1, diskv1alpha1.Allocation{
				Partition: diskv1alpha1.PartitionID(pv.Name), Phase: diskv1alpha1.PhaseFormatted,
				Extent: diskv1alpha1.Extent{Start: diskv1alpha1.Alignment, Length: 6 * units.GiB},
			})
			test.change(t, b, pvc, pv)
			b.storeVolume(t, pv)
			pod := podOf("important", 6)
			pod.Status.NominatedNodeName = "n1"
			state, statuses := b.filter(t, pod)
			byNode := framework.NewDefaultNodeToStatus()
			byNode.Set("n1", statuses["n1"])
			_, status := b.framework.RunPostFilterPlugins(b.ctx, state, pod, byNode)
			if waits := strings.Contains(status.Message(), "waiting for node n1 to wipe"); waits != test.waits {
				t.Errorf("got %v, want it to wait: %v", status, test.waits)
			}
		})
	}
}
