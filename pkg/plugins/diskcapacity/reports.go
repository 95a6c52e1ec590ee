package diskcapacity

import (
	"sync"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

// Report has the fields of a NodeDiskCapacity that controllers need. The extents of its disks are in the ledger. It
// must not be changed.
type Report struct {
	UID types.UID
	// Ready is true when the condition Ready is True.
	Ready bool
	// Shared is the message of the condition DisksShared, empty if that is not True.
	Shared string
	// InService is how many disks take volumes.
	InService int
	// Evictions are the pods that the agent wants evicted.
	Evictions []diskv1alpha1.EvictionRequest
	// Decisions are spec.disks.
	Decisions []diskv1alpha1.DiskDecision
	// Compactions are the next moves of the disks that are to be compacted, by disk.
	Compactions map[string]diskv1alpha1.CompactionMove
	// Classes has the devices that DiskClasses select on the node and that are not in service, by class.
	Classes map[string]UnusedDevices
}

// UnusedDevices are the devices that a class selects on a node and that are not in service.
type UnusedDevices struct {
	// Candidates is how many devices wait for approval.
	Candidates int
	// Refused are the other devices.
	Refused []RefusedDevice
}

// RefusedDevice is a device that is not used, with all reasons.
type RefusedDevice struct {
	Name    string
	Reasons []string
}

// reportOf reads the fields that controllers need.
func reportOf(ndc *diskv1alpha1.NodeDiskCapacity) *Report {
	r := &Report{UID: ndc.UID, Evictions: ndc.Status.Evictions, Decisions: ndc.Spec.Disks, Ready: meta.IsStatusConditionTrue(ndc.Status.Conditions, diskv1alpha1.ConditionReady)}
	if c := meta.FindStatusCondition(ndc.Status.Conditions, diskv1alpha1.ConditionDisksShared); c != nil && c.Status == "True" {
		r.Shared = c.Message
	}
	for i := range ndc.Status.Disks {
		d := &ndc.Status.Disks[i]
		if d.State == diskv1alpha1.DiskReady && d.Class != "" {
			r.InService++
		}
		if d.Compaction != nil && d.Compaction.Next != nil {
			if r.Compactions == nil {
				r.Compactions = map[string]diskv1alpha1.CompactionMove{}
			}
			r.Compactions[d.ID] = *d.Compaction.Next
		}
	}
	for i := range ndc.Status.Devices {
		d := &ndc.Status.Devices[i]
		if d.Class == "" || d.State == diskv1alpha1.DeviceInUse {
			continue
		}
		if r.Classes == nil {
			r.Classes = map[string]UnusedDevices{}
		}
		of := r.Classes[d.Class]
		if d.State == diskv1alpha1.DeviceCandidate {
			of.Candidates++
		} else {
			of.Refused = append(of.Refused, RefusedDevice{Name: d.Name, Reasons: d.Reasons})
		}
		r.Classes[d.Class] = of
	}
	return r
}

// reports are the reports of all nodes, by name.
type reports struct {
	mu    sync.RWMutex
	nodes map[string]*Report
}

func newReports() *reports { return &reports{nodes: map[string]*Report{}} }

func (r *reports) set(nodeName string, report *Report) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if report == nil {
		delete(r.nodes, nodeName)
		return
	}
	r.nodes[nodeName] = report
}

func (r *reports) get(nodeName string) *Report {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.nodes[nodeName]
}

func (r *reports) each(visit func(nodeName string, report *Report)) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for name, report := range r.nodes {
		visit(name, report)
	}
}
