package integration

import (
	"errors"
	"os"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/units"
)

// TestAgentClaimLife: a PersistentVolume gets its partition where the scheduler put it, formatted
// before a pod uses it; released, it is wiped, and only then it goes.
func TestAgentClaimLife(t *testing.T) {
	n := newNode(t, units.GiB)
	d := n.startReady()
	start := d.Free[0].Start + 128*units.MiB
	pv := n.bound("data", "256Mi", corev1.PersistentVolumeFilesystem, d, start)
	_, a := n.realized(pv)
	owner := metav1.NamespaceDefault + "/" + pv.Spec.ClaimRef.Name
	if a.Start != start || a.Length != 256*units.MiB || a.Volume != pv.Name || a.Owner != owner {
		t.Errorf("the volume is published as %+v, want %s of %s at %d", a, pv.Name, owner, start)
	}
	target, unmount := n.mounted(pv, "ext4")
	n.writeCanary(target)
	if !canaryIn(t, n.disks[0]) {
		t.Fatal("the canary cannot be found where it was written")
	}

	// An agent that restarts leaves it as it is.
	n.stop()
	n.start()
	if _, again := n.realized(pv); again != a {
		t.Errorf("after a restart the volume is %+v, was %+v", again, a)
	}
	n.keeps("a bound volume is changed", pv)

	// The claim is gone, the mount is not.
	n.phase(pv, corev1.VolumeReleased)
	n.said(pv, "VolumeNotReleased")
	n.keeps("a mounted volume is wiped", pv)
	if !n.hasCanary(target) {
		t.Error("a mounted volume of a released PersistentVolume lost its data")
	}
	unmount()
	// Without a kubelet there is no call; an agent that starts looks.
	n.stop()
	n.start()
	n.gone(pv)
	n.released()
	if canaryIn(t, n.disks[0]) {
		t.Error("the PersistentVolume is gone, and its data is still on the disk")
	}
	if !n.disks[0].zero(t, start, 256*units.MiB) {
		t.Error("the extent is published as free and does not read as zeros")
	}
}

// TestAgentClaimDeletedByHand: a PersistentVolume that a user deletes stays until its
// volume is wiped; if its finalizer is removed, the agent leaves the volume alone.
func TestAgentClaimDeletedByHand(t *testing.T) {
	n := newNode(t, units.GiB)
	d := n.startReady()
	at := func(i int64) int64 { return d.Free[0].Start + i*256*units.MiB }
	deleted := n.bound("deleted", "64Mi", corev1.PersistentVolumeFilesystem, d, at(0))
	stripped := n.bound("stripped", "64Mi", corev1.PersistentVolumeFilesystem, d, at(1))
	for _, pv := range []*corev1.PersistentVolume{deleted, stripped} {
		target, unmount := n.mounted(pv, "ext4")
		n.writeCanary(target)
		unmount()
	}

	// While its claim is bound nothing happens.
	n.remove(deleted)
	n.keeps("the volume of a bound claim is wiped", deleted)
	n.phase(deleted, corev1.VolumeReleased)
	n.gone(deleted)
	if !n.disks[0].zero(t, at(0), 64*units.MiB) {
		t.Error("the PersistentVolume is gone, its volume is not wiped")
	}

	n.edit(stripped, func() { stripped.Finalizers = nil })
	n.remove(stripped)
	n.gone(stripped)
	n.orphans(1)
	n.keeps("a volume without PersistentVolume is wiped", stripped)
	if _, a := n.realized(stripped); a.Owner != "" || a.Volume != stripped.Name {
		t.Errorf("it is published as %+v", a)
	}
	n.stop()
	n.start()
	n.orphans(1)
	n.keeps("a volume without PersistentVolume is wiped after a restart", stripped)
	target, unmount := n.mounted(stripped, "ext4")
	if !n.hasCanary(target) {
		t.Error("a volume without PersistentVolume lost its data")
	}
	unmount()

	// It is released by making its PersistentVolume again and deleting that.
	again := stripped.DeepCopy()
	again.ResourceVersion, again.UID, again.DeletionTimestamp = "", "", nil
	again.Spec.ClaimRef, again.Finalizers = nil, []string{diskv1alpha1.FinalizerVolume}
	n.provide(again, corev1.VolumeAvailable)
	n.orphans(0)
	n.keeps("an available volume is wiped", stripped)
	n.remove(again)
	n.gone(again)
	n.released()
	if canaryIn(t, n.disks[0]) {
		t.Error("a released volume's data is still on the disk")
	}
}

// TestAgentClaimRetained: with policy Retain nothing is ever wiped, and the volume can be
// bound again.
func TestAgentClaimRetained(t *testing.T) {
	n := newNode(t, units.GiB)
	d := n.startReady()
	pvc := n.pvc("data", "64Mi", corev1.PersistentVolumeFilesystem)
	pv := n.provide(n.answer(pvc, d.ID, d.Free[0].Start, func(pv *corev1.PersistentVolume) {
		pv.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimRetain
	}), corev1.VolumeBound)
	target, unmount := n.mounted(pv, "ext4")
	n.writeCanary(target)
	unmount()
	n.phase(pv, corev1.VolumeReleased)
	n.keeps("a retained volume is wiped", pv)

	// Bound again, to another claim.
	second := n.pvc("second", "64Mi", corev1.PersistentVolumeFilesystem)
	n.edit(pv, func() {
		pv.Spec.ClaimRef = &corev1.ObjectReference{Namespace: second.Namespace, Name: second.Name, UID: second.UID}
	})
	n.phase(pv, corev1.VolumeBound)
	n.published("the volume is the second claim's", func(s *diskv1alpha1.NodeDiskCapacityStatus) error {
		if _, a, _ := held(s, pv); a.Owner != second.Namespace+"/"+second.Name {
			return errors.New(a.Owner)
		}
		return nil
	})
	target, unmount = n.mounted(pv, "ext4")
	if !n.hasCanary(target) {
		t.Error("a retained volume lost its data")
	}
	unmount()

	// Deleted, it goes, and its volume stays.
	n.phase(pv, corev1.VolumeReleased)
	n.remove(pv)
	n.gone(pv)
	n.orphans(1)
	n.keeps("a retained volume is wiped", pv)
	if n.exists(pv) {
		t.Error("the PersistentVolume is back")
	}
	_ = os.Remove(target)
}
