package diskcapacity

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/berthdev/berth/pkg/ledger"
)

const (
	// lagThreshold is the age of an unpublished volume from which on its node counts as behind. Usually a node publishes
	// within a second.
	lagThreshold = 10 * time.Second
	// maxLaggingNodes is how many nodes that are behind the metrics name.
	maxLaggingNodes = 100
)

// publishLag tracks since when each placed volume waits for its node to publish it. It only reads snapshots of the
// ledger, under its own lock: what was placed before is in them.
type publishLag struct {
	ledger *ledger.Ledger
	mu     sync.Mutex
	// volumes are the volumes that wait, by node and partition.
	volumes map[string]map[string]unpublishedVolume
}

// unpublishedVolume is a volume that waits for its node to publish it.
type unpublishedVolume struct {
	record ledger.Record
	since  time.Time
	// reservedHere is true if this process reserved the volume's place, at since.
	reservedHere bool
}

func newPublishLag(l *ledger.Ledger) *publishLag {
	return &publishLag{ledger: l, volumes: map[string]map[string]unpublishedVolume{}}
}

// reserved adds volumes that have just been reserved.
func (l *publishLag) reserved(nodeName string, records []ledger.Record, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range records {
		l.of(nodeName)[r.Partition] = unpublishedVolume{record: r, since: now, reservedHere: true}
	}
}

// of returns the volumes that wait on the node, to be changed. The caller holds the lock.
func (l *publishLag) of(nodeName string) map[string]unpublishedVolume {
	waiting := l.volumes[nodeName]
	if waiting == nil {
		waiting = map[string]unpublishedVolume{}
		l.volumes[nodeName] = waiting
	}
	return waiting
}

// published removes the volumes that the node publishes by now, and those that are no longer reserved there.
func (l *publishLag) published(nodeName string, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.settle(nodeName, l.ledger.Snapshot(nodeName), now)
}

// settle removes the volumes that do not wait any more, and measures how long they did. The caller holds the lock.
func (l *publishLag) settle(nodeName string, s *ledger.Snapshot, now time.Time) {
	waiting := l.volumes[nodeName]
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
		if !ok || !u.reservedHere {
			continue
		}
		publishDelay.Observe(now.Sub(u.since).Seconds())
		if disk != u.record.Disk || at.Start != u.record.Extent.Start {
			replacedTotal.Inc()
		}
	}
	if len(waiting) == 0 {
		delete(l.volumes, nodeName)
	}
}

// laggingNode is a node with volumes that it has not published.
type laggingNode struct {
	node   string
	oldest time.Duration
}

// lagging returns how many volumes are not published, and the nodes that are behind, the furthest first. A volume that
// another scheduler placed, or this one before it was restarted, counts from when it was first seen here.
func (l *publishLag) lagging(now time.Time) (volumes int, nodes []laggingNode) {
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
				u = unpublishedVolume{record: r, since: now}
				waiting[r.Partition] = u
			}
			oldest = max(oldest, now.Sub(u.since))
		}
		volumes += len(s.Unpublished())
		nodes = append(nodes, laggingNode{name, oldest})
	})
	slices.SortFunc(nodes, func(a, b laggingNode) int {
		return cmp.Or(cmp.Compare(b.oldest, a.oldest), cmp.Compare(a.node, b.node))
	})
	return volumes, nodes
}
