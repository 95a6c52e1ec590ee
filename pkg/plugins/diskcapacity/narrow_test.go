package diskcapacity

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/defaultbinder"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/queuesort"
	frameworkruntime "k8s.io/kubernetes/pkg/scheduler/framework/runtime"
	st "k8s.io/kubernetes/pkg/scheduler/testing"
	tf "k8s.io/kubernetes/pkg/scheduler/testing/framework"
	testingclock "k8s.io/utils/clock/testing"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/request"
	"github.com/berthdev/berth/test/objects"
)

// largeCluster makes a cluster whose node i has 10+i GiB free.
func largeCluster(t *testing.T, count int) *bench {
	t.Helper()
	names := make([]string, count)
	for i := range names {
		names[i] = fmt.Sprintf("n%04d", i)
	}
	b := newBench(t, nil, names...)
	for i, name := range names {
		b.publish(t, name, int64(10+i))
	}
	return b
}

// triedOn returns the nodes that PreFilter leaves, sorted; nil for all.
func (b *bench) triedOn(t *testing.T, pod *corev1.Pod) (fwk.CycleState, []string) {
	t.Helper()
	state := framework.NewCycleState()
	result, status, _ := b.framework.RunPreFilterPlugins(b.ctx, state, pod)
	if !status.IsSuccess() {
		t.Fatal(status)
	}
	if result.AllNodes() {
		return state, nil
	}
	return state, slices.Sorted(func(yield func(string) bool) {
		for name := range result.NodeNames {
			if !yield(name) {
				return
			}
		}
	})
}

func TestNarrowedToTheTightest(t *testing.T) {
	b := largeCluster(t, 250)
	// Two nodes do not count, although they fit tightly: one has no agent, and one refused the pod.
	b.agent(t, "n0020")
	pod := podOf("a", 30)
	b.plugin.ledger.RecordRefusal(string(pod.UID), "n0021", "forbidden", time.Now())
	_, names := b.triedOn(t, pod)
	var want []string
	for i := 22; i < 22+narrowTo; i++ {
		want = append(want, fmt.Sprintf("n%04d", i))
	}
	if !slices.Equal(names, want) {
		t.Errorf("tried on %v", names)
	}
	// Fewer nodes fit than are tried.
	if _, names := b.triedOn(t, podOf("b", 258)); !slices.Equal(names, []string{"n0248", "n0249"}) {
		t.Errorf("tried on %v, want the two that have room", names)
	}
}

// TestNarrowedBesideNominated asserts that a node whose room is kept for a nominated pod is not among those that a pod
// is narrowed to. It is again when that pod is no longer nominated, is bound, or is gone.
func TestNarrowedBesideNominated(t *testing.T) {
	const tightest = "n0020"
	tests := map[string]struct {
		change func(*bench, *corev1.Pod)
		tried  bool
	}{
		"is nominated": {func(*bench, *corev1.Pod) {}, false},
		"is nominated elsewhere": {func(b *bench, pod *corev1.Pod) {
			pod.Status.NominatedNodeName = "n0149"
			b.store(t, pod)
		}, true},
		"is no longer nominated": {func(b *bench, pod *corev1.Pod) {
			pod.Status.NominatedNodeName = ""
			b.store(t, pod)
		}, true},
		"is bound": {func(b *bench, pod *corev1.Pod) {
			pod.Spec.NodeName = "n0149"
			b.store(t, pod)
		}, true},
		"is gone": {func(b *bench, pod *corev1.Pod) {
			b.removeFromStore(t, pod)
			b.plugin.feed.foldPod(klog.Background(), pod)
		}, true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			b := largeCluster(t, 150)
			nominated := podOf("nominated", 30)
			nominated.Status.NominatedNodeName = tightest
			b.nominated.nominate(t, tightest, nominated)
			b.store(t, nominated)
			if test.tried {
				clear(b.nominated)
			}
			test.change(b, nominated.DeepCopy())
			_, names := b.triedOn(t, podOf("a", 30))
			if slices.Contains(names, tightest) != test.tried || len(names) != narrowTo {
				t.Errorf("tried on %v", names)
			}
			if n := b.plugin.feed.nominations; len(n.nodes) != len(n.counts) || n.on(tightest) == test.tried {
				t.Errorf("nominated are %v, %v", n.nodes, n.counts)
			}
		})
	}
}

