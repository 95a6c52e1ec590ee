package e2e

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/objects"
)

// TestRawBlock asserts that a raw block claim is a device of zeros in its pod, and keeps what is written to it.
func TestRawBlock(t *testing.T) {
	e := newTenant(t, sharedCluster(t))
	pvc := e.blockClaim("raw", ssd, "100Mi")
	pod := e.podOf("first", claimed("raw", pvc))
	asDevice(pod)
	e.make(pvc)
	e.create(pod)
	e.ready(pod)
	pv := e.boundTo(pvc)
	p := e.findVolume(pv)
	if out := e.exec(pod, "blockdev --getsize64 /dev/raw; od -A n -t x1 /dev/raw | sort -u"); lacks(out, []string{strconv.FormatInt(p.allocation.Length, 10), "00 00"}) != "" || strings.Count(out, "\n") > 2 {
		t.Errorf("the device that the pod finds is %q", out)
	}
	mark := canary(e)
	e.exec(pod, "yes "+mark+" | dd of=/dev/raw bs=1M count=4 iflag=fullblock conv=fsync 2>/dev/null")
	if !contains(t, p.machine.File, v1alpha1.Extent{Start: p.allocation.Start, Length: int64(len(mark))}, mark) {
		t.Errorf("what the pod wrote is not at the start of %v", p)
	}
	e.delete(pod)
	e.gone(pod)
	second := e.podOf("second", claimed("raw", pvc))
	asDevice(second)
	e.create(second)
	e.ready(second)
	if out := e.exec(second, "head -n 1 /dev/raw"); out != mark {
		t.Errorf("the next pod reads %q, want %q", out, mark)
	}
	e.delete(second)
	e.unmake(pvc)
	e.gone(second)
	e.wiped(pv, p, mark)
}

// asDevice gives the pod its volumes as devices /dev/<name>.
func asDevice(pod *corev1.Pod) {
	main := &pod.Spec.Containers[0]
	for _, m := range main.VolumeMounts {
		main.VolumeDevices = append(main.VolumeDevices, corev1.VolumeDevice{Name: m.Name, DevicePath: "/dev/" + m.Name})
	}
	main.VolumeMounts = nil
}

// TestGenericEphemeral asserts that a claim that is made for a pod is deleted with it.
func TestGenericEphemeral(t *testing.T) {
	e := newTenant(t, sharedCluster(t))
	pod := e.podOf("pod", corev1.Volume{Name: "data", VolumeSource: corev1.VolumeSource{
		Ephemeral: &corev1.EphemeralVolumeSource{VolumeClaimTemplate: &corev1.PersistentVolumeClaimTemplate{Spec: objects.ClaimSpec(ssd, "400Mi")}},
	}})
	e.create(pod)
	e.ready(pod)
	pvc := e.claim("pod-data", ssd, "400Mi")
	pv := e.boundTo(pvc)
	if !metav1.IsControlledBy(pvc, pod) {
		t.Errorf("the claim belongs to %+v", pvc.OwnerReferences)
	}
	p := e.findVolume(pv)
	e.isPartition(e.device(pod, "/data"), v1alpha1.FSTypeXFS, p)
	mark := canary(e)
	e.write(pod, mark)
	e.delete(pod)
	e.gone(pod)
	e.wiped(pv, p, mark)
}

// TestReadOnly asserts that a pod that mounts a claim read-only cannot write, while another pod on the same node can.
func TestReadOnly(t *testing.T) {
	e := newTenant(t, sharedCluster(t))
	pvc := e.claim("shared", hdd, "100Mi")
	writer := e.podOf("writer", claimed("data", pvc))
	e.make(pvc)
	e.create(writer)
	e.ready(writer)
	mark := canary(e)
	e.write(writer, mark)

	reader := e.podOf("reader", claimed("data", pvc))
	reader.Spec.Volumes[0].PersistentVolumeClaim.ReadOnly = true
	careful := e.podOf("careful", claimed("data", pvc))
	careful.Spec.Containers[0].VolumeMounts[0].ReadOnly = true
	e.create(reader, careful)
	e.ready(reader, careful)
	for _, pod := range []*corev1.Pod{reader, careful} {
		if pod.Spec.NodeName != writer.Spec.NodeName {
			t.Errorf("the claim is on %s, pod %s on %s", writer.Spec.NodeName, pod.Name, pod.Spec.NodeName)
		}
		e.holds(pod, mark)
		if out := e.exec(pod, "touch /data/more 2>&1; ls /data/more 2>&1; true"); lacks(out, []string{"Read-only file system", "No such file"}) != "" {
			t.Errorf("pod %s: writing says %q", pod.Name, out)
		}
	}
	e.exec(writer, "touch /data/more")
	e.delete(writer, careful)
	e.gone(writer, careful)
	e.holds(reader, mark)
}

