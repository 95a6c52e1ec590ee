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
	// blockedReportAfter is how long something may hold a volume that must be wiped, before that is reported. The
	// kubelet takes some seconds to unmount.
	blockedReportAfter = time.Minute
	// blockedReportInterval is the least time between two reports about a volume whose holder changes. maxBlockedEvents
	// bounds the events about the node: beyond it only the condition lists the volumes.
	blockedReportInterval = 10 * time.Minute
	maxBlockedEvents      = 10
	// systemMaxAge is how long one result of ReadSystem serves for further volumes. systemTimeout bounds how long it
	// may take.
	systemMaxAge  = 5 * time.Second
	systemTimeout = 10 * time.Second
)

// holderUnknown is the kind of a holder that was not found.
const holderUnknown holders.Kind = "Unknown"

// blockedVolumes knows the volumes that must be wiped but are held. The holder is a mount in any namespace, a process
// that has the device open, or the kernel. It reports what holds them in events, in a condition and in a metric.
type blockedVolumes struct {
	node    *node
	volumes volumeStore
	// ownerOf names a volume for messages.
	ownerOf func(v disk.Volume) (volume, ownerOf string)

	mu          sync.Mutex
	byPartition map[string]*blockedVolume

	// systemMu is locked while the system is read.
	systemMu     sync.Mutex
	system       *holders.System
	systemReadAt time.Time
}

// blockedVolume is a volume that is held.
type blockedVolume struct {
	// since is when the volume was first found to be held.
	since time.Time
	// name names the volume, holder says what holds it, and holderKind is the holder's kind. holder is empty until it
	// is reported.
	name, holder string
	holderKind   holders.Kind
	// reportedAt is when events were last written.
	reportedAt time.Time
}

// recordHeld notes that something holds a volume that must be wiped. fallback describes it if holdersOf does not find
// more.
func (b *blockedVolumes) recordHeld(ctx context.Context, d discovery.Disk, v disk.Volume, fallback string) {
	b.mu.Lock()
	of := b.byPartition[v.Partition]
	if of == nil {
		of = &blockedVolume{since: b.node.clock.Now()}
		b.byPartition[v.Partition] = of
	}
	due := b.node.since(of.since) >= blockedReportAfter
	b.mu.Unlock()
	if !due {
		return
	}
	found, unchecked := b.holdersOf(ctx, v.Device)
	why, kind := describeHolders(fallback, found, unchecked)
	volume, owner := b.ownerOf(v)
	b.mu.Lock()
	if b.byPartition[v.Partition] != of {
		b.mu.Unlock()
		return
	}
	isNew := of.holder != why
	of.name, of.holder, of.holderKind = describeVolume(d, v, volume, owner), why, kind
	report := isNew && (of.reportedAt.IsZero() || b.node.since(of.reportedAt) >= blockedReportInterval)
	if report {
		of.reportedAt = b.node.clock.Now()
	}
	count := len(b.byPartition)
	b.mu.Unlock()
	if isNew {
		b.node.changed()
	}
	if !report {
		return
	}
	klog.FromContext(ctx).Info("Volume cannot be reclaimed, something holds it", "partition", v.Partition, "device", v.Device, "disk", d.ID(), "heldBy", why)
	if count <= maxBlockedEvents {
		b.node.reports.nodeEvent(corev1.EventTypeWarning, eventReclaimBlocked, of.name+" cannot be wiped, its space is not free: "+why)
	}
	for _, pv := range b.volumes.of(v.Partition) {
		b.node.reports.volumeEvent(pv, corev1.EventTypeWarning, eventReclaimBlocked, "the volume cannot be wiped: "+why)
	}
}

// describeHolders describes what holds a volume, and returns the kind of the first holder.
func describeHolders(fallback string, found []holders.Holder, unchecked []string) (why string, kind holders.Kind) {
	if len(found) > 0 {
		return holders.Describe(found), found[0].Kind
	}
	why = fallback
	if len(unchecked) > 0 {
		why += " (not all could be looked at: " + strings.Join(unchecked, "; ") + ")"
	}
	return why, holderUnknown
}

// holdersOf finds what holds a device, and what it could not look at.
func (b *blockedVolumes) holdersOf(ctx context.Context, device string) (found []holders.Holder, unchecked []string) {
	b.systemMu.Lock()
	defer b.systemMu.Unlock()
	if b.system == nil || b.node.since(b.systemReadAt) >= systemMaxAge {
		ctx, cancel := context.WithTimeout(ctx, systemTimeout)
		defer cancel()
		system, err := holders.ReadSystem(ctx)
		if err != nil {
			return nil, []string{err.Error()}
		}
		b.system, b.systemReadAt = system, b.node.clock.Now()
	}
	var st syscall.Stat_t
	if err := syscall.Stat(device, &st); err != nil {
		return nil, []string{fmt.Sprintf("device %s: %v", device, err)}
	}
	return b.system.Of(st.Rdev), b.system.Unchecked()
}

// remove is called when nothing holds the volume any more, or that it need not be wiped.
func (b *blockedVolumes) remove(partition string) {
	b.mu.Lock()
	of := b.byPartition[partition]
	delete(b.byPartition, partition)
	b.mu.Unlock()
	if of != nil && of.holder != "" {
		b.node.changed()
	}
}

// list returns one sentence for each volume that is held, and the number of volumes for each kind of holder.
func (b *blockedVolumes) list() (sentences []string, kinds map[holders.Kind]int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	kinds = map[holders.Kind]int{}
	for _, partition := range slices.Sorted(maps.Keys(b.byPartition)) {
		if of := b.byPartition[partition]; of.holder != "" {
			sentences = append(sentences, of.name+": "+of.holder)
			kinds[of.holderKind]++
		}
	}
	return sentences, kinds
}
