package volumes

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/agent/signature"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// mountTo notes the device and the file system that a volume is mounted with.
func mountTo(device, fsType *string) func(context.Context, string, string) error {
	return func(_ context.Context, d, f string) error {
		*device, *fsType = d, f
		return nil
	}
}

// TestPublish asserts that the kubelet's call makes the volume of a pod that the watch has not shown, and no other
// volume.
func TestPublish(t *testing.T) {
	f := newFixture(t)
	f.loopDisk()
	pod, partition := inlinePod("a")
	id := diskv1alpha1.InlineVolumeID(pod.UID, "data")
	ref := PodRef{Namespace: "ns", Name: "a", UID: pod.UID}
	var device, fsType string
	mount := mountTo(&device, &fsType)
	if err := f.Publish(t.Context(), ref, id, mount); !errors.Is(err, ErrPodGone) {
		t.Errorf("of a pod that does not exist: %v", err)
	}
	for name, change := range map[string]func(p *corev1.Pod){
		"another pod":   func(p *corev1.Pod) { p.UID = "other" },
		"on a node":     func(p *corev1.Pod) { p.Spec.NodeName = "m" },
		"a static pod":  func(p *corev1.Pod) { metav1.SetMetaDataAnnotation(&p.ObjectMeta, corev1.MirrorPodAnnotationKey, "x") },
		"no size":       func(p *corev1.Pod) { p.Spec.Volumes[0].CSI.VolumeAttributes = nil },
		"that has gone": func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded },
		"too large":     func(p *corev1.Pod) { p.Spec.Volumes[0].CSI.VolumeAttributes[diskv1alpha1.AttributeSize] = "1Ti" },
	} {
		wrong := pod.DeepCopy()
		change(wrong)
		f.api.put(wrong)
		if err := f.Publish(t.Context(), ref, id, mount); err == nil || device != "" {
			t.Errorf("%s: mounted %q, %v", name, device, err)
		}
		f.checkPhase(partition, "")
	}
	f.api.put(pod)
	if err := f.Publish(t.Context(), ref, "csi-other", mount); !errors.Is(err, ErrInvalid) {
		t.Errorf("another volume: %v", err)
	}
	for range 2 {
		device = ""
		if err := f.Publish(t.Context(), ref, id, mount); err != nil || device == "" || fsType != "ext4" {
			t.Fatalf("mounted %q as %q: %v", device, fsType, err)
		}
		if got, err := signature.FileSystem(t.Context(), device); got != "ext4" || err != nil {
			t.Errorf("on %s is %q, %v", device, got, err)
		}
		f.checkPhase(partition, disk.Formatted)
	}
	if volume, owner := f.Owner(mustFind(f, partition)); volume != id || owner != "ns/a" {
		t.Errorf("it is %s of %s", volume, owner)
	}
	// A volume that was made by a call is looked at even if the watch never shows its pod. It is wiped.
	f.api.set(func(s *apiServer) { delete(s.pods, "ns/a") })
	f.Release(id)
	f.waitIdle()
	f.sweep()
	f.clock.Step(f.options.OrphanGrace)
	f.sweep()
	f.checkPhase(partition, "")
}

// TestPublishOfLostDisk asserts that a volume on a disk that is away is neither mounted nor made again.
func TestPublishOfLostDisk(t *testing.T) {
	f := newFixture(t)
	f.loopDisk()
	pods, partitions := f.makePods("a")
	id := diskv1alpha1.InlineVolumeID(pods[0].UID, "data")
	d := f.disks.Disks()[0]
	d.Engine, d.Problem, d.Device.Path = nil, "device sdx is gone", ""
	f.disks.set(d)
	var device, fsType string
	err := f.Publish(t.Context(), PodRef{Namespace: "ns", Name: "a", UID: pods[0].UID}, id, mountTo(&device, &fsType))
	if !errors.Is(err, ErrOutOfService) || device != "" {
		t.Errorf("mounted %q, %v", device, err)
	}
	if err := f.inlineController.sync(t.Context(), keyOf(pods[0])); err != nil {
		t.Error(err)
	}
	f.checkPhase(partitions[0], disk.Formatted)
}

// podWithoutRoom is a pod that is too large for a disk of 256 MiB, and for xfs too small.
func (f *fixture) podWithoutRoom(name string) *corev1.Pod {
	pod, _ := inlinePod(name)
	pod.Spec.Volumes[0].CSI.VolumeAttributes[diskv1alpha1.AttributeSize] = "280Mi"
	f.api.put(pod)
	return pod
}

// syncPod syncs the pod as the watch shows it.
func (f *fixture) syncPod(pod *corev1.Pod) {
	f.t.Helper()
	if err := f.inlineController.sync(f.t.Context(), keyOf(pod)); err != nil {
		f.t.Error(err)
	}
}

