package diskcapacity

import (
	"fmt"
	"math/rand/v2"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/units"
)

// TestNoWakeUpIsLost changes what a node publishes, its pods and its agent at random. It delivers the events to the
// plugin's watch and to the hints at different times, each in their order. It asserts that a rejected pod is woken when
// it fits.
func TestNoWakeUpIsLost(t *testing.T) {
	b := newBench(t, nil, "n1")
	woken, skipped := 0, 0
	for seed := range uint64(400) {
		w := &wakeWorld{t: t, bench: b, rng: rand.New(rand.NewPCG(seed, 3)), seed: seed}
		w.run()
		woken, skipped = woken+w.woken, skipped+w.skipped
	}
	if woken < 100 || skipped < 100 {
		t.Errorf("hints woke %d times and skipped %d: the test covers little", woken, skipped)
	}
}

type wakeWorld struct {
	t     *testing.T
	bench *bench
	rng   *rand.Rand
	seed  uint64
	over  bool

	csiNode *storagev1.CSINode
	pod     *corev1.Pod // pending
	pods    []*corev1.Pod
	next    int
	// events that the plugin's watch and the hints have not handled yet.
	watch, hints   []func()
	woken, skipped int
}

func (w *wakeWorld) run() {
	w.csiNode = w.bench.csiNode(w.t, "n1", diskv1alpha1.DriverName)
	w.await(podOf(fmt.Sprint("pending-", w.seed), 4))
	w.publish()
	w.deliver()
	for range 40 {
		switch w.rng.IntN(8) {
		case 0, 1:
			w.publish()
		case 2:
			w.bind()
		case 3, 6:
			w.remove()
		case 4:
			w.handle(&w.watch)
		case 5:
			w.handle(&w.hints)
		case 7:
			w.register()
		}
	}
	if len(w.csiNode.Spec.Drivers) == 0 {
		w.register()
	}
	w.deliver()
	if w.try() {
		w.t.Errorf("seed %d: the pod fits, but was left pending", w.seed)
	}
	w.over = true
	w.bench.removeFromStore(w.t, w.pod)
	w.bench.plugin.feed.foldPod(klog.Background(), w.pod)
	for len(w.pods) > 0 {
		w.remove()
	}
	w.deliver()
}

func (w *wakeWorld) deliver() {
	for len(w.watch)+len(w.hints) > 0 {
		w.handle(&w.watch)
		w.handle(&w.hints)
	}
}

func (w *wakeWorld) handle(events *[]func()) {
	if len(*events) == 0 {
		return
	}
	event := (*events)[0]
	*events = (*events)[1:]
	event()
	w.bench.runLater()
	if w.bench.woken(w.pod) {
		w.answer(fwk.Queue, nil)
	}
}

// await makes the pod the pending one, and runs its cycle.
func (w *wakeWorld) await(pod *corev1.Pod) {
	w.pod = pod
	w.bench.store(w.t, pod)
	w.try()
}

// answer handles the result of a hint. A pod that is woken is tried. If it fits, an equal pod that was rejected before
// becomes the pending one.
func (w *wakeWorld) answer(hint fwk.QueueingHint, err error) {
	if err != nil {
		w.t.Fatal(err)
	}
	if hint == fwk.QueueSkip || w.over {
		w.skipped++
		return
	}
	w.woken++
	if !w.try() {
		return
	}
	// It takes its place, so that the equal pod does not fit.
	state, _ := w.bench.filter(w.t, w.pod)
	if status := w.bench.framework.RunReservePluginsReserve(w.bench.ctx, state, w.pod, "n1"); !status.IsSuccess() {
		w.t.Fatal(status)
	}
	bound := w.pod.DeepCopy()
	value, err := w.bench.plugin.encodeRecord(w.pod, "n1", mustVolumes(w.t, w.pod))
	if err != nil {
		w.t.Fatal(err)
	}
	bound.Spec.NodeName, bound.Annotations = "n1", map[string]string{diskv1alpha1.AnnotationAllocation: value}
	w.bench.store(w.t, bound)
	w.pods = append(w.pods, bound)
	w.next++
	w.await(podOf(fmt.Sprintf("pending-%d-%d", w.seed, w.next), 4))
	if w.try() {
		w.answer(fwk.Queue, nil) // there was room for two
	}
}

