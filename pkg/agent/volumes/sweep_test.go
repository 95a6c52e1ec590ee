package volumes

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/berthdev/berth/pkg/agent/disk"
)

// establishTrust makes the API server's data long known to the manager.
func (f *fixture) establishTrust() {
	f.t.Helper()
	f.api.capacity(nil)
	f.api.set(func(s *apiServer) { s.node = "node-uid" })
	if _, err := f.node.client.Doubt(f.t.Context()); err != nil {
		f.t.Fatal(err)
	}
	f.clock.Step(time.Hour)
	f.sweep()
	if doubt, err := f.node.client.Doubt(f.t.Context()); doubt != "" || err != nil {
		f.t.Fatalf("doubt is %q, %v", doubt, err)
	}
}

// removePods removes the pods while no agent runs.
func (f *fixture) removePods(pods ...*corev1.Pod) {
	f.t.Helper()
	for _, pod := range pods {
		f.api.set(func(s *apiServer) { delete(s.pods, pod.Namespace+"/"+pod.Name) })
		if err := f.options.Pods.GetStore().Delete(pod); err != nil {
			f.t.Fatal(err)
		}
	}
	f.restart()
}

// TestOutageReclaimsMany asserts that the volumes of many pods that went during an outage of the node or its agent are
// reclaimed. That happens after the grace period, and has no limit.
func TestOutageReclaimsMany(t *testing.T) {
	for name, gone := range map[string]func(f *fixture, pods ...*corev1.Pod){"the watch was away": (*fixture).dropPods, "the agent was down": (*fixture).removePods} {
		f := newFixture(t)
		f.loopDisk()
		f.establishTrust()
		pods, partitions := f.makePods("a", "b", "c", "d")
		gone(f, pods...)
		f.waitIdle()
		f.sweep()
		for _, p := range partitions {
			f.checkPhase(p, disk.Formatted)
		}
		if o := f.Orphans(); o.Stopped || len(o.Ephemeral) != 4 {
			t.Errorf("%s: orphans are %+v", name, o)
		}
		f.clock.Step(f.options.OrphanGrace)
		f.sweep()
		for _, p := range partitions {
			f.checkPhase(p, "")
		}
	}
}

// TestLostDataKeepsMany asserts that many orphans are kept when the API server's data was lost or restored, or is not
// known.
func TestLostDataKeepsMany(t *testing.T) {
	for why, change := range map[string]func(s *apiServer){
		"has no NodeDiskCapacity": func(s *apiServer) { s.ndc = nil },
		"is another object":       func(s *apiServer) { s.ndc.UID = "other" },
		"is older":                func(s *apiServer) { s.ndc.ResourceVersion = "4" },
		"Node is another":         func(s *apiServer) { s.node = "other" },
		"has no Node ":            func(s *apiServer) { s.node = "" },
	} {
		f := newFixture(t)
		f.loopDisk()
		f.establishTrust()
		pods, partitions := f.makePods("a", "b", "c")
		f.api.set(change)
		f.removePods(pods...)
		f.sweep()
		f.clock.Step(10 * f.options.OrphanGrace)
		f.sweep()
		for _, p := range partitions {
			f.checkPhase(p, disk.Formatted)
		}
		if got := f.events.with("ReclaimStopped", why); len(got) != 1 || !f.Orphans().Stopped {
			t.Errorf("%s: reported is %q", why, f.events.with("ReclaimStopped"))
		}
	}
	// An error of the API server proves nothing, but does not stop reclaiming either.
	f := newFixture(t)
	f.loopDisk()
	f.establishTrust()
	pods, partitions := f.makePods("a", "b", "c")
	f.dropPods(pods...)
	f.waitIdle()
	f.api.set(func(s *apiServer) { s.broken = "/nodes/" })
	f.clock.Step(2 * f.options.OrphanGrace)
	if err := f.reclaim.sweeper.sweep(t.Context()); err == nil || !strings.Contains(err.Error(), "3 orphans are kept") {
		t.Errorf("without an answer: %v", err)
	}
	f.checkPhase(partitions[0], disk.Formatted)
	if f.Orphans().Stopped {
		t.Error("an API server that does not answer stops reclaiming")
	}
}

// TestLimitZero asserts that a limit of 0 reclaims no orphan until an operator confirms it.
func TestLimitZero(t *testing.T) {
	f := newFixture(t)
	f.options.OrphanLimit = 0
	f.restart()
	f.loopDisk()
	f.establishTrust()
	pods, partitions := f.makePods("a")
	f.dropPods(pods...)
	f.waitIdle()
	f.sweep()
	f.clock.Step(2 * f.options.OrphanGrace)
	f.sweep()
	f.checkPhase(partitions[0], disk.Formatted)
	if !f.Orphans().Stopped {
		t.Error("reclaiming is not stopped")
	}
}
