package volumes

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/discovery"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/request"
	"github.com/berthdev/berth/test/units"
)

// decide makes these the operator's decisions about the disks of the node.
func (f *fixture) decide(decisions ...diskv1alpha1.DiskDecision) {
	f.t.Helper()
	ndc := &diskv1alpha1.NodeDiskCapacity{ObjectMeta: metav1.ObjectMeta{Name: "n", UID: "ndc"}}
	ndc.Spec.Disks = decisions
	if err := f.options.Capacities.GetStore().Add(ndc); err != nil {
		f.t.Fatal(err)
	}
}

func drained(d discovery.Disk, mode diskv1alpha1.DrainMode) diskv1alpha1.DiskDecision {
	return diskv1alpha1.DiskDecision{ID: d.ID(), Drain: &diskv1alpha1.DiskDrain{Mode: mode, Reason: "ticket 7"}}
}

// published is the state of a disk as it is published.
func (f *fixture) published(d discovery.Disk) diskv1alpha1.Disk {
	f.t.Helper()
	all := []diskv1alpha1.Disk{{ID: d.ID(), State: diskv1alpha1.DiskReady}}
	f.Drains(all)
	return all[0]
}

// claiming is a pod of a controller that uses the claim of a PersistentVolume.
func claiming(name string, pv *corev1.PersistentVolume) *corev1.Pod {
	isController := true
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Namespace: pv.Spec.ClaimRef.Namespace, Name: name, UID: "uid-of-pod",
		OwnerReferences: []metav1.OwnerReference{{Kind: "StatefulSet", Name: "x", UID: "x", Controller: &isController}},
	}}
	pod.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: pv.Spec.ClaimRef.Name}}}}
	pod.Status.Phase = corev1.PodRunning
	slim, _ := stripPod(pod)
	return slim.(*corev1.Pod)
}

