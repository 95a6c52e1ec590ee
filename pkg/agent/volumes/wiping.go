package volumes

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"

	"github.com/berthdev/berth/pkg/agent/discovery"
	"github.com/berthdev/berth/pkg/agent/disk"
)

// progressEvery is how often the progress of wipes is published. It is that of all at once,
// and stays as it is in between: each publication is seen on the watch, and would lead to
// the next one if there were always news.
const progressEvery = 3 * time.Second

// wiping is a wipe that a goroutine of ours is at.
type wiping struct {
	// policy is empty while the wipe waits for its turn.
	policy disk.WipePolicy
	// done of length bytes are done, shown of them are published.
	length, done, shown int64
}

func (m *Manager) beingWiped(partition string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, is := m.wiping[partition]
	return is
}

// Wiping says with which policy a volume is being wiped now and how many of its bytes are done.
func (m *Manager) Wiping(partition string) (policy disk.WipePolicy, done int64, is bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	w, is := m.wiping[partition]
	if !is || w.policy == "" {
		return "", 0, false
	}
	return w.policy, w.shown, true
}

// progress notes how far a wipe is.
func (m *Manager) progress(partition string, done int64) {
	m.mu.Lock()
	w, is := m.wiping[partition]
	if !is {
		m.mu.Unlock()
		return
	}
	w.done = min(done, w.length)
	due := time.Since(m.progressShown) >= progressEvery
	if due {
		m.progressShown = time.Now()
		for _, w := range m.wiping {
			w.shown = w.done
		}
	}
	m.mu.Unlock()
	if due {
		m.options.OwnersChanged()
	}
}

// begin wipes the volume in the background, so that a large slow disk holds up nothing
// but itself. unlock gives back the volume's lock at the end.
func (m *Manager) begin(ctx context.Context, d discovery.Disk, v disk.Volume, unlock func()) {
	m.mu.Lock()
	m.wiping[v.Partition] = &wiping{length: v.Extent.Len()}
	m.mu.Unlock()
	m.wipes.Go(func() {
		again := m.wipe(ctx, d, v)
		unlock()
		m.mu.Lock()
		delete(m.wiping, v.Partition)
		m.mu.Unlock()
		again()
	})
}

// wipe wipes the volume. The caller holds its lock; nobody else has business with it.
// The function it returns is to be called when the lock is free: it sees to what is left.
func (m *Manager) wipe(ctx context.Context, d discovery.Disk, v disk.Volume) (again func()) {
	logger := klog.FromContext(ctx).WithValues("partition", v.Partition, "disk", d.ID(), "device", v.Device)
	leave, err := m.wipeSlots.take(ctx, d.ID(), wipesPerDisk)
	if err != nil {
		return func() {}
	}
	defer leave()
	if now, found := m.diskNow(d.ID()); found {
		// It may have waited for long.
		d.Class = now.Class
	}
	o := m.options.Wiping(d.Class)
	o.Progress = func(done int64) { m.progress(v.Partition, done) }
	m.mu.Lock()
	m.wiping[v.Partition].policy = o.Policy
	m.mu.Unlock()
	logger.V(2).Info("Volume is being wiped", "name", v.Name, "extent", v.Extent, "policy", o.Policy, "rate", o.Rate)
	w, err := d.Engine.Wipe(ctx, v.Partition, o)
	switch {
	case err == nil, errors.Is(err, disk.ErrNotFound):
		if err == nil {
			m.sign(ctx, d, v, w)
		}
		m.wipeBackoff.Forget(v.Partition)
		m.mu.Lock()
		delete(m.persistent.had, v.Partition)
		m.mu.Unlock()
		// Once more: it is disowned when no disk holds it, or a copy of it.
		return func() { m.releases.Add(v.Partition) }
	case errors.Is(err, disk.ErrInUse):
		if m.isNews(types.UID(v.Partition), err.Error()) {
			logger.Info("Volume is still in use and is wiped later", "reason", err.Error())
		}
		// What had it may let go in a moment: a mount is copied with its namespace.
		return func() { m.releases.AddAfter(v.Partition, min(m.wipeBackoff.When(v.Partition), inUseRetry)) }
	}
	if ctx.Err() != nil {
		// The agent is stopping; the next one finds the phase Wiping and goes on.
		return func() {}
	}
	countWipe(d.Class, w, resultFailed)
	logger.Error(err, "Volume could not be wiped, its space is not free", "policy", o.Policy, "method", w.Method)
	if m.isNews(types.UID(v.Partition), err.Error()) {
		m.say(corev1.EventTypeWarning, eventNotWiped, fmt.Sprintf("%s: %v. Its space is not free; it is tried again", m.nameOf(d, v), err))
	}
	return func() { m.releases.AddAfter(v.Partition, m.wipeBackoff.When(v.Partition)) }
}

// diskNow returns a disk as it is now, whether it serves or not.
func (m *Manager) diskNow(id string) (discovery.Disk, bool) {
	for _, d := range m.options.Inventory.Disks() {
		if d.ID() == id {
			return d, true
		}
	}
	return discovery.Disk{}, false
}

// sign records a wipe that satisfied its policy: in the log, in the metrics, and as an
// event of the node's NodeDiskCapacity.
func (m *Manager) sign(ctx context.Context, d discovery.Disk, v disk.Volume, w disk.Wiped) {
	countWipe(d.Class, w, resultDone)
	volume, owner := m.Owner(v)
	logger := klog.FromContext(ctx).WithValues("volume", volume, "owner", owner, "name", v.Name, "partition", v.Partition,
		"disk", d.ID(), "device", v.Device, "class", d.Class, "extent", w.Extent, "policy", w.Policy, "method", w.Method,
		"verified", w.Verified, "began", w.Began, "duration", w.Took)
	if w.Policy == disk.WipeNone {
		logger.Info("Volume's space is free and was NOT wiped: what the volume held stays on the disk")
	} else {
		logger.Info("Volume is wiped and its space is free")
	}
	eventType, message := recordOfWipe(w)
	m.say(eventType, eventWiped, m.nameOf(d, v)+message)
}

// recordOfWipe says for a person what was done.
func recordOfWipe(w disk.Wiped) (eventType, message string) {
	took := w.Took.Round(time.Millisecond)
	if w.Policy == disk.WipeNone {
		return corev1.EventTypeWarning, fmt.Sprintf(": its space is free and was NOT wiped (policy None, which is unsafe): what the volume held stays on the disk, below the next file system there; in %v", took)
	}
	proof := "not read back"
	if w.Verified {
		proof = "read back as zeros"
		if w.Policy == disk.WipeZero {
			proof = "samples and both ends read back as zeros"
		}
	}
	why := ""
	if w.Policy == disk.WipeSecureDiscard && w.Method != methodSecureDiscard {
		why = " (the device has no secure discard)"
	}
	return corev1.EventTypeNormal, fmt.Sprintf(": wiped with policy %s by %s%s, %s, in %v", w.Policy, w.Method, why, proof, took)
}

// methodSecureDiscard is the method of a wipe that the device itself did.
const methodSecureDiscard = "BLKSECDISCARD"

// nameOf names a volume for a person, and says where it is.
func (m *Manager) nameOf(d discovery.Disk, v disk.Volume) string {
	volume, owner := m.Owner(v)
	if owner == "" {
		owner = v.Name
	}
	if volume == "" {
		volume = "volume"
	}
	return fmt.Sprintf("%s of %s, partition %s, %d bytes at %d of disk %s (%s)", volume, owner, v.Partition, v.Extent.Len(), v.Extent.Start, d.ID(), d.Device.Name)
}
