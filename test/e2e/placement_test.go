package e2e

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/units"
)

// TestPending asserts that pods beyond the capacity wait, with a readable reason. When one pod is deleted, one that
// waits runs.
func TestPending(t *testing.T) {
	e := newTenant(t, sharedCluster(t))
	var pods []*corev1.Pod
	for i := range 6 {
		pods = append(pods, e.podOf(fmt.Sprintf("pod%d", i), volume("data", pair, "1000Mi", "")))
	}
	e.create(pods...)
	run, wait := e.settle(pods, 4, 2)
	for _, pod := range wait {
		message := e.waits(pod)
		if missing := lacks(message, []string{"0/3 nodes are available", "largest free extent of class pair is", "wants 1000Mi"}); missing != "" {
			t.Errorf("pod %s waits because of %q, which does not say %q", pod.Name, message, missing)
		}
	}
	e.event(wait[0], "FailedScheduling", "largest free extent of class pair is", "wants 1000Mi")
	t.Logf("why they wait: %s", e.waits(wait[0]))

	start := time.Now()
	e.delete(run[0])
	pods = slices.Concat(run[1:], wait)
	_, wait = e.settle(pods, 4, 1)
	t.Logf("a waiting pod ran %s after another was deleted", time.Since(start))

	never := e.podOf("never", volume("data", pair, "100Gi", ""))
	e.create(never)
	message := e.waits(never)
	t.Logf("why a pod waits that never fits: %s", message)
	if missing := lacks(message, []string{"100Gi", "class pair"}); missing != "" {
		t.Errorf("a pod that can never fit waits because of %q, which does not say %q", message, missing)
	}
	if len(wait) != 1 {
		t.Errorf("%d pods wait", len(wait))
	}
}

// settle waits until that many of the pods run and that many are reported not to fit.
func (e *tenant) settle(pods []*corev1.Pod, wantRunning, wantWaiting int) (run, wait []*corev1.Pod) {
	e.t.Helper()
	e.eventually("some pods run and the others wait", func(ctx context.Context) error {
		run, wait = nil, nil
		var why error
		for _, pod := range pods {
			err := e.isReady(ctx, pod)
			switch {
			case err == nil:
				run = append(run, pod)
			case pod.Spec.NodeName == "" && len(pod.Status.Conditions) > 0:
				wait = append(wait, pod)
			default:
				why = err
			}
		}
		if len(run) != wantRunning || len(wait) != wantWaiting {
			return fmt.Errorf("%d run and %d wait, want %d and %d: %w", len(run), len(wait), wantRunning, wantWaiting, errors.Join(why))
		}
		return nil
	})
	return run, wait
}

// TestWithoutTheScheduler asserts that pods that another scheduler or a user puts onto a node get their volumes if the
// node has room. Otherwise an event says why not, until it has.
func TestWithoutTheScheduler(t *testing.T) {
	e := newTenant(t, sharedCluster(t))
	stock := e.podOf("stock", volume("data", pair, "1000Mi", "xfs"))
	stock.Spec.SchedulerName = corev1.DefaultSchedulerName
	stock.Spec.NodeSelector = map[string]string{corev1.LabelHostname: pairNode}
	named := e.podOf("named", volume("data", pair, "1000Mi", "ext4"))
	named.Spec.SchedulerName, named.Spec.NodeName = corev1.DefaultSchedulerName, pairNode
	e.create(stock, named)
	e.ready(stock, named)
	for _, pod := range []*corev1.Pod{stock, named} {
		p := e.find(pod, "data")
		e.isPartition(e.device(pod, "/data"), *pod.Spec.Volumes[0].CSI.FSType, p)
		if p.allocation.Length != 1000*units.MiB {
			t.Errorf("pod %s got %v", pod.Name, p)
		}
		if _, ok := pod.Annotations[v1alpha1.AnnotationAllocation]; ok {
			t.Errorf("pod %s has a record", pod.Name)
		}
		e.event(pod, "VolumePlaced", `volume "data" was put on`, "set schedulerName: berth")
	}

	// One disk has 1000Mi and a little left, or both have: 1500Mi fit on neither.
	large := e.podOf("large", volume("data", pair, "1500Mi", ""))
	large.Spec.NodeName = pairNode
	hopeless := e.podOf("hopeless", volume("data", pair, "3Gi", ""))
	hopeless.Spec.NodeName = pairNode
	fill := e.podOf("fill", volume("data", pair, "1000Mi", ""))
	e.create(fill)
	e.ready(fill)
	e.create(large, hopeless)
	e.event(large, "FailedMount", "largest free extent of class pair is", "wants 1500Mi", pairNode)
	e.event(hopeless, "FailedMount", "wants 3Gi", pairNode)
	e.event(large, "NoRoomForVolume", "wants 1500Mi")
	if err := e.isReady(t.Context(), large); err == nil {
		t.Error("the pod that does not fit runs")
	}
	// The others are not disturbed, and the scheduler knows their volumes.
	e.ready(stock, named, fill)
	e.delete(stock, named, fill)
	e.ready(large)
	if err := e.isReady(t.Context(), hopeless); err == nil {
		t.Error("the pod that is larger than any disk runs")
	}
}

