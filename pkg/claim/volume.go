package claim

import (
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/request"
)

// AnnotationProvisionedBy marks, for the PersistentVolume controller, that the volume was made for its claim. It names
// the driver that deletes it.
const AnnotationProvisionedBy = "pv.kubernetes.io/provisioned-by"

// NewVolume is the PersistentVolume of a claim, bound to it beforehand, on the node. place is its place, or its first
// piece, and pieces are its further ones.
func NewVolume(pvc *corev1.PersistentVolumeClaim, class *storagev1.StorageClass, v request.Volume, node string, place diskv1alpha1.Place, pieces ...diskv1alpha1.Place) *corev1.PersistentVolume {
	annotations := map[string]string{AnnotationProvisionedBy: diskv1alpha1.DriverName}
	if len(pieces) > 0 {
		annotations[diskv1alpha1.AnnotationPieces] = diskv1alpha1.JoinPieces(pieces)
	}
	attributes := place.Attributes()
	attributes[diskv1alpha1.AttributeClass] = v.Request.Class
	label := diskv1alpha1.NodeLabel(node)
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{
			Name:        v.ID,
			Labels:      map[string]string{diskv1alpha1.LabelNode: label},
			Annotations: annotations,
			Finalizers:  []string{diskv1alpha1.FinalizerVolume},
		},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:    corev1.ResourceList{corev1.ResourceStorage: *resource.NewQuantity(place.Length+lengthOf(pieces), resource.BinarySI)},
			AccessModes: pvc.Spec.AccessModes,
			ClaimRef: &corev1.ObjectReference{
				APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: pvc.Namespace, Name: pvc.Name, UID: pvc.UID,
			},
			PersistentVolumeReclaimPolicy: ptr.Deref(class.ReclaimPolicy, corev1.PersistentVolumeReclaimDelete),
			StorageClassName:              class.Name,
			MountOptions:                  class.MountOptions,
			VolumeMode:                    pvc.Spec.VolumeMode,
			NodeAffinity:                  onNode(label),
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
				Driver: diskv1alpha1.DriverName, VolumeHandle: v.ID, FSType: v.FSType, VolumeAttributes: attributes,
			}},
		},
	}
}

// onNode is the affinity for the node with that label.
func onNode(label string) *corev1.VolumeNodeAffinity {
	return &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
		MatchExpressions: []corev1.NodeSelectorRequirement{{Key: diskv1alpha1.LabelNode, Operator: corev1.NodeSelectorOpIn, Values: []string{label}}},
	}}}}
}

// Volume is the parsed form of a PersistentVolume of ours.
type Volume struct {
	// Name of the PersistentVolume.
	Name string
	UID  types.UID
	// ID is the CSI volume ID (volumeHandle), Partition the GUID of its partition.
	ID, Partition string
	// Node is the value of LabelNode of the node it is on; see diskv1alpha1.NodeLabel.
	Node  string
	Class string
	// FSType is ext4, xfs or empty for the class's default.
	FSType string
	Block  bool
	// Place is where the volume was put, or its first piece. Its length is that of its creation: FirstLength may be more.
	Place diskv1alpha1.Place
	// Pieces are the further pieces of the volume, in their order.
	Pieces []diskv1alpha1.Place
	// Size in bytes that the volume must have, all pieces together: the PersistentVolume's capacity.
	Size int64
	// MoveTo is the place to which the volume must be moved, or to which it was moved last; nil if there is none.
	MoveTo *diskv1alpha1.Place
}

// IsOurs reports whether a PersistentVolume is of our driver.
func IsOurs(pv *corev1.PersistentVolume) bool {
	return pv.Spec.CSI != nil && pv.Spec.CSI.Driver == diskv1alpha1.DriverName
}

// ReadVolume parses a PersistentVolume of ours. Any client of the API can write one, so every field is checked. The
// result is valid, or the error says what is wrong.
func ReadVolume(pv *corev1.PersistentVolume) (Volume, error) {
	csi := pv.Spec.CSI
	if csi == nil || csi.Driver != diskv1alpha1.DriverName {
		return Volume{}, fmt.Errorf("PersistentVolume %s is not of driver %s", pv.Name, diskv1alpha1.DriverName)
	}
	place, err := diskv1alpha1.ParsePlace(csi.VolumeAttributes)
	if err != nil {
		return Volume{}, fmt.Errorf("PersistentVolume %s: %w", pv.Name, err)
	}
	node, err := nodeOf(pv)
	if err != nil {
		return Volume{}, fmt.Errorf("PersistentVolume %s: %w", pv.Name, err)
	}
	if csi.VolumeHandle == "" {
		return Volume{}, fmt.Errorf("PersistentVolume %s: volumeHandle is missing", pv.Name)
	}
	if err := diskv1alpha1.ValidateFSType(csi.FSType); err != nil {
		return Volume{}, fmt.Errorf("PersistentVolume %s: %w", pv.Name, err)
	}
	capacity := pv.Spec.Capacity[corev1.ResourceStorage]
	if capacity.Sign() <= 0 || capacity.CmpInt64(diskv1alpha1.MaxVolumeSize) > 0 {
		return Volume{}, fmt.Errorf("PersistentVolume %s: capacity %s makes no sense", pv.Name, capacity.String())
	}
	// An annotation that cannot be read must not end the volume's service: the agent reports it.
	moveTo, _ := ReadMoveTo(pv)
	pieces, _ := ReadPieces(pv)
	return Volume{
		Name: pv.Name, UID: pv.UID, ID: csi.VolumeHandle, Partition: diskv1alpha1.PartitionID(csi.VolumeHandle),
		Node: node, Class: csi.VolumeAttributes[diskv1alpha1.AttributeClass],
		FSType: csi.FSType, Block: IsBlock(pv.Spec.VolumeMode), Place: place, Pieces: pieces,
		Size: max(place.Length+lengthOf(pieces), diskv1alpha1.AlignUp(capacity.Value())), MoveTo: moveTo,
	}, nil
}