// TestEviction asserts that the eviction of a pod whose volumes do not fit is requested after the grace period. That
// needs a controller that makes the pod again and is no DaemonSet.
func TestEviction(t *testing.T) {
	isController := true
	for kind, requested := range map[string]bool{"ReplicaSet": true, "DaemonSet": false, "": false} {
		f := newFixture(t)
		f.loopDisk()
		pod := f.podWithoutRoom("a")
		if kind != "" {
			pod.OwnerReferences = []metav1.OwnerReference{{Kind: kind, Name: "x", UID: "x", Controller: &isController}}
		}
		f.addPod(pod)
		f.syncPod(pod)
		f.clock.Step(f.options.EvictionGrace - 1)
		f.syncPod(pod)
		if got := f.Evictions(); len(got) != 0 {
			t.Errorf("%q: requested before the grace period is over: %v", kind, got)
		}
		f.clock.Step(1)
		before := f.changes.Load()
		for range 2 {
			f.syncPod(pod)
		}
		var want []diskv1alpha1.EvictionRequest
		if requested {
			want = []diskv1alpha1.EvictionRequest{{Namespace: "ns", Name: "a", UID: pod.UID}}
		}
		if got := f.Evictions(); !slices.Equal(got, want) {
			t.Errorf("%q: requested are %v", kind, got)
		}
		if got := f.changes.Load() - before; got != int32(len(want)) {
			t.Errorf("%q: said %d times", kind, got)
		}
		if got := f.events.with("Pod NoRoomForVolume"); len(got) != 1 {
			t.Errorf("%q: reported is %q", kind, f.events.with())
		}
		if got := f.events.with("Pod EvictingForVolume"); len(got) != len(want) {
			t.Errorf("%q: reported is %q", kind, f.events.with())
		}
	}
}

// TestEvictionWithdrawn asserts that an eviction is not requested any more once there is room, or will be, or the pod
// ends.
func TestEvictionWithdrawn(t *testing.T) {
	isController := true
	for name, change := range map[string]func(f *fixture, pod *corev1.Pod){
		"it fits": func(f *fixture, pod *corev1.Pod) {
			pod.Spec.Volumes[0].CSI.VolumeAttributes[diskv1alpha1.AttributeSize] = "20Mi"
			f.addPod(pod)
			f.syncPod(pod)
		},
		"it can never be made": func(f *fixture, pod *corev1.Pod) {
			f.inlineController.placer.fsType = func(string) string { return diskv1alpha1.FSTypeXFS }
			f.syncPod(pod)
		},
		"a wipe will make room": func(f *fixture, pod *corev1.Pod) {
			d := f.disks.Disks()[0]
			d.Device.Path = ""
			d.Snapshot.Volumes = []disk.Volume{{Partition: "x", Phase: disk.Wiping, Extent: extent.New(1<<40, 1<<40)}}
			f.disks.set(d)
			f.syncPod(pod)
		},
		"it is being deleted": func(f *fixture, pod *corev1.Pod) {
			pod.DeletionTimestamp = &metav1.Time{Time: f.clock.Now()}
			f.inlineController.onPod(pod)
		},
		"it is gone": func(f *fixture, pod *corev1.Pod) { f.inlineController.onPodDelete(pod) },
		"it is gone, unnoticed": func(f *fixture, pod *corev1.Pod) {
			if err := f.options.Pods.GetStore().Delete(pod); err != nil {
				f.t.Fatal(err)
			}
		},
	} {
		f := newFixture(t)
		f.loopDisk()
		pod := f.podWithoutRoom("a")
		pod.OwnerReferences = []metav1.OwnerReference{{Kind: "ReplicaSet", Name: "x", UID: "x", Controller: &isController}}
		f.addPod(pod)
		f.syncPod(pod)
		f.clock.Step(f.options.EvictionGrace)
		f.syncPod(pod)
		if got := f.Evictions(); len(got) != 1 {
			t.Fatalf("%s: requested before are %v", name, got)
		}
		change(f, pod.DeepCopy())
		if got := f.Evictions(); len(got) != 0 {
			t.Errorf("%s: requested are %v", name, got)
		}
	}
}

