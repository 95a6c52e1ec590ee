package integration

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/controller-runtime/pkg/client"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/placement"
	"github.com/berthdev/berth/pkg/request"
	"github.com/berthdev/berth/test/objects"
	"github.com/berthdev/berth/test/units"
)

// simNode is a node without a machine: one disk that exists only as a list of volumes.
// It does what the agent does with records, and publishes like the agent: a record is
// realized where it says, or elsewhere if that place is taken, or not at all.
type simNode struct {
	name   string
	client client.Client
	size   int64 // bytes for volumes

	mu      sync.Mutex
	volumes map[string]extent.Extent // by partition
	claimed map[string]extent.Extent // by partition, of PersistentVolumes
	wiping  map[string]bool          // partitions, while slow
	slow    bool                     // wipes without end
	silent  bool                     // publishes nothing
	// hasMapper is true if the node has the device mapper.
	hasMapper bool
	// moved counts records that could not be realized where they said.
	moved int
	// evicted counts pods that found no room at all.
	evicted int
}

func simDisk(node string) string { return diskv1alpha1.PartitionID("disk of " + node) }

// newSimNode creates the Node, its CSINode and its NodeDiskCapacity.
func newSimNode(t *testing.T, c client.Client, name string, sizeGiB int64, drivers ...string) *simNode {
	t.Helper()
	ctx := t.Context()
	n := &simNode{name: name, client: c, size: sizeGiB * units.GiB, volumes: map[string]extent.Extent{}, claimed: map[string]extent.Extent{}, wiping: map[string]bool{}}
	room := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1000"), corev1.ResourceMemory: resource.MustParse("1000Gi"), corev1.ResourcePods: resource.MustParse("1000")}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: diskv1alpha1.NodeLabel(name)}}}
	if slices.Contains(drivers, diskv1alpha1.DriverName) {
		node.Labels[diskv1alpha1.LabelNode] = diskv1alpha1.NodeLabel(name)
	}
	n.must(t, c.Create(ctx, node))
	node.Status = corev1.NodeStatus{Capacity: room, Allocatable: room, Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}}
	n.must(t, c.Status().Update(ctx, node))
	// Admission taints every new node as not ready, and no controller here takes that back.
	node.Spec.Taints = nil
	n.must(t, c.Update(ctx, node))
	csiNode := objects.CSINode(name, drivers...)
	csiNode.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: name, UID: node.UID}}
	n.must(t, c.Create(ctx, csiNode))
	n.must(t, n.publish(ctx))
	t.Cleanup(func() {
		ctx := context.WithoutCancel(ctx)
		for _, o := range []client.Object{node, csiNode, &diskv1alpha1.NodeDiskCapacity{ObjectMeta: metav1.ObjectMeta{Name: name}}} {
			n.must(t, client.IgnoreNotFound(c.Delete(ctx, o)))
		}
	})
	return n
}

func (n *simNode) must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("node %s: %v", n.name, err)
	}
}

// sync realizes and wipes until the disk is what the node's pods want, then publishes.
func (n *simNode) sync(ctx context.Context, pods []corev1.Pod) error {
	n.mu.Lock()
	wanted := map[string]bool{}
	changed := false
	var finished []*corev1.Pod
	for i := range pods {
		pod := &pods[i]
		if pod.Spec.NodeName != n.name {
			continue
		}
		if pod.DeletionTimestamp != nil {
			// Like a kubelet: the volume goes first, the pod object after it.
			finished = append(finished, pod)
			continue
		}
		volumes, err := request.FromPod(pod)
		if err != nil {
			continue
		}
		for _, v := range volumes {
			wanted[v.Partition] = true
			if _, there := n.volumes[v.Partition]; there {
				continue
			}
			changed = true
			if !n.realize(pod, v) {
				n.evicted++
				finished = append(finished, pod)
			}
		}
	}
	for partition := range n.volumes {
		switch {
		case wanted[partition], n.slow && n.wiping[partition]:
			continue
		case n.slow:
			n.wiping[partition] = true
		default:
			delete(n.volumes, partition)
			delete(n.wiping, partition)
		}
		changed = true
	}
	silent := n.silent
	n.mu.Unlock()
	if changed && !silent {
		if err := n.publish(ctx); err != nil {
			return err
		}
	}
	for _, pod := range finished {
		if err := client.IgnoreNotFound(n.client.Delete(ctx, pod, client.GracePeriodSeconds(0))); err != nil {
			return err
		}
	}
	return nil
}

