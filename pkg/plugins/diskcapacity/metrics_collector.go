package diskcapacity

import (
	"maps"
	"slices"
	"time"

	"k8s.io/component-base/metrics"
)

// collector reads the present state at each scrape, from the nodes' immutable snapshots. It costs scheduling nothing.
type collector struct {
	metrics.BaseStableCollector

	feed func() *feed
	now  func() time.Time
}

func gauge(name, help string, labels ...string) *metrics.Desc {
	return metrics.NewDesc("berth_scheduler_"+name, help, labels, nil, metrics.ALPHA, "")
}

var (
	nodesDesc       = gauge("nodes", "Nodes that publish their disks, by state: published, contradictory, whose NodeDiskCapacity contradicts itself, or absent, without a Node.", "state")
	sharedDesc      = gauge("shared_disks", "Disks that a node publishes and that are out of service there because another node owns them.")
	usableDesc      = gauge("usable_bytes", "Bytes that volumes of a disk class could have if there were none.", "class")
	freeDesc        = gauge("free_bytes", "Free bytes of a disk class, less what was placed and is not published yet.", "class")
	extentsDesc     = gauge("free_extents", "Extents that the free bytes of a disk class are in.", "class")
	largestDesc     = gauge("largest_free_extent_bytes", "The largest free extent of a disk class: no larger volume fits anywhere.", "class")
	fragmentedDesc  = gauge("fragmentation_ratio", "Part of a disk class's free bytes that lies outside of the largest free extent of its disk. It is 0 if all free space is in one piece on each disk.", "class")
	unpublishedDesc = gauge("unpublished_volumes", "Volumes that were placed and that their nodes have not published yet.")
	oldestDesc      = gauge("oldest_unpublished_volume_age_seconds", "How long the oldest of the unpublished volumes has waited; 0 if there is none.")
	laggingDesc     = gauge("lagging_nodes", "Nodes with a volume that was placed more than 10 seconds ago and that they have not published.")
	waitingDesc     = gauge("waiting_pods", "Pods that wait for disk space or are being tried, by the classes of their volumes. The class is empty for a pod whose request is not known or is invalid.", "class")
	waitingAgeDesc  = gauge("oldest_waiting_pod_age_seconds", "How long the oldest of the waiting pods has waited since it was first refused; 0 if there is none.", "class")
	lagDesc         = gauge("node_lag_seconds", "How long the oldest unpublished volume of a node has waited, for the lagging nodes only, at most the 100 that are furthest behind.", "node")
)

// DescribeWithStability implements metrics.StableCollector.
func (c *collector) DescribeWithStability(ch chan<- *metrics.Desc) {
	for _, d := range []*metrics.Desc{nodesDesc, sharedDesc, usableDesc, freeDesc, extentsDesc, largestDesc, fragmentedDesc, unpublishedDesc, oldestDesc, laggingDesc, lagDesc, waitingDesc, waitingAgeDesc} {
		ch <- d
	}
}

// CollectWithStability implements metrics.StableCollector.
func (c *collector) CollectWithStability(ch chan<- metrics.Metric) {
	send := func(d *metrics.Desc, value float64, labels ...string) {
		ch <- metrics.NewLazyConstMetric(d, metrics.GaugeValue, value, labels...)
	}
	f := c.feed()
	if f == nil {
		return
	}
	stats := f.ledger.Stats()
	send(nodesDesc, float64(stats.Nodes-stats.Contradictory), "published")
	send(nodesDesc, float64(stats.Contradictory), "contradictory")
	send(nodesDesc, float64(stats.Absent), "absent")
	send(sharedDesc, float64(stats.Shared))
	for _, class := range slices.Sorted(maps.Keys(stats.Classes)) {
		of := stats.Classes[class]
		send(usableDesc, float64(of.Usable), class)
		send(freeDesc, float64(of.Free), class)
		send(extentsDesc, float64(of.Extents), class)
		send(largestDesc, float64(of.Largest), class)
		send(fragmentedDesc, of.Fragmentation(), class)
	}
	waiting := f.waiting.byClass(c.now(), maps.Keys(stats.Classes))
	for _, class := range slices.Sorted(maps.Keys(waiting)) {
		send(waitingDesc, float64(waiting[class].pods), class)
		send(waitingAgeDesc, waiting[class].oldest.Seconds(), class)
	}
	volumes, nodes := f.lag.lagging(c.now())
	lagging := slices.IndexFunc(nodes, func(n laggingNode) bool { return n.oldest < lagThreshold })
	if lagging < 0 {
		lagging = len(nodes)
	}
	var oldest time.Duration
	if len(nodes) > 0 {
		oldest = nodes[0].oldest
	}
	send(unpublishedDesc, float64(volumes))
	send(oldestDesc, oldest.Seconds())
	send(laggingDesc, float64(lagging))
	for _, n := range nodes[:min(lagging, maxLaggingNodes)] {
		send(lagDesc, n.oldest.Seconds(), n.node)
	}
}

// anyFeed returns the feed of the scheduler in this process; nil before a profile has the plugin.
func anyFeed() *feed {
	feeds.Lock()
	defer feeds.Unlock()
	for _, f := range feeds.byFactory {
		return f
	}
	return nil
}
