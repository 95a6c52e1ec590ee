package csi

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/berthdev/berth/pkg/agent/volumes"
	"github.com/berthdev/berth/test/testenv"
)

type panicking struct{ fakeVolumes }

func (*panicking) Publish(context.Context, volumes.PodRef, string, func(context.Context, string, string) error) error {
	panic("on purpose")
}

// serving serves until the test ends, or until end is called.
func serving(t *testing.T, socket string, v Volumes) (end func()) {
	t.Helper()
	return servingNode(t, socket, newNode(t, v))
}

func servingNode(t *testing.T, socket string, node *Node) (end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, socket, node, NewController("n", &fakeVolumes{}, &fakeVolumes{})) }()
	end = func() {
		if cancel(); ended == nil {
			return
		}
		if err := testenv.Receive(t, "the end of the server", ended); err != nil {
			t.Error(err)
		}
		ended = nil
	}
	t.Cleanup(end)
	return end
}

// shortSocketPath is a folder with a short name, because the name of a socket has at most 107 bytes.
func shortSocketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "csi")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func probe(t *testing.T, socket string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := csispec.NewIdentityClient(dial(t, socket)).Probe(ctx, &csispec.ProbeRequest{}, grpc.WaitForReady(true)); err != nil {
		t.Fatalf("%s is not served: %v", socket, err)
	}
}

// TestSocketIsRecreated asserts that a socket that was removed is made again.
func TestSocketIsRecreated(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(shortSocketPath(t), "folder", "csi.sock")
	serving(t, socket, &fakeVolumes{})
	probe(t, socket)
	if err := os.RemoveAll(filepath.Dir(socket)); err != nil {
		t.Fatal(err)
	}
	probe(t, socket)
}

// TestSocketOfALiveAgent asserts that the socket of an agent that serves is not replaced.
func TestSocketOfALiveAgent(t *testing.T) {
	socket := filepath.Join(shortSocketPath(t), "csi.sock")
	serving(t, socket, &fakeVolumes{})
	probe(t, socket)
	// An agent that serves continues until the context ends.
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err := Serve(ctx, socket, newNode(t, &fakeVolumes{}), NewController("n", &fakeVolumes{}, &fakeVolumes{}))
	if err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a second agent serves: %v", err)
	}
	probe(t, socket)
}

// TestStaleSocket asserts that the socket of a killed agent is replaced.
func TestStaleSocket(t *testing.T) {
	socket := filepath.Join(shortSocketPath(t), "csi.sock")
	listen(t, socket, false)
	serving(t, socket, &fakeVolumes{})
	probe(t, socket)
}

// TestSocketOfTheNextAgent asserts that an agent that ends does not remove the socket of its successor.
func TestSocketOfTheNextAgent(t *testing.T) {
	socket := filepath.Join(shortSocketPath(t), "csi.sock")
	end := serving(t, socket, &fakeVolumes{})
	probe(t, socket)
	if err := os.Remove(socket); err != nil {
		t.Fatal(err)
	}
	listen(t, socket, true)
	end()
	if _, err := os.Stat(socket); err != nil {
		t.Errorf("the successor's socket is gone: %v", err)
	}
}

// listen makes a socket. If it is live, a process listens on it until the test ends.
func listen(t *testing.T, socket string, live bool) {
	t.Helper()
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	listener.SetUnlinkOnClose(false)
	if !live {
		_ = listener.Close()
		return
	}
	t.Cleanup(func() { _ = listener.Close() })
}

// TestPanicFailsOneCall asserts that a panic is the error of its call, and that the next call is served.
func TestPanicFailsOneCall(t *testing.T) {
	socket := filepath.Join(shortSocketPath(t), "csi.sock")
	served := newNode(t, &panicking{})
	servingNode(t, socket, served)
	probe(t, socket)
	node := csispec.NewNodeClient(dial(t, socket))
	for range 2 {
		_, err := node.NodePublishVolume(t.Context(), validPublish(served), grpc.WaitForReady(true))
		if status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "NodePublishVolume") {
			t.Errorf("a call that panics: %v", err)
		}
	}
}
