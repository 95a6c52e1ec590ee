package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/objects"
)

// TestClaimOfOtherScheduler asserts that the claim of a pod that another scheduler places is served on the chosen node.
// Where there is no room the node is rejected.
func TestClaimOfOtherScheduler(t *testing.T) {
	e := newTenant(t, sharedCluster(t))
	pvc := e.claim("data", ssd, "400Mi")
	pod := e.podOf("stock", claimed("data", pvc))
	pod.Spec.SchedulerName = corev1.DefaultSchedulerName
	e.make(pvc)
	e.create(pod)
	e.ready(pod)
	p := e.findVolume(e.boundTo(pvc))
	if p.node != pod.Spec.NodeName {
		t.Errorf("the pod is on %s, its volume at %v", pod.Spec.NodeName, p)
	}
	e.isPartition(e.device(pod, "/data"), v1alpha1.FSTypeXFS, p)

	// The stock scheduler does not know that this fits on no node.
	large := e.claim("large", ssd, "100Gi")
	hopeless := e.podOf("hopeless", claimed("data", large))
	hopeless.Spec.SchedulerName = corev1.DefaultSchedulerName
	e.make(large)
	e.create(hopeless)
	e.event(large, "ProvisioningFailed", "wants 100Gi", "class ssd", "may choose another")
	if err := e.client.Get(t.Context(), client.ObjectKeyFromObject(hopeless), hopeless); err != nil || hopeless.Spec.NodeName != "" {
		t.Errorf("the pod whose claim fits nowhere is on node %q, %v", hopeless.Spec.NodeName, err)
	}
}

// TestClaimsAndSchedulerKilled asserts that a scheduler that is killed in the middle of binding claims leaves none half
// bound, and no volume without a claim.
func TestClaimsAndSchedulerKilled(t *testing.T) {
	e := newTenant(t, sharedCluster(t))
	var claims []*corev1.PersistentVolumeClaim
	var pods []*corev1.Pod
	add := func(from, to int) {
		for i := from; i < to; i++ {
			pvc := e.claim(fmt.Sprintf("claim%d", i), hdd, "64Mi")
			pod := e.podOf(fmt.Sprintf("pod%d", i), claimed("data", pvc))
			e.make(pvc)
			e.create(pod)
			claims, pods = append(claims, pvc), append(pods, pod)
		}
	}
	add(0, 6)
	if err := e.cluster.KillScheduler(); err != nil {
		t.Fatal(err)
	}
	add(6, 9)
	if err := e.cluster.StartScheduler(t.Context()); err != nil {
		t.Fatal(err)
	}
	e.ready(pods...)
	for i, pvc := range claims {
		if p := e.findVolume(e.boundTo(pvc)); p.node != pods[i].Spec.NodeName {
			t.Errorf("pod %s is on %s, its volume at %v", pods[i].Name, pods[i].Spec.NodeName, p)
		}
	}
	volumes := &corev1.PersistentVolumeList{}
	if err := e.client.List(t.Context(), volumes); err != nil {
		t.Fatal(err)
	}
	mine := 0
	for _, pv := range volumes.Items {
		if pv.Spec.ClaimRef != nil && pv.Spec.ClaimRef.Namespace == e.namespace {
			mine++
		}
	}
	if mine != len(claims) {
		t.Errorf("there are %d volumes for %d claims", mine, len(claims))
	}
}

// TestClaimsAndAgentDown asserts that volumes deleted while the agent is down are wiped when it is back, and that
// volumes bound meanwhile are made then.
func TestClaimsAndAgentDown(t *testing.T) {
	e := newTenant(t, sharedCluster(t))
	const node = "node1"
	on := map[string]string{corev1.LabelHostname: node}
	goes, idle := e.claim("goes", ssd, "400Mi"), e.claim("idle", ssd, "400Mi")
	user, before := e.podOf("user", claimed("data", goes)), e.podOf("before", claimed("data", idle))
	user.Spec.NodeSelector, before.Spec.NodeSelector = on, on
	e.make(goes, idle)
	e.create(user, before)
	e.ready(user, before)
	marks := [2]string{canary(e) + "a", canary(e) + "b"}
	e.write(user, marks[0])
	e.write(before, marks[1])
	pvs := [2]*corev1.PersistentVolume{e.boundTo(goes), e.boundTo(idle)}
	places := [2]place{e.findVolume(pvs[0]), e.findVolume(pvs[1])}
	e.delete(before)
	e.gone(before)

	if err := e.cluster.KillAgent(node); err != nil {
		t.Fatal(err)
	}
	e.delete(user)
	e.unmake(goes, idle)
	late := e.claim("late", ssd, "400Mi")
	after := e.podOf("after", claimed("data", late))
	after.Spec.NodeSelector = on
	e.make(late)
	e.create(after)
	e.eventually("a pod is bound without the agent", func(ctx context.Context) error { return e.bound(ctx, after) })
	e.boundTo(late)
	if err := e.cluster.StartAgent(t.Context(), node); err != nil {
		t.Fatal(err)
	}
	e.ready(after)
	e.gone(user)
	for i := range pvs {
		e.eventually("volume "+pvs[i].Name+" is gone", func(ctx context.Context) error {
			if err := e.client.Get(ctx, client.ObjectKeyFromObject(pvs[i]), &corev1.PersistentVolume{}); !apierrors.IsNotFound(err) {
				return fmt.Errorf("it is there (%w)", err)
			}
			return nil
		})
		if contains(t, places[i].machine.File, whole(places[i].machine), marks[i]) {
			t.Errorf("%q is still on %s", marks[i], places[i].machine.Path)
		}
	}
	if out := e.exec(after, "find /data ! -name starts"); out != "/data" {
		t.Errorf("the new pod finds %q", out)
	}
}

