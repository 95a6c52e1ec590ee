package discovery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/extent"
)

// Disk is one of the node's disks as it is now. It never changes.
type Disk struct {
	Device Device
	// Class is the DiskClass that selects the disk; empty when none does any more.
	Class string
	// Snapshot is the newest one; for a disk that is gone the last one.
	Snapshot disk.Snapshot
	// Problem is empty, or says for a person why the disk is out of service.
	Problem string
	// Engine writes the disk; nil when the disk is out of service.
	Engine *disk.Disk
}

// ID is the disk's identity.
func (d *Disk) ID() string { return d.Snapshot.ID }

// Ready reports whether the disk takes volumes.
func (d *Disk) Ready() bool { return d.Problem == "" && d.Engine != nil }

// Refusal is a device that a class selects and that is not used.
type Refusal struct {
	Device string
	Reason string
}

// Options of an Inventory.
type Options struct {
	// Sys is /sys/block.
	Sys fs.FS
	// Dev is /dev.
	Dev string
	// Only are patterns for paths; when there are any, no other device is looked at.
	Only []string
	// Classes and NodeLabels answer what selects disks now.
	Classes    func() []*diskv1alpha1.DiskClass
	NodeLabels func() map[string]string
	// Changed is called after anything about the disks or their contents changed. It
	// must not block.
	Changed func()
	// Known are the disks that this node had before, as it published them. They stay
	// in the inventory, out of service, until they are found.
	Known []diskv1alpha1.Disk
	// Patience is how long a rescan waits for a device that hangs; 0 is the default.
	Patience time.Duration
	// CommandPatience is how long an open disk may take for a command; 0 is the engine's default.
	CommandPatience time.Duration
}

// Inventory is the disks of a node.
//
// Invariants:
//  1. A device that no class selects is never written to, and not even read unless
//     a disk that this node had is missing.
//  2. A device is written to only after disk.Inspect called it blank or ours.
//  3. At most one open disk has a given ID; if two devices have it, none is open.
type Inventory struct {
	options Options

	// scanning is held for a whole rescan, which opens and writes disks; mu only
	// for looking at the fields below.
	scanning sync.Mutex

	mu      sync.Mutex
	disks   map[string]*Disk
	refused []Refusal

	// hanging are the devices that an earlier rescan gave up waiting for; each channel
	// is closed when the device answers after all.
	hanging map[string]chan struct{}
}

// NewInventory returns an inventory that knows of no device until Rescan.
func NewInventory(o Options) *Inventory {
	if o.Patience == 0 {
		o.Patience = defaultPatience
	}
	i := &Inventory{options: o, disks: map[string]*Disk{}, hanging: map[string]chan struct{}{}}
	for _, k := range o.Known {
		i.disks[k.ID] = remembered(k)
	}
	return i
}

// remembered is a disk of which only its publication is known.
func remembered(k diskv1alpha1.Disk) *Disk {
	s := disk.Snapshot{ID: k.ID, Path: "/dev/" + k.Device, Size: k.Size, SectorSize: int64(k.SectorSize), Overhead: k.Size}
	var taken extent.Set
	for _, a := range k.Allocations {
		// A person may have written this: it must be something that can be published again.
		if e := extent.New(a.Start, a.Length); taken.Overlaps(e) {
			continue
		} else {
			taken = taken.Add(e)
		}
		v := disk.Volume{Partition: a.Partition, Phase: disk.Phase(a.Phase), Ephemeral: true}
		if id, ok := diskv1alpha1.VolumeUUID(a.Volume); ok {
			v.Name, v.Ephemeral = id, false
		}
		v.Extent.Start, v.Extent.End = a.Start, a.Start+a.Length
		s.Volumes = append(s.Volumes, v)
		s.Overhead -= a.Length
	}
	return &Disk{
		Device:   Device{Name: k.Device, Path: s.Path, Size: k.Size, SectorSize: s.SectorSize, Model: k.Model, Rotational: k.Rotational},
		Class:    k.Class,
		Snapshot: s,
		Problem:  "no device holds this disk",
	}
}

