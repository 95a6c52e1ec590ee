package discovery

import (
	"context"

	"golang.org/x/sync/errgroup"

	"github.com/berthdev/berth/pkg/agent/disk"
)

// inspect reads devices at the same time, so that several that hang take no longer than one. A device that was found
// blank and has not been used since is not read again. Reading it can disturb other programs, and it is read again
// before it is initialized.
func (s *rescanState) inspect(ctx context.Context, read []*Facts) {
	var all errgroup.Group
	all.SetLimit(maxInspections)
	// activities has the counters of each device after it was read: reading changes them.
	activities := make([]string, len(read))
	inspector := disk.Inspector{KubeletDir: s.inventory.options.KubeletDir}
	if len(read) > 1 {
		// What holds the node's devices is read once for all of them. If that fails, each inspection reads it itself,
		// and returns the error.
		inspector.Holders, _ = inspector.ReadHolders(ctx)
	}
	for n, f := range read {
		if s.inventory.newDevices.isBlank(f.Device) {
			f.Contents = &disk.Contents{State: disk.Blank}
			continue
		}
		// Another program may be about to make a file system on a new device. An exclusive open would disturb it.
		inspector := inspector
		inspector.SkipExclusive = f.inGracePeriod()
		all.Go(func() error {
			contents, err := callWithTimeout(ctx, s.inventory, f.Device, func() (disk.Contents, error) { return inspector.Inspect(ctx, f.Device.Path) }, nil)
			if err != nil {
				f.ReadError = err
			} else {
				f.Contents = &contents
			}
			activities[n] = activity(s.inventory.options.Sys, f.Device.Name)
			return nil
		})
	}
	_ = all.Wait()
	for n, f := range read {
		if activities[n] != "" {
			s.inventory.newDevices.recordRead(f.Device, f.Contents != nil && f.Contents.State == disk.Blank, activities[n])
		}
		if f.Contents != nil && f.Contents.State == disk.Ours {
			s.ours[f.Device.Name] = true
		}
	}
}
