package diskcapacity

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/pkg/ledger"
	"github.com/berthdev/berth/pkg/placement"
)

// Still is the plugin over objects that do not change, for programs that say what the scheduler would do. It is the
// same code: only where the ledger's content comes from differs.
type Still struct {
	*Plugin
}

// NewStill returns the factory of the plugin, and a function that returns the plugin when it was made. Pods, Nodes,
// CSINodes, PersistentVolumes, claims and StorageClasses are those in the stores of the framework's informers, which
// must be filled before and must not be started. Nothing is read from the API, and nothing written.
func NewStill(capacities []diskv1alpha1.NodeDiskCapacity, classes []diskv1alpha1.DiskClass) (func(context.Context, runtime.Object, fwk.Handle) (fwk.Plugin, error), func() *Still) {
	var made *Still
	factory := func(ctx context.Context, obj runtime.Object, handle fwk.Handle) (fwk.Plugin, error) {
		args, err := argsFrom(obj)
		if err != nil {
			return nil, err
		}
		f, err := stillFeed(ctx, handle.SharedInformerFactory(), capacities, classes)
		if err != nil {
			return nil, fmt.Errorf("starting plugin %s: %w", Name, err)
		}
		// The profile is this program's own, and binds no pod.
		made = &Still{newPlugin(handle, f, args, func() error { return nil })}
		return made.Plugin, nil
	}
	return factory, func() *Still { return made }
}

// stillFeed is a feed with the objects in the stores of the factory's informers.
func stillFeed(ctx context.Context, factory informers.SharedInformerFactory, capacities []diskv1alpha1.NodeDiskCapacity, classes []diskv1alpha1.DiskClass) (*feed, error) {
	f, err := newFeed(ctx, factory)
	if err != nil {
		return nil, err
	}
	synced := func() bool { return true }
	f.podsSynced, f.volumesSynced, f.agentsSynced, f.nodesSynced = synced, synced, synced, synced
	if err := f.classes.Replace(pointers(classes), ""); err != nil {
		return nil, err
	}
	// The list has no revision of its own: zero is older than all, so that nothing is taken for a restored backup.
	if err := f.capacities.Replace(pointers(capacities), "0"); err != nil {
		return nil, err
	}
	logger := klog.FromContext(ctx)
	for _, obj := range factory.Storage().V1().CSINodes().Informer().GetStore().List() {
		if csiNode, ok := obj.(*storagev1.CSINode); ok {
			f.foldAgent(csiNode.Name)
		}
	}
	for _, obj := range f.volumes.List() {
		if pv, ok := obj.(*corev1.PersistentVolume); ok {
			f.foldVolume(logger, pv)
		}
	}
	for _, obj := range f.pods.List() {
		if pod, ok := obj.(*corev1.Pod); ok {
			f.foldPod(logger, pod)
		}
	}
	return f, nil
}

func pointers[T any](items []T) []any {
	out := make([]any, len(items))
	for i := range items {
		out[i] = &items[i]
	}
	return out
}

// Ledger is the scheduler's memory of the objects.
func (s *Still) Ledger() *ledger.Ledger { return s.ledger }

// Want is one volume that a pod requests and that has no place yet.
type Want struct {
	// Name of the volume in the pod.
	Name string
	// Claim is namespace/name of its claim; empty for an inline volume.
	Claim string
	// Headroom is what must be free behind the volume.
	Headroom int64
	placement.Request
}

// WithHeadroom is the request together with the headroom behind the volume.
func (w *Want) WithHeadroom() placement.Request {
	v := ledger.VolumeRequest{Request: w.Request, Headroom: w.Headroom}
	return v.WithHeadroom()
}

// Wants are the volumes that the pod requests, and that are to be placed. The error is the reason why no node could
// take the pod.
func (s *Still) Wants(pod *corev1.Pod) ([]Want, error) {
	req, err := s.feed.requestOf(pod)
	if err != nil {
		return nil, err
	}
	wants := make([]Want, len(req.volumes))
	for i := range req.volumes {
		v := &req.volumes[i]
		name := v.Name
		if name == "" {
			name = podVolume(pod, v.Claim)
		}
		wants[i] = Want{Name: name, Claim: v.Claim, Headroom: v.Headroom, Request: v.Request}
	}
	return wants, nil
}

// podVolume is the name of the pod's volume that has the claim of that key.
func podVolume(pod *corev1.Pod, key string) string {
	for i := range pod.Spec.Volumes {
		if v := &pod.Spec.Volumes[i]; pod.Namespace+"/"+claim.NameIn(pod, v) == key {
			return v.Name
		}
	}
	return ""
}

// Policy returns how the class places volumes; an error if there is no such class.
func (s *Still) Policy(class string) (placement.Policy, error) {
	r := placement.Request{Class: class}
	err := s.feed.applyClass(&r)
	return r.Policy, err
}

// Refusal returns why the pod's volumes do not fit on the node, in figures. It is nil if they fit, or if something else
// than space is missing: that is in the status of Filter. It can be called when the framework's PreFilter has run.
func (s *Still) Refusal(cycle fwk.CycleState, node *corev1.Node) *placement.NoFit {
	state, err := readState(cycle)
	if state == nil || err != nil {
		return nil //nolint:nilerr // a pod without volumes has no state
	}
	snapshot := s.ledger.Snapshot(node.Name)
	if !snapshot.Registered || !snapshot.Published || snapshot.Problem != "" {
		return nil
	}
	noFit, _ := errors.AsType[*placement.NoFit](state.check(node, snapshot))
	return noFit
}

// HasRoom reports whether the plugin accepts the node, for one that another plugin refuses. The framework's PreFilter
// must have run.
func (s *Still) HasRoom(ctx context.Context, cycle fwk.CycleState, pod *corev1.Pod, info fwk.NodeInfo) bool {
	if _, err := readState(cycle); err != nil {
		return false
	}
	return s.Filter(ctx, cycle, pod, info).IsSuccess()
}

// Narrowed reports whether PreFilter has left only the best nodes, to be fast: others can have room, too.
func (s *Still) Narrowed(cycle fwk.CycleState) bool {
	state, err := readState(cycle)
	return err == nil && state.narrowed
}

// Plan returns where the pod's volumes would go on the node, and what is free there now. It returns no plan if they do
// not fit, or if the pod has none to place. The framework's PreFilter must have run.
func (s *Still) Plan(cycle fwk.CycleState, node *corev1.Node) ([]placement.Assignment, *placement.Node) {
	state, err := readState(cycle)
	if err != nil {
		return nil, nil
	}
	usable := state.usable(node.Name, s.ledger.Snapshot(node.Name))
	plan, err := placement.Plan(nil, usable, state.searchOn(node).Requests())
	if err != nil {
		return nil, usable
	}
	return plan, usable
}
