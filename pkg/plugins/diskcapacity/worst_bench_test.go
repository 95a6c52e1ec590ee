package diskcapacity

import (
	"context"
	"fmt"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/framework"
	st "k8s.io/kubernetes/pkg/scheduler/testing"

	"github.com/berthdev/berth/test/testenv"
)

// podWith is a pod with so many volumes, with sizes in MiB.
func podWith(name string, volumes int, sizeMiB func(i int) int64) *corev1.Pod {
	pod := st.MakePod().Namespace("default").Name(name).UID(name).SchedulerName("berth").Obj()
	for i := range volumes {
		withVolume(pod, fmt.Sprint("data-", i), fmt.Sprintf("%dMi", sizeMiB(i)), "ssd")
	}
	return pod
}

// worstPods are hard to place on the nodes of a full cluster: each has 12 free extents of 1 to 999 GiB on two disks.
func worstPods(volumes int) map[string]*corev1.Pod {
	const free = 1_400_000 // MiB on most nodes, in extents that differ
	return map[string]*corev1.Pod{
		"fits":         podWith("fits", volumes, func(i int) int64 { return int64(1024 + i) }),
		"alike":        podWith("alike", volumes, func(int) int64 { return free / int64(volumes+1) }),
		"just not":     podWith("just-not", volumes, func(i int) int64 { return free/int64(volumes) + int64(i) }),
		"adversarial":  podWith("adversarial", volumes, func(i int) int64 { return free/int64(volumes+2)*int64(90+i*37%21)/100 + int64(i) }),
		"large, small": podWith("large-small", volumes, func(i int) int64 { return 400_000/int64(1+i*i) + int64(i) + 1 }),
	}
}

// BenchmarkWorstPods runs the plugin's part of a scheduling cycle for pods that are hard to place. There are 5000 nodes
// that all differ or are all equal. Targets: a cycle of 50 ms at most, and the ledger's lock held for 1 ms at most.
// Another goroutine takes the lock all the time to measure that.
func BenchmarkWorstPods(b *testing.B) {
	env := clusterOf(b, 5000)
	for _, volumes := range []int{1, 3, 8, 9, 16, 64, 256} {
		for name, pod := range worstPods(volumes) {
			b.Run(fmt.Sprintf("volumes=%d/%s", volumes, name), func(b *testing.B) {
				var longest, wait time.Duration
				stop := env.askForTheLock(b, &wait)
				feasible, before := 0, cpu(b)
				for b.Loop() {
					start := time.Now()
					feasible = env.cycle(b, pod)
					longest = max(longest, time.Since(start))
				}
				stop()
				b.ReportMetric(float64((cpu(b)-before).Microseconds())/1000/float64(b.N), "cpu-ms/cycle")
				b.ReportMetric(float64(longest.Microseconds())/1000, "ms/longest-cycle")
				b.ReportMetric(float64(wait.Microseconds())/1000, "ms/longest-lock")
				b.ReportMetric(float64(feasible), "nodes")
			})
		}
	}
}

// cpu is the processor time of the process. On a machine with other load it says more than the elapsed time.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// askForTheLock takes the ledger's lock all the time, and records the longest wait.
func (b *bench) askForTheLock(t testing.TB, longest *time.Duration) (stop func()) {
	over, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-over:
				return
			case <-time.After(100 * time.Microsecond):
			}
			start := time.Now()
			b.plugin.ledger.Holds("absent")
			*longest = max(*longest, time.Since(start))
		}
	}()
	return func() {
		close(over)
		testenv.Receive(t, "the end of the queries", done)
	}
}

// cycle runs the plugin's part of a scheduling cycle up to Reserve, and undoes it. It returns on how many nodes the pod
// fits, of which kube-scheduler looks for 500.
func (b *bench) cycle(t testing.TB, pod *corev1.Pod) int {
	t.Helper()
	const enough = 500
	state := framework.NewCycleState()
	result, status, _ := b.framework.RunPreFilterPlugins(b.ctx, state, pod)
	if !status.IsSuccess() {
		t.Fatal(status)
	}
	nodes := b.nodes
	if !result.AllNodes() {
		nodes = nil
		for name := range result.NodeNames {
			n, err := b.plugin.handle.SnapshotSharedLister().NodeInfos().Get(name)
			if err != nil {
				t.Fatal(err)
			}
			nodes = append(nodes, n)
		}
	}
	ctx, cancel := context.WithCancel(b.ctx)
	defer cancel()
	var found atomic.Int64
	feasible := make([]fwk.NodeInfo, len(nodes))
	b.framework.Parallelizer().Until(ctx, len(nodes), func(i int) {
		if b.framework.RunFilterPluginsWithNominatedPods(ctx, state, pod, nodes[i]).IsSuccess() {
			if n := found.Add(1); n <= int64(len(feasible)) {
				feasible[n-1] = nodes[i]
			}
			if found.Load() >= enough {
				cancel()
			}
		}
	}, "")
	feasible = feasible[:found.Load()]
	if len(feasible) == 0 {
		statuses := framework.NewDefaultNodeToStatus()
		b.framework.RunPostFilterPlugins(b.ctx, state, pod, statuses)
		return 0
	}
	scores, status := b.framework.RunScorePlugins(b.ctx, state, pod, feasible)
	if !status.IsSuccess() {
		t.Fatal(status)
	}
	best := 0
	for i := range scores {
		if scores[i].TotalScore > scores[best].TotalScore {
			best = i
		}
	}
	if status := b.plugin.Reserve(b.ctx, state, pod, scores[best].Name); !status.IsSuccess() {
		t.Fatal(status)
	}
	b.plugin.Unreserve(b.ctx, state, pod, scores[best].Name)
	return len(feasible)
}
