package agent

import (
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/client"
	"github.com/berthdev/berth/pkg/agent/discovery"
	"github.com/berthdev/berth/pkg/agent/disk"
)

// inventoryOptions connect the inventory to the API server's objects.
func (a *agent) inventoryOptions() discovery.Options {
	published := a.publishedStatus()
	return discovery.Options{
		Sys: a.options.Sys, Dev: "/dev", DevicePatterns: a.options.Devices,
		Classes: a.classList, NodeLabels: func() map[string]string { return a.node().Labels },
		Approvals: a.approvals, Owner: func() disk.Owner { return ownerOf(a.node()) }, Cluster: cluster{a.client},
		Changed: a.disksChanged, PublishedDisks: published.Disks, PublishedDevices: published.Devices, DeviceTimeout: a.options.DeviceTimeout, KubeletDir: a.options.KubeletDir,
	}
}

func (a *agent) approvals() []diskv1alpha1.DeviceApproval {
	if ndc := a.capacity(); ndc != nil {
		return ndc.Spec.Adopt
	}
	return nil
}

// ownerOf is a node as the owner of disks. It has no UID if there is no Node.
func ownerOf(node *corev1.Node) disk.Owner {
	return disk.Owner{NodeUID: string(node.UID), NodeName: node.Name, MachineID: node.Status.NodeInfo.MachineID}
}

// cluster implements discovery.Cluster.
type cluster struct {
	client *client.Client
}

// NodeNamed implements discovery.Cluster.
func (c cluster) NodeNamed(ctx context.Context, name string) (*disk.Owner, error) {
	node, err := c.client.NodeNamed(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("cannot read Node %s: %w", name, err)
	}
	if node == nil {
		return nil, nil //nolint:nilnil // none is an answer
	}
	owner := ownerOf(node)
	return &owner, nil
}

// Attachments implements discovery.Cluster.
func (c cluster) Attachments(ctx context.Context) ([]discovery.Attachment, error) {
	var list []discovery.Attachment
	err := c.client.Attachments(ctx, func(v *storagev1.VolumeAttachment) {
		list = append(list, discovery.Attachment{Name: v.Name, UID: string(v.UID), Created: v.CreationTimestamp.Time})
	})
	if err != nil {
		return nil, fmt.Errorf("cannot list VolumeAttachments: %w", err)
	}
	return list, nil
}

// eventDisksForgotten reports the result of the annotation that names disks to forget.
const eventDisksForgotten = "DisksForgotten"

// maxForgetTries bounds how often the object is read again because it has changed meanwhile.
const maxForgetTries = 5

// forgetDisks acts on the annotation that names disks to forget, and removes it. It reports
// whether it must be tried again.
func (a *agent) forgetDisks(ctx context.Context) (retry bool) {
	ndc := a.capacity()
	if ndc == nil {
		return false
	}
	if _, set := ndc.Annotations[diskv1alpha1.AnnotationForgetDisks]; !set {
		return false
	}
	// The watch may still show the annotation after it was removed.
	live, err := a.client.Capacity(ctx)
	for try := 0; err == nil && try < maxForgetTries; try++ {
		value, set := live.Annotations[diskv1alpha1.AnnotationForgetDisks]
		if !set {
			return false
		}
		kept := a.inventory.Forget(splitIDs(value))
		if err := a.client.RemoveForgetDisks(ctx, live.ResourceVersion); err == nil {
			a.reportForgotten(ctx, value, kept)
			return false
		} else if !apierrors.IsConflict(err) {
			klog.FromContext(ctx).Error(err, "Annotation could not be removed; tried again", "annotation", diskv1alpha1.AnnotationForgetDisks)
			return true
		}
		live, err = a.client.Capacity(ctx)
	}
	klog.FromContext(ctx).Error(err, "NodeDiskCapacity could not be read or is changed all the time; tried again")
	return true
}

// reportForgotten reports which disks were forgotten, and which were kept, in the log and in an event.
func (a *agent) reportForgotten(ctx context.Context, value string, kept []string) {
	logger := klog.FromContext(ctx)
	if len(kept) == 0 {
		logger.Info("Disks are forgotten", "disks", value)
		a.recorder.OfNode(a.capacityUID(), corev1.EventTypeNormal, eventDisksForgotten, "disks are forgotten: "+value)
		return
	}
	logger.Info("Disks are not forgotten, as they are in service or not known", "disks", kept, "asked", value)
	a.recorder.OfNode(a.capacityUID(), corev1.EventTypeWarning, eventDisksForgotten,
		"these disks are in service or not known, and are not forgotten: "+strings.Join(kept, ", "))
}

// splitIDs splits the annotation's value.
func splitIDs(value string) []string {
	var ids []string
	for id := range strings.SplitSeq(value, ",") {
		if id = strings.ToLower(strings.TrimSpace(id)); id != "" {
			ids = append(ids, id)
		}
	}
	return ids
}
