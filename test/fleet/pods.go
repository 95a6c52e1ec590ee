package fleet

import (
	"fmt"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

// Profile is the schedulerName of pods with disks.
const Profile = "berth"

// PlainPod is a pod without volumes for a profile.
func PlainPod(profile string) *corev1.Pod {
	return &corev1.Pod{Spec: corev1.PodSpec{
		SchedulerName: profile,
		Containers: []corev1.Container{{
			Name: "main", Image: "pause",
			Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
				corev1.ResourceCPU:    resource.MustParse("100m"),
				corev1.ResourceMemory: resource.MustParse("128Mi"),
			}},
		}},
	}}
}

// DiskPod is a pod with an inline volume for each size in bytes.
func DiskPod(sizes ...int64) *corev1.Pod {
	pod := PlainPod(Profile)
	for i, size := range sizes {
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{
			Name: fmt.Sprintf("data%d", i),
			VolumeSource: corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{
				Driver: diskv1alpha1.DriverName,
				VolumeAttributes: map[string]string{
					diskv1alpha1.AttributeSize:  strconv.FormatInt(size, 10),
					diskv1alpha1.AttributeClass: Class,
				},
			}},
		})
	}
	return pod
}

// ClaimPod is a pod with one claim.
func ClaimPod(profile, claim string) *corev1.Pod {
	pod := PlainPod(profile)
	pod.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{
		PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim},
	}}}
	return pod
}

// Claim is a claim of 10 GiB of a StorageClass.
func Claim(namespace, name, class string) *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, StorageClassName: &class,
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("10Gi")}},
		},
	}
}
