// Package claim reads what a PersistentVolumeClaim requests of Berth, and writes and reads its PersistentVolume, which
// is the reservation. The scheduler writes it and the node's agent reads it. Both use this package, so that they never
// disagree about a volume.
//
// It does not talk to the API server, and knows nothing of disks.
package claim

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/component-helpers/storage/ephemeral"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/placement"
	"github.com/berthdev/berth/pkg/request"
)

// Request returns what a claim of a StorageClass of ours requests. The error names what to change: in the claim, most
// of which is immutable, or in its class.
func Request(pvc *corev1.PersistentVolumeClaim, class *storagev1.StorageClass) (request.Volume, error) {
	parameters, err := diskv1alpha1.ParseParameters(class.Parameters)
	if err != nil {
		return request.Volume{}, fmt.Errorf("StorageClass %s: %w", class.Name, err)
	}
	size, err := validate(pvc)
	if err != nil {
		return request.Volume{}, err
	}
	block := IsBlock(pvc.Spec.VolumeMode)
	var notMade error
	if selects(pvc) {
		notMade = &NotProvisionedError{"selector is set: it selects existing volumes, and none is made for it; leave it out, or release a volume with these labels"}
	} else if !block {
		if err := diskv1alpha1.ValidateFSSize(parameters.FSType, size); err != nil {
			notMade = &NotProvisionedError{err.Error()}
		}
	}
	id := diskv1alpha1.ClaimVolumeID(pvc.UID)
	v := request.Volume{
		ID: id, Partition: diskv1alpha1.PartitionID(id), Claim: pvc.Namespace + "/" + pvc.Name, Block: block,
		Request:  placement.Request{Class: parameters.Class, Size: size, Apart: parameters.Spread},
		Headroom: parameters.Headroom(size),
	}
	if !block {
		v.FSType = parameters.FSType
	}
	return v, notMade
}

// NotProvisionedError is the error of a claim that no volume is made for. Such a claim can be bound to an existing
// volume that no other claim has, so Request returns the volume with it.
type NotProvisionedError struct{ reason string }

func (e *NotProvisionedError) Error() string { return e.reason }

// selects reports whether the claim selects existing volumes. An empty selector, as charts and operators write it,
// selects none.
func selects(pvc *corev1.PersistentVolumeClaim) bool {
	selector := pvc.Spec.Selector
	return selector != nil && len(selector.MatchLabels)+len(selector.MatchExpressions) > 0
}

// validate refuses claims that no disk of one node can satisfy, and returns the size.
func validate(pvc *corev1.PersistentVolumeClaim) (int64, error) {
	spec := &pvc.Spec
	for _, mode := range spec.AccessModes {
		switch mode {
		case corev1.ReadWriteOnce, corev1.ReadWriteOncePod:
		default:
			return 0, fmt.Errorf("access mode %s is not possible, the volume is on a disk of one node: use %s or %s", mode, corev1.ReadWriteOnce, corev1.ReadWriteOncePod)
		}
	}
	switch {
	case spec.DataSource != nil, spec.DataSourceRef != nil:
		return 0, fmt.Errorf("dataSource is set: %s makes neither clones nor restores snapshots, leave it out", diskv1alpha1.DriverName)
	case spec.VolumeAttributesClassName != nil && *spec.VolumeAttributesClassName != "":
		return 0, fmt.Errorf("volumeAttributesClassName is set: volumes of %s have no attributes to change, leave it out", diskv1alpha1.DriverName)
	}
	quantity := spec.Resources.Requests[corev1.ResourceStorage]
	if quantity.Sign() <= 0 || quantity.CmpInt64(diskv1alpha1.MaxVolumeSize) > 0 {
		return 0, fmt.Errorf("resources.requests.storage is %s: it must be larger than zero, and no disk is larger than %d bytes", quantity.String(), diskv1alpha1.MaxVolumeSize)
	}
	return diskv1alpha1.AlignUp(quantity.Value()), nil
}

// Annotations of a claim in which kube-controller-manager writes the driver that makes its volume.
const (
	annotationProvisioner     = "volume.kubernetes.io/storage-provisioner"
	annotationBetaProvisioner = "volume.beta.kubernetes.io/storage-provisioner"
)

// IsProvisioned reports whether the volume of the claim was made for it, by Berth: it is named after the claim, and the
// claim names no other driver. Other drivers name their volumes like that, too, and the claim then names the driver.
// The policy claims.disk.berth.dev requires the same of a claim that the scheduler deletes.
func IsProvisioned(pvc *corev1.PersistentVolumeClaim) bool {
	for _, annotation := range []string{annotationProvisioner, annotationBetaProvisioner} {
		if driver, known := pvc.Annotations[annotation]; known && driver != diskv1alpha1.DriverName {
			return false
		}
	}
	return pvc.UID != "" && pvc.Spec.VolumeName == diskv1alpha1.ClaimVolumeID(pvc.UID)
}

// IsBlock reports whether the mode is that of a raw block volume.
func IsBlock(mode *corev1.PersistentVolumeMode) bool {
	return mode != nil && *mode == corev1.PersistentVolumeBlock
}

// NameIn returns the name of the claim that a volume of a pod refers to; empty if it refers to none.
func NameIn(pod *corev1.Pod, v *corev1.Volume) string {
	switch {
	case v.PersistentVolumeClaim != nil:
		return v.PersistentVolumeClaim.ClaimName
	case v.Ephemeral != nil:
		return ephemeral.VolumeClaimName(pod, v)
	}
	return ""
}
