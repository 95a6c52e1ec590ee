package volumes

import (
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/discovery"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// loopDisk is a disk in service of 256 MiB and class ssd, on a loop device that the test's end removes.
func (f *fixture) loopDisk() discovery.Disk {
	t := f.t
	t.Helper()
	testenv.NeedProgram(t, "blkid", "wipefs", "mkfs.ext4")
	path := testenv.PartitionedLoop(t, 256*units.MiB)
	if _, err := disk.Initialize(t.Context(), path, disk.Owner{}); err != nil {
		t.Fatal(err)
	}
	if disk.CheckMapper() == nil {
		testenv.NeedProgram(t, "dmsetup")
		t.Cleanup(func() { removeMapped(t) })
	}
	return f.openDisk(path)
}

// removeMapped removes the linear devices of volumes, which keep the loop device below them.
func removeMapped(t *testing.T) {
	t.Helper()
	out, err := exec.Command("dmsetup", "info", "--columns", "--noheadings", "--options", "name,uuid", "--separator", " ").CombinedOutput()
	if err != nil {
		t.Errorf("dmsetup info: %v: %s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		name, uuid, _ := strings.Cut(strings.TrimSpace(line), " ")
		if !strings.HasPrefix(uuid, "BERTHVOLUME-") {
			continue
		}
		if out, err := exec.Command("dmsetup", "remove", "--retry", name).CombinedOutput(); err != nil {
			t.Errorf("dmsetup remove %s: %v: %s", name, err, out)
		}
	}
}

// openDisk takes the disk on a device into service.
func (f *fixture) openDisk(path string) discovery.Disk {
	f.t.Helper()
	engine, err := disk.Open(f.t.Context(), path, disk.Options{})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = engine.Close() })
	d := discovery.Disk{Class: "ssd", Engine: engine, Snapshot: engine.Snapshot(), Device: discovery.Device{Name: filepath.Base(path), Path: path}}
	f.disks.set(d)
	return d
}

// inlinePod is a pod of node n with one volume of 16 MiB. It returns the volume's partition, too.
func inlinePod(name string) (pod *corev1.Pod, partition string) {
	pod, _ = podWith("", nil)
	pod.Name, pod.UID, pod.Spec.NodeName, pod.Status.Phase = name, types.UID(name), "n", corev1.PodRunning
	pod.Spec.Volumes[0].CSI.VolumeAttributes = map[string]string{diskv1alpha1.AttributeSize: "16Mi", diskv1alpha1.AttributeClass: "ssd"}
	return pod, diskv1alpha1.PartitionID(diskv1alpha1.InlineVolumeID(pod.UID, "data"))
}

// makePods puts the pods on the API server and the watch, and waits until their volumes are formatted.
func (f *fixture) makePods(names ...string) (pods []*corev1.Pod, partitions []string) {
	f.t.Helper()
	for _, name := range names {
		pod, partition := inlinePod(name)
		pods, partitions = append(pods, pod), append(partitions, partition)
		f.api.put(pod)
		f.addPod(pod)
		if err := f.inlineController.sync(f.t.Context(), keyOf(pod)); err != nil {
			f.t.Fatal(err)
		}
		f.checkPhase(partition, disk.Formatted)
	}
	return pods, partitions
}

// dropPods removes the pods from the API server and the watch, without showing their end.
func (f *fixture) dropPods(pods ...*corev1.Pod) {
	f.t.Helper()
	for _, pod := range pods {
		f.api.set(func(s *apiServer) { delete(s.pods, pod.Namespace+"/"+pod.Name) })
		f.deletePod(pod, true)
	}
}

// checkPhase fails the test unless the partition is in that phase; empty means that it is gone.
func (f *fixture) checkPhase(partition string, want disk.Phase) {
	f.t.Helper()
	_, v, _ := f.node.findVolume(partition)
	if v.Phase != want {
		f.t.Fatalf("partition %s is in phase %q, want %q; events: %q", partition, v.Phase, want, f.events.with())
	}
}

// boundVolume is a PersistentVolume of 16 MiB whose volume is on the disk and formatted. number, one digit,
// distinguishes it from others.
func (f *fixture) boundVolume(d discovery.Disk, number int, change func(*corev1.PersistentVolume)) (pv *corev1.PersistentVolume, partition string) {
	f.t.Helper()
	uid := strings.Replace(claimUID, "aaaaaaaa", strings.Repeat(strconv.Itoa(number), 8), 1)
	pv = volumeAt(f.t, 100+int64(number)*20, func(pv *corev1.PersistentVolume) {
		pv.Name, pv.UID, pv.Spec.CSI.VolumeHandle = "pvc-"+uid, types.UID(uid), "pvc-"+uid
		pv.Spec.CSI.VolumeAttributes[diskv1alpha1.AttributeDisk] = d.ID()
		pv.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimDelete
		pv.Finalizers = []string{diskv1alpha1.FinalizerVolume}
	})
	f.api.putVolumes(pv)
	f.addVolume(pv)
	if err := f.persistent.sync(f.t.Context(), pv.Name); err != nil {
		f.t.Fatal(err)
	}
	partition = diskv1alpha1.PartitionID(pv.Spec.CSI.VolumeHandle)
	f.checkPhase(partition, disk.Formatted)
	if change != nil {
		pv = pv.DeepCopy()
		change(pv)
		f.api.putVolumes(pv)
		f.addVolume(pv)
	}
	return pv, partition
}

// mount mounts the volume of a partition until the test ends or the returned function is called.
func (f *fixture) mount(partition string) (unmount func()) {
	f.t.Helper()
	_, v, _ := f.node.findVolume(partition)
	target := f.t.TempDir()
	if err := syscall.Mount(v.Device, target, "ext4", 0, ""); err != nil {
		f.t.Fatalf("mount %s: %v", v.Device, err)
	}
	mounted := true
	unmount = func() {
		if mounted {
			if err := syscall.Unmount(target, 0); err != nil {
				f.t.Error(err)
			}
		}
		mounted = false
	}
	f.t.Cleanup(unmount)
	return unmount
}
