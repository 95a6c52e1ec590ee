package volumes

import (
	"errors"
	"sync"
	"time"

	"k8s.io/component-base/metrics"
	"k8s.io/component-base/metrics/legacyregistry"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/agent/holders"
)

// Results of wipes and moves, in the metrics.
const (
	resultDone   = "done"
	resultFailed = "failed"
	resultInUse  = "in_use"
)

var (
	wipesTotal = metrics.NewCounterVec(&metrics.CounterOpts{
		Namespace: "berth", Subsystem: "node", Name: "wipes_total", StabilityLevel: metrics.ALPHA,
		Help: "Wipes of volumes that ended, by the disk's class, the policy, the method that satisfied it (or failed last) and the result: done or failed.",
	}, []string{"class", "policy", "method", "result"})
	wipedBytesTotal = metrics.NewCounterVec(&metrics.CounterOpts{
		Namespace: "berth", Subsystem: "node", Name: "wiped_bytes_total", StabilityLevel: metrics.ALPHA,
		Help: "Bytes of volumes whose wipe satisfied its policy; with policy None they were not zeroed.",
	}, []string{"class"})
	wipeSeconds = metrics.NewHistogramVec(&metrics.HistogramOpts{
		Namespace: "berth", Subsystem: "node", Name: "wipe_duration_seconds", StabilityLevel: metrics.ALPHA,
		Help: "Duration of wipes that satisfied their policy, from their last beginning.",
		// Punching a hole of any size takes milliseconds, overwriting a large disk takes a day.
		Buckets: metrics.ExponentialBuckets(0.001, 4, 14),
	}, []string{"class", "policy"})
	orphanedVolumes = metrics.NewGaugeVec(&metrics.GaugeOpts{
		Namespace: "berth", Subsystem: "node", Name: "orphaned_volumes", StabilityLevel: metrics.ALPHA,
		Help: "Volumes on the node's disks without an owner: persistent ones without PersistentVolume, ephemeral ones whose pod is gone and was not seen to end.",
	}, []string{"kind"})
	reclaimStopped = metrics.NewGauge(&metrics.GaugeOpts{
		Namespace: "berth", Subsystem: "node", Name: "reclaim_stopped", StabilityLevel: metrics.ALPHA,
		Help: "1 while none of many orphaned volumes is reclaimed until an operator confirms it.",
	})
	reclaimBlocked = metrics.NewGaugeVec(&metrics.GaugeOpts{
		Namespace: "berth", Subsystem: "node", Name: "reclaim_blocked", StabilityLevel: metrics.ALPHA,
		Help: "Volumes to be wiped that something has held for a minute, by its kind: Kernel, Loop, Swap, Mount, Bind, Open, File or Unknown.",
	}, []string{"holder"})
	movesTotal = metrics.NewCounterVec(&metrics.CounterOpts{
		Namespace: "berth", Subsystem: "node", Name: "moves_total", StabilityLevel: metrics.ALPHA,
		Help: "Moves of volumes on their disk, or to another disk, that ended, by the disk's class and the result: done, failed or in_use.",
	}, []string{"class", "result"})
	movedBytesTotal = metrics.NewCounterVec(&metrics.CounterOpts{
		Namespace: "berth", Subsystem: "node", Name: "moved_bytes_total", StabilityLevel: metrics.ALPHA,
		Help: "Bytes of volumes that were moved to another place of their disk, or to another disk.",
	}, []string{"class"})
	moveSeconds = metrics.NewHistogramVec(&metrics.HistogramOpts{
		Namespace: "berth", Subsystem: "node", Name: "move_duration_seconds", StabilityLevel: metrics.ALPHA,
		Help: "Duration of moves that were done, from their last beginning.",
		// A sparse volume is copied in milliseconds, a full large one in hours.
		Buckets: metrics.ExponentialBuckets(0.001, 4, 14),
	}, []string{"class"})
	cordonedDisks = metrics.NewGaugeVec(&metrics.GaugeOpts{
		Namespace: "berth", Subsystem: "node", Name: "cordoned_disks", StabilityLevel: metrics.ALPHA,
		Help: "Disks in service that take no new volume because spec.disks says so, by their state: Cordoned or Draining.",
	}, []string{"state"})
	registerOnce sync.Once
)

func registerMetrics() {
	registerOnce.Do(func() {
		legacyregistry.MustRegister(wipesTotal, wipedBytesTotal, wipeSeconds, orphanedVolumes, reclaimStopped, reclaimBlocked, movesTotal, movedBytesTotal, moveSeconds, cordonedDisks)
	})
}

func countWipe(class string, length int64, w disk.WipeResult, result string) {
	wipesTotal.WithLabelValues(class, string(w.Policy), w.Method, result).Inc()
	if result != resultDone {
		return
	}
	wipedBytesTotal.WithLabelValues(class).Add(float64(length))
	wipeSeconds.WithLabelValues(class, string(w.Policy)).Observe(w.Took.Seconds())
}

func countMove(class string, length int64, took time.Duration, err error) {
	switch {
	case errors.Is(err, ErrInUse):
		movesTotal.WithLabelValues(class, resultInUse).Inc()
	case err != nil:
		movesTotal.WithLabelValues(class, resultFailed).Inc()
	default:
		movesTotal.WithLabelValues(class, resultDone).Inc()
		movedBytesTotal.WithLabelValues(class).Add(float64(length))
		moveSeconds.WithLabelValues(class).Observe(took.Seconds())
	}
}

func countOrphans(o Orphans) {
	orphanedVolumes.WithLabelValues("persistent").Set(float64(len(o.Persistent)))
	orphanedVolumes.WithLabelValues("ephemeral").Set(float64(len(o.Ephemeral)))
	reclaimStopped.Set(0)
	if o.Stopped {
		reclaimStopped.Set(1)
	}
}

func countCordoned(states map[string]diskv1alpha1.DiskState) {
	counts := map[diskv1alpha1.DiskState]int{diskv1alpha1.DiskCordoned: 0, diskv1alpha1.DiskDraining: 0}
	for _, state := range states {
		counts[state]++
	}
	for state, count := range counts {
		cordonedDisks.WithLabelValues(string(state)).Set(float64(count))
	}
}

func countBlocked(kinds map[holders.Kind]int) {
	reclaimBlocked.Reset()
	for kind, count := range kinds {
		reclaimBlocked.WithLabelValues(string(kind)).Set(float64(count))
	}
}
