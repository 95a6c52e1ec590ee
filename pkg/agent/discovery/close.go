package discovery

import (
	"context"
	"errors"
	"sync"

	"k8s.io/klog/v2"

	"github.com/berthdev/berth/pkg/agent/disk"
)

// engineToClose is a disk that is out of service and must still be closed. Closing waits for a disk that hangs, so it
// happens after mu is released.
type engineToClose struct {
	device Device
	engine *disk.Disk
}

// takeOutOfService takes a disk out of service. closeAll closes it later. The caller holds mu.
func (s *rescanState) takeOutOfService(ctx context.Context, d *Disk, problem string) {
	klog.FromContext(ctx).Info("Disk is out of service", "device", d.Device.Name, "disk", d.ID(), "reason", problem)
	s.queueClose(d, problem)
}

// queueClose notes a disk as out of service, for closeEngines to close. The caller holds mu.
func (s *rescanState) queueClose(d *Disk, problem string) {
	snapshot := d.Engine.Snapshot()
	snapshot.Err = nil
	s.enginesToClose = append(s.enginesToClose, engineToClose{d.Device, d.Engine})
	d.Snapshot, d.Problem, d.Engine = snapshot, problem, nil
}

// closeAll closes the disks that are out of service, and logs errors. The caller does not hold mu.
func (s *rescanState) closeAll(ctx context.Context) {
	if err := s.closeEngines(ctx); err != nil {
		klog.FromContext(ctx).Error(err, "Disk did not close cleanly")
	}
}

// closeEngines closes all disks at the same time, so that several disks that hang take no longer than one.
func (s *rescanState) closeEngines(ctx context.Context) error {
	errs := make([]error, len(s.enginesToClose))
	var all sync.WaitGroup
	for n, c := range s.enginesToClose {
		all.Go(func() {
			_, errs[n] = callWithTimeout(ctx, s.inventory, c.device, func() (struct{}, error) { return struct{}{}, c.engine.Close() }, nil)
		})
	}
	all.Wait()
	s.enginesToClose = nil
	return errors.Join(errs...)
}
