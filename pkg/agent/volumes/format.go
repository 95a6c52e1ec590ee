package volumes

import (
	"context"
	"fmt"
	"sync"
	"time"

	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/discovery"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/agent/signature"
	"github.com/berthdev/berth/pkg/request"
)

// formatsPerDisk bounds by disk, not by node: a disk that hangs keeps its slots for ever.
const formatsPerDisk = 4

// deviceFunc is what a call of the kubelet does with a volume's device: it mounts the device, or publishes it as a
// block device. fsType is empty for a raw block volume.
type deviceFunc func(ctx context.Context, device, fsType string) error

// FileSystems makes the file systems of volumes by the settings of their classes.
type FileSystems interface {
	// Make makes a file system on a volume whose content may be overwritten.
	Make(ctx context.Context, class, fsType string, v disk.Volume) error
}

// formatter brings volumes from phase Reserved to Formatted. A formatted partition is never formatted again.
type formatter struct {
	node *node
	// fsType is the file system of a class's volumes that request none.
	fsType      func(class string) string
	fileSystems FileSystems
	semaphores  diskSemaphores

	mu sync.Mutex
	// neverFormatted are the partitions that this agent has made and that had no mkfs yet: they have never been
	// mounted. The value is true if the agent wrote zeros to all of their bytes.
	neverFormatted map[string]bool
	// unmarkedFileSystems are the file systems that are made, on partitions that are still in phase Reserved. The next
	// holder of the volume's lock writes phase Formatted. After a restart the file systems are made again: no pod has
	// used them.
	unmarkedFileSystems map[string]string
	// publishing counts the kubelet's calls that wait for a volume's lock to mount it.
	publishing map[string]int
}

func newFormatter(n *node, fsType func(class string) string, fs FileSystems) *formatter {
	return &formatter{
		node: n, fsType: fsType, fileSystems: fs,
		neverFormatted: map[string]bool{}, unmarkedFileSystems: map[string]string{}, publishing: map[string]int{},
	}
}

// recordNew records whether the bytes of a partition that has just been made are zeros. The caller holds the volume's
// lock. All partitions of a volume have the same GUID, so what was known of an earlier one must be dropped.
func (f *formatter) recordNew(partition string, prezeroed bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.unmarkedFileSystems, partition)
	f.neverFormatted[partition] = prezeroed
}

// forget drops what is known of a partition that does not exist any more.
func (f *formatter) forget(partition string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.neverFormatted, partition)
	delete(f.unmarkedFileSystems, partition)
}

// ensureFormatted brings a volume that has a partition to phase Formatted. If mount is not nil, it is called with the
// formatted device, maybe while the phase is being written. Both have happened when ensureFormatted returns nil.
func (f *formatter) ensureFormatted(ctx context.Context, v request.Volume, mount deviceFunc) error {
	if mount != nil {
		f.countPublishing(v.Partition, 1)
	}
	unlock, err := f.node.locks.lock(ctx, v.Partition)
	if mount != nil {
		f.countPublishing(v.Partition, -1)
	}
	if err != nil {
		return err
	}
	defer unlock()
	d, partition, found := f.node.findVolume(v.Partition)
	switch {
	case !found:
		return fmt.Errorf("volume %q: its partition was released: %w", v.Name, ErrPodGone)
	case !d.Ready():
		return fmt.Errorf("volume %q: %w", v.Name, outOfService(&d))
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
	return f.format(ctx, d, partition, v, mount)
}

// format makes the file system of a volume in phase Reserved. The caller holds the volume's lock.
func (f *formatter) format(ctx context.Context, d discovery.Disk, partition disk.Volume, v request.Volume, mount deviceFunc) error {
	e, err := engineOf(&d)
	if err != nil {
		return fmt.Errorf("volume %q: %w", v.Name, err)
	}
	leave, err := f.semaphores.acquire(ctx, d.ID(), formatsPerDisk)
	if err != nil {
		return err
	}
	defer leave()
	fsType := v.FSType
	if fsType == "" {
		fsType = f.fsType(v.Request.Class)
	}
	begin := time.Now()
	f.mu.Lock()
	zeroed, isFresh := f.neverFormatted[v.Partition]
	partition.Prezeroed = zeroed
	made, isMade := f.unmarkedFileSystems[v.Partition]
	f.mu.Unlock()
	isMounted := false
	if !isMade && !isFresh {
		// Only this function mounts a Reserved volume, after its mkfs. If the volume is mounted, an agent stopped
		// between the mount and the new phase.
		if isMounted, err = isDeviceMounted(partition.Device); err != nil {
			return err
		}
	}
	switch {
	case isMade:
		fsType = made
	case !isMounted:
		if err := f.mkfs(ctx, e, v.Request.Class, fsType, partition); err != nil {
			return fmt.Errorf("volume %q: %w", v.Name, err)
		}
	}
	if mount == nil && f.isPublishing(v.Partition) {
		// A call of the kubelet is waiting: it mounts while it writes the phase. If it gives up, the kubelet's next
		// call does both.
		return nil
	}
	var mounting sync.WaitGroup
	var mountErr error
	if mount != nil {
		mounting.Go(func() { mountErr = mount(ctx, partition.Device, fsType) })
	}
	err = e.MarkFormatted(context.WithoutCancel(ctx), v.Partition)
	mounting.Wait()
	if err != nil {
		return fmt.Errorf("volume %q: cannot note that it is formatted: %w", v.Name, err)
	}
	f.mu.Lock()
	delete(f.unmarkedFileSystems, v.Partition)
	f.mu.Unlock()
	klog.FromContext(ctx).Info("Volume is formatted", "volume", v.Name, "partition", v.Partition, "device", partition.Device,
		"fsType", fsType, "duration", time.Since(begin))
	return mountErr
}

// mkfs makes the file system, and remembers it until the phase is on the disk. The caller holds the volume's lock.
func (f *formatter) mkfs(ctx context.Context, e engine, class, fsType string, partition disk.Volume) error {
	f.mu.Lock()
	// After mkfs the bytes of the partition are not known any more, even if it failed.
	delete(f.neverFormatted, partition.Partition)
	f.mu.Unlock()
	err := e.Format(context.WithoutCancel(ctx), partition.Partition, func(ctx context.Context) error {
		return f.fileSystems.Make(ctx, class, fsType, partition)
	})
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.unmarkedFileSystems[partition.Partition] = fsType
	return nil
}

func (f *formatter) countPublishing(partition string, change int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.publishing[partition] += change; f.publishing[partition] == 0 {
		delete(f.publishing, partition)
	}
}

func (f *formatter) isPublishing(partition string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.publishing[partition] > 0
}

// fileSystemOn reads which of the possible file systems a device has. It does not look for other signatures.
func fileSystemOn(ctx context.Context, device string) (string, error) {
	fsType, err := signature.FileSystem(ctx, device, diskv1alpha1.FSTypeExt4, diskv1alpha1.FSTypeXFS)
	if err != nil {
		return "", fmt.Errorf("cannot read what file system %s holds: %w", device, err)
	}
	if diskv1alpha1.ValidateFSType(fsType) != nil || fsType == "" {
		return "", fmt.Errorf("%s was formatted, but has no file system that can be recognized; it is not formatted again, because it may hold data", device)
	}
	return fsType, nil
}