// TestDrainProgress asserts what a node publishes about a disk that is drained, and whom it wants evicted, from a
// volume without another place to a disk that is empty.
func TestDrainProgress(t *testing.T) {
	l := newLeaving(t)
	says := func(texts ...string) diskv1alpha1.Disk {
		t.Helper()
		d := l.published(l.source)
		waits := ""
		if d.Drain != nil && len(d.Drain.Waiting) > 0 {
			waits = d.Drain.Waiting[0].Volume + ": " + d.Drain.Waiting[0].Message
		}
		for _, text := range texts {
			if !strings.Contains(waits, text) && !strings.Contains(d.Message, text) {
				t.Errorf("published %q, %+v, want %q", d.Message, d.Drain, text)
			}
		}
		return d
	}
	if d := says(); d.State != diskv1alpha1.DiskReady || d.Message != "" || d.Drain != nil {
		t.Errorf("without a decision: %+v", d)
	}
	l.decide(diskv1alpha1.DiskDecision{ID: l.source.ID(), Unschedulable: true})
	if d := says("unschedulable"); d.State != diskv1alpha1.DiskCordoned || d.Drain != nil {
		t.Errorf("cordoned: %+v", d)
	}
	l.decide(drained(l.source, diskv1alpha1.DrainMove))
	l.disks.set(l.source)
	says("no other disk of class \"ssd\"", l.id, "ticket 7")
	l.disks.set(l.source, l.target)
	if d := says("waits for the scheduler"); d.State != diskv1alpha1.DiskDraining || d.Drain.Volumes != 1 || d.Drain.Bytes != 10*units.MiB || d.Drain.Done {
		t.Errorf("draining: %+v", d.Drain)
	}
	// All but 4 MiB of the other disk is reserved.
	other := *l.pv.DeepCopy()
	other.Name, other.UID = "pvc-other", "other"
	other.Spec.CSI.VolumeHandle = "pvc-99999999-bbbb-4ccc-8ddd-eeeeeeeeeeee"
	other.Spec.CSI.VolumeAttributes = diskv1alpha1.Place{Disk: l.target.ID(), Extent: diskv1alpha1.Extent{Start: 2 * units.MiB, Length: 249 * units.MiB}}.Attributes()
	other.Spec.CSI.VolumeAttributes[diskv1alpha1.AttributeClass] = "ssd"
	l.addVolume(&other)
	says("6Mi are missing to 10Mi")
	if err := l.options.Volumes.GetStore().Delete(&other); err != nil {
		t.Fatal(err)
	}
	unmount := l.mount(l.partition)
	pod := claiming("db-0", l.pv)
	if err := l.options.Pods.GetStore().Add(pod); err != nil {
		t.Fatal(err)
	}
	l.requestMoveTo(60, 10)
	says("pod "+pod.Namespace+"/db-0 uses it", "an operator may delete")
	if e := l.Evictions(); len(e) > 0 {
		t.Errorf("evictions without mode Evict: %+v", e)
	}
	l.decide(drained(l.source, diskv1alpha1.DrainEvict))
	says("which is evicted")
	if e := l.Evictions(); len(e) != 1 || e[0].UID != pod.UID {
		t.Errorf("evictions: %+v", e)
	}
	// Without another place it would come back to the same disk.
	l.change(func(pv *corev1.PersistentVolume) { delete(pv.Annotations, diskv1alpha1.AnnotationMoveTo) })
	if e := l.Evictions(); len(e) > 0 {
		t.Errorf("evictions without another place: %+v", e)
	}
	l.requestMoveTo(60, 10)
	bare := pod.DeepCopy()
	bare.OwnerReferences = nil
	if err := l.options.Pods.GetStore().Add(bare); err != nil {
		t.Fatal(err)
	}
	says("has no controller")
	if e := l.Evictions(); len(e) > 0 {
		t.Errorf("evictions without a controller: %+v", e)
	}
	unmount()
	if err := l.options.Pods.GetStore().Delete(bare); err != nil {
		t.Fatal(err)
	}
	says("when it is not in use")
	l.content = l.read()
	l.sync()
	l.checkDisk(l.target)
	if d := says("being wiped"); d.Drain.Done || d.Drain.Volumes != 0 {
		t.Errorf("moved: %+v", d.Drain)
	}
	l.watchAgain()
	l.sync()
	l.watchAgain()
	l.waitIdle()
	if d := says("it is drained: nothing is left"); !d.Drain.Done {
		t.Errorf("at the end: %+v", d.Drain)
	}
	if got := l.events.with("DiskCordoned", l.source.ID()); len(got) != 2 {
		t.Errorf("events: %q", l.events.with("NodeDiskCapacity"))
	}
	l.decide()
	says()
	if got := l.events.with("DiskUncordoned", l.source.ID()); len(got) != 1 {
		t.Errorf("events: %q", l.events.with("NodeDiskCapacity"))
	}
}

// TestDrainOfDiskOutOfService asserts that a disk that fails or is away stays cordoned, and keeps the message that says
// why it is out of service.
func TestDrainOfDiskOutOfService(t *testing.T) {
	f := newFixture(t)
	d := f.loopDisk()
	f.decide(drained(d, diskv1alpha1.DrainMove))
	f.published(d)
	failed := []diskv1alpha1.Disk{{ID: d.ID(), State: diskv1alpha1.DiskFailed, Message: "it is broken"}}
	if n := f.Drains(failed); n != 1 || failed[0].State != diskv1alpha1.DiskFailed || failed[0].Message != "it is broken" || failed[0].Drain == nil {
		t.Errorf("%d disks are cordoned, published %+v", n, failed)
	}
	f.Drains(nil)
	f.published(d)
	counts := func(cordoned, uncordoned int) {
		t.Helper()
		got := [2]int{len(f.events.with("DiskCordoned", d.ID())), len(f.events.with("DiskUncordoned", d.ID()))}
		if got != [2]int{cordoned, uncordoned} {
			t.Errorf("events: %q", f.events.with("NodeDiskCapacity"))
		}
	}
	counts(1, 0)
	f.decide()
	if n := f.Drains(failed); n != 0 {
		t.Errorf("%d disks are cordoned without a decision", n)
	}
	counts(1, 1)
}

