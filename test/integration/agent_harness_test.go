package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"
	"sigs.k8s.io/controller-runtime/pkg/client"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent"
	"github.com/berthdev/berth/test/cluster"
	"github.com/berthdev/berth/test/objects"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

const (
	// patience is for what should take milliseconds, on a machine that does much else.
	patience = time.Minute
)

// node is a node of its own for one test, with disks and an agent, and without a kubelet.
type node struct {
	t      *testing.T
	name   string
	plane  *cluster.Cluster
	client client.Client
	disks  []*testDisk
	dir    string
	images string
	sys    *hidingSys

	// options are what start gives the agent.
	options agent.Options
	stopped chan error
	cancel  context.CancelFunc
}

// testDisk is a loop device.
type testDisk struct {
	path, image string
	size        int64
}

func (d *testDisk) name() string { return filepath.Base(d.path) }

// newNode makes a Node, disks of the given sizes (with sectors of 512 and 4096 bytes in
// turn) and a DiskClass with the node's name that selects them. The agent is not started.
func newNode(t *testing.T, sizes ...int64) *node {
	t.Helper()
	plane := controlPlane(t)
	testenv.NeedProgram(t, "losetup", "mkfs.ext4", "mkfs.xfs", "blkid", "wipefs")
	n := &node{t: t, name: strings.ToLower(t.Name()), plane: plane, client: plane.Client(), dir: testenv.SharedKubeletDir(t), images: t.TempDir()}
	n.name = strings.NewReplacer("/", "-", "_", "-").Replace(n.name)
	for i, size := range sizes {
		n.disks = append(n.disks, n.attach(size, []int{512, 4096}[i%2]))
	}
	n.create(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.name}})
	t.Cleanup(func() {
		// There is no garbage collector here.
		ndc := &diskv1alpha1.NodeDiskCapacity{ObjectMeta: metav1.ObjectMeta{Name: n.name}}
		if err := n.client.Delete(context.Background(), ndc); err != nil && !apierrors.IsNotFound(err) {
			t.Error(err)
		}
	})
	n.create(n.class(n.name, n.disks...))
	n.sys = &hidingSys{FS: os.DirFS("/sys/block")}
	n.options = agent.Options{
		NodeName:        n.name,
		Config:          n.agentConfig(),
		KubeletDir:      n.dir,
		CSISocket:       filepath.Join(n.dir, "csi.sock"),
		RegistrationDir: filepath.Join(n.dir, "registration"),
		OrphanGrace:     time.Second,
		OrphanLimit:     10,
		EvictionGrace:   time.Second,
		Sys:             n.sys,
	}
	t.Cleanup(n.stop)
	return n
}

func (n *node) class(name string, disks ...*testDisk) *diskv1alpha1.DiskClass {
	class := &diskv1alpha1.DiskClass{ObjectMeta: metav1.ObjectMeta{Name: name}}
	class.Spec.Adoption, class.Spec.NewDeviceGrace = diskv1alpha1.AdoptAutomatic, &metav1.Duration{}
	for _, d := range disks {
		class.Spec.Devices.Paths = append(class.Spec.Devices.Paths, d.path)
		n.options.Devices = append(n.options.Devices, d.path)
	}
	return class
}

// agentConfig has exactly the permissions that the DaemonSet's account has.
func (n *node) agentConfig() *rest.Config {
	config := n.plane.RESTConfig()
	config.Impersonate = rest.ImpersonationConfig{
		UserName: "system:serviceaccount:kube-system:berth-nodeagent",
		Groups:   []string{"system:serviceaccounts", "system:authenticated"},
		// In its token; the admission policy goes by it.
		Extra: map[string][]string{"authentication.kubernetes.io/node-name": {n.name}},
	}
	config.QPS, config.Burst = 100, 200
	return config
}

// create makes an object that goes with the test.
func (n *node) create(object client.Object) {
	n.t.Helper()
	if err := n.client.Create(n.t.Context(), object); err != nil {
		n.t.Fatalf("create %T %s: %v", object, object.GetName(), err)
	}
	n.t.Cleanup(func() {
		err := n.client.Delete(context.Background(), object, client.GracePeriodSeconds(0))
		if err != nil && !apierrors.IsNotFound(err) {
			n.t.Errorf("delete %T %s: %v", object, object.GetName(), err)
		}
	})
}

