package capacity

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/ledger"
	"github.com/berthdev/berth/pkg/placement"
	"github.com/berthdev/berth/pkg/plugins/diskcapacity"
)

const (
	// classPause is the least time between two sums over all nodes.
	classPause = 5 * time.Second
	// pausePerNode is added for each node: every agent is sent each status that is written.
	pausePerNode = 10 * time.Millisecond
	// maxReasons and maxReason bound what a status says of refused devices.
	maxReasons, maxReason = 16, 256
)

// classes sums up what DiskClasses select.
type classes struct {
	objects objects
	shared  *diskcapacity.Shared
	kicks   chan struct{}
}

func newClasses(o objects, shared *diskcapacity.Shared) *classes {
	return &classes{objects: o, shared: shared, kicks: make(chan struct{}, 1)}
}

// changed says that something may have changed. It never blocks.
func (c *classes) changed() {
	select {
	case c.kicks <- struct{}{}:
	default:
	}
}

// run writes the status of the classes when it has changed, with a pause that grows with the
// cluster, until the context ends.
func (c *classes) run(ctx context.Context) {
	c.shared.OnClass(c.changed)
	c.changed()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		select {
		case <-ctx.Done():
			return
		case <-c.kicks:
		}
		nodes, err := c.sync(ctx)
		if err != nil && ctx.Err() == nil {
			klog.FromContext(ctx).Error(err, "The status of a DiskClass could not be written; will be tried again")
			c.changed()
		}
		timer.Reset(classPause + time.Duration(nodes)*pausePerNode)
	}
}

// sync goes through all nodes once, and returns how many there are.
func (c *classes) sync(ctx context.Context) (nodes int, err error) {
	stats := c.shared.Ledger.Stats()
	unused := map[string]*unused{}
	c.shared.EachReport(func(nodeName string, report *diskcapacity.Report) {
		if c.shared.Ledger.Snapshot(nodeName).Absent {
			return
		}
		for class, of := range report.Classes {
			if unused[class] == nil {
				unused[class] = newUnused()
			}
			unused[class].add(nodeName, of)
		}
	})
	for _, class := range c.shared.Classes() {
		status := statusOfClass(&class.Status, class.Generation, stats.Nodes, stats.Classes[class.Name], unused[class.Name])
		if equality.Semantic.DeepEqual(status, class.Status) {
			continue
		}
		if e := c.write(ctx, class, &status); e != nil && notFoundIsDone(e) != nil {
			err = e
		}
	}
	return stats.Nodes, err
}

// write replaces a class's status. Zeros are written, too: a merge patch keeps what it lacks.
func (c *classes) write(ctx context.Context, class *diskv1alpha1.DiskClass, s *diskv1alpha1.DiskClassStatus) error {
	return c.objects.patch(ctx, classResource, class.Name, map[string]any{
		"metadata": map[string]any{"uid": class.UID},
		"status": map[string]any{
			"nodes": s.Nodes, "disks": s.Disks, "candidates": s.Candidates, "refusedDevices": s.RefusedDevices, "refused": s.Refused,
			"size": s.Size, "free": s.Free, "largest": s.Largest, "conditions": s.Conditions,
		},
	}, statusSubresource)
}

// unused are the devices of one class that it does not use, on all nodes.
type unused struct {
	candidates, refused int32
	reasons             map[string]*diskv1alpha1.RefusedDevices
}

func newUnused() *unused { return &unused{reasons: map[string]*diskv1alpha1.RefusedDevices{}} }

// add adds the unused devices of a node.
func (u *unused) add(nodeName string, of diskcapacity.UnusedDevices) {
	u.candidates += int32(of.Candidates)
	for _, d := range of.Refused {
		u.refused++
		example := nodeName + "/" + d.Name
		for _, reason := range d.Reasons {
			if len(reason) > maxReason {
				reason = strings.ToValidUTF8(reason[:maxReason-3], "") + "..."
			}
			r := u.reasons[reason]
			if r == nil {
				r = &diskv1alpha1.RefusedDevices{Reason: reason, Example: example}
				u.reasons[reason] = r
			}
			r.Count++
			// The same example whatever the order.
			r.Example = min(r.Example, example)
		}
	}
}

// top are the most frequent reasons, of equals the first by their text.
func (u *unused) top() []diskv1alpha1.RefusedDevices {
	var all []diskv1alpha1.RefusedDevices
	for _, reason := range slices.Sorted(maps.Keys(u.reasons)) {
		all = append(all, *u.reasons[reason])
	}
	slices.SortStableFunc(all, func(a, b diskv1alpha1.RefusedDevices) int { return cmp.Compare(b.Count, a.Count) })
	return all[:min(len(all), maxReasons)]
}

// statusOfClass is what a class's status should be, after what it was. nodes is how many nodes publish their devices.
func statusOfClass(before *diskv1alpha1.DiskClassStatus, generation int64, nodes int, of ledger.ClassStats, u *unused) diskv1alpha1.DiskClassStatus {
	s := diskv1alpha1.DiskClassStatus{Nodes: int32(of.Nodes), Disks: int32(of.Disks)}
	if u != nil {
		s.Candidates, s.RefusedDevices, s.Refused = u.candidates, u.refused, u.top()
	}
	if of.Disks > 0 {
		s.Size, s.Free, s.Largest = placement.FormatSize(of.Size), placement.FormatSize(of.Free), placement.FormatSize(of.Largest)
	}
	ready := metav1.Condition{Type: diskv1alpha1.ConditionReady, Status: metav1.ConditionFalse, ObservedGeneration: generation}
	switch {
	case s.Disks > 0:
		ready.Status, ready.Reason, ready.Message = metav1.ConditionTrue, "DisksInService", fmt.Sprintf("%d disks on %d nodes are in service", s.Disks, s.Nodes)
	case s.Candidates > 0:
		ready.Reason, ready.Message = "CandidatesWait", fmt.Sprintf("no disk is in service; %d devices wait for approval or for newDeviceGrace: see status.devices of the NodeDiskCapacities", s.Candidates)
	case s.RefusedDevices > 0:
		ready.Reason, ready.Message = "DevicesRefused", "no disk is in service: every device that the class selects is refused, see status.refused"
	case nodes == 0:
		ready.Reason, ready.Message = "NoDevices", "no node has published its devices: see the pods of the DaemonSet berth-nodeagent"
	default:
		ready.Reason, ready.Message = "NoDevices", "the class selects no device on any node, or another class has it: see the reasons in status.devices of the NodeDiskCapacities"
	}
	s.Conditions = slices.Clone(before.Conditions)
	meta.SetStatusCondition(&s.Conditions, ready)
	return s
}
