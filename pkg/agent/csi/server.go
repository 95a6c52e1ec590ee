package csi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

// Serve answers the kubelet on the socket until the context ends, and then until the
// calls under way are answered.
func Serve(ctx context.Context, socket string, node *Node) error {
	server := grpc.NewServer(logging(ctx))
	csispec.RegisterIdentityServer(server, identity{})
	csispec.RegisterNodeServer(server, node)
	return serve(ctx, socket, server)
}

// Register offers the driver on endpoint to the kubelet, which finds the registration
// socket in dir, until the context ends.
func Register(ctx context.Context, dir, endpoint string) error {
	server := grpc.NewServer(logging(ctx))
	registration.RegisterRegistrationServer(server, registrar{endpoint: endpoint})
	return serve(ctx, filepath.Join(dir, diskv1alpha1.DriverName+"-reg.sock"), server)
}

func serve(ctx context.Context, socket string, server *grpc.Server) error {
	if err := os.MkdirAll(filepath.Dir(socket), 0o750); err != nil {
		return fmt.Errorf("cannot make the folder of socket %s: %w", socket, err)
	}
	// An agent that was killed leaves its socket behind.
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot remove the stale socket %s: %w", socket, err)
	}
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "unix", socket)
	if err != nil {
		return fmt.Errorf("cannot listen on %s: %w", socket, err)
	}
	stop := context.AfterFunc(ctx, server.GracefulStop)
	defer stop()
	if err := server.Serve(listener); err != nil {
		return fmt.Errorf("cannot serve on %s: %w", socket, err)
	}
	return nil
}

// logging gives the calls the logger of ctx, and logs those that fail.
func logging(ctx context.Context) grpc.ServerOption {
	logger := klog.FromContext(ctx)
	return grpc.UnaryInterceptor(func(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		begin := time.Now()
		response, err := handler(klog.NewContext(ctx, logger), request)
		if err != nil && status.Code(err) != codes.Unimplemented {
			logger.Error(err, "Call of the kubelet failed", "method", info.FullMethod, "duration", time.Since(begin))
		}
		return response, err
	})
}

// registrar tells the kubelet where the driver is.
type registrar struct {
	registration.UnsafeRegistrationServer
	endpoint string
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
	return &registration.RegistrationStatusResponse{}, nil
}
