// Package request reads what a pod requests of Berth: which volumes are ours, how large they must be and on which class
// of disk. The scheduler and the node's agent both read pods with it. So they never disagree about a volume.
package request

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/placement"
)

// Volume is a requested volume: inline in a pod, or of a claim (see package claim).
type Volume struct {
	// Name of the volume in the pod; empty for one of a claim.
	Name string
	// Claim is namespace/name of the claim; empty for an inline volume.
	Claim string
	// ID is the CSI volume ID that the kubelet will use.
	ID string
	// Partition is the GUID of the partition that holds the volume.
	Partition string
	// FSType is the requested file system: ext4, xfs, or empty for the class's default.
	FSType string
	// Block is true for a raw block volume, which has no file system.
	Block bool
	// Headroom is how many bytes must be free behind the volume when it is placed.
	Headroom int64
	// Request is what placement needs to know. Its Policy is not set here: it is the class's, see PolicyOf.
	Request placement.Request
}

// PolicyOf is the policy of a class. An empty policy, and one that this release does not know, is BestFit.
func PolicyOf(policy diskv1alpha1.PlacementPolicy) placement.Policy {
	if policy == diskv1alpha1.PlaceSpread {
		return placement.Spread
	}
	return placement.BestFit
}

// FromPod returns the pod's inline volumes of our driver, in the order of its spec, and no error for a pod without any.
// The error names the volume and what to change. One bad volume makes the pod's whole request bad.
func FromPod(pod *corev1.Pod) ([]Volume, error) {
	var volumes []Volume
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if v.CSI == nil || v.CSI.Driver != diskv1alpha1.DriverName {
			continue
		}
		volume, err := fromInline(pod, v.Name, v.CSI)
		if err != nil {
			return nil, fmt.Errorf("volume %q: %w", v.Name, err)
		}
		volumes = append(volumes, volume)
	}
	if len(volumes) > diskv1alpha1.MaxVolumes {
		return nil, fmt.Errorf("the pod has %d volumes of %s, at most %d are possible", len(volumes), diskv1alpha1.DriverName, diskv1alpha1.MaxVolumes)
	}
	return volumes, nil
}

// fromInline reads one inline volume of the pod.
func fromInline(pod *corev1.Pod, name string, source *corev1.CSIVolumeSource) (Volume, error) {
	attributes, err := diskv1alpha1.ParseAttributes(source.VolumeAttributes)
	if err != nil {
		return Volume{}, err
	}
	var fsType string
	if source.FSType != nil {
		fsType = *source.FSType
	}
	if err := diskv1alpha1.ValidateFSType(fsType); err != nil {
		return Volume{}, err
	}
	if err := diskv1alpha1.ValidateFSSize(fsType, attributes.Size); err != nil {
		return Volume{}, err
	}
	if source.ReadOnly != nil && *source.ReadOnly {
		return Volume{}, fmt.Errorf("readOnly is set, but an inline volume starts empty and could never be written")
	}
	id := diskv1alpha1.InlineVolumeID(pod.UID, name)
	return Volume{
		Name:      name,
		ID:        id,
		Partition: diskv1alpha1.PartitionID(id),
		FSType:    fsType,
		Request:   placement.Request{Class: attributes.Class, Size: attributes.Size, Apart: attributes.Spread},
	}, nil
}
