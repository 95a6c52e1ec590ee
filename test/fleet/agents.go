package fleet

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/publish"
)

// inFlight is how many publications are in progress at once. The user of this process is exempt from the API server's
// priority and fairness, which would not allow a thousand agents to delay bindings.
const inFlight = 16

// Agents simulates the agents of all nodes. It makes the volumes of bound pods and of PersistentVolumes where they were
// placed. It frees them when those are gone, and publishes the result like agents. One write covers everything within
// 50 ms on a node, or within a second if nothing became free. One watch covers all nodes, while real agents have one
// each.
//
// A volume whose place is not free is an over-commitment. An agent would place such a volume itself. Here it is
// counted, and not made.
type Agents struct {
	fleet *Fleet
	bound func(*corev1.Pod)
	// turns are tokens for writing.
	turns chan struct{}

	mu    sync.Mutex
	nodes map[string]*agent
	// pods are the inline volumes of each pod. volumes has the node of each PersistentVolume.
	pods    map[types.UID]held
	volumes map[string]string
	// overCommits describes each over-commitment. errs are other errors.
	overCommits, errs []error
}

type held struct {
	node    string
	volumes []string
}

// agent is guarded by the lock of Agents.
type agent struct {
	*node
	name string
	// due is true while a write waits for the window to end, writing while one is in progress: at most one is. Changes
	// during a write are written after it. held is true while a change that can wait is held back.
	due, writing, changed, held bool
	// published is the object as it was written last. differs is since when its next state has differed from it.
	published *diskv1alpha1.NodeDiskCapacity
	differs   time.Time
}

// StartAgents simulates the agents of that many nodes, whose disks are empty, until the context ends. It calls bound,
// one call at a time, when it sees that a pod is bound and has made its volumes.
func StartAgents(ctx context.Context, f *Fleet, nodes int, bound func(*corev1.Pod)) (*Agents, error) {
	a := &Agents{fleet: f, bound: bound, turns: make(chan struct{}, inFlight), nodes: map[string]*agent{}, pods: map[types.UID]held{}, volumes: map[string]string{}}
	for i := range nodes {
		a.nodes[NodeName(i)] = &agent{node: newNode(i), name: NodeName(i)}
	}
	var published diskv1alpha1.NodeDiskCapacityList
	if err := f.Client.List(ctx, &published); err != nil {
		return nil, err
	}
	for i := range published.Items {
		if n := a.nodes[published.Items[i].Name]; n != nil {
			n.published = &published.Items[i]
		}
	}
	pods := informers.NewSharedInformerFactoryWithOptions(f.Clientset, 0, informers.WithTweakListOptions(func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermNotEqualSelector("spec.nodeName", "").String()
	}))
	volumes := informers.NewSharedInformerFactory(f.Clientset, 0)
	_, err := pods.Core().V1().Pods().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(object any) {
			if pod, ok := object.(*corev1.Pod); ok {
				a.realize(ctx, pod)
				a.bound(pod)
			}
		},
		DeleteFunc: func(object any) {
			if pod, ok := last(object).(*corev1.Pod); ok {
				a.reclaim(ctx, pod.UID)
			}
		},
	})
	if err != nil {
		return nil, err
	}
	_, err = volumes.Core().V1().PersistentVolumes().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(object any) {
			if pv, ok := object.(*corev1.PersistentVolume); ok {
				a.realizeVolume(ctx, pv)
			}
		},
		DeleteFunc: func(object any) {
			if pv, ok := last(object).(*corev1.PersistentVolume); ok {
				a.reclaimVolume(ctx, pv.Name)
			}
		},
	})
	if err != nil {
		return nil, err
	}
	for _, factory := range []informers.SharedInformerFactory{pods, volumes} {
		factory.StartWithContext(ctx)
		factory.WaitForCacheSync(ctx.Done())
	}
	return a, ctx.Err()
}

// last is the last state of a deleted object.
func last(object any) any {
	if gone, ok := object.(cache.DeletedFinalStateUnknown); ok {
		return gone.Obj
	}
	return object
}

