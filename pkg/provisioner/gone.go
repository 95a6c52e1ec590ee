package provisioner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"
	"k8s.io/utils/ptr"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/answer"
	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/pkg/plugins/diskcapacity"
)

// The volumes of a node that is gone are released one by one, if their DiskClass says so: see
// diskv1alpha1.OnNodeGone. An operator can have them released, too. The steps of a volume, each a write of the API:
//
//  1. Its PersistentVolume is marked with AnnotationNodeGone, and its reclaim policy becomes Retain. From then on its
//     node wipes nothing if it is back.
//  2. Its claim is deleted. kube-controller-manager removes it when no pod on a node uses it.
//  3. Pods of StatefulSets that wait for the claim are deleted. Their controller makes both again.
//  4. The PersistentVolume is deleted, and our finalizer removed from it.
//
// Before each write the API server is asked whether the node is still gone. If the node is back after step 1, the mark
// is removed. If it is back after step 2, the PersistentVolume stays, as a retained one. After step 4 the volume is an
// orphan on the node.

const (
	actionRelease = "Releasing"
	// releaseLook is how soon the volumes of a node are looked at again while the API server works on one.
	releaseLook = 2 * time.Second
	// goneLook is how soon the other volumes of a node that is gone are looked at again: their DiskClass may change.
	goneLook = time.Minute
)

// releaseStep is the next step of a volume of a node that is gone.
type releaseStep int

const (
	// stepKeep: nothing is done about it.
	stepKeep releaseStep = iota
	// stepWait: the claim or the PersistentVolume ends without a further write.
	stepWait
	stepMark
	stepDeleteClaim
	stepDeleteVolume
	stepFinalize
)

// lostVolume is what decides about a volume of a node that is gone.
type lostVolume struct {
	pv *corev1.PersistentVolume
	// pvc is the claim that has the volume; nil if there is none, or not any more.
	pvc *corev1.PersistentVolumeClaim
	// due is true if the DiskClass releases the volumes of the node by now.
	due bool
	// releasable is true if the scheduler may delete the claim.
	releasable bool
}

// next returns the next step.
func (l *lostVolume) next() releaseStep {
	_, marked := l.pv.Annotations[diskv1alpha1.AnnotationNodeGone]
	removes := l.pv.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete
	if l.pvc != nil {
		return l.nextOfClaim(marked, removes)
	}
	switch {
	case l.pv.DeletionTimestamp != nil && (marked || l.due):
		if slices.Contains(l.pv.Finalizers, diskv1alpha1.FinalizerVolume) {
			return stepFinalize
		}
		return stepWait
	case marked:
		return stepDeleteVolume
	case l.due && removes && hasEnded(l.pv):
		return stepMark
	}
	return stepKeep
}

// nextOfClaim returns the next step while the claim exists.
func (l *lostVolume) nextOfClaim(marked, removes bool) releaseStep {
	deleting := l.pvc.DeletionTimestamp != nil
	switch {
	case deleting && (marked || l.due):
		return stepWait
	case deleting || !l.due || !l.releasable:
		return stepKeep
	case removes && !marked:
		return stepMark
	}
	return stepDeleteClaim
}

// hasEnded reports whether the claim of a PersistentVolume is gone.
func hasEnded(pv *corev1.PersistentVolume) bool {
	return pv.Status.Phase == corev1.VolumeReleased || pv.Status.Phase == corev1.VolumeFailed
}

// isGoneNow asks the API server whether the node with that value of LabelNode is gone.
func (c *Controllers) isGoneNow(ctx context.Context, label string) (bool, error) {
	name := label
	if strings.HasPrefix(label, "node-") {
		// The label may stand for a name that is too long for a label. The NodeDiskCapacity stays with the volumes.
		c.shared.EachReport(func(node string, _ *diskcapacity.Report) {
			if diskv1alpha1.NodeLabel(node) == label {
				name = node
			}
		})
		if diskv1alpha1.NodeLabel(name) != label {
			return false, nil
		}
	}
	node, err := c.client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	switch {
	case err == nil:
		return claim.IsOutOfService(node), nil
	case apierrors.IsNotFound(err) && !apierrors.IsUnexpectedServerError(err):
		return true, nil
	}
	return false, fmt.Errorf("asking whether node %s is gone: %w", name, err)
}

