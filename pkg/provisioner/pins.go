package provisioner

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berthdev/berth/pkg/claim"
)

// pin is a pod with a node and an unbound claim. It names its node itself, so no scheduler has seen it.
type pin struct {
	uid        types.UID
	name, node string
	// ephemeral is true if the claim is made for the pod, and must be its own.
	ephemeral bool
}

// object has the fields of the pod that an event needs.
func (p pin) object(namespace string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: p.name, UID: p.uid}}
}

// onPod records the unbound claims of a pod that has a node. A claim may be created later than its pod.
func (c *Controllers) onPod(old, now any) {
	pod, ok := now.(*corev1.Pod)
	ended := !ok
	if ended {
		if pod, ok = old.(*corev1.Pod); !ok {
			return
		}
	}
	if pod.Spec.NodeName == "" {
		return
	}
	ended = ended || pod.DeletionTimestamp != nil || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		p := pin{uid: pod.UID, name: pod.Name, node: pod.Spec.NodeName, ephemeral: v.Ephemeral != nil}
		name := claim.NameIn(pod, v)
		if name == "" {
			continue
		}
		key := pod.Namespace + "/" + name
		pvc, err := c.claims.PersistentVolumeClaims(pod.Namespace).Get(name)
		switch {
		case ended, err == nil && pvc.Spec.VolumeName != "":
			c.memory.unpin(key, pod.UID)
		case err != nil:
			c.memory.pin(key, p)
		case c.classOf(pvc) != nil:
			c.memory.pin(key, p)
			c.claimQueue.Add(key)
		}
	}
}

// pinOf returns the pod that names the node of the claim.
func (c *Controllers) pinOf(pvc *corev1.PersistentVolumeClaim) (pin, bool) {
	p, ok := c.memory.pinned(keyOf(pvc))
	if !ok || p.ephemeral && !metav1.IsControlledBy(pvc, p.object(pvc.Namespace)) {
		return pin{}, false
	}
	return p, true
}