// realize makes the pod's inline volumes.
func (a *Agents) realize(ctx context.Context, pod *corev1.Pod) {
	owner := pod.Namespace + "/" + pod.Name
	wanted := map[string]bool{}
	for _, v := range pod.Spec.Volumes {
		if v.CSI != nil && v.CSI.Driver == diskv1alpha1.DriverName {
			wanted[v.Name] = true
		}
	}
	if len(wanted) == 0 {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	record, err := diskv1alpha1.DecodeRecord(pod.Annotations[diskv1alpha1.AnnotationAllocation])
	if err != nil {
		a.errs = append(a.errs, fmt.Errorf("pod %s is bound without a place for its volumes: %w", owner, err))
		return
	}
	h := held{node: pod.Spec.NodeName}
	for _, v := range record.Volumes {
		if !wanted[v.Name] {
			a.errs = append(a.errs, fmt.Errorf("pod %s is bound with a place for a volume %q that it does not have", owner, v.Name))
			continue
		}
		delete(wanted, v.Name)
		id := diskv1alpha1.InlineVolumeID(pod.UID, v.Name)
		a.hold(ctx, h.node, id, owner, diskv1alpha1.Place{Disk: v.Disk, Extent: v.Extent})
		h.volumes = append(h.volumes, id)
	}
	for name := range wanted {
		a.errs = append(a.errs, fmt.Errorf("pod %s is bound without a place for its volume %q", owner, name))
	}
	a.pods[pod.UID] = h
}

// realizeVolume makes a persistent volume of ours.
func (a *Agents) realizeVolume(ctx context.Context, pv *corev1.PersistentVolume) {
	if pv.Spec.CSI == nil || pv.Spec.CSI.Driver != diskv1alpha1.DriverName {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	place, err := diskv1alpha1.ParsePlace(pv.Spec.CSI.VolumeAttributes)
	if err != nil {
		a.errs = append(a.errs, fmt.Errorf("PersistentVolume %s has no place: %w", pv.Name, err))
		return
	}
	// The names here are short enough to be used as labels.
	node := pv.Labels[diskv1alpha1.LabelNode]
	a.volumes[pv.Name] = node
	a.hold(ctx, node, pv.Spec.CSI.VolumeHandle, pv.Name, place)
}

// hold is called with the lock held.
func (a *Agents) hold(ctx context.Context, name, volume, owner string, place diskv1alpha1.Place) {
	n := a.nodes[name]
	if n == nil {
		a.errs = append(a.errs, fmt.Errorf("volume %s of %s was placed on node %q, which does not exist", volume, owner, name))
		return
	}
	if err := n.hold(volume, owner, place); err != nil {
		a.overCommits = append(a.overCommits, fmt.Errorf("%s: %w", name, err))
		return
	}
	a.publishSoon(ctx, n)
}

func (a *Agents) reclaim(ctx context.Context, pod types.UID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	h := a.pods[pod]
	delete(a.pods, pod)
	for _, v := range h.volumes {
		a.release(ctx, h.node, v)
	}
}

func (a *Agents) reclaimVolume(ctx context.Context, name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	node, ok := a.volumes[name]
	if !ok {
		return
	}
	delete(a.volumes, name)
	a.release(ctx, node, name)
}

func (a *Agents) release(ctx context.Context, name, volume string) {
	if n := a.nodes[name]; n != nil && n.release(volume) {
		a.publishSoon(ctx, n)
	}
}

// publishSoon is called with the lock held.
func (a *Agents) publishSoon(ctx context.Context, n *agent) {
	switch {
	case n.due:
	case n.writing:
		n.changed = true
	default:
		n.due = true
		time.AfterFunc(publish.CollectWindow, func() { a.publish(ctx, n) })
	}
}

func (a *Agents) publish(ctx context.Context, n *agent) {
	a.turns <- struct{}{}
	defer func() { <-a.turns }()
	a.mu.Lock()
	status := n.status()
	n.due, n.held = false, false
	if equality.Semantic.DeepEqual(status, n.published.Status) {
		n.differs = time.Time{}
		a.mu.Unlock()
		return
	}
	if n.differs.IsZero() {
		n.differs = time.Now()
	}
	if wait := publish.WriteDelay(&status, &n.published.Status, time.Since(n.differs)); wait > 0 {
		n.held = true
		time.AfterFunc(wait, func() { a.publishHeld(ctx, n) })
		a.mu.Unlock()
		return
	}
	n.writing, n.differs = true, time.Time{}
	next := n.published.DeepCopy()
	next.Status = status
	a.mu.Unlock()
	err := a.write(ctx, next)
	a.mu.Lock()
	defer a.mu.Unlock()
	n.writing = false
	switch {
	case err == nil:
		n.published = next
	case ctx.Err() != nil:
	case apierrors.IsServerTimeout(err), apierrors.IsTimeout(err), apierrors.IsTooManyRequests(err), apierrors.IsInternalError(err):
		// The machine is very busy. Real agents try again, too.
		n.changed = true
	default:
		a.errs = append(a.errs, fmt.Errorf("publish the disks of %s: %w", n.name, err))
	}
	if n.changed && ctx.Err() == nil {
		n.changed = false
		a.publishSoon(ctx, n)
	}
}

// publishHeld is called when a held-back change has waited long enough.
func (a *Agents) publishHeld(ctx context.Context, n *agent) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if n.held && ctx.Err() == nil {
		a.publishSoon(ctx, n)
	}
}

// write replaces the status. A try that was served but whose answer was lost shows as a conflict.
func (a *Agents) write(ctx context.Context, next *diskv1alpha1.NodeDiskCapacity) error {
	status := next.Status
	err := a.fleet.Client.Status().Update(ctx, next)
	if !apierrors.IsConflict(err) {
		return err
	}
	if err := a.fleet.Client.Get(ctx, client.ObjectKeyFromObject(next), next); err != nil {
		return err
	}
	next.Status = status
	return a.fleet.Client.Status().Update(ctx, next)
}

// Volumes is the present number of volumes.
func (a *Agents) Volumes() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := 0
	for _, node := range a.nodes {
		n += len(node.where)
	}
	return n
}

// Quiet reports whether everything has been published.
func (a *Agents) Quiet() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, n := range a.nodes {
		if n.due || n.writing || n.held {
			return false
		}
	}
	return true
}

// OverCommits returns an error for each volume so far that was placed where another is, or where none can be.
func (a *Agents) OverCommits() []error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]error(nil), a.overCommits...)
}

// Err returns the other errors so far.
func (a *Agents) Err() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return errors.Join(a.errs...)
}
