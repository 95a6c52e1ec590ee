package diskcapacity

import (
	"time"

	"k8s.io/client-go/informers"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/ledger"
	"github.com/berthdev/berth/pkg/placement"
)

// Shared is what the profiles of a scheduler share, for the other packages that place volumes in the process.
type Shared struct {
	Ledger *ledger.Ledger
	// Synced reports whether the ledger has everything that existed when the scheduler started. Before that it would
	// give away space that is taken.
	Synced func() bool

	feed *feed
}

// SharedLedger returns what is shared, by the factory of the scheduler's informers; false if no profile has the plugin.
// It exists when the profiles have been built.
func SharedLedger(factory informers.SharedInformerFactory) (*Shared, bool) {
	feeds.Lock()
	defer feeds.Unlock()
	f, ok := feeds.byFactory[factory]
	if !ok {
		return nil, false
	}
	return &Shared{Ledger: f.ledger, Synced: f.hasSynced, feed: f}, true
}

// Scheduling returns a channel that is closed when this process schedules its first pod in a profile that has the
// plugin, or when ScheduleBegins is called. A scheduler on standby schedules none.
func (s *Shared) Scheduling() <-chan struct{} { return s.feed.scheduling }

// ScheduleBegins says that this process schedules, for a caller that knows it before the first pod.
func (s *Shared) ScheduleBegins() { s.feed.scheduleBegins() }

// OnCapacity registers a callback. It is called after each change of a NodeDiskCapacity, or its deletion, was folded
// into the ledger. It must return quickly.
func (s *Shared) OnCapacity(callback func(nodeName string)) { s.feed.capacities.addListener(callback) }

// Report returns the other fields of the node's NodeDiskCapacity; nil if there is none.
func (s *Shared) Report(nodeName string) *Report { return s.feed.capacities.reports.get(nodeName) }

// EachReport calls visit for each node with a NodeDiskCapacity. visit must return quickly.
func (s *Shared) EachReport(visit func(nodeName string, report *Report)) {
	s.feed.capacities.reports.each(visit)
}

// Classes are the DiskClasses as they were read last. They must not be changed.
func (s *Shared) Classes() []*diskv1alpha1.DiskClass { return s.feed.classes.all() }

// OnClass registers a callback. It is called after each change of a DiskClass, and must return quickly.
func (s *Shared) OnClass(callback func()) { s.feed.classes.addListener(callback) }

// ApplyClass adds to the request of a claim what its DiskClass says. It returns an error if there is no such class.
func (s *Shared) ApplyClass(r *placement.Request) error { return s.feed.applyClaimClass(r) }

// MaxPieces is of how many pieces volumes of the class consist at most. If there is no such class, it is 1.
func (s *Shared) MaxPieces(class string) int { return s.feed.classes.maxPieces(class) }

// ReleasesAfter is how long a node must be gone before its volumes of the class are released. It is false if they are
// kept, or if there is no such class.
func (s *Shared) ReleasesAfter(class string) (after time.Duration, ok bool) {
	return s.feed.classes.releasesAfter(class)
}

// UnfitReason returns why a node can have no volumes of claims, however much space it has; empty if it can.
func (s *Shared) UnfitReason(nodeName string) string {
	node, err := s.feed.nodes.Get(nodeName)
	if err != nil {
		return "the node does not exist"
	}
	snapshot := s.Ledger.Snapshot(nodeName)
	switch {
	case !s.feed.hasAgent(nodeName):
		return reasonNoAgent
	case !hasNodeLabel(node):
		return reasonNoLabel
	case !snapshot.Published || snapshot.Absent:
		return reasonNoReport
	case snapshot.Problem != "":
		return reasonProblem + snapshot.Problem
	}
	return ""
}
