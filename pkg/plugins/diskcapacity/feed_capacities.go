package diskcapacity

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/ledger"
	"github.com/berthdev/berth/pkg/placement"
)

// The resources that are watched.
const (
	capacityResource = "nodediskcapacities"
	classResource    = "diskclasses"
)

// startReflectors starts the reflectors of capacities and classes. They write into the ledger directly. An informer
// would keep a copy of every object that is not read, and its handlers would run behind its store.
func (f *feed) startReflectors(ctx context.Context, config *rest.Config) error {
	client, err := Client(config)
	if err != nil {
		return fmt.Errorf("making a client for %s: %w", diskv1alpha1.SchemeGroupVersion, err)
	}
	startReflector(ctx, client, capacityResource, &diskv1alpha1.NodeDiskCapacity{}, &diskv1alpha1.NodeDiskCapacityList{}, f.capacities)
	startReflector(ctx, client, classResource, &diskv1alpha1.DiskClass{}, &diskv1alpha1.DiskClassList{}, f.classes)
	return nil
}

// Client returns a client of Berth's API.
func Client(config *rest.Config) (rest.Interface, error) {
	scheme := runtime.NewScheme()
	if err := diskv1alpha1.AddToScheme(scheme); err != nil {
		return nil, err
	}
	config = rest.CopyConfig(config)
	config.APIPath = "/apis"
	config.GroupVersion = &diskv1alpha1.SchemeGroupVersion
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	// The scheduler's own client speaks protobuf, which custom resources do not.
	config.ContentType, config.AcceptContentTypes = runtime.ContentTypeJSON, runtime.ContentTypeJSON
	return rest.RESTClientFor(config)
}

// startReflector lists and watches a resource, and writes what it gets into the store.
func startReflector(ctx context.Context, client rest.Interface, resource string, object, list runtime.Object, store cache.ReflectorStore) {
	logger := klog.FromContext(ctx)
	// No other message says why no disk pod is scheduled. So this one is logged each time that the reflector tries.
	explain := func(err error) {
		if apierrors.IsNotFound(err) {
			logger.Error(err, "A CustomResourceDefinition of Berth is not installed: no pod with volumes of Berth is scheduled until it is; apply config/crd",
				"resource", resource+"."+diskv1alpha1.GroupName)
		}
	}
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			result := list.DeepCopyObject()
			err := client.Get().Resource(resource).VersionedParams(&options, metav1.ParameterCodec).Do(ctx).Into(result)
			explain(err)
			return result, err
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			options.Watch = true
			return client.Get().Resource(resource).VersionedParams(&options, metav1.ParameterCodec).Watch(ctx)
		},
	}
	reflector := cache.NewReflectorWithOptions(lw, object, store, cache.ReflectorOptions{Name: Name + " " + resource, Logger: &logger})
	go reflector.RunWithContext(ctx)
}

// capacityStore is the store of the reflector of capacities: it folds them into the ledger.
type capacityStore struct {
	logger klog.Logger
	ledger *ledger.Ledger
	listed atomic.Bool
	// requeueFitting is called with the node as it was before its capacity was folded in, to wake pods.
	requeueFitting func(nodeName string, before *placement.Node)
	// beforeFold is called with a node before its capacity is folded in.
	beforeFold func(nodeName string)
	// afterFold is called with a node after its capacity was folded in, and before pods are woken.
	afterFold func(nodeName string)
	// disksServed is called with other nodes whose disks came into service.
	disksServed func(nodeNames []string)
	// reports have the other fields of the capacities.
	reports *reports

	mu sync.Mutex
	// nodes are the nodes with a capacity, to find after a relist which have gone.
	nodes map[string]struct{}
	// newest is the highest revision since the last list.
	newest uint64
	// listeners are called with the node after its capacity was folded in.
	listeners []func(nodeName string)
}

func (s *capacityStore) addListener(callback func(nodeName string)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.listeners = append(s.listeners, callback)
}

// names are the nodes with a capacity.
func (s *capacityStore) names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.nodes))
}

func newCapacityStore(logger klog.Logger, l *ledger.Ledger) *capacityStore {
	return &capacityStore{
		logger: logger, ledger: l, nodes: map[string]struct{}{}, reports: newReports(),
		requeueFitting: func(string, *placement.Node) {}, afterFold: func(string) {}, disksServed: func([]string) {},
	}
}

func (s *capacityStore) hasSynced() bool { return s.listed.Load() }

// Add implements cache.ReflectorStore.
func (s *capacityStore) Add(obj any) error { return s.fold(obj, s.ledger.ReplaceCapacity) }

// fold folds in a capacity with into, which differs for an event and for a list.
func (s *capacityStore) fold(obj any, into func(string, *ledger.Capacity) (before, after *ledger.Snapshot, served []string)) error {
	ndc, ok := obj.(*diskv1alpha1.NodeDiskCapacity)
	if !ok {
		return fmt.Errorf("got %T, want *NodeDiskCapacity", obj)
	}
	capacity, err := capacityOf(ndc)
	if err != nil {
		return fmt.Errorf("NodeDiskCapacity %s: %w", ndc.Name, err)
	}
	s.mu.Lock()
	s.nodes[ndc.Name] = struct{}{}
	s.newest = max(s.newest, capacity.Revision)
	listeners := s.listeners
	s.mu.Unlock()
	s.beforeFold(ndc.Name)
	before, after, served := into(ndc.Name, capacity)
	if after == nil {
		return nil
	}
	s.reports.set(ndc.Name, reportOf(ndc))
	s.afterFold(ndc.Name)
	s.disksServed(served)
	if after.Problem != "" {
		s.logger.Info("A NodeDiskCapacity contradicts itself: the node gets no disk pods until its agent puts it right", "node", klog.KRef("", ndc.Name), "problem", after.Problem)
	}
	for _, callback := range listeners {
		callback(ndc.Name)
	}
	s.requeueFitting(ndc.Name, before.Node)
	return nil
}

