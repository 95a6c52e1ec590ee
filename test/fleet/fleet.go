// Package fleet fills a real control plane with nodes that exist only as objects, and simulates what would run on them.
// Agents are the agents of all nodes, and Provision is the fastest possible provisioner of another driver. The package
// counts the writes of the API server. Benchmarks of the scheduler use it. It owns no figures, and starts no programs.
package fleet

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/units"
)

// Class is the DiskClass of all disks.
const Class = "ssd"

// Fleet is the clients of a control plane that a benchmark needs.
type Fleet struct {
	Config *rest.Config
	Client client.Client
	// Clientset uses protobuf. It is for large numbers of objects.
	Clientset kubernetes.Interface
}

// New connects to a control plane.
func New(config *rest.Config) (*Fleet, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, diskv1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, err
		}
	}
	f := &Fleet{Config: config}
	var err error
	if f.Client, err = client.New(config, client.Options{Scheme: scheme}); err != nil {
		return nil, err
	}
	binary := rest.CopyConfig(config)
	binary.ContentType, binary.AcceptContentTypes = runtime.ContentTypeProtobuf, runtime.ContentTypeProtobuf
	f.Clientset, err = kubernetes.NewForConfig(binary)
	return f, err
}

// Parallel calls do for 0..n-1 from several goroutines.
func Parallel(ctx context.Context, n int, do func(ctx context.Context, i int) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(16)
	for i := range n {
		group.Go(func() error { return do(ctx, i) })
	}
	return group.Wait()
}

// NodeName is the name of a node.
func NodeName(i int) string { return fmt.Sprintf("node-%04d", i) }

// Populate makes the DiskClass and the nodes. Each node has two empty disks whose free space is in several pieces.
func (f *Fleet) Populate(ctx context.Context, nodes int) error {
	err := f.Client.Create(ctx, &diskv1alpha1.DiskClass{
		ObjectMeta: metav1.ObjectMeta{Name: Class},
		Spec:       diskv1alpha1.DiskClassSpec{Devices: diskv1alpha1.DeviceSelector{Paths: []string{"/dev/nvme*"}}},
	})
	if err != nil {
		return err
	}
	return Parallel(ctx, nodes, func(ctx context.Context, i int) error {
		if err := f.createNode(ctx, i); err != nil {
			return fmt.Errorf("make %s: %w", NodeName(i), err)
		}
		return nil
	})
}

func (f *Fleet) createNode(ctx context.Context, i int) error {
	name := NodeName(i)
	capacity := corev1.ResourceList{
		corev1.ResourceCPU:    resource.MustParse("64"),
		corev1.ResourceMemory: resource.MustParse("256Gi"),
		corev1.ResourcePods:   resource.MustParse("250"),
	}
	node, err := f.Clientset.CoreV1().Nodes().Create(ctx, &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
			corev1.LabelHostname: name, diskv1alpha1.LabelNode: diskv1alpha1.NodeLabel(name),
		}},
		Status: corev1.NodeStatus{
			Capacity: capacity, Allocatable: capacity,
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	// The API server gives every new node a taint, which its kubelet would remove.
	node.Spec.Taints = nil
	if _, err := f.Clientset.CoreV1().Nodes().Update(ctx, node, metav1.UpdateOptions{}); err != nil {
		return err
	}
	owner := []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: name, UID: node.UID}}
	if _, err := f.Clientset.StorageV1().CSINodes().Create(ctx, &storagev1.CSINode{
		ObjectMeta: metav1.ObjectMeta{Name: name, OwnerReferences: owner},
		Spec: storagev1.CSINodeSpec{Drivers: []storagev1.CSINodeDriver{{
			Name: diskv1alpha1.DriverName, NodeID: name, TopologyKeys: []string{diskv1alpha1.LabelNode},
		}}},
	}, metav1.CreateOptions{}); err != nil {
		return err
	}
	status := newNode(i).status()
	ndc := &diskv1alpha1.NodeDiskCapacity{ObjectMeta: metav1.ObjectMeta{Name: name}}
	// As on a node that has run before: the scheduler has written down which disks it owns, and the agent has removed
	// the managed fields.
	for _, d := range status.Disks {
		ndc.Spec.OwnedDisks = append(ndc.Spec.OwnedDisks, d.ID)
	}
	if err := f.Client.Create(ctx, ndc); err != nil {
		return err
	}
	ndc.Status = status
	if err := f.Client.Status().Update(ctx, ndc); err != nil {
		return err
	}
	ndc.ManagedFields = []metav1.ManagedFieldsEntry{{}}
	return f.Client.Update(ctx, ndc)
}

// disksOf returns two disks of 1 TiB with their free space in eight pieces each. The sizes differ from node to node.
func disksOf(node int) []diskv1alpha1.Disk {
	const size, piece, pieces = 1024 * units.GiB, 100 * units.GiB, 8
	var disks []diskv1alpha1.Disk
	for d := range 2 {
		disk := diskv1alpha1.Disk{
			ID:     diskv1alpha1.PartitionID(fmt.Sprintf("node %d disk %d", node, d)),
			Device: fmt.Sprintf("nvme%dn1", d), Class: Class, SectorSize: 512, Size: size, State: diskv1alpha1.DiskReady,
		}
		free := int64(0)
		for p := range int64(pieces) {
			e := diskv1alpha1.Extent{Start: units.GiB + p*(piece+units.GiB), Length: piece - int64((node*7+d*3+int(p)*5)%40)*units.GiB}
			disk.Free = append(disk.Free, e)
			free += e.Length
		}
		disk.Overhead = size - free
		disks = append(disks, disk)
	}
	slices.SortFunc(disks, func(a, b diskv1alpha1.Disk) int { return strings.Compare(a.ID, b.ID) })
	return disks
}

// DeletePods deletes all pods of the namespace, one by one and in parallel. The API server has a minute for a request,
// and deletes the objects of a collection sequentially.
func (f *Fleet) DeletePods(ctx context.Context, namespace string) error {
	pods := f.Clientset.CoreV1().Pods(namespace)
	list, err := pods.List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	return Parallel(ctx, len(list.Items), func(ctx context.Context, i int) error {
		err := pods.Delete(ctx, list.Items[i].Name, *metav1.NewDeleteOptions(0))
		if apierrors.IsNotFound(err) {
			return nil
		}
		return err
	})
}

// deleteAll repeats the request if the API server could not delete that many objects in the minute that a request may
// take.
func (f *Fleet) deleteAll(ctx context.Context, object client.Object, options ...client.DeleteAllOfOption) error {
	const tries = 10
	var err error
	for range tries {
		if err = f.Client.DeleteAllOf(ctx, object, options...); err == nil || ctx.Err() != nil {
			return err
		}
	}
	return err
}
