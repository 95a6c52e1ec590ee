package integration

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/placement"
	"github.com/berthdev/berth/pkg/request"
	"github.com/berthdev/berth/test/objects"
	"github.com/berthdev/berth/test/units"
)

// steppedNode is a node whose agent works only when it is asked to: a stale publisher as long as the history wants.
// What it does with pods and PersistentVolumes is what the agent does, with the kubelet's part of the end of a pod.
type steppedNode struct {
	name   string
	client client.Client
	disks  []*steppedDisk
	// unpublished is true when the disks are not as they were published last.
	unpublished bool
	// absent is true while there is no Node.
	absent bool
	// mapper is true if the node has the device mapper.
	mapper bool
}

type steppedDisk struct {
	id      string
	size    int64 // bytes for volumes
	failed  bool
	volumes map[string]*steppedVolume // by partition
}

type steppedVolume struct {
	extent.Extent
	wiping bool
}

// wantedVolume is what a pod or a PersistentVolume says.
type wantedVolume struct {
	disk string
	extent.Extent
	// moveTo is where a PersistentVolume is moved on its disk; empty if nowhere.
	moveTo extent.Extent
	// pieceOf is the partition of the volume of which this is a further piece; empty if it is none. It is made after the
	// volume, and only while the volume is not moved.
	pieceOf string
	moves   bool
}

func newSteppedNode(c client.Client, name string, disks int, sizeGiB int64) *steppedNode {
	n := &steppedNode{name: name, client: c}
	for i := range disks {
		n.disks = append(n.disks, &steppedDisk{
			id: diskv1alpha1.PartitionID(fmt.Sprintf("disk %d of %s", i, name)), size: sizeGiB * units.GiB,
			volumes: map[string]*steppedVolume{},
		})
	}
	return n
}

// appear makes the Node and its CSINode, and publishes.
func (n *steppedNode) appear(ctx context.Context) error {
	many := resource.MustParse("1000")
	room := corev1.ResourceList{
		corev1.ResourceCPU: many, corev1.ResourceMemory: resource.MustParse("1000Gi"), corev1.ResourcePods: many,
	}
	label := diskv1alpha1.NodeLabel(n.name)
	labels := map[string]string{corev1.LabelHostname: label, diskv1alpha1.LabelNode: label}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.name, Labels: labels}}
	if err := client.IgnoreAlreadyExists(n.client.Create(ctx, node)); err != nil {
		return err
	}
	ready := []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	node.Status = corev1.NodeStatus{Capacity: room, Allocatable: room, Conditions: ready}
	if err := n.client.Status().Update(ctx, node); err != nil {
		return err
	}
	// Admission taints every new node as not ready, and no controller here takes that back.
	node.Spec.Taints = nil
	if err := n.client.Update(ctx, node); err != nil {
		return err
	}
	if err := client.IgnoreAlreadyExists(n.client.Create(ctx, objects.CSINode(n.name, diskv1alpha1.DriverName))); err != nil {
		return err
	}
	n.absent = false
	return n.publish(ctx)
}

// vanish deletes the Node and its CSINode. What the node has published stays.
func (n *steppedNode) vanish(ctx context.Context) error {
	n.absent = true
	for _, o := range []client.Object{&corev1.Node{}, &storagev1.CSINode{}} {
		o.SetName(n.name)
		if err := client.IgnoreNotFound(n.client.Delete(ctx, o)); err != nil {
			return err
		}
	}
	return nil
}

// work takes every volume one step further, and publishes unless the publication is to be late. It reports whether
// there was anything to do.
func (n *steppedNode) work(ctx context.Context, late bool) (busy bool, err error) {
	if n.absent {
		return false, nil
	}
	var pods corev1.PodList
	if err := n.client.List(ctx, &pods, client.MatchingFields{"spec.nodeName": n.name}); err != nil {
		return false, err
	}
	var volumes corev1.PersistentVolumeList
	ours := client.MatchingLabels{diskv1alpha1.LabelNode: diskv1alpha1.NodeLabel(n.name)}
	if err := n.client.List(ctx, &volumes, ours); err != nil {
		return false, err
	}
	wanted := wantedBy(pods.Items, volumes.Items)
	changed := n.wipe(wanted)
	for _, partition := range slices.Sorted(maps.Keys(wanted)) {
		changed = n.realize(partition, wanted[partition]) || changed
	}
	n.unpublished = n.unpublished || changed
	if n.unpublished && !late {
		if err := n.publish(ctx); err != nil {
			return false, err
		}
	}
	if n.unpublished {
		// What has ended is published before the scheduler can know.
		return true, nil
	}
	ended, err := n.finish(ctx, pods.Items, volumes.Items)
	return changed || ended, err
}

