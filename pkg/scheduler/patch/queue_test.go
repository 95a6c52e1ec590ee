package patch

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/cmd/kube-scheduler/app"
	"k8s.io/kubernetes/pkg/scheduler"
	"k8s.io/kubernetes/pkg/scheduler/apis/config/scheme"
	configv1 "k8s.io/kubernetes/pkg/scheduler/apis/config/v1"
	"k8s.io/kubernetes/pkg/scheduler/backend/queue"
	"k8s.io/kubernetes/pkg/scheduler/framework"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/plugins/diskcapacity"
	"github.com/berthdev/berth/pkg/plugins/volumebinding"
	"github.com/berthdev/berth/test/schedulers"
)

// counting is a queue that counts the pods for which hints are called.
type counting struct {
	queue.SchedulingQueue
	asked int
}

func (c *counting) MoveAllToActiveOrBackoffQueue(logger klog.Logger, event fwk.ClusterEvent, old, obj any, preCheck queue.PreEnqueueCheck) {
	c.asked = 0
	c.SchedulingQueue.MoveAllToActiveOrBackoffQueue(logger, event, old, obj, func(pod *corev1.Pod) bool {
		if preCheck != nil && !preCheck(pod) {
			return false
		}
		c.asked++
		return true
	})
}

// queued is a scheduler with the shipped configuration, and with pods in its queue.
type queued struct {
	*scheduler.Scheduler
	t       testing.TB
	logger  klog.Logger
	counted *counting
}

func newQueued(t testing.TB) *queued {
	t.Helper()
	for _, args := range []*runtime.Scheme{scheme.Scheme, configv1.GetPluginArgConversionScheme()} {
		if err := errors.Join(diskcapacity.AddArgsToScheme(args), volumebinding.AddArgsToScheme(args)); err != nil {
			t.Fatal(err)
		}
	}
	config, err := schedulers.Load(t, "../../../config/scheduler/kube-scheduler-config.yaml")
	if err != nil {
		t.Fatal(err)
	}
	s, err := schedulers.New(t, config, app.WithPlugin(diskcapacity.Name, diskcapacity.New), app.WithPlugin(volumebinding.Name, volumebinding.New))
	if err != nil {
		t.Fatal(err)
	}
	logger, _ := ktesting.NewTestContext(t)
	counted := &counting{SchedulingQueue: s.SchedulingQueue}
	s.SchedulingQueue = counted
	return &queued{s, t, logger, counted}
}

func (q *queued) filtered() *queued {
	q.t.Helper()
	if err := internalsOf(q.Scheduler).filterEvents(q.t.Context()); err != nil {
		q.t.Fatal(err)
	}
	return q
}

// reject runs a cycle of the pod in which these plugins reject it.
func (q *queued) reject(pod *corev1.Pod, plugins ...string) {
	q.t.Helper()
	if _, known := q.SchedulingQueue.GetPod(pod.Name, pod.Namespace); !known {
		q.SchedulingQueue.Add(q.t.Context(), pod)
	}
	info := q.SchedulingQueue.PopSpecificPod(q.logger, pod)
	if info == nil {
		q.t.Fatalf("pod %s is not in the queue", pod.Name)
	}
	info.ClearRejectorPlugins()
	info.UnschedulablePlugins = sets.New(plugins...)
	if err := q.SchedulingQueue.AddUnschedulableIfNotPresent(q.logger, info, q.SchedulingQueue.SchedulingCycle()); err != nil {
		q.t.Fatal(err)
	}
}

// waiting are the names of the pods that are unschedulable.
func (q *queued) waiting() []string {
	names := sets.New[string]()
	for _, pod := range q.SchedulingQueue.UnschedulablePods() {
		names.Insert(pod.Name)
	}
	return sets.List(names)
}

func waitingPod(profile, name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID("uid of " + name)},
		Spec:       corev1.PodSpec{SchedulerName: profile},
	}
}

// allEvents are kube-scheduler's events, and some that it does not have.
func allEvents() []fwk.ClusterEvent {
	all := []fwk.ClusterEvent{
		framework.EventAssignedPodAdd, framework.EventAssignedPodUpdate, framework.EventAssignedPodDelete,
		framework.EventUnscheduledPodAdd, framework.EventForceActivate,
	}
	for _, r := range framework.UnrollWildCardResource() {
		for action := fwk.Add; action <= fwk.All; action <<= 1 {
			all = append(all, fwk.ClusterEvent{Resource: r.Event.Resource, ActionType: action})
		}
	}
	return all
}

