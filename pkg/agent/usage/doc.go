// Package usage serves, as metrics, what the node's disks and volumes are, and how full and how busy they are. It only
// reads: snapshots of the disks, the mount table and sysfs. The goroutines of the disks take no part in it.
//
// A collector makes its series at each scrape, from what there is then. So a volume that is gone has none. disks.go is
// the collector of disks, volumes.go that of volumes, and iostat.go reads what the kernel counts.
package usage

import (
	"k8s.io/component-base/metrics"

	"github.com/berthdev/berth/pkg/agent/discovery"
)

// Disks lists the node's disks as they are now.
type Disks interface {
	Disks() []discovery.Disk
}

func gauge(name, help string, labels ...string) *metrics.Desc {
	return metrics.NewDesc("berth_node_"+name, help, labels, nil, metrics.ALPHA, "")
}

func counter(name, help string, labels ...string) *metrics.Desc {
	return metrics.NewDesc("berth_node_"+name, help, labels, nil, metrics.ALPHA, "")
}

// sample sends one sample of a gauge, or of a counter.
func sample(ch chan<- metrics.Metric, d *metrics.Desc, kind metrics.ValueType, value float64, labels ...string) {
	ch <- metrics.NewLazyConstMetric(d, kind, value, labels...)
}
