// Package buildinfo serves the version of a program of Berth as a metric.
package buildinfo

import (
	"sync"

	"k8s.io/component-base/metrics"
	"k8s.io/component-base/metrics/legacyregistry"
	"k8s.io/component-base/version"
)

var (
	info = metrics.NewGaugeVec(&metrics.GaugeOpts{
		Namespace: "berth", Subsystem: "build", Name: "info", StabilityLevel: metrics.ALPHA,
		Help: "1 for the version of Berth that the program is, with the Go version that built it.",
	}, []string{"component", "version", "goversion"})
	registerOnce sync.Once
)

// Register adds the metric, with the name of the program: scheduler or nodeagent.
func Register(component string) {
	registerOnce.Do(func() {
		legacyregistry.MustRegister(info)
		v := version.Get()
		info.WithLabelValues(component, v.GitVersion, v.GoVersion).Set(1)
	})
}