// Disks returns the disks as they are now, sorted by ID.
func (i *Inventory) Disks() []Disk {
	i.mu.Lock()
	disks := make([]Disk, 0, len(i.disks))
	for _, d := range i.disks {
		disks = append(disks, *d)
	}
	i.mu.Unlock()
	for n := range disks {
		d := &disks[n]
		if d.Engine == nil {
			continue
		}
		d.Snapshot = d.Engine.Snapshot()
		if d.Snapshot.Err != nil {
			d.Problem = d.Snapshot.Err.Error()
		}
	}
	slices.SortFunc(disks, func(a, b Disk) int { return cmp.Compare(a.ID(), b.ID()) })
	return disks
}

// Failing reports whether a disk that is open went out of service: opened again it may
// serve again, and nothing else will announce that.
func (i *Inventory) Failing() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, d := range i.disks {
		if d.Engine != nil && d.Engine.Snapshot().Err != nil {
			return true
		}
	}
	return false
}

// Refused returns the devices that are selected and not used, sorted by name.
func (i *Inventory) Refused() []Refusal {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Clone(i.refused)
}

// Close closes all disks. Volumes stay attached and mounted.
func (i *Inventory) Close() error {
	i.scanning.Lock()
	defer i.scanning.Unlock()
	s := &scan{inventory: i}
	i.mu.Lock()
	for _, d := range i.disks {
		if d.Engine != nil {
			s.put(d, "the agent is stopping")
		}
	}
	i.mu.Unlock()
	return s.closeEngines(context.Background())
}

// Forget drops the disks that no device holds, with what was on them. The next rescan
// finds again what is there after all.
func (i *Inventory) Forget() {
	i.scanning.Lock()
	defer i.scanning.Unlock()
	i.mu.Lock()
	defer i.mu.Unlock()
	maps.DeleteFunc(i.disks, func(_ string, d *Disk) bool { return d.Engine == nil })
}

// candidate is a device that is looked into in a rescan.
type candidate struct {
	device   Device
	class    string
	contents disk.Contents
}

// Rescan looks at the node's devices anew: it opens what came, takes out of service
// what went, and follows the classes. It reports whether something was refused that
// may be all right later without any event (a busy device that is let go).
func (i *Inventory) Rescan(ctx context.Context) (retry bool, err error) {
	i.scanning.Lock()
	defer i.scanning.Unlock()

	devices, err := Scan(i.options.Sys, i.options.Dev, i.options.Only)
	if err != nil {
		return true, err
	}
	s := &scan{inventory: i, classes: i.options.Classes(), labels: i.options.NodeLabels()}
	s.reviewOpen(ctx, devices)
	s.inspect(ctx, devices)
	s.refuseTwins(ctx)
	for _, c := range s.candidates {
		s.adopt(ctx, c)
	}
	s.dropReplaced(ctx)
	s.commit(ctx)
	i.options.Changed()
	return s.retry, nil
}

// scan is one rescan at work.
type scan struct {
	inventory  *Inventory
	classes    []*diskv1alpha1.DiskClass
	labels     map[string]string
	candidates []candidate
	refused    []Refusal
	retry      bool
	// closing are the disks that put took out of service.
	closing []closing
}

// closing is a disk that is to be closed.
type closing struct {
	device Device
	engine *disk.Disk
}

func (s *scan) classOf(d Device) string {
	if class := Match(s.classes, s.labels, d); class != nil {
		return class.Name
	}
	return ""
}

// reviewOpen follows the classes of open disks and closes those whose device is gone
// or that went out of service: they are looked at afresh like any other device.
func (s *scan) reviewOpen(ctx context.Context, devices []Device) {
	defer s.closeAll(ctx)
	s.inventory.mu.Lock()
	defer s.inventory.mu.Unlock()
	for _, d := range s.inventory.disks {
		if d.Engine == nil {
			continue
		}
		at := slices.IndexFunc(devices, d.Device.same)
		snapshot := d.Engine.Snapshot()
		switch {
		case at < 0:
			s.close(ctx, d, fmt.Sprintf("device %s is gone", d.Device.Name))
		case snapshot.Err != nil:
			s.close(ctx, d, snapshot.Err.Error())
			s.retry = true
		default:
			d.Device = devices[at]
			if class := s.classOf(d.Device); class != d.Class {
				klog.FromContext(ctx).Info("Disk changed its class", "device", d.Device.Name, "disk", d.ID(), "from", d.Class, "to", class)
				d.Class = class
			}
		}
	}
}

