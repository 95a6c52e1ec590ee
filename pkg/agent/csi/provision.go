package csi

import (
	"context"
	"slices"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/volumes"
	"github.com/berthdev/berth/pkg/claim"
)

// defaultSize is the size of a volume whose request names none.
const defaultSize = 1 << 30

// maxName is the longest name that CSI allows.
const maxName = 128

// CreateVolume makes a volume on this node, or finds the existing one.
func (c *Controller) CreateVolume(ctx context.Context, r *csispec.CreateVolumeRequest) (*csispec.CreateVolumeResponse, error) {
	request, err := c.requestOf(r)
	if err != nil {
		return nil, err
	}
	v, err := c.provisioner.CreateVolume(ctx, request)
	if err != nil {
		return nil, statusOf(err)
	}
	return &csispec.CreateVolumeResponse{Volume: c.describe(v)}, nil
}

// requestOf reads the request. The error has a code.
func (c *Controller) requestOf(r *csispec.CreateVolumeRequest) (volumes.VolumeRequest, error) {
	var request volumes.VolumeRequest
	switch {
	case r.Name == "":
		return request, invalid("name is missing")
	case len(r.Name) > maxName:
		return request, invalid("name has %d bytes, %d are allowed", len(r.Name), maxName)
	case r.VolumeContentSource != nil:
		return request, invalid("volume_content_source is set: %s makes neither clones nor restores snapshots", diskv1alpha1.DriverName)
	case len(r.MutableParameters) > 0:
		return request, invalid("mutable_parameters is set: volumes of %s have none", diskv1alpha1.DriverName)
	}
	a, err := accessesOf(r.VolumeCapabilities)
	if err != nil {
		return request, invalid("%v", err)
	}
	p, err := parametersOf(r.Parameters, a)
	if err != nil {
		return request, invalid("parameters: %v", err)
	}
	size, err := sizesOf(r.CapacityRange)
	if err != nil {
		return request, err
	}
	if size.required == 0 {
		size.required = defaultSize
		if size.limit > 0 {
			size.required = min(defaultSize, size.limit/diskv1alpha1.Alignment*diskv1alpha1.Alignment)
		}
	}
	if err := diskv1alpha1.ValidateFSSize(p.FSType, size.required); err != nil {
		return request, status.Errorf(codes.OutOfRange, "capacity_range: %v", err)
	}
	if size.required == 0 {
		return request, status.Errorf(codes.OutOfRange, "capacity_range: limit_bytes is %d, the smallest volume has %d", size.limit, diskv1alpha1.Alignment)
	}
	if !c.mayBeHere(r.AccessibilityRequirements) {
		return request, status.Errorf(codes.ResourceExhausted, "accessibility_requirements leaves out node %s, the only one whose disks this agent has", c.node)
	}
	note, err := noteOf(r, p.Class)
	if err != nil {
		return request, invalid("parameters: %v", err)
	}
	return volumes.VolumeRequest{
		ID: diskv1alpha1.NamedVolumeID(r.Name), Class: p.Class, FSType: p.FSType,
		Size: size.required, Limit: size.limit, Block: a.block, Apart: p.Spread, Note: note,
	}, nil
}

// noteOf is the note about the claim for which the call makes the volume. With it the volume can be bound to its claim
// again if the cluster loses the PersistentVolume.
func noteOf(r *csispec.CreateVolumeRequest, class string) (claim.Note, error) {
	n := claim.Note{Namespace: r.Parameters[metadataNamespace], Claim: r.Parameters[metadataClaim], DiskClass: class}
	for _, c := range r.VolumeCapabilities {
		mode := corev1.ReadWriteOnce
		if c.GetAccessMode().GetMode() == csispec.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER {
			mode = corev1.ReadWriteOncePod
		}
		if !slices.Contains(n.AccessModes, mode) {
			n.AccessModes = append(n.AccessModes, mode)
		}
	}
	text, err := n.Encode()
	if err != nil {
		return n, err
	}
	// A note that ReadNote refuses would be useless.
	return claim.ReadNote(text)
}

// mayBeHere reports whether the requirement allows this node.
func (c *Controller) mayBeHere(t *csispec.TopologyRequirement) bool {
	if len(t.GetRequisite()) == 0 {
		return true
	}
	for _, one := range t.Requisite {
		if c.isHere(one) {
			return true
		}
	}
	return false
}

// DeleteVolume wipes a volume. One that does not exist counts as deleted.
func (c *Controller) DeleteVolume(ctx context.Context, r *csispec.DeleteVolumeRequest) (*csispec.DeleteVolumeResponse, error) {
	if r.VolumeId == "" {
		return nil, invalid("volume_id is missing")
	}
	if _, ours := diskv1alpha1.VolumeUUID(r.VolumeId); ours {
		if err := c.provisioner.DeleteVolume(ctx, r.VolumeId); err != nil {
			return nil, statusOf(err)
		}
	}
	return &csispec.DeleteVolumeResponse{}, nil
}

// ControllerExpandVolume makes a volume larger. Its file system grows where it is mounted.
func (c *Controller) ControllerExpandVolume(ctx context.Context, r *csispec.ControllerExpandVolumeRequest) (*csispec.ControllerExpandVolumeResponse, error) {
	if r.VolumeId == "" {
		return nil, invalid("volume_id is missing")
	}
	if r.CapacityRange == nil {
		return nil, invalid("capacity_range is missing")
	}
	size, err := expansionOf(r.VolumeCapability, r.CapacityRange)
	if err != nil {
		return nil, err
	}
	v, err := c.find(r.VolumeId)
	if err != nil {
		return nil, err
	}
	switch {
	case size.limit > 0 && size.limit < v.Size:
		return nil, status.Errorf(codes.OutOfRange, "capacity_range: limit_bytes is %d, volume %s has %d, and volumes never shrink", size.limit, v.ID, v.Size)
	case size.required > v.Size:
		if v, err = c.provisioner.GrowVolume(ctx, r.VolumeId, size.required, size.limit); err != nil {
			return nil, statusOf(err)
		}
	}
	return &csispec.ControllerExpandVolumeResponse{CapacityBytes: v.Size, NodeExpansionRequired: !v.Block}, nil
}
