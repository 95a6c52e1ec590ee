package diskcapacity

import (
	"k8s.io/client-go/informers"

	"github.com/berthdev/berth/pkg/ledger"
	"github.com/berthdev/berth/pkg/placement"
)

// Shared is what the profiles of a scheduler share, for whoever else places volumes in the
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

// OnCapacity has heard called after each publication of a node, and the end of its
// publications, that was folded into the ledger. It must be quick.
func (s *Shared) OnCapacity(heard func(nodeName string)) { s.feed.capacities.listen(heard) }

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
	case !snapshot.Published:
		return reasonNoReport
	case snapshot.Problem != "":
		return reasonProblem + snapshot.Problem
	}
	return ""
}
