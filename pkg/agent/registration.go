package agent

import (
	"context"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

const (
	// labelGrace is how long the node's label may be missing before the driver is registered again. When the agent
	// starts it waits for the first registration.
	labelGrace = 15 * time.Second
	// labelPause is the least time between two such registrations.
	labelPause = time.Minute

	eventRegisteringAgain = "RegisteringAgain"
)

// labelMonitor decides when the driver must be registered again. The kubelet sets the label only when it registers a
// driver. So a label that was removed is not set again, nor is that of a Node that was made again.
type labelMonitor struct {
	missingSince, last time.Time
}

// due returns whether to register the driver, and otherwise after which time to check again. missing is whether the
// label is missing now. The time is 0 if no check is needed.
func (m *labelMonitor) due(missing bool, now time.Time) (register bool, wait time.Duration) {
	if !missing {
		m.missingSince = time.Time{}
		return false, 0
	}
	if m.missingSince.IsZero() {
		m.missingSince = now
	}
	at := m.missingSince.Add(labelGrace)
	if next := m.last.Add(labelPause); !m.last.IsZero() && next.After(at) {
		at = next
	}
	if wait := at.Sub(now); wait > 0 {
		return false, wait
	}
	m.last = now
	return true, labelPause
}

// labelMissing reports whether the Node exists without the label that the pods of its claims need.
func labelMissing(node *corev1.Node) bool {
	return node.UID != "" && node.Labels[diskv1alpha1.LabelNode] != diskv1alpha1.NodeLabel(node.Name)
}

// driverMissing reports whether the CSINode does not name the driver.
func driverMissing(csiNode *storagev1.CSINode) bool {
	return csiNode == nil || !slices.ContainsFunc(csiNode.Spec.Drivers, func(d storagev1.CSINodeDriver) bool { return d.Name == diskv1alpha1.DriverName })
}

// isUnregistered reports whether the API lacks what the kubelet writes when it registers the driver.
func (a *agent) isUnregistered() bool {
	node := a.node()
	if node.UID == "" {
		return false
	}
	if labelMissing(node) {
		return true
	}
	if !a.csiNodes.HasSynced() {
		return false
	}
	object, _, err := a.csiNodes.GetStore().GetByKey(node.Name)
	csiNode, _ := object.(*storagev1.CSINode)
	return err == nil && driverMissing(csiNode)
}

// watchRegistration registers the driver again when the API has lost what the kubelet wrote.
func (a *agent) watchRegistration(ctx context.Context, register func()) {
	var w labelMonitor
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.registrationChecks:
		case <-timer.C:
		}
		again, wait := w.due(a.isUnregistered(), time.Now())
		if again {
			klog.FromContext(ctx).Info("The Node lacks its label or its CSINode the driver, so pods with volumes cannot come here; the driver is registered with the kubelet again, which sets both", "label", diskv1alpha1.LabelNode)
			a.recorder.OfNode(a.capacityUID(), corev1.EventTypeWarning, eventRegisteringAgain,
				"the Node lacks the label "+diskv1alpha1.LabelNode+" or its CSINode the driver, so pods with volumes cannot come here; the driver is registered with the kubelet again, which sets both")
			register()
		}
		if wait > 0 {
			timer.Reset(wait)
		}
	}
}
