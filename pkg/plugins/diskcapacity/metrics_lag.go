package diskcapacity

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/berthdev/berth/pkg/ledger"
)

const (
	// lagsAfter is the age of an unpublished volume from which on its node counts as behind. Usually a node publishes
	// within a second.
	lagsAfter = 10 * time.Second
	// maxLags is how many nodes that are behind the metrics name.
	maxLags = 100
)

// lag tracks since when each placed volume waits for its node to publish it. It only reads snapshots of the ledger,
// under its own lock: what was placed before is in them.
type lag struct {
	ledger *ledger.Ledger
	mu     sync.Mutex
	// waiting are the volumes that wait, by node and partition.
	waiting map[string]map[string]unpublished
}

type unpublished struct {
	record ledger.Record
	since  time.Time
	// placed is true if this process placed the volume, at since.
	placed bool
}

func newLag(l *ledger.Ledger) *lag {
	return &lag{ledger: l, waiting: map[string]map[string]unpublished{}}
}

// placed adds volumes that have just been reserved.
func (l *lag) placed(nodeName string, records []ledger.Record, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range records {
		l.of(nodeName)[r.Partition] = unpublished{record: r, since: now, placed: true}
	}
}

func (l *lag) of(nodeName string) map[string]unpublished {
	waiting := l.waiting[nodeName]
	if waiting == nil {
		waiting = map[string]unpublished{}
		l.waiting[nodeName] = waiting
	}
	return waiting
}

// published removes the volumes that the node publishes by now, and those that are no longer placed there.
func (l *lag) published(nodeName string, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.settle(nodeName, l.ledger.Snapshot(nodeName), now)
}

// settle is published with the lock held.
func (l *lag) settle(nodeName string, s *ledger.Snapshot, now time.Time) {
	waiting := l.waiting[nodeName]
	if len(waiting) == 0 {
		return
	}
	still := make(map[string]struct{}, len(s.Unpublished()))
	for _, r := range s.Unpublished() {
		still[r.Partition] = struct{}{}
	}
	for partition, u := range waiting {
		if _, ok := still[partition]; ok {
			continue
		}
		delete(waiting, partition)
		disk, at, ok := s.PublishedAt(partition)
		if !ok || !u.placed {
			continue
		}
		publishDelay.Observe(now.Sub(u.since).Seconds())
		if disk != u.record.Disk || at.Start != u.record.Extent.Start {
			replacedTotal.Inc()
		}
	}
	if len(waiting) == 0 {
		delete(l.waiting, nodeName)
	}
}

// behind is a node with volumes that it has not published.
type behind struct {
	node   string
	oldest time.Duration
}

// lags returns how many volumes are not published, and the nodes that are behind, the furthest first. A volume that
// another scheduler placed, or this one before it was restarted, counts from when it was first seen here.
func (l *lag) lags(now time.Time) (volumes int, nodes []behind) {
	l.ledger.Each(func(name string, _ *ledger.Snapshot) {
		l.mu.Lock()
		defer l.mu.Unlock()
		s := l.ledger.Snapshot(name)
		l.settle(name, s, now)
		if len(s.Unpublished()) == 0 {
			return
		}
		waiting := l.of(name)
		var oldest time.Duration
		for _, r := range s.Unpublished() {
			u, ok := waiting[r.Partition]
			if !ok {
				u = unpublished{record: r, since: now}
				waiting[r.Partition] = u
			}
			oldest = max(oldest, now.Sub(u.since))
		}
		volumes += len(s.Unpublished())
		nodes = append(nodes, behind{name, oldest})
	})
	slices.SortFunc(nodes, func(a, b behind) int { return cmp.Or(cmp.Compare(b.oldest, a.oldest), cmp.Compare(a.node, b.node)) })
	return volumes, nodes
}
