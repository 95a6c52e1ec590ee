package client

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

// VolumeInformer watches the PersistentVolumes that are labeled for the node.
func (c *Client) VolumeInformer() cache.SharedIndexInformer {
	selector := labels.SelectorFromSet(labels.Set{diskv1alpha1.LabelNode: diskv1alpha1.NodeLabel(c.node)})
	lw := cache.NewFilteredListWatchFromClient(c.core, volumes, metav1.NamespaceAll, func(o *metav1.ListOptions) {
		o.LabelSelector = selector.String()
	})
	return cache.NewSharedIndexInformer(lw, &corev1.PersistentVolume{}, 0, cache.Indexers{})
}

// Volume reads a PersistentVolume from the API server, not from a cache.
func (c *Client) Volume(ctx context.Context, name string) (*corev1.PersistentVolume, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	pv := &corev1.PersistentVolume{}
	err := c.core.Get().Resource(volumes).Name(name).Do(ctx).Into(pv)
	if err == nil && (pv.UID == "" || pv.Name != name) {
		err = fmt.Errorf("the answer is not PersistentVolume %s", name)
	}
	if err := checkAnswer(err); err != nil {
		return nil, err
	}
	return pv, nil
}

// DeleteVolume deletes the PersistentVolume if it still has the version that was read, so its reclaim policy and its
// binding have not changed. Its finalizers keep it until they are removed.
func (c *Client) DeleteVolume(ctx context.Context, pv *corev1.PersistentVolume) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	options := &metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &pv.UID, ResourceVersion: &pv.ResourceVersion}}
	return c.core.Delete().Resource(volumes).Name(pv.Name).Body(options).Do(ctx).Error()
}

// AddFinalizer adds our finalizer to the PersistentVolume, unless it has it. The error is a conflict if the object has
// changed since it was read.
func (c *Client) AddFinalizer(ctx context.Context, pv *corev1.PersistentVolume) (*corev1.PersistentVolume, error) {
	if slices.Contains(pv.Finalizers, diskv1alpha1.FinalizerVolume) {
		return pv, nil
	}
	return c.setFinalizers(ctx, pv, append(slices.Clone(pv.Finalizers), diskv1alpha1.FinalizerVolume))
}

// RemoveFinalizer removes our finalizer from the PersistentVolume, and no other. The error is a conflict if the object
// has changed since it was read.
func (c *Client) RemoveFinalizer(ctx context.Context, pv *corev1.PersistentVolume) error {
	if !slices.Contains(pv.Finalizers, diskv1alpha1.FinalizerVolume) {
		return nil
	}
	others := slices.DeleteFunc(slices.Clone(pv.Finalizers), func(f string) bool { return f == diskv1alpha1.FinalizerVolume })
	_, err := c.setFinalizers(ctx, pv, others)
	return err
}

// setFinalizers replaces the finalizers of exactly the version that was read: a merge patch with a resourceVersion,
// which the API server compares.
func (c *Client) setFinalizers(ctx context.Context, pv *corev1.PersistentVolume, finalizers []string) (*corev1.PersistentVolume, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"uid": pv.UID, "resourceVersion": pv.ResourceVersion, "finalizers": finalizers,
	}})
	if err != nil {
		return nil, err
	}
	out := &corev1.PersistentVolume{}
	err = c.core.Patch(types.MergePatchType).Resource(volumes).Name(pv.Name).Body(patch).Do(ctx).Into(out)
	if err != nil {
		return nil, checkAnswer(err)
	}
	return out, nil
}

// AnnotateVolume sets an annotation of the PersistentVolume, if it still has the UID.
func (c *Client) AnnotateVolume(ctx context.Context, pv *corev1.PersistentVolume, key, value string) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"uid": pv.UID, "annotations": map[string]string{key: value},
	}})
	if err != nil {
		return err
	}
	return c.core.Patch(types.MergePatchType).Resource(volumes).Name(pv.Name).Body(patch).Do(ctx).Error()
}

// IsGoneOrChanged reports whether the error says that the object is gone, or has changed since it was read. The caller
// should read it again.
func IsGoneOrChanged(err error) bool {
	return apierrors.IsNotFound(err) || apierrors.IsConflict(err)
}
