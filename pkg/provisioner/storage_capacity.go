package provisioner

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"sort"
	"time"

	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	storagelisters "k8s.io/client-go/listers/storage/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/pkg/controller"
	"github.com/berthdev/berth/pkg/ledger"
)

const (
	// Labels of the objects, the same as external-provisioner's.
	labelDriver    = "csi.storage.k8s.io/drivername"
	labelManagedBy = "csi.storage.k8s.io/managed-by"
	managedBy      = "berth-scheduler"

	// batchDelay is how long changes of a node wait for more of them. Many volumes that come and go in that time cost
	// one write a class.
	batchDelay = time.Second

	nodeIndex = "disk.berth.dev/node"
)

// ownLabels selects the objects of this package.
var ownLabels = labels.Set{labelDriver: diskv1alpha1.DriverName, labelManagedBy: managedBy}

// storageCapacities keeps a CSIStorageCapacity for every StorageClass of ours and every node that has disks for it. If
// they are not enabled, it keeps none.
type storageCapacities struct {
	enabled   bool
	namespace string
	client    kubernetes.Interface
	ledger    *ledger.Ledger
	classes   storagelisters.StorageClassLister
	nodes     corelisters.NodeLister
	// nodeExists reports whether there is a Node with that value of LabelNode.
	nodeExists func(label string) bool
	informer   cache.SharedIndexInformer
	// queue has names of nodes.
	queue controller.Queue
}

func newStorageCapacities(c *Controllers, o *Options) *storageCapacities {
	p := &storageCapacities{
		enabled: o.PublishCapacity, namespace: o.Namespace, client: o.Client,
		ledger: c.ledger, classes: c.classes, nodes: c.nodes, nodeExists: c.nodeExists, queue: controller.NewQueue("berth_capacities", firstRetry),
	}
	if p.enabled {
		p.informer = o.Factory.Storage().V1().CSIStorageCapacities().Informer()
		// Fails only for an informer that runs, or that has an index of this name.
		_ = p.informer.AddIndexers(cache.Indexers{nodeIndex: func(obj any) ([]string, error) {
			if capacity, ok := obj.(*storagev1.CSIStorageCapacity); ok && p.owns(capacity) {
				return []string{capacity.Labels[diskv1alpha1.LabelNode]}, nil
			}
			return nil, nil
		}})
	}
	return p
}

func (c *storageCapacities) owns(capacity *storagev1.CSIStorageCapacity) bool {
	return capacity.Namespace == c.namespace && labels.SelectorFromSet(ownLabels).Matches(labels.Set(capacity.Labels))
}

// nodeChanged queues a node that has published its disks, or no longer publishes any.
func (c *storageCapacities) nodeChanged(node string) {
	if c.enabled {
		c.queue.AddAfter(node, batchDelay)
	}
}

// classesChanged queues all nodes after a change of a StorageClass.
func (c *storageCapacities) classesChanged() {
	if !c.enabled {
		return
	}
	nodes, err := c.nodes.List(labels.Everything())
	if err != nil {
		return
	}
	for _, node := range nodes {
		c.queue.AddAfter(node.Name, batchDelay)
	}
}

// run works until the context ends.
func (c *storageCapacities) run(ctx context.Context) {
	context.AfterFunc(ctx, c.queue.ShutDown)
	if !c.enabled {
		if err := c.deleteAll(ctx); err != nil {
			klog.FromContext(ctx).Error(err, "CSIStorageCapacity objects that are not wanted any more were not deleted", "namespace", c.namespace)
		}
		return
	}
	if !cache.WaitForCacheSync(ctx.Done(), c.informer.HasSynced) {
		return
	}
	c.classesChanged()
	c.queueGoneNodes()
	controller.Work(ctx, c.queue, "node", controller.Once(c.sync))
}

// deleteAll deletes what was published while it was enabled.
func (c *storageCapacities) deleteAll(ctx context.Context) error {
	selector := metav1.ListOptions{LabelSelector: ownLabels.String()}
	// It reads first: this is done at each start, and there are hardly ever any.
	list, err := c.client.StorageV1().CSIStorageCapacities(c.namespace).List(ctx, selector)
	if err != nil || len(list.Items) == 0 {
		return err
	}
	return c.client.StorageV1().CSIStorageCapacities(c.namespace).DeleteCollection(ctx, metav1.DeleteOptions{}, selector)
}

// queueGoneNodes queues the nodes that have objects and no Node.
func (c *storageCapacities) queueGoneNodes() {
	for _, label := range c.informer.GetIndexer().ListIndexFuncValues(nodeIndex) {
		// For a node that is gone the label is as good a key as its name: the ledger does not know it either.
		if !c.nodeExists(label) {
			c.queue.Add(label)
		}
	}
}

