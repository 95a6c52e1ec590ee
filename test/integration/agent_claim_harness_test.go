package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/test/objects"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// storageClass is of the node's own disks. It is never created: only its fields count here.
func (n *node) storageClass() *storagev1.StorageClass {
	class := objects.StorageClass(n.name, n.name)
	class.ReclaimPolicy = ptr.To(corev1.PersistentVolumeReclaimDelete)
	class.Parameters[diskv1alpha1.ParameterFSType] = "ext4"
	return class
}

// pvc creates a claim, as a user does.
func (n *node) pvc(name, size string, mode corev1.PersistentVolumeMode) *corev1.PersistentVolumeClaim {
	n.t.Helper()
	pvc := objects.Claim(metav1.NamespaceDefault, n.name+"-"+name, n.name, size)
	pvc.Spec.VolumeMode = &mode
	if err := n.client.Create(n.t.Context(), pvc); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { n.strip(pvc) })
	return pvc
}

// answer is the PersistentVolume with which the scheduler answers a claim; it is not
// created yet.
func (n *node) answer(pvc *corev1.PersistentVolumeClaim, diskID string, start int64, change func(*corev1.PersistentVolume)) *corev1.PersistentVolume {
	n.t.Helper()
	class := n.storageClass()
	v, err := claim.Request(pvc, class)
	if err != nil {
		n.t.Fatal(err)
	}
	pv := claim.NewVolume(pvc, class, v, n.name, diskv1alpha1.Place{Disk: diskID, Extent: diskv1alpha1.Extent{Start: start, Length: v.Request.Size}})
	if change != nil {
		change(pv)
	}
	return pv
}

// provide creates a PersistentVolume and does what the controller of PersistentVolumes would do:
// the phase, and nothing protects it but us.
func (n *node) provide(pv *corev1.PersistentVolume, phase corev1.PersistentVolumePhase) *corev1.PersistentVolume {
	n.t.Helper()
	if err := n.client.Create(n.t.Context(), pv); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { n.strip(pv) })
	n.edit(pv, func() {
		pv.Finalizers = slices.DeleteFunc(pv.Finalizers, func(f string) bool { return f == "kubernetes.io/pv-protection" })
	})
	n.phase(pv, phase)
	return pv
}

// bound is a claim with its PersistentVolume at that place of the first disk.
func (n *node) bound(name, size string, mode corev1.PersistentVolumeMode, d *diskv1alpha1.Disk, start int64) *corev1.PersistentVolume {
	n.t.Helper()
	return n.provide(n.answer(n.pvc(name, size, mode), d.ID, start, nil), corev1.VolumeBound)
}

// edit reads the object, changes and writes it.
func (n *node) edit(object client.Object, change func()) {
	n.t.Helper()
	n.eventually("edit "+object.GetName(), func() error {
		if err := n.client.Get(n.t.Context(), client.ObjectKeyFromObject(object), object); err != nil {
			return err
		}
		change()
		return n.client.Update(n.t.Context(), object)
	})
}

func (n *node) phase(pv *corev1.PersistentVolume, phase corev1.PersistentVolumePhase) {
	n.t.Helper()
	n.eventually("set the phase of "+pv.Name, func() error {
		if err := n.client.Get(n.t.Context(), client.ObjectKeyFromObject(pv), pv); err != nil {
			return err
		}
		pv.Status.Phase = phase
		return n.client.Status().Update(n.t.Context(), pv)
	})
}

// strip removes an object with its finalizers.
func (n *node) strip(object client.Object) {
	for {
		err := n.client.Get(context.Background(), client.ObjectKeyFromObject(object), object)
		if apierrors.IsNotFound(err) {
			return
		}
		if err == nil && len(object.GetFinalizers()) > 0 {
			object.SetFinalizers(nil)
			err = n.client.Update(context.Background(), object)
		}
		if err == nil && object.GetDeletionTimestamp() == nil {
			err = n.client.Delete(context.Background(), object)
		}
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			n.t.Errorf("take %T %s away: %v", object, object.GetName(), err)
			return
		}
	}
}

// remove deletes an object as a user does.
func (n *node) remove(object client.Object) {
	n.t.Helper()
	if err := n.client.Delete(n.t.Context(), object); err != nil {
		n.t.Fatal(err)
	}
}

