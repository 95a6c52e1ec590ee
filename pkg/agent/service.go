package agent

import (
	"context"
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/component-base/metrics"
	"k8s.io/component-base/metrics/legacyregistry"

	"github.com/berthdev/berth/pkg/agent/discovery"
)

// Reasons of events about the node's NodeDiskCapacity.
const (
	eventOutOfService = "DiskOutOfService"
	eventInService    = "DiskInService"
)

var (
	diskOutOfService = metrics.NewGaugeVec(&metrics.GaugeOpts{
		Namespace: "berth", Subsystem: "node", Name: "disk_out_of_service", StabilityLevel: metrics.ALPHA,
		Help: "1 if the disk is out of service, 0 if it serves. The NodeDiskCapacity says why.",
	}, []string{"disk", "device", "class"})
	diskFailuresTotal = metrics.NewCounterVec(&metrics.CounterOpts{
		Namespace: "berth", Subsystem: "node", Name: "disk_failures_total", StabilityLevel: metrics.ALPHA,
		Help: "How often the disk went out of service.",
	}, []string{"disk"})
	devicesRefused = metrics.NewGauge(&metrics.GaugeOpts{
		Namespace: "berth", Subsystem: "node", Name: "devices_refused", StabilityLevel: metrics.ALPHA,
		Help: "Devices that a DiskClass selects and that are not used.",
	})
	registerOnce sync.Once
)

func registerMetrics() {
	registerOnce.Do(func() { legacyregistry.MustRegister(diskOutOfService, diskFailuresTotal, devicesRefused) })
}

// serviceReporter reports, in events and metrics, which disks go out of service and come back. The NodeDiskCapacity has
// the present state.
type serviceReporter struct {
	event func(eventType, reason, message string)
	// problems is by disk. It is empty for one that serves.
	problems map[string]string
	labels   map[string][]string
}

func newServiceReporter(event func(eventType, reason, message string)) *serviceReporter {
	return &serviceReporter{event: event, problems: map[string]string{}, labels: map[string][]string{}}
}

// report compares the disks with those of the last call.
func (s *serviceReporter) report(disks []discovery.Disk, refused int) {
	devicesRefused.Set(float64(refused))
	known := map[string]bool{}
	for i := range disks {
		d := &disks[i]
		known[d.ID()] = true
		problem := d.Problem
		if problem == "" && !d.Ready() {
			problem = "it is not open"
		}
		s.gauge(d, problem != "")
		before, seen := s.problems[d.ID()]
		s.problems[d.ID()] = problem
		name := fmt.Sprintf("disk %s (%s)", d.ID(), d.Device.Name)
		switch {
		case problem == before:
		case problem != "":
			if before == "" {
				diskFailuresTotal.WithLabelValues(d.ID()).Inc()
			}
			s.event(corev1.EventTypeWarning, eventOutOfService, fmt.Sprintf("%s is out of service with %d volumes; what is mounted stays mounted: %s", name, len(d.Snapshot.Volumes), problem))
		case seen:
			s.event(corev1.EventTypeNormal, eventInService, fmt.Sprintf("%s was checked and serves again, with %d volumes", name, len(d.Snapshot.Volumes)))
		}
	}
	for id := range s.problems {
		if !known[id] {
			delete(s.problems, id)
			s.drop(id)
		}
	}
}

// gauge sets the metric of the disk under its present name and class, and removes it under any other.
func (s *serviceReporter) gauge(d *discovery.Disk, out bool) {
	labels := []string{d.ID(), d.Device.Name, d.Class}
	if before := s.labels[d.ID()]; before != nil && (before[1] != labels[1] || before[2] != labels[2]) {
		s.drop(d.ID())
	}
	s.labels[d.ID()] = labels
	value := 0.0
	if out {
		value = 1
	}
	diskOutOfService.WithLabelValues(labels...).Set(value)
}

func (s *serviceReporter) drop(id string) {
	if l := s.labels[id]; l != nil {
		diskOutOfService.Delete(map[string]string{"disk": l[0], "device": l[1], "class": l[2]})
	}
	delete(s.labels, id)
}

// reportService reports the disks whenever something about them has changed.
func (a *agent) reportService(ctx context.Context) {
	s := newServiceReporter(func(eventType, reason, message string) {
		a.recorder.OfNode(a.capacityUID(), eventType, reason, message)
	})
	for {
		s.report(a.inventory.Disks(), len(a.inventory.Refused()))
		select {
		case <-ctx.Done():
			return
		case <-a.diskChanges:
		}
	}
}
