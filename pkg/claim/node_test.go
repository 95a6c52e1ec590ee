package claim

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestOutOfService asserts when a Node counts as gone.
func TestOutOfService(t *testing.T) {
	node := func(ready corev1.ConditionStatus, taints ...string) *corev1.Node {
		n := &corev1.Node{Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready}}}}
		for _, key := range taints {
			n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: key})
		}
		return n
	}
	for _, test := range []struct {
		node *corev1.Node
		want bool
	}{
		{node(corev1.ConditionUnknown, corev1.TaintNodeOutOfService), true},
		{node(corev1.ConditionFalse, "x", corev1.TaintNodeOutOfService), true},
		{node(corev1.ConditionTrue, corev1.TaintNodeOutOfService), false},
		{node(corev1.ConditionUnknown, corev1.TaintNodeUnreachable), false},
	} {
		if got := IsOutOfService(test.node); got != test.want {
			t.Errorf("%v %v: %v", test.node.Status.Conditions, test.node.Spec.Taints, got)
		}
	}
}

// TestIsProvisioned asserts of which claims the volume was made for them, by Berth.
func TestIsProvisioned(t *testing.T) {
	const ours, other = "disk.berth.dev", "other.example.com"
	for _, test := range []struct {
		volume string
		notes  map[string]string
		want   bool
	}{
		{"", nil, false},
		{"pvc-1", nil, true},
		{"pvc-2", nil, false},
		{"adopted", map[string]string{annotationProvisioner: ours}, false},
		{"pvc-1", map[string]string{annotationProvisioner: ours, annotationBetaProvisioner: ours}, true},
		{"pvc-1", map[string]string{annotationProvisioner: other}, false},
		{"pvc-1", map[string]string{annotationBetaProvisioner: other}, false},
	} {
		pvc := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{UID: "1", Annotations: test.notes}}
		pvc.Spec.VolumeName = test.volume
		if got := IsProvisioned(pvc); got != test.want {
			t.Errorf("%q %v: %v", test.volume, test.notes, got)
		}
	}
}
