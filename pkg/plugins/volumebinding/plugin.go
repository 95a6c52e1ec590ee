// Package volumebinding is the scheduler plugin that binds a pod's claims. It embeds the stock VolumeBinding and leaves
// it as it is for claims of all other drivers, also within the same pod. For claims of ours it creates the
// PersistentVolumes itself, at the places that plugin DiskCapacity has reserved, instead of asking a provisioner.
//
// It owns the writes that make a claim's reservation durable, and the waiting until the claim is bound. It does not own
// the choice of the node or the place.
//
// # Where to start
//
//   - plugin.go: the extension points, and which claims are left to the stock plugin.
//   - binder.go: how the claims of a pod are divided and bound.
//   - provision.go: the PersistentVolume of one claim, and what is in doubt when its creation fails.
//   - await.go: the waiting until a claim is bound.
//   - args.go: the plugin's arguments.
//
// # One write
//
// A claim is bound by one write: its PersistentVolume, which names the claim. From then on the place is recorded. The
// PersistentVolume controller binds the two, also if this process ends. The write can be repeated, because the volume's
// name follows from the claim's UID. A scheduler that finds it done, by itself before a crash or by another scheduler,
// continues from there.
//
// # Which component writes the claim
//
// The claim is left to the controller at first. If the scheduler named the node and the volume in it, it would save the
// controller a search, and race with it. The controller may see that event of the claim before the event of the volume:
// it finds no volume, and does nothing. Then it sees the event of the volume: the claim names it already, and it does
// nothing either. The claim then waits until the controller's next resync, which comes every 15 seconds. So the
// scheduler writes the claim only when the controller is behind with its claims and has long seen the volume: see
// binder.completeClaim.
package volumebinding

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/apis/config"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/feature"
	stock "k8s.io/kubernetes/pkg/scheduler/framework/plugins/volumebinding"

	"github.com/berthdev/berth/pkg/plugins/diskcapacity"
)

// Name of the plugin in the scheduler's configuration.
const Name = diskcapacity.ClaimsName

// Keys of the cycle's state.
const (
	delegatedKey fwk.StateKey = Name + "/delegated"
	deferredKey  fwk.StateKey = Name + "/deferred"
)

// Plugin is the stock plugin with its Binder replaced.
type Plugin struct {
	*stock.VolumeBinding
	binder *binder
	// checkProfile says what is wrong with the profile that the plugin is in.
	checkProfile func() error
	// delegatedClaims returns the claims if DiskCapacity alone decides where they can be.
	delegatedClaims func(fwk.CycleState) []*corev1.PersistentVolumeClaim
}

var (
	_ fwk.PreFilterPlugin   = &Plugin{}
	_ fwk.FilterPlugin      = &Plugin{}
	_ fwk.PreScorePlugin    = &Plugin{}
	_ fwk.ScorePlugin       = &Plugin{}
	_ fwk.ReservePlugin     = &Plugin{}
	_ fwk.PreBindPlugin     = &Plugin{}
	_ fwk.BindPlugin        = &Plugin{}
	_ fwk.EnqueueExtensions = &Plugin{}
	_ fwk.SignPlugin        = &Plugin{}
)

// New is the plugin's factory.
func New(ctx context.Context, obj runtime.Object, handle fwk.Handle) (fwk.Plugin, error) {
	args, err := argsFrom(obj)
	if err != nil {
		return nil, err
	}
	checkProfile, err := diskcapacity.NewProfileCheck(Name, handle)
	if err != nil {
		return nil, err
	}
	stockArgs := &config.VolumeBindingArgs{BindTimeoutSeconds: args.BindTimeoutSeconds}
	inner, err := stock.New(ctx, stockArgs, handle, feature.NewSchedulerFeaturesFromGates(utilfeature.DefaultFeatureGate))
	if err != nil {
		return nil, fmt.Errorf("making the stock plugin in %s: %w", Name, err)
	}
	embedded, ok := inner.(*stock.VolumeBinding)
	if !ok {
		return nil, fmt.Errorf("the stock plugin in %s is %T, want *VolumeBinding", Name, inner)
	}
	b, err := newBinder(embedded.Binder, handle, args)
	if err != nil {
		return nil, fmt.Errorf("starting plugin %s: %w", Name, err)
	}
	embedded.Binder = b
	return &Plugin{VolumeBinding: embedded, binder: b, checkProfile: checkProfile, delegatedClaims: diskcapacity.DelegatedClaims}, nil
}

// EventsToRegister returns the stock plugin's events. The scheduler calls it before it starts, and does not start if
// the profile is incomplete.
func (p *Plugin) EventsToRegister(ctx context.Context) ([]fwk.ClusterEventWithHint, error) {
	if err := p.checkProfile(); err != nil {
		return nil, err
	}
	return p.VolumeBinding.EventsToRegister(ctx)
}

// Name of the plugin.
func (p *Plugin) Name() string { return Name }

