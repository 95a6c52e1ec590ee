package volumes

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/discovery"
	"github.com/berthdev/berth/pkg/agent/disk"
)

// tooMany decides whether there are so many orphans that none is reclaimed.
func (m *Manager) tooMany(ctx context.Context, count int) bool {
	disks := m.options.Inventory.Disks()
	// Those on a disk that is away do not count now, and may count again.
	more := slices.ContainsFunc(disks, func(d discovery.Disk) bool { return !d.Ready() })
	m.mu.Lock()
	before := m.orphans.stopped
	m.orphans.stopped = count > m.options.OrphanLimit || before && (count > 0 || more)
	stopped := m.orphans.stopped
	m.mu.Unlock()
	if stopped != before {
		m.options.OwnersChanged()
	}
	if !stopped {
		return false
	}
	if !before {
		klog.FromContext(ctx).Info("Reclaiming has stopped: too many volumes have lost their pods", "orphans", count, "limit", m.options.OrphanLimit)
		m.say(corev1.EventTypeWarning, eventReclaimStopped, StoppedMessage(m.node, count))
	}
	return true
}

// StoppedMessage says for a person why nothing is reclaimed, and what to do.
func StoppedMessage(node string, count int) string {
	return fmt.Sprintf("%d volumes have lost their pods without that anybody saw them end, and none is reclaimed: has the API server lost its data, or an older state of it been restored? It ends by itself when all of the pods are back. If the volumes may be wiped: kubectl annotate ndc %s %s=%d", count, node, diskv1alpha1.AnnotationReclaimOrphans, count)
}

// allowance is how many orphans a person said may be reclaimed.
func (m *Manager) allowance(ctx context.Context) (count int, asked bool) {
	ndc := m.capacity()
	if ndc == nil {
		return 0, false
	}
	value, asked := ndc.Annotations[diskv1alpha1.AnnotationReclaimOrphans]
	if !asked {
		return 0, false
	}
	count, err := strconv.Atoi(strings.TrimSpace(value))
	if err != nil || count < 0 {
		klog.FromContext(ctx).Info("Annotation is not a number and is ignored", "annotation", diskv1alpha1.AnnotationReclaimOrphans, "value", value)
		return 0, true
	}
	return count, true
}

// acceptAllowance takes a person's word if it covers the orphans there are now.
func (m *Manager) acceptAllowance(ctx context.Context, allowed int, orphaned []disk.Volume) {
	if len(orphaned) == 0 {
		return
	}
	if len(orphaned) > allowed {
		m.say(corev1.EventTypeWarning, eventReclaimStopped, fmt.Sprintf("annotation %s allowed %d volumes, by now there are %d orphans: all are kept", diskv1alpha1.AnnotationReclaimOrphans, allowed, len(orphaned)))
		return
	}
	klog.FromContext(ctx).Info("A person allowed orphans to be reclaimed", "allowed", allowed, "orphans", len(orphaned))
	m.say(corev1.EventTypeNormal, eventReclaimAllowed, fmt.Sprintf("annotation %s allowed %d volumes: %d orphans are wiped as soon as they are not mounted", diskv1alpha1.AnnotationReclaimOrphans, allowed, len(orphaned)))
	m.mu.Lock()
	defer m.mu.Unlock()
	m.orphans.stopped = false
	for _, v := range orphaned {
		if o, is := m.orphans.found[v.Partition]; is {
			o.allowed = true
			m.orphans.found[v.Partition] = o
		}
	}
}

// capacity is the node's NodeDiskCapacity from the watch, nil if there is none.
func (m *Manager) capacity() *diskv1alpha1.NodeDiskCapacity {
	object, ok, err := m.options.Capacities.GetStore().GetByKey(m.node)
	if err != nil || !ok {
		return nil
	}
	ndc, _ := object.(*diskv1alpha1.NodeDiskCapacity)
	return ndc
}

// capacitySeen looks whether a person said something.
func (m *Manager) capacitySeen(object any) {
	ndc, ok := object.(*diskv1alpha1.NodeDiskCapacity)
	if !ok {
		return
	}
	if _, asked := ndc.Annotations[diskv1alpha1.AnnotationReclaimOrphans]; asked {
		m.releases.Add(sweepKey)
	}
}
