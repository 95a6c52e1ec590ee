package discovery

import (
	"cmp"
	"context"
	"slices"

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
	pieces := map[string]diskv1alpha1.Allocation{}
	for _, a := range published.Allocations {
		// Any client may have edited the published state, so the result must be one that can be published again.
		if e := extent.New(a.Start, a.Length); taken.Overlaps(e) {
			continue
		} else {
			taken = taken.Add(e)
		}
		s.Overhead -= a.Length
		if a.Piece > 0 {
			pieces[a.Partition] = a
			continue
		}
		v := disk.Volume{Partition: a.Partition, Phase: disk.Phase(a.Phase), Ephemeral: true}
		if id, ok := diskv1alpha1.VolumeUUID(a.Volume); ok {
			v.Name, v.Ephemeral = id, false
		}
		v.Extent.Start, v.Extent.End = a.Start, a.Start+a.Length
		s.Volumes = append(s.Volumes, v)
	}
	addPublishedPieces(&s, pieces)
	return &Disk{
		Device:   Device{Name: published.Device, Path: s.Path, Size: published.Size, SectorSize: s.SectorSize, Model: published.Model, Rotational: published.Rotational},
		Class:    published.Class,
		Snapshot: s,
		Problem:  "no device holds this disk",
	}
}

// addPublishedPieces gives the volumes their pieces. A piece whose volume was not published is one of its own.
func addPublishedPieces(s *disk.Snapshot, pieces map[string]diskv1alpha1.Allocation) {
	if len(pieces) == 0 {
		return
	}
	for i := range s.Volumes {
		v := &s.Volumes[i]
		for number := 1; number < diskv1alpha1.MaxPieces; number++ {
			partition := diskv1alpha1.PieceID(v.Partition, number)
			if a, found := pieces[partition]; found {
				v.Pieces = append(v.Pieces, disk.Piece{Partition: partition, Number: number, Extent: extent.New(a.Start, a.Length)})
				delete(pieces, partition)
			}
		}
	}
	for _, a := range pieces {
		s.Volumes = append(s.Volumes, disk.Volume{Partition: a.Partition, Phase: disk.OrphanPiece, Extent: extent.New(a.Start, a.Length)})
	}
	slices.SortFunc(s.Volumes, func(a, b disk.Volume) int { return cmp.Compare(a.Extent.Start, b.Extent.Start) })
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