// TestStage asserts that the kubelet's call makes and hands out the volume of a PersistentVolume that the watch has not
// shown, and no other volume.
func TestStage(t *testing.T) {
	f := newFixture(t)
	d := f.loopDisk()
	pv := volumeAt(t, 20, func(pv *corev1.PersistentVolume) { pv.Spec.CSI.VolumeAttributes[diskv1alpha1.AttributeDisk] = d.ID() })
	id, partition := pv.Spec.CSI.VolumeHandle, diskv1alpha1.PartitionID(pv.Spec.CSI.VolumeHandle)
	var device, fsType string
	use := mountTo(&device, &fsType)
	if err := f.Stage(t.Context(), id, StageOptions{}, use); !errors.Is(err, ErrNotFound) {
		t.Errorf("of no PersistentVolume: %v", err)
	}
	if err := f.Stage(t.Context(), "x", StageOptions{}, use); !errors.Is(err, ErrNotFound) {
		t.Errorf("of no volume: %v", err)
	}
	gone := pv.DeepCopy()
	released(gone)
	f.api.putVolumes(gone)
	if err := f.Stage(t.Context(), id, StageOptions{}, use); !errors.Is(err, ErrReleased) {
		t.Errorf("of a released one: %v", err)
	}
	f.api.putVolumes(pv)
	if err := f.Stage(t.Context(), id, StageOptions{Block: true}, use); !errors.Is(err, ErrInvalid) {
		t.Errorf("of another mode: %v", err)
	}
	f.checkPhase(partition, "")
	for range 2 {
		device = ""
		if err := f.Stage(t.Context(), id, StageOptions{}, use); err != nil || device == "" || fsType != "ext4" {
			t.Fatalf("used %q as %q: %v", device, fsType, err)
		}
	}
	if err := f.Stage(t.Context(), id, StageOptions{Block: true}, use); !errors.Is(err, ErrInvalid) {
		t.Errorf("a file system as a block device: %v", err)
	}
	// The error of a failed mount names the file system that is on the volume.
	err := f.Stage(t.Context(), id, StageOptions{FSType: "xfs"}, func(context.Context, string, string) error { return errors.New("bad superblock") })
	if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "holds ext4, not xfs") {
		t.Errorf("another file system: %v", err)
	}
	v, found := f.Lookup(id)
	if !found || v.Disk != d.ID() || v.Size != 10*units.MiB || v.Block || v.Device != device {
		t.Errorf("looked up is %+v", v)
	}
}

// TestGrowth asserts that a volume grows to what its PersistentVolume grants, and no further.
func TestGrowth(t *testing.T) {
	f := newFixture(t)
	d := f.loopDisk()
	pv, partition := f.boundVolume(d, 1, nil)
	other, _ := f.boundVolume(d, 3, nil) // 30 MiB behind the first one's end
	id := pv.Spec.CSI.VolumeHandle
	grown := func(context.Context, Volume) error { return nil }
	grant := func(size string) {
		pv = pv.DeepCopy()
		pv.Spec.Capacity = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}
		f.api.putVolumes(pv)
		f.addVolume(pv)
	}
	if _, err := f.Expand(t.Context(), id, 20*units.MiB, grown); !errors.Is(err, ErrNotGrown) {
		t.Errorf("more than is granted: %v", err)
	}
	grant("20Mi")
	if v, err := f.Expand(t.Context(), id, 20*units.MiB, grown); err != nil || v.Size != 20*units.MiB {
		t.Errorf("what is granted: %+v, %v", v, err)
	}
	grant("100Mi")
	if err := f.persistent.sync(t.Context(), pv.Name); err != nil {
		t.Error(err)
	}
	if got := f.events.with("PersistentVolume VolumeNotGrown", "41943040 are possible"); len(got) != 1 {
		t.Errorf("into another volume: %q", f.events.with())
	}
	if v, err := f.GrowVolume(t.Context(), id, 30*units.MiB, 0); err != nil || v.Size != 30*units.MiB {
		t.Errorf("by a CSI call: %+v, %v", v, err)
	}
	if _, err := f.GrowVolume(t.Context(), id, 30*units.MiB+1, 30*units.MiB+2); !errors.Is(err, ErrInvalid) {
		t.Errorf("a size that cannot be: %v", err)
	}
	f.checkPhase(partition, disk.Formatted)
	if v, _ := f.Lookup(other.Spec.CSI.VolumeHandle); v.Size != 10*units.MiB {
		t.Errorf("the other volume is %+v", v)
	}
}