// TestVolumeForgotten asserts that a volume whose PersistentVolume is lost from the API, as after a loss of etcd, stays
// on its disk without an owner. The manifest that the node prints restores it with its data.
func TestVolumeForgotten(t *testing.T) {
	e := newTenant(t, sharedCluster(t))
	pvc := e.claim("data", ssd, "400Mi")
	pod := e.podOf("pod", claimed("data", pvc))
	pv, p, mark := e.fill(pod, pvc)
	e.delete(pod)
	e.gone(pod)

	// The object is removed without Berth's components. Kubernetes may add its own finalizer again: then it is released
	// before it is gone, and with policy Delete the agent would rightly wipe the volume.
	if err := e.client.Patch(t.Context(), pv, client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"finalizers":null},"spec":{"persistentVolumeReclaimPolicy":"Retain"}}`))); err != nil {
		t.Fatal(err)
	}
	e.unmake(pv, pvc)
	e.eventually("the volume is forgotten", func(ctx context.Context) error {
		err := e.client.Patch(ctx, pv, client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"finalizers":null}}`)))
		if !apierrors.IsNotFound(err) {
			return fmt.Errorf("it is there (%w)", err)
		}
		return nil
	})
	// The rest of the disk is used, also during restarts of the agent.
	if err := errors.Join(e.cluster.KillAgent(p.node), e.cluster.StartAgent(t.Context(), p.node)); err != nil {
		t.Fatal(err)
	}
	other := e.podOf("other", volume("data", ssd, "400Mi", "xfs"))
	other.Spec.NodeSelector = map[string]string{corev1.LabelHostname: p.node}
	e.create(other)
	e.ready(other)
	if q := e.find(other, "data"); q.allocation.Start == p.allocation.Start {
		t.Errorf("both volumes are at %v", q)
	}
	if again := e.findPartition("the forgotten volume", p.node, p.allocation.Partition); again.allocation.Extent != p.allocation.Extent {
		t.Errorf("the volume was %+v, is %+v", p.allocation, again.allocation)
	}
	if !contains(t, p.machine.File, p.allocation.Extent, mark) {
		t.Error("the data of the forgotten volume is gone")
	}

	e.bringBack(pv.Name, p)
	again := e.claim("again", ssd, "400Mi")
	again.Spec.VolumeName = pv.Name
	reader := e.podOf("reader", claimed("data", again))
	e.make(again)
	e.create(reader)
	e.ready(reader)
	e.holds(reader, mark)
	now := e.boundTo(again)
	e.delete(reader, other)
	e.gone(reader)
	e.reclaim(t.Context(), now)
	e.unmake(again)
	e.wiped(now, p, mark)
}

// bringBack applies the manifest that the node prints for a volume.
func (e *tenant) bringBack(name string, p place) {
	e.t.Helper()
	out, err := e.cluster.Exec(e.t.Context(), p.node, e.cluster.Program("nodeagent"), "manifests",
		"--node-name="+p.node, "--devices="+p.machine.Path, "--storage-class="+ssd, "--disk-class="+ssd)
	if err != nil {
		e.t.Fatal(err)
	}
	var manifest string
	for document := range strings.SplitSeq(out, "\n---\n") {
		if strings.Contains(document, name) {
			manifest = document
		}
	}
	if manifest == "" {
		e.t.Fatalf("the node prints nothing of volume %s: %s", name, out)
	}
	if err := e.cluster.ApplyText(e.t.Context(), manifest); err != nil {
		e.t.Fatalf("apply %s: %v", manifest, err)
	}
}

