package diskcapacity

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/storage/ephemeral"
	fwk "k8s.io/kube-scheduler/framework"
)

// PreEnqueue gates a pod until its generic ephemeral claims exist, which kube-controller-manager creates after the pod.
// A try before that would only cost the pod its backoff.
//
// Claims of other drivers are left to the stock plugins, because no condition says what a gated pod waits for.
//
// A claim of that name that is not the pod's own does not gate the pod. It may stay for ever, and only a pod that was
// tried gets an event that says so.
func (p *Plugin) PreEnqueue(_ context.Context, pod *corev1.Pod) *fwk.Status {
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if v.Ephemeral == nil || !p.feed.claims.willBeOurs(v.Ephemeral.VolumeClaimTemplate) {
			continue
		}
		name := ephemeral.VolumeClaimName(pod, v)
		if _, err := p.feed.claims.pvcs.PersistentVolumeClaims(pod.Namespace).Get(name); err != nil {
			return fwk.NewStatus(fwk.UnschedulableAndUnresolvable, fmt.Sprintf("waiting for the claim %s/%s of its ephemeral volume %q to be created", pod.Namespace, name, v.Name))
		}
	}
	return nil
}

// willBeOurs reports whether the claim that is made of a template will be of a StorageClass of ours. If the template
// names none, that is not known before the API server has set the default class.
func (c *claimReader) willBeOurs(template *corev1.PersistentVolumeClaimTemplate) bool {
	return template != nil && c.ourClass(&corev1.PersistentVolumeClaim{ObjectMeta: template.ObjectMeta, Spec: template.Spec}) != nil
}
