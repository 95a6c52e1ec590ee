package agent

import (
	"context"
	"fmt"
	"maps"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

// addHandlers makes changes of classes, of the node's labels and of decisions about devices cause a rescan.
func (a *agent) addHandlers() error {
	for _, add := range []func() error{a.handleClasses, a.handleDecisions, a.handleCSINode, a.handleNode} {
		if err := add(); err != nil {
			return err
		}
	}
	return nil
}

// handleClasses causes a rescan when a DiskClass changes.
func (a *agent) handleClasses() error {
	_, err := a.classes.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { a.requestRescan() },
		UpdateFunc: func(before, now any) {
			// The scheduler's leader updates the status all the time.
			b, _ := before.(*diskv1alpha1.DiskClass)
			n, _ := now.(*diskv1alpha1.DiskClass)
			if b == nil || n == nil || b.UID != n.UID || b.Generation != n.Generation {
				a.requestRescan()
			}
		},
		DeleteFunc: func(any) { a.requestRescan() },
	})
	if err != nil {
		return fmt.Errorf("cannot watch DiskClasses: %w", err)
	}
	return nil
}

// handleDecisions causes a rescan when operators decide about devices and disks.
func (a *agent) handleDecisions() error {
	_, err := a.capacities.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { a.requestRescan() },
		UpdateFunc: func(before, now any) {
			// The agent itself updates the status all the time.
			b, _ := before.(*diskv1alpha1.NodeDiskCapacity)
			n, _ := now.(*diskv1alpha1.NodeDiskCapacity)
			if b == nil || n == nil || b.Annotations[diskv1alpha1.AnnotationForgetDisks] != n.Annotations[diskv1alpha1.AnnotationForgetDisks] ||
				!equality.Semantic.DeepEqual(b.Spec.Adopt, n.Spec.Adopt) {
				a.requestRescan()
			}
		},
	})
	if err != nil {
		return fmt.Errorf("cannot watch the NodeDiskCapacity: %w", err)
	}
	return nil
}

// handleCSINode checks the driver's registration when the CSINode changes.
func (a *agent) handleCSINode() error {
	_, err := a.csiNodes.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { a.requestLabelCheck() },
		UpdateFunc: func(any, any) { a.requestLabelCheck() },
		DeleteFunc: func(any) { a.requestLabelCheck() },
	})
	if err != nil {
		return fmt.Errorf("cannot watch the CSINode: %w", err)
	}
	return nil
}

// handleNode causes a rescan, and a check of the registration, when the Node or its labels change.
func (a *agent) handleNode() error {
	if err := a.nodes.SetTransform(stripNode); err != nil {
		return fmt.Errorf("cannot watch the node: %w", err)
	}
	_, err := a.nodes.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { a.onNode() },
		UpdateFunc: func(before, now any) {
			// The kubelet updates its Node all the time.
			b, _ := before.(*corev1.Node)
			n, _ := now.(*corev1.Node)
			if b == nil || n == nil || b.UID != n.UID || !maps.Equal(b.Labels, n.Labels) {
				a.onNode()
			}
		},
	})
	if err != nil {
		return fmt.Errorf("cannot watch the node: %w", err)
	}
	return nil
}

// onNode is called when there is a Node, or another one, or one with other labels.
func (a *agent) onNode() {
	a.requestRescan()
	a.requestLabelCheck()
}

// requestLabelCheck requests watchRegistration to check that the kubelet's registration is still in the API.
func (a *agent) requestLabelCheck() {
	select {
	case a.registrationChecks <- struct{}{}:
	default:
	}
}

// stripNode keeps only the fields of the Node that the agent reads.
func stripNode(object any) (any, error) {
	node, ok := object.(*corev1.Node)
	if !ok {
		return object, nil
	}
	stripped := &corev1.Node{ObjectMeta: metav1.ObjectMeta{
		Name: node.Name, UID: node.UID, Labels: node.Labels, ResourceVersion: node.ResourceVersion,
	}}
	stripped.Status.NodeInfo.MachineID = node.Status.NodeInfo.MachineID
	return stripped, nil
}

// sync starts informers and waits until they have synced. It logs what it waits for: a missing CRD or permission would
// otherwise look like a hang.
func (a *agent) sync(ctx context.Context, group *errgroup.Group, what string, informers ...cache.SharedIndexInformer) bool {
	logger := klog.FromContext(ctx)
	synced := make([]cache.InformerSynced, len(informers))
	for i, informer := range informers {
		group.Go(func() error { informer.RunWithContext(ctx); return nil })
		synced[i] = informer.HasSynced
	}
	slow := time.AfterFunc(5*time.Second, func() {
		logger.Info("Waiting for the API server; are its address, the CRDs and the agent's permissions right?", "waitingFor", what)
	})
	defer slow.Stop()
	return cache.WaitForCacheSync(ctx.Done(), synced...)
}

// node is the agent's Node from the watch, or an empty one.
func (a *agent) node() *corev1.Node {
	if object, ok, err := a.nodes.GetStore().GetByKey(a.options.NodeName); err == nil && ok {
		if node, ok := object.(*corev1.Node); ok {
			return node
		}
	}
	return &corev1.Node{}
}

func (a *agent) published() []diskv1alpha1.Disk { return a.publishedStatus().Disks }

func (a *agent) publishedStatus() diskv1alpha1.NodeDiskCapacityStatus {
	if ndc := a.capacity(); ndc != nil {
		return ndc.Status
	}
	return diskv1alpha1.NodeDiskCapacityStatus{}
}

// capacityUID is the UID of the node's NodeDiskCapacity, or empty.
func (a *agent) capacityUID() types.UID {
	if ndc := a.capacity(); ndc != nil {
		return ndc.UID
	}
	return ""
}

// capacity is the node's NodeDiskCapacity from the watch, or nil.
func (a *agent) capacity() *diskv1alpha1.NodeDiskCapacity {
	object, ok, err := a.capacities.GetStore().GetByKey(a.options.NodeName)
	if err != nil || !ok {
		return nil
	}
	ndc, _ := object.(*diskv1alpha1.NodeDiskCapacity)
	return ndc
}
