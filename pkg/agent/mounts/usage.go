package mounts

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Usage is how full a file system is.
type Usage struct {
	// Size, Used and Available are in bytes. What only root may use is neither used nor available.
	Size, Used, Available int64
	// Inodes, and of these the used and free ones. xfs makes them as it needs them.
	Inodes, InodesUsed, InodesFree int64
}

// UsageOf reads the usage of the file system that is mounted on the path. The figures are in memory: a file system that
// the kernel has shut down, and a disk that hangs, mostly return them.
func UsageOf(path string) (Usage, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(path, &s); err != nil {
		return Usage{}, fmt.Errorf("cannot read the usage of %s: %w", path, err)
	}
	return Usage{
		Size: int64(s.Blocks) * s.Bsize, Used: int64(s.Blocks-s.Bfree) * s.Bsize, Available: int64(s.Bavail) * s.Bsize,
		Inodes: int64(s.Files), InodesUsed: int64(s.Files - s.Ffree), InodesFree: int64(s.Ffree),
	}, nil
}

// UsageOfDevice reads the usage of the file system on a device through one of its mounts in the table. ok is false if
// there is none. A mount that another one hides is not taken for it.
func (t Table) UsageOfDevice(device uint64) (usage Usage, ok bool, err error) {
	for _, m := range t.Of(device) {
		if visible, _ := t.At(m.Mountpoint); visible.ID != m.ID {
			continue
		}
		if usage, err = UsageOf(m.Mountpoint); err == nil {
			return usage, true, nil
		}
	}
	return Usage{}, false, err
}
