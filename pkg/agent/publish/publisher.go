package publish

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/client"
)

// Options of a Publisher.
type Options struct {
	Client *client.Client
	// Capacities watches the node's own NodeDiskCapacity.
	Capacities cache.SharedIndexInformer
	// NodeUID is the UID of the Node, or empty while there is none.
	NodeUID func() types.UID
	// Status returns what must be published now.
	Status func() diskv1alpha1.NodeDiskCapacityStatus
	// Progress follows each pass. It is nil without health checks.
	Progress Progress
}

// Progress follows the publisher's passes.
type Progress interface {
	// Pass is called when a pass begins, and done with its result at its end.
	Pass() (done func(err error))
}

// Publisher keeps the node's NodeDiskCapacity equal to the result of Status.
//
// Invariants:
//  1. At most one write is in progress.
//  2. Nothing is written while the newest known object equals what must be published.
//  3. A condition's lastTransitionTime changes only together with its status.
type Publisher struct {
	options  Options
	triggers chan struct{}

	mu sync.Mutex
	// newest is the newest version of the object that the API server returned, in an answer to a write or on the watch.
	// It is nil when the object does not exist.
	newest *diskv1alpha1.NodeDiskCapacity
	// deletedUID is the UID of the last object that was deleted: a late answer to a write may still contain it.
	deletedUID types.UID

	// wroteAt is when the last write was answered. changedSince is since when there has been something to write.
	wroteAt, changedSince time.Time
	// conditions are the last ones published.
	conditions []metav1.Condition
}

// New returns a publisher. It publishes in Run.
func New(o Options) (*Publisher, error) {
	p := &Publisher{options: o, triggers: make(chan struct{}, 1)}
	_, err := o.Capacities.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(object any) { p.onAdd(object) },
		UpdateFunc: func(_, object any) { p.onVersion(object) },
		DeleteFunc: p.onDelete,
	})
	if err != nil {
		return nil, fmt.Errorf("cannot watch NodeDiskCapacity %s: %w", o.Client.NodeName(), err)
	}
	return p, nil
}

// Trigger signals that what must be published may have changed. It never blocks.
func (p *Publisher) Trigger() {
	select {
	case p.triggers <- struct{}{}:
	default:
	}
}

// onVersion records a version of the object, and checks whether it must be corrected: another client may have edited
// it.
func (p *Publisher) onVersion(object any) {
	if ndc, ok := object.(*diskv1alpha1.NodeDiskCapacity); ok {
		p.recordVersion(ndc)
		p.Trigger()
	}
}

// onAdd is onVersion for an object that the watch shows for the first time. One that was deleted may be restored from a
// backup with its UID.
func (p *Publisher) onAdd(object any) {
	p.mu.Lock()
	p.deletedUID = ""
	p.mu.Unlock()
	p.onVersion(object)
}

// onDelete handles the deletion of the node's NodeDiskCapacity: it is created again.
func (p *Publisher) onDelete(object any) {
	if gone, ok := object.(cache.DeletedFinalStateUnknown); ok {
		object = gone.Obj
	}
	ndc, ok := object.(*diskv1alpha1.NodeDiskCapacity)
	if !ok {
		return
	}
	p.mu.Lock()
	p.deletedUID = ndc.UID
	// The event may be late, and newest may be the next object of that name already.
	if p.newest != nil && p.newest.UID == ndc.UID {
		p.newest = nil
	}
	p.mu.Unlock()
	p.Trigger()
}

// recordVersion keeps the newer of the object and newest. The watch is often behind the answer to a write, or ahead of
// it. An object that was deleted meanwhile does not count.
func (p *Publisher) recordVersion(ndc *diskv1alpha1.NodeDiskCapacity) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if ndc.UID == p.deletedUID && p.deletedUID != "" {
		return
	}
	if p.newest == nil || !older(ndc, p.newest) {
		p.newest = ndc
	}
}

