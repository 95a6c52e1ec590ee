package capacity

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/pkg/plugins/diskcapacity"
)

const (
	// GoneGrace is the default of Options.GoneGrace.
	GoneGrace = 10 * time.Minute
	// goneRecheck is how often it is checked after that whether the NodeDiskCapacity is still needed.
	goneRecheck = 5 * time.Minute

	reasonRemoved = "NodeGone"
	actionRemove  = "Removing"
)

// syncGone removes the NodeDiskCapacity of a Node that has been gone for the grace, if no volume or pod needs it any
// more. It returns after which time to check again.
func (c *Controllers) syncGone(ctx context.Context, nodeName string, report *diskcapacity.Report) (again time.Duration, err error) {
	if left := c.goneGrace - c.gone.Elapsed(nodeName); left > 0 {
		return left, nil
	}
	// The watch may be behind.
	if _, err := c.client.CoreV1().Nodes().Get(ctx, nodeName, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		return goneRecheck, err
	}
	ndc, err := c.objects.capacity(ctx, nodeName)
	if err != nil || ndc.UID != report.UID {
		return goneRecheck, notFoundIsDone(err)
	}
	why, err := c.whyNeeded(ndc)
	if err != nil {
		return 0, err
	}
	if why != "" {
		klog.FromContext(ctx).V(2).Info("Kept the NodeDiskCapacity of a Node that is gone", "node", klog.KRef("", nodeName), "why", why)
		return goneRecheck, nil
	}
	if err := c.objects.remove(ctx, ndc); err != nil {
		return 0, notFoundIsDone(err)
	}
	klog.FromContext(ctx).Info("Removed the NodeDiskCapacity of a Node that is gone, on which nothing is claimed", "node", klog.KRef("", nodeName), "disks", len(ndc.Status.Disks))
	c.recorder.Eventf(&corev1.ObjectReference{APIVersion: diskv1alpha1.SchemeGroupVersion.String(), Kind: "NodeDiskCapacity", Name: nodeName, UID: ndc.UID}, nil,
		corev1.EventTypeNormal, reasonRemoved, actionRemove, "Node %s has been gone for %s and nothing on its disks is claimed: its NodeDiskCapacity is removed", nodeName, c.goneGrace)
	return 0, nil
}

// whyNeeded says which PersistentVolume or pod still needs the NodeDiskCapacity. It is empty if none does.
func (c *Controllers) whyNeeded(ndc *diskv1alpha1.NodeDiskCapacity) (string, error) {
	volumes, err := c.volumes.List(labels.Everything())
	if err != nil {
		return "", err
	}
	pods, err := c.pods.List(labels.Everything())
	if err != nil {
		return "", err
	}
	return neededBy(ndc, volumes, pods), nil
}

// neededBy is whyNeeded for these volumes and pods. Of a PersistentVolume, its label, its partition or its disk
// suffices.
func neededBy(ndc *diskv1alpha1.NodeDiskCapacity, volumes []*corev1.PersistentVolume, pods []*corev1.Pod) string {
	ids := make([]string, len(ndc.Status.Disks))
	partitions := map[string]bool{}
	for i := range ndc.Status.Disks {
		ids[i] = ndc.Status.Disks[i].ID
		for _, a := range ndc.Status.Disks[i].Allocations {
			partitions[a.Partition] = true
		}
	}
	label := diskv1alpha1.NodeLabel(ndc.Name)
	for _, pv := range volumes {
		if !claim.IsOurs(pv) {
			continue
		}
		handle := pv.Spec.CSI.VolumeHandle
		if pv.Labels[diskv1alpha1.LabelNode] == label || partitions[diskv1alpha1.PartitionID(handle)] ||
			slices.Contains(ids, pv.Spec.CSI.VolumeAttributes[diskv1alpha1.AttributeDisk]) {
			return fmt.Sprintf("PersistentVolume %s is on it", pv.Name)
		}
	}
	for _, pod := range pods {
		if pod.Spec.NodeName == ndc.Name {
			return fmt.Sprintf("pod %s/%s is bound to it", pod.Namespace, pod.Name)
		}
	}
	return ""
}