// close takes a disk out of service, and closeAll closes it: the caller holds mu, and
// a disk that hangs would keep it for ever.
func (s *scan) close(ctx context.Context, d *Disk, problem string) {
	klog.FromContext(ctx).Info("Disk is out of service", "device", d.Device.Name, "disk", d.ID(), "reason", problem)
	s.put(d, problem)
}

func (s *scan) put(d *Disk, problem string) {
	snapshot := d.Engine.Snapshot()
	snapshot.Err = nil
	s.closing = append(s.closing, closing{d.Device, d.Engine})
	d.Snapshot, d.Problem, d.Engine = snapshot, problem, nil
}

func (s *scan) closeAll(ctx context.Context) {
	if err := s.closeEngines(ctx); err != nil {
		klog.FromContext(ctx).Error(err, "Disk did not close cleanly")
	}
}

func (s *scan) closeEngines(ctx context.Context) error {
	errs := make([]error, len(s.closing))
	var all sync.WaitGroup
	for n, c := range s.closing {
		all.Go(func() {
			_, errs[n] = answer(ctx, s.inventory, c.device, func() (struct{}, error) { return struct{}{}, c.engine.Close() }, nil)
		})
	}
	all.Wait()
	s.closing = nil
	return errors.Join(errs...)
}

// inspect looks into the devices that are not open and that are selected, or may be
// a disk that is missing.
func (s *scan) inspect(ctx context.Context, devices []Device) {
	missing := false
	open := map[string]bool{}
	for _, d := range s.inventory.disks {
		missing = missing || d.Engine == nil
		if d.Engine != nil {
			open[d.Device.Name] = true
		}
	}
	for _, device := range devices {
		class := s.classOf(device)
		if open[device.Name] || class == "" && !missing {
			continue
		}
		s.candidates = append(s.candidates, candidate{device: device, class: class})
	}
	// At the same time: several that hang cost no more patience than one.
	errs := make([]error, len(s.candidates))
	var all errgroup.Group
	all.SetLimit(inspections)
	for n := range s.candidates {
		c := &s.candidates[n]
		all.Go(func() error {
			c.contents, errs[n] = answer(ctx, s.inventory, c.device, func() (disk.Contents, error) { return disk.Inspect(ctx, c.device.Path) }, nil)
			return nil
		})
	}
	_ = all.Wait()
	var answered []candidate
	for n, c := range s.candidates {
		if errs[n] != nil {
			s.refuse(c.device, c.class, errs[n].Error(), true)
			continue
		}
		answered = append(answered, c)
	}
	s.candidates = answered
}

// refuseTwins drops all candidates whose disk ID is on another device too, and takes
// that disk out of service: nobody can say which of the two holds the volumes.
func (s *scan) refuseTwins(ctx context.Context) {
	holders := map[string][]string{}
	for _, d := range s.inventory.disks {
		if d.Engine != nil {
			holders[d.ID()] = append(holders[d.ID()], d.Device.Name)
		}
	}
	for _, c := range s.candidates {
		if c.contents.State == disk.Ours {
			holders[c.contents.ID] = append(holders[c.contents.ID], c.device.Name)
		}
	}
	for id, names := range holders {
		if len(names) < 2 {
			continue
		}
		slices.Sort(names)
		reason := fmt.Sprintf("disk %s is on several devices, one must be a copy: %v; remove or wipe the copy", id, names)
		s.candidates = slices.DeleteFunc(s.candidates, func(c candidate) bool {
			twin := c.contents.State == disk.Ours && c.contents.ID == id
			if twin {
				s.refuse(c.device, c.class, reason, false)
			}
			return twin
		})
		s.inventory.mu.Lock()
		if d := s.inventory.disks[id]; d != nil {
			if d.Engine != nil {
				s.refuse(d.Device, d.Class, reason, false)
				s.close(ctx, d, reason)
			}
			d.Problem = reason
		}
		s.inventory.mu.Unlock()
	}
	s.closeAll(ctx)
}

