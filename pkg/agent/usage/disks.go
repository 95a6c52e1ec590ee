package usage

import (
	"k8s.io/component-base/metrics"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/discovery"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/agent/publish"
)

var (
	diskInfo    = gauge("disk_info", "1 for each disk of the node. Join it with the other series of the disk, which have only its ID.", "disk", "device", "class", "model", "serial", "transport")
	diskSize    = gauge("disk_size_bytes", "Size of the disk.", "disk")
	diskFree    = gauge("disk_free_bytes", "Bytes of the disk that volumes can get. 0 if it is out of service, or its table is full.", "disk")
	diskExtents = gauge("disk_free_extents", "Extents that the free bytes of the disk are in.", "disk")
	diskLargest = gauge("disk_largest_free_extent_bytes", "The largest free extent of the disk: no larger volume in one piece fits there.", "disk")
	diskState   = gauge("disk_state", "1 for the state that the disk is in, 0 for the others: Ready, Cordoned, Draining or Failed.", "disk", "state")
	diskVolumes = gauge("disk_volumes", "Volumes on the disk, by phase: Reserved, Formatted, Wiping or Copying.", "disk", "phase")
	diskUsed    = gauge("disk_volume_bytes", "Bytes of the disk that its volumes have, by their phase: Reserved, Formatted, Wiping or Copying.", "disk", "phase")
	candidates  = gauge("candidate_devices", "Devices that a DiskClass selects and that wait to be taken: for an approval, or until they are no longer new.")
)

// states are the states that a disk can be in.
var states = []diskv1alpha1.DiskState{diskv1alpha1.DiskReady, diskv1alpha1.DiskCordoned, diskv1alpha1.DiskDraining, diskv1alpha1.DiskFailed}

// phases are the phases of volumes that are counted.
var phases = []diskv1alpha1.AllocationPhase{diskv1alpha1.PhaseReserved, diskv1alpha1.PhaseFormatted, diskv1alpha1.PhaseWiping, diskv1alpha1.PhaseCopying}

// Inventory is what the collector of disks reads.
type Inventory interface {
	Disks
	Devices() []discovery.ListedDevice
}

// States returns the state of a disk, as it is published.
type States interface {
	State(d *discovery.Disk) diskv1alpha1.DiskState
}

// DiskCollector collects the metrics of the disks.
type DiskCollector struct {
	metrics.BaseStableCollector
	inventory Inventory
	states    States
}

// NewDiskCollector returns the collector of the disks in the inventory.
func NewDiskCollector(i Inventory, s States) *DiskCollector {
	return &DiskCollector{inventory: i, states: s}
}

// DescribeWithStability implements metrics.StableCollector.
func (c *DiskCollector) DescribeWithStability(ch chan<- *metrics.Desc) {
	for _, d := range []*metrics.Desc{diskInfo, diskSize, diskFree, diskExtents, diskLargest, diskState, diskVolumes, diskUsed, candidates} {
		ch <- d
	}
}

// CollectWithStability implements metrics.StableCollector.
func (c *DiskCollector) CollectWithStability(ch chan<- metrics.Metric) {
	send := func(d *metrics.Desc, value float64, labels ...string) {
		sample(ch, d, metrics.GaugeValue, value, labels...)
	}
	disks := c.inventory.Disks()
	for i := range disks {
		d := &disks[i]
		id := d.ID()
		send(diskInfo, 1, id, d.Device.Name, d.Class, d.Device.Model, d.Device.Serial, string(d.Device.Transport))
		send(diskSize, float64(d.Snapshot.Size), id)
		free := d.Available()
		send(diskFree, float64(free.Total()), id)
		send(diskExtents, float64(free.Len()), id)
		send(diskLargest, float64(free.Largest().Len()), id)
		is := c.states.State(d)
		for _, state := range states {
			value := 0.0
			if state == is {
				value = 1
			}
			send(diskState, value, id, string(state))
		}
		count, bytes := byPhase(d.Snapshot.Volumes)
		for _, phase := range phases {
			send(diskVolumes, float64(count[phase]), id, string(phase))
			send(diskUsed, float64(bytes[phase]), id, string(phase))
		}
	}
	waiting := 0
	for _, d := range c.inventory.Devices() {
		if d.Verdict.State == diskv1alpha1.DeviceCandidate {
			waiting++
		}
	}
	send(candidates, float64(waiting))
}

// byPhase counts volumes and their bytes by the phase that is published.
func byPhase(volumes []disk.Volume) (count map[diskv1alpha1.AllocationPhase]int, bytes map[diskv1alpha1.AllocationPhase]int64) {
	count, bytes = map[diskv1alpha1.AllocationPhase]int{}, map[diskv1alpha1.AllocationPhase]int64{}
	for _, v := range volumes {
		phase := publish.PhaseOf(v.Phase)
		count[phase]++
		bytes[phase] += v.Length()
	}
	return count, bytes
}
