package diskcapacity

import (
	"fmt"

	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

// followAgents folds into the ledger where an agent is registered: the kubelet writes it into the node's CSINode. The
// ledger's snapshot of a node has it, so Filter needs no other look-up by node.
func (f *feed) followAgents(logger klog.Logger, informer cache.SharedIndexInformer) error {
	registration, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { f.foldCSINodeEvent(logger, obj) },
		UpdateFunc: func(_, obj any) { f.foldCSINodeEvent(logger, obj) },
		DeleteFunc: func(obj any) { f.foldCSINodeEvent(logger, obj) },
	})
	if err != nil {
		return fmt.Errorf("following CSINodes: %w", err)
	}
	f.agentsSynced = registration.HasSynced
	return nil
}

// foldCSINodeEvent folds in an event, and wakes the pods that fit on the node of a new agent. The hints do so, too. But
// a pod may have come after the scheduler called the hints, and before this handler, as in foldPodEnd.
func (f *feed) foldCSINodeEvent(logger klog.Logger, obj any) {
	if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = gone.Obj
	}
	if csiNode, ok := obj.(*storagev1.CSINode); ok && f.foldAgent(csiNode.Name) && f.hasAgent(csiNode.Name) {
		f.requeueFitting(logger, csiNode.Name, nil)
	}
}

// foldAgent folds in whether an agent is registered on the node now, not at the time of the event, see foldPod. It
// reports whether that changed.
func (f *feed) foldAgent(nodeName string) (changed bool) {
	f.folding.Lock()
	defer f.folding.Unlock()
	csiNode, err := f.csiNodes.Get(nodeName)
	return f.ledger.SetAgent(nodeName, err == nil && hasDriver(csiNode))
}

// hasAgent reports whether our driver is registered with the node's kubelet. Without it the pod's volumes are never
// mounted, however much space is published.
func (f *feed) hasAgent(nodeName string) bool { return f.ledger.Snapshot(nodeName).Registered }

// hasDriver reports whether the CSINode names our driver.
func hasDriver(csiNode *storagev1.CSINode) bool {
	for i := range csiNode.Spec.Drivers {
		if csiNode.Spec.Drivers[i].Name == diskv1alpha1.DriverName {
			return true
		}
	}
	return false
}
