package volumes

import (
	"context"
	"fmt"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/berthdev/berth/pkg/agent/discovery"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/request"
)

// ready brings a volume that has a partition to phase Formatted. mount, if not nil, is
// called with the formatted device, and may run while the phase is being written:
// both have happened when ready returns nil.
func (m *Manager) ready(ctx context.Context, v request.Volume, mount func(ctx context.Context, device, fsType string) error) error {
	if mount != nil {
		m.countPublishing(v.Partition, 1)
	}
	unlock, err := m.volumeLocks.lock(ctx, v.Partition)
	if mount != nil {
		m.countPublishing(v.Partition, -1)
	}
	if err != nil {
		return err
	}
	defer unlock()
	d, partition, found := m.find(v.Partition)
	switch {
	case !found:
		return fmt.Errorf("volume %q: its partition was released: %w", v.Name, ErrPodGone)
	case !d.Ready():
		return fmt.Errorf("volume %q is on disk %s (%s), which is out of service: %w: %s", v.Name, d.ID(), d.Device.Name, ErrOutOfService, d.Problem)
	case partition.Phase == disk.Wiping:
		return fmt.Errorf("volume %q is being wiped: %w", v.Name, ErrPodGone)
	case partition.Phase == disk.Formatted && mount == nil:
		return nil
	case partition.Phase == disk.Formatted:
		fsType := v.FSType
		if fsType == "" {
			if fsType, err = fileSystemOn(ctx, partition.Device); err != nil {
				return err
			}
		}
		return mount(ctx, partition.Device, fsType)
	}
	return m.format(ctx, d, partition, v, mount)
}

// format makes the file system of a volume in phase Reserved. The caller holds the
// volume's lock.
func (m *Manager) format(ctx context.Context, d discovery.Disk, partition disk.Volume, v request.Volume, mount func(ctx context.Context, device, fsType string) error) error {
	leave, err := m.formatSlots.take(ctx, d.ID(), formatsPerDisk)
	if err != nil {
		return err
	}
	defer leave()
	fsType := v.FSType
	if fsType == "" {
		fsType = m.options.DefaultFSType(v.Request.Class)
	}
	begin := time.Now()
	m.mu.Lock()
	zeroed, isFresh := m.fresh[v.Partition]
	partition.Prezeroed = zeroed
	made, isMade := m.made[v.Partition]
	m.mu.Unlock()
	already := false
	if !isMade && !isFresh {
		// Only this function mounts a Reserved volume, after its mkfs: an agent died
		// between the mount and the new phase.
		if already, err = mounted(partition.Device); err != nil {
			return err
		}
	}
	switch {
	case isMade:
		fsType = made
	case !already:
		if err := m.mkfs(ctx, d, fsType, partition); err != nil {
			return fmt.Errorf("volume %q: %w", v.Name, err)
		}
	}
	if mount == nil && m.isPublishing(v.Partition) {
		// The kubelet's call came meanwhile: it mounts while it writes the phase. Should it
		// give up, the next one does.
		return nil
	}
	var mounting sync.WaitGroup
	var mountErr error
	if mount != nil {
		mounting.Go(func() { mountErr = mount(ctx, partition.Device, fsType) })
	}
	err = d.Engine.MarkFormatted(context.WithoutCancel(ctx), v.Partition)
	mounting.Wait()
	if err != nil {
		return fmt.Errorf("volume %q: cannot note that it is formatted: %w", v.Name, err)
	}
	m.mu.Lock()
	delete(m.made, v.Partition)
	m.mu.Unlock()
	klog.FromContext(ctx).Info("Volume is formatted", "volume", v.Name, "partition", v.Partition, "device", partition.Device,
		"fsType", fsType, "duration", time.Since(begin))
	return mountErr
}

func (m *Manager) countPublishing(partition string, change int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.publishing[partition] += change; m.publishing[partition] == 0 {
		delete(m.publishing, partition)
	}
}

func (m *Manager) isPublishing(partition string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.publishing[partition] > 0
}

// mkfs makes the file system and remembers it until the disk does. The caller holds the
// volume's lock.
func (m *Manager) mkfs(ctx context.Context, d discovery.Disk, fsType string, partition disk.Volume) error {
	m.mu.Lock()
	// Whatever comes of it, the partition is not as it was made any more.
	delete(m.fresh, partition.Partition)
	m.mu.Unlock()
	err := d.Engine.Format(context.WithoutCancel(ctx), partition.Partition, func(ctx context.Context) error {
		return mkfs(ctx, fsType, partition)
	})
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.made[partition.Partition] = fsType
	return nil
}
