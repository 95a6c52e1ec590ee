package csi

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/volumes"
	"github.com/berthdev/berth/test/testenv"
)

// fakeVolumes is the answer of package volumes to every call.
type fakeVolumes struct {
	mu       sync.Mutex
	err      error
	pod      volumes.PodRef
	released []string
	// volume is the only persistent volume. There is none if it has no ID.
	volume volumes.Volume
	// movedTo is its device under its lock, if that differs from what Lookup returns.
	movedTo string
	// fsType is the file system on it.
	fsType   string
	unstaged []string
	// created and grown are the requests of the controller service.
	created volumes.VolumeRequest
	grown   [2]int64
	deleted []string
}

func (a *fakeVolumes) Publish(_ context.Context, pod volumes.PodRef, _ string, _ func(context.Context, string, string) error) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.pod = pod
	return a.err
}

func (a *fakeVolumes) Release(volumeID string) { a.released = append(a.released, volumeID) }

func (a *fakeVolumes) Stage(ctx context.Context, id string, o volumes.StageOptions, use func(context.Context, string, string) error) error {
	if a.err != nil {
		return a.err
	}
	if id != a.volume.ID {
		return fmt.Errorf("%w: %s", volumes.ErrNotFound, id)
	}
	return use(ctx, cmp.Or(a.movedTo, a.volume.Device), cmp.Or(o.FSType, a.fsType))
}

func (a *fakeVolumes) Unstaged(volumeID string) { a.unstaged = append(a.unstaged, volumeID) }

func (a *fakeVolumes) Expand(ctx context.Context, _ string, _ int64, grow func(context.Context, volumes.Volume) error) (volumes.Volume, error) {
	return a.volume, errors.Join(a.err, grow(ctx, a.volume))
}

func (a *fakeVolumes) Lookup(volumeID string) (volumes.Volume, bool) {
	return a.volume, a.volume.ID != "" && volumeID == a.volume.ID
}

// options are the mount options of every class.
type options []string

func (o options) MountOptions(string, string) []string { return o }

// newNode is the node service of a kubelet whose folder is the test's.
func newNode(t *testing.T, v Volumes, o ...string) *Node {
	t.Helper()
	return NewNode("n", v, options(o), newKubelet(t, sharedDir(t)))
}

// sharedDir is a folder in which the host sees mounts.
func sharedDir(t *testing.T) string {
	t.Helper()
	if onHost() {
		dir := t.TempDir()
		testenv.MakePodsDir(t, dir)
		return dir
	}
	return testenv.SharedKubeletDir(t)
}

