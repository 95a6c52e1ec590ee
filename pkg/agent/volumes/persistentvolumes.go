package volumes

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/pkg/placement"
	"github.com/berthdev/berth/pkg/request"
)

// byPartition is the index of PersistentVolumes by the GUID of their partition.
const byPartition = "partition"

// volumeStore is the watch of the node's PersistentVolumes.
type volumeStore struct {
	informer cache.SharedIndexInformer
	node     string
}

// prepare sets the transform and the index of the watch.
func (s volumeStore) prepare() error {
	if err := s.informer.SetTransform(stripVolume); err != nil {
		return fmt.Errorf("cannot watch PersistentVolumes: %w", err)
	}
	err := s.informer.AddIndexers(cache.Indexers{byPartition: func(object any) ([]string, error) {
		pv, ok := object.(*corev1.PersistentVolume)
		if !ok || !claim.IsOurs(pv) {
			return nil, nil
		}
		return []string{diskv1alpha1.PartitionID(pv.Spec.CSI.VolumeHandle)}, nil
	}})
	if err != nil {
		return fmt.Errorf("cannot watch PersistentVolumes: %w", err)
	}
	return nil
}

// get returns the PersistentVolume with that name, nil if there is none of ours.
func (s volumeStore) get(name string) *corev1.PersistentVolume {
	object, ok, err := s.informer.GetStore().GetByKey(name)
	if err != nil || !ok {
		return nil
	}
	pv, ok := object.(*corev1.PersistentVolume)
	if !ok || !claim.IsOurs(pv) {
		return nil
	}
	return pv
}

// of returns the PersistentVolumes whose volume has the partition. There is at most one, unless another API client made
// more.
func (s volumeStore) of(partition string) []*corev1.PersistentVolume {
	objects, err := s.informer.GetIndexer().ByIndex(byPartition, partition)
	if err != nil {
		return nil
	}
	return volumesIn(objects)
}

func (s volumeStore) all() []*corev1.PersistentVolume {
	return volumesIn(s.informer.GetStore().List())
}

// volumesIn returns the PersistentVolumes among the objects.
func volumesIn(objects []any) []*corev1.PersistentVolume {
	var pvs []*corev1.PersistentVolume
	for _, object := range objects {
		if pv, ok := object.(*corev1.PersistentVolume); ok {
			pvs = append(pvs, pv)
		}
	}
	return pvs
}

// read reads a PersistentVolume. It fails unless it is one of this node, with an ID that fits on a disk.
func (s volumeStore) read(pv *corev1.PersistentVolume) (claim.Volume, error) {
	v, err := claim.ReadVolume(pv)
	if err != nil {
		return claim.Volume{}, err
	}
	if v.Node != diskv1alpha1.NodeLabel(s.node) {
		return claim.Volume{}, fmt.Errorf("PersistentVolume %s: its label %s names node %s, its node affinity %q: it is left alone", pv.Name, diskv1alpha1.LabelNode, s.node, v.Node)
	}
	if _, ok := diskv1alpha1.VolumeUUID(v.ID); !ok {
		return claim.Volume{}, fmt.Errorf("PersistentVolume %s: volumeHandle %.64q is not that of a persistent volume: it must be pvc- and a UUID in lower case", pv.Name, v.ID)
	}
	return v, nil
}

