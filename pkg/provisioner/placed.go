package provisioner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/pkg/ledger"
	"github.com/berthdev/berth/pkg/plugins/diskcapacity"
	"github.com/berthdev/berth/pkg/request"
)

// annotationSelectedNode is how a scheduler tells a provisioner which node it has chosen
// for a claim's pod. To remove it is to give the claim back.
const annotationSelectedNode = "volume.kubernetes.io/selected-node"

// Reasons and actions of events about claims.
const (
	reasonFailed    = "ProvisioningFailed"
	actionProvision = "Provisioning"
)

// holderOf is under what name the ledger holds a claim's place until its
// PersistentVolume is there. Pods are held under their UIDs.
func holderOf(claim types.UID) string { return "claim/" + string(claim) }

// syncUnbound looks after a claim of ours without a volume.
func (c *Controllers) syncUnbound(ctx context.Context, m *memo, pvc *corev1.PersistentVolumeClaim, class *storagev1.StorageClass) error {
	if !waits(class) {
		c.refuse(m, pvc, fmt.Sprintf("StorageClass %s has volumeBindingMode %s: a volume of %s is placed on the node of its pod, so the class needs volumeBindingMode %s",
			class.Name, storagev1.VolumeBindingImmediate, diskv1alpha1.DriverName, storagev1.VolumeBindingWaitForFirstConsumer))
		return nil
	}
	v, err := claim.Request(pvc, class)
	if err != nil {
		c.refuse(m, pvc, err.Error())
		return nil
	}
	node := pvc.Annotations[annotationSelectedNode]
	if node == "" {
		// The node was taken back by others. If a try there left open whether it made the
		// volume, the watch tells; the claim's scheduler must not be tied to the node meanwhile.
		c.ledger.Forget(holderOf(pvc.UID))
		return nil
	}
	return c.serve(ctx, m, pvc, class, v, node)
}

// waits reports whether the class places volumes with their pods. Others are refused.
func waits(class *storagev1.StorageClass) bool {
	return class.VolumeBindingMode != nil && *class.VolumeBindingMode == storagev1.VolumeBindingWaitForFirstConsumer
}

// refuse says why a claim cannot be served as it is, whatever node it goes to. It keeps
// its node: what is wrong may be put right.
func (c *Controllers) refuse(m *memo, pvc *corev1.PersistentVolumeClaim, why string) {
	c.say(m, pvc, corev1.EventTypeWarning, reasonFailed, actionProvision, why)
	c.claimQueue.AddAfter(keyOf(pvc), lastRetry)
}

// serve makes the volume of a claim on the node that was chosen for it.
func (c *Controllers) serve(ctx context.Context, m *memo, pvc *corev1.PersistentVolumeClaim, class *storagev1.StorageClass, v request.Volume, node string) error {
	holder := holderOf(pvc.UID)
	pv, err := c.volumes.Get(v.ID)
	switch {
	case err == nil:
		return c.made(m, pvc, pv, node)
	case !apierrors.IsNotFound(err):
		return err
	}
	if err := c.shared.ApplyClass(&v.Request); err != nil {
		c.refuse(m, pvc, fmt.Sprintf("StorageClass %s: %s", class.Name, err))
		return nil
	}
	if why := c.shared.Unfit(node); why != "" {
		return c.giveBack(ctx, m, pvc, node, why)
	}
	// If a pod of ours is being bound with this very claim, the ledger has its place: on this
	// node it is shared, and one of the two makes the PersistentVolume; else this node is the wrong one.
	records, err := c.ledger.Reserve(holder, node, []ledger.Want{{Partition: v.Partition, Request: v.Request, Room: v.Room, Persistent: true}})
	if err != nil {
		return c.giveBack(ctx, m, pvc, node, err.Error())
	}
	place := diskv1alpha1.Place{Disk: records[0].Disk, Extent: diskv1alpha1.Extent{Start: records[0].Extent.Start, Length: records[0].Extent.Len()}}
	wanted := claim.NewVolume(pvc, class, v, node, place)
	pv, err = c.client.CoreV1().PersistentVolumes().Create(ctx, wanted, metav1.CreateOptions{})
	switch {
	case err == nil:
		klog.FromContext(ctx).V(2).Info("Made the volume of a claim on the node that another scheduler chose", "claim", klog.KObj(pvc), "node", klog.KRef("", node), "volume", klog.KObj(pv), "place", place)
	case apierrors.IsAlreadyExists(err):
		// An earlier try made it, whose answer was lost, or the scheduler before us.
		if pv, err = c.client.CoreV1().PersistentVolumes().Get(ctx, v.ID, metav1.GetOptions{}); err != nil {
			return fmt.Errorf("reading PersistentVolume %s, which exists: %w", v.ID, err)
		}
	case refused(err):
		c.ledger.Forget(holder)
		c.say(m, pvc, corev1.EventTypeWarning, reasonFailed, actionProvision, "the API server refused the PersistentVolume: "+err.Error())
		return fmt.Errorf("creating PersistentVolume %s of claim %s: %w", v.ID, keyOf(pvc), err)
	default:
		// It may exist. The reservation stays until the next try knows.
		return fmt.Errorf("creating PersistentVolume %s of claim %s: %w", v.ID, keyOf(pvc), err)
	}
	return c.made(m, pvc, pv, node)
}