// older reports whether a is an older version than b, if they can be compared.
func older(a, b *diskv1alpha1.NodeDiskCapacity) bool {
	order, err := resourceversion.CompareResourceVersion(a.ResourceVersion, b.ResourceVersion)
	return err == nil && order < 0
}

// maxWatchLag is how long the watch may be behind the answer to a write.
const maxWatchLag = 5 * time.Second

// checkNewest reads the object from the API server when the watch shows an older one than is known, or none. That must
// last longer than a watch is behind. Then its data was restored from a backup, or the object was deleted before the
// watch showed it.
func (p *Publisher) checkNewest(ctx context.Context) error {
	object, ok, err := p.options.Capacities.GetStore().GetByKey(p.options.Client.NodeName())
	if err != nil {
		return err
	}
	known := p.newestVersion()
	if known == nil {
		return nil
	}
	if shown, isCapacity := object.(*diskv1alpha1.NodeDiskCapacity); ok && (!isCapacity || !older(shown, known)) {
		return nil
	}
	if lag := maxWatchLag - time.Since(p.wroteAt); lag > 0 {
		time.AfterFunc(lag, p.Trigger)
		return nil
	}
	now, err := p.options.Client.Capacity(ctx)
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("cannot read NodeDiskCapacity %s: %w", p.options.Client.NodeName(), err)
	}
	if err != nil {
		now = nil
	}
	p.mu.Lock()
	p.newest = now
	p.mu.Unlock()
	return nil
}

func (p *Publisher) newestVersion() *diskv1alpha1.NodeDiskCapacity {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.newest
}

// Run publishes until the context ends. The informer must have synced.
func (p *Publisher) Run(ctx context.Context) {
	logger := klog.FromContext(ctx)
	fresh := wait.Backoff{Duration: 200 * time.Millisecond, Factor: 2, Jitter: 0.2, Steps: 8, Cap: 10 * time.Second}
	backoff := fresh
	logged := ""
	p.Trigger()
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.triggers:
		}
		if !sleep(ctx, CollectWindow) {
			return
		}
		// Changes during the window are part of what is read now.
		select {
		case <-p.triggers:
		default:
		}
		if err := p.pass(ctx); err != nil {
			if ctx.Err() != nil {
				return
			}
			// Logged once: an API server may be away for long, or return the same error again and again.
			if err.Error() != logged {
				logged = err.Error()
				logger.Error(err, "Disks could not be published; tried again until it succeeds")
			}
			if !sleep(ctx, backoff.Step()) {
				return
			}
			p.Trigger()
			continue
		}
		backoff, logged = fresh, ""
	}
}

// pass publishes, and reports to Progress.
func (p *Publisher) pass(ctx context.Context) error {
	if p.options.Progress == nil {
		return p.publish(ctx)
	}
	done := p.options.Progress.Pass()
	err := p.publish(ctx)
	done(err)
	return err
}

func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// publish makes the object equal to Status, with as many requests as that needs: usually one, or none.
func (p *Publisher) publish(ctx context.Context) error {
	if err := p.checkNewest(ctx); err != nil {
		return err
	}
	ndc := p.newestVersion()
	var err error
	if ndc == nil {
		if ndc, err = p.create(ctx); err != nil {
			return err
		}
	}
	if ndc, err = p.cleanMetadata(ctx, ndc); err != nil {
		return err
	}
	status := p.options.Status()
	if p.conditions == nil {
		p.conditions = ndc.Status.Conditions
	}
	status.Conditions = withTransitionTimes(status.Conditions, p.conditions, metav1.Now().Rfc3339Copy())
	p.conditions = status.Conditions
	status.Conditions = withOthersConditions(status.Conditions, ndc.Status.Conditions)
	if equality.Semantic.DeepEqual(status, ndc.Status) {
		p.changedSince = time.Time{}
		return nil
	}
	if p.changedSince.IsZero() {
		p.changedSince = time.Now()
	}
	if delay := WriteDelay(&status, &ndc.Status, time.Since(p.changedSince)); delay > 0 {
		time.AfterFunc(delay, p.Trigger)
		return nil
	}
	if err := p.replace(ctx, ndc, status); err != nil {
		return err
	}
	p.changedSince = time.Time{}
	klog.FromContext(ctx).V(2).Info("Disks are published", "disks", len(status.Disks), "volumes", status.Summary.Volumes, "free", status.Summary.Free)
	return nil
}

