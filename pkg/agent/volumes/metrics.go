package volumes

import (
	"sync"

	"k8s.io/component-base/metrics"
	"k8s.io/component-base/metrics/legacyregistry"

	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/agent/holders"
)

// Results of wipes, in the metrics.
const (
	resultDone   = "done"
	resultFailed = "failed"
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
	registerOnce sync.Once
)

func registerMetrics() {
	registerOnce.Do(func() {
		legacyregistry.MustRegister(wipesTotal, wipedBytesTotal, wipeSeconds, orphanedVolumes, reclaimStopped, reclaimBlocked)
	})
}

func countWipe(class string, w disk.WipeResult, result string) {
	wipesTotal.WithLabelValues(class, string(w.Policy), w.Method, result).Inc()
	if result != resultDone {
		return
	}
	wipedBytesTotal.WithLabelValues(class).Add(float64(w.Extent.Len()))
	wipeSeconds.WithLabelValues(class, string(w.Policy)).Observe(w.Took.Seconds())
}

func countOrphans(o Orphans) {
	orphanedVolumes.WithLabelValues("persistent").Set(float64(len(o.Persistent)))
	orphanedVolumes.WithLabelValues("ephemeral").Set(float64(len(o.Ephemeral)))
	reclaimStopped.Set(0)
	if o.Stopped {
		reclaimStopped.Set(1)
	}
}

func countBlocked(kinds map[holders.Kind]int) {
	reclaimBlocked.Reset()
	for kind, count := range kinds {
		reclaimBlocked.WithLabelValues(string(kind)).Set(float64(count))
	}
}
