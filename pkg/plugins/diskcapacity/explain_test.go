package diskcapacity

import (
	"context"
	"fmt"
	"testing"

	"k8s.io/client-go/util/workqueue"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/framework"
	st "k8s.io/kubernetes/pkg/scheduler/testing"

	corev1 "k8s.io/api/core/v1"
)

// failureMessage is the message of the pod's event when no node fits: what kube-scheduler makes of the plugin's
// statuses. As there, Filter runs for many nodes at once.
func (b *bench) failureMessage(t *testing.T, pod *corev1.Pod) string {
	t.Helper()
	state := framework.NewCycleState()
	if _, status, _ := b.framework.RunPreFilterPlugins(b.ctx, state, pod); !status.IsSuccess() {
		t.Fatal(status)
	}
	statuses := make([]*fwk.Status, len(b.nodes))
	workqueue.ParallelizeUntil(b.ctx, 16, len(b.nodes), func(i int) {
		statuses[i] = b.framework.RunFilterPluginsWithNominatedPods(b.ctx, state, pod, b.nodes[i])
	})
	failed := &framework.FitError{Pod: pod, NumAllNodes: len(b.nodes), Diagnosis: framework.Diagnosis{NodeToStatus: framework.NewDefaultNodeToStatus()}}
	for i, status := range statuses {
		if status.IsSuccess() {
			t.Fatalf("node %s takes the pod", b.nodes[i].Node().Name)
		}
		failed.Diagnosis.NodeToStatus.Set(b.nodes[i].Node().Name, status)
	}
	_, status := b.framework.RunPostFilterPlugins(b.ctx, state, pod, failed.Diagnosis.NodeToStatus)
	failed.Diagnosis.PostFilterMsg = status.Message()
	return failed.Error()
}

// TestMessageOfManyNodes asserts that the message about 5000 nodes says what they lack, how many lack it, and which is
// the nearest. It asserts that the message is the same in any order of the nodes.
func TestMessageOfManyNodes(t *testing.T) {
	const count = 5000
	names := make([]string, count)
	for i := range names {
		names[i] = fmt.Sprintf("node-%04d", i)
	}
	b := newBench(t, nil, names...)
	old := volumeOf(podOf("old", 200), 0, 200)
	for i, name := range names {
		switch {
		case i < 20:
			b.agent(t, name)
		case i < 25:
			nonsense := b.capacity(name, 10)
			nonsense.Status.Disks[0].Size = int64(i)
			if err := b.plugin.feed.capacities.Add(nonsense); err != nil {
				t.Fatal(err)
			}
		case i < 100:
			b.publish(t, name, 0, old)
		case i == 1234, i == 4321:
			b.publish(t, name, 96, old)
		default:
			b.publish(t, name, int64(i%90+1), old)
		}
	}
	const others = "0/5000 nodes are available: 20 the agent of Berth is not registered with the kubelet of this node, "
	tests := map[string]struct {
		pod  *corev1.Pod
		want string
	}{
		"one volume": {podOf("a", 100), others +
			"4900 largest free extent of class ssd is below 100Gi, 5 " + reasonProblems + ", 75 no free space of class ssd. Best is 96Gi on node-1234"},
		"two volumes": {withVolume(podOf("a", 90), "log", "50Gi", "ssd"), others +
			"4844 largest free extent of class ssd is below 90Gi, 5 " + reasonProblems + ", " +
			"56 not enough free space of class ssd, 2 volumes (90Gi + 50Gi) want 140Gi, 75 no free space of class ssd. " +
			"Best is 89Gi on node-0178, 96Gi in all on node-1234"},
		"another class": {withVolume(podOf("a", 1), "log", "1Gi", "hdd"), others +
			"4975 no disk of class hdd, 5 " + reasonProblems + "."},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			for range 3 {
				have := b.failureMessage(t, test.pod)
				if have != test.want && have != test.want+" " {
					t.Errorf("got  %s\nwant %s", have, test.want)
				}
				if len(have) > 1024 {
					t.Errorf("%d bytes are more than an event holds", len(have))
				}
			}
		})
	}
}

// TestInvalidEndsTheCycle asserts that no pod is preempted for a pod with an invalid request. No other plugin adds to
// its message that it does not know the pod.
func TestInvalidEndsTheCycle(t *testing.T) {
	b := newBench(t, nil, "n1")
	b.publish(t, "n1", 10)
	for name, test := range map[string]struct {
		pod  *corev1.Pod
		want fwk.Code
	}{
		"invalid":      {withVolume(podOf("a", 1), "bad", "10Gib", "ssd"), fwk.UnschedulableAndUnresolvable},
		"without room": {podOf("a", 11), fwk.Unschedulable},
		"not ours":     {st.MakePod().Namespace("default").Name("plain").UID("plain").Obj(), fwk.Unschedulable},
	} {
		state, _ := b.filter(t, test.pod)
		_, status := b.framework.RunPostFilterPlugins(b.ctx, state, test.pod, framework.NewDefaultNodeToStatus())
		if status.Code() != test.want || status.Message() != "" {
			t.Errorf("%s: %v %q, want %v", name, status.Code(), status.Message(), test.want)
		}
	}
}

// TestRefusalsAreCheap asserts that the refusal of one of thousands of nodes allocates its status and no text.
func TestRefusalsAreCheap(t *testing.T) {
	names := make([]string, 20)
	for i := range names {
		names[i] = fmt.Sprint("n", i)
	}
	b := newBench(t, nil, names...)
	for _, name := range names {
		b.publish(t, name, 10, volumeOf(podOf("old", 90), 0, 90))
	}
	pod := podOf("a", 20)
	state, _ := b.filter(t, pod)
	ctx := context.Background()
	allocations := testing.AllocsPerRun(100, func() {
		for _, node := range b.nodes {
			if status := b.plugin.Filter(ctx, state, pod, node); status.IsSuccess() {
				t.Fatal("it fits")
			}
		}
	})
	// A status and its list of reasons.
	if each := allocations / float64(len(b.nodes)); each > 2 {
		t.Errorf("%v allocations for each node", each)
	}
}
