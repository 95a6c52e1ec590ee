package volumes

import (
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/discovery"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/units"
)

const claimUID = "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee"

// volumeAt is the PersistentVolume of 10 MiB on node n that starts at that MiB.
func volumeAt(t *testing.T, start int64, change func(*corev1.PersistentVolume)) *corev1.PersistentVolume {
	t.Helper()
	pvc := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "data", UID: claimUID}}
	pvc.Spec.Resources.Requests = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("10Mi")}
	class := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "sc"}, Parameters: map[string]string{diskv1alpha1.AttributeClass: "ssd"}}
	v, err := claim.Request(pvc, class)
	if err != nil {
		t.Fatal(err)
	}
	pv := claim.NewVolume(pvc, class, v, "n", diskv1alpha1.Place{Disk: diskID, Extent: diskv1alpha1.Extent{Start: start * units.MiB, Length: 10 * units.MiB}})
	pv.UID, pv.ResourceVersion, pv.Status.Phase = "1", "7", corev1.VolumeBound
	if change != nil {
		change(pv)
	}
	return pv
}

// TestActionFor asserts the action for each phase, reclaim policy and deletion of a PersistentVolume.
func TestActionFor(t *testing.T) {
	const (
		deletes = corev1.PersistentVolumeReclaimDelete
		retains = corev1.PersistentVolumeReclaimRetain
	)
	for _, tc := range []struct {
		phase         corev1.PersistentVolumePhase
		policy        corev1.PersistentVolumeReclaimPolicy
		here, deleted action
	}{
		{"", deletes, actionServe, actionReclaim},
		{corev1.VolumePending, deletes, actionServe, actionReclaim},
		{corev1.VolumeAvailable, deletes, actionServe, actionReclaim},
		{corev1.VolumeBound, deletes, actionServe, actionRetain},
		{corev1.VolumeReleased, deletes, actionReclaim, actionReclaim},
		{corev1.VolumeFailed, deletes, actionReclaim, actionReclaim},
		{"", retains, actionServe, actionFinalize},
		{corev1.VolumeAvailable, retains, actionServe, actionFinalize},
		{corev1.VolumeBound, retains, actionServe, actionRetain},
		{corev1.VolumeReleased, retains, actionRetain, actionFinalize},
		{corev1.VolumeFailed, retains, actionRetain, actionFinalize},
		{corev1.VolumeReleased, "", actionRetain, actionFinalize},
		{corev1.VolumeReleased, corev1.PersistentVolumeReclaimRecycle, actionRetain, actionFinalize},
	} {
		pv := &corev1.PersistentVolume{}
		pv.Spec.PersistentVolumeReclaimPolicy, pv.Status.Phase = tc.policy, tc.phase
		if got := actionFor(pv); got != tc.here {
			t.Errorf("%q with policy %q: %v, want %v", tc.phase, tc.policy, got, tc.here)
		}
		now := metav1.Now()
		pv.DeletionTimestamp = &now
		if got := actionFor(pv); got != tc.deleted {
			t.Errorf("%q with policy %q, deleted: %v, want %v", tc.phase, tc.policy, got, tc.deleted)
		}
	}
}

// TestStripVolume asserts that the stripped PersistentVolume leads to the same decisions as the whole one.
func TestStripVolume(t *testing.T) {
	now := metav1.Now()
	pv := volumeAt(t, 20, func(pv *corev1.PersistentVolume) {
		pv.Annotations[diskv1alpha1.AnnotationMovedTo] = "d"
		pv.Annotations["much"] = strings.Repeat("x", 1<<10)
		pv.Labels["a"] = "b"
		pv.Spec.CSI.VolumeAttributes["storage.kubernetes.io/csiProvisionerIdentity"] = "x"
		pv.DeletionTimestamp = &now
		pv.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "m"}}
	})
	object, err := stripVolume(pv)
	if err != nil {
		t.Fatal(err)
	}
	slim := object.(*corev1.PersistentVolume)
	a, err := claim.ReadVolume(pv)
	if err != nil {
		t.Fatal(err)
	}
	b, err := claim.ReadVolume(slim)
	if err != nil || !reflect.DeepEqual(a, b) {
		t.Errorf("kept is %+v, was %+v: %v", b, a, err)
	}
	if actionFor(slim) != actionFor(pv) || claim.Owner(slim) != claim.Owner(pv) || diskFor(slim, b) != "d" || slim.UID != pv.UID || slim.ResourceVersion != pv.ResourceVersion {
		t.Errorf("kept is %+v", slim)
	}
	if len(slim.Labels) != 0 || len(slim.Annotations) != 1 || len(slim.Spec.CSI.VolumeAttributes) != 4 || len(slim.ManagedFields) != 0 {
		t.Errorf("kept is %+v", slim)
	}
	pv.Spec.CSI.Driver = "other"
	if object, err = stripVolume(pv); err != nil || object.(*corev1.PersistentVolume).Spec.CSI != nil {
		t.Errorf("kept of another driver's is %+v, %v", object, err)
	}
}

