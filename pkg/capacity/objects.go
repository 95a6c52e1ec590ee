package capacity

import (
	"context"
	"encoding/json"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/flowcontrol"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

// objects reads and writes Berth's own objects: NodeDiskCapacities and DiskClasses.
type objects struct {
	client  rest.Interface
	limiter flowcontrol.RateLimiter
}

const (
	capacityResource  = "nodediskcapacities"
	classResource     = "diskclasses"
	statusSubresource = "status"
)

// capacity reads a NodeDiskCapacity from the API server itself.
func (o objects) capacity(ctx context.Context, name string) (*diskv1alpha1.NodeDiskCapacity, error) {
	ndc := &diskv1alpha1.NodeDiskCapacity{}
	if err := o.client.Get().Resource(capacityResource).Name(name).Do(ctx).Into(ndc); err != nil {
		return nil, fmt.Errorf("reading NodeDiskCapacity %s: %w", name, err)
	}
	return ndc, nil
}

// patch merges into an object, or into its status.
func (o objects) patch(ctx context.Context, resource, name string, patch map[string]any, subresources ...string) error {
	body, err := json.Marshal(patch)
	if err != nil {
		return err
	}
	if err := o.limiter.Wait(ctx); err != nil {
		return err
	}
	err = o.client.Patch(types.MergePatchType).Resource(resource).Name(name).SubResource(subresources...).Body(body).Do(ctx).Error()
	if err != nil {
		return fmt.Errorf("writing %s %s: %w", resource, name, err)
	}
	return nil
}

// remove deletes a NodeDiskCapacity if it still has the version that was read.
func (o objects) remove(ctx context.Context, ndc *diskv1alpha1.NodeDiskCapacity) error {
	options := &metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &ndc.UID, ResourceVersion: &ndc.ResourceVersion}}
	return o.client.Delete().Resource(capacityResource).Name(ndc.Name).Body(options).Do(ctx).Error()
}
