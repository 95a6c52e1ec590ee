package provisioner

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berthdev/berth/pkg/claim"
)

// Reasons of events about claims that grow are those of external-resizer, which users and tools know.
const (
	reasonResizeFailed    = "VolumeResizeFailed"
	reasonResizeOnNode    = "FileSystemResizeRequired"
	reasonResizeSucceeded = "VolumeResizeSuccessful"
	actionResize          = "Resizing"
)

// The status of a claim that grows is used by the component that grows the volume (external-resizer elsewhere, this
// package here), by the kubelet, and by the user. The user can lower a request that cannot be met. The fields mean:
//
//   - capacity: what the claim has, the file system included. This package writes it for block volumes. For the others
//     the kubelet writes it, from allocatedResources, when it has grown the file system.
//   - allocatedResources: how large the claim will be. It is always the PersistentVolume's capacity, so that the two
//     sizes that the kubelet compares become equal. With a smaller requested size the kubelet would compare for ever.
//   - allocatedResourceStatuses: which component does the next step. NodeResizePending makes the kubelet call
//     NodeExpandVolume, now if the volume is mounted, else when it is. It calls it for no other state than this and its
//     own.
//   - conditions: the same for users.
//
// external-resizer uses the annotation volume.alpha.kubernetes.io/pre-resize-capacity to grow a retained volume's file
// system for its next claim. It is not needed here: at each mount the agent grows a file system that is smaller than
// its volume.
//
// Between the larger PersistentVolume and this status the kubelet can find a claim that has never grown. It takes the
// larger volume for the work of an old resizer and does the rest by itself. The result is the same, and nothing is left
// to write then.

// resizeState returns which component does the next step.
func resizeState(pvc *corev1.PersistentVolumeClaim) corev1.ClaimResourceStatus {
	return pvc.Status.AllocatedResourceStatuses[corev1.ResourceStorage]
}

// messageMoves says what a claim waits for whose volume is moved, and messagePieces that of one that gets a further
// piece and is attached as a partition. adviceFor says behind them what to do.
const (
	messageMoves  = "elsewhere: nothing is free behind the volume, so the node moves it on its disk while no pod uses it. "
	messagePieces = "in a further piece: nothing is free behind the volume, so the node adds a piece while no pod uses it. "
)

// adviceFor says what to do so that no pod uses the volume of the claim. A pod's own claim ends with the pod, and its
// data, too.
func adviceFor(pvc *corev1.PersistentVolumeClaim) string {
	if owner := metav1.GetControllerOf(pvc); owner != nil && owner.Kind == "Pod" {
		return fmt.Sprintf("Pod %s owns the claim: deleting the pod deletes the claim and its data. Copy what you need, and make a pod with a larger claim", owner.Name)
	}
	return "If a pod uses it now, delete the pod and start it again"
}

// setNodeResizePending requests the kubelet to grow the file system. waits says what has to happen on the node before;
// empty if nothing has.
func (c *Controllers) setNodeResizePending(ctx context.Context, state *claimState, pvc *corev1.PersistentVolumeClaim, size resource.Quantity, waits string) error {
	if allocated := pvc.Status.AllocatedResources[corev1.ResourceStorage]; allocated.Cmp(size) == 0 {
		switch resizeState(pvc) {
		case corev1.PersistentVolumeClaimNodeResizePending, corev1.PersistentVolumeClaimNodeResizeInProgress:
			return nil
		case corev1.PersistentVolumeClaimNodeResizeInfeasible:
			// The kubelet has tried, and does not try again before the next request.
			if wait := state.resizeBackoff.remaining(c.clock.Now()); wait > 0 {
				c.claimQueue.AddAfter(keyOf(pvc), wait)
				return nil
			}
		}
	}
	state.resizeBackoff.record(c.clock.Now())
	message, note := "The volume has the space. The file system grows as soon as a pod uses the volume.",
		fmt.Sprintf("The volume has %s, its file system grows on the node", size.String())
	if waits != "" {
		note = fmt.Sprintf("The volume gets %s %s", size.String(), waits)
		message = note + "."
	}
	updated, err := c.setStatus(ctx, pvc, statusChange{
		allocated: &size, state: corev1.PersistentVolumeClaimNodeResizePending,
		condition: corev1.PersistentVolumeClaimFileSystemResizePending, message: message,
	})
	if updated != nil {
		c.emitEvent(state, updated, corev1.EventTypeNormal, reasonResizeOnNode, actionResize, note)
	}
	return err
}

// setResizing says that the node is growing a block volume. waits is as for setNodeResizePending.
func (c *Controllers) setResizing(ctx context.Context, pvc *corev1.PersistentVolumeClaim, size resource.Quantity, waits string) error {
	message := "The node makes the volume larger."
	if waits != "" {
		message = fmt.Sprintf("The volume gets %s %s.", size.String(), waits)
	}
	_, err := c.setStatus(ctx, pvc, statusChange{
		allocated: &size, state: corev1.PersistentVolumeClaimControllerResizeInProgress,
		condition: corev1.PersistentVolumeClaimResizing, message: message,
	})
	return err
}

