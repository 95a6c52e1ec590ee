package diskcapacity

import (
	"sync"
	"time"

	"k8s.io/component-base/metrics"
	"k8s.io/component-base/metrics/legacyregistry"
	fwk "k8s.io/kube-scheduler/framework"
)

// Results of the scheduling cycles of pods with disk volumes, as values of a label. Users' queries depend on them.
const (
	// resultBound: the pod has its node and its places.
	resultBound = "bound"
	// resultInvalid: the pod's request is invalid, or its class does not exist.
	resultInvalid = "invalid"
	// resultUnschedulable: no node fits, for lack of disk space or for another reason.
	resultUnschedulable = "unschedulable"
	// resultWidened: none of the nodes that fit best was accepted, all are tried next.
	resultWidened = "widened"
	// resultWaiting: the pod waits for a node to wipe volumes that are gone.
	resultWaiting = "waiting"
	// resultLost: the space was taken between Filter and Reserve.
	resultLost = "lost"
	// resultUndone: the places were given back, because the pod could not be bound.
	resultUndone = "undone"
)

// Steps that are measured once for each pod. kube-scheduler itself samples the duration of Filter.
const (
	stepSearch  = "search"
	stepReserve = "reserve"
)

var (
	decisionsTotal = metrics.NewCounterVec(&metrics.CounterOpts{
		Namespace: "berth", Subsystem: "scheduler", Name: "decisions_total", StabilityLevel: metrics.ALPHA,
		Help: "Scheduling cycles of pods with disk volumes, by how they ended: bound, invalid, unschedulable, widened, waiting, lost or undone.",
	}, []string{"result"})
	reasonsTotal = metrics.NewCounterVec(&metrics.CounterOpts{
		Namespace: "berth", Subsystem: "scheduler", Name: "unschedulable_reasons_total", StabilityLevel: metrics.ALPHA,
		Help: "Why nodes would not do for unschedulable pods, by disk class and reason. A cycle counts once for each reason, however many nodes gave it. Reasons that are not about space have no class.",
	}, []string{"class", "reason"})
	searchesTotal = metrics.NewCounterVec(&metrics.CounterOpts{
		Namespace: "berth", Subsystem: "scheduler", Name: "searches_total", StabilityLevel: metrics.ALPHA,
		Help: "Searches for a node for a pod with disk volumes, by scope: best (only the nodes that the volumes fit best) or all.",
	}, []string{"scope"})
	planDuration = metrics.NewHistogramVec(&metrics.HistogramOpts{
		Namespace: "berth", Subsystem: "scheduler", Name: "plan_duration_seconds", StabilityLevel: metrics.ALPHA,
		Help:    "Time that planning a pod's disk volumes takes, by step. search is reading the pod and finding the best nodes. reserve is planning on the chosen node and recording it.",
		Buckets: metrics.ExponentialBuckets(1e-6, 2, 16), // to 33 ms
	}, []string{"step"})
	bindFailuresTotal = metrics.NewCounterVec(&metrics.CounterOpts{
		Namespace: "berth", Subsystem: "scheduler", Name: "bind_failures_total", StabilityLevel: metrics.ALPHA,
		Help: "Failed bindings of pods with inline disk volumes, by outcome: refused, unknown or not_bound. refused is remembered until the node publishes a change of its disks. With unknown the place is held until it is known.",
	}, []string{"outcome"})
	publishDelay = metrics.NewHistogram(&metrics.HistogramOpts{
		Namespace: "berth", Subsystem: "scheduler", Name: "publish_delay_seconds", StabilityLevel: metrics.ALPHA,
		Help:    "Time from the reservation of a volume to its node publishing it.",
		Buckets: metrics.ExponentialBuckets(0.05, 2, 14), // to 7 minutes
	})
	replacedTotal = metrics.NewCounter(&metrics.CounterOpts{
		Namespace: "berth", Subsystem: "scheduler", Name: "replaced_volumes_total", StabilityLevel: metrics.ALPHA,
		Help: "Volumes that their node has made elsewhere than at the place that this scheduler recorded: the node refused it.",
	})
	registerOnce sync.Once
)

// registerMetrics is called for every profile. The process has one set of metrics.
func registerMetrics() {
	registerOnce.Do(func() {
		legacyregistry.MustRegister(decisionsTotal, reasonsTotal, searchesTotal, planDuration, bindFailuresTotal, publishDelay, replacedTotal)
		legacyregistry.CustomMustRegister(&collector{feed: anyFeed, now: time.Now})
	})
}

// countDecision counts a scheduling cycle by its result.
func countDecision(result string) { decisionsTotal.WithLabelValues(result).Inc() }

func observePlan(step string, start time.Time) {
	planDuration.WithLabelValues(step).Observe(time.Since(start).Seconds())
}

func (s *state) countSearch() {
	if s.narrowed {
		searchesTotal.WithLabelValues("best").Inc()
	} else {
		searchesTotal.WithLabelValues("all").Inc()
	}
}

// countNoNode counts a cycle that found no node, by the status of PostFilter.
func (s *state) countNoNode(status *fwk.Status) {
	switch {
	case s.narrowed:
		countDecision(resultWidened)
	case status.Code() == fwk.UnschedulableAndUnresolvable:
		countDecision(resultWaiting)
	default:
		countDecision(resultUnschedulable)
		s.rejections.countReasons()
	}
}

// countReasons counts the cycle once for each class and cause, and once for each other reason.
func (r *rejections) countReasons() {
	groups := r.sorted()
	for i, g := range groups {
		if i == 0 || g.noFit.Class != groups[i-1].noFit.Class || g.noFit.Cause != groups[i-1].noFit.Cause {
			reasonsTotal.WithLabelValues(g.noFit.Class, causes[g.noFit.Cause]).Inc()
		}
	}
	others := r.others.Load()
	for reason, name := range otherReasons {
		if others&(1<<reason) != 0 {
			reasonsTotal.WithLabelValues("", name).Inc()
		}
	}
}
