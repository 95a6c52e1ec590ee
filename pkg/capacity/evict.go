package capacity

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/answer"
	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/pkg/plugins/diskcapacity"
)

// evictLook is how long after a disruption budget has refused an eviction it is tried again.
const evictLook = 30 * time.Second

// syncEvictions evicts the pods of a node that its agent wants evicted. It returns when to look
// again.
func (c *Controllers) syncEvictions(ctx context.Context, nodeName string, report *diskcapacity.Report) (again time.Duration, err error) {
	if len(report.Evictions) == 0 {
		return 0, nil
	}
	// The watch may be behind, and the pod have its volumes by now.
	ndc, err := c.objects.capacity(ctx, nodeName)
	if err != nil || ndc.UID != report.UID {
		return 0, notFoundIsDone(err)
	}
	var failed []error
	for _, wanted := range ndc.Status.Evictions {
		pod, err := c.pods.Pods(wanted.Namespace).Get(wanted.Name)
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return 0, err
		}
		logger := klog.FromContext(ctx).WithValues("node", klog.KRef("", nodeName), "pod", klog.KObj(pod))
		if why := c.mayEvict(pod, ndc, wanted); why != "" {
			logger.V(2).Info("Did not evict a pod that an agent wants evicted", "reason", why)
			continue
		}
		switch err := c.evict(ctx, pod); answer.Of(err) {
		case answer.Done:
			logger.Info("Evicted a pod whose volumes do not fit on its node, or are on a disk that is drained")
		case answer.Absent, answer.Conflict:
			// It is gone, or it is another pod by now.
		case answer.Busy:
			logger.V(2).Info("A disruption budget keeps a pod that an agent wants evicted", "reason", err.Error())
			again = evictLook
		default:
			failed = append(failed, err)
		}
	}
	return again, errors.Join(failed...)
}

// mayEvict says why a pod may not be evicted for a node's agent; empty if it may. The agent is not trusted with pods of
// other nodes, nor with those that have nothing to do with Berth. While an operator wants a disk of the node drained
// with evictions, pods with claims of Berth count as well, and those of DaemonSets: they come back to the node, and
// their volumes to another disk.
func (c *Controllers) mayEvict(pod *corev1.Pod, ndc *diskv1alpha1.NodeDiskCapacity, wanted diskv1alpha1.EvictionRequest) string {
	if drainsWithEvictions(ndc) && c.usesClaimOfBerth(pod, ndc.Name) {
		if why := mayEvictAny(pod, ndc.Name, wanted); why != "" {
			return why
		}
		if metav1.GetControllerOf(pod) == nil {
			return "no controller makes it again"
		}
		return ""
	}
	return mayEvictInline(pod, ndc.Name, wanted, drainsWithEvictions(ndc))
}

// drainsWithEvictions reports whether an operator wants a disk drained with evictions.
func drainsWithEvictions(ndc *diskv1alpha1.NodeDiskCapacity) bool {
	return slices.ContainsFunc(ndc.Spec.Disks, func(d diskv1alpha1.DiskDecision) bool {
		return d.Drain != nil && d.Drain.Mode == diskv1alpha1.DrainEvict
	})
}

// usesClaimOfBerth reports whether a pod uses a claim whose volume is one of Berth on that node.
func (c *Controllers) usesClaimOfBerth(pod *corev1.Pod, nodeName string) bool {
	pvs, err := c.volumes.List(labels.SelectorFromSet(labels.Set{diskv1alpha1.LabelNode: diskv1alpha1.NodeLabel(nodeName)}))
	if err != nil {
		return false
	}
	for i := range pod.Spec.Volumes {
		name := claim.NameIn(pod, &pod.Spec.Volumes[i])
		if name != "" && slices.ContainsFunc(pvs, func(pv *corev1.PersistentVolume) bool {
			ref := pv.Spec.ClaimRef
			return claim.IsOurs(pv) && ref != nil && ref.Namespace == pod.Namespace && ref.Name == name
		}) {
			return true
		}
	}
	return false
}

// mayEvictAny says why no agent may have the pod evicted; empty if it may be possible.
func mayEvictAny(pod *corev1.Pod, nodeName string, wanted diskv1alpha1.EvictionRequest) string {
	switch {
	case pod.UID != wanted.UID:
		return "it is another pod of that name"
	case pod.Spec.NodeName != nodeName:
		return "it is not on the node"
	case pod.DeletionTimestamp != nil:
		return "it is being deleted"
	}
	return ""
}

// mayEvictInline is mayEvict for a pod with inline volumes. daemons is true if those of DaemonSets may be evicted.
func mayEvictInline(pod *corev1.Pod, nodeName string, wanted diskv1alpha1.EvictionRequest, daemons bool) string {
	if why := mayEvictAny(pod, nodeName, wanted); why != "" {
		return why
	}
	controller := metav1.GetControllerOf(pod)
	switch {
	case !slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool {
		return v.CSI != nil && v.CSI.Driver == diskv1alpha1.DriverName
	}):
		return "it has no inline volume of Berth"
	case controller == nil || controller.Kind == "DaemonSet" && !daemons:
		return "no controller makes it again elsewhere"
	}
	return ""
}

// evict asks the API server to evict the pod, which disruption budgets may refuse.
func (c *Controllers) evict(ctx context.Context, pod *corev1.Pod) error {
	err := c.client.PolicyV1().Evictions(pod.Namespace).Evict(ctx, &policyv1.Eviction{
		ObjectMeta:    metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name},
		DeleteOptions: &metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &pod.UID}},
	})
	if err != nil {
		return fmt.Errorf("evicting pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return nil
}
