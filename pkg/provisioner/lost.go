package provisioner

import (
	"context"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/claim"
)

const (
	reasonNodeGone = "NodeGone"
	actionWatch    = "Watching"
	// lostAfter is how long a Node may be gone before its volumes are reported as lost: some clouds delete and recreate
	// a Node when its machine restarts.
	lostAfter = 10 * time.Second
)

// onNode queues a node whose Node was deleted.
func (c *Controllers) onNode(old, now any) {
	if node, ok := old.(*corev1.Node); ok && now == nil {
		c.checkNodeLater(diskv1alpha1.NodeLabel(node.Name))
	}
}

// checkNodeLater queues the node with that value of LabelNode after lostAfter, if its Node does not exist.
func (c *Controllers) checkNodeLater(label string) {
	if label != "" && !c.nodeExists(label) {
		c.lostQueue.AddAfter(label, lostAfter)
	}
}

// nodeExists reports whether there is a Node with that value of LabelNode.
func (c *Controllers) nodeExists(label string) bool {
	if _, err := c.nodes.Get(label); err == nil {
		return true
	}
	if !strings.HasPrefix(label, "node-") {
		return false
	}
	// The label may stand for a name that is too long for a label.
	nodes, err := c.nodes.List(labels.Everything())
	if err != nil {
		return true
	}
	for _, node := range nodes {
		if diskv1alpha1.NodeLabel(node.Name) == label {
			return true
		}
	}
	return false
}

// syncLost reports on the volumes of a node that is gone what can be done about them. It deletes nothing: the disks may
// be put into the machine that replaces it, and only an operator knows whether they will be.
func (c *Controllers) syncLost(_ context.Context, label string) error {
	if c.nodeExists(label) {
		return nil
	}
	volumes, err := c.volumes.List(labels.SelectorFromSet(labels.Set{diskv1alpha1.LabelNode: label}))
	if err != nil {
		return err
	}
	for _, pv := range volumes {
		if !claim.IsOurs(pv) {
			continue
		}
		note := fmt.Sprintf("Node %s is gone, and the volume is on its disk %s. It comes back with a node of this name and the disk. If it never will: delete the claim, then the PersistentVolume, and remove the finalizer %s from it",
			label, pv.Spec.CSI.VolumeAttributes[diskv1alpha1.AttributeDisk], diskv1alpha1.FinalizerVolume)
		c.recorder.Eventf(pv, nil, corev1.EventTypeWarning, reasonNodeGone, actionWatch, "%s", note)
		if ref := pv.Spec.ClaimRef; ref != nil {
			if pvc, err := c.claims.PersistentVolumeClaims(ref.Namespace).Get(ref.Name); err == nil && pvc.UID == ref.UID {
				c.recorder.Eventf(pvc, nil, corev1.EventTypeWarning, reasonNodeGone, actionWatch, "%s", note)
			}
		}
	}
	return nil
}