// setResized says that a block volume has its new size. The kubelet has nothing to do for it, and no other component
// writes that, least of all for a volume that no pod uses.
func (c *Controllers) setResized(ctx context.Context, state *claimState, pvc *corev1.PersistentVolumeClaim, size resource.Quantity) error {
	updated, err := c.setStatus(ctx, pvc, statusChange{allocated: &size, capacity: &size})
	if updated != nil {
		c.emitEvent(state, updated, corev1.EventTypeNormal, reasonResizeSucceeded, actionResize, fmt.Sprintf("The volume has %s", size.String()))
	}
	return err
}

// setInfeasible says that the claim cannot have the requested size. It keeps what it has, and is tried again when its
// node changes. allocatedResources stays as it is, too: nothing was begun that must be finished before the request may
// be lowered.
func (c *Controllers) setInfeasible(ctx context.Context, state *claimState, pvc *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume, v *claim.Volume, why string) error {
	if capacitySize(pv).Cmp(*statusSize(pvc)) > 0 {
		// An earlier growth is not finished. The status is needed for that first.
		c.emitEvent(state, pvc, corev1.EventTypeWarning, reasonResizeFailed, actionResize, why)
		return c.updateClaimStatus(ctx, state, pvc, pv, v)
	}
	updated, err := c.setStatus(ctx, pvc, statusChange{
		state:     corev1.PersistentVolumeClaimControllerResizeInfeasible,
		condition: corev1.PersistentVolumeClaimControllerResizeError, message: why,
	})
	if updated == nil {
		updated = pvc
	}
	c.emitEvent(state, updated, corev1.EventTypeWarning, reasonResizeFailed, actionResize, why)
	return err
}

// statusChange is the new state of growth in a claim's status. It replaces everything except the sizes.
type statusChange struct {
	// allocated and capacity stay as they are if they are nil.
	allocated, capacity *resource.Quantity
	// state is empty when no component has anything to do.
	state corev1.ClaimResourceStatus
	// condition is empty for none.
	condition corev1.PersistentVolumeClaimConditionType
	message   string
}

// resizeConditions are the conditions about growing. Other conditions are not changed.
var resizeConditions = []corev1.PersistentVolumeClaimConditionType{
	corev1.PersistentVolumeClaimResizing, corev1.PersistentVolumeClaimFileSystemResizePending,
	corev1.PersistentVolumeClaimControllerResizeError, corev1.PersistentVolumeClaimNodeResizeError,
}

// setStatus writes a change, and returns the claim after it; nil if there was nothing to write or the write failed.
func (c *Controllers) setStatus(ctx context.Context, pvc *corev1.PersistentVolumeClaim, to statusChange) (*corev1.PersistentVolumeClaim, error) {
	status := pvc.Status.DeepCopy()
	to.apply(status)
	if equality.Semantic.DeepEqual(status, &pvc.Status) {
		return nil, nil
	}
	// The patch names the version that was read, because the kubelet writes the same fields.
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": pvc.UID, "resourceVersion": pvc.ResourceVersion},
		"status": map[string]any{
			"capacity":                  status.Capacity,
			"allocatedResources":        status.AllocatedResources,
			"allocatedResourceStatuses": orNull(status.AllocatedResourceStatuses),
			"conditions":                status.Conditions,
		},
	})
	if err != nil {
		return nil, err
	}
	updated, err := c.client.CoreV1().PersistentVolumeClaims(pvc.Namespace).Patch(ctx, pvc.Name, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("writing the status of claim %s: %w", keyOf(pvc), err)
	}
	return updated, nil
}

// orNull returns the map with null for storage if storage is missing. So a merge patch removes it.
func orNull(m map[corev1.ResourceName]corev1.ClaimResourceStatus) map[corev1.ResourceName]any {
	out := map[corev1.ResourceName]any{corev1.ResourceStorage: nil}
	for k, v := range m {
		out[k] = v
	}
	return out
}

// apply changes the status. A condition that stays true keeps the time since when it is.
func (to *statusChange) apply(status *corev1.PersistentVolumeClaimStatus) {
	if to.allocated != nil {
		if status.AllocatedResources == nil {
			status.AllocatedResources = corev1.ResourceList{}
		}
		status.AllocatedResources[corev1.ResourceStorage] = *to.allocated
	}
	if to.capacity != nil {
		if status.Capacity == nil {
			status.Capacity = corev1.ResourceList{}
		}
		status.Capacity[corev1.ResourceStorage] = *to.capacity
	}
	switch {
	case to.state == "":
		delete(status.AllocatedResourceStatuses, corev1.ResourceStorage)
	case status.AllocatedResourceStatuses == nil:
		status.AllocatedResourceStatuses = map[corev1.ResourceName]corev1.ClaimResourceStatus{corev1.ResourceStorage: to.state}
	default:
		status.AllocatedResourceStatuses[corev1.ResourceStorage] = to.state
	}
	since := metav1.Now()
	status.Conditions = slices.DeleteFunc(status.Conditions, func(c corev1.PersistentVolumeClaimCondition) bool {
		if c.Type == to.condition && c.Status == corev1.ConditionTrue {
			since = c.LastTransitionTime
		}
		return slices.Contains(resizeConditions, c.Type)
	})
	if to.condition != "" {
		status.Conditions = append(status.Conditions, corev1.PersistentVolumeClaimCondition{
			Type: to.condition, Status: corev1.ConditionTrue, LastTransitionTime: since, Message: to.message,
		})
	}
}
