package diskcapacity

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/runtime"
	storagelisters "k8s.io/client-go/listers/storage/v1"
	fwk "k8s.io/kube-scheduler/framework"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/ledger"
	"github.com/berthdev/berth/pkg/placement"
	"github.com/berthdev/berth/pkg/request"
)

// Name of the plugin in the scheduler's configuration.
const Name = "DiskCapacity"

// Reasons a person reads in the pod's events. They are the same for all nodes, so that
// the scheduler counts them together.
const (
	reasonNoAgent  = "the agent of Berth is not registered with the kubelet of this node"
	reasonNoReport = "the agent of Berth has not published the disks of this node yet"
)

// maxFigures is up to how many nodes each is described with its own figures. The scheduler
// counts nodes with the same reason, but lists those that differ, one by one, in the pod's
// status; a large cluster would fill pages.
const maxFigures = 8

// Plugin implements the extension points. The factory makes one for every profile; all
// plugins of a process share one feed and with it one ledger.
type Plugin struct {
	handle   fwk.Handle
	feed     *feed
	ledger   *ledger.Ledger
	csiNodes storagelisters.CSINodeLister
	args     *DiskCapacityArgs
	// complete says what is wrong with the profile that the plugin is in.
	complete func() error
}

var (
	_ fwk.PreFilterPlugin     = &Plugin{}
	_ fwk.PreFilterExtensions = &Plugin{}
	_ fwk.FilterPlugin        = &Plugin{}
	_ fwk.PostFilterPlugin    = &Plugin{}
	_ fwk.PreScorePlugin      = &Plugin{}
	_ fwk.ScorePlugin         = &Plugin{}
	_ fwk.ReservePlugin       = &Plugin{}
	_ fwk.BindPlugin          = &Plugin{}
	_ fwk.EnqueueExtensions   = &Plugin{}
	_ fwk.SignPlugin          = &Plugin{}
)

// New is the plugin's factory. It starts the watches but does not wait for them: the
// scheduler may be built before the objects' definitions are installed.
func New(ctx context.Context, obj runtime.Object, handle fwk.Handle) (fwk.Plugin, error) {
	args, err := argsFrom(obj)
	if err != nil {
		return nil, err
	}
	feed, err := feedOf(ctx, handle)
	if err != nil {
		return nil, fmt.Errorf("starting plugin %s: %w", Name, err)
	}
	return newPlugin(handle, feed, args), nil
}

func newPlugin(handle fwk.Handle, feed *feed, args *DiskCapacityArgs) *Plugin {
	return &Plugin{
		handle:   handle,
		feed:     feed,
		ledger:   feed.ledger,
		csiNodes: handle.SharedInformerFactory().Storage().V1().CSINodes().Lister(),
		args:     args,
	}
}

// RefuseUnless keeps the scheduler from starting if complete returns an error. It is asked
// when all plugins of the profile are there, which they are not yet in New: a profile that
// enables the plugin at some of its points only would sell space without a record.
func (p *Plugin) RefuseUnless(complete func() error) { p.complete = complete }

// Name of the plugin.
func (p *Plugin) Name() string { return Name }

// PreFilter reads what the pod asks for, and of a large cluster leaves the tightest nodes.
func (p *Plugin) PreFilter(ctx context.Context, cycle fwk.CycleState, pod *corev1.Pod, nodes []fwk.NodeInfo) (*fwk.PreFilterResult, *fwk.Status) {
	volumes, err := request.FromPod(pod)
	if err != nil {
		// A pod's volumes cannot be changed, so nothing will ever help it.
		return nil, fwk.NewStatus(fwk.UnschedulableAndUnresolvable, err.Error())
	}
	if len(volumes) == 0 {
		return nil, fwk.NewStatus(fwk.Skip)
	}
	if err := p.feed.wait(ctx, p.args.SyncTimeout.Duration); err != nil {
		return nil, fwk.AsStatus(err)
	}
	for i := range volumes {
		if class := volumes[i].Request.Class; !p.feed.classes.has(class) {
			return nil, fwk.NewStatus(fwk.UnschedulableAndUnresolvable, p.unknownClass(volumes[i].Name, class))
		}
	}
	s := p.newState(pod, volumes)
	s.figures = len(nodes) <= maxFigures
	tightest := p.narrow(pod, s, len(nodes))
	cycle.Write(stateKey, s)
	return tightest, nil
}

// maxClasses is how many classes a message names.
const maxClasses = 8

func (p *Plugin) unknownClass(volume, class string) string {
	names := p.feed.classes.names()
	if len(names) == 0 {
		return fmt.Sprintf("volume %q: DiskClass %.64q does not exist: there is no DiskClass at all, create one", volume, class)
	}
	if more := len(names) - maxClasses; more > 0 {
		names = append(names[:maxClasses], fmt.Sprintf("%d more", more))
	}
	return fmt.Sprintf("volume %q: DiskClass %.64q does not exist: there are %s", volume, class, strings.Join(names, ", "))
}

func (p *Plugin) newState(pod *corev1.Pod, volumes []request.Volume) *state {
	s := &state{volumes: volumes, requests: requestsOf(volumes), rejections: &rejections{}}
	s.refused = p.ledger.Refusals(string(pod.UID), time.Now())
	// An earlier try may have left a reservation in doubt: it is this pod's own space.
	if p.ledger.Holds(string(pod.UID)) {
		s.gone = make(map[string]struct{}, len(volumes))
		for i := range volumes {
			s.gone[volumes[i].Partition] = struct{}{}
		}
	}
	return s
}

func requestsOf(volumes []request.Volume) []placement.Request {
	requests := make([]placement.Request, len(volumes))
	for i := range volumes {
		requests[i] = volumes[i].Request
	}
	return requests
}