// attach makes a loop device that goes with the test.
func (n *node) attach(size int64, sector int) *testDisk {
	n.t.Helper()
	// Not below the kubelet's folder: what the kubelet makes loop devices over is never a disk.
	image := filepath.Join(n.images, fmt.Sprintf("disk%d.img", len(n.disks)))
	testenv.ImageAt(n.t, image, size)
	d := &testDisk{path: testenv.Attach(n.t, image, strconv.Itoa(sector)), image: image, size: size}
	n.t.Cleanup(d.detach(n.t))
	return d
}

// detach unmounts the partitions and takes them and the device away.
func (d *testDisk) detach(t *testing.T) func() {
	return func() {
		mounts, err := os.ReadFile("/proc/self/mounts")
		if err != nil {
			t.Error(err)
		}
		for line := range strings.Lines(string(mounts)) {
			if f := strings.Fields(line); strings.HasPrefix(f[0], d.path+"p") {
				testenv.Run(t, "umount", f[1])
			}
		}
		testenv.Detach(t, d.path)
	}
}

// forget makes the kernel forget the disk's partitions, as a reboot does.
func (d *testDisk) forget(t *testing.T) {
	t.Helper()
	testenv.RemovePartitions(t, d.path)
}

// start runs the agent in this process and waits until it serves.
func (n *node) start() {
	n.t.Helper()
	logger := ktesting.NewLogger(n.t, ktesting.NewConfig(ktesting.Verbosity(2)))
	ctx, cancel := context.WithCancel(klog.NewContext(context.Background(), logger))
	n.cancel, n.stopped = cancel, make(chan error, 1)
	go func(stopped chan error) { stopped <- agent.Run(ctx, n.options) }(n.stopped)
	n.eventually("the agent serves", func() error {
		select {
		case err := <-n.stopped:
			n.stopped <- err
			n.t.Fatalf("the agent ended: %v", err)
		default:
		}
		_, err := os.Stat(filepath.Join(n.options.RegistrationDir, "disk.berth.dev-reg.sock"))
		// They begin to serve at the same time.
		_, csiErr := os.Stat(n.options.CSISocket)
		return errors.Join(err, csiErr)
	})
}

// startReady starts the agent, and returns its first disk when all disks are in service.
func (n *node) startReady() *diskv1alpha1.Disk {
	n.t.Helper()
	n.start()
	status := n.ready()
	return of(&status, n.disks[0])
}

// stop ends the agent, if it runs.
func (n *node) stop() {
	n.t.Helper()
	if n.cancel == nil {
		return
	}
	n.cancel()
	n.cancel = nil
	if err := testenv.Receive(n.t, "the end of the agent", n.stopped); err != nil {
		n.t.Errorf("the agent ended with an error: %v", err)
	}
}

// eventually waits until check returns nil.
func (n *node) eventually(what string, check func() error) {
	n.t.Helper()
	testenv.Eventually(n.t, what, check)
}

// never fails the test if check returns nil within the time.
func (n *node) never(what string, within time.Duration, check func() error) {
	n.t.Helper()
	deadline := time.After(within)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if check() == nil {
			n.t.Fatalf("%s, and should not", what)
		}
		select {
		case <-tick.C:
		case <-deadline:
			return
		}
	}
}

func (n *node) ndc() (*diskv1alpha1.NodeDiskCapacity, error) {
	ndc := &diskv1alpha1.NodeDiskCapacity{}
	err := n.client.Get(n.t.Context(), client.ObjectKey{Name: n.name}, ndc)
	return ndc, err
}

// published waits until what the agent published passes the check, and holds the
// invariants at every look.
func (n *node) published(what string, check func(*diskv1alpha1.NodeDiskCapacityStatus) error) diskv1alpha1.NodeDiskCapacityStatus {
	n.t.Helper()
	return n.publishedWithin(patience, what, check)
}

func (n *node) publishedWithin(patience time.Duration, what string, check func(*diskv1alpha1.NodeDiskCapacityStatus) error) diskv1alpha1.NodeDiskCapacityStatus {
	n.t.Helper()
	var status diskv1alpha1.NodeDiskCapacityStatus
	testenv.EventuallyWithin(n.t, patience, what, func() error {
		ndc, err := n.ndc()
		if err != nil {
			return err
		}
		status = ndc.Status
		if err := consistent(&status); err != nil {
			n.t.Errorf("published nonsense: %v", err)
		}
		if err := check(&status); err != nil {
			return fmt.Errorf("%w, published is %+v", err, status)
		}
		return nil
	})
	return status
}

