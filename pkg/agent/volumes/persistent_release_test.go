package volumes

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/discovery"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/units"
)

func released(pv *corev1.PersistentVolume) { pv.Status.Phase = corev1.VolumeReleased }

// TestReleasedIsDeletedBeforeWiping asserts that a released PersistentVolume is deleted before its volume is wiped. Our
// finalizer keeps it until the wipe is done.
func TestReleasedIsDeletedBeforeWiping(t *testing.T) {
	f := newFixture(t)
	pv, partition := f.boundVolume(f.loopDisk(), 1, released)
	// Without our finalizer the PersistentVolume would be gone before its volume is.
	f.api.set(func(s *apiServer) { s.volumes[pv.Name].Finalizers = nil; s.refuse = "DELETE" })
	if err := f.persistent.sync(t.Context(), pv.Name); err != nil {
		t.Error(err)
	}
	f.waitIdle()
	f.checkPhase(partition, disk.Formatted)
	f.api.set(func(s *apiServer) {
		if got := s.volumes[pv.Name].Finalizers; !slices.Equal(got, []string{diskv1alpha1.FinalizerVolume}) {
			t.Errorf("it would be deleted with the finalizers %v", got)
		}
		s.refuse = ""
	})
	if err := f.persistent.sync(t.Context(), pv.Name); err != nil {
		t.Error(err)
	}
	f.waitIdle()
	f.checkPhase(partition, "")
	f.syncAsServed(pv.Name)
	f.api.set(func(s *apiServer) {
		if s.volumes[pv.Name] != nil {
			t.Errorf("the PersistentVolume is still there: %+v", s.volumes[pv.Name])
		}
	})
	// The watch may still show it. No new volume is made for it.
	if err := f.persistent.maker.stillWatched(pv)(t.Context()); !errors.Is(err, ErrReleased) {
		t.Errorf("a partition may be made for what was finalized: %v", err)
	}
}

// syncAsServed has the watch show the PersistentVolume as the server has it, and syncs it.
func (f *fixture) syncAsServed(name string) {
	f.t.Helper()
	f.api.set(func(s *apiServer) {
		if pv := s.volumes[name]; pv != nil {
			f.addVolume(pv.DeepCopy())
		}
	})
	if err := f.persistent.sync(f.t.Context(), name); err != nil {
		f.t.Error(err)
	}
}

// TestKeptVolumes asserts that the volume of a PersistentVolume is kept unless the live object has the policy Delete.
func TestKeptVolumes(t *testing.T) {
	for name, change := range map[string]func(pv *corev1.PersistentVolume){
		"bound":          func(*corev1.PersistentVolume) {},
		"retained":       func(pv *corev1.PersistentVolume) { released(pv); pv.Spec.PersistentVolumeReclaimPolicy = "Retain" },
		"of another UID": func(pv *corev1.PersistentVolume) { released(pv); pv.UID = "other" },
		"of a driver":    func(pv *corev1.PersistentVolume) { released(pv); pv.Spec.CSI.Driver = "other" },
		"of a node": func(pv *corev1.PersistentVolume) {
			released(pv)
			pv.Spec.NodeAffinity.Required.NodeSelectorTerms[0].MatchExpressions[0].Values = []string{"m"}
		},
	} {
		f := newFixture(t)
		pv, partition := f.boundVolume(f.loopDisk(), 1, released)
		// The watch shows Released, the API server has something else.
		live := pv.DeepCopy()
		live.Status.Phase = corev1.VolumeBound
		change(live)
		f.api.putVolumes(live)
		if err := f.persistent.sync(t.Context(), pv.Name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		f.waitIdle()
		f.checkPhase(partition, disk.Formatted)
		if got := f.api.asked("DELETE"); got != 0 {
			t.Errorf("%s: the PersistentVolume is deleted", name)
		}
	}
}

// TestSharedHandleIsNotWiped asserts that a volume with two PersistentVolumes is not wiped for either of them.
func TestSharedHandleIsNotWiped(t *testing.T) {
	f := newFixture(t)
	pv, partition := f.boundVolume(f.loopDisk(), 1, released)
	other := pv.DeepCopy()
	other.Name, other.UID, other.Status.Phase = "by-hand", "2", corev1.VolumeBound
	f.api.putVolumes(other)
	f.addVolume(other)
	if err := f.persistent.sync(t.Context(), pv.Name); err != nil {
		t.Error(err)
	}
	f.waitIdle()
	f.checkPhase(partition, disk.Formatted)
	if got := f.events.with("PersistentVolume VolumeNotReleased", "by-hand"); len(got) != 1 {
		t.Errorf("reported is %q", f.events.with())
	}
}

// TestDeleteVolumeReadsLive asserts that a CSI call does not wipe a volume that a PersistentVolume needs.
func TestDeleteVolumeReadsLive(t *testing.T) {
	f := newFixture(t)
	pv, partition := f.boundVolume(f.loopDisk(), 1, nil)
	id := pv.Spec.CSI.VolumeHandle
	// Also without the watch: a CSI sidecar's PersistentVolume has no label.
	if err := f.options.Volumes.GetStore().Delete(pv); err != nil {
		t.Fatal(err)
	}
	for _, policy := range []corev1.PersistentVolumeReclaimPolicy{"Delete", "Retain"} {
		f.api.set(func(s *apiServer) { s.volumes[pv.Name].Spec.PersistentVolumeReclaimPolicy = policy })
		if err := f.DeleteVolume(t.Context(), id); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), pv.Name) {
			t.Errorf("bound, policy %s: %v", policy, err)
		}
		f.checkPhase(partition, disk.Formatted)
	}
	f.api.set(func(s *apiServer) { released(s.volumes[pv.Name]) })
	if err := f.DeleteVolume(t.Context(), id); !errors.Is(err, ErrInUse) {
		t.Errorf("released, policy Retain: %v", err)
	}
	f.checkPhase(partition, disk.Formatted)
	f.api.set(func(s *apiServer) { delete(s.volumes, pv.Name) })
	if err := f.DeleteVolume(t.Context(), id); err != nil {
		t.Errorf("without a PersistentVolume: %v", err)
	}
	f.checkPhase(partition, "")
	if err := f.DeleteVolume(t.Context(), id); err != nil {
		t.Errorf("once more: %v", err)
	}
}

