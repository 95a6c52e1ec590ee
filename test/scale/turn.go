package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berthdev/berth/test/cluster"
	"github.com/berthdev/berth/test/fleet"
	"github.com/berthdev/berth/test/process"
)

// patience is for what should take seconds, on a machine that does other work, too.
const patience = 2 * time.Minute

// figures are the results of one turn of a workload.
type figures struct {
	podsPerSecond float64
	// bound is when each pod of the burst was bound, since the first one.
	bound []time.Duration
	// latencies are those of the pods that arrived at a fixed rate.
	latencies []time.Duration
	rate      float64
	// writes per pod.
	writes fleet.Writes
	// CPU time per pod, of the scheduler and of the API server.
	cpu, serverCPU time.Duration
	// start is the time from the start of the scheduler to the first binding, and startCPU its CPU time for that.
	start, startCPU time.Duration
	memory          int64
	overCommits     int
}

// site is a populated control plane.
type site struct {
	*settings
	cluster *cluster.Cluster
	fleet   *fleet.Fleet
	agents  *fleet.Agents
	nodes   int

	mu sync.Mutex
	// bound gets the pods of the namespace that are bound.
	namespace string
	bound     chan binding
	failures  []error
}

type binding struct {
	pod string
	at  time.Time
}

// newSite starts a control plane with that many nodes. The caller stops the cluster.
func (s *settings) newSite(ctx context.Context, nodes int) (*site, error) {
	c, err := cluster.Start(ctx, cluster.Options{
		Name: "bench-scale", Log: s.log, ControllerManager: true,
		// Here, so that it is built and installed before the measurement.
		Scheduler: true,
		// Not the others: they would notice that the nodes have no kubelet.
		Controllers: []string{
			"serviceaccount-controller", "persistentvolume-binder-controller",
			"persistentvolume-protection-controller", "persistentvolumeclaim-protection-controller",
		},
	})
	if err != nil {
		return nil, err
	}
	t := &site{settings: s, cluster: c, nodes: nodes}
	if err := errors.Join(c.StopScheduler(), t.populate(ctx)); err != nil {
		return nil, errors.Join(err, c.Stop())
	}
	return t, nil
}

func (t *site) populate(ctx context.Context) error {
	var err error
	if t.fleet, err = fleet.New(t.cluster.RESTConfig()); err != nil {
		return err
	}
	if err := t.fleet.Populate(ctx, t.nodes); err != nil {
		return err
	}
	if err := t.fleet.CreateStorageClasses(ctx); err != nil {
		return err
	}
	t.agents, err = fleet.StartAgents(ctx, t.fleet, t.nodes, t.note)
	return err
}

// note is called for every pod that is bound.
func (t *site) note(pod *corev1.Pod) {
	at := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	if pod.Namespace == t.namespace {
		t.bound <- binding{pod.Name, at}
	}
}

func (t *site) failed(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.failures = append(t.failures, err)
}

func (t *site) err() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return errors.Join(append(t.failures, t.agents.Err())...)
}

// turn runs a workload once and restores the cluster.
func (t *site) turn(ctx context.Context, w workload) (figures, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var f figures
	if err := t.prepare(ctx, w); err != nil {
		return f, err
	}
	if err := t.create(ctx, w, "burst", w.pods); err != nil {
		return f, err
	}
	if w.class != "" {
		err := cluster.Eventually(ctx, patience, func(ctx context.Context) error { return t.fleet.ClaimsReviewed(ctx, t.namespace) })
		if err != nil {
			return f, err
		}
	}
	before := len(t.agents.OverCommits())
	if err := t.burst(ctx, w, &f); err != nil {
		return f, errors.Join(err, t.err())
	}
	if err := t.arrive(ctx, w, &f); err != nil {
		return f, errors.Join(err, t.err())
	}
	pid, err := t.cluster.PID(w.process)
	if err != nil {
		return f, err
	}
	if f.memory, err = process.PeakMemory(pid); err != nil {
		return f, err
	}
	// An agent made every volume of a bound pod, or it counts as an over-commitment.
	overCommits := t.agents.OverCommits()[before:]
	for _, o := range overCommits {
		fmt.Fprintf(t.log, "over-committed: %v\n", o)
	}
	f.overCommits = len(overCommits)
	if made, want := t.agents.Volumes(), w.volumes*(w.pods+len(f.latencies)); made+f.overCommits != want {
		return f, fmt.Errorf("%d volumes were made and %d were placed where they cannot be, of %d", made, f.overCommits, want)
	}
	if err := w.stop(); err != nil {
		return f, err
	}
	return f, errors.Join(t.clear(ctx, w), t.err())
}

// prepare makes a namespace in which pods can be made, and the other objects of the workload.
func (t *site) prepare(ctx context.Context, w workload) error {
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: w.letter + "-"}}
	if err := t.fleet.Client.Create(ctx, namespace); err != nil {
		return err
	}
	t.mu.Lock()
	// Large enough that note never blocks.
	t.namespace, t.bound = namespace.Name, make(chan binding, 1<<16)
	t.mu.Unlock()
	err := cluster.Eventually(ctx, patience, func(ctx context.Context) error {
		return t.fleet.Client.Get(ctx, client.ObjectKey{Namespace: namespace.Name, Name: "default"}, &corev1.ServiceAccount{})
	})
	if err != nil || w.class != fleet.CapacityProvisioner {
		return err
	}
	if err := t.fleet.PublishCapacity(ctx, t.nodes); err != nil {
		return err
	}
	return t.fleet.Provision(ctx, t.failed)
}

