package agent

import (
	"time"

	"k8s.io/component-base/metrics"
)

func gauge(name, help string, labels ...string) *metrics.Desc {
	return metrics.NewDesc("berth_node_"+name, help, labels, nil, metrics.ALPHA, "")
}

var (
	registeredDesc  = gauge("registered", "1 while the kubelet has registered the driver: without it no volume is mounted.")
	readyDesc       = gauge("agent_ready", "1 while the agent serves: it has the node's lock, has read the node's objects, has published the disks, and is registered.")
	unpublishedDesc = gauge("unpublished_seconds", "How long the agent has tried to publish the present state of the disks; 0 if that is published.")
)

// healthCollector collects what the health checks know.
type healthCollector struct {
	metrics.BaseStableCollector
	health *Health
}

// DescribeWithStability implements metrics.StableCollector.
func (c *healthCollector) DescribeWithStability(ch chan<- *metrics.Desc) {
	for _, d := range []*metrics.Desc{registeredDesc, readyDesc, unpublishedDesc} {
		ch <- d
	}
}

// CollectWithStability implements metrics.StableCollector.
func (c *healthCollector) CollectWithStability(ch chan<- metrics.Metric) {
	registered, unpublished := c.health.state()
	send := func(d *metrics.Desc, value float64) { ch <- metrics.NewLazyConstMetric(d, metrics.GaugeValue, value) }
	send(registeredDesc, oneIf(registered))
	send(readyDesc, oneIf(c.health.Ready() == nil))
	send(unpublishedDesc, unpublished.Seconds())
}

func oneIf(is bool) float64 {
	if is {
		return 1
	}
	return 0
}

// state is whether the driver is registered, and how long the state of the disks has not been published.
func (h *Health) state() (registered bool, unpublished time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	since, busy := h.passBegan[loopPublish]
	if !h.unpublishedSince.IsZero() {
		since, busy = h.unpublishedSince, true
	}
	if busy {
		unpublished = h.now().Sub(since)
	}
	return h.taken[stepDriver], unpublished
}