// realize puts a volume on the disk. The lock is held.
func (n *simNode) realize(pod *corev1.Pod, v request.Volume) bool {
	free := n.free()
	if record, err := diskv1alpha1.DecodeRecord(pod.Annotations[diskv1alpha1.AnnotationAllocation]); err == nil {
		if place, ok := record.Volume(v.Name); ok && place.Disk == simDisk(n.name) && place.Length == v.Request.Size {
			if e := extent.New(place.Start, place.Length); free.Contains(e) {
				n.volumes[v.Partition] = e
				return true
			}
		}
	}
	view := &placement.Node{Disks: []placement.Disk{{ID: simDisk(n.name), Class: "ssd", Free: free}}}
	plan, err := placement.Plan(nil, view, []placement.Request{v.Request})
	if err != nil {
		return false
	}
	n.moved++
	n.volumes[v.Partition] = plan[0].Extent
	return true
}

func (n *simNode) free() extent.Set {
	return extent.NewSet(extent.New(diskv1alpha1.Alignment, n.size)).
		Subtract(extent.NewSet(slices.Collect(maps.Values(n.volumes))...)).
		Subtract(extent.NewSet(slices.Collect(maps.Values(n.claimed))...))
}

// publish writes the NodeDiskCapacity.
func (n *simNode) publish(ctx context.Context) error {
	n.mu.Lock()
	disk := diskv1alpha1.Disk{
		ID: simDisk(n.name), Device: "sim", Class: "ssd", SectorSize: 512,
		Size: n.size + 2*diskv1alpha1.Alignment, Overhead: 2 * diskv1alpha1.Alignment, State: diskv1alpha1.DiskReady,
	}
	for _, e := range n.free().All() {
		disk.Free = append(disk.Free, diskv1alpha1.Extent{Start: e.Start, Length: e.Len()})
	}
	for partition, e := range n.volumes {
		phase := diskv1alpha1.PhaseFormatted
		if n.wiping[partition] {
			phase = diskv1alpha1.PhaseWiping
		}
		disk.Allocations = append(disk.Allocations, diskv1alpha1.Allocation{
			Partition: partition, Extent: diskv1alpha1.Extent{Start: e.Start, Length: e.Len()}, Phase: phase,
		})
	}
	for partition, e := range n.claimed {
		disk.Allocations = append(disk.Allocations, diskv1alpha1.Allocation{
			Partition: partition, Extent: diskv1alpha1.Extent{Start: e.Start, Length: e.Len()}, Phase: diskv1alpha1.PhaseFormatted,
		})
	}
	n.mu.Unlock()
	return n.write(ctx, disk)
}

// writeStatus publishes disks as an agent does, and whether the node has the device mapper.
func writeStatus(ctx context.Context, c client.Client, name string, status diskv1alpha1.NodeDiskCapacityStatus) error {
	return retry.RetryOnConflict(retry.DefaultRetry, func() error {
		ndc := &diskv1alpha1.NodeDiskCapacity{}
		err := c.Get(ctx, client.ObjectKey{Name: name}, ndc)
		if apierrors.IsNotFound(err) {
			ndc.Name = name
			err = c.Create(ctx, ndc)
		}
		if err != nil {
			return err
		}
		ndc.Status.Disks, ndc.Status.DeviceMapper = status.Disks, status.DeviceMapper
		return c.Status().Update(ctx, ndc)
	})
}

func (n *simNode) write(ctx context.Context, disks ...diskv1alpha1.Disk) error {
	if err := writeStatus(ctx, n.client, n.name, diskv1alpha1.NodeDiskCapacityStatus{Disks: disks, DeviceMapper: n.hasMapper}); err != nil {
		return fmt.Errorf("publishing the disks of %s: %w", n.name, err)
	}
	return nil
}

// check holds that the disk is sound: nothing overlaps, nothing reaches out.
func (n *simNode) check(t *testing.T) (used int64) {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	all := extent.New(diskv1alpha1.Alignment, n.size)
	var taken extent.Set
	volumes := maps.Clone(n.volumes)
	maps.Copy(volumes, n.claimed)
	for partition, e := range volumes {
		if taken.Overlaps(e) || !all.Contains(e) {
			t.Errorf("node %s: partition %s at %v overlaps another or reaches out of the disk", n.name, partition, e)
		}
		taken = taken.Add(e)
	}
	return taken.Total()
}

func (n *simNode) setSilent(silent bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.silent = silent
}

func (n *simNode) setSlow(slow bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.slow = slow
}

func (n *simNode) counts() (moved, evicted int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.moved, n.evicted
}

// follow runs the nodes until the test ends.
func follow(t *testing.T, c client.Client, nodes ...*simNode) {
	t.Helper()
	again(t, func(ctx context.Context) error {
		var pods corev1.PodList
		if err := c.List(ctx, &pods); err != nil {
			return fmt.Errorf("the nodes cannot list pods: %w", err)
		}
		for _, n := range nodes {
			if err := n.sync(ctx, pods.Items); err != nil {
				return err
			}
		}
		return nil
	})
}

// again does it over and over until the test ends, or it fails.
func again(t *testing.T, do func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		for ctx.Err() == nil {
			if err := do(ctx); err != nil {
				if ctx.Err() == nil {
					t.Error(err)
				}
				return
			}
			pause(ctx)
		}
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
}