// sync makes the objects of a node equal to what they should be.
func (c *storageCapacities) sync(ctx context.Context, node string) error {
	wanted, err := c.wantedFor(node)
	if err != nil {
		return err
	}
	present, err := c.informer.GetIndexer().ByIndex(nodeIndex, diskv1alpha1.NodeLabel(node))
	if err != nil {
		return err
	}
	var failed error
	for _, obj := range present {
		have, ok := obj.(*storagev1.CSIStorageCapacity)
		if !ok {
			continue
		}
		want := wanted[have.Name]
		delete(wanted, have.Name)
		failed = errors.Join(failed, c.replace(ctx, have, want))
	}
	for _, name := range slices.Sorted(maps.Keys(wanted)) {
		_, err := c.client.StorageV1().CSIStorageCapacities(c.namespace).Create(ctx, wanted[name], metav1.CreateOptions{})
		switch {
		case apierrors.IsAlreadyExists(err):
			// The informer has not seen it yet.
			c.queue.AddAfter(node, batchDelay)
		case err != nil:
			failed = errors.Join(failed, fmt.Errorf("creating CSIStorageCapacity %s of node %s: %w", name, node, err))
		}
	}
	return failed
}

// replace updates an object, or deletes it if want is nil.
func (c *storageCapacities) replace(ctx context.Context, have, want *storagev1.CSIStorageCapacity) error {
	client := c.client.StorageV1().CSIStorageCapacities(c.namespace)
	if want == nil {
		err := client.Delete(ctx, have.Name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(have.UID))})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("deleting CSIStorageCapacity %s: %w", have.Name, err)
		}
		return nil
	}
	if have.Capacity.Cmp(*want.Capacity) == 0 && have.MaximumVolumeSize.Cmp(*want.MaximumVolumeSize) == 0 {
		return nil
	}
	updated := have.DeepCopy()
	updated.Capacity, updated.MaximumVolumeSize = want.Capacity, want.MaximumVolumeSize
	if _, err := client.Update(ctx, updated, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("updating CSIStorageCapacity %s: %w", have.Name, err)
	}
	return nil
}

// wantedFor returns the objects that a node should have, by name: one for each class that it has disks for, also if
// they are full.
func (c *storageCapacities) wantedFor(node string) (map[string]*storagev1.CSIStorageCapacity, error) {
	classes, err := c.classes.List(labels.Everything())
	if err != nil {
		return nil, err
	}
	label := diskv1alpha1.NodeLabel(node)
	snapshot := c.ledger.Snapshot(node)
	out := map[string]*storagev1.CSIStorageCapacity{}
	for _, class := range classes {
		if class.Provisioner != diskv1alpha1.DriverName || !claim.WaitsForFirstConsumer(class) {
			continue
		}
		parameters, err := diskv1alpha1.ParseParameters(class.Parameters)
		if err != nil {
			// Claims of the class are refused, so it has no capacity.
			continue
		}
		free, largest, ok := freeFor(snapshot, parameters)
		if !ok {
			continue
		}
		sum := sha256.Sum256([]byte(class.Name + "\x00" + node))
		name := "berth-" + hex.EncodeToString(sum[:16])
		out[name] = &storagev1.CSIStorageCapacity{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: c.namespace, Name: name,
				Labels: labels.Merge(ownLabels, labels.Set{diskv1alpha1.LabelNode: label}),
			},
			NodeTopology:     &metav1.LabelSelector{MatchLabels: map[string]string{diskv1alpha1.LabelNode: label}},
			StorageClassName: class.Name,
			Capacity:         free, MaximumVolumeSize: largest,
		}
	}
	return out, nil
}

// freeFor returns what a node has for claims of a class: the total, and the largest volume that could be made. It
// returns false if the node has no disk for them.
func freeFor(snapshot *ledger.Snapshot, parameters diskv1alpha1.Parameters) (free, largest *resource.Quantity, ok bool) {
	var total, longest int64
	for i := range snapshot.Node.Disks {
		disk := &snapshot.Node.Disks[i]
		if disk.Class != parameters.Class {
			continue
		}
		ok = true
		if free := disk.Free.Total(); total > math.MaxInt64-free {
			total = math.MaxInt64
		} else {
			total += free
		}
		longest = max(longest, disk.Free.Largest().Len())
	}
	return resource.NewQuantity(total, resource.BinarySI), resource.NewQuantity(maxVolumeSize(longest, parameters), resource.BinarySI), ok
}

// maxVolumeSize returns the largest volume that fits into an extent together with the headroom of its class.
func maxVolumeSize(longest int64, parameters diskv1alpha1.Parameters) int64 {
	const unit = diskv1alpha1.Alignment
	units := sort.Search(int(longest/unit), func(i int) bool {
		size := int64(i+1) * unit
		return size > longest-parameters.Headroom(size)
	})
	return int64(units) * unit
}