// wantedBy are the volumes of these pods and PersistentVolumes, by partition.
func wantedBy(pods []corev1.Pod, volumes []corev1.PersistentVolume) map[string]wantedVolume {
	wanted := map[string]wantedVolume{}
	for i := range pods {
		pod := &pods[i]
		asked, err := request.FromPod(pod)
		if err != nil || pod.DeletionTimestamp != nil {
			continue
		}
		record, _ := diskv1alpha1.DecodeRecord(pod.Annotations[diskv1alpha1.AnnotationAllocation])
		for _, v := range asked {
			at := wantedVolume{Extent: extent.New(0, v.Request.Size)}
			if place, ok := record.Volume(v.Name); ok {
				at = wantedVolume{disk: place.Disk, Extent: extent.New(place.Start, place.Length)}
			}
			wanted[v.Partition] = at
		}
	}
	for i := range volumes {
		pv := &volumes[i]
		if v, err := claim.ReadVolume(pv); err == nil && !hasEnded(pv) {
			at := wantedVolume{disk: v.Place.Disk, Extent: extent.New(v.Place.Start, v.Size)}
			if v.MoveTo != nil {
				at.moveTo = extent.New(v.MoveTo.Start, v.MoveTo.Length)
			}
			at.Extent = extent.New(v.Place.Start, v.FirstLength())
			wanted[v.Partition] = at
			for i, p := range v.Pieces {
				wanted[diskv1alpha1.PieceID(v.Partition, i+1)] = wantedVolume{
					disk: p.Disk, Extent: extent.New(p.Start, p.Length), pieceOf: v.Partition, moves: v.MoveTo != nil,
				}
			}
		}
	}
	return wanted
}

func hasEnded(pv *corev1.PersistentVolume) bool {
	return pv.DeletionTimestamp != nil || pv.Status.Phase == corev1.VolumeReleased &&
		pv.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete
}

// wipe begins to wipe volumes without a pod or PersistentVolume, and frees those that were being wiped.
func (n *steppedNode) wipe(wanted map[string]wantedVolume) (changed bool) {
	for _, d := range n.disks {
		for partition, v := range d.volumes {
			if v.wiping {
				delete(d.volumes, partition)
				changed = true
			} else if _, ok := wanted[partition]; !ok {
				v.wiping, changed = true, true
			}
		}
	}
	return changed
}

// realize makes a volume where it is recorded, or elsewhere if that is taken; or makes it as large as it is recorded,
// or moves it.
func (n *steppedNode) realize(partition string, at wantedVolume) (changed bool) {
	for _, d := range n.disks {
		if v := d.volumes[partition]; v != nil {
			if !at.moveTo.Empty() {
				return !v.wiping && d.move(partition, at.moveTo)
			}
			longer := extent.New(v.Start, at.Len())
			tail := extent.Extent{Start: v.End, End: longer.End}
			if v.wiping || tail.Empty() || at.moves || !d.free().Contains(tail) {
				return false
			}
			v.Extent = longer
			return true
		}
	}
	if at.pieceOf != "" {
		return n.addPiece(partition, at)
	}
	view := &placement.Node{}
	for _, d := range n.disks {
		if d.id == at.disk && d.free().Contains(at.Extent) {
			d.volumes[partition] = &steppedVolume{Extent: at.Extent}
			return true
		}
		view.Disks = append(view.Disks, placement.Disk{ID: d.id, Class: "ssd", Free: d.free()})
	}
	plan, err := placement.Plan(nil, view, []placement.Request{{Class: "ssd", Size: at.Len()}})
	if err != nil {
		return false
	}
	for _, d := range n.disks {
		if d.id == plan[0].Disk {
			d.volumes[partition] = &steppedVolume{Extent: plan[0].Extent}
		}
	}
	return true
}

// addPiece makes a further piece of a volume where it is recorded, if its volume is there.
func (n *steppedNode) addPiece(partition string, at wantedVolume) (made bool) {
	for _, d := range n.disks {
		first := d.volumes[at.pieceOf]
		if first == nil || first.wiping || d.id != at.disk || at.moves || !d.free().Contains(at.Extent) {
			continue
		}
		d.volumes[partition] = &steppedVolume{Extent: at.Extent}
		return true
	}
	return false
}

// move moves a volume, and begins to wipe its earlier place.
func (d *steppedDisk) move(partition string, to extent.Extent) (moved bool) {
	v := d.volumes[partition]
	if v.Start == to.Start || !d.free().Contains(to) {
		return false
	}
	copied := diskv1alpha1.CopyID(partition)
	d.volumes[copied] = &steppedVolume{Extent: v.Extent, wiping: true}
	for i := 1; i < diskv1alpha1.MaxPieces; i++ {
		if piece := d.volumes[diskv1alpha1.PieceID(partition, i)]; piece != nil {
			d.volumes[diskv1alpha1.PieceID(copied, i)] = &steppedVolume{Extent: piece.Extent, wiping: true}
			delete(d.volumes, diskv1alpha1.PieceID(partition, i))
		}
	}
	v.Extent = to
	return true
}

