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

// Rescan looks at the node's devices again: it opens what came, takes out of service
// what went, and follows the classes and approvals. It reports whether something was refused
// that may be all right later without any event (a busy device that is released).
func (i *Inventory) Rescan(ctx context.Context) (retry bool, err error) {
	i.scanning.Lock()
	defer i.scanning.Unlock()

	all, err := Scan(i.options.Sys, i.options.Dev)
	if err != nil {
		return true, err
	}
	devices := Among(all, i.options.Only)
	now := i.options.Now()
	i.newcomers.look(devices, i.published, now)
	s := &scan{
		inventory: i, devices: devices, all: all, now: now, verdicts: map[string]Verdict{}, ours: map[string]bool{}, known: map[string]string{},
		classes: i.options.Classes(), labels: i.options.NodeLabels(), approvals: i.options.Approvals(),
	}
	if i.options.Owner != nil {
		s.owner = i.options.Owner()
	}
	s.reviewOpen(ctx)
	s.findKnown()
	s.lookIntoLoops(ctx)
	// Drives first: what lies on a disk of ours is known only when that disk is.
	for _, group := range byDepth(s.devices) {
		s.decide(ctx, group)
	}
	s.dropReplaced(ctx)
	s.commit(ctx)
	i.options.Changed()
	return s.retry, nil
}

// scan is one rescan at work.
type scan struct {
	inventory *Inventory
	// devices are those that may be looked at; all tell what those are made of.
	devices, all []Device
	now          time.Time
	classes      []*diskv1alpha1.DiskClass
	labels       map[string]string
	approvals    []diskv1alpha1.DeviceApproval
	owner        disk.Owner
	attached     *Attached

	// known are the missing disks that were on a device, ours the devices that hold disks of
	// ours, verdicts the decisions; all by the device's name.
	known    map[string]string
	ours     map[string]bool
	verdicts map[string]Verdict
	retry    bool
	// closing are the disks that put took out of service.
	closing []closing
}

// byDepth groups devices: each lies on devices of earlier groups only.
func byDepth(devices []Device) [][]Device {
	depth := depths(devices)
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

// facts are all facts about a device that are known before it is read.
func (s *scan) facts(d Device) *Facts {
	f := &Facts{
		Device: d, Classes: s.classes, NodeLabels: s.labels, Approvals: approvalsFor(d, s.all, s.approvals),
		Known: s.known[d.Name], LiesOn: liesOn(d, s.all, s.ours), PathOf: pathOf(d, s.all), Attached: s.attached,
		Registered: s.inventory.options.Owner == nil || s.owner.NodeUID != "",
	}
	f.New, f.Waited = s.inventory.newcomers.waited(d, s.now)
	return f
}

// decide decides about devices that do not lie on each other, and does what was decided.
func (s *scan) decide(ctx context.Context, devices []Device) {
	var all, read []*Facts
	for _, d := range devices {
		if _, open := s.verdicts[d.Name]; open {
			continue
		}
		f := s.facts(d)
		all = append(all, f)
		if Decide(*f).Act == Read {
			read = append(read, f)
		}
	}
	s.inspect(ctx, read)
	s.refuseCopies(all)
	for _, f := range all {
		s.verdicts[f.Device.Name] = s.act(ctx, f)
	}
}

// act asks what a decision needs to know, and does what was decided.
func (s *scan) act(ctx context.Context, f *Facts) Verdict {
	for {
		v := Decide(*f)
		switch v.Act {
		case AskOwner:
			o := s.askOwner(ctx, f.Contents.Owner)
			f.Ownership = &o
			continue
		case AskAttachments:
			f.Attached = s.askAttachments(ctx)
			continue
		case Open, Initialize:
			v = s.adopt(ctx, f, v)
		case Leave, Read:
		}
		s.noteProblem(v)
		return v
	}
}

// commit makes the decisions public, and logs the refusals that are new.
func (s *scan) commit(ctx context.Context) {
	var listed []Listed
	var refused []Refusal
	var again time.Time
	for _, d := range s.devices {
		v := s.verdicts[d.Name]
		s.retry = s.retry || v.Retry
		if v.Again > 0 && (again.IsZero() || s.now.Add(v.Again).Before(again)) {
			again = s.now.Add(v.Again)
		}
		// The kubelet's loop devices come and go with pods.
		if d.Loop != nil && d.Loop.Block || v.Class == "" && v.Disk == "" && d.unlisted() {
			continue
		}
		listed = append(listed, Listed{d, v})
		if v.Refused() {
			refused = append(refused, Refusal{Device: d.Name, Reason: strings.Join(v.Reasons, "; ")})
		}
	}
	slices.SortFunc(listed, func(a, b Listed) int { return cmp.Compare(a.Device.Name, b.Device.Name) })
	slices.SortFunc(refused, func(a, b Refusal) int { return cmp.Compare(a.Device, b.Device) })
	s.inventory.mu.Lock()
	before := s.inventory.refused
	s.inventory.listed, s.inventory.refused, s.inventory.again = listed, refused, again
	s.inventory.mu.Unlock()
	for _, r := range refused {
		if !slices.Contains(before, r) {
			klog.FromContext(ctx).Info("Device is refused", "device", r.Device, "reason", r.Reason)
		}
	}
}