// TestDrainOfInlineVolume asserts that an inline volume ends with its pod, which is evicted only in mode Evict and if a
// controller makes it again.
func TestDrainOfInlineVolume(t *testing.T) {
	f := newFixture(t)
	d := f.loopDisk()
	pods, _ := f.makePods("web")
	f.decide(drained(d, diskv1alpha1.DrainEvict))
	message := func() string { return f.published(d).Drain.Waiting[0].Message }
	if got := message(); !strings.Contains(got, "ends with pod "+keyOf(pods[0]).String()) || !strings.Contains(got, "no controller") {
		t.Errorf("published: %q", got)
	}
	isController := true
	owned := pods[0].DeepCopy()
	owned.OwnerReferences = []metav1.OwnerReference{{Kind: "DaemonSet", Name: "x", UID: "x", Controller: &isController}}
	f.addPod(owned)
	if e := f.Evictions(); len(e) != 1 || e[0].UID != owned.UID {
		t.Errorf("evictions: %+v", e)
	}
	f.decide(drained(d, diskv1alpha1.DrainMove))
	if e := f.Evictions(); len(e) > 0 || !strings.Contains(message(), "may delete") {
		t.Errorf("evictions: %+v, published %q", e, message())
	}
}

// TestCordonedDisk asserts that the node itself places nothing on a cordoned disk, except what the scheduler has placed
// there before.
func TestCordonedDisk(t *testing.T) {
	f := newFixture(t)
	a := f.loopDisk()
	b := f.loopDisk()
	f.disks.set(a, b)
	for _, test := range []struct {
		cordoned []discovery.Disk
		want     []string
	}{
		{nil, []string{a.ID(), b.ID()}},
		{[]discovery.Disk{a}, []string{b.ID()}},
		{[]discovery.Disk{b}, []string{a.ID()}},
		{[]discovery.Disk{a, b}, nil},
	} {
		var decisions []diskv1alpha1.DiskDecision
		for _, d := range test.cordoned {
			decisions = append(decisions, diskv1alpha1.DiskDecision{ID: d.ID(), Unschedulable: true})
		}
		f.decide(decisions...)
		placer := f.inlineController.placer
		spaces := placer.diskSpaces(f.disks.Disks())
		var takes []string
		for i := range spaces {
			pod, _ := inlinePod("web")
			volumes := []unplacedVolume{{Volume: mustRequest(t, pod), noRecordReason: "test"}}
			if _, err := decide(spaces[i:i+1], nil, volumes); err == nil {
				takes = append(takes, spaces[i].id)
			}
			volumes[0].recorded = &diskv1alpha1.RecordVolume{Name: "data", Disk: spaces[i].id, Extent: diskv1alpha1.Extent{Start: 2 * units.MiB, Length: 16 * units.MiB}}
			if at, err := decide(spaces[i:i+1], nil, volumes); err != nil || at[0].extent != extent.New(2*units.MiB, 16*units.MiB) {
				t.Errorf("a recorded place on disk %s: %+v, %v", spaces[i].id, at, err)
			}
		}
		slices.Sort(takes)
		slices.Sort(test.want)
		if !slices.Equal(takes, test.want) {
			t.Errorf("with %d cordoned, %v take volumes, want %v", len(test.cordoned), takes, test.want)
		}
		free, _ := placer.capacity("ssd")
		if want := int64(len(test.want)) * 253 * units.MiB; free != want {
			t.Errorf("with %d cordoned, %d bytes are free, want %d", len(test.cordoned), free, want)
		}
	}
}

// mustRequest is the one volume that a pod requests.
func mustRequest(t *testing.T, pod *corev1.Pod) request.Volume {
	t.Helper()
	volumes, err := request.FromPod(pod)
	if err != nil || len(volumes) != 1 {
		t.Fatalf("%+v, %v", volumes, err)
	}
	return volumes[0]
}
