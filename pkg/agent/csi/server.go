package csi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"
)

// Serve answers the kubelet, and sidecars, on the socket until the context ends. Then it waits until the calls in
// progress are answered.
func Serve(ctx context.Context, socket string, node *Node, controller *Controller) error {
	return serve(ctx, socket, func(server *grpc.Server) {
		csispec.RegisterIdentityServer(server, identity{})
		csispec.RegisterNodeServer(server, node)
		csispec.RegisterControllerServer(server, controller)
	})
}

const (
	// socketCheck is how often the existence of a socket is checked. A kubelet or an operator may clear the folder, and
	// the kubelet would not find the driver any more.
	socketCheck = 10 * time.Second
	// stopTimeout is how long the end waits for calls in progress. One may wait for a disk that hangs.
	stopTimeout = 10 * time.Second
)

// serve serves on the socket until the context ends, and makes the socket again if it is removed.
func serve(ctx context.Context, socket string, register func(*grpc.Server)) error {
	for again := false; ctx.Err() == nil; again = true {
		if again {
			klog.FromContext(ctx).Info("Socket was removed and is made again", "socket", socket)
		}
		server := grpc.NewServer(intercept(ctx), grpc.MaxRecvMsgSize(maxRequestBytes))
		register(server)
		if err := serveOnce(ctx, socket, server); err != nil {
			return fmt.Errorf("cannot serve on %s: %w", socket, err)
		}
	}
	return nil
}

// maxRequestBytes is far more than the kubelet ever sends.
const maxRequestBytes = 1 << 20

// serveOnce returns when the context ends or the socket is gone.
func serveOnce(ctx context.Context, socket string, server *grpc.Server) error {
	if err := os.MkdirAll(filepath.Dir(socket), 0o750); err != nil {
		return err
	}
	if err := checkNotServed(ctx, socket); err != nil {
		return err
	}
	// An agent that was killed leaves its socket behind.
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot remove the stale socket: %w", err)
	}
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "unix", socket)
	if err != nil {
		return err
	}
	if l, ok := listener.(*net.UnixListener); ok {
		// At the end this may be the socket of the next agent.
		l.SetUnlinkOnClose(false)
	}
	mine, err := os.Stat(socket)
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	defer func() {
		if isSameFile(socket, mine) {
			_ = os.Remove(socket)
		}
	}()
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		waitForRemoval(ctx, socket, ended)
		go server.GracefulStop()
		select {
		case <-ended:
		case <-time.After(stopTimeout):
			server.Stop()
		}
	}()
	return server.Serve(listener)
}

// checkNotServed refuses a socket on which a process answers: it is not stale.
func checkNotServed(ctx context.Context, socket string) error {
	var dialer net.Dialer
	ctx, cancel := context.WithTimeout(ctx, socketCheck)
	defer cancel()
	conn, err := dialer.DialContext(ctx, "unix", socket)
	if err != nil {
		// There is no socket, or no process listens on it. Listening reports any other error.
		return nil
	}
	return errors.Join(errors.New("another process serves on it: end that one first"), conn.Close())
}

// waitForRemoval returns when the context ends, the serving has ended or the socket is gone.
func waitForRemoval(ctx context.Context, socket string, ended <-chan struct{}) {
	ticker := time.NewTicker(socketCheck)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ended:
			return
		case <-ticker.C:
			if _, err := os.Stat(socket); errors.Is(err, fs.ErrNotExist) {
				return
			}
		}
	}
}

func isSameFile(path string, file fs.FileInfo) bool {
	now, err := os.Stat(path)
	return err == nil && os.SameFile(file, now)
}

// intercept adds the logger of ctx to the calls, and logs those that fail. A panic fails its call, and affects neither
// other volumes nor the node.
func intercept(ctx context.Context) grpc.ServerOption {
	logger := klog.FromContext(ctx)
	return grpc.UnaryInterceptor(func(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (response any, err error) {
		begin := time.Now()
		defer func() {
			if p := recover(); p != nil {
				err = status.Errorf(codes.Internal, "the agent failed in %s: %v; its log says where", info.FullMethod, p)
				logger.Error(err, "Panic in a call", "stack", string(debug.Stack()))
			}
		}()
		response, err = handler(klog.NewContext(ctx, logger), request)
		if err != nil && status.Code(err) != codes.Unimplemented {
			logger.Error(err, "Call failed", "method", info.FullMethod, "duration", time.Since(begin))
		}
		return response, err
	})
}
