package volumes

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"

	"github.com/berthdev/berth/pkg/agent/discovery"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/agent/holders"
)

const (
	// blockedAfter is how long something may hold a volume that must be wiped, before that is reported. The kubelet
	// takes some seconds to unmount.
	blockedAfter = time.Minute
	// blockedAgain is the least time between two reports about a volume whose holder changes. blockedEvents bounds the
	// events about the node: beyond it only the condition lists the volumes.
	blockedAgain  = 10 * time.Minute
	blockedEvents = 10
	// lookAgain is how long one look at the system serves for further volumes. lookPatience bounds how long a look may
	// take.
	lookAgain    = 5 * time.Second
	lookPatience = 10 * time.Second
)

// holderUnknown is the kind of a holder that was not found.
const holderUnknown holders.Kind = "Unknown"

// blocked knows the volumes that must be wiped but are held. The holder is a mount in any namespace, a process that has
// the device open, or the kernel. It reports what holds them in events, in a condition and in a metric.
type blocked struct {
	node    *node
	volumes volumeStore
	// owner names a volume for messages.
	owner func(v disk.Volume) (volume, owner string)

	mu sync.Mutex
	by map[string]*blockedVolume

	// lookMu is locked while the system is read.
	lookMu   sync.Mutex
	system   *holders.System
	lookedAt time.Time
}

// blockedVolume is a volume that is held.
type blockedVolume struct {
	// since is when the volume was first found to be held.
	since time.Time
	// name names the volume, why says what holds it, and kind is the kind of the holder. why is empty until it is
	// reported.
	name, why string
	kind      holders.Kind
	// reportedAt is when events were last written.
	reportedAt time.Time
}

// held notes that something holds a volume that must be wiped. seen describes it if holdersOf does not find more.
func (b *blocked) held(ctx context.Context, d discovery.Disk, v disk.Volume, seen string) {
	b.mu.Lock()
	of := b.by[v.Partition]
	if of == nil {
		of = &blockedVolume{since: b.node.clock.Now()}
		b.by[v.Partition] = of
	}
	due := b.node.since(of.since) >= blockedAfter
	b.mu.Unlock()
	if !due {
		return
	}
	found, limits := b.holdersOf(ctx, v.Device)
	why, kind := sentence(seen, found, limits)
	volume, owner := b.owner(v)
	b.mu.Lock()
	if b.by[v.Partition] != of {
		b.mu.Unlock()
		return
	}
	isNew := of.why != why
	of.name, of.why, of.kind = describe(d, v, volume, owner), why, kind
	report := isNew && (of.reportedAt.IsZero() || b.node.since(of.reportedAt) >= blockedAgain)
	if report {
		of.reportedAt = b.node.clock.Now()
	}
	count := len(b.by)
	b.mu.Unlock()
	if isNew {
		b.node.changed()
	}
	if !report {
		return
	}
	klog.FromContext(ctx).Info("Volume cannot be reclaimed, something holds it", "partition", v.Partition, "device", v.Device, "disk", d.ID(), "heldBy", why)
	if count <= blockedEvents {
		b.node.reports.ofNode(corev1.EventTypeWarning, eventReclaimBlocked, of.name+" cannot be wiped, its space is not free: "+why)
	}
	for _, pv := range b.volumes.of(v.Partition) {
		b.node.reports.ofVolume(pv, corev1.EventTypeWarning, eventReclaimBlocked, "the volume cannot be wiped: "+why)
	}
}

// sentence describes what holds a volume, and returns the kind of the first holder.
func sentence(seen string, found []holders.Holder, limits []string) (why string, kind holders.Kind) {
	if len(found) > 0 {
		return holders.Describe(found), found[0].Kind
	}
	why = seen
	if len(limits) > 0 {
		why += " (not all could be looked at: " + strings.Join(limits, "; ") + ")"
	}
	return why, holderUnknown
}

// holdersOf finds what holds a device, and what it could not look at.
func (b *blocked) holdersOf(ctx context.Context, device string) (found []holders.Holder, limits []string) {
	b.lookMu.Lock()
	defer b.lookMu.Unlock()
	if b.system == nil || b.node.since(b.lookedAt) >= lookAgain {
		ctx, cancel := context.WithTimeout(ctx, lookPatience)
		defer cancel()
		system, err := holders.ReadSystem(ctx)
		if err != nil {
			return nil, []string{err.Error()}
		}
		b.system, b.lookedAt = system, b.node.clock.Now()
	}
	var st syscall.Stat_t
	if err := syscall.Stat(device, &st); err != nil {
		return nil, []string{fmt.Sprintf("device %s: %v", device, err)}
	}
	return b.system.Of(st.Rdev), b.system.Unchecked()
}

// cleared notes that nothing holds the volume any more, or that it need not be wiped.
func (b *blocked) cleared(partition string) {
	b.mu.Lock()
	of := b.by[partition]
	delete(b.by, partition)
	b.mu.Unlock()
	if of != nil && of.why != "" {
		b.node.changed()
	}
}

// list returns one sentence for each volume that is held, and the number of volumes for each kind of holder.
func (b *blocked) list() (sentences []string, kinds map[holders.Kind]int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	kinds = map[holders.Kind]int{}
	for _, partition := range slices.Sorted(maps.Keys(b.by)) {
		if of := b.by[partition]; of.why != "" {
			sentences = append(sentences, of.name+": "+of.why)
			kinds[of.kind]++
		}
	}
	return sentences, kinds
}
