package volumes

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/discovery"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/request"
)

// podSource is the reason why a pod's volumes are placed now.
type podSource int

const (
	// fromWatch: the watch shows the pod, and also decides whether it is alive.
	fromWatch podSource = iota
	// fromKubelet: the same, but the context is that of the kubelet's call.
	fromKubelet
	// fromAPIServer: the watch has not shown the pod yet, but the API server has it and it is alive.
	fromAPIServer
)

// placeVolumes makes a partition for every volume of the pod that has none.
func (i *inlineController) placeVolumes(ctx context.Context, pod *corev1.Pod, volumes []request.Volume, source podSource) error {
	unlock, err := i.podLocks.lock(ctx, string(pod.UID))
	if err != nil {
		return err
	}
	defer unlock()
	for try := 1; ; try++ {
		places, err := i.choose(pod, volumes)
		if errors.Is(err, ErrNoRoom) && source == fromWatch {
			i.releaseReserved(ctx, pod, volumes)
		}
		if err != nil || len(places) == 0 {
			return err
		}
		var group errgroup.Group
		for _, p := range places {
			group.Go(func() error { return i.create(ctx, pod, p, source) })
		}
		if err = group.Wait(); err == nil || !canRetryPlace(err, try) {
			return err
		}
	}
}

// choose decides where the pod's missing volumes go, and holds the extents. create releases them.
func (i *inlineController) choose(pod *corev1.Pod, volumes []request.Volume) ([]place, error) {
	return i.placer.choose(string(pod.UID), func(disks []discovery.Disk) ([]unplacedVolume, map[string]bool, error) {
		missing, occupied := unplacedOf(pod, volumes, disks)
		for _, w := range missing {
			if w.FSType != "" {
				continue
			}
			if err := i.placer.checkSize(w.Volume); err != nil {
				return nil, nil, err
			}
		}
		return missing, occupied, nil
	})
}

// unplacedOf returns the volumes without a partition, and the disks that have volumes of the pod with Apart.
func unplacedOf(pod *corev1.Pod, volumes []request.Volume, disks []discovery.Disk) ([]unplacedVolume, map[string]bool) {
	var missing []unplacedVolume
	occupied := map[string]bool{}
	record, recordErr := recordOf(pod)
	for _, v := range volumes {
		if d, _, found := findVolume(disks, v.Partition); found {
			if v.Request.Apart {
				occupied[d.ID()] = true
			}
			continue
		}
		w := unplacedVolume{Volume: v}
		if recordErr != nil {
			w.noRecordReason = recordErr.Error()
		} else if r, ok := record.Volume(v.Name); ok {
			w.recorded = &r
		} else {
			w.noRecordReason = "the pod's record does not name the volume"
		}
		missing = append(missing, w)
	}
	return missing, occupied
}

// explainNoRecord says why a bound pod has no record of a reservation, and which scheduler writes one.
func explainNoRecord(pod *corev1.Pod) string {
	const absent = "the pod has no record of a reservation: "
	if pod.Spec.SchedulerName == diskv1alpha1.SchedulerName {
		return absent + "it names its node itself (nodeName), or something else than scheduler " + diskv1alpha1.SchedulerName + " has bound it"
	}
	return absent + fmt.Sprintf("scheduler %s, or nodeName, chose the node without knowing its free disk space; set schedulerName: %s, and leave nodeName out",
		cmp.Or(pod.Spec.SchedulerName, corev1.DefaultSchedulerName), diskv1alpha1.SchedulerName)
}

// recordOf reads the pod's record. The error says why there is none.
func recordOf(pod *corev1.Pod) (diskv1alpha1.Record, error) {
	value, ok := pod.Annotations[diskv1alpha1.AnnotationAllocation]
	if !ok {
		return diskv1alpha1.Record{}, errors.New(explainNoRecord(pod))
	}
	return diskv1alpha1.DecodeRecord(value)
}

// create makes the partition at its place, and releases the extent that was held.
func (i *inlineController) create(ctx context.Context, pod *corev1.Pod, p place, source podSource) error {
	defer i.placer.releaseHeld(p.Partition)
	unlock, err := i.node.locks.lock(ctx, p.Partition)
	if err != nil {
		return err
	}
	defer unlock()
	if source == fromAPIServer {
		// The watch never shows this pod if it is deleted before the watch gets there.
		i.owners.recordPod(pod)
		i.reclaim.enqueue(p.Partition, i.options.orphanGrace)
	} else if now := i.pods.get(keyOf(pod), pod.UID); now == nil || !isAlive(now) {
		return fmt.Errorf("pod %s: %w", keyOf(pod), ErrPodGone)
	}
	d, err := i.node.diskInService(p.disk)
	if err != nil {
		return err
	}
	e, err := engineOf(&d)
	if err != nil {
		return err
	}
	note, err := podNoteFor(pod, p.Name)
	if err != nil {
		return err
	}
	settings, _ := i.policies.ofClass(&d)
	v, err := e.Create(ctx, disk.CreateOptions{
		Partition: p.Partition, Name: partitionName(pod, p.Name), Extent: p.extent, Ephemeral: true, Note: note, Wipe: settings,
	})
	if err != nil {
		return fmt.Errorf("cannot make a partition for volume %q at %v of disk %s: %w", p.Name, p.extent, p.disk, err)
	}
	i.formatter.recordNew(p.Partition, v.Prezeroed)
	klog.FromContext(ctx).Info("Volume has its partition", "volume", p.Name, "partition", p.Partition, "device", v.Device, "disk", p.disk,
		"extent", p.extent, "deviation", p.deviation)
	i.reportDeviation(pod, p, d.Device.Name)
	return nil
}

// reportDeviation reports a volume that is not where the scheduler put it.
func (i *inlineController) reportDeviation(pod *corev1.Pod, p place, device string) {
	if p.deviation == "" {
		return
	}
	reason, eventType := eventPlaced, corev1.EventTypeNormal
	if _, recorded := pod.Annotations[diskv1alpha1.AnnotationAllocation]; recorded {
		reason, eventType = eventReplaced, corev1.EventTypeWarning
	}
	i.node.reports.recorder.Event(pod, eventType, reason, fmt.Sprintf("volume %q was put on %s by the node itself: %s", p.Name, device, p.deviation))
}

// releaseReserved frees the partitions of a pod whose volumes do not all fit: the node has all of them or none. When
// they are free, the pod is queued again and all its volumes are placed again.
func (i *inlineController) releaseReserved(ctx context.Context, pod *corev1.Pod, volumes []request.Volume) {
	for _, v := range volumes {
		if _, partition, found := i.node.findVolume(v.Partition); !found || partition.Phase != disk.Reserved {
			continue
		}
		unlock, err := i.node.locks.lock(ctx, v.Partition)
		if err != nil {
			return
		}
		d, partition, found := i.node.findVolume(v.Partition)
		// Checked again under the lock: a formatted volume stays.
		isMounted := true
		if found && d.Ready() && partition.Phase == disk.Reserved {
			if isMounted, err = isDeviceMounted(partition.Device); err != nil {
				isMounted = true
			}
		}
		if isMounted {
			unlock()
			continue
		}
		klog.FromContext(ctx).Info("Volume is released, the pod's others do not fit", "pod", keyOf(pod), "volume", v.Name, "partition", v.Partition)
		i.reclaim.begin(ctx, d, partition, unlock)
	}
}
