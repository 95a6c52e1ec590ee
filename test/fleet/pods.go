package fleet

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/berthdev/berth/test/objects"
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
		pod.Spec.Volumes = append(pod.Spec.Volumes, objects.InlineVolume(fmt.Sprintf("data%d", i), Class, objects.Bytes(size)))
	}
	return pod
}

// ClaimPod is a pod with one claim.
func ClaimPod(profile, claim string) *corev1.Pod {
	pod := PlainPod(profile)
	pod.Spec.Volumes = []corev1.Volume{objects.ClaimVolume("data", claim)}
	return pod
}

// Claim is a claim of 10 GiB of a StorageClass.
func Claim(namespace, name, class string) *corev1.PersistentVolumeClaim {
	return objects.Claim(namespace, name, class, "10Gi")
}
