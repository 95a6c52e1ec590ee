package volumes

import (
	"context"
	"fmt"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/request"
)

// StageOptions are what the kubelet requests of a volume.
type StageOptions struct {
	// FSType is the file system. It is empty for the class's default, or for the one that the volume has.
	FSType string
	// Block is true for a raw block volume.
	Block bool
}

// stager makes persistent volumes ready for the kubelet.
type stager struct {
	node      *node
	volumes   volumeStore
	maker     *partitionMaker
	formatter *formatter
	mover     *mover
	grower    *grower
	// attachment returns how the volumes of a class are attached.
	attachment func(class string) disk.Attachment
}

// Stage makes the persistent volume ready, and calls use with its device and its file system, which is empty for a raw
// block volume. The volume cannot be released meanwhile.
func (s *stager) Stage(ctx context.Context, volumeID string, o StageOptions, use func(ctx context.Context, device, fsType string) error) error {
	if _, ok := diskv1alpha1.VolumeUUID(volumeID); !ok {
		return fmt.Errorf("%w: no persistent volume has an ID like %.64q", ErrNotFound, volumeID)
	}
	want := request.Volume{
		Name: volumeID, ID: volumeID, Partition: diskv1alpha1.PartitionID(volumeID), FSType: o.FSType, Block: o.Block,
	}
	// First of all: a volume that moves to another disk may be on none for a moment.
	if err := s.mover.await(ctx, volumeID); err != nil {
		return err
	}
	if onDisk, found := s.node.Lookup(volumeID); found {
		want.Request.Class = onDisk.Class
	} else {
		pv, mayMake, err := s.maker.volumeFor(ctx, volumeID)
		if err != nil {
			return err
		}
		v, err := s.volumes.read(pv)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		if v.Block != o.Block {
			return fmt.Errorf("%w: PersistentVolume %s is of another volumeMode than what is asked for", ErrInvalid, pv.Name)
		}
		want.Request.Class = v.Class
		if err := s.maker.ensureForVolume(ctx, pv, v, mayMake); err != nil {
			return err
		}
		// Noted before the volume has data: once its disk is lost, nothing else would show which disk had the volume.
		if onDisk, found := s.node.Lookup(volumeID); found {
			if err := s.maker.recordMove(ctx, pv, v, onDisk.Disk); err != nil {
				return err
			}
		}
	}
	if err := s.beforeUse(ctx, volumeID); err != nil {
		return err
	}
	return s.makeReady(ctx, want, use)
}

// makeReady brings a persistent volume that has a partition to phase Formatted. If use is not nil, it is called under
// the volume's lock. use may run while the phase is being written. Both have happened when makeReady returns nil.
func (s *stager) makeReady(ctx context.Context, v request.Volume, use deviceFunc) error {
	if v.Block {
		return s.useRawDevice(ctx, v, use)
	}
	switch _, onDisk, err := s.node.usable(v.Partition); {
	case err != nil:
		return err
	case onDisk.Raw:
		return errOtherMode(v)
	default:
		if err := checkAttached(onDisk); err != nil {
			return fmt.Errorf("volume %s: %w", v.ID, err)
		}
	}
	if use == nil {
		return s.formatter.ensureFormatted(ctx, v, nil)
	}
	return s.formatter.ensureFormatted(ctx, v, func(ctx context.Context, device, fsType string) error {
		return explainMount(ctx, device, fsType, use(ctx, device, fsType))
	})
}

// useRawDevice calls use with the device of a raw block volume, which is ready as soon as its partition exists.
func (s *stager) useRawDevice(ctx context.Context, v request.Volume, use deviceFunc) error {
	unlock, err := s.node.locks.lock(ctx, v.Partition)
	if err != nil {
		return err
	}
	defer unlock()
	_, onDisk, err := s.node.usable(v.Partition)
	switch {
	case err != nil:
		return err
	case !onDisk.Raw:
		return errOtherMode(v)
	}
	if err := checkAttached(onDisk); err != nil {
		return fmt.Errorf("volume %s: %w", v.ID, err)
	}
	if use == nil {
		return nil
	}
	return use(ctx, onDisk.Device, "")
}

func errOtherMode(v request.Volume) error {
	if v.Block {
		return fmt.Errorf("%w: volume %s has a file system, it is no raw block volume", ErrInvalid, v.ID)
	}
	return fmt.Errorf("%w: volume %s is a raw block volume, it has no file system", ErrInvalid, v.ID)
}

// explainMount adds to the error of a mount whether the file system is on the device at all.
func explainMount(ctx context.Context, device, fsType string, err error) error {
	if err == nil {
		return nil
	}
	switch found, lookErr := fileSystemOn(ctx, device); {
	case lookErr != nil:
		return fmt.Errorf("%w; %w", err, lookErr)
	case found != fsType:
		return fmt.Errorf("%w: the volume holds %s, not %s: %w", ErrInvalid, found, fsType, err)
	}
	return err
}
