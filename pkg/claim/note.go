package claim

import (
	"encoding/json"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

// Note is written on the disk beside a volume, so that its PersistentVolume can be written again after the cluster has
// lost it.
//
// The disk may be of any origin, so ReadNote checks the form of every field.
type Note struct {
	// Namespace and Claim name the claim that the volume was made for.
	Namespace string `json:"namespace,omitempty"`
	Claim     string `json:"claim,omitempty"`
	// StorageClass and DiskClass are the names of its classes.
	StorageClass string `json:"storageClass,omitempty"`
	DiskClass    string `json:"diskClass,omitempty"`
	// AccessModes are those of the PersistentVolume.
	AccessModes []corev1.PersistentVolumeAccessMode `json:"accessModes,omitempty"`
	// ReclaimPolicy is the one that the volume was made with.
	ReclaimPolicy corev1.PersistentVolumeReclaimPolicy `json:"reclaimPolicy,omitempty"`
}

// NoteOf is the note of a PersistentVolume of ours.
func NoteOf(pv *corev1.PersistentVolume, v Volume) Note {
	n := Note{
		StorageClass: pv.Spec.StorageClassName, DiskClass: v.Class,
		AccessModes: pv.Spec.AccessModes, ReclaimPolicy: pv.Spec.PersistentVolumeReclaimPolicy,
	}
	if ref := pv.Spec.ClaimRef; ref != nil {
		n.Namespace, n.Claim = ref.Namespace, ref.Name
	}
	return n
}

// Encode writes the note. With the longest possible names it has less than 994 bytes, for which the disk has room.
func (n Note) Encode() (string, error) {
	out, err := json.Marshal(n)
	return string(out), err
}

// ReadNote reads a note. For any text, it returns a valid note or an error.
func ReadNote(text string) (Note, error) {
	var n Note
	if err := json.Unmarshal([]byte(text), &n); err != nil {
		return Note{}, fmt.Errorf("the volume's note is not one: %w", err)
	}
	for _, name := range []string{n.Namespace, n.Claim, n.StorageClass, n.DiskClass} {
		if name != "" && len(validation.IsDNS1123Subdomain(name)) > 0 {
			return Note{}, fmt.Errorf("the volume's note has a name %.64q, which is not one", name)
		}
	}
	if (n.Namespace == "") != (n.Claim == "") {
		return Note{}, fmt.Errorf("the volume's note names a claim by half: %.64q in namespace %.64q", n.Claim, n.Namespace)
	}
	for _, mode := range n.AccessModes {
		switch mode {
		case corev1.ReadWriteOnce, corev1.ReadWriteOncePod:
		default:
			return Note{}, fmt.Errorf("the volume's note has the access mode %.64q", mode)
		}
	}
	switch n.ReclaimPolicy {
	case "", corev1.PersistentVolumeReclaimDelete, corev1.PersistentVolumeReclaimRetain:
	default:
		return Note{}, fmt.Errorf("the volume's note has the reclaim policy %.64q", n.ReclaimPolicy)
	}
	return n, nil
}

// Apply writes the note into a PersistentVolume that is made again. The volume is bound beforehand to the claim of that
// name, whichever UID it has: a StatefulSet that is made again finds its data.
func (n Note) Apply(pv *corev1.PersistentVolume) {
	if n.Claim != "" {
		pv.Spec.ClaimRef = &corev1.ObjectReference{
			APIVersion: corev1.SchemeGroupVersion.String(), Kind: "PersistentVolumeClaim", Namespace: n.Namespace, Name: n.Claim,
		}
	}
	if n.StorageClass != "" {
		pv.Spec.StorageClassName = n.StorageClass
	}
	if n.DiskClass != "" && pv.Spec.CSI != nil {
		pv.Spec.CSI.VolumeAttributes[diskv1alpha1.AttributeClass] = n.DiskClass
	}
	if len(n.AccessModes) > 0 {
		pv.Spec.AccessModes = n.AccessModes
	}
}
