package csi

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/mount-utils"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/volumes"
)

// Inline are the inline volumes of pods.
type Inline interface {
	// Publish makes the volume ready and calls mount with its device and file system.
	Publish(ctx context.Context, pod volumes.PodRef, volumeID string, mount func(ctx context.Context, device, fsType string) error) error
	// Release has the volume wiped if its pod is gone.
	Release(volumeID string)
}

// Persistent are the volumes of claims.
type Persistent interface {
	// Stage makes the volume ready and calls use with its device and file system.
	Stage(ctx context.Context, volumeID string, o volumes.StageOptions, use func(ctx context.Context, device, fsType string) error) error
	// Unstaged has the volume released if that is due.
	Unstaged(volumeID string)
	// Expand waits until the partition has its granted size, and calls grow.
	Expand(ctx context.Context, volumeID string, atLeast int64, grow func(ctx context.Context, v volumes.Volume) error) (volumes.Volume, error)
}

// Finder finds a volume on the disks.
type Finder interface {
	Lookup(volumeID string) (volumes.Volume, bool)
}

// Volumes is what the node service needs of package volumes.
type Volumes interface {
	Inline
	Persistent
	Finder
}

// Classes are the DiskClasses.
type Classes interface {
	// MountOptions are those of a class that the file system understands.
	MountOptions(class, fsType string) []string
}

// Node is the CSI Node service.
type Node struct {
	csispec.UnimplementedNodeServer

	name    string
	volumes Volumes
	classes Classes
	kubelet *Kubelet
	mounter mount.Interface

	// locked are the IDs of the volumes that a call works on, each with a channel that is closed when the call has
	// ended. Calls overlap for two pods that start with the same volume, and when the kubelet has given up a call.
	mu     sync.Mutex
	locked map[string]chan struct{}
	// callTimeout is how long a call waits for another one.
	callTimeout time.Duration
}

// callTimeout is longer than a call takes on a disk that answers. A refusal costs the kubelet more, and causes an
// event.
const callTimeout = 3 * time.Second

// NewNode returns the service of the named node.
func NewNode(name string, v Volumes, c Classes, k *Kubelet) *Node {
	// Without systemd: the mounts are file systems of the kernel, and no process stays behind.
	return &Node{
		name: name, volumes: v, classes: c, kubelet: k, mounter: mount.NewWithoutSystemd(""),
		locked: map[string]chan struct{}{}, callTimeout: callTimeout,
	}
}

// lockVolume makes the caller the only one that works on the volume.
func (n *Node) lockVolume(ctx context.Context, volumeID string) (release func(), err error) {
	timer := time.NewTimer(n.callTimeout)
	defer timer.Stop()
	for {
		other, taken := n.tryLockVolume(volumeID)
		if !taken {
			return func() { n.unlockVolume(volumeID) }, nil
		}
		select {
		case <-other:
		case <-timer.C:
			return nil, status.Errorf(codes.Aborted, "another call for volume %s is under way", volumeID)
		case <-ctx.Done():
			return nil, statusOf(ctx.Err())
		}
	}
}

// tryLockVolume takes the lock of the volume, unless another call has taken it. Then other is closed when that call
// ends.
func (n *Node) tryLockVolume(volumeID string) (other <-chan struct{}, taken bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if other, taken = n.locked[volumeID]; !taken {
		n.locked[volumeID] = make(chan struct{})
	}
	return other, taken
}

func (n *Node) unlockVolume(volumeID string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	close(n.locked[volumeID])
	delete(n.locked, volumeID)
}

// NodeGetInfo names the node, and how volumes name it. It sets no limit on volumes: the disks are the limit.
func (n *Node) NodeGetInfo(context.Context, *csispec.NodeGetInfoRequest) (*csispec.NodeGetInfoResponse, error) {
	return &csispec.NodeGetInfoResponse{NodeId: n.name, AccessibleTopology: topologyOf(n.name)}, nil
}

// topologyOf is where a volume of the node can be used.
func topologyOf(node string) *csispec.Topology {
	return &csispec.Topology{Segments: map[string]string{diskv1alpha1.LabelNode: diskv1alpha1.NodeLabel(node)}}
}

// NodeGetCapabilities names the optional calls that are served.
func (n *Node) NodeGetCapabilities(context.Context, *csispec.NodeGetCapabilitiesRequest) (*csispec.NodeGetCapabilitiesResponse, error) {
	response := &csispec.NodeGetCapabilitiesResponse{}
	for _, capability := range []csispec.NodeServiceCapability_RPC_Type{
		csispec.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME,
		csispec.NodeServiceCapability_RPC_GET_VOLUME_STATS,
		csispec.NodeServiceCapability_RPC_EXPAND_VOLUME,
		csispec.NodeServiceCapability_RPC_VOLUME_CONDITION,
		csispec.NodeServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	} {
		response.Capabilities = append(response.Capabilities, &csispec.NodeServiceCapability{
			Type: &csispec.NodeServiceCapability_Rpc{Rpc: &csispec.NodeServiceCapability_RPC{Type: capability}},
		})
	}
	return response, nil
}

// invalid is the answer to a call that can never succeed. The message names the field.
func invalid(format string, a ...any) error {
	return status.Errorf(codes.InvalidArgument, format, a...)
}

// errNotOnNode is the answer to a call for a volume that is on no disk of the node.
func errNotOnNode(volumeID string) error {
	return status.Errorf(codes.NotFound, "volume %.128q is on no disk of this node", volumeID)
}

// codedError is an error with a code, which it keeps when it is wrapped.
type codedError struct {
	code    codes.Code
	message string
}

func (e codedError) Error() string { return e.message }

func errWithCode(code codes.Code, format string, a ...any) error {
	return codedError{code, fmt.Sprintf(format, a...)}
}

// statusOf maps an error of this package or of package volumes to a code. The kubelet shows the message in the pod's
// FailedMount event.
func statusOf(err error) error {
	code := codes.Internal
	var r codedError
	switch {
	case errors.As(err, &r):
		code = r.code
	case errors.Is(err, volumes.ErrInvalid):
		code = codes.InvalidArgument
	case errors.Is(err, volumes.ErrNotFound):
		code = codes.NotFound
	case errors.Is(err, volumes.ErrExists):
		code = codes.AlreadyExists
	case errors.Is(err, volumes.ErrNoRoom):
		code = codes.ResourceExhausted
	case errors.Is(err, volumes.ErrNotGrown):
		// Sidecars react to this code by allowing the claim to request less.
		code = codes.OutOfRange
	case errors.Is(err, volumes.ErrWaiting), errors.Is(err, volumes.ErrMoving), errors.Is(err, volumes.ErrOutOfService), errors.Is(err, volumes.ErrNotAttached):
		code = codes.Unavailable
	case errors.Is(err, volumes.ErrPodGone), errors.Is(err, volumes.ErrReleased), errors.Is(err, volumes.ErrInUse):
		code = codes.FailedPrecondition
	case errors.Is(err, context.DeadlineExceeded):
		code = codes.DeadlineExceeded
	case errors.Is(err, context.Canceled):
		code = codes.Canceled
	}
	return status.Error(code, err.Error())
}