func wantsOf(volumes []request.Volume) []ledger.Want {
	wants := make([]ledger.Want, len(volumes))
	for i := range volumes {
		v := &volumes[i]
		wants[i] = ledger.Want{Partition: v.Partition, Request: v.Request, Room: v.Room, Persistent: v.Claim != ""}
	}
	return wants
}

// Filter plans all of the pod's volumes on the node together.
func (p *Plugin) Filter(_ context.Context, cycle fwk.CycleState, _ *corev1.Pod, info fwk.NodeInfo) *fwk.Status {
	s, err := readState(cycle)
	if err != nil {
		return fwk.AsStatus(err)
	}
	name := info.Node().Name
	if !p.hasAgent(name) {
		return fwk.NewStatus(fwk.UnschedulableAndUnresolvable, reasonNoAgent)
	}
	snapshot := p.ledger.Snapshot(name)
	switch {
	case !snapshot.Published:
		return fwk.NewStatus(fwk.UnschedulableAndUnresolvable, reasonNoReport)
	case snapshot.Problem != "":
		return fwk.NewStatus(fwk.UnschedulableAndUnresolvable, "the NodeDiskCapacity of this node contradicts itself: "+snapshot.Problem)
	}
	if reason, refused := s.refused[name]; refused {
		return fwk.NewStatus(fwk.UnschedulableAndUnresolvable, "the API server refused to bind the pod to this node: "+reason)
	}
	if _, err := s.fit(name, snapshot); err != nil {
		return noRoom(s, err)
	}
	return nil
}

// noRoom says why the pod does not fit, and whether the removal of others could help.
func noRoom(s *state, err error) *fwk.Status {
	var noFit *placement.NoFit
	if !errors.As(err, &noFit) {
		return fwk.AsStatus(err)
	}
	reason := noFit.Reason()
	if s.figures {
		reason = noFit.Error()
	} else if noFit.Cause == placement.TooSmall {
		s.rejections.sawExtent(noFit)
	}
	if noFit.Never {
		return fwk.NewStatus(fwk.UnschedulableAndUnresolvable, reason)
	}
	return fwk.NewStatus(fwk.Unschedulable, reason)
}

// hasAgent reports whether the kubelet of the node knows our driver. Without it the
// pod's volumes would never be mounted, however much space is published.
func (p *Plugin) hasAgent(nodeName string) bool {
	csiNode, err := p.csiNodes.Get(nodeName)
	return err == nil && hasDriver(csiNode)
}

func hasDriver(csiNode *storagev1.CSINode) bool {
	for i := range csiNode.Spec.Drivers {
		if csiNode.Spec.Drivers[i].Name == diskv1alpha1.DriverName {
			return true
		}
	}
	return false
}

// PreScore spares pods without disk volumes the scoring.
func (p *Plugin) PreScore(_ context.Context, cycle fwk.CycleState, _ *corev1.Pod, _ []fwk.NodeInfo) *fwk.Status {
	if _, err := readState(cycle); err != nil {
		return fwk.NewStatus(fwk.Skip)
	}
	return nil
}

// Score is higher the tighter the fit. A node that has lost its room since Filter gets
// the lowest: there Reserve would fail.
func (p *Plugin) Score(_ context.Context, cycle fwk.CycleState, _ *corev1.Pod, info fwk.NodeInfo) (int64, *fwk.Status) {
	s, err := readState(cycle)
	if err != nil {
		return 0, fwk.AsStatus(err)
	}
	name := info.Node().Name
	score, err := s.fit(name, p.ledger.Snapshot(name))
	if err != nil {
		return 0, nil
	}
	return score, nil
}

// ScoreExtensions are not needed: scores are between 0 and 100 as they are.
func (p *Plugin) ScoreExtensions() fwk.ScoreExtensions { return nil }

// Reserve plans again under the ledger's lock and records the result, in memory only.
func (p *Plugin) Reserve(_ context.Context, cycle fwk.CycleState, pod *corev1.Pod, nodeName string) *fwk.Status {
	s, err := readState(cycle)
	if errors.Is(err, fwk.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fwk.AsStatus(err)
	}
	if _, err := p.ledger.Reserve(string(pod.UID), nodeName, wantsOf(s.volumes)); err != nil {
		// Filter found room a moment ago, and other nodes may still have it: an error
		// is retried soon, where a rejection would wait for an event that may not come.
		return fwk.AsStatus(fmt.Errorf("node %s lost its room for the pod's volumes while the pod was being placed: %w", nodeName, err))
	}
	return nil
}

// Unreserve forgets what Reserve recorded. It is also called when Reserve never ran.
func (p *Plugin) Unreserve(_ context.Context, _ fwk.CycleState, pod *corev1.Pod, _ string) {
	p.ledger.Forget(string(pod.UID))
}

// SignPod keeps pods with disk volumes out of batching: two pods that ask for the same
// do not fit the same nodes, since each takes its own extent.
func (p *Plugin) SignPod(_ context.Context, pod *corev1.Pod) ([]fwk.SignFragment, *fwk.Status) {
	if hasDiskVolumes(pod) {
		return nil, fwk.NewStatus(fwk.Unschedulable, "pods with disk volumes are placed one by one")
	}
	return nil, nil
}

// hasDiskVolumes reports whether the pod has a volume of ours, well-formed or not.
func hasDiskVolumes(pod *corev1.Pod) bool {
	for i := range pod.Spec.Volumes {
		if csi := pod.Spec.Volumes[i].CSI; csi != nil && csi.Driver == diskv1alpha1.DriverName {
			return true
		}
	}
	return false
}
