package volumes

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/discovery"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/agent/publish"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/placement"
)

// A disk is compacted by moves of volumes towards its start, one after the other. The node plans them, because it knows
// which volumes are in use, and publishes the next one. The scheduler's leader reserves its place and writes it into
// the PersistentVolume, and the mover moves the volume.

// compaction is what the node knows about a disk that is to be compacted.
type compaction struct {
	// free is what the disk has free, without what is held and reserved. later is free as soon as wipes and the move in
	// progress have ended.
	free, later extent.Set
	residents   []placement.Resident
	// pods are the pods that use a volume, by its partition.
	pods map[string]string
	// waits is empty if the next move can begin.
	waits  string
	moving int32
}

// compaction returns what compacting a disk brings, and its next move.
func (d *drainer) compaction(disks []discovery.Disk, id string) *diskv1alpha1.Compaction {
	at := slices.IndexFunc(disks, func(of discovery.Disk) bool { return of.ID() == id })
	if at < 0 || !disks[at].Ready() {
		return &diskv1alpha1.Compaction{Message: "the disk is out of service"}
	}
	c := d.readCompaction(&disks[at])
	moves, largest := placement.Compact(c.later, c.residents)
	out := &diskv1alpha1.Compaction{
		LargestNow: c.free.Largest().Len(), LargestPossible: largest, Moves: int32(len(moves)) + c.moving, Message: c.waits,
	}
	switch blocked, most := d.blockedCompaction(c); {
	case c.waits != "":
	case len(moves) > 0:
		next := moves[0]
		out.Next = &diskv1alpha1.CompactionMove{Partition: next.ID, To: diskv1alpha1.Extent{Start: next.To.Start, Length: next.To.Len()}}
		out.Message = fmt.Sprintf("partition %s is moved next", next.ID)
	case most > largest:
		out.Message = fmt.Sprintf("%s could be free in one piece, but %s", sizeText(most), blocked)
	default:
		out.Done, out.Message = true, "nothing more can be gained"
	}
	out.Message = publish.Truncate(out.Message, maxWaitMessage)
	return out
}

// blockedCompaction returns how long the largest free extent could be if no volume was in use, and which one is.
func (d *drainer) blockedCompaction(c *compaction) (blocked string, most int64) {
	residents := slices.Clone(c.residents)
	for i := range residents {
		if _, inUse := c.pods[residents[i].ID]; inUse {
			residents[i].Fixed = false
		}
	}
	moves, most := placement.Compact(c.later, residents)
	for _, m := range moves {
		if by, inUse := c.pods[m.ID]; inUse {
			return fmt.Sprintf("partition %s is moved when it is not in use: %s", m.ID, by), most
		}
	}
	return "", most
}

// readCompaction reads what is on a disk.
func (d *drainer) readCompaction(of *discovery.Disk) *compaction {
	c := &compaction{pods: map[string]string{}}
	for _, s := range d.placer.freeSpaces() {
		if s.id == of.ID() {
			c.free, c.later = s.free, s.free.Union(s.wiping)
		}
	}
	for _, v := range of.Snapshot.Volumes {
		switch v.Phase {
		case disk.Copying, disk.Arriving:
			c.waits = "a volume is being moved"
			continue
		case disk.Wiping, disk.Moved:
			c.waits = "what a volume has left is being wiped"
			continue
		case disk.Reserved, disk.Formatted, disk.OrphanPiece:
		}
		resident := placement.Resident{ID: v.Partition, Extent: v.Extent, Fixed: true}
		if pv, to := d.mayCompact(of, v); to != nil {
			// It counts as moved.
			resident.Extent, c.later, c.moving = extent.New(to.Start, to.Length), c.later.Add(v.Extent), c.moving+1
			c.waits = fmt.Sprintf("volume %s is being moved", pv.Name)
		} else if pv != nil {
			if by := d.usersOf(pv, v); by != "" {
				c.pods[v.Partition] = by
			} else {
				resident.Fixed = false
			}
		}
		c.residents = append(c.residents, resident)
	}
	return c
}

// mayCompact returns the PersistentVolume of a volume that is moved for a compaction, and where it is to be moved by
// now; nil if it stays where it is. A volume of several pieces stays, and so does one that grows, is retained or is
// deleted.
func (d *drainer) mayCompact(of *discovery.Disk, v disk.Volume) (*corev1.PersistentVolume, *diskv1alpha1.Place) {
	pv, read := d.volumeOf(v.Partition)
	if pv == nil || read == nil || v.Ephemeral || v.Phase != disk.Formatted || len(v.Pieces) > 0 || actionFor(pv) != actionServe {
		return nil, nil
	}
	if to := d.mover.pending(*read); to != nil {
		if to.Disk == of.ID() {
			return pv, to
		}
		return nil, nil
	}
	if len(read.Pieces) > 0 || read.Size != v.Extent.Len() {
		return nil, nil
	}
	return pv, nil
}

// usersOf says what uses a volume; empty if nothing does.
func (d *drainer) usersOf(pv *corev1.PersistentVolume, v disk.Volume) string {
	if pods := d.podsOf(pv); len(pods) > 0 {
		return fmt.Sprintf("pod %s uses it", keyOf(pods[0]))
	}
	inUse, err := describeUse(v.Device)
	if err != nil {
		return err.Error()
	}
	return inUse
}
