package integration

import (
	"context"
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/placement"
)

// syncVolumes does with the PersistentVolumes of the node what the agent does: makes them
// where they say, or elsewhere if that is taken, and finalizes them when they are released.
func (n *simNode) syncVolumes(ctx context.Context, volumes []corev1.PersistentVolume) error {
	changed := false
	var gone []*corev1.PersistentVolume
	n.mu.Lock()
	for i := range volumes {
		pv := &volumes[i]
		v, err := claim.ReadVolume(pv)
		if err != nil || v.Node != diskv1alpha1.NodeLabel(n.name) {
			continue
		}
		_, there := n.claimed[v.Partition]
		deleting := pv.DeletionTimestamp != nil
		switch {
		case deleting || pv.Status.Phase == corev1.VolumeReleased && pv.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete:
			if there && pv.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete {
				delete(n.claimed, v.Partition)
				for _, piece := range diskv1alpha1.PieceIDs(v.Partition) {
					delete(n.claimed, piece)
				}
				changed = true
			}
			gone = append(gone, pv)
		case !there:
			changed = n.make(v) || changed
		}
	}
	silent := n.silent
	n.mu.Unlock()
	if changed && !silent {
		if err := n.publish(ctx); err != nil {
			return err
		}
	}
	for _, pv := range gone {
		if err := client.IgnoreNotFound(n.client.Delete(ctx, pv, client.Preconditions{UID: &pv.UID})); err != nil {
			return err
		}
		before := pv.DeepCopy()
		if controllerutil.RemoveFinalizer(pv, diskv1alpha1.FinalizerVolume) {
			// Another controller may have a finalizer to remove at the same time: next time, then.
			err := n.client.Patch(ctx, pv, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
			if client.IgnoreNotFound(err) != nil && !apierrors.IsConflict(err) {
				return err
			}
		}
	}
	return nil
}

// make puts a claim's volume on the disk. The lock is held.
func (n *simNode) make(v claim.Volume) bool {
	e := extent.New(v.Place.Start, v.FirstLength())
	if v.Place.Disk == simDisk(n.name) && n.free().Contains(e) {
		n.claimed[v.Partition] = e
		for i, p := range v.Pieces {
			n.claimed[diskv1alpha1.PieceID(v.Partition, i+1)] = extent.New(p.Start, p.Length)
		}
		return true
	}
	n.moved++
	view := &placement.Node{Disks: []placement.Disk{{ID: simDisk(n.name), Class: "ssd", Free: n.free()}}}
	plan, err := placement.Plan(nil, view, []placement.Request{{Class: "ssd", Size: v.Size}})
	if err != nil {
		return false
	}
	n.claimed[v.Partition] = plan[0].Extent
	return true
}

// followClaims runs the nodes until the test ends, as follow does, with their
// PersistentVolumes too.
func followClaims(t *testing.T, c client.Client, nodes ...*simNode) {
	t.Helper()
	follow(t, c, nodes...)
	again(t, func(ctx context.Context) error {
		var volumes corev1.PersistentVolumeList
		if err := c.List(ctx, &volumes); err != nil {
			return fmt.Errorf("the nodes cannot list volumes: %w", err)
		}
		for _, n := range nodes {
			if err := n.syncVolumes(ctx, volumes.Items); err != nil {
				return err
			}
		}
		return nil
	})
}
