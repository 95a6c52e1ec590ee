package csi

import (
	"context"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"k8s.io/component-base/version"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

// identity is the CSI Identity service.
type identity struct {
	csispec.UnimplementedIdentityServer
}

// GetPluginInfo names the driver and its version.
func (identity) GetPluginInfo(context.Context, *csispec.GetPluginInfoRequest) (*csispec.GetPluginInfoResponse, error) {
	return &csispec.GetPluginInfoResponse{Name: diskv1alpha1.DriverName, VendorVersion: version.Get().GitVersion}, nil
}

// GetPluginCapabilities names the services and properties beside the node service.
func (identity) GetPluginCapabilities(context.Context, *csispec.GetPluginCapabilitiesRequest) (*csispec.GetPluginCapabilitiesResponse, error) {
	service := func(s csispec.PluginCapability_Service_Type) *csispec.PluginCapability {
		return &csispec.PluginCapability{Type: &csispec.PluginCapability_Service_{Service: &csispec.PluginCapability_Service{Type: s}}}
	}
	return &csispec.GetPluginCapabilitiesResponse{Capabilities: []*csispec.PluginCapability{
		service(csispec.PluginCapability_Service_CONTROLLER_SERVICE),
		service(csispec.PluginCapability_Service_VOLUME_ACCESSIBILITY_CONSTRAINTS),
		{Type: &csispec.PluginCapability_VolumeExpansion_{VolumeExpansion: &csispec.PluginCapability_VolumeExpansion{
			Type: csispec.PluginCapability_VolumeExpansion_ONLINE,
		}}},
	}}, nil
}

// Probe returns ready: the socket is served only after the disks have been scanned.
func (identity) Probe(context.Context, *csispec.ProbeRequest) (*csispec.ProbeResponse, error) {
	return &csispec.ProbeResponse{}, nil
}