// made hands the claim's place over from the reservation to its PersistentVolume. The rest
// is done by the PersistentVolume controller.
func (c *Controllers) made(m *memo, pvc *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume, node string) error {
	if !claim.IsFor(pv, pvc) {
		c.ledger.Forget(holderOf(pvc.UID))
		c.refuse(m, pvc, fmt.Sprintf("PersistentVolume %s exists, and is not for this claim: delete it", pv.Name))
		return nil
	}
	if pv.DeletionTimestamp != nil {
		// Somebody deleted it before it was bound. Its end brings the claim back.
		c.ledger.Forget(holderOf(pvc.UID))
		return nil
	}
	// Not left to the informer: between Forget and its event the place would be free.
	if volume, err := claim.ReadVolume(pv); err == nil && volume.Node == diskv1alpha1.NodeLabel(node) {
		c.ledger.AddVolume(string(pv.UID), node, diskcapacity.RecordOf(volume))
	}
	c.ledger.Forget(holderOf(pvc.UID))
	return nil
}

// refused says whether the API server has looked at a request and turned it down, so that
// nothing came of it.
func refused(err error) bool {
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return false
	}
	code := status.Status().Code
	return code >= http.StatusBadRequest && code < http.StatusInternalServerError && code != http.StatusRequestTimeout
}

// giveBack takes the node back that a scheduler chose for a claim, so that it chooses
// another. It does not wait for the pod: a scheduler waits for the claim, and starts over.
func (c *Controllers) giveBack(ctx context.Context, m *memo, pvc *corev1.PersistentVolumeClaim, node, why string) error {
	c.ledger.Forget(holderOf(pvc.UID))
	key := keyOf(pvc)
	if wait := m.returns.wait(time.Now()); wait > 0 {
		// Meanwhile there may be room after all. But whoever may edit claims can choose any
		// name, and of a node that does not exist no news would ever come.
		if c.nodeExists(diskv1alpha1.NodeLabel(node)) {
			c.memory.wait(node, key)
		}
		c.claimQueue.AddAfter(key, wait)
		return nil
	}
	// Tested, so that no other choice than this is taken back.
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
		// Gone, or chosen anew: the informer will tell.
		return nil
	case err != nil:
		return fmt.Errorf("taking node %s back from claim %s: %w", node, key, err)
	}
	m.returns.tried(time.Now())
	// Each return is news, also if the words are the same.
	m.said = ""
	c.say(m, pvc, corev1.EventTypeWarning, reasonFailed, actionProvision,
		fmt.Sprintf("node %s, which the claim's scheduler chose: %s; the scheduler may choose another", node, why))
	return nil
}
