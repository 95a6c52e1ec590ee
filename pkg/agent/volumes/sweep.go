package volumes

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/discovery"
	"github.com/berthdev/berth/pkg/agent/disk"
)

const (
	// sweepDelay is how long a sweep waits for more volumes that become suspects at the same time.
	sweepDelay = time.Second
	// sweepInterval is how often the sweeper checks again whether pods are back.
	sweepInterval = 5 * time.Minute
)

// sweeper reclaims the ephemeral orphans when their grace period is over. Many orphans are kept if the API server's
// data may have been lost or restored: then the pods may still exist. They are kept until the pods are back, or an
// operator confirms how many may be reclaimed.
type sweeper struct {
	node       *node
	owners     *owners
	orphans    *orphans
	capacities capacityStore
	// grace and limit are OrphanGrace and OrphanLimit of Options.
	grace time.Duration
	limit int
	// isWiping, enqueue and reclaimOrphan are those of reclaimController.
	isWiping      func(partition string) bool
	enqueue       func(partition string, after time.Duration)
	reclaimOrphan func(ctx context.Context, partition string) error

	mu sync.Mutex
	// suspects are volumes whose pod is gone, but whose pod's end has not been seen yet: the watch may be late.
	suspects map[string]struct{}
	// stopped is set while nothing is reclaimed. It ends with the last orphan, not when there are few again: if half of
	// the pods are back, the others may exist, too.
	stopped bool
}

// addSuspect records a volume whose pod is gone without a seen end. The sweep after sweepDelay decides whether it is an
// orphan. By then the watch has usually shown the end.
func (s *sweeper) addSuspect(v disk.Volume) {
	s.mu.Lock()
	s.suspects[v.Partition] = struct{}{}
	s.mu.Unlock()
	s.enqueue(sweepKey, min(sweepDelay, s.grace))
}

func (s *sweeper) isStopped() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stopped
}

// sweep checks the ephemeral volumes without a known pod, and reclaims those that have been orphans for long enough. It
// decides for all of them by one list from the API server.
func (s *sweeper) sweep(ctx context.Context) error {
	allowed, asked := s.readAllowance(ctx)
	suspects := s.collectSuspects()
	live, err := s.owners.findPods(ctx, suspects)
	if err != nil {
		for _, v := range suspects {
			s.addSuspect(v)
		}
		return err
	}
	var orphaned []disk.Volume
	for _, v := range suspects {
		s.orphans.setOrphaned(ctx, v, !live[v.Partition])
		if live[v.Partition] {
			s.enqueue(v.Partition, 0)
			continue
		}
		orphaned = append(orphaned, v)
	}
	if asked {
		// Removed first, so that what was allowed once is not allowed the next time.
		if err := s.node.client.RemoveReclaimOrphans(ctx); err != nil {
			return fmt.Errorf("cannot remove annotation %s, orphans are kept: %w", diskv1alpha1.AnnotationReclaimOrphans, err)
		}
		s.acceptAllowance(ctx, allowed, orphaned)
	}
	return s.reclaimDue(ctx, orphaned)
}

// collectSuspects returns the ephemeral volumes on disks in service that may be orphans.
func (s *sweeper) collectSuspects() []disk.Volume {
	disks := s.node.inventory.Disks()
	s.mu.Lock()
	suspected := s.suspects
	s.suspects = map[string]struct{}{}
	s.mu.Unlock()
	var suspects []disk.Volume
	for i := range disks {
		if !disks[i].Ready() {
			continue
		}
		for _, v := range disks[i].Snapshot.Volumes {
			if !v.Ephemeral || v.Phase == disk.Wiping || s.isWiping(v.Partition) {
				continue
			}
			o, known := s.owners.get(v.Partition)
			_, orphaned := s.orphans.get(v.Partition)
			_, suspect := suspected[v.Partition]
			switch {
			case known && o.ended:
				// The event that showed the end has queued the release.
			case !known || orphaned || suspect:
				suspects = append(suspects, v)
			}
		}
	}
	return suspects
}