// TestProvision asserts that a CSI call makes a volume once, lists it, and counts what is left.
func TestProvision(t *testing.T) {
	f := newFixture(t)
	f.loopDisk()
	free, largest := f.Capacity("ssd")
	if other, _ := f.Capacity("hdd"); free == 0 || largest == 0 || other != 0 {
		t.Errorf("free are %d, %d, %d", free, largest, other)
	}
	r := VolumeRequest{ID: "pvc-" + claimUID, Class: "ssd", Size: 10*units.MiB + 1}
	for range 2 {
		if v, err := f.CreateVolume(t.Context(), r); err != nil || v.Size != 11*units.MiB || v.Phase != disk.Formatted {
			t.Fatalf("made is %+v, %v", v, err)
		}
	}
	for name, change := range map[string]func(r *VolumeRequest){
		"larger": func(r *VolumeRequest) { r.Size = 20 * units.MiB }, "of a class": func(r *VolumeRequest) { r.Class = "hdd" },
		"a block device": func(r *VolumeRequest) { r.Block = true }, "smaller": func(r *VolumeRequest) { r.Size, r.Limit = units.MiB, 2*units.MiB },
	} {
		other := r
		change(&other)
		if _, err := f.CreateVolume(t.Context(), other); !errors.Is(err, ErrExists) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, change := range map[string]func(r *VolumeRequest){
		"no ID": func(r *VolumeRequest) { r.ID = "x" }, "no multiple": func(r *VolumeRequest) { r.Size, r.Limit = units.MiB+1, units.MiB+2 },
	} {
		other := r
		change(&other)
		if _, err := f.CreateVolume(t.Context(), other); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	block := VolumeRequest{ID: "pvc-bbbbbbbb" + claimUID[8:], Class: "ssd", Size: 10 * units.MiB, Block: true}
	if _, err := f.CreateVolume(t.Context(), block); err != nil {
		t.Fatal(err)
	}
	var device, fsType string
	if err := f.Stage(t.Context(), block.ID, StageOptions{Block: true}, mountTo(&device, &fsType)); err != nil || device == "" || fsType != "" {
		t.Errorf("used %q as %q: %v", device, fsType, err)
	}
	var listed []string
	for _, v := range f.ListVolumes() {
		listed = append(listed, v.ID)
	}
	slices.Sort(listed)
	if !slices.Equal(listed, []string{r.ID, block.ID}) {
		t.Errorf("listed are %v", listed)
	}
	if left, _ := f.Capacity(""); left != free-21*units.MiB {
		t.Errorf("%d are left of %d", left, free)
	}
}

// TestDiskComesBack asserts that work that waited for a disk goes on when it is back in service. That is a wipe that
// was begun, the end of pods that went meanwhile, and pods and PersistentVolumes that found no room.
func TestDiskComesBack(t *testing.T) {
	f := newFixture(t)
	f.loopDisk()
	pods, partitions := f.makePods("a")
	_, wiping := f.boundVolume(f.disks.Disks()[0], 1, nil)
	serving := f.disks.Disks()
	away := f.disks.Disks()
	away[0].Engine, away[0].Problem, away[0].Device.Path = nil, "gone", ""
	away[0].Snapshot.Volumes = slices.Clone(away[0].Snapshot.Volumes)
	f.disks.set(away...)
	f.compareDisks(f.disks.Disks())
	f.api.set(func(s *apiServer) { delete(s.pods, "ns/a") })
	f.deletePod(pods[0], false)
	f.waitIdle()
	waits, _ := inlinePod("waits")
	f.api.put(waits)
	f.addPod(waits)
	if err := f.inlineController.sync(t.Context(), keyOf(waits)); err != nil {
		t.Error(err)
	}
	for f.inlineController.queue.Len() > 0 {
		key, _ := f.inlineController.queue.Get()
		f.inlineController.queue.Done(key)
	}

	// As the engine shows it while it wipes.
	for i := range serving[0].Snapshot.Volumes {
		if serving[0].Snapshot.Volumes[i].Partition == wiping {
			serving[0].Snapshot.Volumes[i].Phase = disk.Wiping
		}
	}
	f.compareDisks(serving)
	if got := f.queued(); !slices.Contains(got, wiping) || !slices.Contains(got, partitions[0]) || !slices.Contains(got, sweepKey) {
		t.Errorf("looked at are %q", got)
	}
	if f.inlineController.queue.Len() == 0 || f.persistent.queue.Len() == 0 {
		t.Error("what waited is not looked at")
	}
	// No change, nothing to do.
	f.compareDisks(serving)
	if got := f.queued(); len(got) != 0 {
		t.Errorf("looked at again are %q", got)
	}
	f.disks.set(serving[0])
	f.reclaim.enqueue(partitions[0], 0)
	f.waitIdle()
	f.checkPhase(partitions[0], "")
}

// TestRun asserts that a running manager makes the volume of a pod, wipes it when the pod is gone, and ends.
func TestRun(t *testing.T) {
	f := newFixture(t)
	f.loopDisk()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		f.Run(ctx)
	}()
	pod, partition := inlinePod("a")
	f.api.put(pod)
	f.addPod(pod)
	f.waitForPhase(partition, disk.Formatted)
	f.api.set(func(s *apiServer) { delete(s.pods, "ns/a") })
	f.deletePod(pod, false)
	f.waitForPhase(partition, "")
	cancel()
	testenv.Receive(t, "the end of Run", ended)
}

// waitForPhase waits until the partition is in that phase.
func (f *fixture) waitForPhase(partition string, want disk.Phase) {
	f.t.Helper()
	testenv.Eventually(f.t, "phase of "+partition, func() error {
		if _, v, _ := f.node.findVolume(partition); v.Phase != want {
			return fmt.Errorf("it is %v, want %v", v.Phase, want)
		}
		return nil
	})
}