// onDisk is a disk in service of 100 MiB with the volume at that place.
func onDisk(id string, pv *corev1.PersistentVolume, e extent.Extent, change func(*disk.Volume)) discovery.Disk {
	name, _ := diskv1alpha1.VolumeUUID(pv.Spec.CSI.VolumeHandle)
	v := disk.Volume{Partition: diskv1alpha1.PartitionID(pv.Spec.CSI.VolumeHandle), Name: name, Extent: e, Phase: disk.Formatted}
	if change != nil {
		change(&v)
	}
	return discovery.Disk{Class: "ssd", Engine: &disk.Disk{}, Snapshot: disk.Snapshot{
		ID: id, Volumes: []disk.Volume{v}, Free: extent.NewSet(extentMiB(1, 100)).Remove(e),
	}}
}

// TestReservationsOfVolumes asserts that extents reserved for PersistentVolumes that have no partition yet are not
// given to others. The extents of those that have one are not counted twice.
func TestReservationsOfVolumes(t *testing.T) {
	now := metav1.Now()
	pv := volumeAt(t, 20, nil)
	grown := func(pv *corev1.PersistentVolume) {
		pv.Spec.Capacity[corev1.ResourceStorage] = resource.MustParse("30Mi")
	}
	for name, tc := range map[string]struct {
		pv    *corev1.PersistentVolume
		disks []discovery.Disk
		// follows is left for volumes that follow their record, placed for those that the node places.
		follows, placed int64
	}{
		"not there yet":                 {pv, nil, 100, 90},
		"granted more before it was":    {volumeAt(t, 20, grown), nil, 100, 70},
		"deleted":                       {volumeAt(t, 20, func(pv *corev1.PersistentVolume) { pv.DeletionTimestamp = &now }), nil, 100, 100},
		"deleted, its claim gone":       {volumeAt(t, 20, func(pv *corev1.PersistentVolume) { pv.DeletionTimestamp, pv.Status.Phase = &now, "" }), nil, 100, 100},
		"released":                      {volumeAt(t, 20, func(pv *corev1.PersistentVolume) { pv.Status.Phase = corev1.VolumeReleased }), nil, 100, 100},
		"of another node":               {volumeAt(t, 20, func(pv *corev1.PersistentVolume) { pv.Spec.NodeAffinity = nil }), nil, 100, 100},
		"there":                         {pv, []discovery.Disk{onDisk(diskID, pv, extentMiB(20, 10), nil)}, 90, 90},
		"there, elsewhere":              {pv, []discovery.Disk{onDisk(diskID, pv, extentMiB(50, 10), nil)}, 90, 90},
		"there, and granted more":       {volumeAt(t, 20, grown), []discovery.Disk{onDisk(diskID, pv, extentMiB(20, 10), nil)}, 70, 70},
		"there, and granted too much":   {volumeAt(t, 20, grown), []discovery.Disk{onDisk(diskID, pv, extentMiB(85, 10), nil)}, 84, 84},
		"there, longer than its record": {pv, []discovery.Disk{onDisk(diskID, pv, extentMiB(20, 15), nil)}, 85, 85},
	} {
		m := newFixture(t, tc.pv)
		spaces := []diskSpace{{id: diskID, class: "ssd", free: extent.NewSet(extentMiB(1, 100))}}
		if len(tc.disks) > 0 {
			spaces = diskSpaces(tc.disks)
		}
		others := m.persistent.maker.placer.reservationsExcept("")
		m.persistent.maker.placer.removeHeld(spaces, tc.disks, others)
		if got := spaces[0].free.Total() / units.MiB; got != tc.follows {
			t.Errorf("%s: %d MiB are left for the volume with a record, want %d", name, got, tc.follows)
		}
		others.removeFrom(spaces, tc.disks)
		if got := spaces[0].free.Total() / units.MiB; got != tc.placed {
			t.Errorf("%s: %d MiB are left, want %d", name, got, tc.placed)
		}
		if others := m.persistent.maker.placer.reservationsExcept(diskv1alpha1.PartitionID(pv.Spec.CSI.VolumeHandle)); len(others.volumes) != 0 {
			t.Errorf("%s: a volume is kept off its own place", name)
		}
	}
}