// newKubelet is a kubelet with that folder.
func newKubelet(t *testing.T, dir string) *Kubelet {
	t.Helper()
	k, err := NewKubelet(dir)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// validPublish is a valid call by the node's kubelet.
func validPublish(n *Node) *csispec.NodePublishVolumeRequest {
	return &csispec.NodePublishVolumeRequest{
		VolumeId:   "csi-1",
		TargetPath: filepath.Join(n.kubelet.dir, "mount"),
		VolumeCapability: &csispec.VolumeCapability{
			AccessType: &csispec.VolumeCapability_Mount{Mount: &csispec.VolumeCapability_MountVolume{FsType: "ext4"}},
			AccessMode: &csispec.VolumeCapability_AccessMode{Mode: csispec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		},
		VolumeContext: map[string]string{
			contextEphemeral: "true", contextPodNamespace: "ns", contextPodName: "pod", contextPodUID: "1",
			diskv1alpha1.AttributeSize: "1Gi", diskv1alpha1.AttributeClass: "ssd",
		},
	}
}

// TestPublishArguments asserts that impossible NodePublishVolume calls are refused with the field's name, and that no
// volume is made for them.
func TestPublishArguments(t *testing.T) {
	type request = csispec.NodePublishVolumeRequest
	for name, tc := range map[string]struct {
		spoil func(*request)
		says  string
	}{
		"no volume":       {func(r *request) { r.VolumeId = "" }, "volume_id"},
		"no target":       {func(r *request) { r.TargetPath = "" }, "target_path"},
		"relative target": {func(r *request) { r.TargetPath = "pods/1" }, "absolute"},
		"no capability":   {func(r *request) { r.VolumeCapability = nil }, "volume_capability"},
		"no access type":  {func(r *request) { r.VolumeCapability.AccessType = nil }, "neither"},
		"block": {func(r *request) {
			r.VolumeCapability.AccessType = &csispec.VolumeCapability_Block{Block: &csispec.VolumeCapability_BlockVolume{}}
		}, "raw block"},
		"many nodes": {func(r *request) {
			r.VolumeCapability.AccessMode.Mode = csispec.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER
		}, "access mode"},
		"no access mode":     {func(r *request) { r.VolumeCapability.AccessMode = nil }, "access mode"},
		"readonly":           {func(r *request) { r.Readonly = true }, "readonly"},
		"other file system":  {func(r *request) { r.VolumeCapability.GetMount().FsType = "btrfs" }, "btrfs"},
		"not staged":         {func(r *request) { delete(r.VolumeContext, contextEphemeral) }, "staging_target_path"},
		"ephemeral is false": {func(r *request) { r.VolumeContext[contextEphemeral] = "false" }, "staging_target_path"},
		"only to read": {func(r *request) {
			r.VolumeCapability.AccessMode.Mode = csispec.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY
		}, "READER_ONLY"},
		"mount group":       {func(r *request) { r.VolumeCapability.GetMount().VolumeMountGroup = "1000" }, "volume_mount_group"},
		"empty flag":        {func(r *request) { r.VolumeCapability.GetMount().MountFlags = []string{""} }, "mount_flags"},
		"no size":           {func(r *request) { delete(r.VolumeContext, diskv1alpha1.AttributeSize) }, "size is missing"},
		"bad size":          {func(r *request) { r.VolumeContext[diskv1alpha1.AttributeSize] = "10Gib" }, "10Gib"},
		"no class":          {func(r *request) { delete(r.VolumeContext, diskv1alpha1.AttributeClass) }, "class is missing"},
		"unknown attribute": {func(r *request) { r.VolumeContext["sise"] = "1Gi" }, `"sise"`},
		"no pod":            {func(r *request) { delete(r.VolumeContext, contextPodUID) }, "podInfoOnMount"},
	} {
		a := &fakeVolumes{}
		n := newNode(t, a)
		r := validPublish(n)
		tc.spoil(r)
		_, err := n.NodePublishVolume(t.Context(), r)
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v, want InvalidArgument about %q", name, err, tc.says)
		}
		if a.pod.Name != "" {
			t.Errorf("%s: a volume was asked for", name)
		}
	}
	a := &fakeVolumes{}
	n := newNode(t, a)
	if _, err := n.NodePublishVolume(t.Context(), validPublish(n)); err != nil {
		t.Errorf("a valid call: %v", err)
	}
	if want := (volumes.PodRef{Namespace: "ns", Name: "pod", UID: "1"}); a.pod != want {
		t.Errorf("pod is %+v, want %+v", a.pod, want)
	}
}

// TestPublishErrors asserts the status code of each error, and that the status keeps the message.
func TestPublishErrors(t *testing.T) {
	for err, want := range map[error]codes.Code{
		fmt.Errorf("%w: x", volumes.ErrInvalid):                      codes.InvalidArgument,
		fmt.Errorf("%w: x", volumes.ErrNoRoom):                       codes.ResourceExhausted,
		fmt.Errorf("%w: x", volumes.ErrWaiting):                      codes.Unavailable,
		fmt.Errorf("%w: x", volumes.ErrOutOfService):                 codes.Unavailable,
		fmt.Errorf("%w: x", volumes.ErrPodGone):                      codes.FailedPrecondition,
		fmt.Errorf("%w: x", volumes.ErrReleased):                     codes.FailedPrecondition,
		fmt.Errorf("%w: x", volumes.ErrInUse):                        codes.FailedPrecondition,
		fmt.Errorf("%w: x", volumes.ErrNotFound):                     codes.NotFound,
		fmt.Errorf("%w: x", volumes.ErrExists):                       codes.AlreadyExists,
		fmt.Errorf("%w: x", volumes.ErrNotGrown):                     codes.OutOfRange,
		context.Canceled:                                             codes.Canceled,
		fmt.Errorf("around: %w", errWithCode(codes.OutOfRange, "x")): codes.OutOfRange,
		context.DeadlineExceeded:                                     codes.DeadlineExceeded,
		errors.New("x"):                                              codes.Internal,
	} {
		n := newNode(t, &fakeVolumes{err: err})
		_, got := n.NodePublishVolume(t.Context(), validPublish(n))
		if status.Code(got) != want || !strings.Contains(got.Error(), err.Error()) {
			t.Errorf("%v becomes %v, want %v", err, got, want)
		}
	}
}

// TestOneCallAtATime asserts that a second call for a volume waits, and is refused when it has waited for too long or
// its caller has given up.
func TestOneCallAtATime(t *testing.T) {
	n := newNode(t, &fakeVolumes{})
	release, err := n.lockVolume(t.Context(), "csi-1")
	if err != nil {
		t.Fatal(err)
	}
	n.callTimeout = time.Millisecond
	if _, err := n.NodePublishVolume(t.Context(), validPublish(n)); status.Code(err) != codes.Aborted {
		t.Errorf("a second call: %v", err)
	}
	n.callTimeout = time.Minute
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := n.NodePublishVolume(gone, validPublish(n)); status.Code(err) != codes.Canceled {
		t.Errorf("a call whose caller does not wait any more: %v", err)
	}
	var calls sync.WaitGroup
	for range 10 {
		calls.Go(func() {
			if _, err := n.NodePublishVolume(t.Context(), validPublish(n)); err != nil {
				t.Errorf("a later call: %v", err)
			}
		})
	}
	release()
	calls.Wait()
	if len(n.locked) != 0 {
		t.Errorf("%d claims are left", len(n.locked))
	}
}

// TestUnpublish asserts that unpublishing removes an empty mount point, can be repeated, and keeps a folder with data.
func TestUnpublish(t *testing.T) {
	a := &fakeVolumes{}
	n := newNode(t, a)
	for _, r := range []*csispec.NodeUnpublishVolumeRequest{{TargetPath: "/x"}, {VolumeId: "csi-1"}, {VolumeId: "csi-1", TargetPath: "x"}} {
		if _, err := n.NodeUnpublishVolume(t.Context(), r); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v: %v", r, err)
		}
	}
	// A target that is not mounted is unpublished, and the empty mount point is removed.
	target := filepath.Join(t.TempDir(), "mount")
	if err := os.Mkdir(target, 0o750); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := n.NodeUnpublishVolume(t.Context(), &csispec.NodeUnpublishVolumeRequest{VolumeId: "csi-1", TargetPath: target}); err != nil {
			t.Error(err)
		}
	}
	if len(a.released) != 2 {
		t.Errorf("released %v", a.released)
	}
	// A file in the mount point is not ours.
	if err := os.MkdirAll(filepath.Join(target, "data"), 0o750); err != nil {
		t.Fatal(err)
	}
	if _, err := n.NodeUnpublishVolume(t.Context(), &csispec.NodeUnpublishVolumeRequest{VolumeId: "csi-1", TargetPath: target}); status.Code(err) != codes.Internal {
		t.Errorf("a folder with data: %v", err)
	}
}

