package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/cluster"
	"github.com/berthdev/berth/test/objects"
	"github.com/berthdev/berth/test/testenv"
)

// agentNode is a node with an agent as it is shipped, and without a kubelet. The disks of the node named by spareNode
// belong to no agent.
type agentNode struct {
	tb      testing.TB
	cluster *cluster.Cluster
	client  client.Client
	csi     csispec.NodeClient
	name    string
	disk    cluster.Disk
	dir     string
}

const (
	agentsNode = "node1"
	spareNode  = "spare"
	className  = "bench"
	// patience is for what should take milliseconds, on a machine that does other work, too.
	patience = 30 * time.Second
)

func newAgentNode(ctx context.Context, tb testing.TB, disks int, size int64) *agentNode {
	tb.Helper()
	testenv.NeedRoot(tb)
	testenv.NeedProgram(tb, "losetup", "mkfs.ext4", "mkfs.xfs", "mount", "umount", "blkid", "wipefs")
	n := &agentNode{tb: tb, name: agentsNode, dir: tb.TempDir()}
	testenv.MakePodsDir(tb, n.dir)
	socket := filepath.Join(n.dir, "csi.sock")
	nodes := []cluster.NodeOptions{{Name: agentsNode}, {Name: spareNode, Disks: []cluster.DiskOptions{{Size: size}}}}
	for range disks {
		nodes[0].Disks = append(nodes[0].Disks, cluster.DiskOptions{Size: size})
	}
	var err error
	n.cluster, err = cluster.Start(ctx, cluster.Options{
		Name: "bench", Log: os.Stderr, Nodes: nodes,
		Manifests: []string{"config/crd", "config/nodeagent/csidriver.yaml", "config/nodeagent/rbac.yaml"},
		AgentArgs: []string{"--kubelet-dir=" + n.dir, "--csi-socket=" + socket},
	})
	n.must(err)
	tb.Cleanup(func() {
		if err := n.cluster.Stop(); err != nil {
			tb.Error(err)
		}
	})
	n.client = n.cluster.Client()
	node, err := n.cluster.Node(agentsNode)
	n.must(err)
	n.disk = node.Disks[0]
	n.must(n.client.Create(ctx, &diskv1alpha1.DiskClass{
		ObjectMeta: metav1.ObjectMeta{Name: className},
		Spec: diskv1alpha1.DiskClassSpec{
			Devices:  diskv1alpha1.DeviceSelector{Paths: strings.Split(node.Devices(), ",")},
			Adoption: diskv1alpha1.AdoptAutomatic, NewDeviceGrace: &metav1.Duration{},
		},
	}))
	n.must(n.cluster.StartAgent(ctx, agentsNode))
	connection, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	n.must(err)
	tb.Cleanup(func() { connection.Close() })
	n.csi = csispec.NewNodeClient(connection)
	n.status(ctx, "all disks are Ready", func(s *diskv1alpha1.NodeDiskCapacityStatus) bool {
		ready := 0
		for _, d := range s.Disks {
			if d.State == diskv1alpha1.DiskReady {
				ready++
			}
		}
		return ready == disks
	})
	return n
}

func (n *agentNode) must(err error) {
	n.tb.Helper()
	if err != nil {
		n.tb.Fatal(err)
	}
}

// status waits until the published status passes the check, and returns it.
func (n *agentNode) status(ctx context.Context, what string, check func(*diskv1alpha1.NodeDiskCapacityStatus) bool) diskv1alpha1.NodeDiskCapacityStatus {
	n.tb.Helper()
	ndc := &diskv1alpha1.NodeDiskCapacity{}
	testenv.Eventually(n.tb, what, func() error {
		if err := n.client.Get(ctx, client.ObjectKey{Name: n.name}, ndc); err != nil {
			return err
		}
		if !check(&ndc.Status) {
			return fmt.Errorf("the status is %+v", ndc.Status)
		}
		return nil
	})
	return ndc.Status
}

// pod makes a pod and binds it to the node like the scheduler: with a record if place is not nil.
func (n *agentNode) pod(ctx context.Context, name string, size int64, fsType string, place *diskv1alpha1.RecordVolume) *corev1.Pod {
	n.tb.Helper()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: name},
		Spec: corev1.PodSpec{
			// No scheduler runs here.
			SchedulerName: "berth",
			Containers:    []corev1.Container{{Name: "main", Image: "any"}},
		},
	}
	if size > 0 {
		pod.Spec.Volumes = []corev1.Volume{objects.InlineVolume("data", className, objects.Bytes(size))}
		pod.Spec.Volumes[0].CSI.FSType = &fsType
	}
	n.must(n.client.Create(ctx, pod))
	binding := &corev1.Binding{Target: corev1.ObjectReference{Kind: "Node", Name: n.name}}
	if place != nil {
		record, err := diskv1alpha1.EncodeRecord([]diskv1alpha1.RecordVolume{*place})
		n.must(err)
		binding.Annotations = map[string]string{diskv1alpha1.AnnotationAllocation: record}
	}
	n.must(n.client.SubResource("binding").Create(ctx, pod, binding))
	return pod
}

func (n *agentNode) remove(ctx context.Context, pod *corev1.Pod) {
	n.tb.Helper()
	n.must(n.client.Delete(ctx, pod, client.GracePeriodSeconds(0)))
}

func (n *agentNode) publish(ctx context.Context, pod *corev1.Pod, target string) error {
	request := objects.PublishRequest(pod, "data", target)
	request.VolumeCapability.GetMount().FsType = *pod.Spec.Volumes[0].CSI.FSType
	_, err := n.csi.NodePublishVolume(ctx, request)
	return err
}

func (n *agentNode) unpublish(ctx context.Context, pod *corev1.Pod, target string) {
	n.tb.Helper()
	_, err := n.csi.NodeUnpublishVolume(ctx, &csispec.NodeUnpublishVolumeRequest{
		VolumeId: diskv1alpha1.InlineVolumeID(pod.UID, "data"), TargetPath: target,
	})
	n.must(err)
}

// wiped waits until the kernel has no partition of the disk but the agent's own.
func (n *agentNode) wiped() {
	n.tb.Helper()
	testenv.Eventually(n.tb, "the volume is wiped", func() error {
		if left := testenv.Partitions(n.tb, n.disk.Path); len(left) > 1 {
			return fmt.Errorf("the partitions %v are left", left)
		}
		return nil
	})
}