// releaseGone takes the volumes of a node that has been gone for that long one step further. It returns when to look
// again.
func (c *Controllers) releaseGone(ctx context.Context, label string, elapsed time.Duration, pvs []*corev1.PersistentVolume) (again time.Duration, err error) {
	again = goneLook
	asked := false
	var failed []error
	for _, pv := range pvs {
		if !claim.IsOurs(pv) {
			continue
		}
		after, releases := c.cluster.ReleasesAfter(pv.Spec.CSI.VolumeAttributes[diskv1alpha1.AttributeClass])
		if releases && elapsed < after {
			again = min(again, after-elapsed)
		}
		l := lostVolume{pv: pv, due: releases && elapsed >= after}
		if l.pvc, err = c.claimOf(pv); err != nil {
			return 0, err
		}
		if l.due && l.pvc != nil {
			if l.releasable, err = c.isReleasable(l.pvc); err != nil {
				return 0, err
			}
		}
		step := l.next()
		waiting, err := c.waitingFor(&l)
		if err != nil {
			return 0, err
		}
		if step == stepKeep && len(waiting) == 0 {
			continue
		}
		again = min(again, releaseLook)
		if !asked {
			if gone, err := c.isGoneNow(ctx, label); err != nil || !gone {
				return releaseLook, err
			}
			asked = true
		}
		failed = append(failed, c.deleteWaiting(ctx, waiting), c.release(ctx, label, elapsed, &l, step))
	}
	return again, errors.Join(failed...)
}

// claimOf returns the claim that has the volume; nil if there is none.
func (c *Controllers) claimOf(pv *corev1.PersistentVolume) (*corev1.PersistentVolumeClaim, error) {
	ref := pv.Spec.ClaimRef
	if ref == nil {
		return nil, nil
	}
	pvc, err := c.claims.PersistentVolumeClaims(ref.Namespace).Get(ref.Name)
	if err != nil {
		return nil, notFoundIsNone(err)
	}
	if !claim.Has(pv, pvc) {
		return nil, nil
	}
	return pvc, nil
}