// delegated has the claims to bind of a pod, if DiskCapacity alone decides where they can be.
type delegated struct{ volumes *stock.PodVolumes }

// Clone implements fwk.StateData.
func (d *delegated) Clone() fwk.StateData { return d }

// delegatedOf returns what PreFilter has delegated to DiskCapacity, or nil.
func delegatedOf(cycle fwk.CycleState) *delegated {
	data, err := cycle.Read(delegatedKey)
	d, ok := data.(*delegated)
	if err != nil || !ok {
		return nil
	}
	return d
}

// PreFilter skips a pod if DiskCapacity alone decides about its claims. The stock plugin would list all
// PersistentVolumes of the class for each pod, and visit them on every node, to find none. It never sees such a pod.
func (p *Plugin) PreFilter(ctx context.Context, cycle fwk.CycleState, pod *corev1.Pod, nodes []fwk.NodeInfo) (*fwk.PreFilterResult, *fwk.Status) {
	claims := p.delegatedClaims(cycle)
	if len(claims) == 0 {
		return p.VolumeBinding.PreFilter(ctx, cycle, pod, nodes)
	}
	d := &delegated{&stock.PodVolumes{}}
	for _, pvc := range claims {
		d.volumes.DynamicProvisions = append(d.volumes.DynamicProvisions, &stock.DynamicProvision{PVC: pvc})
	}
	cycle.Write(delegatedKey, d)
	return nil, fwk.NewStatus(fwk.Skip)
}

// PreScore skips a pod that is left to DiskCapacity.
func (p *Plugin) PreScore(ctx context.Context, cycle fwk.CycleState, pod *corev1.Pod, nodes []fwk.NodeInfo) *fwk.Status {
	if delegatedOf(cycle) != nil {
		return fwk.NewStatus(fwk.Skip)
	}
	return p.VolumeBinding.PreScore(ctx, cycle, pod, nodes)
}

// Reserve assumes nothing for claims whose place the ledger has.
func (p *Plugin) Reserve(ctx context.Context, cycle fwk.CycleState, pod *corev1.Pod, nodeName string) *fwk.Status {
	if delegatedOf(cycle) != nil {
		return nil
	}
	return p.VolumeBinding.Reserve(ctx, cycle, pod, nodeName)
}

// deferred says that the claims are bound in Bind.
type deferred struct{}

// Clone implements fwk.StateData.
func (d deferred) Clone() fwk.StateData { return d }

// PreBindPreFlight skips PreBind for a pod all of whose unbound claims are ours: Bind binds them. For a pod with work
// in PreBind, the scheduler first writes the node into the pod's status. So other components know that it will be bound
// there later. Our claims take milliseconds, so that write would only be one more to wait for.
func (p *Plugin) PreBindPreFlight(ctx context.Context, cycle fwk.CycleState, pod *corev1.Pod, nodeName string) (*fwk.PreBindPreFlightResult, *fwk.Status) {
	if delegatedOf(cycle) != nil {
		cycle.Write(deferredKey, deferred{})
		return &fwk.PreBindPreFlightResult{AllowParallel: true}, fwk.NewStatus(fwk.Skip)
	}
	result, status := p.VolumeBinding.PreBindPreFlight(ctx, cycle, pod, nodeName)
	if _, ours := p.binder.onlyOurs.LoadAndDelete(pod.UID); ours && status.IsSuccess() {
		cycle.Write(deferredKey, deferred{})
		return result, fwk.NewStatus(fwk.Skip)
	}
	return result, status
}

// PreBind binds the claims that are not bound in Bind. Without the feature gate NominatedNodeNameForExpectation,
// PreBindPreFlight is not called, and PreBind binds all.
func (p *Plugin) PreBind(ctx context.Context, cycle fwk.CycleState, pod *corev1.Pod, nodeName string) *fwk.Status {
	if d := delegatedOf(cycle); d != nil {
		return fwk.AsStatus(p.binder.BindPodVolumes(ctx, pod, d.volumes))
	}
	p.binder.onlyOurs.Delete(pod.UID)
	return p.VolumeBinding.PreBind(ctx, cycle, pod, nodeName)
}

// Bind binds the claims that PreBindPreFlight has deferred, and leaves the pod to the next bind plugins.
func (p *Plugin) Bind(ctx context.Context, cycle fwk.CycleState, pod *corev1.Pod, nodeName string) *fwk.Status {
	if _, err := cycle.Read(deferredKey); err != nil {
		return fwk.NewStatus(fwk.Skip)
	}
	if status := p.PreBind(ctx, cycle, pod, nodeName); !status.IsSuccess() {
		return status
	}
	return fwk.NewStatus(fwk.Skip)
}

// Unreserve undoes Reserve.
func (p *Plugin) Unreserve(ctx context.Context, cycle fwk.CycleState, pod *corev1.Pod, nodeName string) {
	p.binder.onlyOurs.Delete(pod.UID)
	p.VolumeBinding.Unreserve(ctx, cycle, pod, nodeName)
}
