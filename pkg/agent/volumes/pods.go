package volumes

import (
	"errors"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/claim"
)

// podStore is the watch of the node's pods.
type podStore struct {
	informer cache.SharedIndexInformer
}

// get returns the pod with that name, if it has the UID or that is empty; nil if there is none.
func (s podStore) get(key types.NamespacedName, uid types.UID) *corev1.Pod {
	object, ok, err := s.informer.GetStore().GetByKey(key.String())
	if err != nil || !ok {
		return nil
	}
	pod, ok := object.(*corev1.Pod)
	if !ok || uid != "" && pod.UID != uid {
		return nil
	}
	return pod
}

// all returns the node's pods from the watch.
func (s podStore) all() []*corev1.Pod {
	objects := s.informer.GetStore().List()
	pods := make([]*corev1.Pod, 0, len(objects))
	for _, object := range objects {
		if pod, ok := object.(*corev1.Pod); ok {
			pods = append(pods, pod)
		}
	}
	return pods
}

// stripPod drops the fields of a pod that the agent does not need. The node's pods are most of what it keeps in memory.
func stripPod(object any) (any, error) {
	pod, ok := object.(*corev1.Pod)
	if !ok {
		return object, nil
	}
	slim := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, ResourceVersion: pod.ResourceVersion,
	}}
	for _, v := range pod.Spec.Volumes {
		if v.CSI != nil && v.CSI.Driver == diskv1alpha1.DriverName {
			slim.Spec.Volumes = append(slim.Spec.Volumes, v)
		}
	}
	claims := claimNames(pod)
	if len(slim.Spec.Volumes) == 0 && len(claims) == 0 {
		return slim, nil
	}
	slim.DeletionTimestamp = pod.DeletionTimestamp
	slim.OwnerReferences = pod.OwnerReferences
	slim.Status.Phase = pod.Status.Phase
	if len(claims) > 0 {
		metav1.SetMetaDataAnnotation(&slim.ObjectMeta, claimsKey, strings.Join(claims, ","))
	}
	if len(slim.Spec.Volumes) == 0 {
		return slim, nil
	}
	for _, key := range []string{diskv1alpha1.AnnotationAllocation, corev1.MirrorPodAnnotationKey} {
		if value, ok := pod.Annotations[key]; ok {
			metav1.SetMetaDataAnnotation(&slim.ObjectMeta, key, value)
		}
	}
	slim.Spec.NodeName = pod.Spec.NodeName
	return slim, nil
}

// claimsKey is the annotation in which stripPod keeps the names of a pod's claims. The API server's pods do not have
// it.
const claimsKey = "claims"

// claimNames are the names of the claims that a pod uses.
func claimNames(pod *corev1.Pod) []string {
	var names []string
	for i := range pod.Spec.Volumes {
		if name := claim.NameIn(pod, &pod.Spec.Volumes[i]); name != "" {
			names = append(names, name)
		}
	}
	return names
}

// usesClaim reports whether a pod of the watch uses the claim, and has not ended.
func usesClaim(pod *corev1.Pod, namespace, name string) bool {
	return pod.Namespace == namespace && !hasEnded(pod) && slices.Contains(strings.Split(pod.Annotations[claimsKey], ","), name)
}

// partitionsOf maps the partitions that the pod's volumes have, or would have, to their CSI volume IDs. Unlike
// request.FromPod it reads every pod: an existing volume must be recognized even if it would not be made today.
func partitionsOf(pod *corev1.Pod) map[string]string {
	partitions := map[string]string{}
	for _, v := range pod.Spec.Volumes {
		if v.CSI != nil && v.CSI.Driver == diskv1alpha1.DriverName {
			id := diskv1alpha1.InlineVolumeID(pod.UID, v.Name)
			partitions[diskv1alpha1.PartitionID(id)] = id
		}
	}
	return partitions
}

// isAlive reports whether the pod may get new volumes.
func isAlive(pod *corev1.Pod) bool {
	return pod.DeletionTimestamp == nil && !hasEnded(pod)
}

func hasEnded(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

func keyOf(pod *corev1.Pod) types.NamespacedName {
	return types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}
}

// errMirror: a volume belongs to a UID, and the kubelet uses another UID for a static pod than its mirror pod has.
var errMirror = errors.New("a static pod cannot have volumes of Berth: use a DaemonSet, or a pod with spec.nodeName")

func isMirror(pod *corev1.Pod) bool {
	_, is := pod.Annotations[corev1.MirrorPodAnnotationKey]
	return is
}
