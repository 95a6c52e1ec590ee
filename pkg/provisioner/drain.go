package provisioner

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/answer"
	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/pkg/controller"
	"github.com/berthdev/berth/pkg/ledger"
	"github.com/berthdev/berth/pkg/plugins/diskcapacity"
)

// The volumes of a disk that is drained get other places, on disks of their class on the same node. The node's agent
// moves each when no pod uses it. The operator's decision is in spec of the NodeDiskCapacity, and each place in the
// annotation of its PersistentVolume. So a leader that restarts goes on.

// drainSettle is how long a node's changes are collected.
const drainSettle = 200 * time.Millisecond

// drains are the nodes that have, or had, a disk to be drained, or volumes that are to be moved.
type drains struct {
	mu    sync.Mutex
	nodes map[string]struct{}
}

func (d *drains) add(label string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.nodes == nil {
		d.nodes = map[string]struct{}{}
	}
	d.nodes[label] = struct{}{}
}

func (d *drains) has(label string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, is := d.nodes[label]
	return is
}

func (d *drains) remove(label string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.nodes, label)
}

// isDraining reports whether an operator wants a disk of the node drained, or compacted.
func isDraining(decisions []diskv1alpha1.DiskDecision) bool {
	for _, d := range decisions {
		if d.Drain != nil || d.Compact {
			return true
		}
	}
	return false
}

// checkDrain queues a node, after a change of its NodeDiskCapacity, if volumes of it may have to leave their disks.
func (c *Controllers) checkDrain(node string) {
	label := diskv1alpha1.NodeLabel(node)
	if r := c.shared.Report(node); r != nil && isDraining(r.Decisions) {
		c.drains.add(label)
	}
	if c.drains.has(label) {
		c.drainQueue.AddAfter(node, drainSettle)
	}
}

// syncDrain plans the moves of the volumes of a node's draining disks. It also ends moves that no claim's sync ends.
func (c *Controllers) syncDrain(ctx context.Context, node string) error {
	label := diskv1alpha1.NodeLabel(node)
	report := c.shared.Report(node)
	if report == nil {
		return nil
	}
	pvs, err := c.volumes.List(labels.SelectorFromSet(labels.Set{diskv1alpha1.LabelNode: label}))
	if err != nil {
		return err
	}
	decisions := map[string]diskv1alpha1.DiskDecision{}
	for _, d := range report.Decisions {
		decisions[d.ID] = d
	}
	moves, failed := 0, []error(nil)
	for _, pv := range pvs {
		moving, err := c.syncDrained(ctx, node, pv, decisions, report.Compactions)
		if moving {
			moves++
		}
		failed = append(failed, err)
	}
	if moves == 0 && !isDraining(report.Decisions) {
		c.drains.remove(label)
	} else {
		// Space that was only reserved may become free without a change of the node.
		c.drainQueue.AddAfter(node, controller.LastRetry)
	}
	return errors.Join(failed...)
}

// syncDrained takes the move of a PersistentVolume one step further. next are the next moves of compactions, by disk.
// It reports whether the volume is being moved, or may have been.
func (c *Controllers) syncDrained(ctx context.Context, node string, pv *corev1.PersistentVolume, decisions map[string]diskv1alpha1.DiskDecision, next map[string]diskv1alpha1.CompactionMove) (moving bool, err error) {
	if !hasRecordedPlace(pv) || pv.DeletionTimestamp != nil {
		return false, nil
	}
	key := drainKey(pv)
	if err := c.settleDrain(ctx, key); err != nil {
		return true, err
	}
	v, err := claim.ReadVolume(pv)
	if err != nil {
		// The agent reports what is wrong.
		return false, nil //nolint:nilerr // see above
	}
	at, record, known := c.ledger.Where(v.Partition)
	if !known || at != node {
		return false, nil
	}
	if v.MoveTo != nil {
		if isVoid(&v, record, decisions) || c.isVoidCompaction(node, &v, record, decisions) {
			return true, c.writeMoveTo(ctx, pv, nil, false)
		}
		return true, c.endMoveOf(ctx, pv, claimKey(pv))
	}
	if ended, err := c.endPieces(ctx, pv, &v, node); ended {
		return true, err
	}
	if decisions[record.Disk].Drain == nil {
		if len(v.Pieces) > 0 {
			// It may have been moved, which the node has not published yet. Volumes of several pieces are not compacted.
			return true, nil
		}
		return c.compact(ctx, node, pv, &v, decisions[record.Disk], next[record.Disk])
	}
	return true, c.planDrain(ctx, node, pv, &v, ledger.MoveRequest{Elsewhere: true})
}

// isVoid reports whether a move to another disk must not be done any more: the disk is not drained any more, or the
// target takes no volumes. The node has not begun it, or wipes the copy.
func isVoid(v *claim.Volume, at ledger.Record, decisions map[string]diskv1alpha1.DiskDecision) bool {
	if at.Disk == v.MoveTo.Disk {
		return false
	}
	return decisions[v.MoveTo.Disk].IsCordoned() || decisions[at.Disk].Drain == nil
}

// planDrain reserves a place for a volume that is drained or compacted, and writes it into the PersistentVolume.
func (c *Controllers) planDrain(ctx context.Context, node string, pv *corev1.PersistentVolume, v *claim.Volume, o ledger.MoveRequest) error {
	version, err := diskcapacity.RevisionOf(pv.ResourceVersion)
	if err != nil {
		return err
	}
	o.Version = version
	to, err := c.planMoveFor(pv, o, v)
	if errors.Is(err, ledger.ErrUnsettled) || err == nil && to == nil {
		// An event of the PersistentVolume comes first, or the agent says what is missing.
		return nil
	}
	if err != nil {
		return err
	}
	if err := c.writeMoveTo(ctx, pv, to, false); err != nil {
		if answer.Of(err).NotDone() {
			c.withdrawMove(pv)
		} else {
			c.memory.addUnsettled(drainKey(pv), pv)
		}
		return fmt.Errorf("moving a volume of node %s: %w", node, err)
	}
	klog.FromContext(ctx).Info("Volume is to be moved, because its disk is drained or compacted", "volume", klog.KObj(pv), "node", klog.KRef("", node), "to", to)
	if ref := pv.Spec.ClaimRef; ref != nil {
		c.memory.addWaiting(node, ref.Namespace+"/"+ref.Name)
	}
	return nil
}

// settleDrain finds out whether a volume's failed writes of drains were done. A growth may be in doubt meanwhile, too,
// which the sync of the claim settles.
func (c *Controllers) settleDrain(ctx context.Context, key string) error {
	return c.settleWrites(ctx, key, func(was, now *corev1.PersistentVolume) {
		if moveTo(now) == "" {
			c.withdrawMove(was)
		}
	})
}

// drainKey is the key under which the memory has the writes of a drain whose outcome is not known. No claim has it.
func drainKey(pv *corev1.PersistentVolume) string { return "drain/" + string(pv.UID) + "/" + pv.Name }

// claimKey is the key of the claim of a PersistentVolume.
func claimKey(pv *corev1.PersistentVolume) string {
	if ref := pv.Spec.ClaimRef; ref != nil {
		return ref.Namespace + "/" + ref.Name
	}
	return "/" + pv.Name
}