// stripVolume keeps the fields of a PersistentVolume that say what must be on the disks. To wipe, the agent reads the
// PersistentVolume from the API server again.
func stripVolume(object any) (any, error) {
	pv, ok := object.(*corev1.PersistentVolume)
	if !ok {
		return object, nil
	}
	slim := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{
		Name: pv.Name, UID: pv.UID, ResourceVersion: pv.ResourceVersion, DeletionTimestamp: pv.DeletionTimestamp,
	}}
	if !claim.IsOurs(pv) {
		return slim, nil
	}
	for _, key := range []string{diskv1alpha1.AnnotationMovedTo, diskv1alpha1.AnnotationMoveTo, diskv1alpha1.AnnotationPieces} {
		if value, ok := pv.Annotations[key]; ok {
			metav1.SetMetaDataAnnotation(&slim.ObjectMeta, key, value)
		}
	}
	slim.Spec = corev1.PersistentVolumeSpec{
		Capacity:                      pv.Spec.Capacity,
		PersistentVolumeReclaimPolicy: pv.Spec.PersistentVolumeReclaimPolicy,
		VolumeMode:                    pv.Spec.VolumeMode,
		StorageClassName:              pv.Spec.StorageClassName,
		AccessModes:                   pv.Spec.AccessModes,
		NodeAffinity:                  pv.Spec.NodeAffinity,
		PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
			Driver: diskv1alpha1.DriverName, VolumeHandle: pv.Spec.CSI.VolumeHandle, FSType: pv.Spec.CSI.FSType,
			VolumeAttributes: map[string]string{},
		}},
	}
	if ref := pv.Spec.ClaimRef; ref != nil {
		slim.Spec.ClaimRef = &corev1.ObjectReference{Namespace: ref.Namespace, Name: ref.Name, UID: ref.UID}
	}
	for _, key := range []string{
		diskv1alpha1.AttributeDisk, diskv1alpha1.AttributeStart, diskv1alpha1.AttributeLength, diskv1alpha1.AttributeClass,
	} {
		if value, ok := pv.Spec.CSI.VolumeAttributes[key]; ok {
			slim.Spec.CSI.VolumeAttributes[key] = value
		}
	}
	slim.Status.Phase = pv.Status.Phase
	return slim, nil
}

// action is what the agent does for a PersistentVolume and its partition.
type action int

const (
	// actionServe: the volume must be on the disk, ready to be mounted.
	actionServe action = iota
	// actionRetain: nothing is made and nothing is wiped. The PersistentVolume is retained, or deleted and still bound.
	actionRetain
	// actionFinalize: the PersistentVolume may be removed, its partition stays.
	actionFinalize
	// actionReclaim: the partition is wiped, and then the PersistentVolume is removed.
	actionReclaim
)

// actionFor decides by the PersistentVolume alone. To wipe by it, the caller must have read it from the API server.
func actionFor(pv *corev1.PersistentVolume) action {
	deleted := pv.DeletionTimestamp != nil
	// Any policy other than Delete keeps the volume, also one that this release does not know.
	deletes := pv.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete
	switch phase := pv.Status.Phase; {
	case deleted && phase == corev1.VolumeBound:
		// Its claim may be in use. The phase changes when the claim is gone.
		return actionRetain
	case deleted && deletes:
		return actionReclaim
	case deleted:
		return actionFinalize
	case phase == corev1.VolumeReleased || phase == corev1.VolumeFailed:
		if deletes {
			return actionReclaim
		}
		return actionRetain
	}
	return actionServe
}

// requestOf is what a PersistentVolume requests of the node.
func requestOf(v claim.Volume) request.Volume {
	return request.Volume{
		// The name is for messages.
		Name: v.ID, ID: v.ID, Partition: v.Partition, FSType: v.FSType, Block: v.Block,
		Request: placement.Request{Class: v.Class, Size: v.Size},
	}
}

// diskFor is the disk that has the volume of a PersistentVolume, or will get it.
func diskFor(pv *corev1.PersistentVolume, v claim.Volume) string {
	if moved := pv.Annotations[diskv1alpha1.AnnotationMovedTo]; moved != "" {
		return moved
	}
	return v.Place.Disk
}

// persistentVolumeID is the CSI volume ID of a persistent volume, from its partition on the disk.
func persistentVolumeID(v disk.Volume) (string, bool) {
	if v.Ephemeral {
		return "", false
	}
	return diskv1alpha1.PersistentVolumeID(v.Name, v.Partition)
}

// claimInNote is namespace/name of the claim that a volume was made for, from the note on the disk.
func claimInNote(v disk.Volume) string {
	note, err := claim.ReadNote(v.Note)
	if err != nil || note.Claim == "" {
		return ""
	}
	return note.Namespace + "/" + note.Claim
}
