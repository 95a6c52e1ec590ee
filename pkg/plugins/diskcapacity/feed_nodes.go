package diskcapacity

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

// followNodes folds into the ledger which Nodes exist. A NodeDiskCapacity is kept for a while without its Node, so that
// the disks' volumes are known when the Node comes back.
func (f *feed) followNodes(logger klog.Logger, informer cache.SharedIndexInformer) error {
	fold := func(obj any) {
		if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
			obj = gone.Obj
		}
		if node, ok := obj.(*corev1.Node); ok {
			f.foldNode(logger, node.Name)
		}
	}
	// A Node that was made again in one update exists, so updates change nothing.
	registration, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: fold, DeleteFunc: fold})
	if err != nil {
		return fmt.Errorf("following Nodes: %w", err)
	}
	f.nodesSynced = registration.HasSynced
	return nil
}

// foldNode folds in whether the Node exists now, not at the time of the event, see foldPod. If it exists again, or
// disks of other nodes came into service, the pods that fit there are tried again.
func (f *feed) foldNode(logger klog.Logger, nodeName string) {
	if !f.nodesSynced() {
		// Whether a Node is missing is not known yet. foldNodes folds it in later.
		return
	}
	f.folding.Lock()
	_, err := f.nodes.Get(nodeName)
	exists := !apierrors.IsNotFound(err)
	changed, served := f.ledger.SetNode(nodeName, exists)
	f.folding.Unlock()
	if changed && exists {
		served = append(served, nodeName)
	}
	f.requeueFittingAsync(logger, served)
}

// foldNodes folds in, once, the Nodes of all NodeDiskCapacities that were read before the Nodes.
func (f *feed) foldNodes() {
	f.nodesFolded.Do(func() {
		for _, name := range f.capacities.names() {
			f.foldNode(klog.Background(), name)
		}
	})
}
