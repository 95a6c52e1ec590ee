// Package client is the agent's view of the API server: the few kinds it reads and
// writes, and nothing else. The generated clientset would double the agent's memory,
// because it registers every kind that Kubernetes has.
package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

// Scheme holds the kinds that the agent uses.
var Scheme = runtime.NewScheme()

var codecs = serializer.NewCodecFactory(Scheme)

func init() {
	Scheme.AddKnownTypes(corev1.SchemeGroupVersion,
		&corev1.Pod{}, &corev1.PodList{}, &corev1.Node{}, &corev1.NodeList{}, &corev1.Event{},
		&corev1.PersistentVolume{}, &corev1.PersistentVolumeList{})
	Scheme.AddKnownTypes(policyv1.SchemeGroupVersion, &policyv1.Eviction{})
	metav1.AddToGroupVersion(Scheme, corev1.SchemeGroupVersion)
	metav1.AddToGroupVersion(Scheme, policyv1.SchemeGroupVersion)
	utilruntime.Must(diskv1alpha1.AddToScheme(Scheme))
}

// Resources of the API that the agent uses.
const (
	pods       = "pods"
	nodes      = "nodes"
	events     = "events"
	volumes    = "persistentvolumes"
	capacities = "nodediskcapacities"
	classes    = "diskclasses"
)

// requestTimeout bounds a single request, so that a server that hangs is like one that
// is down. Watches are not bounded.
const requestTimeout = 30 * time.Second

// Client talks to the API server for the agent of one node.
type Client struct {
	node string
	core rest.Interface
	disk rest.Interface
}

// New returns a client for the agent of the named node.
func New(config *rest.Config, node string) (*Client, error) {
	// Kubernetes' own kinds come as protobuf, which costs less to decode; custom
	// resources are JSON only.
	core, err := restClient(config, corev1.SchemeGroupVersion, "/api", runtime.ContentTypeProtobuf)
	if err != nil {
		return nil, err
	}
	disk, err := restClient(config, diskv1alpha1.SchemeGroupVersion, "/apis", runtime.ContentTypeJSON)
	if err != nil {
		return nil, err
	}
	return &Client{node: node, core: core, disk: disk}, nil
}

func restClient(config *rest.Config, version schema.GroupVersion, path, contentType string) (rest.Interface, error) {
	c := rest.CopyConfig(config)
	c.GroupVersion = &version
	c.APIPath = path
	c.NegotiatedSerializer = codecs.WithoutConversion()
	c.ContentType = contentType
	c.AcceptContentTypes = contentType
	client, err := rest.RESTClientFor(c)
	if err != nil {
		return nil, fmt.Errorf("cannot make a client for %s: %w", version, err)
	}
	return client, nil
}

// NodeName is the name of the agent's node.
func (c *Client) NodeName() string { return c.node }

// Pod reads a pod from the API server itself.
func (c *Client) Pod(ctx context.Context, namespace, name string) (*corev1.Pod, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	pod := &corev1.Pod{}
	err := c.core.Get().Namespace(namespace).Resource(pods).Name(name).Do(ctx).Into(pod)
	if err == nil && (pod.UID == "" || pod.Name != name || pod.Namespace != namespace) {
		err = fmt.Errorf("the answer is not pod %s/%s", namespace, name)
	}
	if err := believable(err); err != nil {
		return nil, err
	}
	return pod, nil
}

// believable tells an API server that does not have an object from something on the way
// to it that has nothing at all. Volumes are wiped on this answer.
func believable(err error) error {
	if apierrors.IsNotFound(err) && apierrors.IsUnexpectedServerError(err) {
		return fmt.Errorf("not the API server's own answer: %s", err.Error())
	}
	return err
}

// PodsOfNode shows the node's pods as the API server itself lists them.
func (c *Client) PodsOfNode(ctx context.Context, show func(*corev1.Pod)) error {
	return c.listPods(ctx, "", metav1.ListOptions{FieldSelector: c.onNode().String()}, show)
}

// PodsOfNamespace shows the pods of a namespace, or of all if it is empty, on all nodes,
// as the API server itself lists them.
func (c *Client) PodsOfNamespace(ctx context.Context, namespace string, show func(*corev1.Pod)) error {
	return c.listPods(ctx, namespace, metav1.ListOptions{}, show)
}

// podsPerPage bounds what a list of many pods costs in memory.
const podsPerPage = 250

// listPods lists without a resource version: that is the newest list there is, and all
// pages are of one moment.
func (c *Client) listPods(ctx context.Context, namespace string, options metav1.ListOptions, show func(*corev1.Pod)) error {
	options.Limit = podsPerPage
	for {
		list, err := c.podPage(ctx, namespace, options)
		if err != nil {
			return err
		}
		for i := range list.Items {
			show(&list.Items[i])
		}
		if options.Continue = list.Continue; options.Continue == "" {
			return nil
		}
	}
}

