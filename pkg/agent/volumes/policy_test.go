package volumes

import (
	"strings"
	"testing"

	"github.com/berthdev/berth/pkg/agent/discovery"
	"github.com/berthdev/berth/pkg/agent/disk"
)

// TestPolicyOf asserts the order in which a volume's wipe policy is chosen. Its class is first, and the settings kept
// with it are second. The last settings of the class come next, and then zeroing.
func TestPolicyOf(t *testing.T) {
	overwrite, discard := disk.WipeSettings{Policy: disk.WipeOverwrite, Rate: 7}, disk.WipeSettings{Policy: disk.WipeSecureDiscard}
	none := disk.WipeSettings{Policy: disk.WipeNone}
	classes := map[string]disk.WipeSettings{"ssd": overwrite}
	p := &policies{
		ofClassNow: func(class string) (disk.WipeSettings, bool) { o, is := classes[class]; return o, is },
		lastOfDisk: map[string]disk.WipeSettings{},
	}
	d := &discovery.Disk{Class: "ssd", Snapshot: disk.Snapshot{ID: "d"}}
	other := &discovery.Disk{Snapshot: disk.Snapshot{ID: "other"}}
	check := func(what string, d *discovery.Disk, kept, want disk.WipeSettings) {
		t.Helper()
		if got := p.of(d, disk.Volume{Wipe: kept}); got != want {
			t.Errorf("%s: %+v, want %+v", what, got, want)
		}
	}
	check("by its class", d, none, overwrite)
	delete(classes, "ssd")
	check("of a deleted class, kept", d, discard, discard)
	check("of a deleted class, not kept", d, disk.WipeSettings{}, overwrite)
	d.Class = ""
	check("of a disk without class, kept", d, none, none)
	check("of a disk without class, not kept", d, disk.WipeSettings{}, overwrite)
	check("of a disk that never had one", other, disk.WipeSettings{}, disk.WipeSettings{Policy: disk.WipeZero})
}

// TestDeletedClassLeavesItsPolicy asserts that volumes of a deleted class are wiped under its last policy, also by an
// agent that never saw the class.
func TestDeletedClassLeavesItsPolicy(t *testing.T) {
	f := newFixture(t)
	f.policy = disk.WipeSettings{Policy: disk.WipeZero}
	f.loopDisk()
	pods, partitions := f.makePods("old", "new")
	pv, partition := f.boundVolume(f.disks.Disks()[0], 1, nil)
	for _, p := range append(partitions, partition) {
		if v := mustFind(f, p); v.Wipe != f.policy {
			t.Errorf("made with %+v", v.Wipe)
		}
	}
	// The class changes, and the settings kept with its volumes follow.
	f.policy = disk.WipeSettings{Policy: disk.WipeOverwrite, Rate: 1 << 40}
	f.reclaim.wiper.policies.storeOnDisks(t.Context(), f.disks)
	for _, p := range append(partitions, partition) {
		if v := mustFind(f, p); v.Wipe != f.policy {
			t.Errorf("kept is %+v", v.Wipe)
		}
	}
	f.classless = true
	f.restart()
	f.reclaim.wiper.policies.storeOnDisks(t.Context(), f.disks)
	for _, pod := range pods {
		f.api.set(func(s *apiServer) { delete(s.pods, "ns/"+pod.Name) })
		f.deletePod(pod, false)
	}
	f.waitIdle()
	released(pv)
	f.api.putVolumes(pv)
	f.addVolume(pv)
	if err := f.persistent.sync(t.Context(), pv.Name); err != nil {
		t.Error(err)
	}
	f.waitIdle()
	for _, p := range append(partitions, partition) {
		f.checkPhase(p, "")
		if got := f.events.with("VolumeWiped", p); len(got) != 1 || !strings.Contains(got[0], "policy Overwrite by overwrite, read back as zeros") {
			t.Errorf("recorded is %q", got)
		}
	}
}