func notFoundIsNone(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// isReleasable reports whether the scheduler may delete the claim: a StatefulSet makes it again, or its namespace
// allows it.
func (c *Controllers) isReleasable(pvc *corev1.PersistentVolumeClaim) (bool, error) {
	if !claim.IsProvisioned(pvc) {
		return false, nil
	}
	namespace, err := c.namespaces.Get(pvc.Namespace)
	if err != nil {
		return false, notFoundIsNone(err)
	}
	if namespace.Labels[diskv1alpha1.LabelOnNodeGone] == string(diskv1alpha1.NodeGoneRelease) {
		return true, nil
	}
	sets, err := c.sets.StatefulSets(pvc.Namespace).List(labels.Everything())
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(sets, func(set *appsv1.StatefulSet) bool { return makesClaim(set, pvc.Name) }), nil
}

// makesClaim reports whether the StatefulSet makes a claim of that name for one of its pods.
func makesClaim(set *appsv1.StatefulSet, name string) bool {
	if set.DeletionTimestamp != nil {
		return false
	}
	first := 0
	if set.Spec.Ordinals != nil {
		first = int(set.Spec.Ordinals.Start)
	}
	for i := range set.Spec.VolumeClaimTemplates {
		text, found := strings.CutPrefix(name, set.Spec.VolumeClaimTemplates[i].Name+"-"+set.Name+"-")
		ordinal, err := strconv.Atoi(text)
		if !found || err != nil || strconv.Itoa(ordinal) != text {
			continue
		}
		if ordinal >= first && ordinal < first+int(ptr.Deref(set.Spec.Replicas, 1)) {
			return true
		}
	}
	return false
}

// release does a step for a volume.
func (c *Controllers) release(ctx context.Context, label string, elapsed time.Duration, l *lostVolume, step releaseStep) error {
	logger := klog.FromContext(ctx).WithValues("volume", klog.KObj(l.pv), "node", label)
	switch step {
	case stepMark:
		logger.Info("Volume is to be released, because its node is gone", "gone", elapsed)
		return c.patchLost(ctx, l.pv, map[string]any{diskv1alpha1.AnnotationNodeGone: string(l.pv.Spec.PersistentVolumeReclaimPolicy)}, corev1.PersistentVolumeReclaimRetain)
	case stepDeleteClaim:
		return c.deleteClaim(ctx, label, elapsed, l)
	case stepDeleteVolume:
		return c.deleteLost(ctx, l.pv)
	case stepFinalize:
		if err := c.finalizeLost(ctx, l.pv); err != nil {
			return err
		}
		logger.Info("Removed the PersistentVolume of a node that is gone; if the node comes back, the volume is an orphan")
	}
	return nil
}

// patchLost writes annotations and the reclaim policy of a PersistentVolume in the version that was read.
func (c *Controllers) patchLost(ctx context.Context, pv *corev1.PersistentVolume, annotations map[string]any, policy corev1.PersistentVolumeReclaimPolicy) error {
	return c.patchVolume(ctx, pv, map[string]any{
		"metadata": map[string]any{"uid": pv.UID, "resourceVersion": pv.ResourceVersion, "annotations": annotations},
		"spec":     map[string]any{"persistentVolumeReclaimPolicy": policy},
	})
}

// finalizeLost removes our finalizer from a PersistentVolume in the version that was read.
func (c *Controllers) finalizeLost(ctx context.Context, pv *corev1.PersistentVolume) error {
	others := slices.DeleteFunc(slices.Clone(pv.Finalizers), func(f string) bool { return f == diskv1alpha1.FinalizerVolume })
	return c.patchVolume(ctx, pv, map[string]any{
		"metadata": map[string]any{"uid": pv.UID, "resourceVersion": pv.ResourceVersion, "finalizers": others},
	})
}

// patchVolume merges into a PersistentVolume. One that is gone needs nothing.
func (c *Controllers) patchVolume(ctx context.Context, pv *corev1.PersistentVolume, patch map[string]any) error {
	body, err := json.Marshal(patch)
	if err != nil {
		return err
	}
	if _, err := c.client.CoreV1().PersistentVolumes().Patch(ctx, pv.Name, types.MergePatchType, body, metav1.PatchOptions{}); answer.Of(err) != answer.Absent && err != nil {
		return fmt.Errorf("releasing PersistentVolume %s, whose node is gone: %w", pv.Name, err)
	}
	return nil
}

// deleteClaim deletes the claim of a volume.
func (c *Controllers) deleteClaim(ctx context.Context, label string, elapsed time.Duration, l *lostVolume) error {
	err := c.client.CoreV1().PersistentVolumeClaims(l.pvc.Namespace).Delete(ctx, l.pvc.Name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(l.pvc.UID))})
	switch answer.Of(err) {
	case answer.Done:
	case answer.Absent, answer.Conflict:
		// It is gone, or another one by now.
		return nil
	default:
		return fmt.Errorf("deleting claim %s, whose node is gone: %w", keyOf(l.pvc), err)
	}
	klog.FromContext(ctx).Info("Deleted a claim whose node is gone", "claim", klog.KObj(l.pvc), "volume", klog.KObj(l.pv), "node", label, "gone", elapsed)
	note := fmt.Sprintf("node %s has been gone for %s, and onNodeGone of DiskClass %s is Release: claim %s is deleted. If the node comes back, the data is an orphan on it",
		label, elapsed.Round(time.Second), l.pv.Spec.CSI.VolumeAttributes[diskv1alpha1.AttributeClass], keyOf(l.pvc))
	c.recorder.Eventf(l.pvc, nil, corev1.EventTypeWarning, reasonNodeGone, actionRelease, "%s", note)
	c.recorder.Eventf(l.pv, nil, corev1.EventTypeWarning, reasonNodeGone, actionRelease, "%s", note)
	return nil
}

// deleteLost deletes a marked PersistentVolume without a claim. Pods that wait for the claim are deleted before.
func (c *Controllers) deleteLost(ctx context.Context, pv *corev1.PersistentVolume) error {
	if ref := pv.Spec.ClaimRef; ref != nil {
		// The watch may be behind.
		pvc, err := c.client.CoreV1().PersistentVolumeClaims(ref.Namespace).Get(ctx, ref.Name, metav1.GetOptions{})
		switch {
		case err == nil && claim.Has(pv, pvc):
			return nil
		case err != nil && !apierrors.IsNotFound(err):
			return fmt.Errorf("reading claim %s/%s: %w", ref.Namespace, ref.Name, err)
		case err != nil:
			if err := c.deleteUnseen(ctx, ref.Namespace, ref.Name); err != nil {
				return err
			}
		}
	}
	err := c.client.CoreV1().PersistentVolumes().Delete(ctx, pv.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &pv.UID, ResourceVersion: &pv.ResourceVersion}})
	if err != nil && answer.Of(err) != answer.Absent {
		return fmt.Errorf("deleting PersistentVolume %s, whose node is gone: %w", pv.Name, err)
	}
	return nil
}

