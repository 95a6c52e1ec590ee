package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/objects"
)

// StorageClasses of the shared cluster, beside ssd and hdd, which have the names of their DiskClasses.
const (
	retained = "retained"
	static   = "static"
)

func storageClasses() []*storagev1.StorageClass {
	keep := storageClass(retained, ssd, v1alpha1.FSTypeXFS)
	policy := corev1.PersistentVolumeReclaimRetain
	keep.ReclaimPolicy = &policy
	other := storageClass(static, "", "")
	other.Provisioner, other.Parameters, other.AllowVolumeExpansion = "kubernetes.io/no-provisioner", nil, nil
	return []*storagev1.StorageClass{storageClass(ssd, ssd, v1alpha1.FSTypeXFS), storageClass(hdd, hdd, v1alpha1.FSTypeExt4), keep, other}
}

func storageClass(name, class, fsType string) *storagev1.StorageClass {
	c := objects.StorageClass(name, class)
	c.AllowVolumeExpansion = ptr.To(true)
	c.Parameters[v1alpha1.ParameterFSType] = fsType
	return c
}

// claim is a claim of a StorageClass. It is not created yet.
func (e *tenant) claim(name, class, size string) *corev1.PersistentVolumeClaim {
	return objects.Claim(e.namespace, name, class, size)
}

// blockClaim is a claim of a device.
func (e *tenant) blockClaim(name, class, size string) *corev1.PersistentVolumeClaim {
	pvc, mode := e.claim(name, class, size), corev1.PersistentVolumeBlock
	pvc.Spec.VolumeMode = &mode
	return pvc
}

// claimed is a volume of a pod that uses a claim.
func claimed(name string, pvc *corev1.PersistentVolumeClaim) corev1.Volume {
	return objects.ClaimVolume(name, pvc.Name)
}

// make creates any objects.
func (e *tenant) make(objects ...client.Object) {
	e.t.Helper()
	for _, object := range objects {
		if err := e.client.Create(e.t.Context(), object); err != nil {
			e.t.Fatalf("create %s: %v", object.GetName(), err)
		}
	}
}

// unmake deletes any objects, and does not wait for their end.
func (e *tenant) unmake(objects ...client.Object) {
	e.t.Helper()
	for _, object := range objects {
		if err := e.client.Delete(e.t.Context(), object); err != nil {
			e.t.Fatalf("delete %s: %v", object.GetName(), err)
		}
	}
}

// boundTo waits until the claim is bound, refreshes it, and returns its PersistentVolume. It asserts that the
// PersistentVolume is as Berth makes it.
func (e *tenant) boundTo(pvc *corev1.PersistentVolumeClaim) *corev1.PersistentVolume {
	e.t.Helper()
	pv := &corev1.PersistentVolume{}
	e.eventually("claim "+pvc.Name+" is bound", func(ctx context.Context) error {
		if err := e.client.Get(ctx, client.ObjectKeyFromObject(pvc), pvc); err != nil {
			return err
		}
		if pvc.Status.Phase != corev1.ClaimBound {
			return fmt.Errorf("it is %s", pvc.Status.Phase)
		}
		if err := e.client.Get(ctx, client.ObjectKey{Name: pvc.Spec.VolumeName}, pv); err != nil {
			return err
		}
		if pv.Status.Phase != corev1.VolumeBound {
			return fmt.Errorf("its volume is %s", pv.Status.Phase)
		}
		return nil
	})
	if pv.Spec.ClaimRef == nil || pv.Spec.ClaimRef.UID != pvc.UID || pv.Spec.CSI == nil || pv.Spec.CSI.Driver != v1alpha1.DriverName {
		e.t.Errorf("the volume of claim %s is %+v", pvc.Name, pv.Spec)
	}
	capacity, size := pv.Spec.Capacity[corev1.ResourceStorage], pvc.Spec.Resources.Requests[corev1.ResourceStorage]
	if capacity.Cmp(size) < 0 {
		e.t.Errorf("claim %s asked for %s and has a volume of %s", pvc.Name, size.String(), capacity.String())
	}
	return pv
}

// fill makes the claim and its pod, waits until the pod runs, and writes a canary into its volume. It returns the
// PersistentVolume, the place of the volume, and the canary.
func (e *tenant) fill(pod *corev1.Pod, pvc *corev1.PersistentVolumeClaim) (pv *corev1.PersistentVolume, p place, mark string) {
	e.t.Helper()
	e.make(pvc)
	e.create(pod)
	e.ready(pod)
	pv = e.boundTo(pvc)
	p, mark = e.findVolume(pv), canary(e)
	e.write(pod, mark)
	return pv, p, mark
}

