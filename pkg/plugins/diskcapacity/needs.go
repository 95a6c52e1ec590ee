package diskcapacity

import (
	corev1 "k8s.io/api/core/v1"
	resourcehelper "k8s.io/component-helpers/resource"
	v1helper "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"
)

// otherNeeds is what a pod requests of a node besides disk space.
type otherNeeds struct {
	tolerations []corev1.Toleration
	requests    corev1.ResourceList
	ports       []corev1.ContainerPort
}

func otherNeedsOf(pod *corev1.Pod) otherNeeds {
	n := otherNeeds{tolerations: pod.Spec.Tolerations, requests: resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{})}
	add := func(c *corev1.Container) {
		for _, p := range c.Ports {
			if p.HostPort > 0 {
				n.ports = append(n.ports, p)
			}
		}
	}
	for i := range pod.Spec.Containers {
		add(&pod.Spec.Containers[i])
	}
	for i := range pod.Spec.InitContainers {
		// A sidecar runs as long as the pod.
		if c := &pod.Spec.InitContainers[i]; c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			add(c)
		}
	}
	return n
}

// admittedBy reports whether the node passes the checks that kube-scheduler makes of the node alone. The node is not
// cordoned, its taints are tolerated, and the requested CPU, memory and other resources are free. It takes one more
// pod, and the host ports are free. Kube-scheduler's own Filters decide. This only leaves out nodes that they refuse.
func (n *otherNeeds) admittedBy(logger klog.Logger, node fwk.NodeInfo) bool {
	taints := node.Node().Spec.Taints
	if node.Node().Spec.Unschedulable {
		taints = append(taints[:len(taints):len(taints)], corev1.Taint{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule})
	}
	repels := func(t *corev1.Taint) bool {
		return t.Effect == corev1.TaintEffectNoSchedule || t.Effect == corev1.TaintEffectNoExecute
	}
	if _, untolerated := v1helper.FindMatchingUntoleratedTaint(logger, taints, n.tolerations, repels, true); untolerated {
		return false
	}
	for _, p := range n.ports {
		if node.GetUsedPorts().CheckConflict(p.HostIP, string(p.Protocol), p.HostPort) {
			return false
		}
	}
	has, used := node.GetAllocatable(), node.GetRequested()
	if len(node.GetPods()) >= has.GetAllowedPodNumber() {
		return false
	}
	for name, quantity := range n.requests {
		var free, want int64
		switch name {
		case corev1.ResourceCPU:
			free, want = has.GetMilliCPU()-used.GetMilliCPU(), quantity.MilliValue()
		case corev1.ResourceMemory:
			free, want = has.GetMemory()-used.GetMemory(), quantity.Value()
		case corev1.ResourceEphemeralStorage:
			free, want = has.GetEphemeralStorage()-used.GetEphemeralStorage(), quantity.Value()
		default:
			free, want = has.GetScalarResources()[name]-used.GetScalarResources()[name], quantity.Value()
		}
		if want > 0 && want > free {
			return false
		}
	}
	return true
}
