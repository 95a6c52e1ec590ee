package integration

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/controller-runtime/pkg/client"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// TestAgentClaimPlaces: what happens when the recorded place is not to be had.
func TestAgentClaimPlaces(t *testing.T) {
	n := newNode(t, units.GiB, units.GiB)
	n.start()
	status := n.ready()
	first, second := of(&status, n.disks[0]), of(&status, n.disks[1])
	start := first.Free[0].Start
	taken := n.bound("first", "512Mi", corev1.PersistentVolumeFilesystem, first, start)
	n.realized(taken)

	// The extent is taken: another one of the node.
	moved := n.bound("moved", "600Mi", corev1.PersistentVolumeFilesystem, first, start+128*units.MiB)
	d, a := n.realized(moved)
	if a.Length != 600*units.MiB || d.Device != n.disks[1].name() {
		t.Errorf("the volume is at %+v of %s", a, d.Device)
	}
	for _, object := range []string{n.said(moved, "VolumeReplaced"), n.said(n.claimOf(moved), "VolumeReplaced")} {
		if !strings.Contains(object, "not free") {
			t.Errorf("event says %q", object)
		}
	}

	// Nothing fits: it waits until something does.
	large := n.bound("large", "900Mi", corev1.PersistentVolumeFilesystem, second, second.Free[0].Start)
	n.said(large, "NoRoomForVolume")
	if err := n.stage(large); err == nil || !strings.Contains(err.Error(), "ResourceExhausted") {
		t.Errorf("stage says %v", err)
	}
	n.phase(moved, corev1.VolumeReleased)
	n.gone(moved)
	n.phase(taken, corev1.VolumeReleased)
	n.gone(taken)
	n.realized(large)

	// What is recorded and not there yet is not given to a pod whose volume the node places itself.
	n.phase(large, corev1.VolumeReleased)
	n.gone(large)
	n.released()
	n.stop()
	promised := n.bound("promised", "400Mi", corev1.PersistentVolumeFilesystem, first, start)
	pod := n.pod("unrecorded", "", nil, n.volumeOf("data", "400Mi", ""))
	n.start()
	if d, a := n.realized(promised); d.Device != n.disks[0].name() || a.Start != start {
		t.Errorf("the recorded volume is at %d of %s", a.Start, d.Device)
	}
	n.formatted(pod, "data")
}

// TestAgentClaimDiskMissing: while the recorded disk is away nothing is made elsewhere, and
// nothing goes.
func TestAgentClaimDiskMissing(t *testing.T) {
	n := newNode(t, units.GiB, units.GiB)
	d := n.startReady()
	pv := n.bound("data", "64Mi", corev1.PersistentVolumeFilesystem, d, d.Free[0].Start)
	n.realized(pv)
	target, unmount := n.mounted(pv, "ext4")
	n.writeCanary(target)
	unmount()
	n.sys.hide(t, n.disks[0], true)
	n.published("the disk is out of service", func(s *diskv1alpha1.NodeDiskCapacityStatus) error {
		if of(s, n.disks[0]).State != diskv1alpha1.DiskFailed {
			return errors.New("it is not")
		}
		return nil
	})
	late := n.bound("late", "64Mi", corev1.PersistentVolumeFilesystem, d, d.Free[0].Start+128*units.MiB)
	if said := n.said(late, "VolumeDiskMissing"); !strings.Contains(said, d.ID) {
		t.Errorf("event says %q", said)
	}
	n.said(n.claimOf(late), "VolumeDiskMissing")
	if err := n.stage(late); err == nil {
		t.Error("a volume of a missing disk is staged")
	}
	// An agent that knows nothing of the disk but what the PersistentVolume says.
	n.stop()
	ndc, err := n.ndc()
	if err != nil {
		t.Fatal(err)
	}
	n.remove(ndc)
	n.start()
	n.phase(pv, corev1.VolumeReleased)
	n.said(pv, "VolumeDiskMissing")
	n.never("a PersistentVolume goes while its disk is away", 1e9, func() error {
		if n.exists(pv) {
			return errors.New("it does not")
		}
		return nil
	})
	n.sys.hide(t, n.disks[0], false)
	n.gone(pv)
	n.realized(late)
	if canaryIn(t, n.disks[0]) {
		t.Error("the volume is gone, its data is not")
	}
}