// consistent returns an error unless the space of each disk adds up.
func consistent(s *diskv1alpha1.NodeDiskCapacityStatus) error {
	for i := range s.Disks {
		if err := objects.CheckSpace(&s.Disks[i]); err != nil {
			return err
		}
	}
	return nil
}

// ready waits until all disks are in service and returns the status.
func (n *node) ready() diskv1alpha1.NodeDiskCapacityStatus {
	n.t.Helper()
	return n.published("all disks are Ready", func(s *diskv1alpha1.NodeDiskCapacityStatus) error {
		if len(s.Disks) != len(n.disks) {
			return fmt.Errorf("%d of %d disks", len(s.Disks), len(n.disks))
		}
		for _, d := range s.Disks {
			if d.State != diskv1alpha1.DiskReady {
				return fmt.Errorf("%s is %s", d.Device, d.State)
			}
		}
		return nil
	})
}

// of returns the published disk of a device.
func of(s *diskv1alpha1.NodeDiskCapacityStatus, d *testDisk) *diskv1alpha1.Disk {
	for i := range s.Disks {
		if s.Disks[i].Device == d.name() {
			return &s.Disks[i]
		}
	}
	return &diskv1alpha1.Disk{}
}

// allocation finds a volume among the published.
func allocation(s *diskv1alpha1.NodeDiskCapacityStatus, pod *corev1.Pod, volume string) (diskv1alpha1.Disk, diskv1alpha1.Allocation, bool) {
	partition := diskv1alpha1.PartitionID(diskv1alpha1.InlineVolumeID(pod.UID, volume))
	for _, d := range s.Disks {
		for _, a := range d.Allocations {
			if a.Partition == partition {
				return d, a, true
			}
		}
	}
	return diskv1alpha1.Disk{}, diskv1alpha1.Allocation{}, false
}

// formatted waits until the volume is published as formatted.
func (n *node) formatted(pod *corev1.Pod, volume string) (disk diskv1alpha1.Disk, a diskv1alpha1.Allocation) {
	n.t.Helper()
	n.published("volume "+volume+" is Formatted", func(s *diskv1alpha1.NodeDiskCapacityStatus) error {
		var ok bool
		if disk, a, ok = allocation(s, pod, volume); !ok || a.Phase != diskv1alpha1.PhaseFormatted {
			return fmt.Errorf("allocation is %+v", a)
		}
		return nil
	})
	return disk, a
}

// released waits until no disk holds a volume.
func (n *node) released() {
	n.t.Helper()
	n.published("all space is free again", func(s *diskv1alpha1.NodeDiskCapacityStatus) error {
		if s.Summary.Volumes != 0 {
			return fmt.Errorf("%d volumes are left", s.Summary.Volumes)
		}
		return nil
	})
}

// volumeOf is an inline volume of the node's class.
func (n *node) volumeOf(name, size, fsType string) corev1.Volume {
	v := objects.InlineVolume(name, n.name, size)
	if fsType != "" {
		v.CSI.FSType = &fsType
	}
	return v
}

// record is the value of a record annotation.
func record(t *testing.T, places ...diskv1alpha1.RecordVolume) string {
	t.Helper()
	value, err := diskv1alpha1.EncodeRecord(places)
	if err != nil {
		t.Fatal(err)
	}
	return value
}

func at(name, disk string, start, length int64) diskv1alpha1.RecordVolume {
	return diskv1alpha1.RecordVolume{Name: name, Disk: disk, Extent: diskv1alpha1.Extent{Start: start, Length: length}}
}

// pod creates a pod that is bound to the node; change may be nil.
func (n *node) pod(name, recorded string, change func(*corev1.Pod), volumes ...corev1.Volume) *corev1.Pod {
	n.t.Helper()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: n.name + "-" + name},
		Spec: corev1.PodSpec{
			NodeName:   n.name,
			Volumes:    volumes,
			Containers: []corev1.Container{{Name: "main", Image: "any"}},
		},
	}
	if recorded != "" {
		pod.Annotations = map[string]string{diskv1alpha1.AnnotationAllocation: recorded}
	}
	if change != nil {
		change(pod)
	}
	n.create(pod)
	return pod
}