// othersConditions are the types of conditions that the scheduler's leader writes.
var othersConditions = []string{diskv1alpha1.ConditionDisksShared}

// withOthersConditions returns our conditions, and those of other writers as they are published now.
func withOthersConditions(ours, published []metav1.Condition) []metav1.Condition {
	isOthers := func(c metav1.Condition) bool { return slices.Contains(othersConditions, c.Type) }
	out := slices.DeleteFunc(slices.Clone(ours), isOthers)
	for _, c := range published {
		if isOthers(c) {
			out = append(out, c)
		}
	}
	return out
}

// create makes the object, but not for a node that is gone: no controller would remove it again.
func (p *Publisher) create(ctx context.Context) (*diskv1alpha1.NodeDiskCapacity, error) {
	name := p.options.Client.NodeName()
	if p.options.NodeUID() == "" {
		return nil, fmt.Errorf("there is no Node %s yet: NodeDiskCapacity %s is created once the kubelet has registered it", name, name)
	}
	ndc := &diskv1alpha1.NodeDiskCapacity{
		TypeMeta:   metav1.TypeMeta{APIVersion: diskv1alpha1.SchemeGroupVersion.String(), Kind: "NodeDiskCapacity"},
		ObjectMeta: metav1.ObjectMeta{Name: name},
	}
	out, err := p.options.Client.CreateCapacity(ctx, ndc)
	p.wroteAt = time.Now()
	if apierrors.IsAlreadyExists(err) {
		out, err = p.options.Client.Capacity(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot create NodeDiskCapacity %s: %w", ndc.Name, err)
	}
	p.recordVersion(out)
	return out, nil
}

// replace writes the status. It tries again if another client has changed the object and the watch does not show that
// yet.
func (p *Publisher) replace(ctx context.Context, ndc *diskv1alpha1.NodeDiskCapacity, status diskv1alpha1.NodeDiskCapacityStatus) error {
	for {
		next := ndc.DeepCopy()
		next.Status = status
		next.Status.Conditions = withOthersConditions(status.Conditions, ndc.Status.Conditions)
		out, err := p.options.Client.UpdateCapacityStatus(ctx, next)
		if !apierrors.IsConflict(err) {
			return p.recordAnswer(out, err)
		}
		out, err = p.options.Client.Capacity(ctx)
		if err := p.recordAnswer(out, err); err != nil {
			return err
		}
		ndc = out
	}
}

// recordAnswer records the API server's answer about the object, and returns the error with its name.
func (p *Publisher) recordAnswer(out *diskv1alpha1.NodeDiskCapacity, err error) error {
	p.wroteAt = time.Now()
	if apierrors.IsNotFound(err) {
		p.mu.Lock()
		p.newest = nil
		p.mu.Unlock()
	}
	if err != nil {
		return fmt.Errorf("cannot write NodeDiskCapacity %s: %w", p.options.Client.NodeName(), err)
	}
	p.recordVersion(out)
	return nil
}

// withTransitionTimes sets the time of the last transition of each condition.
func withTransitionTimes(conditions, before []metav1.Condition, now metav1.Time) []metav1.Condition {
	out := slices.Clone(conditions)
	for i := range out {
		out[i].LastTransitionTime = now
		if old := meta.FindStatusCondition(before, out[i].Type); old != nil && old.Status == out[i].Status {
			out[i].LastTransitionTime = old.LastTransitionTime
		}
	}
	return out
}