// reclaimDue reclaims those of the orphans that are due, and queues another sweep for the others.
func (s *sweeper) reclaimDue(ctx context.Context, orphaned []disk.Volume) error {
	var doubtful int
	found := s.orphans.all()
	for _, v := range orphaned {
		if !found[v.Partition].reclaimAllowed {
			doubtful++
		}
	}
	mayReclaim, err := s.mayReclaim(ctx, doubtful)
	if err != nil {
		return err
	}
	if !mayReclaim {
		s.enqueue(sweepKey, sweepInterval)
	}
	for _, v := range orphaned {
		o := found[v.Partition]
		left := s.grace - s.node.since(o.graceBegin)
		switch {
		case o.reclaimAllowed:
		case !mayReclaim:
			continue
		case left > 0:
			s.enqueue(sweepKey, left)
			continue
		}
		if err := s.reclaimOrphan(ctx, v.Partition); err != nil {
			return err
		}
	}
	return nil
}

// mayReclaim decides whether so many orphans are reclaimed. Few always are. Many are if the API server's data was
// neither lost nor restored: then the node, or the agent, was away.
func (s *sweeper) mayReclaim(ctx context.Context, count int) (bool, error) {
	disks := s.node.inventory.Disks()
	// Orphans on a disk that is away do not count now, and may count again later.
	diskAway := slices.ContainsFunc(disks, func(d discovery.Disk) bool { return !d.Ready() })
	if count == 0 && !diskAway {
		if left := s.node.client.EndDoubt(ctx); left > 0 {
			s.enqueue(sweepKey, left)
		}
	}
	wasStopped := s.isStopped()
	stopped := wasStopped && (count > 0 || diskAway)
	doubt := ""
	switch {
	case count <= s.limit || wasStopped:
	case s.limit == 0:
		stopped, doubt = true, "the limit is 0"
	default:
		var err error
		if doubt, err = s.node.client.Doubt(ctx); err != nil {
			s.enqueue(sweepKey, sweepDelay)
			return false, fmt.Errorf("%d orphans are kept: %w", count, err)
		}
		stopped = doubt != ""
	}
	s.mu.Lock()
	s.stopped = stopped
	s.mu.Unlock()
	if stopped != wasStopped {
		s.node.changed()
	}
	if stopped && !wasStopped {
		klog.FromContext(ctx).Info("Reclaiming has stopped: too many volumes have lost their pods", "orphans", count, "limit", s.limit, "reason", doubt)
		s.node.reports.nodeEvent(corev1.EventTypeWarning, eventReclaimStopped, StoppedMessage(s.node.name, count)+". Reason: "+doubt)
	}
	return !stopped, nil
}

// StoppedMessage says why nothing is reclaimed, and what to do.
func StoppedMessage(node string, count int) string {
	return fmt.Sprintf("%d volumes have lost their pods, whose end was not seen, and none is reclaimed: has the API server lost its data, or an older state of it been restored? It ends by itself when all of the pods are back. If the volumes may be wiped: kubectl annotate ndc %s %s=%d", count, node, diskv1alpha1.AnnotationReclaimOrphans, count)
}

// readAllowance is how many orphans an operator has allowed to be reclaimed.
func (s *sweeper) readAllowance(ctx context.Context) (count int, asked bool) {
	ndc := s.capacities.get()
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

// acceptAllowance acts on an operator's allowance, if it covers the orphans that exist now.
func (s *sweeper) acceptAllowance(ctx context.Context, allowed int, orphaned []disk.Volume) {
	if len(orphaned) == 0 {
		return
	}
	report := s.node.reports.nodeEvent
	if len(orphaned) > allowed {
		report(corev1.EventTypeWarning, eventReclaimStopped, fmt.Sprintf("annotation %s allowed %d volumes, by now there are %d orphans: all are kept", diskv1alpha1.AnnotationReclaimOrphans, allowed, len(orphaned)))
		return
	}
	klog.FromContext(ctx).Info("An operator allowed orphans to be reclaimed", "allowed", allowed, "orphans", len(orphaned))
	report(corev1.EventTypeNormal, eventReclaimAllowed, fmt.Sprintf("annotation %s allowed %d volumes: %d orphans are wiped as soon as they are not mounted", diskv1alpha1.AnnotationReclaimOrphans, allowed, len(orphaned)))
	s.mu.Lock()
	s.stopped = false
	s.mu.Unlock()
	for _, v := range orphaned {
		s.orphans.allow(v.Partition)
	}
}

// onCapacity checks whether an operator allowed orphans to be reclaimed.
func (s *sweeper) onCapacity(object any) {
	ndc, ok := object.(*diskv1alpha1.NodeDiskCapacity)
	if !ok {
		return
	}
	if _, asked := ndc.Annotations[diskv1alpha1.AnnotationReclaimOrphans]; asked {
		s.enqueue(sweepKey, 0)
	}
}