// TestAgentClaimBlock: a raw block volume begins as zeros, and never gets a file system.
func TestAgentClaimBlock(t *testing.T) {
	n := newNode(t, units.GiB)
	d := n.startReady()
	pv := n.bound("raw", "64Mi", corev1.PersistentVolumeBlock, d, d.Free[0].Start)
	_, a := n.realized(pv)
	if !n.disks[0].zero(t, a.Start, a.Length) {
		t.Error("a new raw block volume is not zero")
	}
	if err := n.stage(pv); err != nil {
		t.Fatal(err)
	}
	device := n.device(pv)
	testenv.WriteDevice(t, device, bytes.Repeat([]byte(canary), 1000))
	testenv.Run(t, "blockdev", "--flushbufs", device)
	n.stop()
	n.start()
	if err := n.stage(pv); err != nil {
		t.Fatal(err)
	}
	if !canaryIn(t, n.disks[0]) {
		t.Error("a raw block volume lost its data")
	}
	// It is not one with a file system, whatever is asked.
	asked := pv.DeepCopy()
	asked.Spec.VolumeMode = nil
	if err := n.stage(asked); err == nil || !strings.Contains(err.Error(), "raw block volume") {
		t.Errorf("staged as a file system: %v", err)
	}
	n.unstage(pv)
	n.phase(pv, corev1.VolumeReleased)
	n.gone(pv)
	if canaryIn(t, n.disks[0]) {
		t.Error("the volume is gone, its data is not")
	}
}

// TestAgentClaimGrows: what the PersistentVolume's capacity grants, the partition gets, or the
// agent says how much could be had.
func TestAgentClaimGrows(t *testing.T) {
	n := newNode(t, units.GiB)
	d := n.startReady()
	start := d.Free[0].Start
	pv := n.bound("data", "64Mi", corev1.PersistentVolumeFilesystem, d, start)
	behind := n.bound("behind", "64Mi", corev1.PersistentVolumeFilesystem, d, start+256*units.MiB)
	n.realized(pv)
	n.realized(behind)
	target, _ := n.mounted(pv, "ext4")
	n.writeCanary(target)

	n.grant(pv, "128Mi")
	n.hasLength(pv, 128*units.MiB)
	if !n.hasCanary(target) {
		t.Error("a volume that grew lost its data")
	}
	n.stop()
	n.grant(pv, "200Mi")
	n.start()
	n.hasLength(pv, 200*units.MiB)

	n.grant(pv, "300Mi")
	if said := n.said(pv, "VolumeNotGrown"); !strings.Contains(said, strconv.FormatInt(256*units.MiB, 10)) {
		t.Errorf("event says %q", said)
	}
	n.keeps("a volume grows into its neighbor", pv)
	// The neighbor goes: there is room.
	n.phase(behind, corev1.VolumeReleased)
	n.gone(behind)
	n.hasLength(pv, 300*units.MiB)
}

func (n *node) grant(pv *corev1.PersistentVolume, size string) {
	n.t.Helper()
	n.edit(pv, func() { pv.Spec.Capacity[corev1.ResourceStorage] = resource.MustParse(size) })
}

func (n *node) hasLength(pv *corev1.PersistentVolume, length int64) {
	n.t.Helper()
	n.published(fmt.Sprintf("the volume has %d bytes", length), func(s *diskv1alpha1.NodeDiskCapacityStatus) error {
		if _, a, _ := held(s, pv); a.Length != length {
			return fmt.Errorf("it has %d", a.Length)
		}
		return nil
	})
	size := strings.TrimSpace(testenv.Run(n.t, "blockdev", "--getsize64", n.device(pv)))
	if size != strconv.FormatInt(length, 10) {
		n.t.Errorf("the kernel knows %s bytes, want %d", size, length)
	}
}

// claimOf is the claim of a PersistentVolume, to ask for events about it.
func (n *node) claimOf(pv *corev1.PersistentVolume) *corev1.PersistentVolumeClaim {
	pvc := &corev1.PersistentVolumeClaim{}
	pvc.Name, pvc.UID = pv.Spec.ClaimRef.Name, pv.Spec.ClaimRef.UID
	return pvc
}

