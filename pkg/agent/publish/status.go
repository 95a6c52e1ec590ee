package publish

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/discovery"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/extent"
)

// VolumeInfo is what is published about a volume beside its partition. Volume is the CSI volume ID, and Owner is
// namespace/name of the pod or claim. Both are empty when they are not known. OrphanedSince and Wiping are nil when
// they do not apply.
type VolumeInfo struct {
	Volume, Owner string
	OrphanedSince *metav1.Time
	Wiping        *diskv1alpha1.WipeProgress
	// Copied is how many bytes are copied, in phase Copying.
	Copied int64
	// Departed is the partition of the volume that has left this place, if no disk has the volume yet. Until one has
	// it, it is published here.
	Departed string
}

// Node is what is published about the node itself.
type Node struct {
	// DeviceMapper is true if the kernel has the device mapper.
	DeviceMapper bool
	// WantMapper are the classes with disks here that want volumes attached by the device mapper.
	WantMapper []string
}

// Limits of the CRD's fields that hold text of other origin.
const (
	maxModel     = 128
	maxMessage   = 1024
	maxCondition = 32 << 10
	maxDisks     = 128
	maxDevices   = 256
	maxReasons   = 16
	maxReason    = 512
)

// Status is what the agent publishes about the disks. Conditions have no transition times yet.
func Status(node Node, disks []discovery.Disk, devices []discovery.ListedDevice, refused []discovery.RefusedDevice, owner func(disk.Volume) VolumeInfo) diskv1alpha1.NodeDiskCapacityStatus {
	status := diskv1alpha1.NodeDiskCapacityStatus{
		Devices:      devicesOf(devices, disks),
		DeviceMapper: node.DeviceMapper,
		Conditions:   []metav1.Condition{refusedCondition(refused), readyCondition(disks, devices)},
		Summary:      summarize(disks),
	}
	if len(node.WantMapper) > 0 {
		status.Conditions = append(status.Conditions, mapperCondition(node))
	}
	for i := range disks {
		if i == maxDisks {
			break
		}
		status.Disks = append(status.Disks, diskStatus(&disks[i], owner))
	}
	status.Conditions = append(status.Conditions, limitSize(&status))
	return status
}

// diskStatus is what is published about one disk.
func diskStatus(d *discovery.Disk, owner func(disk.Volume) VolumeInfo) diskv1alpha1.Disk {
	s := &d.Snapshot
	out := diskv1alpha1.Disk{
		ID:         s.ID,
		Device:     d.Device.Name,
		Class:      d.Class,
		Model:      Truncate(d.Device.Model, maxModel),
		Rotational: d.Device.Rotational,
		SectorSize: int32(s.SectorSize),
		Size:       s.Size,
		Overhead:   s.Size,
		State:      diskv1alpha1.DiskReady,
		Message:    Truncate(d.Problem, maxMessage),
	}
	if !d.Ready() {
		out.State = diskv1alpha1.DiskFailed
	}
	for _, e := range d.Available().All() {
		out.Free = append(out.Free, diskv1alpha1.Extent{Start: e.Start, Length: e.Len()})
		out.Overhead -= e.Len()
	}
	for _, v := range s.Volumes {
		o := owner(v)
		partition, phase := v.Partition, PhaseOf(v.Phase)
		if o.Departed != "" {
			partition, phase = o.Departed, diskv1alpha1.PhaseFormatted
		}
		out.Allocations = append(out.Allocations, diskv1alpha1.Allocation{
			Volume:    o.Volume,
			Partition: partition,
			Extent:    extentOf(v.Extent),
			Phase:     phase,
			Owner:     o.Owner,

			Attachment:    attachmentOf(v),
			OrphanedSince: o.OrphanedSince,
			Wiping:        o.Wiping,
			Copied:        o.Copied,
		})
		for _, p := range v.Pieces {
			piece := p.Partition
			if o.Departed != "" {
				piece = diskv1alpha1.PieceID(o.Departed, p.Number)
			}
			out.Allocations = append(out.Allocations, diskv1alpha1.Allocation{
				Volume: o.Volume, Partition: piece, Extent: extentOf(p.Extent), Piece: int32(p.Number), Phase: phase, Owner: o.Owner,
			})
		}
		out.Overhead -= v.Length()
	}
	slices.SortStableFunc(out.Allocations, func(a, b diskv1alpha1.Allocation) int { return cmp.Compare(a.Start, b.Start) })
	return out
}