// delete removes the pod at once, as when the kubelet has ended it.
func (n *node) delete(pod *corev1.Pod) {
	n.t.Helper()
	if err := n.client.Delete(n.t.Context(), pod, client.GracePeriodSeconds(0)); err != nil {
		n.t.Fatal(err)
	}
}

// csi calls the agent as the kubelet does.
func (n *node) csi() csispec.NodeClient {
	n.t.Helper()
	connection, err := grpc.NewClient("unix://"+n.options.CSISocket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { connection.Close() })
	return csispec.NewNodeClient(connection)
}

func (n *node) target(pod *corev1.Pod, volume string) string {
	return filepath.Join(n.dir, "pods", string(pod.UID), "volumes", volume, "mount")
}

// publish asks for a volume as the kubelet does.
func (n *node) publish(pod *corev1.Pod, volume string) error {
	n.t.Helper()
	if err := os.MkdirAll(filepath.Dir(n.target(pod, volume)), 0o750); err != nil {
		n.t.Fatal(err)
	}
	_, err := n.csi().NodePublishVolume(n.t.Context(), n.publishRequest(pod, volume))
	return err
}

func (n *node) publishRequest(pod *corev1.Pod, volume string) *csispec.NodePublishVolumeRequest {
	return objects.PublishRequest(pod, volume, n.target(pod, volume))
}

func (n *node) unpublish(pod *corev1.Pod, volume string) {
	n.t.Helper()
	_, err := n.csi().NodeUnpublishVolume(n.t.Context(), &csispec.NodeUnpublishVolumeRequest{
		VolumeId: diskv1alpha1.InlineVolumeID(pod.UID, volume), TargetPath: n.target(pod, volume),
	})
	if err != nil {
		n.t.Fatalf("unpublish: %v", err)
	}
}

// event waits for an event about the pod and returns its message.
func (n *node) event(pod *corev1.Pod, reason string) string {
	n.t.Helper()
	var message string
	n.eventually("event "+reason+" of "+pod.Name, func() error {
		events := &corev1.EventList{}
		if err := n.client.List(n.t.Context(), events, client.InNamespace(pod.Namespace)); err != nil {
			return err
		}
		for _, e := range events.Items {
			if e.InvolvedObject.UID == pod.UID && e.Reason == reason {
				message = e.Message
				return nil
			}
		}
		return errors.New("there is none")
	})
	return message
}

// zero reports whether the extent of the device reads as zeros.
func (d *testDisk) zero(t *testing.T, start, length int64) bool {
	t.Helper()
	// The page cache of a disk knows nothing of what was written through its partitions.
	testenv.Run(t, "blockdev", "--flushbufs", d.path)
	f, err := os.Open(d.path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	buffer, nothing := make([]byte, units.MiB), make([]byte, units.MiB)
	for offset := start; offset < start+length; offset += units.MiB {
		if _, err := f.ReadAt(buffer, offset); err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		if !bytes.Equal(buffer, nothing) {
			t.Logf("not zero within the MiB at %d of %s", offset, d.path)
			return false
		}
	}
	return true
}

// hidingSys is /sys/block without some of the devices.
type hidingSys struct {
	fs.FS
	mu     sync.Mutex
	hidden map[string]bool
}

func (h *hidingSys) ReadDir(name string) ([]fs.DirEntry, error) {
	entries, err := fs.ReadDir(h.FS, name)
	h.mu.Lock()
	defer h.mu.Unlock()
	var visible []fs.DirEntry
	for _, e := range entries {
		if !h.hidden[e.Name()] {
			visible = append(visible, e)
		}
	}
	return visible, err
}

// hide makes a device vanish or come back, and has the kernel say that something happened.
func (h *hidingSys) hide(t *testing.T, d *testDisk, hidden bool) {
	t.Helper()
	h.mu.Lock()
	if h.hidden == nil {
		h.hidden = map[string]bool{}
	}
	h.hidden[d.name()] = hidden
	h.mu.Unlock()
	if err := os.WriteFile("/sys/block/"+d.name()+"/uevent", []byte("change"), 0o200); err != nil {
		t.Fatal(err)
	}
}

func controller() []metav1.OwnerReference {
	yes := true
	return []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "any", UID: "11111111-2222-4333-8444-555555555555", Controller: &yes}}
}