// has reports whether a partition is on one of the disks.
func (n *steppedNode) has(partition string) bool {
	return slices.ContainsFunc(n.disks, func(d *steppedDisk) bool { return d.volumes[partition] != nil })
}

// finish ends the pods and PersistentVolumes whose volumes are gone.
func (n *steppedNode) finish(
	ctx context.Context, pods []corev1.Pod, volumes []corev1.PersistentVolume,
) (ended bool, err error) {
	for i := range pods {
		pod := &pods[i]
		asked, _ := request.FromPod(pod)
		has := func(v request.Volume) bool { return n.has(v.Partition) }
		if pod.DeletionTimestamp == nil || slices.ContainsFunc(asked, has) {
			continue
		}
		ended = true
		this := client.Preconditions{UID: &pod.UID}
		if err := n.client.Delete(ctx, pod, client.GracePeriodSeconds(0), this); !goneOrChanged(err) {
			return ended, err
		}
	}
	for i := range volumes {
		pv := &volumes[i]
		v, err := claim.ReadVolume(pv)
		if err != nil || !hasEnded(pv) || n.has(v.Partition) || n.has(diskv1alpha1.CopyID(v.Partition)) {
			continue
		}
		if pv.DeletionTimestamp == nil {
			ended = true
			this := client.Preconditions{UID: &pv.UID, ResourceVersion: &pv.ResourceVersion}
			if err := n.client.Delete(ctx, pv, this); !goneOrChanged(err) {
				return ended, err
			}
			continue
		}
		before := pv.DeepCopy()
		if controllerutil.RemoveFinalizer(pv, diskv1alpha1.FinalizerVolume) {
			ended = true
			patch := client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})
			if err := n.client.Patch(ctx, pv, patch); !goneOrChanged(err) {
				return ended, err
			}
		}
	}
	return ended, nil
}

// goneOrChanged reports whether a write was done, or failed because its object is gone or was changed by another
// client.
func goneOrChanged(err error) bool {
	return err == nil || apierrors.IsNotFound(err) || apierrors.IsConflict(err) ||
		apierrors.IsAlreadyExists(err) || apierrors.IsInvalid(err)
}

func (d *steppedDisk) whole() extent.Extent { return extent.New(diskv1alpha1.Alignment, d.size) }

func (d *steppedDisk) free() extent.Set {
	free := extent.NewSet(d.whole())
	for _, v := range d.volumes {
		free = free.Remove(v.Extent)
	}
	return free
}

// publish writes the NodeDiskCapacity.
func (n *steppedNode) publish(ctx context.Context) error {
	var disks []diskv1alpha1.Disk
	for _, d := range n.disks {
		disk := diskv1alpha1.Disk{
			ID: d.id, Device: "sim", Class: "ssd", SectorSize: 512,
			Size: d.size + 2*diskv1alpha1.Alignment, Overhead: 2 * diskv1alpha1.Alignment, State: diskv1alpha1.DiskReady,
		}
		if d.failed {
			disk.State = diskv1alpha1.DiskFailed
		}
		for _, e := range d.free().All() {
			disk.Free = append(disk.Free, diskv1alpha1.Extent{Start: e.Start, Length: e.Len()})
		}
		for partition, v := range d.volumes {
			phase := diskv1alpha1.PhaseFormatted
			if v.wiping {
				phase = diskv1alpha1.PhaseWiping
			}
			disk.Allocations = append(disk.Allocations, diskv1alpha1.Allocation{
				Partition: partition, Extent: diskv1alpha1.Extent{Start: v.Start, Length: v.Len()}, Phase: phase,
			})
		}
		slices.SortFunc(disk.Allocations, func(a, b diskv1alpha1.Allocation) int { return cmp.Compare(a.Start, b.Start) })
		disks = append(disks, disk)
	}
	err := writeStatus(ctx, n.client, n.name, diskv1alpha1.NodeDiskCapacityStatus{Disks: disks, DeviceMapper: n.mapper})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		// It was deleted, or is written to all the time: it is published next time.
		n.unpublished = true
		return nil
	}
	if err != nil {
		return fmt.Errorf("publishing the disks of %s: %w", n.name, err)
	}
	n.unpublished = false
	return nil
}

// makeSteppedNodes makes the nodes, until the test ends.
func makeSteppedNodes(t *testing.T, c client.Client, count, disks int, sizeGiB int64) []*steppedNode {
	t.Helper()
	nodes := make([]*steppedNode, count)
	for i := range nodes {
		nodes[i] = newSteppedNode(c, fmt.Sprintf("leak-%d", i), disks, sizeGiB)
		// The other nodes move a volume that cannot grow where it is.
		nodes[i].mapper = i%2 == 0
		if err := nodes[i].appear(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	return nodes
}
