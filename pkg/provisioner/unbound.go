package provisioner

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/answer"
	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/pkg/controller"
	"github.com/berthdev/berth/pkg/ledger"
	"github.com/berthdev/berth/pkg/plugins/diskcapacity"
	"github.com/berthdev/berth/pkg/request"
)

// annotationSelectedNode has the node that a scheduler has chosen for a claim's pod. Removing it gives the claim back.
const annotationSelectedNode = "volume.kubernetes.io/selected-node"

// Reasons and actions of events about claims.
const (
	reasonFailed    = "ProvisioningFailed"
	reasonSucceeded = "ProvisioningSucceeded"
	actionProvision = "Provisioning"
)

// holderOf is the ledger's holder of a claim's place until its PersistentVolume exists. Pods are held by their UIDs.
func holderOf(uid types.UID) string { return "claim/" + string(uid) }

// syncUnbound does the next step for a claim of ours without a volume.
func (c *Controllers) syncUnbound(ctx context.Context, state *claimState, pvc *corev1.PersistentVolumeClaim, class *storagev1.StorageClass) error {
	v, err := claim.Request(pvc, class)
	if err != nil {
		return c.refuse(ctx, state, pvc, err.Error())
	}
	if !claim.WaitsForFirstConsumer(class) {
		return c.placeImmediate(ctx, state, pvc, class, v)
	}
	if node := pvc.Annotations[annotationSelectedNode]; node != "" {
		return c.provision(ctx, state, pvc, class, v, nodeChoice{node: node, by: byScheduler})
	}
	if pod, ok := c.pinOf(pvc); ok {
		return c.provision(ctx, state, pvc, class, v, nodeChoice{node: pod.node, by: byPod, pod: pod})
	}
	// The claim waits for its pod, or its node was withdrawn.
	_, err = c.settlePlace(ctx, state, pvc)
	return err
}

// settlePlace releases what is held for a claim that needs no place of its own any more: it has no node, or it has its
// volume. If its PersistentVolume may have been made, the place is held until that is known. Meanwhile the claim's
// scheduler may choose any node. It reports whether nothing is held any more.
func (c *Controllers) settlePlace(ctx context.Context, state *claimState, pvc *corev1.PersistentVolumeClaim) (settled bool, err error) {
	if c.dropReservation(state, pvc) {
		return true, nil
	}
	name := diskv1alpha1.ClaimVolumeID(pvc.UID)
	if _, err := c.volumes.Get(name); err == nil {
		// The ledger has its own record of it.
		c.releaseReservation(state, pvc)
		return true, nil
	}
	if wait := answer.SettleAfter - c.clock.Since(state.unsureSince); wait > 0 {
		c.claimQueue.AddAfter(keyOf(pvc), wait)
		return false, nil
	}
	pv, err := c.client.CoreV1().PersistentVolumes().Get(ctx, name, metav1.GetOptions{})
	switch {
	case err == nil:
		if volume, err := claim.ReadVolume(pv); err == nil {
			c.ledger.AddVolume(string(pv.UID), pv.Name, volume.Node, diskcapacity.RecordOf(volume), diskcapacity.PiecesOf(volume))
		}
	case !apierrors.IsNotFound(err):
		return false, fmt.Errorf("reading PersistentVolume %s, which may have been made: %w", name, err)
	}
	c.releaseReservation(state, pvc)
	return true, nil
}

// dropReservation drops the claim's reservation. It reports whether nothing is held any more. If the PersistentVolume
// may have been made, the place stays held, in doubt.
func (c *Controllers) dropReservation(state *claimState, pvc *corev1.PersistentVolumeClaim) bool {
	if state.unsureSince.IsZero() {
		c.ledger.Forget(holderOf(pvc.UID))
		return true
	}
	c.ledger.Doubt(holderOf(pvc.UID))
	return false
}

// releaseReservation drops everything that is held for the claim, because it is known whether its PersistentVolume
// exists.
func (c *Controllers) releaseReservation(state *claimState, pvc *corev1.PersistentVolumeClaim) {
	state.unsureSince = time.Time{}
	c.ledger.Release(holderOf(pvc.UID))
}

// refuse writes an event about why a claim cannot be served as it is, on any node. The claim keeps its node, because
// the problem may be fixed. It keeps no place.
func (c *Controllers) refuse(ctx context.Context, state *claimState, pvc *corev1.PersistentVolumeClaim, why string) error {
	c.emitEvent(state, pvc, corev1.EventTypeWarning, reasonFailed, actionProvision, why)
	c.claimQueue.AddAfter(keyOf(pvc), controller.LastRetry)
	_, err := c.settlePlace(ctx, state, pvc)
	return err
}