// TestCheckSameVolume asserts that the partition must be the volume of the PersistentVolume, and the only one with its
// GUID.
func TestCheckSameVolume(t *testing.T) {
	pv := volumeAt(t, 20, nil)
	v, err := claim.ReadVolume(pv)
	if err != nil {
		t.Fatal(err)
	}
	good := onDisk(diskID, pv, extentMiB(20, 10), nil)
	gone := onDisk("b", pv, extentMiB(20, 10), nil)
	gone.Engine, gone.Problem = nil, "gone"
	for name, tc := range map[string]struct {
		disks []discovery.Disk
		says  string
	}{
		"the volume":                 {[]discovery.Disk{good}, ""},
		"a copy that does not serve": {[]discovery.Disk{good, gone}, ""},
		"a copy":                     {[]discovery.Disk{good, onDisk("b", pv, extentMiB(40, 10), nil)}, "one must be a copy"},
		"an inline volume":           {[]discovery.Disk{onDisk(diskID, pv, extentMiB(20, 10), func(v *disk.Volume) { v.Ephemeral = true })}, "another volume"},
		"another name":               {[]discovery.Disk{onDisk(diskID, pv, extentMiB(20, 10), func(v *disk.Volume) { v.Name = "ns/pod/data" })}, "another volume"},
	} {
		_, on, _ := findVolume(tc.disks, v.Partition)
		err := checkSameVolume(tc.disks, on, v)
		if tc.says == "" && err != nil || tc.says != "" && (err == nil || !strings.Contains(err.Error(), tc.says)) {
			t.Errorf("%s: %v, want %q", name, err, tc.says)
		}
	}
}

// TestReadVolume asserts that a PersistentVolume is refused if it is of another node, or has no usable ID or place.
func TestReadVolume(t *testing.T) {
	m := newFixture(t)
	if _, err := m.persistent.volumes.read(volumeAt(t, 20, nil)); err != nil {
		t.Error(err)
	}
	for says, change := range map[string]func(*corev1.PersistentVolume){
		"not that of a persistent volume": func(pv *corev1.PersistentVolume) { pv.Spec.CSI.VolumeHandle = diskv1alpha1.InlineVolumeID("1", "data") },
		"node affinity": func(pv *corev1.PersistentVolume) {
			pv.Spec.NodeAffinity.Required.NodeSelectorTerms[0].MatchExpressions[0].Values = []string{"m"}
		},
		"start": func(pv *corev1.PersistentVolume) { pv.Spec.CSI.VolumeAttributes[diskv1alpha1.AttributeStart] = "1" },
	} {
		if _, err := m.persistent.volumes.read(volumeAt(t, 20, change)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want %q", err, says)
		}
	}
}

// TestFinalizedIsNotServed asserts that a PersistentVolume that the agent finalized gets no partition while the watch
// still shows it.
func TestFinalizedIsNotServed(t *testing.T) {
	pv := volumeAt(t, 20, nil)
	m := newFixture(t, pv)
	m.api.putVolumes(pv)
	if err := m.persistent.maker.stillWatched(pv)(t.Context()); err != nil {
		t.Fatal(err)
	}
	again := pv.DeepCopy()
	again.UID = "2"
	if err := m.persistent.maker.stillWatched(again)(t.Context()); err == nil {
		t.Error("one that the watch does not show is served")
	}
	if err := m.persistent.maker.stillLive(again)(t.Context()); err != nil {
		t.Errorf("one that the API server shows is not served: %v", err)
	}
	m.persistent.maker.finalized.add(pv.UID)
	if m.persistent.maker.stillWatched(pv)(t.Context()) == nil || m.persistent.maker.stillLive(pv)(t.Context()) == nil {
		t.Error("a finalized one is served")
	}
	m.persistent.onVolumeGone(cache.DeletedFinalStateUnknown{Obj: pv})
	if len(m.persistent.maker.finalized.byUID) != 0 {
		t.Errorf("%d are remembered that are gone", len(m.persistent.maker.finalized.byUID))
	}
	if got := m.queued(); !slices.Equal(got, []string{diskv1alpha1.PartitionID(pv.Spec.CSI.VolumeHandle)}) {
		t.Errorf("looked for are %v", got)
	}
}