// TestFilteredQueue asserts that each event wakes the same pods with and without the filter. The events have no object,
// so every hint that is called fails, and its pod is tried.
func TestFilteredQueue(t *testing.T) {
	filtered, stock := newQueued(t).filtered(), newQueued(t)
	type rejected struct {
		pod *corev1.Pod
		by  []string
	}
	var pods []rejected
	for profile, built := range stock.Profiles {
		var names []string
		for _, e := range built.EnqueueExtensions() {
			names = append(names, e.Name())
		}
		slices.Sort(names)
		pods = append(pods, rejected{waitingPod(profile, profile+"-unknown"), []string{"Unknown"}})
		for i, name := range names {
			pods = append(pods,
				rejected{waitingPod(profile, profile+"-"+name), []string{name}},
				rejected{waitingPod(profile, profile+"-"+name+"-and-next"), []string{name, names[(i+1)%len(names)]}})
		}
	}
	asked, walked := 0, 0
	for _, event := range allEvents() {
		for _, q := range []*queued{filtered, stock} {
			for _, p := range pods {
				q.reject(p.pod.DeepCopy(), p.by...)
			}
			if have := len(q.waiting()); have != len(pods) {
				t.Fatalf("%d pods wait, want %d", have, len(pods))
			}
			if framework.ClusterEventIsWildCard(event) {
				q.SchedulingQueue.MoveAllToActiveOrBackoffQueue(q.logger, event, nil, nil, nil)
				continue
			}
			q.SchedulingQueue.MoveAllToActiveOrBackoffQueue(q.logger, event, "no object", "no object", nil)
		}
		if diff := cmp.Diff(stock.waiting(), filtered.waiting()); diff != "" {
			t.Errorf("%v leaves other pods waiting than it does without the filter:\n%s", event, diff)
		}
		asked, walked = asked+filtered.counted.asked, walked+stock.counted.asked
	}
	t.Logf("of %d pods %d were asked", walked, asked)
}

// boundPods are a pod without and one with a volume of Berth, both on a node.
func boundPods() (plain, disk *corev1.Pod) {
	plain = waitingPod("berth", "plain")
	plain.Spec.NodeName = "n1"
	disk = plain.DeepCopy()
	disk.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{Driver: diskv1alpha1.DriverName}}}}
	return plain, disk
}

// TestWaitingAreNotAsked asserts that events of pods without disk volumes call no hint of the pods that wait for space.
func TestWaitingAreNotAsked(t *testing.T) {
	const count = 100
	plain, disk := boundPods()
	for name, test := range map[string]struct {
		event    fwk.ClusterEvent
		old, obj any
		asked    int
	}{
		"a pod is bound":           {framework.EventAssignedPodAdd, nil, plain, 1},
		"a disk pod is bound":      {framework.EventAssignedPodAdd, nil, disk, 1},
		"a pod has ended":          {framework.EventAssignedPodDelete, plain, nil, 3},
		"a disk pod has ended":     {framework.EventAssignedPodDelete, disk, nil, 3},
		"a node has another taint": {fwk.ClusterEvent{Resource: fwk.Node, ActionType: fwk.UpdateNodeTaint}, &corev1.Node{}, &corev1.Node{}, count + 3},
	} {
		t.Run(name, func(t *testing.T) {
			q := newQueued(t).filtered()
			for i := range count {
				q.reject(waitingPod("berth", fmt.Sprintf("waits-%d", i)), diskcapacity.Name)
			}
			q.reject(waitingPod("berth", "waits-for-two"), diskcapacity.Name, "NodeResourcesFit")
			q.reject(waitingPod("default-scheduler", "waits-for-cpu"), "NodeResourcesFit")
			q.reject(waitingPod("berth", "waits-beside"), "InterPodAffinity")
			q.SchedulingQueue.MoveAllToActiveOrBackoffQueue(q.logger, test.event, test.old, test.obj, func(*corev1.Pod) bool { return true })
			if q.counted.asked != test.asked {
				t.Errorf("%d pods were asked, want %d", q.counted.asked, test.asked)
			}
		})
	}
}

// TestGatedAreAsked asserts that a pod that a plugin gates since it was rejected gets the events of that plugin.
func TestGatedAreAsked(t *testing.T) {
	q := newQueued(t).filtered()
	pod := waitingPod("berth", "gated")
	q.reject(pod, "InterPodAffinity")
	info, _ := q.SchedulingQueue.GetPod(pod.Name, pod.Namespace)
	info.GatingPlugin = diskcapacity.Name
	q.SchedulingQueue.MoveAllToActiveOrBackoffQueue(q.logger, fwk.ClusterEvent{Resource: fwk.PersistentVolumeClaim, ActionType: fwk.Add}, nil, "no object", nil)
	if q.counted.asked != 1 {
		t.Error("a pod that is held back was not asked")
	}
}

// TestFilteredQueueRemembers asserts that the rejection of a pod is kept for the queue's present object of it, until it
// is bound or gone.
func TestFilteredQueueRemembers(t *testing.T) {
	q := newQueued(t).filtered()
	pod := waitingPod("berth", "changes")
	q.reject(pod, diskcapacity.Name)
	for range 2 {
		changed := pod.DeepCopy()
		changed.ResourceVersion += "1"
		changed.Status.Conditions = append(changed.Status.Conditions, corev1.PodCondition{Type: corev1.PodScheduled, Status: corev1.ConditionFalse})
		q.SchedulingQueue.Update(t.Context(), pod, changed)
		pod = changed
	}
	event := func() {
		q.SchedulingQueue.MoveAllToActiveOrBackoffQueue(q.logger, framework.EventAssignedPodAdd, nil, waitingPod("berth", "bound"), nil)
	}
	if event(); q.counted.asked != 0 || len(q.waiting()) != 1 {
		t.Errorf("of %v, %d were asked in vain", q.waiting(), q.counted.asked)
	}
	// The next time another plugin rejects it.
	q.reject(pod, "InterPodAffinity")
	if event(); q.counted.asked != 1 {
		t.Error("it was not asked what it is concerned by now")
	}
	q.SchedulingQueue.Delete(pod)
	if s, ok := q.SchedulingQueue.(*filteredQueue); !ok || len(s.pods)+len(s.rejections) > 0 {
		t.Errorf("%d and %d pods are remembered", len(s.pods), len(s.rejections))
	}
}
