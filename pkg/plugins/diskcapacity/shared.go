package diskcapacity

import (
	"k8s.io/client-go/informers"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/ledger"
	"github.com/berthdev/berth/pkg/placement"
)

// Shared is what the profiles of a scheduler share, for the other code that places volumes in the
// process.
type Shared struct {
	Ledger *ledger.Ledger
	// Synced tells when the ledger has everything that existed when the scheduler started.
	// Before that it would sell space that is taken.
	Synced func() bool

	feed *feed
}

// SharedLedger returns what is shared, by the factory of the scheduler's informers; false if
// no profile has the plugin. It is there when the profiles have been built.
func SharedLedger(factory informers.SharedInformerFactory) (*Shared, bool) {
	feeds.Lock()
	defer feeds.Unlock()
	f, ok := feeds.byFactory[factory]
	if !ok {
		return nil, false
	}
	return &Shared{Ledger: f.ledger, Synced: f.hasSynced, feed: f}, true
}

// Scheduling is closed when this process schedules its first pod in a profile that has the plugin, or when Schedules
// was called. A scheduler that stands by schedules none.
func (s *Shared) Scheduling() <-chan struct{} { return s.feed.scheduling }

// Schedules says that this process schedules, for those who know it before there is a pod.
func (s *Shared) Schedules() { s.feed.schedules() }

// OnCapacity has callback called after each publication of a node, and the end of its
// publications, that was folded into the ledger. It must be quick.
func (s *Shared) OnCapacity(callback func(nodeName string)) { s.feed.capacities.listen(callback) }

// Report returns what the node's NodeDiskCapacity says beside its disks; nil if there is none.
func (s *Shared) Report(nodeName string) *Report { return s.feed.capacities.reports.get(nodeName) }

// EachReport calls look for each node with a NodeDiskCapacity. It must be quick.
func (s *Shared) EachReport(look func(nodeName string, report *Report)) {
	s.feed.capacities.reports.each(look)
}

// Classes are the DiskClasses as they were read last. They must not be changed.
func (s *Shared) Classes() []*diskv1alpha1.DiskClass { return s.feed.classes.all() }

// OnClass has callback called after each change of a DiskClass. It must be quick.
func (s *Shared) OnClass(callback func()) { s.feed.classes.listen(callback) }

// ApplyClass adds to a request what its DiskClass says. The error says what is wrong with the
// class's name.
func (s *Shared) ApplyClass(r *placement.Request) error { return s.feed.applyClass(r) }

// Unfit says why a node can have no volumes of claims, however much space it has; nothing if
// it can.
func (s *Shared) Unfit(nodeName string) string {
	node, err := s.feed.nodes.Get(nodeName)
	if err != nil {
		return "the node does not exist"
	}
	snapshot := s.Ledger.Snapshot(nodeName)
	switch {
	case !s.feed.hasAgent(nodeName):
		return reasonNoAgent
	case !labelled(node):
		return reasonNoLabel
	case !snapshot.Published || snapshot.Absent:
		return reasonNoReport
	case snapshot.Problem != "":
		return reasonProblem + snapshot.Problem
	}
	return ""
}
