package diskcapacity

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	fwk "k8s.io/kube-scheduler/framework"

	"github.com/berthdev/berth/pkg/ledger"
	"github.com/berthdev/berth/pkg/placement"
)

const stateKey fwk.StateKey = Name

// state is what one scheduling cycle knows of its pod.
type state struct {
	// The first seven are read-only after PreFilter, but for rejections, and shared by clones.
	asked
	// requests are those of all volumes that are to be placed.
	requests []placement.Request
	// loose are PersistentVolumes that claims of the pod may be bound to, by StorageClass.
	loose map[string][]*corev1.PersistentVolume
	// figures is true when a node's own figures say why it has no room.
	figures bool
	// refused are nodes that the pod could not be bound to, with the reason.
	refused map[string]string
	// narrowed is true when the pod is tried on a part of the nodes.
	narrowed bool
	// rejections are written by Filter, for many nodes at once.
	rejections *rejections
	// placed is written by Reserve, when nobody clones the state any more.
	placed *placed

	// AddPod and RemovePod change what follows, so Clone copies it: preemption tries
	// out many nodes in parallel, each on a clone of its own.

	// gone are the partitions to treat as if their volumes were no longer there: those
	// of pods that would be evicted, and this pod's own from an earlier try. A partition
	// lies on one node only, so it need not be said which.
	gone map[string]struct{}
	// nominated are pods without a reservation that the scheduler counts on a node: they
	// wait there for the space of pods that are being evicted for them. By UID, because
	// the scheduler may add one more than once.
	nominated map[types.UID]nominee
}

type nominee struct {
	node     string
	requests []placement.Request
	// ending are the partitions on the node whose pods are being deleted.
	ending map[string]struct{}
}

// Clone implements fwk.StateData.
func (s *state) Clone() fwk.StateData {
	out := *s
	out.gone = maps.Clone(s.gone)
	out.nominated = maps.Clone(s.nominated)
	return &out
}

func readState(cycle fwk.CycleState) (*state, error) {
	data, err := cycle.Read(stateKey)
	if errors.Is(err, fwk.ErrNotFound) {
		// A pod without disk volumes, as most are: it is not to pay for words.
		return nil, err
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s from the cycle's state: %w", stateKey, err)
	}
	s, ok := data.(*state)
	if !ok {
		return nil, fmt.Errorf("the cycle's state holds %T under %s", data, stateKey)
	}
	return s, nil
}

// Decided are the claims of a pod of which the plugin alone decides where they can be: each of
// them is to be placed, and none is bound, tied to a node, or may be bound to a volume that there
// is. They are none if the pod has others. It can be asked when the plugin's PreFilter has run.
func Decided(cycle fwk.CycleState) []*corev1.PersistentVolumeClaim {
	s, err := readState(cycle)
	if err != nil || s.tied() {
		return nil
	}
	return slices.Collect(maps.Values(s.claims))
}

// fit returns the merit of the pod's volumes on the node, or why they do not fit.
func (s *state) fit(node *corev1.Node, snapshot *ledger.Snapshot) (int64, error) {
	requests := s.requestsOn(node)
	if s.asItIs() {
		return snapshot.Fit(requests)
	}
	return ledger.Fit(s.view(node.Name, snapshot), requests)
}

// check returns why the pod's volumes do not fit on the node; nil if they do.
func (s *state) check(node *corev1.Node, snapshot *ledger.Snapshot) error {
	if s.asItIs() {
		return snapshot.Check(s.requestsOn(node))
	}
	_, err := s.fit(node, snapshot)
	return err
}

// requestsOn are those of the volumes that are to be placed if the pod goes to the node.
func (s *state) requestsOn(node *corev1.Node) []placement.Request {
	if len(s.loose) > 0 {
		return requestsOf(s.volumesOn(node))
	}
	return s.requests
}

// asItIs reports whether nodes are to be taken as the ledger has them, see view.
func (s *state) asItIs() bool { return len(s.gone) == 0 && len(s.nominated) == 0 }