func extentOf(e extent.Extent) diskv1alpha1.Extent {
	return diskv1alpha1.Extent{Start: e.Start, Length: e.Len()}
}

// attachmentOf is published only if it is not what most volumes have.
func attachmentOf(v disk.Volume) diskv1alpha1.Attachment {
	if v.Attachment == disk.DeviceMapper {
		return diskv1alpha1.AttachDeviceMapper
	}
	return ""
}

// PhaseOf is the phase as it is published. On the API a place that a volume has left is one that is wiped, and the copy
// of a volume of another disk is a copy.
func PhaseOf(p disk.Phase) diskv1alpha1.AllocationPhase {
	switch p {
	case disk.Arriving:
		return diskv1alpha1.PhaseCopying
	case disk.Moved:
		return diskv1alpha1.PhaseWiping
	case disk.OrphanPiece:
		// It may hold data.
		return diskv1alpha1.PhaseFormatted
	case disk.Reserved, disk.Formatted, disk.Wiping, disk.Copying:
	}
	return diskv1alpha1.AllocationPhase(p)
}

// readyCondition reports in a condition whether all disks are in service.
func readyCondition(disks []discovery.Disk, devices []discovery.ListedDevice) metav1.Condition {
	var problems []string
	for i := range disks {
		if d := &disks[i]; !d.Ready() {
			problems = append(problems, fmt.Sprintf("%s (disk %s): %s", d.Device.Name, d.ID(), d.Problem))
		}
	}
	c := metav1.Condition{Type: diskv1alpha1.ConditionReady, Status: metav1.ConditionTrue}
	switch {
	case len(problems) > 0:
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, "DisksOutOfService", Truncate(strings.Join(problems, "; "), maxCondition)
	case len(disks) == 0 && countCandidates(devices) > 0:
		c.Reason, c.Message = "NoDisks", fmt.Sprintf("%d devices wait to be taken: status.devices says what each waits for", countCandidates(devices))
	case len(disks) == 0:
		c.Reason, c.Message = "NoDisks", "no usable device of this node is selected by a DiskClass"
	default:
		c.Reason, c.Message = "DisksInService", "all disks are in service"
	}
	return c
}

// mapperCondition says in a condition whether the kernel lacks the device mapper that classes want.
func mapperCondition(node Node) metav1.Condition {
	c := metav1.Condition{
		Type: diskv1alpha1.ConditionDeviceMapperMissing, Status: metav1.ConditionFalse, Reason: "NotMissing",
		Message: "the kernel has the device mapper that classes want",
	}
	if !node.DeviceMapper {
		c.Status, c.Reason = metav1.ConditionTrue, "NoDeviceMapper"
		c.Message = Truncate(fmt.Sprintf("the classes %s want volumes attached by the device mapper, and the kernel has none: volumes are attached as partitions, and get no further pieces. Load the module dm_mod", strings.Join(node.WantMapper, ", ")), maxCondition)
	}
	return c
}

// refusedCondition lists the refused devices in a condition, each with its reasons.
func refusedCondition(refused []discovery.RefusedDevice) metav1.Condition {
	c := metav1.Condition{
		Type:    diskv1alpha1.ConditionDevicesRefused,
		Status:  metav1.ConditionFalse,
		Reason:  "NoneRefused",
		Message: "every selected device is in use",
	}
	if len(refused) == 0 {
		return c
	}
	reasons := make([]string, len(refused))
	for i, r := range refused {
		reasons[i] = r.Device + ": " + r.Reason
	}
	c.Status, c.Reason, c.Message = metav1.ConditionTrue, "NotOurs", Truncate(strings.Join(reasons, "; "), maxCondition)
	return c
}

