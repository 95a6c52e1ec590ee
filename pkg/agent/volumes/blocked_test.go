package volumes

import (
	"fmt"
	"maps"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/component-base/metrics/legacyregistry"

	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/agent/holders"
)

// openExclusively keeps the device of a partition open until release is called.
func (f *fixture) openExclusively(partition string) (release func()) {
	f.t.Helper()
	_, v, _ := f.node.findVolume(partition)
	device, err := os.OpenFile(v.Device, os.O_RDWR|syscall.O_EXCL, 0)
	if err != nil {
		f.t.Fatal(err)
	}
	release = func() { _ = device.Close() }
	f.t.Cleanup(release)
	return release
}

// blockedMetric returns the values of the metric of blocked volumes, by the kind of the holder.
func blockedMetric(t *testing.T) map[string]float64 {
	t.Helper()
	families, err := legacyregistry.DefaultGatherer.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	for _, family := range families {
		if family.GetName() != "berth_node_reclaim_blocked" {
			continue
		}
		for _, m := range family.GetMetric() {
			for _, l := range m.GetLabel() {
				values[l.GetName()+"="+l.GetValue()] = m.GetGauge().GetValue()
			}
		}
	}
	return values
}

// TestBlockedReclaim asserts that a volume which cannot be wiped is reported once, after a minute, with what holds it.
// The report and the metric are gone when the holder is.
func TestBlockedReclaim(t *testing.T) {
	pid := fmt.Sprintf("process %d (", os.Getpid())
	for name, tc := range map[string]struct {
		hold func(f *fixture, partition string) func()
		kind holders.Kind
		says string
		by   string
	}{
		"mounted": {(*fixture).mount, holders.Mount, "it is mounted at", "mount namespace"},
		"open":    {(*fixture).openExclusively, holders.Open, "has it open", pid},
	} {
		f := newFixture(t)
		d := f.loopDisk()
		pods, partitions := f.makePods("a")
		pv, claimed := f.boundVolume(d, 1, func(pv *corev1.PersistentVolume) { pv.Status.Phase = corev1.VolumeReleased })
		release, releaseClaim := tc.hold(f, partitions[0]), tc.hold(f, claimed)
		f.api.set(func(s *apiServer) { delete(s.pods, "ns/a") })
		f.deletePod(pods[0], false)
		look := func() {
			t.Helper()
			f.reclaim.enqueue(partitions[0], 0)
			f.waitIdle()
			if err := f.persistent.sync(t.Context(), pv.Name); err != nil {
				t.Error(err)
			}
			f.reclaim.wiper.running.Wait()
		}
		look()
		f.clock.Step(blockedReportAfter - time.Second)
		look()
		if got := f.events.with("ReclaimBlocked"); len(got) != 0 || len(f.Blocked()) != 0 {
			t.Errorf("%s: reported at once: %q", name, got)
		}
		f.clock.Step(time.Second)
		for range 5 {
			look()
		}
		if got := f.Blocked(); len(got) != 2 || !strings.Contains(got[0]+got[1], partitions[0]) || !strings.Contains(got[0], tc.says) || !strings.Contains(got[1], tc.by) {
			t.Errorf("%s: blocked are %q", name, got)
		}
		if _, kinds := f.reclaim.blocked.list(); len(kinds) != 1 || kinds[tc.kind] != 2 {
			t.Errorf("%s: counted are %v", name, kinds)
		}
		if got, want := blockedMetric(t), map[string]float64{"holder=" + string(tc.kind): 2}; !maps.Equal(got, want) {
			t.Errorf("%s: the metric is %v, want %v", name, got, want)
		}
		for about, count := range map[string]int{"NodeDiskCapacity ReclaimBlocked": 2, "PersistentVolume ReclaimBlocked": 1} {
			if got := f.events.with(about, tc.says, tc.by); len(got) != count {
				t.Errorf("%s: reported are %q", name, f.events.with("ReclaimBlocked"))
			}
		}
		release()
		releaseClaim()
		look()
		f.waitIdle()
		f.checkPhase(partitions[0], "")
		f.checkPhase(claimed, "")
		if got := f.Blocked(); len(got) != 0 {
			t.Errorf("%s: still blocked are %q", name, got)
		}
		if got := blockedMetric(t); len(got) != 0 {
			t.Errorf("%s: nothing is blocked, and the metric is %v", name, got)
		}
	}
}

// TestEndingPodIsNotBlocked asserts that a pod which takes long to end is not reported.
func TestEndingPodIsNotBlocked(t *testing.T) {
	f := newFixture(t)
	f.loopDisk()
	pods, partitions := f.makePods("a")
	f.mount(partitions[0])
	ending := pods[0].DeepCopy()
	now := ending.CreationTimestamp
	ending.DeletionTimestamp = &now
	f.api.put(ending)
	f.addPod(ending)
	for range 3 {
		f.reclaim.enqueue(partitions[0], 0)
		f.waitIdle()
		f.clock.Step(blockedReportAfter)
	}
	f.checkPhase(partitions[0], disk.Formatted)
	if got := f.Blocked(); len(got) != 0 {
		t.Errorf("blocked are %q", got)
	}
}

// TestBlockedIsBounded asserts that holders that change all the time, and very many held volumes, cause few events.
func TestBlockedIsBounded(t *testing.T) {
	f := newFixture(t)
	pv := volumeAt(t, 20, nil)
	d := onDisk(diskID, pv, extentMiB(20, 10), nil)
	f.disks.set(d)
	v := d.Snapshot.Volumes[0]
	// A device that does not exist: no holder can be found.
	v.Device = "/dev/does-not-exist"
	f.reclaim.blocked.recordHeld(t.Context(), d, v, "why 0")
	f.clock.Step(blockedReportAfter)
	for i := range 100 {
		f.reclaim.blocked.recordHeld(t.Context(), d, v, fmt.Sprintf("why %d", i))
		f.clock.Step(blockedReportInterval / 50)
	}
	if got := f.events.with("ReclaimBlocked"); len(got) != 2 {
		t.Errorf("%d events in %v", len(got), 2*blockedReportInterval)
	}
	if got := f.Blocked(); len(got) != 1 || !strings.Contains(got[0], "why 99 (not all could be looked at: device /dev/does-not-exist") {
		t.Errorf("blocked are %q", got)
	}
	for i := range 50 {
		v.Partition = fmt.Sprintf("partition %d", i)
		f.reclaim.blocked.recordHeld(t.Context(), d, v, "why")
	}
	f.clock.Step(blockedReportAfter)
	before := len(f.events.with())
	for i := range 50 {
		v.Partition = fmt.Sprintf("partition %d", i)
		f.reclaim.blocked.recordHeld(t.Context(), d, v, "why")
	}
	if got := len(f.events.with()) - before; got > maxBlockedEvents {
		t.Errorf("%d events of 50 volumes", got)
	}
	if got := f.Blocked(); len(got) != 51 {
		t.Errorf("%d are blocked", len(got))
	}
}
