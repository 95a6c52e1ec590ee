package csi

import (
	"context"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"k8s.io/component-base/version"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

type identity struct {
	csispec.UnimplementedIdentityServer
}

func (identity) GetPluginInfo(context.Context, *csispec.GetPluginInfoRequest) (*csispec.GetPluginInfoResponse, error) {
	return &csispec.GetPluginInfoResponse{Name: diskv1alpha1.DriverName, VendorVersion: version.Get().GitVersion}, nil
}

// GetPluginCapabilities names none: there is no controller service.
func (identity) GetPluginCapabilities(context.Context, *csispec.GetPluginCapabilitiesRequest) (*csispec.GetPluginCapabilitiesResponse, error) {
	return &csispec.GetPluginCapabilitiesResponse{}, nil
}

// Probe says ready: the socket is served only after the disks have been scanned.
func (identity) Probe(context.Context, *csispec.ProbeRequest) (*csispec.ProbeResponse, error) {
	return &csispec.ProbeResponse{}, nil
}
