package csi

import (
	"context"
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
)

type panicking struct{ answers }

func (*panicking) Publish(context.Context, volumes.PodRef, string, func(context.Context, string, string) error) error {
	panic("on purpose")
}

// serving serves until the test ends, and returns how to end it before.
func serving(t *testing.T, socket string, v Volumes) (end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, socket, NewNode("n", v), NewController("n", &answers{}, &answers{})) }()
	end = func() {
		if cancel(); ended == nil {
			return
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
		ended = nil
	}
	t.Cleanup(end)
	return end
}

func probe(t *testing.T, socket string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if _, err := csispec.NewIdentityClient(dial(t, socket)).Probe(ctx, &csispec.ProbeRequest{}, grpc.WaitForReady(true)); err != nil {
		t.Fatalf("%s is not served: %v", socket, err)
	}
}

// A kubelet or a person may clear the folder of the sockets.
func TestSocketIsMadeAnew(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "folder", "csi.sock")
	serving(t, socket, &answers{})
	probe(t, socket)
	if err := os.RemoveAll(filepath.Dir(socket)); err != nil {
		t.Fatal(err)
	}
	probe(t, socket)
}

// An agent that ends leaves the socket of its successor alone.
func TestSocketOfTheNextAgent(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "csi.sock")
	end := serving(t, socket, &answers{})
	probe(t, socket)
	before, err := os.Stat(socket)
	if err != nil {
		t.Fatal(err)
	}
	serving(t, socket, &answers{})
	for tick := time.NewTicker(time.Millisecond); isAt(socket, before); {
		<-tick.C
	}
	probe(t, socket)
	end()
	probe(t, socket)
}

func TestPanicFailsOneCall(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "csi.sock")
	serving(t, socket, &panicking{})
	probe(t, socket)
	node := csispec.NewNodeClient(dial(t, socket))
	for range 2 {
		_, err := node.NodePublishVolume(t.Context(), valid(), grpc.WaitForReady(true))
		if status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "NodePublishVolume") {
			t.Errorf("a call that panics: %v", err)
		}
	}
}