// OrphanedCondition lists the orphans in a condition: persistent ones without a PersistentVolume, which an operator
// binds again or releases, and ephemeral ones whose pod vanished.
func OrphanedCondition(persistent, ephemeral []string) metav1.Condition {
	c := metav1.Condition{
		Type:    diskv1alpha1.ConditionOrphanedVolumes,
		Status:  metav1.ConditionFalse,
		Reason:  "NoneOrphaned",
		Message: "every volume has its pod or PersistentVolume",
	}
	var parts []string
	if len(ephemeral) > 0 {
		c.Status, c.Reason = metav1.ConditionTrue, "NoPod"
		parts = append(parts, fmt.Sprintf("%d volumes have no pod, whose end this agent did not see, and are kept until the grace period is over: %s", len(ephemeral), strings.Join(ephemeral, ", ")))
	}
	if len(persistent) > 0 {
		c.Status, c.Reason = metav1.ConditionTrue, "NoPersistentVolume"
		parts = append([]string{fmt.Sprintf("%d volumes have no PersistentVolume and are kept: %s", len(persistent), strings.Join(persistent, ", "))}, parts...)
	}
	if len(parts) > 0 {
		c.Message = Truncate(strings.Join(parts, "; "), maxCondition)
	}
	return c
}

// ReclaimStoppedCondition reports in a condition that orphans are not reclaimed, with the reason and what to do. why is
// empty if they are reclaimed.
func ReclaimStoppedCondition(why string) metav1.Condition {
	if why == "" {
		return metav1.Condition{
			Type: diskv1alpha1.ConditionReclaimStopped, Status: metav1.ConditionFalse, Reason: "FewOrphans",
			Message: "volumes of pods that vanished are wiped when the grace period is over",
		}
	}
	return metav1.Condition{
		Type: diskv1alpha1.ConditionReclaimStopped, Status: metav1.ConditionTrue, Reason: "ManyOrphans", Message: Truncate(why, maxCondition),
	}
}

// ReclaimBlockedCondition lists in a condition the volumes that cannot be wiped because they are held, one sentence
// each.
func ReclaimBlockedCondition(held []string) metav1.Condition {
	c := metav1.Condition{
		Type: diskv1alpha1.ConditionReclaimBlocked, Status: metav1.ConditionFalse, Reason: "NoneHeld",
		Message: "no volume that is to be wiped is held",
	}
	if len(held) > 0 {
		c.Status, c.Reason = metav1.ConditionTrue, "VolumesHeld"
		c.Message = Truncate(fmt.Sprintf("%d volumes cannot be wiped, their space is not free: %s", len(held), strings.Join(held, "; ")), maxCondition)
	}
	return c
}

// summarize sums up the disks by class, for kubectl get.
func summarize(disks []discovery.Disk) diskv1alpha1.Summary {
	out := diskv1alpha1.Summary{Disks: int32(len(disks))}
	size, free, largest := map[string]int64{}, map[string]int64{}, map[string]int64{}
	for i := range disks {
		d := &disks[i]
		out.Volumes += int32(len(d.Snapshot.Volumes))
		if d.Class == "" {
			continue
		}
		size[d.Class] += d.Snapshot.Size
		if d.Ready() {
			// Zero is reported, too: the class exists and is full.
			available := d.Available()
			free[d.Class] += available.Total()
			largest[d.Class] = max(largest[d.Class], available.Largest().Len())
		}
	}
	out.Size, out.Free, out.Largest = formatPerClass(size), formatPerClass(free), formatPerClass(largest)
	return out
}

func formatPerClass(sizes map[string]int64) string {
	parts := make([]string, 0, len(sizes))
	for _, class := range slices.SortedFunc(maps.Keys(sizes), cmp.Compare[string]) {
		parts = append(parts, class+"="+formatSize(sizes[class]))
	}
	return strings.Join(parts, ",")
}

// formatSize writes a size for display, as a quantity that a volume can request. It has at most one digit behind the
// point, and is cut, never rounded up.
func formatSize(size int64) string {
	for _, unit := range []struct {
		bytes int64
		name  string
	}{{1 << 40, "Ti"}, {1 << 30, "Gi"}} {
		if size < unit.bytes {
			continue
		}
		whole, tenth := size/unit.bytes, size%unit.bytes*10/unit.bytes
		if tenth == 0 {
			return fmt.Sprintf("%d%s", whole, unit.name)
		}
		return fmt.Sprintf("%d.%d%s", whole, tenth, unit.name)
	}
	if size < 1<<20 {
		return "0"
	}
	return fmt.Sprintf("%dMi", size>>20)
}

// Truncate cuts text to at most limit bytes, between characters.
func Truncate(text string, limit int) string {
	text = strings.ToValidUTF8(text, "?")
	if len(text) <= limit {
		return text
	}
	const mark = "..."
	return strings.ToValidUTF8(text[:limit-len(mark)], "") + mark
}