// provision creates the volume of a claim on the node that was chosen for it.
func (c *Controllers) provision(ctx context.Context, state *claimState, pvc *corev1.PersistentVolumeClaim, class *storagev1.StorageClass, v request.Volume, at nodeChoice) error {
	node := at.node
	holder := holderOf(pvc.UID)
	pv, err := c.volumes.Get(v.ID)
	switch {
	case err == nil:
		return c.handOver(ctx, state, pvc, pv, node)
	case !apierrors.IsNotFound(err):
		return err
	}
	if err := c.cluster.ApplyClass(&v.Request); err != nil {
		return c.refuse(ctx, state, pvc, fmt.Sprintf("StorageClass %s: %s", class.Name, err))
	}
	if why := c.cluster.UnfitReason(node); why != "" {
		return c.onUnfit(ctx, state, pvc, at, why)
	}
	if have, err := c.nodes.Get(node); at.by == byPod && err == nil && !inAllowedTopologies(class, have) {
		return c.onUnfit(ctx, state, pvc, at, fmt.Sprintf("StorageClass %s does not allow it by its allowedTopologies", class.Name))
	}
	if !state.unsureSince.IsZero() {
		// An earlier try may have made it on another node.
		c.ledger.Doubt(holder)
	}
	// If a pod of ours is being bound with this very claim, the ledger has its place. On this node the place is shared,
	// and one of the two creates the PersistentVolume. Otherwise this node is the wrong one.
	records, err := c.ledger.Reserve(holder, node, []ledger.VolumeRequest{diskcapacity.VolumeRequestOf(&v)})
	if err != nil {
		return c.onUnfit(ctx, state, pvc, at, err.Error())
	}
	places := diskcapacity.PlacesOf(records)
	wanted := claim.NewVolume(pvc, class, v, node, places[0], places[1:]...)
	pv, err = c.client.CoreV1().PersistentVolumes().Create(ctx, wanted, metav1.CreateOptions{})
	switch what := answer.Of(err); what {
	case answer.Done:
		klog.FromContext(ctx).V(2).Info("Made the volume of a claim", "claim", klog.KObj(pvc), "node", klog.KRef("", node), "volume", klog.KObj(pv), "places", places)
		c.emitProvisioned(state, pvc, class, at)
	case answer.Exists:
		// It was created by an earlier try whose response was lost, or by the previous leader.
		if pv, err = c.client.CoreV1().PersistentVolumes().Get(ctx, v.ID, metav1.GetOptions{}); err != nil {
			state.unsureSince = c.clock.Now()
			return fmt.Errorf("reading PersistentVolume %s, which exists: %w", v.ID, err)
		}
	default:
		if what.NotDone() {
			c.dropReservation(state, pvc)
		} else {
			// It may exist. The reservation stays until the next try knows.
			state.unsureSince = c.clock.Now()
		}
		if what == answer.Refused {
			c.emitEvent(state, pvc, corev1.EventTypeWarning, reasonFailed, actionProvision, "the API server refused the PersistentVolume: "+err.Error())
		}
		return fmt.Errorf("creating PersistentVolume %s of claim %s: %w", v.ID, keyOf(pvc), err)
	}
	return c.handOver(ctx, state, pvc, pv, node)
}

// handOver releases the claim's reservation after its PersistentVolume has a record. The PersistentVolume controller
// does the rest.
func (c *Controllers) handOver(ctx context.Context, state *claimState, pvc *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume, node string) error {
	if !claim.IsFor(pv, pvc) {
		c.releaseReservation(state, pvc)
		return c.refuse(ctx, state, pvc, fmt.Sprintf("PersistentVolume %s exists, and is not for this claim: delete it", pv.Name))
	}
	if pv.DeletionTimestamp != nil {
		// It was deleted before it was bound. The event of its end queues the claim.
		c.releaseReservation(state, pvc)
		return nil
	}
	// This is not left to the informer: between Forget and its event the place would be free.
	if volume, err := claim.ReadVolume(pv); err == nil {
		// An earlier try may have made it on another node.
		if volume.Node != diskv1alpha1.NodeLabel(node) {
			node = volume.Node
		}
		c.ledger.AddVolume(string(pv.UID), pv.Name, node, diskcapacity.RecordOf(volume), diskcapacity.PiecesOf(volume))
	}
	c.releaseReservation(state, pvc)
	return nil
}

// withdrawNode removes the annotation with the node that a scheduler chose for a claim, so that it chooses another one.
// It does not change the pod: the scheduler waits for the claim, and starts over.
func (c *Controllers) withdrawNode(ctx context.Context, state *claimState, pvc *corev1.PersistentVolumeClaim, node, why string) error {
	c.dropReservation(state, pvc)
	key := keyOf(pvc)
	if wait := state.placeBackoff.remaining(c.clock.Now()); wait > 0 {
		// There may be room meanwhile. But a user with the right to edit claims can choose any name, and a node that
		// does not exist never changes.
		if c.nodeExists(diskv1alpha1.NodeLabel(node)) {
			c.memory.addWaiting(node, key)
		}
		c.claimQueue.AddAfter(key, wait)
		return nil
	}
	// The patch tests the node, so that no other choice is withdrawn.
	path := "/metadata/annotations/" + strings.ReplaceAll(annotationSelectedNode, "/", "~1")
	patch, err := json.Marshal([]map[string]any{
		{"op": "test", "path": "/metadata/uid", "value": pvc.UID},
		{"op": "test", "path": path, "value": node},
		{"op": "remove", "path": path},
	})
	if err != nil {
		return err
	}
	_, err = c.client.CoreV1().PersistentVolumeClaims(pvc.Namespace).Patch(ctx, pvc.Name, types.JSONPatchType, patch, metav1.PatchOptions{})
	switch {
	case apierrors.IsNotFound(err), apierrors.IsInvalid(err):
		// The claim is gone, or another node was chosen: the informer will show it.
		return nil
	case err != nil:
		return fmt.Errorf("taking node %s back from claim %s: %w", node, key, err)
	}
	state.placeBackoff.record(c.clock.Now())
	// Each withdrawal is reported, also if the note is the same.
	state.lastNote = ""
	c.emitEvent(state, pvc, corev1.EventTypeWarning, reasonFailed, actionProvision,
		fmt.Sprintf("node %s, which the claim's scheduler chose: %s; the scheduler may choose another. With schedulerName: berth the pod's node is chosen by free space", node, why))
	return nil
}