// TestBadClaims asserts that impossible claims get an event with the reason, and that other pods are not affected.
func TestBadClaims(t *testing.T) {
	e := newTenant(t, sharedCluster(t))
	bad := map[string]struct {
		claim func(*corev1.PersistentVolumeClaim)
		class func(*storagev1.StorageClass)
		words []string
	}{
		"too-small":         {func(c *corev1.PersistentVolumeClaim) { c.Spec.Resources = objects.ClaimSpec(ssd, "10Mi").Resources }, nil, []string{"xfs", "300Mi"}},
		"too-large":         {func(c *corev1.PersistentVolumeClaim) { c.Spec.Resources = objects.ClaimSpec(ssd, "100Gi").Resources }, nil, []string{"largest", "wants 100Gi"}},
		"many-writers":      {func(c *corev1.PersistentVolumeClaim) { c.Spec.AccessModes[0] = corev1.ReadWriteMany }, nil, []string{"ReadWriteMany", "ReadWriteOnce"}},
		"unknown-class":     {nil, func(c *storagev1.StorageClass) { c.Parameters[v1alpha1.AttributeClass] = "nosuch" }, []string{"nosuch"}},
		"unknown-parameter": {nil, func(c *storagev1.StorageClass) { c.Parameters["disk.berth.dev/klass"] = "ssd" }, []string{"unknown parameter", "disk.berth.dev/klass"}},
		"no-class":          {nil, func(c *storagev1.StorageClass) { delete(c.Parameters, v1alpha1.AttributeClass) }, []string{"disk.berth.dev/class is missing"}},
		"file-system":       {nil, func(c *storagev1.StorageClass) { c.Parameters[v1alpha1.ParameterFSType] = "btrfs" }, []string{"btrfs", "ext4"}},
	}
	for name, tc := range bad {
		pvc := e.claim(name, ssd, "400Mi")
		if tc.claim != nil {
			tc.claim(pvc)
		}
		if tc.class != nil {
			class := storageClass(e.namespace+"-"+name, ssd, v1alpha1.FSTypeXFS)
			tc.class(class)
			e.make(class)
			t.Cleanup(func() {
				if err := e.client.Delete(context.Background(), class); err != nil {
					t.Error(err)
				}
			})
			pvc.Spec.StorageClassName = &class.Name
		}
		pod := e.podOf(name, claimed("data", pvc))
		e.make(pvc)
		e.create(pod)
		message := e.waits(pod)
		if missing := lacks(message, tc.words); missing != "" {
			t.Errorf("%s: unschedulable because of %q, which does not say %q", name, message, missing)
		}
		t.Logf("%s: %s", name, message)
	}

	at := storageClass(e.namespace+"-immediate", ssd, v1alpha1.FSTypeXFS)
	mode := storagev1.VolumeBindingImmediate
	at.VolumeBindingMode = &mode
	pvc := e.claim("immediate", at.Name, "400Mi")
	e.make(at, pvc)
	e.event(pvc, "ProvisioningSucceeded", "Immediate", "WaitForFirstConsumer")
	e.unmake(pvc)
	e.unmake(at)
	e.eventually("all of the disks is free", e.allFree)
}

// TestClaimAndNodeDown asserts that a volume whose claim is deleted while its node is down is kept until the node is
// back and has wiped it.
func TestClaimAndNodeDown(t *testing.T) {
	e := newTenant(t, sharedCluster(t))
	const node = "node2"
	pvc := e.claim("data", hdd, "200Mi")
	pod := e.podOf("pod", claimed("data", pvc))
	pod.Spec.NodeSelector = map[string]string{corev1.LabelHostname: node}
	pv, p, mark := e.fill(pod, pvc)

	if err := e.cluster.PowerOff(t.Context(), node); err != nil {
		t.Fatal(err)
	}
	// An operator does this when the node is known to be down.
	if err := e.client.Delete(t.Context(), pod, client.GracePeriodSeconds(0)); err != nil {
		t.Fatal(err)
	}
	e.unmake(pvc)
	e.eventually("the volume is released", func(ctx context.Context) error { return e.inPhase(ctx, pv, corev1.VolumeReleased) })
	next := e.claim("next", hdd, "2000Mi")
	waiting := e.podOf("next", claimed("data", next))
	waiting.Spec.NodeSelector = pod.Spec.NodeSelector
	e.make(next)
	e.create(waiting)
	e.waits(waiting)
	if !contains(t, p.machine.File, p.allocation.Extent, mark) {
		t.Error("the data is gone while the node is down")
	}
	if err := e.cluster.PowerOn(t.Context(), node); err != nil {
		t.Fatal(err)
	}
	e.ready(waiting)
	if contains(t, p.machine.File, whole(p.machine), mark) {
		t.Errorf("%q is still on %s", mark, p.machine.Path)
	}
	if err := e.client.Get(t.Context(), client.ObjectKeyFromObject(pv), pv); !apierrors.IsNotFound(err) {
		t.Errorf("volume %s is still there: %v", pv.Name, err)
	}
}
