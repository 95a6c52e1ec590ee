package claim

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// IsOutOfService reports whether an operator says that the node is shut down, and its kubelet does not disagree.
func IsOutOfService(node *corev1.Node) bool {
	tainted := slices.ContainsFunc(node.Spec.Taints, func(t corev1.Taint) bool { return t.Key == corev1.TaintNodeOutOfService })
	ready := slices.ContainsFunc(node.Status.Conditions, func(n corev1.NodeCondition) bool {
		return n.Type == corev1.NodeReady && n.Status == corev1.ConditionTrue
	})
	return tainted && !ready
}