func (c *Client) podPage(ctx context.Context, namespace string, options metav1.ListOptions) (*corev1.PodList, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	list := &corev1.PodList{}
	err := c.core.Get().Namespace(namespace).Resource(pods).VersionedParams(&options, metav1.ParameterCodec).Do(ctx).Into(list)
	if err == nil && list.ResourceVersion == "" {
		err = errors.New("the answer is not a list of pods")
	}
	return list, believable(err)
}

// Evict asks the API server to evict the pod, if it still is the one with the UID.
func (c *Client) Evict(ctx context.Context, namespace, name string, uid types.UID) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	eviction := &policyv1.Eviction{
		TypeMeta:      metav1.TypeMeta{APIVersion: policyv1.SchemeGroupVersion.String(), Kind: "Eviction"},
		ObjectMeta:    metav1.ObjectMeta{Namespace: namespace, Name: name},
		DeleteOptions: &metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}},
	}
	return c.core.Post().Namespace(namespace).Resource(pods).Name(name).SubResource("eviction").Body(eviction).Do(ctx).Error()
}

// Node reads the agent's own node.
func (c *Client) Node(ctx context.Context) (*corev1.Node, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	node := &corev1.Node{}
	if err := c.core.Get().Resource(nodes).Name(c.node).Do(ctx).Into(node); err != nil {
		return nil, err
	}
	return node, nil
}

// Capacity reads the node's own NodeDiskCapacity.
func (c *Client) Capacity(ctx context.Context) (*diskv1alpha1.NodeDiskCapacity, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return capacity(c.disk.Get().Resource(capacities).Name(c.node).Do(ctx))
}

// CreateCapacity creates the node's NodeDiskCapacity.
func (c *Client) CreateCapacity(ctx context.Context, ndc *diskv1alpha1.NodeDiskCapacity) (*diskv1alpha1.NodeDiskCapacity, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return capacity(c.disk.Post().Resource(capacities).Body(ndc).Do(ctx))
}

// PatchCapacity merges a patch into the node's NodeDiskCapacity, all but its status.
func (c *Client) PatchCapacity(ctx context.Context, patch []byte) (*diskv1alpha1.NodeDiskCapacity, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return capacity(c.disk.Patch(types.MergePatchType).Resource(capacities).Name(c.node).Body(patch).Do(ctx))
}

// UpdateCapacityStatus replaces the status of the node's NodeDiskCapacity, if the object is
// still of that version. It costs the API server less than to merge a patch.
func (c *Client) UpdateCapacityStatus(ctx context.Context, ndc *diskv1alpha1.NodeDiskCapacity) (*diskv1alpha1.NodeDiskCapacity, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return capacity(c.disk.Put().Resource(capacities).Name(c.node).SubResource("status").Body(ndc).Do(ctx))
}

// ForgetReclaimOrphans takes a person's word back that orphaned volumes may be reclaimed.
func (c *Client) ForgetReclaimOrphans(ctx context.Context) error {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"annotations": map[string]any{diskv1alpha1.AnnotationReclaimOrphans: nil},
	}})
	if err != nil {
		return err
	}
	_, err = c.PatchCapacity(ctx, patch)
	return err
}

func capacity(result rest.Result) (*diskv1alpha1.NodeDiskCapacity, error) {
	ndc := &diskv1alpha1.NodeDiskCapacity{}
	if err := result.Into(ndc); err != nil {
		return nil, err
	}
	return ndc, nil
}

// PodInformer watches the pods of the node.
func (c *Client) PodInformer() cache.SharedIndexInformer {
	return informer(c.core, pods, c.onNode(), &corev1.Pod{})
}

// NodeInformer watches the agent's own node.
func (c *Client) NodeInformer() cache.SharedIndexInformer {
	return informer(c.core, nodes, c.named(), &corev1.Node{})
}

// CapacityInformer watches the node's own NodeDiskCapacity.
func (c *Client) CapacityInformer() cache.SharedIndexInformer {
	return informer(c.disk, capacities, c.named(), &diskv1alpha1.NodeDiskCapacity{})
}

// ClassInformer watches the DiskClasses.
func (c *Client) ClassInformer() cache.SharedIndexInformer {
	return informer(c.disk, classes, fields.Everything(), &diskv1alpha1.DiskClass{})
}

// informer never resyncs: nothing here is done because time has passed.
func informer(client rest.Interface, resource string, selector fields.Selector, object runtime.Object) cache.SharedIndexInformer {
	lw := cache.NewListWatchFromClient(client, resource, metav1.NamespaceAll, selector)
	return cache.NewSharedIndexInformer(lw, object, 0, cache.Indexers{})
}

func (c *Client) onNode() fields.Selector {
	return fields.OneTermEqualSelector("spec.nodeName", c.node)
}

func (c *Client) named() fields.Selector { return fields.OneTermEqualSelector("metadata.name", c.node) }