func (w *wakeWorld) try() bool {
	_, statuses := w.bench.filter(w.t, w.pod)
	return statuses["n1"].IsSuccess()
}

// publish publishes some of the pods' volumes, at their place or elsewhere, and removes some of the rest of the disk.
func (w *wakeWorld) publish() {
	ndc := w.bench.capacity("n1", 0)
	disk := &ndc.Status.Disks[0]
	taken := make([]bool, 16)
	for i := range taken {
		taken[i] = w.rng.IntN(5) == 0
	}
	for _, pod := range w.pods {
		if w.rng.IntN(2) == 0 {
			continue
		}
		size := int(mustVolumes(w.t, pod)[0].Request.Size / units.GiB)
		at := w.rng.IntN(len(taken) - size)
		if w.overlaps(disk.Allocations, at, size) {
			continue
		}
		disk.Allocations = append(disk.Allocations, volumeOf(pod, int64(at), int64(size)))
		for i := at; i < at+size; i++ {
			taken[i] = true
		}
	}
	for i := 0; i < len(taken); i++ {
		from := i
		for i < len(taken) && !taken[i] {
			i++
		}
		if i > from {
			disk.Free = append(disk.Free, diskv1alpha1.Extent{Start: diskv1alpha1.Alignment + int64(from)*units.GiB, Length: int64(i-from) * units.GiB})
		}
	}
	w.watch = append(w.watch, func() {
		if err := w.bench.plugin.feed.capacities.Add(ndc); err != nil {
			w.t.Fatal(err)
		}
	})
}

func (w *wakeWorld) overlaps(volumes []diskv1alpha1.Allocation, at, size int) bool {
	for _, v := range volumes {
		start := (v.Start - diskv1alpha1.Alignment) / units.GiB
		if int64(at) < start+v.Length/units.GiB && start < int64(at+size) {
			return true
		}
	}
	return false
}

// bind binds a pod here, as another scheduler does.
func (w *wakeWorld) bind() {
	w.next++
	pod := podOf(fmt.Sprintf("bound-%d-%d", w.seed, w.next), int64(1+w.rng.IntN(3)))
	at := volumeOf(pod, int64(w.rng.IntN(10)), mustVolumes(w.t, pod)[0].Request.Size/units.GiB)
	value, err := diskv1alpha1.EncodeRecord([]diskv1alpha1.RecordVolume{{Name: "data", Disk: diskOf("n1"), Extent: at.Extent}})
	if err != nil {
		w.t.Fatal(err)
	}
	pod.Spec.NodeName, pod.Annotations = "n1", map[string]string{diskv1alpha1.AnnotationAllocation: value}
	if err := w.bench.plugin.feed.pods.Add(pod); err != nil {
		w.t.Fatal(err)
	}
	w.pods = append(w.pods, pod)
	w.watch = append(w.watch, func() { w.bench.plugin.feed.foldPod(klog.Background(), pod) })
}

// register registers the agent, or removes it.
func (w *wakeWorld) register() {
	var drivers []string
	if len(w.csiNode.Spec.Drivers) == 0 {
		drivers = append(drivers, diskv1alpha1.DriverName)
	}
	before, after := w.csiNode, w.bench.csiNode(w.t, "n1", drivers...)
	w.csiNode = after
	w.watch = append(w.watch, func() { w.bench.plugin.feed.foldCSINodeEvent(klog.Background(), after) })
	w.hints = append(w.hints, func() { w.answer(w.bench.plugin.afterCSINode(klog.Background(), w.pod, before, after)) })
}

func (w *wakeWorld) remove() {
	if len(w.pods) == 0 {
		return
	}
	i := w.rng.IntN(len(w.pods))
	pod := w.pods[i]
	w.pods = append(w.pods[:i:i], w.pods[i+1:]...)
	w.bench.removeFromStore(w.t, pod)
	w.watch = append(w.watch, func() { w.bench.plugin.feed.foldPodEnd(klog.Background(), pod) })
	w.hints = append(w.hints, func() { w.answer(w.bench.plugin.afterPodDeleted(klog.Background(), w.pod, pod, nil)) })
}
