package csi

import (
	"context"
	"errors"
	"path/filepath"

	"google.golang.org/grpc"
	"k8s.io/klog/v2"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

// Registration offers the driver to the kubelet by a socket in a folder that the kubelet watches. The kubelet then
// writes the node's CSINode and label.
type Registration struct {
	dir, endpoint string
	// changed is called with whether the kubelet has registered the driver.
	changed       func(registered bool)
	registerAgain chan struct{}
}

// NewRegistration offers the driver that serves on endpoint, by a socket in dir.
func NewRegistration(dir, endpoint string, changed func(registered bool)) *Registration {
	return &Registration{dir: dir, endpoint: endpoint, changed: changed, registerAgain: make(chan struct{}, 1)}
}

// RegisterAgain makes the kubelet register the driver again, which it does when the socket is made again.
func (r *Registration) RegisterAgain() {
	select {
	case r.registerAgain <- struct{}{}:
	default:
	}
}

// Run offers the driver until the context ends.
func (r *Registration) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := r.serveOnce(ctx); err != nil {
			return err
		}
	}
	return nil
}

// serveOnce offers the driver until the context ends or RegisterAgain is called.
func (r *Registration) serveOnce(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-ctx.Done():
		case <-r.registerAgain:
			cancel()
		}
	}()
	return serve(ctx, filepath.Join(r.dir, diskv1alpha1.DriverName+"-reg.sock"), func(server *grpc.Server) {
		registration.RegisterRegistrationServer(server, registrar{endpoint: r.endpoint, changed: r.changed})
	})
}

// registrar answers the kubelet where the driver is.
type registrar struct {
	registration.UnsafeRegistrationServer
	endpoint string
	changed  func(registered bool)
}

func (r registrar) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{
		Type:              registration.CSIPlugin,
		Name:              diskv1alpha1.DriverName,
		Endpoint:          r.endpoint,
		SupportedVersions: []string{"1.0.0"},
	}, nil
}

func (r registrar) NotifyRegistrationStatus(ctx context.Context, s *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	logger := klog.FromContext(ctx)
	if s.PluginRegistered {
		logger.Info("Kubelet has registered the driver")
	} else {
		logger.Error(errors.New(s.Error), "Kubelet has refused to register the driver")
	}
	r.changed(s.PluginRegistered)
	return &registration.RegistrationStatusResponse{}, nil
}
