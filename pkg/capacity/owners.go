package capacity

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/ledger"
	"github.com/berthdev/berth/pkg/plugins/diskcapacity"
)

const (
	reasonShared    = "PublishedTwice"
	reasonNotShared = "PublishedOnce"
	// maxMessage is how long a condition's message may be.
	maxMessage = 2048
)

// syncOwners writes down which of its disks the node owns, and whether others publish them.
func (c *Controllers) syncOwners(ctx context.Context, nodeName string, report *diskcapacity.Report) error {
	ownership := c.shared.Ledger.Ownership(nodeName)
	c.wakePeers(nodeName, ownership.Shared)
	if !slices.Equal(ownership.Owned, ownership.Assigned) {
		err := c.objects.patch(ctx, capacityResource, nodeName, map[string]any{
			"metadata": map[string]any{"uid": report.UID},
			"spec":     map[string]any{"ownedDisks": ownership.Owned},
		})
		if err != nil {
			return notFoundIsDone(err)
		}
		klog.FromContext(ctx).V(2).Info("Wrote down which disks a node owns", "node", klog.KRef("", nodeName), "disks", len(ownership.Owned))
	}
	message := sharedMessage(nodeName, ownership.Shared)
	if message == report.Shared {
		return nil
	}
	return notFoundIsDone(c.sayShared(ctx, nodeName, message))
}

// sayShared writes the condition DisksShared. It is the one condition that the agent leaves alone.
func (c *Controllers) sayShared(ctx context.Context, nodeName, message string) error {
	ndc, err := c.objects.capacity(ctx, nodeName)
	if err != nil {
		return err
	}
	condition := metav1.Condition{Type: diskv1alpha1.ConditionDisksShared, Status: metav1.ConditionFalse, Reason: reasonNotShared}
	if message != "" {
		condition.Status, condition.Reason, condition.Message = metav1.ConditionTrue, reasonShared, message
	}
	if !meta.SetStatusCondition(&ndc.Status.Conditions, condition) {
		return nil
	}
	if message != "" {
		klog.FromContext(ctx).Info("A node publishes a disk that another node publishes, too", "node", klog.KRef("", nodeName), "message", message)
	}
	return c.objects.patch(ctx, capacityResource, nodeName, map[string]any{
		"metadata": map[string]any{"uid": ndc.UID, "resourceVersion": ndc.ResourceVersion},
		"status":   map[string]any{"conditions": ndc.Status.Conditions},
	}, statusSubresource)
}

// sharedMessage says which disks are shared, and where they serve; empty if none is.
func sharedMessage(nodeName string, shared []ledger.SharedDisk) string {
	lines := make([]string, len(shared))
	for i, s := range shared {
		where := "it serves on no node"
		switch s.Owner {
		case "":
		case nodeName:
			where = "it serves here and is out of service there"
		default:
			where = fmt.Sprintf("it serves on node %s and is out of service here: detach the device from one of the nodes", s.Owner)
		}
		lines[i] = fmt.Sprintf("disk %s is published by node %s, too; %s", s.ID, strings.Join(s.Others, ", "), where)
	}
	message := strings.Join(lines, ". ")
	if len(message) > maxMessage {
		message = strings.ToValidUTF8(message[:maxMessage-3], "") + "..."
	}
	return message
}

// notFoundIsDone: what is gone needs nothing written.
func notFoundIsDone(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// peers has, by node, the nodes with which it shared disks when it was last looked at.
type peers struct {
	mu sync.Mutex
	of map[string][]string
}

func newPeers() *peers { return &peers{of: map[string][]string{}} }

// change notes the peers of a node, and returns those that come or go.
func (p *peers) change(nodeName string, now []string) (changed []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	before := p.of[nodeName]
	if len(now) == 0 {
		delete(p.of, nodeName)
	} else {
		p.of[nodeName] = now
	}
	if slices.Equal(before, now) {
		return nil
	}
	changed = slices.Concat(before, now)
	slices.Sort(changed)
	return slices.Compact(changed)
}

// wakePeers queues the nodes that share disks with the node now, or did.
func (c *Controllers) wakePeers(nodeName string, shared []ledger.SharedDisk) {
	var with []string
	for _, s := range shared {
		// The owner is part of it: when that changes, all of them say something else.
		for _, other := range s.Others {
			with = append(with, other+"\x00"+s.ID+"\x00"+s.Owner)
		}
	}
	slices.Sort(with)
	for _, entry := range c.peers.change(nodeName, with) {
		other, _, _ := strings.Cut(entry, "\x00")
		c.queue.AddAfter(other, settle)
	}
}
