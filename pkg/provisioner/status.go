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

// Reasons of events about claims that grow, as external-resizer has them; people and tools
// know them.
const (
	reasonResizeFailed    = "VolumeResizeFailed"
	reasonResizeOnNode    = "FileSystemResizeRequired"
	reasonResizeSucceeded = "VolumeResizeSuccessful"
	actionResize          = "Resizing"
)

// The status of a claim that grows is a protocol between three: the component that grows the volume
// (external-resizer elsewhere, we here), the kubelet, and the person who can lower a
// request that cannot be met. What each field says:
//
//   - capacity: what the claim has, the file system included. We write it for block volumes,
//     the kubelet for the others, from allocatedResources, when it has grown the file system.
//   - allocatedResources: how large the claim is about to be. Always the PersistentVolume's
//     capacity, so that the two sizes that the kubelet compares become equal in the end:
//     with the smaller size that was asked for it would go on comparing for ever.
//   - allocatedResourceStatuses: who is to do something. NodeResizePending makes the kubelet
//     call NodeExpandVolume, now if the volume is mounted, else when it is. It calls it for no
//     other state than this and its own.
//   - conditions: the same for people.
//
// The annotation volume.alpha.kubernetes.io/pre-resize-capacity, by which external-resizer has
// a retained volume's file system grow for its next claim, is not needed: the agent lets a file
// system grow that is smaller than its volume, whenever it is mounted.
//
// Between the larger PersistentVolume and this status the kubelet can find a claim that has never
// grown, take the larger volume for the work of an old resizer, and do all the rest by
// itself. That is as good, and there is nothing left to write then.

// stateOf says who is to do something.
func stateOf(pvc *corev1.PersistentVolumeClaim) corev1.ClaimResourceStatus {
	return pvc.Status.AllocatedResourceStatuses[corev1.ResourceStorage]
}

// pending asks the kubelet to grow the file system.
func (c *Controllers) pending(ctx context.Context, m *memo, pvc *corev1.PersistentVolumeClaim, size resource.Quantity) error {
	if allocated := pvc.Status.AllocatedResources[corev1.ResourceStorage]; allocated.Cmp(size) == 0 {
		switch stateOf(pvc) {
		case corev1.PersistentVolumeClaimNodeResizePending, corev1.PersistentVolumeClaimNodeResizeInProgress:
			return nil
		case corev1.PersistentVolumeClaimNodeResizeInfeasible:
			// The kubelet has tried, and gives up until it is asked again.
			if wait := m.requests.wait(c.clock.Now()); wait > 0 {
				c.claimQueue.AddAfter(keyOf(pvc), wait)
				return nil
			}
		}
	}
	m.requests.tried(c.clock.Now())
	updated, err := c.setStatus(ctx, pvc, change{
		allocated: &size, state: corev1.PersistentVolumeClaimNodeResizePending,
		condition: corev1.PersistentVolumeClaimFileSystemResizePending,
		message:   "The volume has the space. The file system grows as soon as a pod uses the volume.",
	})
	if updated != nil {
		c.say(m, updated, corev1.EventTypeNormal, reasonResizeOnNode, actionResize,
			fmt.Sprintf("The volume has %s, its file system grows on the node", size.String()))
	}
	return err
}

// inProgress says of a block volume that its node is at it.
func (c *Controllers) inProgress(ctx context.Context, pvc *corev1.PersistentVolumeClaim, size resource.Quantity) error {
	_, err := c.setStatus(ctx, pvc, change{
		allocated: &size, state: corev1.PersistentVolumeClaimControllerResizeInProgress,
		condition: corev1.PersistentVolumeClaimResizing, message: "The node makes the volume larger.",
	})
	return err
}

// finished says of a block volume that it has its new size: there is nothing for the
// kubelet to do, and no other component to say so, least of all for one that no pod uses.
func (c *Controllers) finished(ctx context.Context, m *memo, pvc *corev1.PersistentVolumeClaim, size resource.Quantity) error {
	updated, err := c.setStatus(ctx, pvc, change{allocated: &size, capacity: &size})
	if updated != nil {
		c.say(m, updated, corev1.EventTypeNormal, reasonResizeSucceeded, actionResize, fmt.Sprintf("The volume has %s", size.String()))
	}
	return err
}

// tooLarge says that the claim cannot have what it wants. What it has stays as it is, and it
// is tried again when there is news of its node. allocatedResources stays as it is, too: nothing
// was begun that would have to be finished before the request may be lowered.
func (c *Controllers) tooLarge(ctx context.Context, m *memo, pvc *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume, v *claim.Volume, why string) error {
	if capacityOf(pv).Cmp(*statusOf(pvc)) > 0 {
		// An earlier growth is not finished. The status is needed for that first.
		c.say(m, pvc, corev1.EventTypeWarning, reasonResizeFailed, actionResize, why)
		return c.finish(ctx, m, pvc, pv, v)
	}
	updated, err := c.setStatus(ctx, pvc, change{
		state:     corev1.PersistentVolumeClaimControllerResizeInfeasible,
		condition: corev1.PersistentVolumeClaimControllerResizeError, message: why,
	})
	if updated == nil {
		updated = pvc
	}
	c.say(m, updated, corev1.EventTypeWarning, reasonResizeFailed, actionResize, why)
	return err
}

// change is what a claim's status is to say of its growth: everything but the sizes is
// replaced.
type change struct {
	// allocated and capacity stay as they are if they are nil.
	allocated, capacity *resource.Quantity
	// state is empty when no component has anything to do.
	state corev1.ClaimResourceStatus
	// condition is empty for none.
	condition corev1.PersistentVolumeClaimConditionType
	message   string
}

// growth are the conditions about growing. Others are left alone.
var growth = []corev1.PersistentVolumeClaimConditionType{
	corev1.PersistentVolumeClaimResizing, corev1.PersistentVolumeClaimFileSystemResizePending,
	corev1.PersistentVolumeClaimControllerResizeError, corev1.PersistentVolumeClaimNodeResizeError,
}

// setStatus writes a change, and returns the claim then; nil if there was nothing to write
// or it failed.
func (c *Controllers) setStatus(ctx context.Context, pvc *corev1.PersistentVolumeClaim, to change) (*corev1.PersistentVolumeClaim, error) {
	status := pvc.Status.DeepCopy()
	to.apply(status)
	if equality.Semantic.DeepEqual(status, &pvc.Status) {
		return nil, nil
	}
	// With the version that was read: the kubelet writes the same fields.
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

// orNull has a merge patch remove what is no longer in the map, too.
func orNull(m map[corev1.ResourceName]corev1.ClaimResourceStatus) map[corev1.ResourceName]any {
	out := map[corev1.ResourceName]any{corev1.ResourceStorage: nil}
	for k, v := range m {
		out[k] = v
	}
	return out
}

func (to *change) apply(status *corev1.PersistentVolumeClaimStatus) {
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
		return slices.Contains(growth, c.Type)
	})
	if to.condition != "" {
		status.Conditions = append(status.Conditions, corev1.PersistentVolumeClaimCondition{
			Type: to.condition, Status: corev1.ConditionTrue, LastTransitionTime: since, Message: to.message,
		})
	}
}