// TestGlobalBestFit asserts that the tightest of a thousand nodes is found every time.
func TestGlobalBestFit(t *testing.T) {
	b := largeCluster(t, 1000)
	for i := range 50 {
		// Each takes all that its node has.
		pod := podOf(fmt.Sprint("pod-", i), int64(10+7*i))
		state, names := b.triedOn(t, pod)
		if len(names) != narrowTo {
			t.Fatalf("tried on %d nodes", len(names))
		}
		var best string
		var highest int64 = -1
		for _, name := range names {
			info := b.node(name)
			if status := b.plugin.Filter(b.ctx, state, pod, info); !status.IsSuccess() {
				t.Fatalf("%s: %v", name, status)
			}
			score, _ := b.plugin.Score(b.ctx, state, pod, info)
			if score > highest {
				best, highest = name, score
			}
		}
		if want := fmt.Sprintf("n%04d", 7*i); best != want {
			t.Fatalf("%d GiB go to %s, want %s", 10+7*i, best, want)
		}
		if status := b.plugin.Reserve(b.ctx, state, pod, best); !status.IsSuccess() {
			t.Fatal(status)
		}
	}
}

func TestNotNarrowed(t *testing.T) {
	tests := map[string]func(*bench, *corev1.Pod){
		"node selector": func(_ *bench, pod *corev1.Pod) { pod.Spec.NodeSelector = map[string]string{"zone": "a"} },
		"affinity":      func(_ *bench, pod *corev1.Pod) { pod.Spec.Affinity = &corev1.Affinity{} },
		"spreading": func(_ *bench, pod *corev1.Pod) {
			pod.Spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{}}
		},
		"claims devices": func(_ *bench, pod *corev1.Pod) { pod.Spec.ResourceClaims = []corev1.PodResourceClaim{{}} },
		"other volumes": func(_ *bench, pod *corev1.Pod) {
			pod.Spec.Volumes = append(pod.Spec.Volumes, objects.ClaimVolume("", "other"))
		},
		"of a group": func(_ *bench, pod *corev1.Pod) { pod.Spec.SchedulingGroup = &corev1.PodSchedulingGroup{} },
		"nominated":  func(_ *bench, pod *corev1.Pod) { pod.Status.NominatedNodeName = "n0001" },
		"in doubt": func(b *bench, pod *corev1.Pod) {
			volumes, err := request.FromPod(pod)
			if err != nil {
				panic(err)
			}
			if _, err := b.plugin.ledger.Reserve(string(pod.UID), "n0001", volumeRequestsOf(volumes)); err != nil {
				panic(err)
			}
		},
		"fits nowhere": func(_ *bench, pod *corev1.Pod) {
			pod.Spec.Volumes[0].CSI.VolumeAttributes[diskv1alpha1.AttributeSize] = "900Gi"
		},
	}
	b := largeCluster(t, 101)
	if _, names := b.triedOn(t, podOf("plain", 5)); len(names) != narrowTo {
		t.Fatalf("a pod without any of it is tried on %d nodes", len(names))
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			pod := podOf(name, 5)
			change(b, pod)
			if _, names := b.triedOn(t, pod); names != nil {
				t.Errorf("tried on %d nodes only", len(names))
			}
		})
	}
	if _, names := largeCluster(t, 100).triedOn(t, podOf("a", 5)); names != nil {
		t.Errorf("of 100 nodes, %d are tried", len(names))
	}
}

