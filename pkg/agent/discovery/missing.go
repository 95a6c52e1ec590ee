package discovery

import (
	"context"

	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/extent"
)

// findMissing finds the devices on which missing disks were.
func (s *rescanState) findMissing() {
	s.inventory.mu.Lock()
	defer s.inventory.mu.Unlock()
	for id, missing := range s.inventory.disks {
		if missing.Engine != nil {
			continue
		}
		for _, d := range s.devices {
			// Of several disks that were on the device, the one with the lowest ID counts.
			if before := s.missing[d.Name]; !s.ours[d.Name] && d.isSameDevice(missing.Device) && (before == "" || id < before) {
				s.missing[d.Name] = id
			}
		}
	}
	// What lies on such a device may be in a volume of the missing disk, so it is left alone.
	for name := range s.missing {
		s.ours[name] = true
	}
}

// setProblem sets the problem of a missing disk whose device was refused.
func (s *rescanState) setProblem(v Verdict) {
	if v.State == diskv1alpha1.DeviceInUse || v.Disk == "" || len(v.Reasons) == 0 {
		return
	}
	s.inventory.mu.Lock()
	defer s.inventory.mu.Unlock()
	if d := s.inventory.disks[v.Disk]; d != nil && d.Engine == nil {
		d.Problem = v.Reasons[0]
	}
}

// dropReplaced forgets disks without volumes that were on a device which holds another disk now. An operator wiped it,
// or changed the drive.
func (s *rescanState) dropReplaced(ctx context.Context) {
	s.inventory.mu.Lock()
	defer s.inventory.mu.Unlock()
	inService := map[string]bool{}
	for _, d := range s.inventory.disks {
		if d.Engine != nil {
			inService[d.Device.Name] = true
		}
	}
	for id, d := range s.inventory.disks {
		if d.Engine == nil && len(d.Snapshot.Volumes) == 0 && inService[d.Device.Name] {
			klog.FromContext(ctx).Info("Disk without volumes is forgotten, another one is in its place", "device", d.Device.Name, "disk", id)
			delete(s.inventory.disks, id)
		}
	}
}

// hasSeen reports whether this node had the disk before.
func (i *Inventory) hasSeen(id string) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	_, known := i.disks[id]
	return known
}

// diskFromStatus is a disk of which only the published state is known.
func diskFromStatus(published diskv1alpha1.Disk) *Disk {
	s := disk.Snapshot{ID: published.ID, Path: "/dev/" + published.Device, Size: published.Size, SectorSize: int64(published.SectorSize), Overhead: published.Size}
	var taken extent.Set
	for _, a := range published.Allocations {
		// Any client may have edited the published state, so the result must be one that can be published again.
		if e := extent.New(a.Start, a.Length); taken.Overlaps(e) {
			continue
		} else {
			taken = taken.Add(e)
		}
		v := disk.Volume{Partition: a.Partition, Phase: disk.Phase(a.Phase), Ephemeral: true}
		if id, ok := diskv1alpha1.VolumeUUID(a.Volume); ok {
			v.Name, v.Ephemeral = id, false
		}
		v.Extent.Start, v.Extent.End = a.Start, a.Start+a.Length
		s.Volumes = append(s.Volumes, v)
		s.Overhead -= a.Length
	}
	return &Disk{
		Device:   Device{Name: published.Device, Path: s.Path, Size: published.Size, SectorSize: s.SectorSize, Model: published.Model, Rotational: published.Rotational},
		Class:    published.Class,
		Snapshot: s,
		Problem:  "no device holds this disk",
	}
}

// Forget drops the disks with the given IDs, and their volumes, if no device holds them. It returns those that it did
// not drop, because they are in service or not known.
func (i *Inventory) Forget(ids []string) (kept []string) {
	i.scanning.Lock()
	defer i.scanning.Unlock()
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, id := range ids {
		if d := i.disks[id]; d == nil || d.Engine != nil {
			kept = append(kept, id)
			continue
		}
		delete(i.disks, id)
	}
	return kept
}