// TestBadVolumes asserts that bad volumes are refused later, with an equally clear reason and without damage, where the
// admission policy is not installed.
func TestBadVolumes(t *testing.T) {
	bad := map[string]struct {
		change func(*corev1.CSIVolumeSource)
		words  []string
	}{
		"unknown-attribute": {func(v *corev1.CSIVolumeSource) { v.VolumeAttributes["disk.berth.dev/siez"] = "1Gi" }, []string{"unknown attribute", "disk.berth.dev/siez"}},
		"no-size":           {func(v *corev1.CSIVolumeSource) { delete(v.VolumeAttributes, v1alpha1.AttributeSize) }, []string{"disk.berth.dev/size"}},
		"bad-size":          {func(v *corev1.CSIVolumeSource) { v.VolumeAttributes[v1alpha1.AttributeSize] = "10Gib" }, []string{"disk.berth.dev/size", "10Gib"}},
		"negative":          {func(v *corev1.CSIVolumeSource) { v.VolumeAttributes[v1alpha1.AttributeSize] = "-1Gi" }, []string{"disk.berth.dev/size", "-1Gi"}},
		"file-system":       {func(v *corev1.CSIVolumeSource) { fs := "btrfs"; v.FSType = &fs }, []string{"btrfs", "ext4"}},
		"unknown-class":     {func(v *corev1.CSIVolumeSource) { v.VolumeAttributes[v1alpha1.AttributeClass] = "nosuch" }, []string{"nosuch"}},
	}
	c := sharedCluster(t)
	checked := newTenant(t, c)
	e := newTenant(t, c, unchecked)
	for name, tc := range bad {
		scheduled := e.podOf(name, volume("data", pair, "64Mi", ""))
		tc.change(scheduled.Spec.Volumes[0].CSI)
		mounted := scheduled.DeepCopy()
		mounted.Name, mounted.Spec.NodeName = name+"-placed", pairNode
		refused := scheduled.DeepCopy()
		refused.Namespace = checked.namespace
		err := e.client.Create(t.Context(), refused, client.DryRunAll)
		// A class may be created later, so it is no reason to refuse.
		if wantErr := name != "unknown-class"; (err != nil) != wantErr {
			t.Errorf("%s: with the policy the answer is %v", name, err)
		}
		// The policy's exemption may not have reached the API server yet.
		e.eventually("the policy is not in force", func(ctx context.Context) error { return e.client.Create(ctx, scheduled.DeepCopy(), client.DryRunAll) })
		e.create(scheduled, mounted)
		message := e.waits(scheduled)
		if missing := lacks(message, tc.words); missing != "" {
			t.Errorf("%s: unschedulable because of %q, which does not say %q", name, message, missing)
		}
		t.Logf("%s: %s", name, message)
		e.event(mounted, "FailedMount", tc.words...)
	}
	good := e.podOf("good", volume("data", pair, "64Mi", ""))
	e.create(good)
	e.ready(good)
	if err := e.allBut(good); err != nil {
		t.Error(err)
	}
}

// allBut returns nil when the pod is the only one of the tenant that has a volume.
func (e *tenant) allBut(pod *corev1.Pod) error {
	status, err := e.published(e.t.Context(), pairNode)
	if err != nil {
		return err
	}
	for _, d := range status.Disks {
		for _, a := range d.Allocations {
			if a.Owner != e.namespace+"/"+pod.Name {
				return fmt.Errorf("there is a volume of %s", a.Owner)
			}
		}
	}
	return nil
}