// TestOrphanedPersistentIsKept asserts that a persistent volume without a PersistentVolume is
// listed, and never wiped.
func TestOrphanedPersistentIsKept(t *testing.T) {
	f := newFixture(t)
	pv, partition := f.boundVolume(f.loopDisk(), 1, nil)
	if err := f.options.Volumes.GetStore().Delete(pv); err != nil {
		t.Fatal(err)
	}
	// Not watched, but there: its label was changed.
	f.api.set(func(s *apiServer) { s.volumes[pv.Name].Labels[diskv1alpha1.LabelNode] = "m" })
	f.persistent.onVolumeGone(pv)
	f.waitIdle()
	if got := f.Orphans().Persistent; len(got) != 0 {
		t.Errorf("orphans are %q", got)
	}
	if got := f.events.with("PersistentVolume VolumeMismatch", diskv1alpha1.LabelNode); len(got) != 1 {
		t.Errorf("reported is %q", f.events.with())
	}
	f.api.set(func(s *apiServer) { delete(s.volumes, pv.Name) })
	f.releaser.enqueueUnwatched()
	f.waitIdle()
	if got := f.Orphans().Persistent; len(got) != 1 || !strings.Contains(got[0], pv.Spec.CSI.VolumeHandle) {
		t.Errorf("orphans are %q", got)
	}
	f.clock.Step(1000 * time.Hour)
	f.sweep()
	f.releaser.enqueueUnwatched()
	f.waitIdle()
	f.checkPhase(partition, disk.Formatted)
	// It is no orphan any more when there is a PersistentVolume.
	f.api.putVolumes(pv)
	f.addVolume(pv)
	if _, owner := f.Owner(mustFind(f, partition)); owner != "ns/data" || len(f.Orphans().Persistent) != 0 {
		t.Errorf("owner is %q, orphans are %+v", owner, f.Orphans())
	}
}

func mustFind(f *fixture, partition string) disk.Volume {
	f.t.Helper()
	_, v, found := f.node.findVolume(partition)
	if !found {
		f.t.Fatalf("no disk holds %s", partition)
	}
	return v
}

// TestVanishedIsNotMadeAgain asserts that a formatted volume that is on no disk and was not wiped is not made again.
func TestVanishedIsNotMadeAgain(t *testing.T) {
	f := newFixture(t)
	d := f.loopDisk()
	pv, partition := f.boundVolume(d, 1, nil)
	if _, err := d.Engine.Wipe(t.Context(), partition, disk.WipeOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := f.persistent.sync(t.Context(), pv.Name); err != nil {
		t.Error(err)
	}
	f.checkPhase(partition, "")
	if got := f.events.with("PersistentVolume VolumeVanished"); len(got) != 1 {
		t.Errorf("reported is %q", f.events.with())
	}
	// Nor while its disk is away.
	f.disks.set()
	if err := f.persistent.sync(t.Context(), pv.Name); err != nil {
		t.Error(err)
	}
	if got := f.events.with("PersistentVolume VolumeDiskMissing", d.ID()); len(got) != 1 {
		t.Errorf("reported is %q", f.events.with())
	}
}

// TestDecidedExtentsAreHeld asserts that an extent for a new or growing volume is not chosen again before it is a
// partition.
func TestDecidedExtentsAreHeld(t *testing.T) {
	f := newFixture(t)
	pv := volumeAt(t, 20, nil)
	d := onDisk(diskID, pv, extentMiB(20, 10), nil)
	f.disks.set(d)
	var taken extent.Set
	choose := func(name string, size int64) error {
		w := unplaced(name, size, "", 0)
		places, err := f.inlineController.placer.choose("", func([]discovery.Disk) ([]unplacedVolume, map[string]bool, error) {
			return []unplacedVolume{w}, nil, nil
		})
		for _, p := range places {
			if taken.Overlaps(p.extent) || d.Snapshot.Volumes[0].Extent.Overlaps(p.extent) {
				t.Errorf("%s is put at %v, which is taken", name, p.extent)
			}
			taken = taken.Add(p.extent)
		}
		return err
	}
	on := d.Snapshot.Volumes[0]
	if err := f.inlineController.placer.holdGrowth(on, 20*units.MiB, reservations{}); err != nil {
		t.Fatal(err)
	}
	taken = taken.Add(extentMiB(30, 10))
	for _, name := range []string{"a", "b", "c", "d"} {
		if err := choose(name, 19); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := choose("e", 19); !errors.Is(err, ErrNoRoom) {
		t.Errorf("more than there is: %v", err)
	}
	if err := f.inlineController.placer.holdGrowth(on, 60*units.MiB, reservations{}); !errors.Is(err, ErrNotGrown) {
		t.Errorf("a volume grows into what is about to be others': %v", err)
	}
	f.inlineController.placer.releaseHeld("a")
	taken = extent.Set{}
	if err := choose("e", 19); err != nil {
		t.Errorf("what was given back cannot be had: %v", err)
	}
}
