package claim

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

// Classes finds a StorageClass by its name, as client-go's lister does.
type Classes interface {
	Get(name string) (*storagev1.StorageClass, error)
}

// ClassName is the name of the claim's StorageClass. The annotation from before Kubernetes 1.6 takes precedence, as in
// every part of Kubernetes.
func ClassName(pvc *corev1.PersistentVolumeClaim) string {
	if name, ok := pvc.Annotations[corev1.BetaStorageClassAnnotation]; ok {
		return name
	}
	if pvc.Spec.StorageClassName != nil {
		return *pvc.Spec.StorageClassName
	}
	return ""
}

// ClassOf is the claim's StorageClass, of any driver.
func ClassOf(classes Classes, pvc *corev1.PersistentVolumeClaim) (*storagev1.StorageClass, error) {
	name := ClassName(pvc)
	if name == "" {
		return nil, fmt.Errorf("claim %s/%s has no StorageClass", pvc.Namespace, pvc.Name)
	}
	return classes.Get(name)
}

// OurClass is the claim's StorageClass if it is of our driver, else nil.
func OurClass(classes Classes, pvc *corev1.PersistentVolumeClaim) *storagev1.StorageClass {
	class, err := ClassOf(classes, pvc)
	if err != nil || class.Provisioner != diskv1alpha1.DriverName {
		return nil
	}
	return class
}

// WaitsForFirstConsumer reports whether claims of the class wait for their pod to have a node.
func WaitsForFirstConsumer(class *storagev1.StorageClass) bool {
	return class.VolumeBindingMode != nil && *class.VolumeBindingMode == storagev1.VolumeBindingWaitForFirstConsumer
}