// TestSeveralVolumes asserts that a pod gets all of its volumes or none, and on different disks if they request that.
func TestSeveralVolumes(t *testing.T) {
	e := newTenant(t, sharedCluster(t))
	spread := func(name string) corev1.Volume {
		v := volume(name, pair, "300Mi", "xfs")
		v.CSI.VolumeAttributes[v1alpha1.AttributeSpread] = v1alpha1.SpreadDisk
		return v
	}
	pod := e.podOf("spread", volume("data", pair, "100Mi", "ext4"), spread("one"), spread("two"))
	more := e.podOf("more", spread("one"), spread("two"), spread("three"))
	e.create(pod, more)
	e.ready(pod)
	places := map[string]place{}
	for _, v := range pod.Spec.Volumes[:3] {
		p := e.find(pod, v.Name)
		e.asRecorded(pod, v.Name, p)
		e.isPartition(e.device(pod, "/"+v.Name), *v.CSI.FSType, p)
		places[v.Name] = p
	}
	if places["one"].disk.ID == places["two"].disk.ID {
		t.Errorf("volumes that want to be apart are at %v and %v", places["one"], places["two"])
	}
	// Three cannot be apart on two disks.
	if message := e.waits(more); lacks(message, []string{"wants 3 different disks of class pair"}) != "" {
		t.Errorf("it waits because of %q", message)
	}
	e.delete(pod)
	e.gone(pod)
	for _, p := range places {
		e.isFree(p)
	}
}

// TestOtherPods asserts that pods without Berth's volumes are not affected.
func TestOtherPods(t *testing.T) {
	e := newTenant(t, sharedCluster(t))
	berth := e.podOf("berth")
	stock := e.podOf("stock")
	stock.Spec.SchedulerName = corev1.DefaultSchedulerName
	scratch := e.podOf("scratch", corev1.Volume{Name: "data", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}})
	e.create(berth, stock, scratch)
	e.ready(berth, stock, scratch)
	for _, pod := range []*corev1.Pod{berth, stock, scratch} {
		for key := range pod.Annotations {
			if strings.Contains(key, v1alpha1.GroupName) {
				t.Errorf("pod %s has the annotation %s", pod.Name, key)
			}
		}
	}
}

// TestEvicted asserts that a pod of a controller whose volume does not fit on its node is evicted. The scheduler does
// that when the node requests it, so that the controller's next pod is scheduled elsewhere.
func TestEvicted(t *testing.T) {
	e := newTenant(t, sharedCluster(t))
	one := int32(1)
	template := e.podOf("any", volume("data", sector512, "64Mi", ""))
	template.Spec.SchedulerName = corev1.DefaultSchedulerName
	// The stock scheduler does not know that this node has no disk of the class.
	template.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
		PreferredDuringSchedulingIgnoredDuringExecution: []corev1.PreferredSchedulingTerm{{
			Weight: 100,
			Preference: corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{
				{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{pairNode}},
			}},
		}},
	}}
	labels := map[string]string{"app": "misled"}
	set := &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: e.namespace, Name: "misled"},
		Spec: appsv1.ReplicaSetSpec{
			Replicas: &one, Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: template.Spec},
		},
	}
	if err := e.client.Create(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.client.Delete(context.Background(), set, client.PropagationPolicy(metav1.DeletePropagationForeground)); client.IgnoreNotFound(err) != nil {
			t.Error(err)
		}
	})
	first := &corev1.Pod{}
	e.eventually("the first pod is there", func(ctx context.Context) error {
		pods := &corev1.PodList{}
		if err := e.client.List(ctx, pods, client.InNamespace(e.namespace)); err != nil {
			return err
		}
		if len(pods.Items) == 0 || pods.Items[0].Spec.NodeName == "" {
			return errors.New("it is not")
		}
		*first = pods.Items[0]
		return nil
	})
	if first.Spec.NodeName != pairNode {
		t.Fatalf("the pod is on %s: this test shows nothing", first.Spec.NodeName)
	}
	e.event(first, "EvictingForVolume", "scheduled again", sector512)
	e.gone(first)
}

// TestTwoPlacers has the scheduler and the node itself place volumes on the same disks at the same time. It asserts
// that the second volume is moved, and that all pods run.
func TestTwoPlacers(t *testing.T) {
	e := newTenant(t, sharedCluster(t))
	var pods []*corev1.Pod
	for i := range 12 {
		pod := e.podOf(fmt.Sprintf("pod%d", i), volume("data", pair, "64Mi", ""))
		if i%2 == 1 {
			pod.Spec.NodeName = pairNode
		}
		pods = append(pods, pod)
	}
	e.create(pods...)
	e.ready(pods...)
	moved := 0
	for i, pod := range pods {
		p := e.find(pod, "data")
		if i%2 == 0 && e.recorded(pod, "data").Extent != p.allocation.Extent {
			e.event(pod, "VolumeReplaced", "is not free")
			moved++
		}
	}
	t.Logf("%d of %d volumes were moved", moved, len(pods)/2)
	if err := e.volumesOf(t.Context(), len(pods)); err != nil {
		t.Error(err)
	}
}
