package volumes

import (
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/discovery"
	"github.com/berthdev/berth/pkg/agent/disk"
)

// Reasons of events about pods.
const (
	eventPlaced      = "VolumePlaced"
	eventReplaced    = "VolumeReplaced"
	eventNoRoom      = "NoRoomForVolume"
	eventInvalid     = "InvalidVolume"
	eventEvicting    = "EvictingForVolume"
	eventFailed      = "VolumeFailed"
	eventOnOtherNode = "VolumeOnOtherNode"
)

// Reasons of events about PersistentVolumes and claims, beside those about pods.
const (
	eventDiskMissing = "VolumeDiskMissing"
	eventVanished    = "VolumeVanished"
	eventMismatch    = "VolumeMismatch"
	eventNotGrown    = "VolumeNotGrown"
	eventNotReleased = "VolumeNotReleased"
	eventMoved       = "VolumeMoved"
	eventNotMoved    = "VolumeNotMoved"
)

// Reasons of events about the node's NodeDiskCapacity.
const (
	eventWiped          = "VolumeWiped"
	eventDiskCordoned   = "DiskCordoned"
	eventDiskUncordoned = "DiskUncordoned"
	eventNotWiped       = "VolumeNotWiped"
	eventOrphaned       = "VolumeOrphaned"
	eventReclaimStopped = "ReclaimStopped"
	eventReclaimAllowed = "ReclaimAllowed"
	eventReclaimBlocked = "ReclaimBlocked"
)

// Recorder writes events. It never blocks.
type Recorder interface {
	// Event writes an event about a pod.
	Event(pod *corev1.Pod, eventType, reason, message string)
	// About writes an event about another object.
	About(object corev1.ObjectReference, eventType, reason, message string)
	// OfNode writes an event about the NodeDiskCapacity of the node. uid may be empty.
	OfNode(uid types.UID, eventType, reason, message string)
}

// reports writes events about pods, PersistentVolumes and the node. The warn functions do not repeat the last event
// about an object: a volume that waits is retried all the time.
type reports struct {
	recorder   Recorder
	capacities capacityStore

	mu sync.Mutex
	// last is the last message, by the UID of a pod or PersistentVolume, or by partition.
	last map[types.UID]string
}

func newReports(recorder Recorder, c capacityStore) *reports {
	return &reports{recorder: recorder, capacities: c, last: map[types.UID]string{}}
}

// isNew reports whether the message differs from the last one about the same object.
func (r *reports) isNew(about types.UID, message string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last[about] == message {
		return false
	}
	r.last[about] = message
	return true
}

// forget makes the next message about the object new.
func (r *reports) forget(about types.UID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.last, about)
}

// warnPod writes an event unless it repeats the last one about the pod.
func (r *reports) warnPod(pod *corev1.Pod, reason, message string) {
	if r.isNew(pod.UID, reason+message) {
		r.recorder.Event(pod, corev1.EventTypeWarning, reason, message)
	}
}

// warnVolume writes an event about a PersistentVolume and its claim, unless it repeats the last one.
func (r *reports) warnVolume(pv *corev1.PersistentVolume, reason, message string) {
	if r.isNew(pv.UID, reason+message) {
		r.volumeEvent(pv, corev1.EventTypeWarning, reason, message)
	}
}

// volumeEvent writes an event about a PersistentVolume and about its claim. The claim gets none if the PersistentVolume
// is released.
func (r *reports) volumeEvent(pv *corev1.PersistentVolume, eventType, reason, message string) {
	version := corev1.SchemeGroupVersion.String()
	r.recorder.About(corev1.ObjectReference{Kind: "PersistentVolume", APIVersion: version, Name: pv.Name, UID: pv.UID}, eventType, reason, message)
	if ref := pv.Spec.ClaimRef; ref != nil && pv.Status.Phase != corev1.VolumeReleased {
		r.recorder.About(corev1.ObjectReference{
			Kind: "PersistentVolumeClaim", APIVersion: version, Namespace: ref.Namespace, Name: ref.Name, UID: ref.UID,
		}, eventType, reason, message)
	}
}

// nodeEvent writes an event about the node's NodeDiskCapacity.
func (r *reports) nodeEvent(eventType, reason, message string) {
	var uid types.UID
	if ndc := r.capacities.get(); ndc != nil {
		uid = ndc.UID
	}
	r.recorder.OfNode(uid, eventType, reason, message)
}

// capacityStore is the watch of the node's own NodeDiskCapacity.
type capacityStore struct {
	informer cache.SharedIndexInformer
	node     string
}

// get returns the node's NodeDiskCapacity from the watch, nil if there is none.
func (c capacityStore) get() *diskv1alpha1.NodeDiskCapacity {
	object, ok, err := c.informer.GetStore().GetByKey(c.node)
	if err != nil || !ok {
		return nil
	}
	ndc, _ := object.(*diskv1alpha1.NodeDiskCapacity)
	return ndc
}

// describeVolume names a volume and its place for a message.
func describeVolume(d discovery.Disk, v disk.Volume, volume, owner string) string {
	if owner == "" {
		owner = v.Name
	}
	if volume == "" {
		volume = "volume"
	}
	pieces := ""
	if len(v.Pieces) > 0 {
		pieces = fmt.Sprintf(" in %d pieces", 1+len(v.Pieces))
	}
	return fmt.Sprintf("%s of %s, partition %s, %d bytes%s at %d of disk %s (%s)", volume, owner, v.Partition, v.Length(), pieces, v.Extent.Start, d.ID(), d.Device.Name)
}