// TestAgentClaimDamaged: a volume that was formatted is never formatted again.
func TestAgentClaimDamaged(t *testing.T) {
	n := newNode(t, units.GiB)
	d := n.startReady()
	pv := n.bound("data", "64Mi", corev1.PersistentVolumeFilesystem, d, d.Free[0].Start)
	if err := n.stage(pv); err != nil {
		t.Fatal(err)
	}
	n.writeCanary(n.staging(pv))
	n.unstage(pv)
	device := n.device(pv)
	f, err := os.OpenFile(device, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	// The superblock of ext4, and not its data.
	if _, err := f.WriteAt(make([]byte, 1024), 1024); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	testenv.Run(t, "blockdev", "--flushbufs", device)
	for range 2 {
		if err := n.stage(pv); err == nil || !strings.Contains(err.Error(), "not formatted again") {
			t.Errorf("a damaged volume is staged: %v", err)
		}
		n.stop()
		n.start()
	}
	if !canaryIn(t, n.disks[0]) {
		t.Error("a damaged volume lost what was left of it")
	}
	if entries, err := os.ReadDir(filepath.Dir(n.staging(pv))); err != nil || len(entries) > 1 {
		t.Errorf("%d staging paths, %v", len(entries), err)
	}
}

// TestAgentClaimVanished: a volume whose partition a tool took away is not made again over
// what is left of it.
func TestAgentClaimVanished(t *testing.T) {
	n := newNode(t, units.GiB)
	d := n.startReady()
	pv := n.bound("data", "64Mi", corev1.PersistentVolumeFilesystem, d, d.Free[0].Start)
	target, unmount := n.mounted(pv, "ext4")
	n.writeCanary(target)
	unmount()
	n.stop()
	n.disks[0].forget(t)
	backup := testenv.Run(t, "sfdisk", "--dump", n.disks[0].path)
	testenv.Run(t, "sfdisk", "--delete", "--no-reread", "--no-tell-kernel", n.disks[0].path, "1")
	n.start()
	n.said(pv, "VolumeVanished")
	if err := n.stage(pv); err == nil || !strings.Contains(err.Error(), "nothing is made in its place") {
		t.Errorf("stage says %v", err)
	}
	if !canaryIn(t, n.disks[0]) {
		t.Error("what was left of the volume is gone")
	}
	// The entry is put back.
	n.stop()
	n.disks[0].forget(t)
	restore := exec.Command("sfdisk", "--force", "--no-reread", "--no-tell-kernel", n.disks[0].path)
	restore.Stdin = strings.NewReader(backup)
	if out, err := restore.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	n.start()
	target, unmount = n.mounted(pv, "ext4")
	if !n.hasCanary(target) {
		t.Error("the data is not there")
	}
	unmount()
}

// TestAgentClaimOnAnotherDisk: a volume that the node put on another disk than the recorded
// one is waited for there, also by an agent that knows nothing of that disk.
func TestAgentClaimOnAnotherDisk(t *testing.T) {
	n := newNode(t, units.GiB, 2*units.GiB)
	n.start()
	status := n.ready()
	first := of(&status, n.disks[0])
	n.realized(n.bound("large", "1000Mi", corev1.PersistentVolumeFilesystem, first, first.Free[0].Start))
	pv := n.bound("moved", "64Mi", corev1.PersistentVolumeFilesystem, first, first.Free[0].Start)
	d, _ := n.realized(pv)
	if d.Device != n.disks[1].name() {
		t.Fatalf("the volume is on %s", d.Device)
	}
	n.eventually("that is noted", func() error {
		if err := n.client.Get(t.Context(), client.ObjectKeyFromObject(pv), pv); err != nil {
			return err
		}
		if pv.Annotations[diskv1alpha1.AnnotationMovedTo] != d.ID {
			return fmt.Errorf("annotations are %v", pv.Annotations)
		}
		return nil
	})
	n.stop()
	ndc, err := n.ndc()
	if err != nil {
		t.Fatal(err)
	}
	n.remove(ndc)
	n.sys.hide(t, n.disks[1], true)
	n.start()
	if said := n.said(pv, "VolumeDiskMissing"); !strings.Contains(said, d.ID) {
		t.Errorf("event says %q", said)
	}
	if err := n.stage(pv); err == nil {
		t.Error("a volume of a missing disk is staged")
	}
	n.sys.hide(t, n.disks[1], false)
	n.realized(pv)
	if err := n.stage(pv); err != nil {
		t.Error(err)
	}
	n.unstage(pv)
}

// TestAgentClaimTwice: of a volume that two disks hold neither is touched.
func TestAgentClaimTwice(t *testing.T) {
	n := newNode(t, units.GiB, units.GiB)
	n.start()
	status := n.ready()
	n.stop()
	d := of(&status, n.disks[0])
	pv := n.bound("data", "64Mi", corev1.PersistentVolumeFilesystem, d, d.Free[0].Start)
	for _, d := range n.disks {
		n.make(d, pv, of(&status, d).Free[0].Start, 64*units.MiB, disk.Formatted)
	}
	n.start()
	n.said(pv, "VolumeMismatch")
	if err := n.stage(pv); err == nil || !strings.Contains(err.Error(), "one must be a copy") {
		t.Errorf("stage says %v", err)
	}
	both := func(s *diskv1alpha1.NodeDiskCapacityStatus) error {
		if s.Summary.Volumes != 2 {
			return fmt.Errorf("%d are there", s.Summary.Volumes)
		}
		return nil
	}
	n.published("both are there", both)
	n.phase(pv, corev1.VolumeReleased)
	n.said(pv, "VolumeNotReleased")
	n.never("one of them is wiped", 500*time.Millisecond, func() error {
		ndc, err := n.ndc()
		if err != nil {
			return err
		}
		if both(&ndc.Status) == nil {
			return errors.New("none is")
		}
		return nil
	})
	// The copy is removed, as an operator does it.
	n.stop()
	n.disks[1].forget(t)
	testenv.Run(t, "sfdisk", "--delete", "--no-reread", "--no-tell-kernel", n.disks[1].path, "1")
	n.start()
	n.gone(pv)
	n.released()
}
