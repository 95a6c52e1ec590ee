// Package objects makes the Kubernetes objects of Berth that tests and their programs need: volumes of pods, claims,
// classes, and what a kubelet registers. Sizes are quantities, such as 2Gi.
package objects

import (
	"strconv"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

// GiB is the quantity of so many GiB.
func GiB(count int64) string { return strconv.FormatInt(count, 10) + "Gi" }

// Bytes is the quantity of so many bytes.
func Bytes(count int64) string { return strconv.FormatInt(count, 10) }

// InlineVolume is a volume of a pod, on the disks of a DiskClass.
func InlineVolume(name, class, size string) corev1.Volume {
	return corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{
		Driver:           diskv1alpha1.DriverName,
		VolumeAttributes: map[string]string{diskv1alpha1.AttributeSize: size, diskv1alpha1.AttributeClass: class},
	}}}
}

// ClaimVolume is a volume of a pod that uses a claim.
func ClaimVolume(name, claim string) corev1.Volume {
	return corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{
		PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim},
	}}
}

// EphemeralVolume is a generic ephemeral volume of a pod, of a StorageClass.
func EphemeralVolume(name, class, size string) corev1.Volume {
	return corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{
		VolumeClaimTemplate: &corev1.PersistentVolumeClaimTemplate{Spec: ClaimSpec(class, size)},
	}}}
}

// Claim is a claim of a StorageClass.
func Claim(namespace, name, class, size string) *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: ClaimSpec(class, size),
	}
}

// ClaimSpec is the specification of a claim of a StorageClass.
func ClaimSpec(class, size string) corev1.PersistentVolumeClaimSpec {
	return corev1.PersistentVolumeClaimSpec{
		StorageClassName: &class, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
		Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}},
	}
}

// StorageClass is a StorageClass of Berth, for a DiskClass. Its claims wait for their first consumer.
func StorageClass(name, class string) *storagev1.StorageClass {
	return &storagev1.StorageClass{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Provisioner: diskv1alpha1.DriverName,
		VolumeBindingMode: ptr.To(storagev1.VolumeBindingWaitForFirstConsumer),
		Parameters:        map[string]string{diskv1alpha1.AttributeClass: class},
	}
}

// DiskClass is a DiskClass that the scheduler needs to exist. It selects all devices of 1 GiB or more.
func DiskClass(name string) *diskv1alpha1.DiskClass {
	return &diskv1alpha1.DiskClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: diskv1alpha1.DiskClassSpec{
		Devices: diskv1alpha1.DeviceSelector{MinSize: ptr.To(resource.MustParse("1Gi"))},
	}}
}

// CSINode is what a node's kubelet writes of the drivers that have registered with it.
func CSINode(name string, drivers ...string) *storagev1.CSINode {
	// The API server refuses null.
	c := &storagev1.CSINode{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: storagev1.CSINodeSpec{Drivers: []storagev1.CSINodeDriver{}}}
	for _, d := range drivers {
		c.Spec.Drivers = append(c.Spec.Drivers, storagev1.CSINodeDriver{Name: d, NodeID: name})
	}
	return c
}
