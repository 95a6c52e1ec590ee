package objects

import (
	"maps"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	corev1 "k8s.io/api/core/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

// PublishRequest is the kubelet's request to mount a pod's inline volume on the target.
func PublishRequest(pod *corev1.Pod, volume, target string) *csispec.NodePublishVolumeRequest {
	request := &csispec.NodePublishVolumeRequest{
		VolumeId:   diskv1alpha1.InlineVolumeID(pod.UID, volume),
		TargetPath: target,
		VolumeCapability: &csispec.VolumeCapability{
			AccessType: &csispec.VolumeCapability_Mount{Mount: &csispec.VolumeCapability_MountVolume{}},
			AccessMode: &csispec.VolumeCapability_AccessMode{Mode: csispec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		},
		VolumeContext: map[string]string{
			"csi.storage.k8s.io/ephemeral":           "true",
			"csi.storage.k8s.io/pod.namespace":       pod.Namespace,
			"csi.storage.k8s.io/pod.name":            pod.Name,
			"csi.storage.k8s.io/pod.uid":             string(pod.UID),
			"csi.storage.k8s.io/serviceAccount.name": "default",
		},
	}
	for _, v := range pod.Spec.Volumes {
		if v.Name == volume {
			maps.Copy(request.VolumeContext, v.CSI.VolumeAttributes)
		}
	}
	return request
}