// clear deletes everything that a turn has made, and waits until the agents have published that.
func (t *site) clear(ctx context.Context, w workload) error {
	if err := t.fleet.DeletePods(ctx, t.namespace); err != nil {
		return err
	}
	if w.class != "" {
		if err := t.fleet.RemoveVolumes(ctx, t.namespace); err != nil {
			return err
		}
	}
	if w.class == fleet.CapacityProvisioner {
		if err := t.fleet.WithdrawCapacity(ctx); err != nil {
			return err
		}
	}
	return cluster.Eventually(ctx, patience, func(context.Context) error {
		if n := t.agents.Volumes(); n > 0 || !t.agents.Quiet() {
			return fmt.Errorf("%d volumes are left, or some publication is", n)
		}
		return nil
	})
}

func podName(kind string, i int) string { return fmt.Sprintf("%s-%05d", kind, i) }

// create makes the claims of n pods, and the pods.
func (t *site) create(ctx context.Context, w workload, kind string, n int) error {
	if err := t.createClaims(ctx, w, kind, n); err != nil {
		return err
	}
	return fleet.Parallel(ctx, n, func(ctx context.Context, i int) error { return t.createPod(ctx, w, podName(kind, i)) })
}

func (t *site) createClaims(ctx context.Context, w workload, kind string, n int) error {
	if w.class == "" {
		return nil
	}
	return fleet.Parallel(ctx, n, func(ctx context.Context, i int) error {
		claim := fleet.Claim(t.namespace, podName(kind, i), w.class)
		_, err := t.fleet.Clientset.CoreV1().PersistentVolumeClaims(t.namespace).Create(ctx, claim, metav1.CreateOptions{})
		return err
	})
}

func (t *site) createPod(ctx context.Context, w workload, name string) error {
	pod := w.pod(name)
	pod.Namespace, pod.Name = t.namespace, name
	_, err := t.fleet.Clientset.CoreV1().Pods(t.namespace).Create(ctx, pod, metav1.CreateOptions{})
	return err
}

// next returns the next pod that is bound.
func (t *site) next(ctx context.Context) (binding, error) {
	select {
	case b := <-t.bound:
		return b, nil
	case <-ctx.Done():
		return binding{}, context.Cause(ctx)
	case <-time.After(patience):
		return binding{}, fmt.Errorf("no pod was bound for %v", patience)
	}
}

// usage is the CPU time so far.
type usage struct{ scheduler, server time.Duration }

func (t *site) usage(w workload) (usage, error) {
	var u usage
	for component, to := range map[string]*time.Duration{w.process: &u.scheduler, "kube-apiserver": &u.server} {
		pid, err := t.cluster.PID(component)
		if err != nil {
			return u, err
		}
		if *to, err = process.CPUTime(pid); err != nil {
			return u, err
		}
	}
	return u, nil
}

// burst starts the scheduler and measures until some time after the last pod is bound.
func (t *site) burst(ctx context.Context, w workload, f *figures) error {
	writesBefore, err := t.fleet.SettledWrites(ctx)
	if err != nil {
		return err
	}
	begin := time.Now()
	if err := w.start(ctx); err != nil {
		return err
	}
	var first time.Time
	var atFirst usage
	for i := range w.pods {
		b, err := t.next(ctx)
		if err != nil {
			return fmt.Errorf("%d of %d pods are bound: %w", i, w.pods, err)
		}
		if i == 0 {
			first = b.at
			if atFirst, err = t.usage(w); err != nil {
				return err
			}
		}
		f.bound = append(f.bound, b.at.Sub(first))
	}
	took := f.bound[len(f.bound)-1]
	f.podsPerSecond = float64(w.pods-1) / took.Seconds()
	f.start, f.startCPU = first.Sub(begin), atFirst.scheduler
	// Includes events, publications, and what the scheduler does because of them.
	if err := wait(ctx, t.after); err != nil {
		return err
	}
	after, err := t.usage(w)
	if err != nil {
		return err
	}
	writes, err := t.fleet.Writes(ctx)
	if err != nil {
		return err
	}
	f.writes = writes.Since(writesBefore, w.pods)
	f.cpu = (after.scheduler - atFirst.scheduler) / time.Duration(w.pods)
	f.serverCPU = (after.server - atFirst.server) / time.Duration(w.pods)
	return nil
}

// arrive creates pods one after the other, when each is due.
func (t *site) arrive(ctx context.Context, w workload, f *figures) error {
	const least = 10
	f.rate = min(t.rate, f.podsPerSecond/2)
	n := max(least, int(f.rate*t.arrivals.Seconds()))
	if err := t.createClaims(ctx, w, "arrival", n); err != nil {
		return err
	}
	var creating sync.WaitGroup
	due := map[string]time.Time{}
	begin := time.Now()
	for i := range n {
		name := podName("arrival", i)
		due[name] = begin.Add(time.Duration(float64(i) / f.rate * float64(time.Second)))
		if err := wait(ctx, time.Until(due[name])); err != nil {
			return err
		}
		creating.Go(func() {
			if err := t.createPod(ctx, w, name); err != nil {
				t.failed(fmt.Errorf("create %s: %w", name, err))
			}
		})
	}
	creating.Wait()
	if err := t.err(); err != nil {
		return err
	}
	for i := range n {
		b, err := t.next(ctx)
		if err != nil {
			return fmt.Errorf("%d of %d pods that arrived are bound: %w", i, n, err)
		}
		f.latencies = append(f.latencies, b.at.Sub(due[b.pod]))
	}
	return nil
}

// wait waits for that time, or until the context ends.
func wait(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}