// TestWidened asserts that a pod that fits none of the narrowed nodes is tried at once on all nodes, until it is bound
// or gone. No pod is preempted before.
func TestWidened(t *testing.T) {
	b := largeCluster(t, 150)
	clock := testingclock.NewFakeClock(time.Now())
	b.plugin.feed.narrowing = newNarrowing(clock)
	pod := podOf("a", 5)
	b.store(t, pod)
	state, names := b.triedOn(t, pod)
	if names == nil {
		t.Fatal("not narrowed")
	}
	preempting := func(state fwk.CycleState, pod *corev1.Pod) bool {
		result, status := b.framework.RunPostFilterPlugins(b.ctx, state, pod, framework.NewDefaultNodeToStatus())
		if result != nil || status.IsSuccess() {
			t.Fatalf("PostFilter says %v, %v", result, status)
		}
		// The next plugin, which preempts, does not run with this status.
		return status.Code() != fwk.UnschedulableAndUnresolvable
	}
	if preempting(state, pod) {
		t.Error("preempts although most nodes were not looked at")
	}
	if b.activated["default/a"] != 1 {
		t.Errorf("activated %v", b.activated)
	}
	for range 2 {
		state, names = b.triedOn(t, pod)
		if names != nil {
			t.Fatalf("tried on %d nodes once more", len(names))
		}
		if !preempting(state, pod) {
			t.Error("does not preempt although all nodes were looked at")
		}
	}
	if b.activated["default/a"] != 1 {
		t.Errorf("activated again: %v", b.activated)
	}
	clock.Step(narrowPause)
	if _, names := b.triedOn(t, pod); names != nil {
		t.Error("the pod itself is narrowed again")
	}

	bound := pod.DeepCopy()
	bound.Spec.NodeName = "n0001"
	b.store(t, bound)
	if n := len(b.plugin.feed.narrowing.wide); n != 0 {
		t.Errorf("%d pods are remembered after the only one was bound", n)
	}
}

// TestPauseConcernsOrigin asserts which pods are not narrowed for a while after a pod that was narrowed in vain: those
// of the same controller, or, without a controller, those of the same namespace.
func TestPauseConcernsOrigin(t *testing.T) {
	of := func(name, namespace, controller string) *corev1.Pod {
		pod := podOf(name, 5)
		pod.Namespace = namespace
		if controller != "" {
			pod.OwnerReferences = []metav1.OwnerReference{{UID: types.UID(controller), Controller: new(true)}}
		}
		return pod
	}
	for _, test := range []struct {
		name   string
		failed *corev1.Pod
		others map[*corev1.Pod]bool // narrowed
	}{
		{"of a controller", of("a", "default", "set"), map[*corev1.Pod]bool{of("b", "default", "set"): false, of("c", "default", "other"): true, of("d", "default", ""): true}},
		{"of no controller", of("a", "default", ""), map[*corev1.Pod]bool{of("b", "default", ""): false, of("c", "default", "set"): true, of("d", "other", ""): true}},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := largeCluster(t, 101)
			clock := testingclock.NewFakeClock(time.Now())
			b.plugin.feed.narrowing = newNarrowing(clock)
			b.plugin.feed.widen(test.failed)
			for pod, want := range test.others {
				if _, names := b.triedOn(t, pod); (names != nil) != want {
					t.Errorf("pod %s/%s of %v is narrowed: %v", pod.Namespace, pod.Name, pod.OwnerReferences, names != nil)
				}
			}
			clock.Step(narrowPause)
			for pod := range test.others {
				if _, names := b.triedOn(t, pod); names == nil {
					t.Errorf("pod %s/%s is not narrowed after the pause", pod.Namespace, pod.Name)
				}
			}
		})
	}
}

