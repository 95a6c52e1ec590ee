package csi

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/volumes"
)

// Provisioner makes, grows and wipes persistent volumes on the node's own disks.
type Provisioner interface {
	CreateVolume(ctx context.Context, r volumes.VolumeRequest) (volumes.Volume, error)
	GrowVolume(ctx context.Context, volumeID string, size, limit int64) (volumes.Volume, error)
	DeleteVolume(ctx context.Context, volumeID string) error
}

// Disks lists what is on the node's disks.
type Disks interface {
	Finder
	ListVolumes() []volumes.Volume
	Capacity(class string) (free, largest int64)
}

// Controller is the CSI Controller service for the volumes of one node, for the upstream sidecars that run beside the
// agent. Berth's own scheduler does not need it.
type Controller struct {
	csispec.UnimplementedControllerServer

	node        string
	provisioner Provisioner
	disks       Disks
}

// NewController returns the service of the named node.
func NewController(node string, p Provisioner, d Disks) *Controller {
	return &Controller{node: node, provisioner: p, disks: d}
}

// ControllerGetCapabilities names the optional calls that are served.
func (c *Controller) ControllerGetCapabilities(context.Context, *csispec.ControllerGetCapabilitiesRequest) (*csispec.ControllerGetCapabilitiesResponse, error) {
	response := &csispec.ControllerGetCapabilitiesResponse{}
	for _, capability := range []csispec.ControllerServiceCapability_RPC_Type{
		csispec.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME,
		csispec.ControllerServiceCapability_RPC_LIST_VOLUMES,
		csispec.ControllerServiceCapability_RPC_GET_CAPACITY,
		csispec.ControllerServiceCapability_RPC_EXPAND_VOLUME,
		csispec.ControllerServiceCapability_RPC_GET_VOLUME,
		csispec.ControllerServiceCapability_RPC_VOLUME_CONDITION,
		csispec.ControllerServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	} {
		response.Capabilities = append(response.Capabilities, &csispec.ControllerServiceCapability{
			Type: &csispec.ControllerServiceCapability_Rpc{Rpc: &csispec.ControllerServiceCapability_RPC{Type: capability}},
		})
	}
	return response, nil
}

// describe is the volume as CSI describes it. Its VolumeContext becomes part of the PersistentVolume, from which
// package claim reads the disk and the extent.
func (c *Controller) describe(v volumes.Volume) *csispec.Volume {
	place := diskv1alpha1.Place{Disk: v.Disk, Extent: diskv1alpha1.Extent{Start: v.Start, Length: v.Size}}
	attributes := place.Attributes()
	attributes[diskv1alpha1.AttributeClass] = v.Class
	return &csispec.Volume{
		VolumeId: v.ID, CapacityBytes: v.Size, VolumeContext: attributes,
		AccessibleTopology: []*csispec.Topology{topologyOf(c.node)},
	}
}

// ControllerGetVolume describes a volume.
func (c *Controller) ControllerGetVolume(_ context.Context, r *csispec.ControllerGetVolumeRequest) (*csispec.ControllerGetVolumeResponse, error) {
	v, err := c.find(r.VolumeId)
	if err != nil {
		return nil, err
	}
	return &csispec.ControllerGetVolumeResponse{
		Volume: c.describe(v), Status: &csispec.ControllerGetVolumeResponse_VolumeStatus{VolumeCondition: diskCondition(v)},
	}, nil
}

// find returns the volume with that ID, or an error with a code.
func (c *Controller) find(volumeID string) (volumes.Volume, error) {
	if volumeID == "" {
		return volumes.Volume{}, invalid("volume_id is missing")
	}
	v, found := c.disks.Lookup(volumeID)
	if !found {
		return v, errNotOnNode(volumeID)
	}
	return v, nil
}

// ListVolumes lists the volumes by ID. A token is the last ID of a page. So pages neither repeat nor skip a volume when
// others are made or deleted between them.
func (c *Controller) ListVolumes(_ context.Context, r *csispec.ListVolumesRequest) (*csispec.ListVolumesResponse, error) {
	if r.MaxEntries < 0 {
		return nil, invalid("max_entries is %d", r.MaxEntries)
	}
	if r.StartingToken != "" {
		if _, ok := diskv1alpha1.VolumeUUID(r.StartingToken); !ok {
			return nil, status.Errorf(codes.Aborted, "starting_token %.64q is not one that ListVolumes has returned: list again without it", r.StartingToken)
		}
	}
	all := slices.DeleteFunc(c.disks.ListVolumes(), func(v volumes.Volume) bool { return v.ID <= r.StartingToken })
	slices.SortFunc(all, func(a, b volumes.Volume) int { return cmp.Compare(a.ID, b.ID) })
	response := &csispec.ListVolumesResponse{}
	if limit := int(r.MaxEntries); limit > 0 && limit < len(all) {
		all = all[:limit]
		response.NextToken = all[limit-1].ID
	}
	for _, v := range all {
		response.Entries = append(response.Entries, &csispec.ListVolumesResponse_Entry{
			Volume: c.describe(v), Status: &csispec.ListVolumesResponse_VolumeStatus{VolumeCondition: diskCondition(v)},
		})
	}
	return response, nil
}

