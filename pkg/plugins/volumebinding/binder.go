package volumebinding

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	storagelisters "k8s.io/client-go/listers/storage/v1"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"
	stock "k8s.io/kubernetes/pkg/scheduler/framework/plugins/volumebinding"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/pkg/ledger"
	"github.com/berthdev/berth/pkg/plugins/diskcapacity"
)

// binder decorates the stock binder.
type binder struct {
	stock.SchedulerVolumeBinder

	client  kubernetes.Interface
	claims  corelisters.PersistentVolumeClaimLister
	pods    corelisters.PodLister
	classes storagelisters.StorageClassLister
	changes *changeNotifier
	timeout time.Duration
	// controllerPatience is ControllerPatience of the arguments.
	controllerPatience time.Duration
	// writers limits how many writes are made at the same time.
	writers *semaphore.Weighted
	// doubts has a token for the last doubt of each claim, by the holder of its place.
	doubts sync.Map
	// later is time.AfterFunc, except in tests.
	later func(time.Duration, func())
	// ledger returns DiskCapacity's ledger. That plugin may be made after this one.
	ledger func() (*ledger.Ledger, error)

	// onlyOurs are assumed pods whose claims to bind are all ours, by UID.
	onlyOurs sync.Map
}

func newBinder(inner stock.SchedulerVolumeBinder, handle fwk.Handle, args *DiskVolumeBindingArgs) (*binder, error) {
	factory := handle.SharedInformerFactory()
	core := factory.Core().V1()
	w, err := newChangeNotifier(core.PersistentVolumeClaims().Informer(), core.Pods().Informer())
	if err != nil {
		return nil, err
	}
	return &binder{
		SchedulerVolumeBinder: inner,
		client:                handle.ClientSet(),
		claims:                core.PersistentVolumeClaims().Lister(),
		pods:                  core.Pods().Lister(),
		classes:               factory.Storage().V1().StorageClasses().Lister(),
		changes:               w,
		timeout:               args.timeout(),
		controllerPatience:    args.ControllerPatience.Duration,
		writers:               semaphore.NewWeighted(diskcapacity.MaxWriters),
		later:                 func(after time.Duration, do func()) { time.AfterFunc(after, do) },
		ledger: func() (*ledger.Ledger, error) {
			shared, ok := diskcapacity.SharedLedger(factory)
			if !ok {
				return nil, fmt.Errorf("plugin %s is in no profile of this scheduler: it must be in every profile that has %s", diskcapacity.Name, Name)
			}
			return shared.Ledger, nil
		},
	}, nil
}

// AssumePodVolumes records whether all claims to bind are ours.
func (b *binder) AssumePodVolumes(logger klog.Logger, pod *corev1.Pod, nodeName string, podVolumes *stock.PodVolumes) (bool, error) {
	allBound, err := b.SchedulerVolumeBinder.AssumePodVolumes(logger, pod, nodeName, podVolumes)
	if err != nil || allBound {
		return allBound, err
	}
	ours, others := b.split(podVolumes)
	if len(ours) > 0 && others == nil {
		b.onlyOurs.Store(pod.UID, struct{}{})
	}
	return false, nil
}

// split separates the claims that we create volumes for from those that are left to the stock binder; nil if none are.
func (b *binder) split(podVolumes *stock.PodVolumes) (ours []*corev1.PersistentVolumeClaim, others *stock.PodVolumes) {
	// The stock binder requires slices that are not nil.
	rest := &stock.PodVolumes{StaticBindings: []*stock.BindingInfo{}, DynamicProvisions: []*stock.DynamicProvision{}}
	rest.StaticBindings = append(rest.StaticBindings, podVolumes.StaticBindings...)
	for _, d := range podVolumes.DynamicProvisions {
		if b.isOurs(d.PVC) {
			ours = append(ours, d.PVC)
		} else {
			rest.DynamicProvisions = append(rest.DynamicProvisions, d)
		}
	}
	if len(rest.StaticBindings)+len(rest.DynamicProvisions) == 0 {
		return ours, nil
	}
	return ours, rest
}

// isOurs reports whether the claim is ours, also if its StorageClass was deleted since its place was reserved.
func (b *binder) isOurs(pvc *corev1.PersistentVolumeClaim) bool {
	class, err := claim.ClassOf(b.classes, pvc)
	if err == nil {
		return class.Provisioner == diskv1alpha1.DriverName
	}
	l, err := b.ledger()
	if err != nil {
		return false
	}
	_, _, ok := l.Where(diskv1alpha1.PartitionID(diskv1alpha1.ClaimVolumeID(pvc.UID)))
	return ok
}

// classOf returns the StorageClass of a claim of ours.
func (b *binder) classOf(pvc *corev1.PersistentVolumeClaim) (*storagev1.StorageClass, error) {
	class, err := claim.ClassOf(b.classes, pvc)
	name := claim.ClassName(pvc)
	switch {
	case err != nil:
		return nil, fmt.Errorf("its StorageClass %s was deleted: create it again: %w", name, err)
	case class.Provisioner != diskv1alpha1.DriverName:
		return nil, fmt.Errorf("its StorageClass %s is of provisioner %s now", name, class.Provisioner)
	}
	return class, nil
}

// BindPodVolumes binds the claims of other drivers first. If their volumes cannot be made on this node, the pod must be
// free to go to another node. Our claims have their place already.
func (b *binder) BindPodVolumes(ctx context.Context, pod *corev1.Pod, podVolumes *stock.PodVolumes) error {
	ours, others := b.split(podVolumes)
	if others != nil {
		if err := b.SchedulerVolumeBinder.BindPodVolumes(ctx, pod, others); err != nil {
			return err
		}
	}
	if len(ours) == 0 {
		return nil
	}
	l, err := b.ledger()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, b.timeout)
	defer cancel()
	results := make([]error, len(ours))
	var running sync.WaitGroup
	for i := range ours[1:] {
		running.Go(func() { results[i+1] = b.bindClaim(ctx, l, pod, ours[i+1]) })
	}
	results[0] = b.bindClaim(ctx, l, pod, ours[0])
	running.Wait()
	return errors.Join(results...)
}

// bindClaim creates the volume of a claim and binds the two.
func (b *binder) bindClaim(ctx context.Context, l *ledger.Ledger, pod *corev1.Pod, pvc *corev1.PersistentVolumeClaim) error {
	if err := b.provisionClaim(ctx, l, pod, pvc); err != nil {
		return fmt.Errorf("binding claim %s on node %s: %w", klog.KObj(pvc), pod.Spec.NodeName, err)
	}
	return nil
}
