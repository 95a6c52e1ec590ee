package agent

import (
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/agent/publish"
	"github.com/berthdev/berth/pkg/agent/volumes"
)

// status is what the node publishes now.
func (a *agent) status() diskv1alpha1.NodeDiskCapacityStatus {
	status := publish.Status(a.nodeInfo(), a.inventory.Disks(), a.inventory.Devices(), a.inventory.Refused(), a.owner)
	status.Summary.Cordoned = a.manager.Drains(status.Disks)
	status.Evictions = a.manager.Evictions()
	orphans := a.manager.Orphans()
	why := ""
	if orphans.Stopped {
		why = volumes.StoppedMessage(a.options.NodeName, len(orphans.Ephemeral))
	}
	status.Conditions = append(status.Conditions, publish.OrphanedCondition(orphans.Persistent, orphans.Ephemeral), publish.ReclaimStoppedCondition(why),
		publish.ReclaimBlockedCondition(a.manager.Blocked()))
	return status
}

// nodeInfo is what is published about the node itself.
func (a *agent) nodeInfo() publish.Node {
	n := publish.Node{DeviceMapper: disk.CheckMapper() == nil}
	here := map[string]bool{}
	for _, d := range a.inventory.Disks() {
		here[d.Class] = true
	}
	for _, c := range a.classList() {
		if here[c.Name] && c.Spec.Attachment == diskv1alpha1.AttachDeviceMapper {
			n.WantMapper = append(n.WantMapper, c.Name)
		}
	}
	slices.Sort(n.WantMapper)
	return n
}

// owner returns what is published about a volume beside its partition.
func (a *agent) owner(v disk.Volume) publish.VolumeInfo {
	var o publish.VolumeInfo
	o.Volume, o.Owner = a.manager.Owner(v)
	if since, orphaned := a.manager.OrphanedSince(v); orphaned {
		// In the API server's precision. Otherwise the published status would always differ.
		at := metav1.NewTime(since).Rfc3339Copy()
		o.OrphanedSince = &at
	}
	if policy, done, is := a.manager.Wiping(v.Partition); is && v.Phase == disk.Wiping {
		o.Wiping = &diskv1alpha1.WipeProgress{Policy: diskv1alpha1.WipePolicy(policy), Wiped: done}
	}
	if v.Phase == disk.Copying || v.Phase == disk.Arriving {
		o.Copied = a.manager.Copied(v)
	}
	o.Departed = a.manager.Departed(v)
	return o
}