// gone waits until the PersistentVolume is gone.
func (n *node) gone(pv *corev1.PersistentVolume) {
	n.t.Helper()
	n.eventually("PersistentVolume "+pv.Name+" is gone", func() error {
		err := n.client.Get(n.t.Context(), client.ObjectKeyFromObject(pv), &corev1.PersistentVolume{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return errors.Join(err, errors.New("it is there"))
	})
}

func (n *node) exists(pv *corev1.PersistentVolume) bool {
	return n.client.Get(n.t.Context(), client.ObjectKeyFromObject(pv), &corev1.PersistentVolume{}) == nil
}

// held finds the volume of a PersistentVolume among the published.
func held(s *diskv1alpha1.NodeDiskCapacityStatus, pv *corev1.PersistentVolume) (diskv1alpha1.Disk, diskv1alpha1.Allocation, bool) {
	partition := diskv1alpha1.PartitionID(pv.Spec.CSI.VolumeHandle)
	for _, d := range s.Disks {
		for _, a := range d.Allocations {
			if a.Partition == partition {
				return d, a, true
			}
		}
	}
	return diskv1alpha1.Disk{}, diskv1alpha1.Allocation{}, false
}

// realized waits until the volume is published as formatted, and as its claim's.
func (n *node) realized(pv *corev1.PersistentVolume) (disk diskv1alpha1.Disk, a diskv1alpha1.Allocation) {
	n.t.Helper()
	n.published("volume "+pv.Name+" is Formatted", func(s *diskv1alpha1.NodeDiskCapacityStatus) error {
		var ok bool
		if disk, a, ok = held(s, pv); !ok || a.Phase != diskv1alpha1.PhaseFormatted {
			return fmt.Errorf("allocation is %+v", a)
		}
		return nil
	})
	return disk, a
}

// keeps fails the test if the volume's phase or place changes within a second.
func (n *node) keeps(what string, pv *corev1.PersistentVolume) {
	n.t.Helper()
	_, before := n.realized(pv)
	n.never(what, 1e9, func() error {
		ndc, err := n.ndc()
		if err != nil {
			return err
		}
		if _, now, ok := held(&ndc.Status, pv); ok && now.Extent == before.Extent && now.Phase == before.Phase {
			return errors.New("it is not")
		}
		return nil
	})
}

// device is the block device of the volume.
func (n *node) device(pv *corev1.PersistentVolume) string {
	n.t.Helper()
	d, a := n.realized(pv)
	starts, err := filepath.Glob("/sys/block/" + d.Device + "/" + d.Device + "p*/start")
	if err != nil {
		n.t.Fatal(err)
	}
	for _, file := range starts {
		start, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		if sectors, err := strconv.ParseInt(strings.TrimSpace(string(start)), 10, 64); err == nil && sectors*512 == a.Start {
			return "/dev/" + filepath.Base(filepath.Dir(file))
		}
	}
	n.t.Fatalf("volume %s has no device", pv.Name)
	return ""
}

// mounted mounts the volume until the test ends or unmount is called.
func (n *node) mounted(pv *corev1.PersistentVolume, fsType string) (target string, unmount func()) {
	n.t.Helper()
	target = filepath.Join(n.dir, "mounts", pv.Name)
	if err := os.MkdirAll(target, 0o700); err != nil {
		n.t.Fatal(err)
	}
	testenv.Run(n.t, "mount", "-t", fsType, n.device(pv), target)
	done := false
	unmount = func() {
		if !done {
			done = true
			testenv.Run(n.t, "umount", target)
		}
	}
	n.t.Cleanup(unmount)
	return target, unmount
}

// data is what volumes are filled with; it must not be found when they are gone.
const canary = "a canary that only this volume may hold"

func (n *node) writeCanary(target string) {
	n.t.Helper()
	if err := os.WriteFile(filepath.Join(target, "canary"), bytes.Repeat([]byte(canary), 1000), 0o600); err != nil {
		n.t.Fatal(err)
	}
	testenv.Run(n.t, "sync", "-f", target)
}

func (n *node) hasCanary(target string) bool {
	b, err := os.ReadFile(filepath.Join(target, "canary"))
	return err == nil && bytes.HasPrefix(b, []byte(canary))
}

// canaryIn reports whether the canary is anywhere on the disk. Holes of the file behind it
// are passed over, which is most of it.
func canaryIn(t *testing.T, d *testDisk) bool {
	t.Helper()
	const seekData, seekHole = 3, 4
	testenv.Run(t, "blockdev", "--flushbufs", d.path)
	testenv.Run(t, "sync", d.image)
	f, err := os.Open(d.image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	buffer := make([]byte, units.MiB)
	for at := int64(0); ; {
		begin, err := f.Seek(at, seekData)
		if errors.Is(err, syscall.ENXIO) {
			return false
		}
		end, endErr := f.Seek(begin, seekHole)
		if err := errors.Join(err, endErr); err != nil {
			t.Fatal(err)
		}
		// Each piece begins with the end of the one before: a canary may lie across.
		for at = begin; at < end; at += units.MiB - int64(len(canary)) {
			read, err := f.ReadAt(buffer[:min(units.MiB, end-at)], at)
			if err != nil && !errors.Is(err, io.EOF) {
				t.Fatal(err)
			}
			if bytes.Contains(buffer[:read], []byte(canary)) {
				return true
			}
		}
		at = end
	}
}

// said waits for an event about the object and returns its message.
func (n *node) said(object client.Object, reason string) string {
	n.t.Helper()
	var message string
	n.eventually("event "+reason+" of "+object.GetName(), func() error {
		events := &corev1.EventList{}
		if err := n.client.List(n.t.Context(), events, client.InNamespace(metav1.NamespaceDefault)); err != nil {
			return err
		}
		var others []string
		for _, e := range events.Items {
			if e.InvolvedObject.UID != object.GetUID() {
				continue
			}
			if e.Reason == reason {
				message = e.Message
				return nil
			}
			others = append(others, e.Reason+": "+e.Message)
		}
		return fmt.Errorf("there is none, but %q", others)
	})
	return message
}

// orphans waits until the condition says that many volumes have no PersistentVolume.
func (n *node) orphans(count int) {
	n.t.Helper()
	n.published(fmt.Sprintf("%d volumes are orphaned", count), func(s *diskv1alpha1.NodeDiskCapacityStatus) error {
		for _, c := range s.Conditions {
			if c.Type == diskv1alpha1.ConditionOrphanedVolumes && (c.Status == metav1.ConditionTrue) == (count > 0) &&
				(count == 0 || strings.HasPrefix(c.Message, strconv.Itoa(count)+" ")) {
				return nil
			}
		}
		return fmt.Errorf("conditions are %+v", s.Conditions)
	})
}

// stage asks for a volume as the kubelet does, before it mounts it into a pod.
func (n *node) stage(pv *corev1.PersistentVolume) error {
	n.t.Helper()
	target := n.staging(pv)
	if err := os.MkdirAll(target, 0o700); err != nil {
		n.t.Fatal(err)
	}
	capability := &csispec.VolumeCapability{
		AccessMode: &csispec.VolumeCapability_AccessMode{Mode: csispec.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER},
		AccessType: &csispec.VolumeCapability_Mount{Mount: &csispec.VolumeCapability_MountVolume{FsType: pv.Spec.CSI.FSType}},
	}
	if claim.IsBlock(pv.Spec.VolumeMode) {
		capability.AccessType = &csispec.VolumeCapability_Block{Block: &csispec.VolumeCapability_BlockVolume{}}
	}
	_, err := n.csi().NodeStageVolume(n.t.Context(), &csispec.NodeStageVolumeRequest{
		VolumeId: pv.Spec.CSI.VolumeHandle, StagingTargetPath: target, VolumeCapability: capability, VolumeContext: pv.Spec.CSI.VolumeAttributes,
	})
	return err
}

func (n *node) unstage(pv *corev1.PersistentVolume) {
	n.t.Helper()
	_, err := n.csi().NodeUnstageVolume(n.t.Context(), &csispec.NodeUnstageVolumeRequest{
		VolumeId: pv.Spec.CSI.VolumeHandle, StagingTargetPath: n.staging(pv),
	})
	if err != nil {
		n.t.Fatalf("unstage: %v", err)
	}
}

func (n *node) staging(pv *corev1.PersistentVolume) string {
	return filepath.Join(n.dir, "staging", pv.Spec.CSI.VolumeHandle)
}
