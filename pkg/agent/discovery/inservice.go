package discovery

import (
	"context"
	"fmt"
	"slices"

	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/disk"
)

// checkOpenDisks updates the classes of open disks. It closes those whose device is gone or that are out of service.
// They are then decided about like any other device.
func (s *rescanState) checkOpenDisks(ctx context.Context) {
	defer s.closeAll(ctx)
	s.inventory.mu.Lock()
	defer s.inventory.mu.Unlock()
	for _, d := range s.inventory.disks {
		if d.Engine == nil {
			continue
		}
		at := slices.IndexFunc(s.devices, d.Device.isSameMedium)
		snapshot := d.Engine.Snapshot()
		switch {
		case at < 0:
			s.takeOutOfService(ctx, d, fmt.Sprintf("device %s is gone", d.Device.Name))
		case s.devices[at].ReadOnly:
			s.takeOutOfService(ctx, d, fmt.Sprintf("device %s has become read-only", d.Device.Name))
		case snapshot.Err != nil:
			s.takeOutOfService(ctx, d, snapshot.Err.Error())
			s.retry = true
		default:
			if len(s.devices[at].Unreadable) == 0 {
				d.Device = s.devices[at]
			}
			class := s.classOf(d.Device)
			if class != d.Class {
				klog.FromContext(ctx).Info("Disk changed its class", "device", d.Device.Name, "disk", d.ID(), "from", d.Class, "to", class)
				d.Class = class
			}
			s.ours[d.Device.Name] = true
			s.verdicts[d.Device.Name] = Verdict{State: diskv1alpha1.DeviceInUse, Class: class, Disk: d.ID()}
			s.writeOwner(ctx, d.Engine, snapshot.Owner)
		}
	}
}

// classOf is the class of a disk of ours.
func (s *rescanState) classOf(d Device) string {
	f := Facts{Device: d, Approvals: approvalsFor(d, s.all, s.approvals)}
	if class := f.chooseClass(selectClasses(s.classes, s.labels, d)); class != nil {
		return class.Name
	}
	return ""
}

// writeOwner writes this node as the owner of an open disk that has no owner, or one that is gone. If that fails the
// disk still serves.
func (s *rescanState) writeOwner(ctx context.Context, engine *disk.Disk, before disk.Owner) {
	if s.owner.NodeUID == "" || before == s.owner {
		return
	}
	logger := klog.FromContext(ctx).WithValues("disk", engine.Snapshot().ID)
	owner := s.owner
	// The disk's own goroutine waits if the disk hangs.
	go func() {
		if err := engine.SetOwner(ctx, owner); err != nil {
			logger.Error(err, "Owner of the disk could not be written; tried again at the next look")
			return
		}
		logger.Info("Disk belongs to this node from now on", "nodeUID", owner.NodeUID, "before", before.NodeName, "beforeUID", before.NodeUID)
	}()
}

// adopt puts a blank device, or one of ours, into service, and returns the resulting verdict.
func (s *rescanState) adopt(ctx context.Context, f *Facts, v Verdict) Verdict {
	logger := klog.FromContext(ctx)
	engine, err := callWithTimeout(ctx, s.inventory, f.Device, func() (*disk.Disk, error) { return s.open(ctx, f, v) }, func(late *disk.Disk) { _ = late.Close() })
	if err != nil {
		s.inventory.newDevices.recordRead(f.Device, false, activity(s.inventory.options.Sys, f.Device.Name))
		v.Action, v.State, v.Reasons, v.Retry, v.Fingerprint = ActionLeave, diskv1alpha1.DeviceFailed, []string{err.Error()}, true, ""
		return v
	}
	snapshot := engine.Snapshot()
	v.State, v.Disk, v.Fingerprint = diskv1alpha1.DeviceInUse, snapshot.ID, ""
	if snapshot.Err != nil {
		// It is kept open, so that its volumes can be shown.
		logger.Info("Disk is not fit for service", "device", f.Device.Name, "disk", snapshot.ID, "class", v.Class, "volumes", len(snapshot.Volumes), "reason", snapshot.Err.Error())
	} else {
		logger.Info("Disk is in service", "device", f.Device.Name, "disk", snapshot.ID, "class", v.Class, "volumes", len(snapshot.Volumes))
		s.writeOwner(ctx, engine, snapshot.Owner)
	}
	s.inventory.mu.Lock()
	s.inventory.disks[snapshot.ID] = &Disk{Device: f.Device, Class: v.Class, Snapshot: snapshot, Engine: engine}
	s.inventory.mu.Unlock()
	s.ours[f.Device.Name] = true
	return v
}

// open opens a disk of ours. It initializes a blank device first.
func (s *rescanState) open(ctx context.Context, f *Facts, v Verdict) (*disk.Disk, error) {
	if v.Action == ActionInitialize {
		id, err := disk.Inspector{KubeletDir: s.inventory.options.KubeletDir}.Initialize(ctx, f.Device.Path, s.owner)
		if err != nil {
			return nil, err
		}
		klog.FromContext(ctx).Info("Blank disk was initialized", "device", f.Device.Name, "disk", id, "class", v.Class, "size", f.Device.Size,
			"wwn", f.Device.WWN, "serial", f.Device.Serial, "model", f.Device.Model)
	}
	return disk.Open(ctx, f.Device.Path, disk.Options{
		OnChange: s.inventory.options.Changed, SeenBefore: s.inventory.hasSeen, CommandTimeout: s.inventory.options.CommandTimeout,
	})
}
