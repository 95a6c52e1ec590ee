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
	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/answer"
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
		if why := mayEvict(pod, nodeName, wanted); why != "" {
			logger.V(2).Info("Did not evict a pod that an agent wants evicted", "reason", why)
			continue
		}
		switch err := c.evict(ctx, pod); answer.Of(err) {
		case answer.Done:
			logger.Info("Evicted a pod whose volumes do not fit on its node")
		case answer.Absent, answer.Conflict:
			// It is gone, or it is another pod by now.
		case answer.Busy:
			logger.V(2).Info("A disruption budget keeps a pod whose volumes do not fit on its node", "reason", err.Error())
			again = evictLook
		default:
			failed = append(failed, err)
		}
	}
	return again, errors.Join(failed...)
}

// mayEvict says why a pod may not be evicted for a node's agent; empty if it may. The agent is
// not trusted with pods of other nodes, nor with those that have nothing to do with Berth.
func mayEvict(pod *corev1.Pod, nodeName string, wanted diskv1alpha1.EvictionRequest) string {
	controller := metav1.GetControllerOf(pod)
	switch {
	case pod.UID != wanted.UID:
		return "it is another pod of that name"
	case pod.Spec.NodeName != nodeName:
		return "it is not on the node"
	case pod.DeletionTimestamp != nil:
		return "it is being deleted"
	case !slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool {
		return v.CSI != nil && v.CSI.Driver == diskv1alpha1.DriverName
	}):
		return "it has no inline volume of Berth"
	case controller == nil || controller.Kind == "DaemonSet":
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
