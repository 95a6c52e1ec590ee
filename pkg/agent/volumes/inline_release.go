package volumes

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"

	"github.com/berthdev/berth/pkg/agent/disk"
)

// verdictForPod decides from the pod that the API server has just returned. pod is nil if there is none with that name.
// uid is that of the pod whose volume it is.
func verdictForPod(pod *corev1.Pod, uid types.UID, isMounted bool) verdict {
	// A pod that is being deleted may still run. Only the mount shows whether it does.
	gone := pod == nil || pod.UID != uid || hasEnded(pod)
	switch {
	case !gone && pod.DeletionTimestamp == nil:
		return verdictKeep
	case isMounted && !gone:
		return verdictEnding
	case isMounted:
		return verdictInUse
	}
	return verdictWipe
}

// verdict finds out from the API server whether the volume's pod is gone.
func (i *inlineController) verdict(ctx context.Context, v disk.Volume) (verdict, error) {
	if o, known := i.owners.get(v.Partition); known {
		// The watch is enough to keep a volume. When the pod ends, the volume is queued again.
		if pod := i.pods.get(o.pod, o.uid); pod != nil && isAlive(pod) {
			return verdictKeep, nil
		}
	}
	isMounted, err := isDeviceMounted(v.Device)
	if err != nil {
		return verdictKeep, err
	}
	pod, uid, err := i.owners.livePod(ctx, v)
	if err != nil {
		return verdictKeep, err
	}
	decision := verdictForPod(pod, uid, isMounted)
	if decision != verdictKeep && !i.owners.endSeen(v.Partition, pod, uid) {
		// The sweeper decides for all such volumes together whether that can be true.
		return verdictSuspect, nil
	}
	switch decision {
	case verdictInUse:
		if (pod == nil || pod.UID != uid) && i.node.reports.isNew(types.UID(v.Partition), "mounted") {
			klog.FromContext(ctx).Info("Volume's pod is gone, but it is mounted; it is wiped once it is not", "partition", v.Partition, "device", v.Device)
		}
	case verdictKeep:
		if pod.Spec.NodeName != i.node.name {
			i.node.reports.warnPod(pod, eventOnOtherNode, fmt.Sprintf("the volume in partition %s is on a disk of node %s, the pod is on node %q: was the disk moved? The volume is kept until the pod is gone", v.Partition, i.node.name, pod.Spec.NodeName))
			i.reclaim.enqueue(v.Partition, i.options.orphanGrace)
		}
	}
	return decision, nil
}

// partitionGone drops what is known of a partition that no disk has.
func (i *inlineController) partitionGone(partition string) { i.owners.forget(partition) }

// ownerOf names the volume by its CSI ID, and its pod by namespace/name; empty if unknown.
func (i *inlineController) ownerOf(v disk.Volume) (volume, owner string) {
	o, ok := i.owners.get(v.Partition)
	if !ok {
		return "", ""
	}
	return o.volume, o.pod.String()
}