// view is the node as this pod may use it.
func (s *state) view(name string, snapshot *ledger.Snapshot) *placement.Node {
	view := snapshot.Without(s.gone)
	if len(s.nominated) == 0 {
		return view
	}
	// The node as it will be when all that is ending there has ended.
	var later *placement.Node
	for _, uid := range slices.SortedFunc(maps.Keys(s.nominated), cmp.Compare[types.UID]) {
		n := s.nominated[uid]
		if n.node != name {
			continue
		}
		if later == nil {
			gone := maps.Clone(n.ending)
			maps.Copy(gone, snapshot.Wiping())
			maps.Copy(gone, s.gone)
			later = snapshot.Without(gone)
		}
		plan, err := placement.Plan(nil, view, n.requests)
		if err != nil {
			// It waits for the end of others. What is free of the place that it will get is
			// kept for it: small pods would else nibble at it for ever.
			plan, err = placement.Plan(nil, later, n.requests)
		}
		if err == nil {
			view, later = less(view, plan), less(later, plan)
		}
	}
	return view
}

// less is the node without what is planned on it.
func less(node *placement.Node, plan []placement.Assignment) *placement.Node {
	out := &placement.Node{Disks: slices.Clone(node.Disks)}
	for _, a := range plan {
		for i := range out.Disks {
			if out.Disks[i].ID == a.Disk {
				out.Disks[i].Free = out.Disks[i].Free.Remove(a.Extent)
			}
		}
	}
	return out
}

// endingOn are the partitions of the pods on the node that are being deleted.
func (f *feed) endingOn(info fwk.NodeInfo) map[string]struct{} {
	ending := map[string]struct{}{}
	for _, p := range info.GetPods() {
		pod := p.GetPod()
		if pod.DeletionTimestamp == nil || !mayHold(pod) {
			continue
		}
		for _, partition := range f.mortal(pod) {
			ending[partition] = struct{}{}
		}
	}
	return ending
}

// PreFilterExtensions lets preemption and nominated pods change the state.
func (p *Plugin) PreFilterExtensions() fwk.PreFilterExtensions { return p }

// AddPod takes back a removal, or counts a nominated pod.
func (p *Plugin) AddPod(_ context.Context, cycle fwk.CycleState, pod *corev1.Pod, added fwk.PodInfo, info fwk.NodeInfo) *fwk.Status {
	s, err := readState(cycle)
	if err != nil {
		return fwk.AsStatus(err)
	}
	other := added.GetPod()
	if !mayHold(other) || other.UID == pod.UID {
		return nil
	}
	if other.Spec.NodeName != "" {
		// It is on the node already: its volumes are recorded, published, or both.
		for _, partition := range p.feed.mortal(other) {
			delete(s.gone, partition)
		}
		return nil
	}
	asks, err := p.feed.ask(other)
	if err != nil || len(asks.volumes) == 0 {
		// A pod whose request is bad holds no space that the ledger knows of.
		return nil
	}
	for i := range asks.volumes {
		delete(s.gone, asks.volumes[i].Partition)
	}
	if node, records := p.ledger.Records(string(other.UID)); len(records) > 0 && node == info.Node().Name {
		// A nominated pod that has been reserved for since: counted by the ledger.
		return nil
	}
	if s.nominated == nil {
		s.nominated = map[types.UID]nominee{}
	}
	s.nominated[other.UID] = nominee{node: info.Node().Name, requests: asks.requests(), ending: p.feed.endingOn(info)}
	return nil
}

// RemovePod credits the volumes that die with the pod.
func (p *Plugin) RemovePod(_ context.Context, cycle fwk.CycleState, _ *corev1.Pod, removed fwk.PodInfo, _ fwk.NodeInfo) *fwk.Status {
	s, err := readState(cycle)
	if err != nil {
		return fwk.AsStatus(err)
	}
	other := removed.GetPod()
	if !mayHold(other) {
		return nil
	}
	delete(s.nominated, other.UID)
	for _, partition := range p.feed.mortal(other) {
		if s.gone == nil {
			s.gone = map[string]struct{}{}
		}
		s.gone[partition] = struct{}{}
	}
	return nil
}
