// Package client reads and writes the few kinds of the API server that the agent uses, and nothing else. The generated
// clientset would double the agent's memory, because it registers every kind that Kubernetes has.
//
// client.go reads pods, Nodes and the NodeDiskCapacity, volumes.go PersistentVolumes. events.go writes events.
// reviews.go asks who may read the metrics. lineage.go distinguishes an API server that lost its data from one that was
// away.
package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
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
	"k8s.io/utils/clock"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

// Scheme holds the kinds that the agent uses.
var Scheme = runtime.NewScheme()

var codecs = serializer.NewCodecFactory(Scheme)

func init() {
	Scheme.AddKnownTypes(corev1.SchemeGroupVersion,
		&corev1.Pod{}, &corev1.PodList{}, &corev1.Node{}, &corev1.NodeList{}, &corev1.Event{},
		&corev1.PersistentVolume{}, &corev1.PersistentVolumeList{})
	Scheme.AddKnownTypes(storagev1.SchemeGroupVersion, &storagev1.VolumeAttachment{}, &storagev1.VolumeAttachmentList{},
		&storagev1.CSINode{}, &storagev1.CSINodeList{})
	metav1.AddToGroupVersion(Scheme, corev1.SchemeGroupVersion)
	metav1.AddToGroupVersion(Scheme, storagev1.SchemeGroupVersion)
	utilruntime.Must(diskv1alpha1.AddToScheme(Scheme))
}

// Resources of the API that the agent uses.
const (
	pods       = "pods"
	csiNodes   = "csinodes"
	nodes      = "nodes"
	events     = "events"
	volumes    = "persistentvolumes"
	capacities = "nodediskcapacities"
	classes    = "diskclasses"

	attachments = "volumeattachments"
)

// requestTimeout bounds a single request, so that a server that hangs counts as down. Watches are not bounded.
const requestTimeout = 30 * time.Second

// Client talks to the API server for the agent of one node.
type Client struct {
	node    string
	core    rest.Interface
	storage rest.Interface
	disk    rest.Interface
	// lineage gets every answer about the node's NodeDiskCapacity.
	lineage *Lineage
}

// New returns a client for the agent of the named node, with a new Lineage that is not kept in a file.
func New(config *rest.Config, node string) (*Client, error) {
	return NewWithLineage(config, node, newLineage("", clock.RealClock{}))
}

// NewWithLineage returns a client that compares the API server's data with the lineage.
func NewWithLineage(config *rest.Config, node string, lineage *Lineage) (*Client, error) {
	// Kubernetes' own kinds are requested as protobuf, which costs less to decode. Custom resources exist as JSON only.
	core, err := restClient(config, corev1.SchemeGroupVersion, "/api", runtime.ContentTypeProtobuf)
	if err != nil {
		return nil, err
	}
	storage, err := restClient(config, storagev1.SchemeGroupVersion, "/apis", runtime.ContentTypeProtobuf)
	if err != nil {
		return nil, err
	}
	disk, err := restClient(config, diskv1alpha1.SchemeGroupVersion, "/apis", runtime.ContentTypeJSON)
	if err != nil {
		return nil, err
	}
	return &Client{node: node, core: core, storage: storage, disk: disk, lineage: lineage}, nil
}

// restClient returns a client for one group and version.
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

// Pod reads a pod from the API server, not from a cache.
func (c *Client) Pod(ctx context.Context, namespace, name string) (*corev1.Pod, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	pod := &corev1.Pod{}
	err := c.core.Get().Namespace(namespace).Resource(pods).Name(name).Do(ctx).Into(pod)
	if err == nil && (pod.UID == "" || pod.Name != name || pod.Namespace != namespace) {
		err = fmt.Errorf("the answer is not pod %s/%s", namespace, name)
	}
	if err := checkAnswer(err); err != nil {
		return nil, err
	}
	return pod, nil
}

// checkAnswer distinguishes an API server that does not have an object from a proxy in between that has nothing at all.
// Volumes are wiped because of this answer.
func checkAnswer(err error) error {
	if apierrors.IsNotFound(err) && apierrors.IsUnexpectedServerError(err) {
		return fmt.Errorf("not the API server's own answer: %s", err.Error())
	}
	return err
}

// PodsOfNode calls visit for each of the node's pods. It lists them from the API server, not from a cache.
func (c *Client) PodsOfNode(ctx context.Context, visit func(*corev1.Pod)) error {
	return c.listPods(ctx, "", metav1.ListOptions{FieldSelector: c.byNodeName().String()}, visit)
}