// FirstLength is how many bytes of Size the first piece must have, at least. A volume that is moved has its new size at
// the new place only. What it has at the earlier one is on the disk already: no move is planned before.
func (v *Volume) FirstLength() int64 {
	if v.MoveTo != nil {
		return v.Place.Length
	}
	return v.Size - lengthOf(v.Pieces)
}

func lengthOf(pieces []diskv1alpha1.Place) int64 {
	var sum int64
	for i := range pieces {
		sum += pieces[i].Length
	}
	return sum
}

// ReadPieces reads the further pieces of a volume, in their order. It returns all of them or an error. A piece may lie
// where the volume was put first: the volume may have been moved since.
func ReadPieces(pv *corev1.PersistentVolume) ([]diskv1alpha1.Place, error) {
	value, ok := pv.Annotations[diskv1alpha1.AnnotationPieces]
	if !ok {
		return nil, nil
	}
	pieces, err := diskv1alpha1.ParsePieces(value)
	if err != nil {
		return nil, err
	}
	first, err := diskv1alpha1.ParsePlace(pv.Spec.CSI.VolumeAttributes)
	if err != nil {
		return nil, err
	}
	if first.Length > diskv1alpha1.MaxVolumeSize-lengthOf(pieces) {
		return nil, fmt.Errorf("annotation %s: no disk is as large as all pieces", diskv1alpha1.AnnotationPieces)
	}
	return pieces, nil
}

// ReadMoveTo reads where a volume must be moved. A volume that is deleted, or released to be deleted, is not moved any
// more. One that is retained keeps its new place: a later claim gets it with that size.
func ReadMoveTo(pv *corev1.PersistentVolume) (*diskv1alpha1.Place, error) {
	value, ok := pv.Annotations[diskv1alpha1.AnnotationMoveTo]
	if !ok || pv.DeletionTimestamp != nil {
		return nil, nil
	}
	ended := pv.Status.Phase == corev1.VolumeReleased || pv.Status.Phase == corev1.VolumeFailed
	if ended && pv.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete {
		return nil, nil
	}
	to, err := diskv1alpha1.ParseMoveTo(value)
	if err != nil {
		return nil, err
	}
	return &to, nil
}

// nodeOf reads the node from the affinity, which is immutable, unlike the label.
func nodeOf(pv *corev1.PersistentVolume) (string, error) {
	affinity := pv.Spec.NodeAffinity
	if affinity != nil && affinity.Required != nil && len(affinity.Required.NodeSelectorTerms) == 1 {
		for _, e := range affinity.Required.NodeSelectorTerms[0].MatchExpressions {
			if e.Key == diskv1alpha1.LabelNode && e.Operator == corev1.NodeSelectorOpIn && len(e.Values) == 1 {
				return e.Values[0], nil
			}
		}
	}
	return "", fmt.Errorf("its node affinity does not name one node by label %s", diskv1alpha1.LabelNode)
}

// IsFor reports whether the PersistentVolume was made for the claim.
func IsFor(pv *corev1.PersistentVolume, pvc *corev1.PersistentVolumeClaim) bool {
	ref := pv.Spec.ClaimRef
	return ref != nil && ref.UID == pvc.UID && ref.Namespace == pvc.Namespace && ref.Name == pvc.Name
}

// Has reports whether the PersistentVolume is that of the claim. A reservation for a claim may not name its UID yet.
func Has(pv *corev1.PersistentVolume, pvc *corev1.PersistentVolumeClaim) bool {
	if IsFor(pv, pvc) {
		return true
	}
	ref := pv.Spec.ClaimRef
	return ref != nil && ref.UID == "" && ref.Namespace == pvc.Namespace && ref.Name == pvc.Name && pvc.Spec.VolumeName == pv.Name
}

// Owner is namespace/name of the volume's claim, for messages. It is empty if the volume has none.
func Owner(pv *corev1.PersistentVolume) string {
	if ref := pv.Spec.ClaimRef; ref != nil {
		return ref.Namespace + "/" + ref.Name
	}
	return ""
}

// Same reports whether two PersistentVolumes describe the same volume at the same place.
func Same(a, b *corev1.PersistentVolume) bool {
	return IsOurs(a) && IsOurs(b) && a.Spec.CSI.VolumeHandle == b.Spec.CSI.VolumeHandle &&
		maps.Equal(a.Spec.CSI.VolumeAttributes, b.Spec.CSI.VolumeAttributes)
}