// findVolume waits until the partition of a PersistentVolume is published as ready, and asserts that it is where the
// scheduler put it.
func (e *tenant) findVolume(pv *corev1.PersistentVolume) place {
	e.t.Helper()
	id := pv.Spec.CSI.VolumeHandle
	p := e.findPartition("volume "+pv.Name, pv.Labels[v1alpha1.LabelNode], v1alpha1.PartitionID(id))
	recorded, err := v1alpha1.ParsePlace(pv.Spec.CSI.VolumeAttributes)
	if err != nil {
		e.t.Fatal(err)
	}
	if recorded.Disk != p.disk.ID || recorded.Start != p.allocation.Start {
		e.t.Errorf("volume %s: the scheduler recorded %+v, the node published %+v of disk %s", pv.Name, recorded, p.allocation, p.disk.ID)
	}
	if ref := pv.Spec.ClaimRef; p.allocation.Volume != id || p.allocation.Owner != ref.Namespace+"/"+ref.Name {
		e.t.Errorf("volume %s is published as %+v", pv.Name, p.allocation)
	}
	return p
}

// wiped waits until the volume of a deleted claim is gone. The PersistentVolume is removed last, so from then on
// nothing of the volume is left on the disk, which wiped asserts.
func (e *tenant) wiped(pv *corev1.PersistentVolume, p place, marks ...string) {
	e.t.Helper()
	e.eventually("volume "+pv.Name+" is gone", func(ctx context.Context) error {
		now := &corev1.PersistentVolume{}
		err := e.client.Get(ctx, client.ObjectKey{Name: pv.Name}, now)
		if !apierrors.IsNotFound(err) {
			return fmt.Errorf("it is %s (%w)", now.Status.Phase, err)
		}
		return nil
	})
	if at, found := firstNonZero(e.t, p.machine.File, p.allocation.Extent); found {
		e.t.Errorf("volume %s is gone, and there is a byte at %d of %v that is not zero", pv.Name, at, p)
	}
	e.isFree(p)
	for _, mark := range marks {
		if contains(e.t, p.machine.File, whole(p.machine), mark) {
			e.t.Errorf("%q is still on %s", mark, p.machine.Path)
		}
	}
}

// noVolumes returns nil when no claim and no PersistentVolume of the tenant is left. It has volumes reclaimed that a
// test has retained.
func (e *tenant) noVolumes(ctx context.Context) error {
	claims, volumes := &corev1.PersistentVolumeClaimList{}, &corev1.PersistentVolumeList{}
	if err := errors.Join(e.client.List(ctx, claims, client.InNamespace(e.namespace)), e.client.List(ctx, volumes)); err != nil {
		return err
	}
	var left []string
	for _, pvc := range claims.Items {
		left = append(left, "claim "+pvc.Name)
	}
	for i := range volumes.Items {
		pv := &volumes.Items[i]
		if pv.Spec.ClaimRef == nil || pv.Spec.ClaimRef.Namespace != e.namespace {
			continue
		}
		left = append(left, fmt.Sprintf("volume %s (%s)", pv.Name, pv.Status.Phase))
		if pv.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimDelete {
			e.reclaim(ctx, pv)
		}
	}
	if len(left) > 0 {
		return fmt.Errorf("left are %s", strings.Join(left, ", "))
	}
	return nil
}

func (e *tenant) reclaim(ctx context.Context, pv *corev1.PersistentVolume) {
	e.t.Helper()
	pv.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimDelete
	if err := e.client.Update(ctx, pv); err != nil && !apierrors.IsConflict(err) {
		e.t.Errorf("set the reclaim policy of %s: %v", pv.Name, err)
	}
}

// noWarnings asserts that no component has written a warning about a claim of the tenant, or its volume.
func (e *tenant) noWarnings() {
	e.t.Helper()
	events := &corev1.EventList{}
	if err := e.client.List(e.t.Context(), events); err != nil {
		e.t.Fatal(err)
	}
	volumes := map[string]bool{}
	claims := &corev1.PersistentVolumeClaimList{}
	if err := e.client.List(e.t.Context(), claims, client.InNamespace(e.namespace)); err != nil {
		e.t.Fatal(err)
	}
	for _, pvc := range claims.Items {
		volumes[pvc.Spec.VolumeName] = true
	}
	for _, event := range events.Items {
		about := event.InvolvedObject
		ours := about.Kind == "PersistentVolumeClaim" && about.Namespace == e.namespace || about.Kind == "PersistentVolume" && volumes[about.Name]
		if ours && event.Type != corev1.EventTypeNormal {
			e.t.Errorf("of %s %s it is said: %s: %s", about.Kind, about.Name, event.Reason, event.Message)
		}
	}
}

// writeTo is write for any of the pod's volumes.
func (e *tenant) writeTo(pod *corev1.Pod, directory, canary string) {
	e.t.Helper()
	e.exec(pod, fmt.Sprintf("yes %s | head -c 4000000 > %[2]s/file && sync %[2]s/file", canary, directory))
}

// holdsIn is holds for any of the pod's volumes.
func (e *tenant) holdsIn(pod *corev1.Pod, directory, canary string) {
	e.t.Helper()
	if out := e.exec(pod, fmt.Sprintf("wc -c < %[1]s/file; head -n 1 %[1]s/file", directory)); out != "4000000\n"+canary {
		e.t.Errorf("%s of %s does not hold %q any more: %q", directory, pod.Name, canary, out)
	}
}
