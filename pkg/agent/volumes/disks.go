package volumes

import (
	"context"
	"fmt"

	"github.com/berthdev/berth/pkg/agent/discovery"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/extent"
)

// engine writes the volumes of one disk. Each call is one step in the life of a volume.
type engine interface {
	Create(ctx context.Context, o disk.CreateOptions) (disk.Volume, error)
	Format(ctx context.Context, partition string, mkfs func(context.Context) error) error
	MarkFormatted(ctx context.Context, partition string) error
	Attach(ctx context.Context, partition string, want disk.Attachment) (disk.Volume, error)
	Grow(ctx context.Context, partition string, size int64) (disk.Volume, error)
	AddPiece(ctx context.Context, partition string, number int, at extent.Extent) (disk.Volume, error)
	Move(ctx context.Context, o disk.MoveOptions) (disk.Volume, error)
	MoveTo(ctx context.Context, target *disk.Disk, o disk.MoveToOptions) (disk.Volume, error)
	SetWipe(ctx context.Context, partition string, w disk.WipeSettings) error
	Wipe(ctx context.Context, partition string, o disk.WipeOptions) (disk.WipeResult, error)
}

// engineOf returns the engine that writes the disk. The error is ErrOutOfService for a disk that is out of service. All
// code gets the engine from this function, or from openDiskOf, because a disk can go at any moment.
func engineOf(d *discovery.Disk) (engine, error) {
	e, err := openDiskOf(d)
	if err != nil {
		return nil, err
	}
	return e, nil
}

// openDiskOf is engineOf for the target of a move between two disks.
func openDiskOf(d *discovery.Disk) (*disk.Disk, error) {
	if !d.Ready() {
		return nil, outOfService(d)
	}
	return d.Engine, nil
}

// outOfService returns the error of a disk that is out of service, with the reason.
func outOfService(d *discovery.Disk) error {
	problem := d.Problem
	if problem == "" {
		problem = "it is not open"
	}
	return fmt.Errorf("its disk %s (%s) is out of service: %w: %s", d.ID(), d.Device.Name, ErrOutOfService, problem)
}

// findVolume returns the disk and the volume of a partition. It prefers a disk in service to one that is only
// remembered.
func findVolume(disks []discovery.Disk, partition string) (at discovery.Disk, volume disk.Volume, found bool) {
	for i := range disks {
		v, ok := disks[i].Snapshot.Volume(partition)
		switch {
		case ok && disks[i].Ready():
			return disks[i], v, true
		case ok && !found:
			at, volume, found = disks[i], v, true
		}
	}
	return at, volume, found
}

// inService returns the disk with the ID if it takes volumes.
func inService(disks []discovery.Disk, id string) (discovery.Disk, bool) {
	for i := range disks {
		if disks[i].ID() == id && disks[i].Ready() {
			return disks[i], true
		}
	}
	return discovery.Disk{}, false
}

// checkSingleCopy fails if a second disk in service has the partition too: it cannot be known which of them holds what
// was written last.
func checkSingleCopy(disks []discovery.Disk, partition string) error {
	var at string
	for i := range disks {
		if _, ok := disks[i].Snapshot.Volume(partition); !ok || !disks[i].Ready() {
			continue
		}
		if at != "" {
			return fmt.Errorf("%w: partition %s is on disk %s and on disk %s: one must be a copy, take it away", errMismatch, partition, at, disks[i].ID())
		}
		at = disks[i].ID()
	}
	return nil
}
