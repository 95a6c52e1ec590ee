package capacity

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/plugins/diskcapacity"
)

const (
	reasonInService = "DisksInService"
	actionUntaint   = "RemovingTaint"
)

func isOurs(t corev1.Taint) bool { return t.Key == diskv1alpha1.TaintNotReady }

func tainted(node *corev1.Node) bool { return slices.ContainsFunc(node.Spec.Taints, isOurs) }

// inService reports whether the node's disks are in service for the first pods: the kubelet knows
// the driver under this Node, and the node has published since then that its disks are ready, or that
// no class selects anything on it. An agent registers only after it has published.
func inService(node *corev1.Node, csiNode *storagev1.CSINode, report *diskcapacity.Report) bool {
	if csiNode == nil || !report.Ready || report.InService == 0 && len(report.Classes) > 0 {
		return false
	}
	for _, owner := range csiNode.OwnerReferences {
		// What an earlier Node of that name had, says nothing.
		if owner.Kind == "Node" && owner.UID != node.UID {
			return false
		}
	}
	return slices.ContainsFunc(csiNode.Spec.Drivers, func(d storagev1.CSINodeDriver) bool { return d.Name == diskv1alpha1.DriverName })
}

// syncTaint takes the start-up taint off a node whose disks are in service.
func (c *Controllers) syncTaint(ctx context.Context, node *corev1.Node, report *diskcapacity.Report) error {
	if !tainted(node) {
		return nil
	}
	csiNode, err := c.csiNodes.Get(node.Name)
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	if !inService(node, csiNode, report) {
		return nil
	}
	now, err := c.client.CoreV1().Nodes().Get(ctx, node.Name, metav1.GetOptions{})
	if err != nil {
		return notFoundIsDone(err)
	}
	if now.UID != node.UID || !tainted(now) {
		return nil
	}
	// With the version that was read: a merge patch replaces all taints.
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": now.UID, "resourceVersion": now.ResourceVersion},
		"spec":     map[string]any{"taints": slices.DeleteFunc(slices.Clone(now.Spec.Taints), isOurs)},
	})
	if err != nil {
		return err
	}
	if _, err := c.client.CoreV1().Nodes().Patch(ctx, node.Name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		return fmt.Errorf("removing taint %s from node %s: %w", diskv1alpha1.TaintNotReady, node.Name, err)
	}
	klog.FromContext(ctx).Info("Removed the start-up taint of a node whose disks are in service", "node", klog.KObj(node), "disks", report.InService)
	c.recorder.Eventf(node, nil, corev1.EventTypeNormal, reasonInService, actionUntaint, "%d disks are in service, the taint %s is removed", report.InService, diskv1alpha1.TaintNotReady)
	return nil
}
