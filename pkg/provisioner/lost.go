package provisioner

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

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

// onNode notes since when a node is gone, and queues it then and when it is back.
func (c *Controllers) onNode(old, now any) {
	node, ok := now.(*corev1.Node)
	if !ok {
		if node, ok = old.(*corev1.Node); ok {
			label := diskv1alpha1.NodeLabel(node.Name)
			c.gone.Elapsed(label)
			c.checkNodeLater(label)
		}
		return
	}
	label := diskv1alpha1.NodeLabel(node.Name)
	switch isGone := claim.IsOutOfService(node); {
	case isGone == c.gone.IsAbsent(label):
	case isGone:
		c.gone.Elapsed(label)
		c.lostQueue.AddAfter(label, lostAfter)
	default:
		c.gone.End(label)
		c.lostQueue.Add(label)
	}
}

// checkNodeLater queues the node with that value of LabelNode after lostAfter, if its Node does not exist.
func (c *Controllers) checkNodeLater(label string) {
	if label != "" && !c.nodeExists(label) {
		c.lostQueue.AddAfter(label, lostAfter)
	}
}

// checkRelease queues the node of a PersistentVolume that is to be released, or whose node is gone.
func (c *Controllers) checkRelease(pv *corev1.PersistentVolume) {
	label := pv.Labels[diskv1alpha1.LabelNode]
	if _, marked := pv.Annotations[diskv1alpha1.AnnotationNodeGone]; marked || c.gone.IsAbsent(label) {
		c.lostQueue.AddAfter(label, drainSettle)
	}
}

// nodeOf returns the Node with that value of LabelNode; nil if there is none.
func (c *Controllers) nodeOf(label string) (*corev1.Node, error) {
	node, err := c.nodes.Get(label)
	if err == nil || !apierrors.IsNotFound(err) || !strings.HasPrefix(label, "node-") {
		return node, notFoundIsNone(err)
	}
	// The label may stand for a name that is too long for a label.
	nodes, err := c.nodes.List(labels.Everything())
	if err != nil {
		return nil, err
	}
	for _, node := range nodes {
		if diskv1alpha1.NodeLabel(node.Name) == label {
			return node, nil
		}
	}
	return nil, nil
}

// nodeExists reports whether there is a Node with that value of LabelNode.
func (c *Controllers) nodeExists(label string) bool {
	node, err := c.nodeOf(label)
	return node != nil || err != nil
}

// syncLost releases the volumes of a node that is gone, if their DiskClass says so, and says of the others what can be
// done about them. It deletes none of those: the disks may be put into the machine that replaces the node, and only an
// operator knows whether they will be.
func (c *Controllers) syncLost(ctx context.Context, label string) (again time.Duration, err error) {
	node, err := c.nodeOf(label)
	if err != nil {
		return 0, err
	}
	pvs, err := c.volumes.List(labels.SelectorFromSet(labels.Set{diskv1alpha1.LabelNode: label}))
	if err != nil {
		return 0, err
	}
	if node != nil && !claim.IsOutOfService(node) {
		c.gone.End(label)
		c.lost.clear(label)
		return 0, c.keepReturned(ctx, pvs)
	}
	elapsed := c.gone.Elapsed(label)
	if node == nil {
		c.sayLost(label, pvs)
	}
	if len(pvs) == 0 {
		c.gone.End(label)
		c.lost.clear(label)
		return 0, nil
	}
	return c.releaseGone(ctx, label, elapsed, pvs)
}

// sayLost says once of each volume of a node that is gone what can be done about it.
func (c *Controllers) sayLost(label string, pvs []*corev1.PersistentVolume) {
	for _, pv := range pvs {
		if !claim.IsOurs(pv) || !c.lost.add(label, pv.UID) {
			continue
		}
		note := fmt.Sprintf("Node %s is gone, and the volume is on its disk %s. It comes back with a node of this name and the disk. If it never will: kubectl berth release --node-gone %s",
			label, pv.Spec.CSI.VolumeAttributes[diskv1alpha1.AttributeDisk], label)
		if after, releases := c.cluster.ReleasesAfter(pv.Spec.CSI.VolumeAttributes[diskv1alpha1.AttributeClass]); releases {
			note += fmt.Sprintf(". If a StatefulSet makes the claim again, it is deleted %s after the Node went", after)
		}
		c.recorder.Eventf(pv, nil, corev1.EventTypeWarning, reasonNodeGone, actionWatch, "%s", note)
		if ref := pv.Spec.ClaimRef; ref != nil {
			if pvc, err := c.claims.PersistentVolumeClaims(ref.Namespace).Get(ref.Name); err == nil && pvc.UID == ref.UID {
				c.recorder.Eventf(pvc, nil, corev1.EventTypeWarning, reasonNodeGone, actionWatch, "%s", note)
			}
		}
	}
}

// lostVolumes are the volumes of nodes that are gone of which an event has said so, by the label of their node.
type lostVolumes struct {
	mu sync.Mutex
	of map[string]map[types.UID]bool
}

// add adds a volume, and reports whether it is new.
func (l *lostVolumes) add(label string, uid types.UID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.of == nil {
		l.of = map[string]map[types.UID]bool{}
	}
	if l.of[label] == nil {
		l.of[label] = map[types.UID]bool{}
	}
	isNew := !l.of[label][uid]
	l.of[label][uid] = true
	return isNew
}

func (l *lostVolumes) clear(label string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.of, label)
}
