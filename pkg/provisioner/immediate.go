package provisioner

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/component-helpers/storage/volume"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/ledger"
	"github.com/berthdev/berth/pkg/placement"
	"github.com/berthdev/berth/pkg/request"
)

// placeImmediate places the volume of a claim whose StorageClass has volumeBindingMode Immediate: where it fits best,
// on the nodes that the class allows.
//
// The PersistentVolume controller first looks for an existing volume. If there is none, it writes the provisioner into
// the claim. The claim is not served before that: otherwise it might get two volumes.
func (c *Controllers) placeImmediate(ctx context.Context, state *claimState, pvc *corev1.PersistentVolumeClaim, class *storagev1.StorageClass, v request.Volume) error {
	if pvc.Annotations[volume.AnnStorageProvisioner] != diskv1alpha1.DriverName {
		return nil
	}
	if pv, err := c.volumes.Get(v.ID); err == nil {
		return c.handOver(ctx, state, pvc, pv, "")
	} else if !apierrors.IsNotFound(err) {
		return err
	}
	if err := c.cluster.ApplyClass(&v.Request); err != nil {
		return c.refuse(ctx, state, pvc, fmt.Sprintf("StorageClass %s: %s", class.Name, err))
	}
	if node, _, ok := c.ledger.Where(v.Partition); ok {
		return c.provision(ctx, state, pvc, class, v, nodeChoice{node: node, by: byProvisioner})
	}
	want := ledger.VolumeRequest{Request: v.Request, Headroom: v.Headroom}
	requests := []placement.Request{want.WithHeadroom()}
	for name, snapshot := range c.ledger.BestNodes(requests) {
		node, err := c.nodes.Get(name)
		if err != nil || !schedulable(node) || !inAllowedTopologies(class, node) || c.cluster.UnfitReason(name) != "" {
			continue
		}
		if _, err := snapshot.Fit(requests); err == nil {
			return c.provision(ctx, state, pvc, class, v, nodeChoice{node: name, by: byProvisioner})
		}
	}
	c.retryLater(state, pvc)
	c.emitEvent(state, pvc, corev1.EventTypeWarning, reasonFailed, actionProvision, fmt.Sprintf(
		"no node that StorageClass %s allows, and that is neither cordoned nor tainted, has %s of class %s free in %s", class.Name, sizeOf(want.Request.Size+want.Headroom), v.Request.Class, inPieces(v.Request.MaxPieces)))
	_, err := c.settlePlace(ctx, state, pvc)
	return err
}

// inPieces says in how many pieces a volume may be placed.
func inPieces(most int) string {
	if most > 1 {
		return fmt.Sprintf("at most %d pieces of one disk", most)
	}
	return "one piece"
}

// retryLater queues the claim again, after growing pauses.
func (c *Controllers) retryLater(state *claimState, pvc *corev1.PersistentVolumeClaim) {
	state.placeBackoff.record(c.clock.Now())
	c.claimQueue.AddAfter(keyOf(pvc), state.placeBackoff.remaining(c.clock.Now()))
}

// schedulable reports whether pods without tolerations can be scheduled to the node.
func schedulable(node *corev1.Node) bool {
	return !node.Spec.Unschedulable && !slices.ContainsFunc(node.Spec.Taints, func(t corev1.Taint) bool {
		return t.Effect == corev1.TaintEffectNoSchedule || t.Effect == corev1.TaintEffectNoExecute
	})
}

// inAllowedTopologies reports whether the class's allowedTopologies have the node: one of the terms, with all of its
// labels.
func inAllowedTopologies(class *storagev1.StorageClass, node *corev1.Node) bool {
	matches := func(term corev1.TopologySelectorTerm) bool {
		return !slices.ContainsFunc(term.MatchLabelExpressions, func(e corev1.TopologySelectorLabelRequirement) bool {
			value, ok := node.Labels[e.Key]
			return !ok || !slices.Contains(e.Values, value)
		})
	}
	return len(class.AllowedTopologies) == 0 || slices.ContainsFunc(class.AllowedTopologies, matches)
}

// chooser is how a claim's node was chosen.
type chooser int

const (
	// byScheduler: by another scheduler, in the claim's annotation. It may choose another node.
	byScheduler chooser = iota
	// byPod: by a pod that names its node itself, so that no scheduler sees it.
	byPod
	// byProvisioner: by this package, because the StorageClass does not wait for a pod.
	byProvisioner
)

// nodeChoice is the node of a claim, and how it was chosen.
type nodeChoice struct {
	node string
	by   chooser
	// pod is the pod that names the node.
	pod pin
}

// onUnfit handles a claim that cannot be served on its node.
func (c *Controllers) onUnfit(ctx context.Context, state *claimState, pvc *corev1.PersistentVolumeClaim, at nodeChoice, why string) error {
	switch at.by {
	case byPod:
		if c.nodeExists(diskv1alpha1.NodeLabel(at.node)) {
			c.memory.addWaiting(at.node, keyOf(pvc))
		}
		c.retryLater(state, pvc)
		c.emitPodEvent(state, pvc, at.pod, corev1.EventTypeWarning, reasonFailed, fmt.Sprintf(
			"pod %s names node %s itself, and the volume cannot be made there: %s; leave nodeName out and set schedulerName: berth", at.pod.name, at.node, why))
	case byProvisioner:
		c.retryLater(state, pvc)
	case byScheduler:
		return c.withdrawNode(ctx, state, pvc, at.node, why)
	}
	_, err := c.settlePlace(ctx, state, pvc)
	return err
}

// emitProvisioned writes an event about a volume that was made, where the node is not obvious.
func (c *Controllers) emitProvisioned(state *claimState, pvc *corev1.PersistentVolumeClaim, class *storagev1.StorageClass, at nodeChoice) {
	switch at.by {
	case byPod:
		c.emitPodEvent(state, pvc, at.pod, corev1.EventTypeNormal, reasonSucceeded, fmt.Sprintf("pod %s names node %s itself: the volume is made there", at.pod.name, at.node))
	case byProvisioner:
		c.emitEvent(state, pvc, corev1.EventTypeNormal, reasonSucceeded, actionProvision, fmt.Sprintf(
			"StorageClass %s has volumeBindingMode %s: the volume is on node %s, chosen by free space alone, and pods with the claim can run on that node only, also if it has no CPU or memory for them; with %s both are chosen together",
			class.Name, storagev1.VolumeBindingImmediate, at.node, storagev1.VolumeBindingWaitForFirstConsumer))
	}
}

// emitPodEvent writes an event about the claim, and one about the pod.
func (c *Controllers) emitPodEvent(state *claimState, pvc *corev1.PersistentVolumeClaim, pod pin, eventType, reason, note string) {
	if c.emitEvent(state, pvc, eventType, reason, actionProvision, note) {
		c.recorder.Eventf(pod.object(pvc.Namespace), pvc, eventType, reason, actionProvision, "%s", "claim "+pvc.Name+": "+note)
	}
}
