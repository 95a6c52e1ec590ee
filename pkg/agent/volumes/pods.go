package volumes

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/disk"
)

// strip drops what the agent does not need of a pod: a node's pods are most of what
// it would keep in memory.
func strip(object any) (any, error) {
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
	if len(slim.Spec.Volumes) == 0 {
		return slim, nil
	}
	slim.DeletionTimestamp = pod.DeletionTimestamp
	slim.OwnerReferences = pod.OwnerReferences
	for _, key := range []string{diskv1alpha1.AnnotationAllocation, corev1.MirrorPodAnnotationKey} {
		if value, ok := pod.Annotations[key]; ok {
			metav1.SetMetaDataAnnotation(&slim.ObjectMeta, key, value)
		}
	}
	slim.Spec.NodeName = pod.Spec.NodeName
	slim.Status.Phase = pod.Status.Phase
	return slim, nil
}

// podSeen takes in a pod from the watch.
func (m *Manager) podSeen(object any) {
	pod, ok := object.(*corev1.Pod)
	if !ok || len(pod.Spec.Volumes) == 0 {
		return
	}
	m.own(pod)
	m.noteEnd(pod, !alive(pod))
	m.claimBack(pod)
	if alive(pod) {
		m.pods.Add(keyOf(pod))
		return
	}
	m.askRelease(pod)
}

// claimBack ends the orphanhood of the volumes of a pod that is there (again).
func (m *Manager) claimBack(pod *corev1.Pod) {
	m.mu.Lock()
	back := false
	for partition := range partitionsOf(pod) {
		_, orphaned := m.orphans.found[partition]
		delete(m.orphans.found, partition)
		back = back || orphaned
	}
	m.mu.Unlock()
	if back {
		m.options.OwnersChanged()
		// Maybe it was the last one that reclaiming had stopped for.
		m.releases.Add(sweepKey)
	}
}

// podUpdated takes in a change. After a pause of the watch it may lead from one pod to
// another one of the same name, and then it is all that is heard of the first one's end.
func (m *Manager) podUpdated(before, now any) {
	b, _ := before.(*corev1.Pod)
	n, _ := now.(*corev1.Pod)
	if b != nil && n != nil && b.UID != n.UID {
		m.podGone(b, false)
	}
	m.podSeen(now)
}

// podDeleted takes in that a pod is gone. After a pause of the watch that is all that is
// known: the API server may have been emptied, or an older state of it restored.
func (m *Manager) podDeleted(object any) {
	gone, missed := object.(cache.DeletedFinalStateUnknown)
	if missed {
		object = gone.Obj
	}
	if pod, ok := object.(*corev1.Pod); ok {
		m.podGone(pod, !missed)
	}
}

// podGone takes in that a pod is gone, and whether it was seen to go.
func (m *Manager) podGone(pod *corev1.Pod, seen bool) {
	if len(pod.Spec.Volumes) == 0 {
		return
	}
	m.mu.Lock()
	delete(m.waiting, keyOf(pod))
	delete(m.noRoomSince, pod.UID)
	delete(m.told, pod.UID)
	m.mu.Unlock()
	m.own(pod)
	if seen {
		m.noteEnd(pod, true)
	}
	m.askRelease(pod)
}

// noteEnd notes whether the pod was seen to end.
func (m *Manager) noteEnd(pod *corev1.Pod, ended bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for partition := range partitionsOf(pod) {
		if o, known := m.owners[partition]; known {
			o.ended = ended
			m.owners[partition] = o
		}
	}
}

func (m *Manager) askRelease(pod *corev1.Pod) {
	for partition := range partitionsOf(pod) {
		m.releases.Add(partition)
	}
}

// own remembers whose the pod's partitions are.
func (m *Manager) own(pod *corev1.Pod) {
	m.mu.Lock()
	changed := false
	for partition, volume := range partitionsOf(pod) {
		if _, known := m.owners[partition]; !known {
			m.owners[partition] = owner{pod: keyOf(pod), uid: pod.UID, volume: volume}
			changed = true
		}
	}
	m.mu.Unlock()
	if changed {
		m.options.OwnersChanged()
	}
}

// partitionsOf maps the partitions that the pod's volumes have, or would have, to their
// CSI volume IDs. Unlike request.FromPod it understands every pod: a volume must be
// recognised even if no one would make it today.
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

// Owner says whose a volume on a disk is: its CSI volume ID, and namespace/name of the
// pod or claim. Both are empty if that is not known, the latter if there is none.
func (m *Manager) Owner(v disk.Volume) (volume, owner string) {
	if id, persistent := persistentID(v); persistent {
		return id, m.claimOf(v)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	o, ok := m.owners[v.Partition]
	if !ok {
		return "", ""
	}
	return o.volume, o.pod.String()
}

// alive reports whether the pod may get new volumes.
func alive(pod *corev1.Pod) bool {
	return pod.DeletionTimestamp == nil && !terminal(pod)
}

func terminal(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

func keyOf(pod *corev1.Pod) types.NamespacedName {
	return types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}
}

// cached returns the pod from the watch's store, if it is the one with the UID.
func (m *Manager) cached(key types.NamespacedName, uid types.UID) *corev1.Pod {
	object, ok, err := m.options.Pods.GetStore().GetByKey(key.String())
	if err != nil || !ok {
		return nil
	}
	pod, ok := object.(*corev1.Pod)
	if !ok || uid != "" && pod.UID != uid {
		return nil
	}
	return pod
}
