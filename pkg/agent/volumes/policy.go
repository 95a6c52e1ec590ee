package volumes

import (
	"context"
	"sync"
	"sync/atomic"

	"k8s.io/klog/v2"

	"github.com/berthdev/berth/pkg/agent/discovery"
	"github.com/berthdev/berth/pkg/agent/disk"
)

// policies decides how a volume is wiped. The class of its disk decides if it exists. Else the settings kept with the
// volume do, and else the last settings of the disk's class.
type policies struct {
	// ofClassNow returns how volumes on disks of a class are wiped now, and false if there is no such class.
	ofClassNow func(class string) (disk.WipeSettings, bool)

	mu sync.Mutex
	// lastOfDisk has the last settings of a disk's class, by disk ID.
	lastOfDisk map[string]disk.WipeSettings
	// storing is locked while the settings kept with the volumes are updated. storeAgain is set when another update is
	// needed.
	storing    sync.Mutex
	storeAgain atomic.Bool
}

// ofClass returns the settings of a disk's class, and false if the disk has no class any more.
func (p *policies) ofClass(d *discovery.Disk) (disk.WipeSettings, bool) {
	now, exists := p.ofClassNow(d.Class)
	if !exists {
		return disk.WipeSettings{}, false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lastOfDisk[d.ID()] = now
	return now, true
}

// of returns how a volume is wiped now. Without any settings it is zeroed.
func (p *policies) of(d *discovery.Disk, v disk.Volume) disk.WipeSettings {
	if now, exists := p.ofClass(d); exists {
		return now
	}
	if v.Wipe.Policy != "" {
		return v.Wipe
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if last := p.lastOfDisk[d.ID()]; last.Policy != "" {
		return last
	}
	return disk.WipeSettings{Policy: disk.WipeZero}
}

// storeOnDisks updates the settings kept with the volumes from their classes, so that a deleted class leaves its newest
// policy behind. If an update is running, it only requests another one and returns at once.
func (p *policies) storeOnDisks(ctx context.Context, inventory Inventory) {
	p.storeAgain.Store(true)
	for p.storeAgain.Load() && p.storing.TryLock() {
		for p.storeAgain.Swap(false) {
			for _, d := range inventory.Disks() {
				p.storeOnDisk(ctx, &d)
			}
		}
		p.storing.Unlock()
	}
}

// storeOnDisk is storeOnDisks for one disk.
func (p *policies) storeOnDisk(ctx context.Context, d *discovery.Disk) {
	now, exists := p.ofClass(d)
	e, err := engineOf(d)
	if !exists || err != nil {
		return
	}
	for _, v := range d.Snapshot.Volumes {
		if v.Phase == disk.Wiping || v.Phase == disk.OrphanPiece || v.Wipe == now || ctx.Err() != nil {
			continue
		}
		if err := e.SetWipe(ctx, v.Partition, now); err != nil {
			// The next change on the disks tries again.
			klog.FromContext(ctx).V(1).Info("The wipe policy of a volume could not be kept with it", "partition", v.Partition, "disk", d.ID(), "err", err)
		}
	}
}