// GetCapacity returns how much is free in a class. The call has the parameters of a StorageClass. Without parameters it
// is about the whole node.
func (c *Controller) GetCapacity(_ context.Context, r *csispec.GetCapacityRequest) (*csispec.GetCapacityResponse, error) {
	var a access
	var err error
	if len(r.VolumeCapabilities) > 0 {
		if a, err = accessesOf(r.VolumeCapabilities); err != nil {
			return nil, invalid("%v", err)
		}
	}
	p, err := parametersOf(r.Parameters, a)
	// Without parameters the error is only that the class is missing.
	if err != nil && len(r.Parameters) > 0 {
		return nil, invalid("%v", err)
	}
	smallest := diskv1alpha1.Alignment
	if p.FSType == diskv1alpha1.FSTypeXFS {
		smallest = diskv1alpha1.MinSizeXFS
	}
	response := &csispec.GetCapacityResponse{MinimumVolumeSize: wrapperspb.Int64(smallest), MaximumVolumeSize: wrapperspb.Int64(0)}
	if t := r.AccessibleTopology; t != nil && !c.isHere(t) {
		return response, nil
	}
	free, largest := c.disks.Capacity(p.Class)
	response.AvailableCapacity, response.MaximumVolumeSize.Value = free, largest
	return response, nil
}

// isHere reports whether the node is in a topology.
func (c *Controller) isHere(t *csispec.Topology) bool {
	here := topologyOf(c.node).Segments
	for key, value := range t.GetSegments() {
		if here[key] != value {
			return false
		}
	}
	return true
}

// metadataPrefixes are the prefixes of the parameters that the upstream sidecars add with --extra-create-metadata.
var metadataPrefixes = []string{"csi.storage.k8s.io/pvc/", "csi.storage.k8s.io/pv/"}

// Parameters of the sidecars that name the claim.
const (
	metadataClaim     = "csi.storage.k8s.io/pvc/name"
	metadataNamespace = "csi.storage.k8s.io/pvc/namespace"
)

// parametersOf reads the parameters of a StorageClass, without those that sidecars add. The file system type may be in
// the parameters, in the capability, or in both if they agree.
func parametersOf(parameters map[string]string, a access) (diskv1alpha1.Parameters, error) {
	own := maps.Clone(parameters)
	maps.DeleteFunc(own, func(key, _ string) bool {
		return slices.ContainsFunc(metadataPrefixes, func(prefix string) bool { return strings.HasPrefix(key, prefix) })
	})
	p, err := diskv1alpha1.ParseParameters(own)
	switch {
	case err != nil:
		return p, err
	case a.block:
		p.FSType = ""
	case a.fsType != "" && p.FSType != "" && a.fsType != p.FSType:
		return p, errWithCode(codes.InvalidArgument, "parameter %s is %s, but the volume capability says %s", diskv1alpha1.ParameterFSType, p.FSType, a.fsType)
	case a.fsType != "":
		p.FSType = a.fsType
	}
	return p, nil
}

// ValidateVolumeCapabilities returns whether a volume can be used with the capabilities.
func (c *Controller) ValidateVolumeCapabilities(_ context.Context, r *csispec.ValidateVolumeCapabilitiesRequest) (*csispec.ValidateVolumeCapabilitiesResponse, error) {
	if r.VolumeId == "" {
		return nil, invalid("volume_id is missing")
	}
	if len(r.VolumeCapabilities) == 0 {
		return nil, invalid("volume_capabilities is missing")
	}
	v, err := c.find(r.VolumeId)
	if err != nil {
		return nil, err
	}
	if why := whyIncompatible(v, r.VolumeCapabilities); why != "" {
		return &csispec.ValidateVolumeCapabilitiesResponse{Message: why}, nil
	}
	return &csispec.ValidateVolumeCapabilitiesResponse{Confirmed: &csispec.ValidateVolumeCapabilitiesResponse_Confirmed{
		VolumeContext: r.VolumeContext, VolumeCapabilities: r.VolumeCapabilities, Parameters: r.Parameters,
	}}, nil
}

// whyIncompatible says why a volume cannot be used with the capabilities. It is empty if it can.
func whyIncompatible(v volumes.Volume, capabilities []*csispec.VolumeCapability) string {
	a, err := accessesOf(capabilities)
	switch {
	case err != nil:
		return err.Error()
	case a.block != v.Block:
		return "the volume has " + modeOf(v.Block)
	}
	return ""
}