// waitingFor are the pods of StatefulSets that wait for the claim of a volume, which is gone or ends. Their StatefulSet
// makes claim and pod again. Without their deletion it would not notice.
func (c *Controllers) waitingFor(l *lostVolume) ([]*corev1.Pod, error) {
	ref := l.pv.Spec.ClaimRef
	_, marked := l.pv.Annotations[diskv1alpha1.AnnotationNodeGone]
	if ref == nil || !marked && !l.due || l.pvc != nil && l.pvc.DeletionTimestamp == nil {
		return nil, nil
	}
	if _, err := c.claims.PersistentVolumeClaims(ref.Namespace).Get(ref.Name); l.pvc == nil && err == nil {
		// It has been made again.
		return nil, nil
	}
	pods, err := c.pods.Pods(ref.Namespace).List(labels.Everything())
	return slices.DeleteFunc(pods, func(pod *corev1.Pod) bool { return !waitsForClaim(pod, ref.Name) }), err
}

// deleteUnseen deletes the pods that wait for a claim, as the API server has them: the watch may be behind, and the
// PersistentVolume is not looked at again.
func (c *Controllers) deleteUnseen(ctx context.Context, namespace, claimName string) error {
	list, err := c.client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("spec.nodeName", "").String()})
	if err != nil {
		return fmt.Errorf("listing the pods that wait for claim %s/%s: %w", namespace, claimName, err)
	}
	var waiting []*corev1.Pod
	for i := range list.Items {
		if waitsForClaim(&list.Items[i], claimName) {
			waiting = append(waiting, &list.Items[i])
		}
	}
	return c.deleteWaiting(ctx, waiting)
}

// deleteWaiting deletes pods that are still on no node.
func (c *Controllers) deleteWaiting(ctx context.Context, pods []*corev1.Pod) error {
	for _, pod := range pods {
		options := metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &pod.UID, ResourceVersion: &pod.ResourceVersion}}
		if err := c.client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, options); err != nil && answer.Of(err) != answer.Absent {
			return fmt.Errorf("deleting pod %s/%s, which waits for a claim whose node is gone: %w", pod.Namespace, pod.Name, err)
		}
		klog.FromContext(ctx).Info("Deleted a pod that waits for a claim whose node is gone: its StatefulSet makes both again", "pod", klog.KObj(pod))
	}
	return nil
}

// waitsForClaim reports whether the pod is one of a StatefulSet, is on no node, and uses the claim.
func waitsForClaim(pod *corev1.Pod, claimName string) bool {
	owner := metav1.GetControllerOf(pod)
	if owner == nil || owner.Kind != "StatefulSet" || pod.Spec.NodeName != "" || pod.DeletionTimestamp != nil {
		return false
	}
	return slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool {
		return v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ClaimName == claimName
	})
}

// keepReturned ends the release of the volumes of a node that is back. Those whose claims exist get their reclaim
// policy again. The others stay as retained ones: an operator decides about them.
func (c *Controllers) keepReturned(ctx context.Context, pvs []*corev1.PersistentVolume) error {
	var failed []error
	for _, pv := range pvs {
		before, marked := pv.Annotations[diskv1alpha1.AnnotationNodeGone]
		if !marked || !claim.IsOurs(pv) || pv.DeletionTimestamp != nil {
			continue
		}
		pvc, err := c.claimOf(pv)
		if err != nil {
			return err
		}
		policy := pv.Spec.PersistentVolumeReclaimPolicy
		if pvc != nil && pvc.DeletionTimestamp == nil && before == string(corev1.PersistentVolumeReclaimDelete) {
			policy = corev1.PersistentVolumeReclaimDelete
		}
		failed = append(failed, c.patchLost(ctx, pv, map[string]any{diskv1alpha1.AnnotationNodeGone: nil}, policy))
		klog.FromContext(ctx).Info("Volume is not released any more, because its node is back", "volume", klog.KObj(pv), "policy", policy)
	}
	return errors.Join(failed...)
}
