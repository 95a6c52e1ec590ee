package volumes

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"

	"github.com/berthdev/berth/pkg/agent/disk"
)

// judge decides from the pod that the API server has just returned. pod is nil if there is none with that name. uid is
// that of the pod whose volume it is.
func judge(pod *corev1.Pod, uid types.UID, isMounted bool) verdict {
	// A pod that is being deleted may still run. Only the mount shows whether it does.
	gone := pod == nil || pod.UID != uid || terminal(pod)
	switch {
	case !gone && pod.DeletionTimestamp == nil:
		return keep
	case isMounted && !gone:
		return ending
	case isMounted:
		return inUse
	}
	return wipe
}

// verdict finds out from the API server whether the volume's pod is gone.
func (i *inline) verdict(ctx context.Context, v disk.Volume) (verdict, error) {
	if o, known := i.owners.get(v.Partition); known {
		// The watch is enough to keep a volume. The pod's end has the volume looked at again.
		if pod := i.pods.get(o.pod, o.uid); pod != nil && alive(pod) {
			return keep, nil
		}
	}
	isMounted, err := mounted(v.Device)
	if err != nil {
		return keep, err
	}
	pod, uid, err := i.owners.livePod(ctx, v)
	if err != nil {
		return keep, err
	}
	becomes := judge(pod, uid, isMounted)
	if becomes != keep && !i.owners.endSeen(v.Partition, pod, uid) {
		// The sweeper decides for all such volumes together whether that can be true.
		return suspect, nil
	}
	switch becomes {
	case inUse:
		if (pod == nil || pod.UID != uid) && i.node.reports.isNew(types.UID(v.Partition), "mounted") {
			klog.FromContext(ctx).Info("Volume's pod is gone, but it is mounted; it is wiped once it is not", "partition", v.Partition, "device", v.Device)
		}
	case keep:
		if pod.Spec.NodeName != i.node.name {
			i.node.reports.warnPod(pod, eventStrayed, fmt.Sprintf("the volume in partition %s is on a disk of node %s, the pod is on node %q: was the disk moved? The volume is kept until the pod is gone", v.Partition, i.node.name, pod.Spec.NodeName))
			i.reclaim.look(v.Partition, i.options.orphanGrace)
		}
	}
	return becomes, nil
}

// gone drops what is known of a partition that no disk has.
func (i *inline) gone(partition string) { i.owners.forget(partition) }

// ownerOf names the volume by its CSI ID, and its pod by namespace/name; empty if unknown.
func (i *inline) ownerOf(v disk.Volume) (volume, owner string) {
	o, ok := i.owners.get(v.Partition)
	if !ok {
		return "", ""
	}
	return o.volume, o.pod.String()
}