// TestOwnedByGroup asserts that a pod that is not root can use its claim by its fsGroup, under the strictest Pod
// Security level. Another group gets the claim with its content.
func TestOwnedByGroup(t *testing.T) {
	e := newTenant(t, sharedCluster(t), "pod-security.kubernetes.io/enforce=restricted")
	pvc := e.claim("data", ssd, "400Mi")
	e.make(pvc)
	for i, group := range []int64{2000, 3000} {
		pod := e.podOf(fmt.Sprintf("group%d", group), claimed("data", pvc))
		restrict(pod, 1000+int64(i), group)
		e.create(pod)
		e.ready(pod)
		file := fmt.Sprintf("/data/file%d", i)
		want := fmt.Sprintf("%d\n%d %d\n%d", 1000+i, 1000+i, group, group)
		if out := e.exec(pod, fmt.Sprintf("id -u; echo hello > %s; stat -c '%%u %%g' %s; stat -c %%g /data/file0", file, file)); out != want {
			t.Errorf("the pod of group %d says %q, want %q", group, out, want)
		}
		e.exec(pod, "echo more >> /data/file0")
		e.delete(pod)
		e.gone(pod)
	}
}

// restrict changes the pod so that Pod Security level restricted allows it.
func restrict(pod *corev1.Pod, user, group int64) {
	yes, no := true, false
	pod.Spec.SecurityContext = &corev1.PodSecurityContext{
		RunAsNonRoot: &yes, RunAsUser: &user, FSGroup: &group,
		SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}
	pod.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{
		AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes,
		Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
	}
}

