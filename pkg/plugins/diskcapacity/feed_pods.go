package diskcapacity

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/ledger"
	"github.com/berthdev/berth/pkg/request"
)

// followPods folds pods into the ledger, by the scheduler's own informer: a second watch of all pods would cost as much
// again. That informer leaves out pods that have ended. So the end of a pod is its deletion, here as in the scheduler.
func (f *feed) followPods(logger klog.Logger, informer cache.SharedIndexInformer) error {
	registration, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) { f.foldObject(logger, obj) },
		UpdateFunc: func(old, obj any) {
			// A pod that was deleted and created again under its name can come as one update.
			before, _ := old.(*corev1.Pod)
			after, _ := obj.(*corev1.Pod)
			if before != nil && after != nil && before.UID != after.UID {
				f.foldPod(logger, before)
			}
			f.foldObject(logger, obj)
		},
		DeleteFunc: func(obj any) { f.foldPodEnd(logger, obj) },
	})
	if err != nil {
		return fmt.Errorf("following pods: %w", err)
	}
	f.podsSynced = registration.HasSynced
	return nil
}

func (f *feed) foldObject(logger klog.Logger, obj any) {
	if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = gone.Obj
	}
	if pod, ok := obj.(*corev1.Pod); ok {
		f.foldPod(logger, pod)
	}
}

// foldPodEnd folds in the deletion of a pod, and wakes the pods that fit since then. A pod may have come after the
// scheduler's own handler of the event, and before this one.
func (f *feed) foldPodEnd(logger klog.Logger, obj any) {
	if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = gone.Obj
	}
	pod, ok := obj.(*corev1.Pod)
	if !ok {
		return
	}
	before := f.ledger.Snapshot(pod.Spec.NodeName)
	f.foldPod(logger, pod)
	if f.ledger.Snapshot(pod.Spec.NodeName) != before {
		f.requeueFitting(logger, pod.Spec.NodeName, before.Node)
	}
}

// foldPod folds in the present state of a pod after an event, not the state in the event. Our handler, the scheduler's
// handler and the queueing hints run at their own pace. So an update can be handled here after a hint has folded in the
// deletion that followed it. The informer's store is ahead of all of them, so the last handler folds in the same as the
// first.
//
// It also distinguishes a deleted pod from one that the scheduler only failed to bind. A hint gets both as the deletion
// of an assigned pod, but the second may be bound (see Doubt in the ledger).
func (f *feed) foldPod(logger klog.Logger, event *corev1.Pod) {
	if !mayHoldSpace(event) {
		return
	}
	f.folding.Lock()
	defer f.folding.Unlock()
	uid := string(event.UID)
	pod := f.storedPod(event)
	switch {
	case pod == nil, pod.Status.Phase == corev1.PodSucceeded, pod.Status.Phase == corev1.PodFailed:
		f.forget(logger, event.UID)
		f.requeueFittingAsync(logger, f.ledger.DeletePod(uid))
	case pod.Spec.NodeName == "":
		// The store does not have it as bound. What Reserve assumed stays.
		f.nominations.set(event.UID, pod.Status.NominatedNodeName)
	case !hasInlineVolumes(pod):
		// The pod is bound, and so are its claims: their PersistentVolumes have the records.
		f.forget(logger, event.UID)
		f.requeueFittingAsync(logger, f.ledger.DeletePod(uid))
	default:
		f.forget(logger, event.UID)
		records, err := recordsOf(pod)
		if err != nil {
			// The record is no reservation, whatever wrote it. The agent finds a place itself and publishes it.
			logger.V(2).Info("Ignored the allocation record of a pod", "pod", klog.KObj(pod), "node", klog.KRef("", pod.Spec.NodeName), "err", err)
		}
		f.requeueFittingAsync(logger, f.ledger.SetPod(uid, pod.Spec.NodeName, records))
	}
}

// forget removes a pod that is not pending any more.
func (f *feed) forget(logger klog.Logger, uid types.UID) {
	f.narrowing.forget(uid)
	f.nominations.set(uid, "")
	f.waiting.forget(uid)
	if f.waiting.isKeptFor(uid) {
		// Not here: the caller may hold the lock of the scheduling queue, see requeueFittingAsync.
		go f.nominationEnded(logger, uid)
	}
}

// storedPod returns the pod that the informer has now; nil if it is gone.
func (f *feed) storedPod(event *corev1.Pod) *corev1.Pod {
	key, err := cache.MetaNamespaceKeyFunc(event)
	if err != nil {
		return nil
	}
	obj, exists, err := f.pods.GetByKey(key)
	if err != nil || !exists {
		return nil
	}
	if pod, ok := obj.(*corev1.Pod); ok && pod.UID == event.UID {
		return pod
	}
	return nil
}

// recordsOf reads the records of a bound pod from its annotation. A user can write the annotation. So it is believed
// only if it matches the pod: the volumes are the pod's own, and have exactly the requested sizes. A forged record then
// withholds no more space than the pod will occupy, somewhere on its node. The agent, too, believes a record as a whole
// or not at all.
func recordsOf(pod *corev1.Pod) ([]ledger.Record, error) {
	value, ok := pod.Annotations[diskv1alpha1.AnnotationAllocation]
	if !ok {
		return nil, nil
	}
	record, err := diskv1alpha1.DecodeRecord(value)
	if err != nil {
		return nil, err
	}
	volumes, err := request.FromPod(pod)
	if err != nil {
		return nil, err
	}
	if len(record.Volumes) != len(volumes) {
		return nil, fmt.Errorf("the record has %d volumes, the pod %d", len(record.Volumes), len(volumes))
	}
	records := make([]ledger.Record, len(volumes))
	for i := range volumes {
		place, ok := record.Volume(volumes[i].Name)
		if !ok {
			return nil, fmt.Errorf("the record lacks volume %q", volumes[i].Name)
		}
		if want := volumes[i].Request.Size; place.Length != want {
			return nil, fmt.Errorf("the record gives volume %q %d bytes, the pod asks for %d", volumes[i].Name, place.Length, want)
		}
		records[i] = ledger.Record{
			Partition: volumes[i].Partition, Disk: place.Disk,
			Extent: extent.New(place.Start, place.Length),
		}
	}
	return records, nil
}
