package volumes

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/berthdev/berth/pkg/agent/disk"
)

// owner is the pod of the volume in a partition.
type owner struct {
	pod    types.NamespacedName
	uid    types.UID
	volume string
	// ended is set when the watch has shown that the pod is being deleted, has ended, or was removed: it did not
	// vanish.
	ended bool
}

// owners maps the partitions of inline volumes on the disks to their pods. It is filled from the watch, and from
// answers of the API server.
type owners struct {
	node *node
	pods podStore

	mu          sync.Mutex
	byPartition map[string]owner
}

func newOwners(n *node, pods podStore) *owners {
	return &owners{node: n, pods: pods, byPartition: map[string]owner{}}
}

func (o *owners) get(partition string) (owner, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	of, known := o.byPartition[partition]
	return of, known
}

// partitions lists the partitions whose pods are known.
func (o *owners) partitions() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := make([]string, 0, len(o.byPartition))
	for partition := range o.byPartition {
		out = append(out, partition)
	}
	return out
}

// recordPod records the pod as the owner of its volumes' partitions.
func (o *owners) recordPod(pod *corev1.Pod) {
	o.mu.Lock()
	changed := false
	for partition, volume := range partitionsOf(pod) {
		if _, known := o.byPartition[partition]; !known {
			o.byPartition[partition] = owner{pod: keyOf(pod), uid: pod.UID, volume: volume}
			changed = true
		}
	}
	o.mu.Unlock()
	if changed {
		o.node.changed()
	}
}

// recordEnd records whether the pod's end was seen.
func (o *owners) recordEnd(pod *corev1.Pod, ended bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for partition := range partitionsOf(pod) {
		if of, known := o.byPartition[partition]; known {
			of.ended = ended
			o.byPartition[partition] = of
		}
	}
}

// endSeen reports whether the end of the volume's pod was seen. The watch may have shown it. Or the API server still
// has the pod, and it is being deleted or has ended.
func (o *owners) endSeen(partition string, pod *corev1.Pod, uid types.UID) bool {
	if pod != nil && pod.UID == uid {
		return true
	}
	of, known := o.get(partition)
	return known && of.ended
}

// forget drops the owner of a partition that does not exist any more, unless the pod exists: it may get the partition
// yet.
func (o *owners) forget(partition string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if of, ok := o.byPartition[partition]; ok && o.pods.get(of.pod, of.uid) == nil {
		delete(o.byPartition, partition)
	}
}

// livePod returns the pod of the volume in the partition, and that pod's UID, from the API server and not from the
// cache. The pod is nil if it does not exist. An error means that nothing is known, and then nothing may be wiped.
func (o *owners) livePod(ctx context.Context, v disk.Volume) (*corev1.Pod, types.UID, error) {
	of, known := o.get(v.Partition)
	if !known {
		if _, err := o.findPods(ctx, []disk.Volume{v}); err != nil {
			return nil, "", err
		}
		if of, known = o.get(v.Partition); !known {
			return nil, "", nil
		}
	}
	pod, err := o.node.client.Pod(ctx, of.pod.Namespace, of.pod.Name)
	if apierrors.IsNotFound(err) {
		return nil, of.uid, nil
	}
	if err != nil {
		return nil, "", fmt.Errorf("cannot ask the API server for pod %s, its volume is kept: %w", of.pod, err)
	}
	return pod, of.uid, nil
}

// findPods lists the node's pods from the API server, and the pods that may have used the volumes on another node. It
// records the owners of the volumes, and returns the partitions of those that have a pod. The pods of the others do not
// exist.
func (o *owners) findPods(ctx context.Context, volumes []disk.Volume) (map[string]bool, error) {
	found := map[string]bool{}
	if len(volumes) == 0 {
		return found, nil
	}
	record := func(pod *corev1.Pod) {
		for partition := range partitionsOf(pod) {
			if slices.ContainsFunc(volumes, func(v disk.Volume) bool { return v.Partition == partition }) {
				found[partition] = true
				o.recordPod(pod)
			}
		}
	}
	err := o.node.client.PodsOfNode(ctx, record)
	namespaces := map[string]bool{}
	for _, v := range volumes {
		if !found[v.Partition] {
			namespaces[namespaceOf(v)] = true
		}
	}
	for namespace := range namespaces {
		if err == nil {
			err = o.node.client.PodsOfNamespace(ctx, namespace, record)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("cannot ask the API server for pods, volumes without a known pod are kept: %w", err)
	}
	return found, nil
}

// namespaceOf is the namespace of the volume's pod. It comes from the partition's name or, if that was cut, from the
// note. It is empty, which means all namespaces, if neither has it.
func namespaceOf(v disk.Volume) string {
	namespace, _, whole := strings.Cut(v.Name, "/")
	if whole {
		return namespace
	}
	var note podNote
	if err := json.Unmarshal([]byte(v.Note), &note); err != nil || len(validation.IsDNS1123Label(note.PodNamespace)) > 0 ||
		v.Name == "" || !strings.HasPrefix(note.PodNamespace, v.Name) {
		return ""
	}
	return note.PodNamespace
}

// partitionName is the name in a listing of partitions.
func partitionName(pod *corev1.Pod, volume string) string {
	const limit = 36
	name := pod.Namespace + "/" + pod.Name + "/" + volume
	if len(name) > limit {
		name = name[:limit]
	}
	return name
}

// podNote is kept on the disk beside an inline volume whose pod's namespace is too long for the partition's name.
// Without it the agent would have to list all pods of the cluster.
type podNote struct {
	PodNamespace string `json:"podNamespace"`
}

// podNoteFor is the note of the pod's volumes. It is empty if the partitions' names contain the namespace.
func podNoteFor(pod *corev1.Pod, volume string) (string, error) {
	if strings.Contains(partitionName(pod, volume), "/") {
		return "", nil
	}
	note, err := json.Marshal(podNote{pod.Namespace})
	if err != nil {
		return "", fmt.Errorf("cannot note whose volume %q of pod %s is: %w", volume, keyOf(pod), err)
	}
	return string(note), nil
}