// TestRetained asserts that a volume of policy Retain outlives its claim, is published meanwhile, and can be given to
// another claim with its data.
func TestRetained(t *testing.T) {
	e := newTenant(t, sharedCluster(t))
	pvc := e.claim("first", retained, "400Mi")
	pod := e.podOf("first", claimed("data", pvc))
	pv, p, mark := e.fill(pod, pvc)
	e.delete(pod)
	e.unmake(pvc)
	e.gone(pod)
	e.eventually("the volume is released", func(ctx context.Context) error { return e.inPhase(ctx, pv, corev1.VolumeReleased) })
	if again := e.findVolume(pv); again.allocation != p.allocation {
		t.Errorf("the volume was %+v, now it is %+v", p.allocation, again.allocation)
	}

	// An operator does this to use the volume again.
	if err := e.client.Patch(t.Context(), pv, client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"claimRef":null}}`))); err != nil {
		t.Fatal(err)
	}
	e.eventually("the volume is available", func(ctx context.Context) error { return e.inPhase(ctx, pv, corev1.VolumeAvailable) })
	next := e.claim("second", retained, "400Mi")
	next.Spec.VolumeName = pv.Name
	reader := e.podOf("second", claimed("data", next))
	e.make(next)
	e.create(reader)
	e.ready(reader)
	if now := e.boundTo(next); now.UID != pv.UID {
		t.Errorf("the claim has volume %s, want %s", now.Name, pv.Name)
	}
	e.holds(reader, mark)
	e.eventually("the new owner is published", func(ctx context.Context) error {
		status, err := e.published(ctx, p.node)
		if err != nil {
			return err
		}
		for _, d := range status.Disks {
			for _, a := range d.Allocations {
				if a.Partition == p.allocation.Partition && a.Owner == e.namespace+"/second" {
					return nil
				}
			}
		}
		return fmt.Errorf("it is not: %+v", status.Disks)
	})

	e.reclaim(t.Context(), e.boundTo(next))
	e.delete(reader)
	e.unmake(next)
	e.gone(reader)
	e.wiped(pv, p, mark)
}

// inPhase returns nil when the PersistentVolume is in the phase.
func (e *tenant) inPhase(ctx context.Context, pv *corev1.PersistentVolume, want corev1.PersistentVolumePhase) error {
	if err := e.client.Get(ctx, client.ObjectKeyFromObject(pv), pv); err != nil {
		return err
	}
	if pv.Status.Phase != want {
		return fmt.Errorf("it is %s", pv.Status.Phase)
	}
	return nil
}

// TestAllKinds runs a pod with an inline volume, a claim, an ephemeral claim, and a claim of another driver. The other
// driver's volume restricts the pod to its node.
func TestAllKinds(t *testing.T) {
	e := newTenant(t, sharedCluster(t))
	const node = "node2"
	local := e.localVolume(node)
	pvc, other := e.claim("claim", hdd, "200Mi"), e.claim("other", static, "1Gi")
	pod := e.podOf("pod", volume("inline", ssd, "400Mi", "xfs"), claimed("claim", pvc), claimed("other", other),
		corev1.Volume{Name: "ephemeral", VolumeSource: corev1.VolumeSource{
			Ephemeral: &corev1.EphemeralVolumeSource{VolumeClaimTemplate: &corev1.PersistentVolumeClaimTemplate{Spec: objects.ClaimSpec(ssd, "400Mi")}},
		}})
	e.make(local, pvc, other)
	e.create(pod)
	e.ready(pod)
	if pod.Spec.NodeName != node {
		t.Errorf("the pod is on %s, the other driver's volume on %s", pod.Spec.NodeName, node)
	}
	if record, err := v1alpha1.DecodeRecord(pod.Annotations[v1alpha1.AnnotationAllocation]); err != nil || len(record.Volumes) != 1 {
		t.Errorf("the record of the pod is %+v, %v; it is to have the inline volume", record, err)
	}
	ephemeral := e.claim("pod-ephemeral", ssd, "400Mi")
	pv, own := e.boundTo(pvc), e.boundTo(ephemeral)
	places := map[string]place{"inline": e.find(pod, "inline"), "claim": e.findVolume(pv), "ephemeral": e.findVolume(own)}
	for name, p := range places {
		if p.node != node {
			t.Errorf("volume %s is on %s", name, p.node)
		}
		fsType := v1alpha1.FSTypeXFS
		if name == "claim" {
			fsType = v1alpha1.FSTypeExt4
		}
		e.isPartition(e.device(pod, "/"+name), fsType, p)
	}
	mark := canary(e)
	for _, directory := range []string{"/inline", "/claim", "/ephemeral", "/other"} {
		e.writeTo(pod, directory, mark)
	}
	if out, err := e.cluster.Exec(t.Context(), node, "head", "-n", "1", local.Spec.Local.Path+"/file"); err != nil || strings.TrimSpace(out) != mark {
		t.Errorf("in the folder of the other driver's volume there is %q, %v", out, err)
	}
	e.delete(pod)
	e.gone(pod)
	e.isFree(places["inline"])
	e.wiped(own, places["ephemeral"])
	again := e.podOf("again", claimed("claim", pvc), claimed("other", other))
	e.create(again)
	e.ready(again)
	e.holdsIn(again, "/claim", mark)
	e.holdsIn(again, "/other", mark)
	e.delete(again)
	e.unmake(pvc, other)
	e.gone(again)
	e.wiped(pv, places["claim"], mark)
}

// localVolume is a folder of a node as a PersistentVolume of another driver.
func (e *tenant) localVolume(node string) *corev1.PersistentVolume {
	e.t.Helper()
	folder := "/var/lib/" + e.namespace
	if _, err := e.cluster.Exec(e.t.Context(), node, "mkdir", folder); err != nil {
		e.t.Fatal(err)
	}
	pv := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: e.namespace}}
	pv.Spec.Capacity = objects.ClaimSpec(static, "1Gi").Resources.Requests
	pv.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
	pv.Spec.StorageClassName = static
	pv.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimRetain
	pv.Spec.Local = &corev1.LocalVolumeSource{Path: folder}
	pv.Spec.NodeAffinity = &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
		MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{node}}},
	}}}}
	e.t.Cleanup(func() {
		if err := e.client.Delete(context.Background(), pv); client.IgnoreNotFound(err) != nil {
			e.t.Error(err)
		}
		if _, err := e.cluster.Exec(context.Background(), node, "rm", "-r", folder); err != nil {
			e.t.Error(err)
		}
	})
	return pv
}

// TestLastSpace asserts that of two claims for the last space only one gets it. The other waits with a reason, and gets
// the space when the first is deleted and wiped.
func TestLastSpace(t *testing.T) {
	e := newTenant(t, sharedCluster(t))
	var claims []*corev1.PersistentVolumeClaim
	var pods []*corev1.Pod
	for i := range 2 {
		pvc := e.claim(fmt.Sprintf("claim%d", i), hdd, "1500Mi")
		pod := e.podOf(fmt.Sprintf("pod%d", i), claimed("data", pvc))
		pod.Spec.NodeSelector = map[string]string{corev1.LabelHostname: "node1"}
		claims, pods = append(claims, pvc), append(pods, pod)
		e.make(pvc)
	}
	e.create(pods...)
	run, wait := e.settle(pods, 1, 1)
	message := e.waits(wait[0])
	t.Logf("why the second waits: %s", message)
	if missing := lacks(message, []string{"largest free extent of class hdd is", "wants 1500Mi"}); missing != "" {
		t.Errorf("it waits because of %q, which does not say %q", message, missing)
	}
	first, second := claims[0], claims[1]
	if run[0].Name == "pod1" {
		first, second = second, first
	}
	if err := e.client.Get(t.Context(), client.ObjectKeyFromObject(second), second); err != nil {
		t.Fatal(err)
	}
	if second.Status.Phase != corev1.ClaimPending || second.Spec.VolumeName != "" {
		t.Errorf("the claim of the pod that waits is %s, volume %q", second.Status.Phase, second.Spec.VolumeName)
	}
	pv := e.boundTo(first)
	p := e.findVolume(pv)
	mark := canary(e)
	e.write(run[0], mark)

	// Deleting the pod alone does not free the space.
	e.delete(run[0])
	e.gone(run[0])
	if err := e.isReady(t.Context(), wait[0]); err == nil {
		t.Error("both have the last space")
	}
	e.unmake(first)
	e.ready(wait[0])
	if now := e.findVolume(e.boundTo(second)); now.allocation.Extent != p.allocation.Extent {
		t.Logf("the second is at %v, the first was at %v", now, p)
	}
	if contains(t, p.machine.File, whole(p.machine), mark) {
		t.Errorf("%q of the first is on the disk of the second", mark)
	}
}

// TestClaimInUse asserts that a claim that is deleted while its pod runs stays until the pod is gone. A
// PersistentVolume that is deleted stays until its claim is gone.
func TestClaimInUse(t *testing.T) {
	e := newTenant(t, sharedCluster(t))
	pvc := e.claim("data", ssd, "400Mi")
	pod := e.podOf("pod", claimed("data", pvc))
	pv, p, mark := e.fill(pod, pvc)
	e.unmake(pv, pvc)
	other := e.podOf("other", volume("data", ssd, "64Mi", "ext4"))
	other.Spec.NodeSelector = map[string]string{corev1.LabelHostname: p.node}
	e.create(other)
	e.ready(other)
	// The agent has seen the deletion by now.
	e.restart(pod)
	e.holds(pod, mark)
	if err := e.client.Get(t.Context(), client.ObjectKeyFromObject(pvc), pvc); err != nil || pvc.DeletionTimestamp == nil {
		t.Errorf("the claim of a pod that runs is %+v, %v", pvc, err)
	}
	e.delete(pod, other)
	e.gone(pod)
	e.eventually("the claim is gone", func(ctx context.Context) error {
		if err := e.client.Get(ctx, client.ObjectKeyFromObject(pvc), pvc); !apierrors.IsNotFound(err) {
			return fmt.Errorf("it is there (%w)", err)
		}
		return nil
	})
	e.wiped(pv, p, mark)
}
