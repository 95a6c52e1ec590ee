// Package volumebinding is the scheduler plugin that binds a pod's claims: the stock
// VolumeBinding, which it embeds and leaves as it is for all other drivers, also within the
// same pod. Of claims of ours it makes the PersistentVolumes itself, at the places that
// plugin DiskCapacity has reserved, instead of asking a provisioner to.
//
// It owns the writes that make a reservation of a claim last, and the waiting for the claim
// to be bound. It does not own the choice of the node or the place.
//
// A claim is bound by one write: its PersistentVolume, bound to the claim beforehand. From
// then on the place is recorded, and the PersistentVolume controller binds the two whatever
// becomes of us. The write is repeatable, because the volume's name follows from the claim's
// UID: a scheduler that finds the work done, by itself before it crashed or by another, goes
// on from there.
//
// The claim is left to the controller at first. To name the node and the volume in it would spare the
// controller a search, but is a race with it: an event of the claim that it sees before that
// of the volume finds no volume to bind to, and is done with; that of the volume finds the
// claim's word, and is done with, too; and the claim waits for the controller to look at
// everything again, which it does every 15 seconds. Only of a controller that is behind with its
// claims, so that it has long seen the volume, some of the work is taken: see binder.complete.
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
	decidedKey  fwk.StateKey = Name + "/decided"
	deferredKey fwk.StateKey = Name + "/deferred"
)

// Plugin is the stock plugin with its Binder replaced.
type Plugin struct {
	*stock.VolumeBinding
	binder *binder
	// complete says what is wrong with the profile that the plugin is in.
	complete func() error
	// decides returns the claims that DiskCapacity decides about.
	decides func(fwk.CycleState) []*corev1.PersistentVolumeClaim
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
	complete, err := diskcapacity.CheckProfile(Name, handle)
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
	return &Plugin{VolumeBinding: embedded, binder: b, complete: complete, decides: diskcapacity.Decided}, nil
}

// EventsToRegister are the stock plugin's. The scheduler asks for them before it starts, and does not start if the
// profile lacks something.
func (p *Plugin) EventsToRegister(ctx context.Context) ([]fwk.ClusterEventWithHint, error) {
	if err := p.complete(); err != nil {
		return nil, err
	}
	return p.VolumeBinding.EventsToRegister(ctx)
}

// Name of the plugin.
func (p *Plugin) Name() string { return Name }

// decided is what is to be bound for a pod of whose claims DiskCapacity alone decides where they
// can be.
type decided struct{ volumes *stock.PodVolumes }

// Clone implements fwk.StateData.
func (d *decided) Clone() fwk.StateData { return d }

func decidedOf(cycle fwk.CycleState) *decided {
	data, err := cycle.Read(decidedKey)
	d, ok := data.(*decided)
	if err != nil || !ok {
		return nil
	}
	return d
}

// PreFilter leaves a pod to DiskCapacity where that alone decides. The stock plugin lists all
// PersistentVolumes of the class for each pod, and goes through them on every node, to find
// none. It does not come to know of such a pod at all.
func (p *Plugin) PreFilter(ctx context.Context, cycle fwk.CycleState, pod *corev1.Pod, nodes []fwk.NodeInfo) (*fwk.PreFilterResult, *fwk.Status) {
	claims := p.decides(cycle)
	if len(claims) == 0 {
		return p.VolumeBinding.PreFilter(ctx, cycle, pod, nodes)
	}
	d := &decided{&stock.PodVolumes{}}
	for _, pvc := range claims {
		d.volumes.DynamicProvisions = append(d.volumes.DynamicProvisions, &stock.DynamicProvision{PVC: pvc})
	}
	cycle.Write(decidedKey, d)
	return nil, fwk.NewStatus(fwk.Skip)
}

// PreScore has no opinion of where a pod goes that is left to DiskCapacity.
func (p *Plugin) PreScore(ctx context.Context, cycle fwk.CycleState, pod *corev1.Pod, nodes []fwk.NodeInfo) *fwk.Status {
	if decidedOf(cycle) != nil {
		return fwk.NewStatus(fwk.Skip)
	}
	return p.VolumeBinding.PreScore(ctx, cycle, pod, nodes)
}

// Reserve has nothing to assume of claims whose place the ledger has.
func (p *Plugin) Reserve(ctx context.Context, cycle fwk.CycleState, pod *corev1.Pod, nodeName string) *fwk.Status {
	if decidedOf(cycle) != nil {
		return nil
	}
	return p.VolumeBinding.Reserve(ctx, cycle, pod, nodeName)
}

// deferred says that the claims are bound in Bind.
type deferred struct{}

// Clone implements fwk.StateData.
func (d deferred) Clone() fwk.StateData { return d }

// PreBindPreFlight says that there is nothing to do in PreBind for a pod all of whose
// unbound claims are ours: they are bound in Bind. For a pod that has work in PreBind the
// scheduler first writes the node into the pod's status, to tell others that it will be
// bound there after a while. Ours take milliseconds, so that the write would be one more to
// wait for, without use.
func (p *Plugin) PreBindPreFlight(ctx context.Context, cycle fwk.CycleState, pod *corev1.Pod, nodeName string) (*fwk.PreBindPreFlightResult, *fwk.Status) {
	if decidedOf(cycle) != nil {
		cycle.Write(deferredKey, deferred{})
		return &fwk.PreBindPreFlightResult{AllowParallel: true}, fwk.NewStatus(fwk.Skip)
	}
	result, status := p.VolumeBinding.PreBindPreFlight(ctx, cycle, pod, nodeName)
	if _, ours := p.binder.quick.LoadAndDelete(pod.UID); ours && status.IsSuccess() {
		cycle.Write(deferredKey, deferred{})
		return result, fwk.NewStatus(fwk.Skip)
	}
	return result, status
}

// PreBind binds the claims that are bound here. Without the feature gate
// NominatedNodeNameForExpectation PreBindPreFlight is not called, and all are.
func (p *Plugin) PreBind(ctx context.Context, cycle fwk.CycleState, pod *corev1.Pod, nodeName string) *fwk.Status {
	if d := decidedOf(cycle); d != nil {
		return fwk.AsStatus(p.binder.BindPodVolumes(ctx, pod, d.volumes))
	}
	p.binder.quick.Delete(pod.UID)
	return p.VolumeBinding.PreBind(ctx, cycle, pod, nodeName)
}

// Bind binds the claims that PreBindPreFlight has put off, and leaves the pod to the plugins
// behind it.
func (p *Plugin) Bind(ctx context.Context, cycle fwk.CycleState, pod *corev1.Pod, nodeName string) *fwk.Status {
	if _, err := cycle.Read(deferredKey); err != nil {
		return fwk.NewStatus(fwk.Skip)
	}
	if status := p.PreBind(ctx, cycle, pod, nodeName); !status.IsSuccess() {
		return status
	}
	return fwk.NewStatus(fwk.Skip)
}

// Unreserve takes back what Reserve has assumed.
func (p *Plugin) Unreserve(ctx context.Context, cycle fwk.CycleState, pod *corev1.Pod, nodeName string) {
	p.binder.quick.Delete(pod.UID)
	p.VolumeBinding.Unreserve(ctx, cycle, pod, nodeName)
}
