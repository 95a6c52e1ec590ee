package volumes

import (
	"context"
	"sync"
	"sync/atomic"

	"k8s.io/klog/v2"

	"github.com/berthdev/berth/pkg/agent/discovery"
	"github.com/berthdev/berth/pkg/agent/disk"
)

// policies says how volumes are wiped: as the class of their disk says; if it is deleted, as is
// kept with the volume; if that is lost, as the disk's class said last.
type policies struct {
	// class is how volumes on disks of a class are wiped now; false if there is no such class.
	class func(class string) (disk.WipeSettings, bool)

	mu sync.Mutex
	// last is what the class of a disk said last, by disk ID.
	last map[string]disk.WipeSettings
	// keeping is held while what is kept with volumes is brought up to date, and again is set when
	// that is to be done (once more).
	keeping sync.Mutex
	again   atomic.Bool
}

// ofClass is what the class of a disk says; false if the disk has none any more.
func (p *policies) ofClass(d *discovery.Disk) (disk.WipeSettings, bool) {
	now, exists := p.class(d.Class)
	if !exists {
		return disk.WipeSettings{}, false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last[d.ID()] = now
	return now, true
}

// of is how a volume is wiped now. Without any other word it reads as zeros afterwards.
func (p *policies) of(d *discovery.Disk, v disk.Volume) disk.WipeSettings {
	if now, exists := p.ofClass(d); exists {
		return now
	}
	if v.Wipe.Policy != "" {
		return v.Wipe
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if last := p.last[d.ID()]; last.Policy != "" {
		return last
	}
	return disk.WipeSettings{Policy: disk.WipeZero}
}

// keep brings what is kept with the volumes up to date with their classes, so that a class leaves
// its newest policy behind. If that is under way, it is done once more, and keep returns at once.
func (p *policies) keep(ctx context.Context, inventory Inventory) {
	p.again.Store(true)
	for p.again.Load() && p.keeping.TryLock() {
		for p.again.Swap(false) {
			for _, d := range inventory.Disks() {
				p.keepOn(ctx, &d)
			}
		}
		p.keeping.Unlock()
	}
}

// keepOn is keep for one disk.
func (p *policies) keepOn(ctx context.Context, d *discovery.Disk) {
	now, exists := p.ofClass(d)
	e, err := engineOf(d)
	if !exists || err != nil {
		return
	}
	for _, v := range d.Snapshot.Volumes {
		if v.Phase == disk.Wiping || v.Wipe == now || ctx.Err() != nil {
			continue
		}
		if err := e.SetWipe(ctx, v.Partition, now); err != nil {
			// The next change on the disks tries again.
			klog.FromContext(ctx).V(1).Info("The wipe policy of a volume could not be kept with it", "partition", v.Partition, "disk", d.ID(), "err", err)
		}
	}
}