// PodsOfNamespace calls visit for each pod of a namespace, on all nodes. If the namespace is empty, it is called for
// the pods of all namespaces. It lists them from the API server, not from a cache.
func (c *Client) PodsOfNamespace(ctx context.Context, namespace string, visit func(*corev1.Pod)) error {
	return c.listPods(ctx, namespace, metav1.ListOptions{}, visit)
}

// podsPerPage bounds the memory that a list of many pods needs.
const podsPerPage = 250

// listPods lists without a resource version: that is the newest list, and all its pages are of one moment.
func (c *Client) listPods(ctx context.Context, namespace string, options metav1.ListOptions, visit func(*corev1.Pod)) error {
	options.Limit = podsPerPage
	for {
		list, err := c.podPage(ctx, namespace, options)
		if err != nil {
			return err
		}
		for i := range list.Items {
			visit(&list.Items[i])
		}
		if options.Continue = list.Continue; options.Continue == "" {
			return nil
		}
	}
}

// podPage reads one page of a list of pods.
func (c *Client) podPage(ctx context.Context, namespace string, options metav1.ListOptions) (*corev1.PodList, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	list := &corev1.PodList{}
	err := c.core.Get().Namespace(namespace).Resource(pods).VersionedParams(&options, metav1.ParameterCodec).Do(ctx).Into(list)
	if err == nil && list.ResourceVersion == "" {
		err = errors.New("the answer is not a list of pods")
	}
	return list, checkAnswer(err)
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

// NodeNamed reads any Node. It is nil if the API server itself answers that there is none.
func (c *Client) NodeNamed(ctx context.Context, name string) (*corev1.Node, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	node := &corev1.Node{}
	err := c.core.Get().Resource(nodes).Name(name).Do(ctx).Into(node)
	if err == nil && (node.UID == "" || node.Name != name) {
		err = fmt.Errorf("the answer is not Node %s", name)
	}
	err = checkAnswer(err)
	if apierrors.IsNotFound(err) {
		return nil, nil //nolint:nilnil // none is an answer
	}
	if err != nil {
		return nil, err
	}
	return node, nil
}

// attachmentsPerPage bounds the memory that a list of the cluster's VolumeAttachments needs.
const attachmentsPerPage = 250

// Attachments calls visit for each VolumeAttachment of the node. They have no selector by node, so all are read, page
// by page.
func (c *Client) Attachments(ctx context.Context, visit func(*storagev1.VolumeAttachment)) error {
	options := metav1.ListOptions{Limit: attachmentsPerPage}
	for {
		list, err := c.attachmentPage(ctx, options)
		if err != nil {
			return err
		}
		for i := range list.Items {
			if list.Items[i].Spec.NodeName == c.node {
				visit(&list.Items[i])
			}
		}
		if list.Continue == "" {
			return nil
		}
		options.Continue = list.Continue
	}
}

// attachmentPage reads one page of the list of VolumeAttachments.
func (c *Client) attachmentPage(ctx context.Context, options metav1.ListOptions) (*storagev1.VolumeAttachmentList, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	list := &storagev1.VolumeAttachmentList{}
	err := c.storage.Get().Resource(attachments).VersionedParams(&options, metav1.ParameterCodec).Do(ctx).Into(list)
	if err == nil && list.GetResourceVersion() == "" {
		err = errors.New("the answer is not a list of VolumeAttachments")
	}
	return list, checkAnswer(err)
}

// Capacity reads the node's own NodeDiskCapacity.
func (c *Client) Capacity(ctx context.Context) (*diskv1alpha1.NodeDiskCapacity, error) {
	return c.capacity(ctx, c.disk.Get().Resource(capacities).Name(c.node))
}

// CreateCapacity creates the node's NodeDiskCapacity.
func (c *Client) CreateCapacity(ctx context.Context, ndc *diskv1alpha1.NodeDiskCapacity) (*diskv1alpha1.NodeDiskCapacity, error) {
	return c.writeCapacity(ctx, c.disk.Post().Resource(capacities).Body(ndc))
}

// PatchCapacity merges a patch into the node's NodeDiskCapacity, except its status.
func (c *Client) PatchCapacity(ctx context.Context, patch []byte) (*diskv1alpha1.NodeDiskCapacity, error) {
	return c.writeCapacity(ctx, c.disk.Patch(types.MergePatchType).Resource(capacities).Name(c.node).Body(patch))
}

// UpdateCapacityStatus replaces the status of the node's NodeDiskCapacity, if the object still has that version. That
// costs the API server less than merging a patch.
func (c *Client) UpdateCapacityStatus(ctx context.Context, ndc *diskv1alpha1.NodeDiskCapacity) (*diskv1alpha1.NodeDiskCapacity, error) {
	return c.writeCapacity(ctx, c.disk.Put().Resource(capacities).Name(c.node).SubResource("status").Body(ndc))
}

// writeCapacity reads the object before the first write: a write would hide that the object is older than what the node
// knows.
func (c *Client) writeCapacity(ctx context.Context, r *rest.Request) (*diskv1alpha1.NodeDiskCapacity, error) {
	if !c.lineage.canWrite() {
		if _, err := c.Capacity(ctx); err != nil && !apierrors.IsNotFound(err) {
			return nil, err
		}
	}
	return c.capacity(ctx, r)
}

// capacity sends a request about the node's NodeDiskCapacity.
func (c *Client) capacity(ctx context.Context, r *rest.Request) (*diskv1alpha1.NodeDiskCapacity, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	before := c.lineage.currentState()
	ndc := &diskv1alpha1.NodeDiskCapacity{}
	err := r.Do(ctx).Into(ndc)
	if err == nil && (ndc.UID == "" || ndc.Name != c.node) {
		err = fmt.Errorf("the answer is not NodeDiskCapacity %s", c.node)
	}
	err = checkAnswer(err)
	c.lineage.compareCapacity(ctx, before, ndc, err)
	if err != nil {
		return nil, err
	}
	return ndc, nil
}

// RemoveReclaimOrphans removes the annotation by which an operator allowed orphans to be reclaimed.
func (c *Client) RemoveReclaimOrphans(ctx context.Context) error {
	return c.removeAnnotation(ctx, diskv1alpha1.AnnotationReclaimOrphans, "")
}

// RemoveForgetDisks removes the annotation that names disks to forget, if the object still has that version.
func (c *Client) RemoveForgetDisks(ctx context.Context, version string) error {
	return c.removeAnnotation(ctx, diskv1alpha1.AnnotationForgetDisks, version)
}

// removeAnnotation removes an annotation of the node's NodeDiskCapacity, if a version is given only from that version.
func (c *Client) removeAnnotation(ctx context.Context, annotation, version string) error {
	metadata := map[string]any{"annotations": map[string]any{annotation: nil}}
	if version != "" {
		metadata["resourceVersion"] = version
	}
	patch, err := json.Marshal(map[string]any{"metadata": metadata})
	if err != nil {
		return err
	}
	_, err = c.PatchCapacity(ctx, patch)
	return err
}

// PodInformer watches the pods of the node.
func (c *Client) PodInformer() cache.SharedIndexInformer {
	return informer(c.core, pods, c.byNodeName(), &corev1.Pod{})
}

// NodeInformer watches the agent's own node.
func (c *Client) NodeInformer() cache.SharedIndexInformer {
	return informer(c.core, nodes, c.byName(), &corev1.Node{})
}

// CSINodeInformer watches the node's CSINode, in which the kubelet lists its registered drivers.
func (c *Client) CSINodeInformer() cache.SharedIndexInformer {
	return informer(c.storage, csiNodes, c.byName(), &storagev1.CSINode{})
}

// CapacityInformer watches the node's own NodeDiskCapacity.
func (c *Client) CapacityInformer() cache.SharedIndexInformer {
	return informer(c.disk, capacities, c.byName(), &diskv1alpha1.NodeDiskCapacity{})
}

// ClassInformer watches the DiskClasses.
func (c *Client) ClassInformer() cache.SharedIndexInformer {
	return informer(c.disk, classes, fields.Everything(), &diskv1alpha1.DiskClass{})
}

// informer returns an informer that never resyncs: no handler depends on the passing of time.
func informer(client rest.Interface, resource string, selector fields.Selector, object runtime.Object) cache.SharedIndexInformer {
	lw := cache.NewListWatchFromClient(client, resource, metav1.NamespaceAll, selector)
	return cache.NewSharedIndexInformer(lw, object, 0, cache.Indexers{})
}

func (c *Client) byNodeName() fields.Selector {
	return fields.OneTermEqualSelector("spec.nodeName", c.node)
}

func (c *Client) byName() fields.Selector {
	return fields.OneTermEqualSelector("metadata.name", c.node)
}