// TestVolumesByPartition asserts that the index finds all PersistentVolumes of a partition, and none of another driver.
func TestVolumesByPartition(t *testing.T) {
	pv := volumeAt(t, 20, nil)
	copied := volumeAt(t, 40, func(pv *corev1.PersistentVolume) { pv.Name = "copy" })
	foreign := volumeAt(t, 60, func(pv *corev1.PersistentVolume) { pv.Name, pv.Spec.CSI.Driver = "foreign", "other" })
	m := newFixture(t, pv, copied, foreign)
	found := map[string]bool{}
	for _, pv := range m.persistent.volumes.of(diskv1alpha1.PartitionID(pv.Spec.CSI.VolumeHandle)) {
		found[pv.Name] = true
	}
	if got := slices.Sorted(maps.Keys(found)); !slices.Equal(got, []string{"copy", pv.Name}) {
		t.Errorf("found are %v", got)
	}
	if m.persistent.volumes.get("foreign") != nil {
		t.Error("another driver's is taken for ours")
	}
}

// TestOwner asserts that a volume's owner comes from the watch, or else from the disk.
func TestOwner(t *testing.T) {
	pv := volumeAt(t, 20, nil)
	noted := func(v *disk.Volume) { v.Note = `{"namespace":"shop","claim":"db"}` }
	v := onDisk(diskID, pv, extentMiB(20, 10), noted).Snapshot.Volumes[0]
	id := pv.Spec.CSI.VolumeHandle
	for name, tc := range map[string]struct {
		pvs    []*corev1.PersistentVolume
		orphan bool
		owner  string
	}{
		"watched":                {[]*corev1.PersistentVolume{pv}, false, "ns/data"},
		"watched, without claim": {[]*corev1.PersistentVolume{volumeAt(t, 20, func(pv *corev1.PersistentVolume) { pv.Spec.ClaimRef = nil })}, false, ""},
		"of a stock provisioner": {nil, false, "shop/db"},
		"orphan":                 {nil, true, ""},
	} {
		m := newFixture(t, tc.pvs...)
		if tc.orphan {
			m.reclaim.orphans.restore(v.Partition, m.clock.Now())
		}
		if volume, owner := m.Owner(v); volume != id || owner != tc.owner {
			t.Errorf("%s: volume %q of %q, want %q", name, volume, owner, tc.owner)
		}
	}
}

// TestStaleListMakesNothing asserts that no partition is made for a PersistentVolume that only the watch still shows.
// It would be an orphan for ever.
func TestStaleListMakesNothing(t *testing.T) {
	for name, change := range map[string]func(s *apiServer, live *corev1.PersistentVolume){
		"gone":            func(s *apiServer, live *corev1.PersistentVolume) { delete(s.volumes, live.Name) },
		"another by now":  func(_ *apiServer, live *corev1.PersistentVolume) { live.UID = "2" },
		"released":        func(_ *apiServer, live *corev1.PersistentVolume) { live.Status.Phase = corev1.VolumeReleased },
		"of other handle": func(_ *apiServer, live *corev1.PersistentVolume) { live.Spec.CSI.VolumeHandle = "pvc-x" },
		"not known":       func(s *apiServer, _ *corev1.PersistentVolume) { s.broken = "persistentvolumes" },
	} {
		pv := volumeAt(t, 20, nil)
		f := newFixture(t)
		d := f.loopDisk()
		pv.Spec.CSI.VolumeAttributes[diskv1alpha1.AttributeDisk] = d.ID()
		f.addVolume(pv)
		f.api.putVolumes(pv)
		f.api.set(func(s *apiServer) { change(s, s.volumes[pv.Name]) })
		if err := f.persistent.sync(t.Context(), pv.Name); (err != nil) != (name == "not known") {
			t.Errorf("%s: %v", name, err)
		}
		if got := f.disks.Disks()[0].Snapshot.Volumes; len(got) != 0 {
			t.Errorf("%s: made are %+v", name, got)
		}
		f.api.set(func(s *apiServer) { s.broken = "" })
		f.api.putVolumes(pv)
		if err := f.persistent.sync(t.Context(), pv.Name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		f.checkPhase(diskv1alpha1.PartitionID(pv.Spec.CSI.VolumeHandle), disk.Formatted)
	}
}