// TestNarrowedToNodesThatAdmit asserts that nodes are left out that kube-scheduler's checks of the node alone refuse.
// Nodes that the pod tolerates or fits are not left out.
func TestNarrowedToNodesThatAdmit(t *testing.T) {
	taint := func(key string, effect corev1.TaintEffect) func(*corev1.Node) {
		return func(n *corev1.Node) { n.Spec.Taints = []corev1.Taint{{Key: key, Effect: effect}} }
	}
	running := func(pod *corev1.Pod) func(fwk.NodeInfo) {
		return func(info fwk.NodeInfo) {
			podInfo, err := framework.NewPodInfo(pod)
			if err != nil {
				t.Fatal(err)
			}
			info.AddPodInfo(podInfo)
		}
	}
	withInit := func(sidecar bool) *corev1.Pod {
		init := corev1.Container{Ports: []corev1.ContainerPort{{HostPort: 80}}}
		if sidecar {
			init.RestartPolicy = new(corev1.ContainerRestartPolicyAlways)
		}
		pod := st.MakePod().Obj()
		pod.Spec.InitContainers = []corev1.Container{init}
		return pod
	}
	tolerant := func(key string) *corev1.Pod { return st.MakePod().Toleration(key).Obj() }
	for _, test := range []struct {
		name   string
		node   func(*corev1.Node)
		runs   func(fwk.NodeInfo)
		pod    *corev1.Pod // its spec, but for the volume
		admits bool
		only   bool // no other node admits it
	}{
		{name: "as others are", admits: true},
		{name: "cordoned", node: func(n *corev1.Node) { n.Spec.Unschedulable = true }},
		{name: "cordoned, tolerated", node: func(n *corev1.Node) { n.Spec.Unschedulable = true }, pod: tolerant(corev1.TaintNodeUnschedulable), admits: true},
		{name: "NoSchedule", node: taint("gpu", corev1.TaintEffectNoSchedule)},
		{name: "NoExecute", node: taint("gpu", corev1.TaintEffectNoExecute)},
		{name: "PreferNoSchedule", node: taint("gpu", corev1.TaintEffectPreferNoSchedule), admits: true},
		{name: "NoSchedule, tolerated", node: taint("gpu", corev1.TaintEffectNoSchedule), pod: tolerant("gpu"), admits: true},
		{name: "no CPU left", runs: running(st.MakePod().Req(map[corev1.ResourceName]string{corev1.ResourceCPU: "7"}).Obj()), pod: st.MakePod().Req(map[corev1.ResourceName]string{corev1.ResourceCPU: "2"}).Obj()},
		{name: "CPU left", runs: running(st.MakePod().Req(map[corev1.ResourceName]string{corev1.ResourceCPU: "7"}).Obj()), pod: st.MakePod().Req(map[corev1.ResourceName]string{corev1.ResourceCPU: "1"}).Obj(), admits: true},
		{name: "no memory left", runs: running(st.MakePod().Req(map[corev1.ResourceName]string{corev1.ResourceMemory: "60Gi"}).Obj()), pod: st.MakePod().Req(map[corev1.ResourceName]string{corev1.ResourceMemory: "8Gi"}).Obj()},
		{name: "no ephemeral storage", pod: st.MakePod().Req(map[corev1.ResourceName]string{corev1.ResourceEphemeralStorage: "1Gi"}).Obj()},
		{name: "no such device", pod: st.MakePod().Req(map[corev1.ResourceName]string{"example.com/gpu": "1"}).Obj()},
		{name: "a device", node: func(n *corev1.Node) { n.Status.Allocatable["example.com/gpu"] = resource.MustParse("1") }, pod: st.MakePod().Req(map[corev1.ResourceName]string{"example.com/gpu": "1"}).Obj(), admits: true, only: true},
		{name: "no pod more", node: func(n *corev1.Node) { n.Status.Allocatable[corev1.ResourcePods] = resource.MustParse("0") }},
		{name: "host port taken", runs: running(st.MakePod().HostPort(80).Obj()), pod: st.MakePod().HostPort(80).Obj()},
		{name: "host port of a sidecar taken", runs: running(st.MakePod().HostPort(80).Obj()), pod: withInit(true)},
		{name: "host port of an init container", runs: running(st.MakePod().HostPort(80).Obj()), pod: withInit(false), admits: true},
		{name: "host port free", runs: running(st.MakePod().HostPort(80).Obj()), pod: st.MakePod().HostPort(81).Obj(), admits: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := largeCluster(t, 101)
			tightest := b.node("n0000")
			if test.node != nil {
				node := tightest.Node().DeepCopy()
				test.node(node)
				tightest.SetNode(node)
			}
			if test.runs != nil {
				test.runs(tightest)
			}
			pod := podOf("a", 5)
			if test.pod != nil {
				volumes := pod.Spec.Volumes
				pod.Spec = test.pod.Spec
				pod.Spec.Volumes = volumes
			}
			_, names := b.triedOn(t, pod)
			switch {
			case test.only:
				if !slices.Equal(names, []string{"n0000"}) {
					t.Errorf("tried on %v", names)
				}
			case !test.admits && names == nil: // no node does
			case len(names) != narrowTo || slices.Contains(names, "n0000") != test.admits:
				t.Errorf("tried on %v", names)
			}
		})
	}
}