// refuse notes why a selected device is not used; nobody asked for the others.
func (s *scan) refuse(device Device, class, reason string, retry bool) {
	if class == "" {
		return
	}
	s.refused = append(s.refused, Refusal{Device: device.Name, Reason: reason})
	s.retry = s.retry || retry
}

// adopt puts a device into service if it is blank or ours.
func (s *scan) adopt(ctx context.Context, c candidate) {
	logger := klog.FromContext(ctx)
	known := s.inventory.disks[c.contents.ID] != nil
	switch c.contents.State {
	case disk.Blank:
		if c.class == "" {
			return
		}
	case disk.Ours:
		if c.class == "" && !known {
			return
		}
	default:
		s.refuse(c.device, c.class, c.contents.Reason, c.contents.State == disk.Busy)
		return
	}
	engine, err := answer(ctx, s.inventory, c.device, func() (*disk.Disk, error) { return s.open(ctx, c) }, func(late *disk.Disk) { _ = late.Close() })
	if err != nil {
		s.refuse(c.device, c.class, err.Error(), true)
		if known {
			s.inventory.mu.Lock()
			s.inventory.disks[c.contents.ID].Problem = err.Error()
			s.inventory.mu.Unlock()
		}
		return
	}
	snapshot := engine.Snapshot()
	if snapshot.Err != nil {
		// It is kept for its volumes to be shown.
		logger.Info("Disk is not fit for service", "device", c.device.Name, "disk", snapshot.ID, "class", c.class, "volumes", len(snapshot.Volumes), "reason", snapshot.Err.Error())
	} else {
		logger.Info("Disk is in service", "device", c.device.Name, "disk", snapshot.ID, "class", c.class, "volumes", len(snapshot.Volumes))
	}
	s.inventory.mu.Lock()
	s.inventory.disks[snapshot.ID] = &Disk{Device: c.device, Class: c.class, Snapshot: snapshot, Engine: engine}
	s.inventory.mu.Unlock()
}

// open opens a disk of ours, and makes a blank one ours.
func (s *scan) open(ctx context.Context, c candidate) (*disk.Disk, error) {
	if c.contents.State == disk.Blank {
		id, err := disk.Initialize(ctx, c.device.Path)
		if err != nil {
			return nil, err
		}
		klog.FromContext(ctx).Info("Blank disk was initialized", "device", c.device.Name, "disk", id, "class", c.class, "size", c.device.Size)
	}
	return disk.Open(ctx, c.device.Path, disk.Options{
		OnChange: s.inventory.options.Changed, Known: s.inventory.knows, Patience: s.inventory.options.CommandPatience,
	})
}

// dropReplaced forgets disks without volumes that were on a device which holds another
// disk now: a person wiped it, or changed the drive.
func (s *scan) dropReplaced(ctx context.Context) {
	s.inventory.mu.Lock()
	defer s.inventory.mu.Unlock()
	inService := map[string]bool{}
	for _, d := range s.inventory.disks {
		if d.Engine != nil {
			inService[d.Device.Name] = true
		}
	}
	for id, d := range s.inventory.disks {
		if d.Engine == nil && len(d.Snapshot.Volumes) == 0 && inService[d.Device.Name] {
			klog.FromContext(ctx).Info("Disk without volumes is forgotten, another one is in its place", "device", d.Device.Name, "disk", id)
			delete(s.inventory.disks, id)
		}
	}
}

// commit makes the refusals public, and logs those that are new.
func (s *scan) commit(ctx context.Context) {
	slices.SortFunc(s.refused, func(a, b Refusal) int { return cmp.Compare(a.Device, b.Device) })
	s.inventory.mu.Lock()
	before := s.inventory.refused
	s.inventory.refused = s.refused
	s.inventory.mu.Unlock()
	for _, r := range s.refused {
		if !slices.Contains(before, r) {
			klog.FromContext(ctx).Info("Device is refused", "device", r.Device, "reason", r.Reason)
		}
	}
}

// knows reports whether this node had the disk before.
func (i *Inventory) knows(id string) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	_, known := i.disks[id]
	return known
}