// TestStatsArguments asserts that a stats call is refused without its arguments, or for a path where nothing is
// mounted.
func TestStatsArguments(t *testing.T) {
	n := newNode(t, &fakeVolumes{})
	for r, want := range map[*csispec.NodeGetVolumeStatsRequest]codes.Code{
		{VolumePath: "/x"}:                           codes.InvalidArgument,
		{VolumeId: "csi-1"}:                          codes.InvalidArgument,
		{VolumeId: "csi-1", VolumePath: t.TempDir()}: codes.NotFound,
		{VolumeId: "csi-1", VolumePath: "some/path"}: codes.NotFound,
	} {
		if _, err := n.NodeGetVolumeStats(t.Context(), r); status.Code(err) != want {
			t.Errorf("%v: %v, want %v", r, err, want)
		}
	}
}

// TestSockets asserts that both sockets are served, although a killed agent has left its own.
func TestSockets(t *testing.T) {
	dir := sharedDir(t)
	socket, register := filepath.Join(dir, "plugin", "csi.sock"), filepath.Join(dir, diskv1alpha1.DriverName+"-reg.sock")
	if err := os.WriteFile(register, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	kubelet := newKubelet(t, dir)
	go func() {
		ended <- Serve(ctx, socket, NewNode("node1", &fakeVolumes{}, options{}, kubelet), NewController("node1", &fakeVolumes{}, &fakeVolumes{}))
	}()
	go func() { ended <- NewRegistration(dir, socket, func(bool) {}).Run(ctx) }()

	info, err := registration.NewRegistrationClient(dial(t, register)).GetInfo(t.Context(), &registration.InfoRequest{}, grpc.WaitForReady(true))
	if err != nil || info.Name != diskv1alpha1.DriverName || info.Endpoint != socket || info.Type != registration.CSIPlugin {
		t.Errorf("registration says %v, %v", info, err)
	}
	name, err := csispec.NewIdentityClient(dial(t, socket)).GetPluginInfo(t.Context(), &csispec.GetPluginInfoRequest{}, grpc.WaitForReady(true))
	if err != nil || name.Name != diskv1alpha1.DriverName || name.VendorVersion == "" {
		t.Errorf("the plugin is %v, %v", name, err)
	}
	node, err := csispec.NewNodeClient(dial(t, socket)).NodeGetInfo(t.Context(), &csispec.NodeGetInfoRequest{})
	if err != nil || node.NodeId != "node1" || node.MaxVolumesPerNode != 0 ||
		node.AccessibleTopology.Segments[diskv1alpha1.LabelNode] != "node1" {
		t.Errorf("the node is %v, %v", node, err)
	}
	cancel()
	for range 2 {
		if err := testenv.Receive(t, "the end of a server", ended); err != nil {
			t.Error(err)
		}
	}
	for _, s := range []string{socket, register} {
		if _, err := os.Stat(s); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", s, err)
		}
	}
}

// dial connects as soon as the socket is served: a stale file has no server.
func dial(t *testing.T, socket string) *grpc.ClientConn {
	t.Helper()
	dialer := grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	})
	c, err := grpc.NewClient("passthrough:///"+socket, dialer, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}