// pinningPlugin is a plugin that allows every pod one node only.
type pinningPlugin string

func (e pinningPlugin) Name() string                                 { return "Elsewhere" }
func (e pinningPlugin) PreFilterExtensions() fwk.PreFilterExtensions { return nil }
func (e pinningPlugin) PreFilter(context.Context, fwk.CycleState, *corev1.Pod, []fwk.NodeInfo) (*fwk.PreFilterResult, *fwk.Status) {
	return &fwk.PreFilterResult{NodeNames: sets.New(string(e))}, nil
}

// TestWidenedIfPluginsDisagree asserts that a pod is widened when another plugin's PreFilter leaves a node that is not
// among the tightest. The cycle then ends before any Filter.
func TestWidenedIfPluginsDisagree(t *testing.T) {
	b := largeCluster(t, 150)
	both, err := tf.NewFramework(b.ctx, []tf.RegisterPluginFunc{
		tf.RegisterQueueSortPlugin(queuesort.Name, queuesort.New),
		tf.RegisterPluginAsExtensions(Name, func(context.Context, runtime.Object, fwk.Handle) (fwk.Plugin, error) { return b.plugin, nil }, "PreFilter", "PostFilter"),
		tf.RegisterPreFilterPlugin("Elsewhere", func(context.Context, runtime.Object, fwk.Handle) (fwk.Plugin, error) {
			return pinningPlugin("n0149"), nil
		}),
		tf.RegisterBindPlugin(defaultbinder.Name, defaultbinder.New),
	}, "berth", frameworkruntime.WithSnapshotSharedLister(b.plugin.handle.SnapshotSharedLister()))
	if err != nil {
		t.Fatal(err)
	}
	pod := podOf("a", 5)
	b.store(t, pod)
	state := framework.NewCycleState()
	if _, status, _ := both.RunPreFilterPlugins(b.ctx, state, pod); status.Code() != fwk.UnschedulableAndUnresolvable {
		t.Fatalf("PreFilter says %v, want that no node is left", status)
	}
	both.RunPostFilterPlugins(b.ctx, state, pod, framework.NewDefaultNodeToStatus())
	if b.activated["default/a"] != 1 {
		t.Error("the pod is not tried again")
	}
	result, status, _ := both.RunPreFilterPlugins(b.ctx, framework.NewCycleState(), pod)
	if !status.IsSuccess() || !result.NodeNames.Equal(sets.New("n0149")) {
		t.Errorf("the next time PreFilter says %v, %v", result, status)
	}
}

// TestWidenedPodIsForgotten asserts that a widened pod is forgotten, in whatever order its deletion and its failure
// come.
func TestWidenedPodIsForgotten(t *testing.T) {
	b := largeCluster(t, 101)
	wide := func() int { return len(b.plugin.feed.narrowing.wide) }
	pod := podOf("a", 5)
	b.store(t, pod)
	b.plugin.feed.widen(pod)
	if wide() != 1 {
		t.Fatal("not remembered")
	}
	b.removeFromStore(t, pod)
	b.plugin.feed.foldObject(b.plugin.feed.capacities.logger, pod)
	if wide() != 0 {
		t.Error("remembered after it was deleted")
	}
	b.plugin.feed.widen(pod)
	if wide() != 0 {
		t.Error("a pod that is gone is remembered")
	}
}
