package discovery

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/disk"
)

// Rescan reads the node's devices again. It opens new disks, takes missing ones out of service, and follows the classes
// and approvals. It reports whether a device was refused for a reason that may disappear without an event, such as a
// busy device that is released.
func (i *Inventory) Rescan(ctx context.Context) (retry bool, err error) {
	i.scanning.Lock()
	defer i.scanning.Unlock()

	all, err := ListDevices(i.options.Sys, i.options.Dev)
	if err != nil {
		return true, err
	}
	devices := FilterDevices(all, i.options.DevicePatterns)
	now := i.options.Now()
	i.newDevices.update(devices, i.publishedDevices, now)
	s := &rescanState{
		inventory: i, devices: devices, all: all, now: now, verdicts: map[string]Verdict{}, ours: map[string]bool{}, missing: map[string]string{},
		classes: i.options.Classes(), labels: i.options.NodeLabels(), approvals: i.options.Approvals(),
	}
	if i.options.Owner != nil {
		s.owner = i.options.Owner()
	}
	s.checkOpenDisks(ctx)
	s.findMissing()
	s.readLoops(ctx)
	// Drives first: whether a device lies on a disk of ours is known only when that disk is.
	for _, group := range byDepth(s.devices) {
		s.decide(ctx, group)
	}
	s.dropReplaced(ctx)
	s.publish(ctx)
	i.options.Changed()
	return s.retry, nil
}

// rescanState is the state of one rescan.
type rescanState struct {
	inventory *Inventory
	// devices are those that may be used. all is needed to find what these are made of.
	devices, all []Device
	now          time.Time
	classes      []*diskv1alpha1.DiskClass
	labels       map[string]string
	approvals    []diskv1alpha1.DeviceApproval
	owner        disk.Owner
	youngest     *YoungestAttachment

	// missing are the IDs of missing disks that were on a device. ours are the devices that hold a disk of ours, or
	// held a missing one. verdicts are the decisions. All are by the device's name.
	missing  map[string]string
	ours     map[string]bool
	verdicts map[string]Verdict
	retry    bool
	// enginesToClose are the disks that queueClose took out of service.
	enginesToClose []engineToClose
}

// byDepth groups devices so that each lies on devices of earlier groups only.
func byDepth(devices []Device) [][]Device {
	depth := stackDepths(devices)
	var groups [][]Device
	for level, left := 0, len(devices); left > 0; level++ {
		var group []Device
		for _, d := range devices {
			if depth[d.Name] == level {
				group = append(group, d)
			}
		}
		left -= len(group)
		groups = append(groups, group)
	}
	return groups
}

// facts are the facts about a device that are known before it is read.
func (s *rescanState) facts(d Device) *Facts {
	f := &Facts{
		Device: d, Classes: s.classes, NodeLabels: s.labels, Approvals: approvalsFor(d, s.all, s.approvals),
		MissingDisk: s.missing[d.Name], LiesOnOurs: findOurDeviceBelow(d, s.all, s.ours), MultipathDevice: findMultipathDevice(d, s.all), Youngest: s.youngest,
		NodeRegistered: s.inventory.options.Owner == nil || s.owner.NodeUID != "",
	}
	f.New, f.Waited = s.inventory.newDevices.waitTime(d, s.now)
	return f
}

// decide decides about devices that do not lie on each other, and carries out the decisions.
func (s *rescanState) decide(ctx context.Context, devices []Device) {
	var all, read []*Facts
	for _, d := range devices {
		if _, open := s.verdicts[d.Name]; open {
			continue
		}
		f := s.facts(d)
		all = append(all, f)
		if Decide(*f).Action == ActionRead {
			read = append(read, f)
		}
	}
	s.inspect(ctx, read)
	s.markCopies(all)
	for _, f := range all {
		s.verdicts[f.Device.Name] = s.carryOut(ctx, f)
	}
}

// carryOut looks up what a decision needs, and carries it out.
func (s *rescanState) carryOut(ctx context.Context, f *Facts) Verdict {
	for {
		v := Decide(*f)
		switch v.Action {
		case ActionFindOwner:
			o := s.findOwnership(ctx, f.Contents.Owner)
			f.Ownership = &o
			continue
		case ActionListAttachments:
			f.Youngest = s.listAttachments(ctx)
			continue
		case ActionOpen, ActionInitialize:
			v = s.adopt(ctx, f, v)
		case ActionLeave, ActionRead:
		}
		s.setProblem(v)
		return v
	}
}

// publish publishes the decisions, and logs the refusals that are new.
func (s *rescanState) publish(ctx context.Context) {
	var listed []ListedDevice
	var refused []RefusedDevice
	var again time.Time
	for _, d := range s.devices {
		v := s.verdicts[d.Name]
		s.retry = s.retry || v.Retry
		if v.RecheckAfter > 0 && (again.IsZero() || s.now.Add(v.RecheckAfter).Before(again)) {
			again = s.now.Add(v.RecheckAfter)
		}
		// The kubelet makes and removes loop devices with pods.
		if d.Loop != nil && d.Loop.Block || v.Class == "" && v.Disk == "" && d.isUnlisted() {
			continue
		}
		listed = append(listed, ListedDevice{d, v})
		if v.Refused() {
			refused = append(refused, RefusedDevice{Device: d.Name, Reason: strings.Join(v.Reasons, "; ")})
		}
	}
	slices.SortFunc(listed, func(a, b ListedDevice) int { return cmp.Compare(a.Device.Name, b.Device.Name) })
	slices.SortFunc(refused, func(a, b RefusedDevice) int { return cmp.Compare(a.Device, b.Device) })
	s.inventory.mu.Lock()
	before := s.inventory.refused
	s.inventory.listed, s.inventory.refused, s.inventory.recheckAt = listed, refused, again
	s.inventory.mu.Unlock()
	for _, r := range refused {
		if !slices.Contains(before, r) {
			klog.FromContext(ctx).Info("Device is refused", "device", r.Device, "reason", r.Reason)
		}
	}
}