// Update implements cache.ReflectorStore.
func (s *capacityStore) Update(obj any) error { return s.Add(obj) }

// Delete implements cache.ReflectorStore. The object of a deletion carries the revision of the deletion.
func (s *capacityStore) Delete(obj any) error {
	ndc, ok := obj.(*diskv1alpha1.NodeDiskCapacity)
	if !ok {
		return fmt.Errorf("got %T, want *NodeDiskCapacity", obj)
	}
	revision, err := RevisionOf(ndc.ResourceVersion)
	if err != nil {
		return fmt.Errorf("NodeDiskCapacity %s: %w", ndc.Name, err)
	}
	s.mu.Lock()
	s.newest = max(s.newest, revision)
	s.mu.Unlock()
	s.forget(ndc.Name)
	s.disksServed(s.ledger.DeleteCapacity(ndc.Name, revision))
	s.notify(ndc.Name)
	return nil
}

// forget removes a node that has no capacity any more.
func (s *capacityStore) forget(name string) {
	s.mu.Lock()
	delete(s.nodes, name)
	s.mu.Unlock()
	s.reports.set(name, nil)
}

// notify calls the listeners with a node whose capacity is gone.
func (s *capacityStore) notify(name string) {
	s.mu.Lock()
	listeners := s.listeners
	s.mu.Unlock()
	for _, callback := range listeners {
		callback(name)
	}
}

// Replace implements cache.ReflectorStore: it folds in a list. The list is believed also at a revision that is lower
// than what was known: then the API server was restored from a backup.
func (s *capacityStore) Replace(objects []any, resourceVersion string) error {
	revision, err := RevisionOf(resourceVersion)
	if err != nil {
		return fmt.Errorf("list of NodeDiskCapacities: %w", err)
	}
	s.mu.Lock()
	if revision < s.newest {
		s.logger.Info("The list of NodeDiskCapacities is older than what was known: the API server seems to be restored from a backup, and what it says now counts",
			"resourceVersion", revision, "knownResourceVersion", s.newest)
	}
	s.newest = revision
	known := maps.Clone(s.nodes)
	s.mu.Unlock()
	listed := make(map[string]struct{}, len(objects))
	for _, obj := range objects {
		if err := s.fold(obj, s.ledger.ListCapacity); err != nil {
			return err
		}
		listed[obj.(*diskv1alpha1.NodeDiskCapacity).Name] = struct{}{}
	}
	served := s.ledger.EndList(listed, revision)
	for name := range known {
		if _, still := listed[name]; !still {
			s.forget(name)
			s.notify(name)
		}
	}
	s.disksServed(served)
	s.listed.Store(true)
	return nil
}

// Resync implements cache.ReflectorStore.
func (s *capacityStore) Resync() error { return nil }

// capacityOf reads what a node has published.
func capacityOf(ndc *diskv1alpha1.NodeDiskCapacity) (*ledger.Capacity, error) {
	revision, err := RevisionOf(ndc.ResourceVersion)
	if err != nil {
		return nil, err
	}
	c := &ledger.Capacity{Revision: revision, Disks: make([]ledger.Disk, len(ndc.Status.Disks)), Owned: ndc.Spec.OwnedDisks, DeviceMapper: ndc.Status.DeviceMapper}
	for i := range ndc.Status.Disks {
		d := &ndc.Status.Disks[i]
		out := ledger.Disk{
			ID: d.ID, Class: d.Class, Size: d.Size, SectorSize: d.SectorSize,
			// What spec says holds before the agent has seen it.
			Ready:       d.State == diskv1alpha1.DiskReady && !ndc.Spec.Decision(d.ID).IsCordoned(),
			Free:        make([]extent.Extent, len(d.Free)),
			Allocations: make([]ledger.Allocation, len(d.Allocations)),
		}
		for j, e := range d.Free {
			out.Free[j] = extent.New(e.Start, e.Length)
		}
		for j := range d.Allocations {
			a := &d.Allocations[j]
			out.Allocations[j] = ledger.Allocation{
				Partition: a.Partition, Extent: extent.New(a.Start, a.Length), Wiping: a.Phase == diskv1alpha1.PhaseWiping,
				Mapped: a.Attachment == diskv1alpha1.AttachDeviceMapper,
			}
		}
		c.Disks[i] = out
	}
	return c, nil
}

// RevisionOf parses a resourceVersion, so that revisions can be compared. Since Kubernetes 1.35, the resourceVersions
// of one resource are integers that grow.
func RevisionOf(resourceVersion string) (uint64, error) {
	revision, err := strconv.ParseUint(resourceVersion, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("resourceVersion %q is not a number", resourceVersion)
	}
	return revision, nil
}
