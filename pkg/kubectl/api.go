package kubectl

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/plugins/diskcapacity"
)

// Resources of Berth's API.
const (
	capacities = "nodediskcapacities"
	classes    = "diskclasses"
)

// api reads objects.
type api struct {
	berth rest.Interface
	core  kubernetes.Interface
	chunk int64
}

// connect makes the clients. It sends no request.
func (s *session) connect() (*api, error) {
	config, err := s.config.ToRESTConfig()
	if err != nil {
		return nil, err
	}
	config.QPS, config.Burst = 50, 300
	berth, err := diskcapacity.Client(config)
	if err != nil {
		return nil, fmt.Errorf("making a client: %w", err)
	}
	config = rest.CopyConfig(config)
	config.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	core, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("making a client: %w", err)
	}
	return &api{berth: berth, core: core, chunk: s.chunkSize}, nil
}

// connected is the RunE of a command that needs the API server. Flags and arguments are checked by run: connecting
// sends no request.
func (s *session) connected(run func(ctx context.Context, a *api, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		a, err := s.connect()
		if err != nil {
			return err
		}
		return run(cmd.Context(), a, args)
	}
}

// explainError says more than the API server about errors that users often have.
func explainError(err error) error {
	var status apierrors.APIStatus
	if !errors.As(err, &status) || !apierrors.IsNotFound(err) {
		return err
	}
	if d := status.Status().Details; d != nil && d.Name == "" && (d.Kind == "" || d.Kind == capacities || d.Kind == classes) {
		return errors.New("the API server has no objects of Berth: is it installed in this cluster?")
	}
	return err
}

// listAll reads a list in parts. A list that takes so long that its next part is gone is read again at once.
func listAll[T any](ctx context.Context, chunk int64, options metav1.ListOptions, list func(context.Context, metav1.ListOptions) ([]T, metav1.ListInterface, error)) ([]T, error) {
	var all []T
	options.Limit = chunk
	for {
		items, meta, err := list(ctx, options)
		if apierrors.IsResourceExpired(err) && options.Continue != "" {
			options.Limit, options.Continue, all = 0, "", nil
			continue
		}
		if err != nil {
			return nil, err
		}
		all = append(all, items...)
		if options.Continue = meta.GetContinue(); options.Continue == "" {
			return all, nil
		}
	}
}

// capacities are all NodeDiskCapacities, by name.
func (a *api) capacities(ctx context.Context) ([]diskv1alpha1.NodeDiskCapacity, error) {
	return listAll(ctx, a.chunk, metav1.ListOptions{}, func(ctx context.Context, o metav1.ListOptions) ([]diskv1alpha1.NodeDiskCapacity, metav1.ListInterface, error) {
		var list diskv1alpha1.NodeDiskCapacityList
		err := a.berth.Get().Resource(capacities).VersionedParams(&o, metav1.ParameterCodec).Do(ctx).Into(&list)
		return list.Items, &list, wrapList("NodeDiskCapacities", err)
	})
}

// capacity is the NodeDiskCapacity of a node.
func (a *api) capacity(ctx context.Context, node string) (*diskv1alpha1.NodeDiskCapacity, error) {
	var ndc diskv1alpha1.NodeDiskCapacity
	err := a.berth.Get().Resource(capacities).Name(node).Do(ctx).Into(&ndc)
	var status apierrors.APIStatus
	if apierrors.IsNotFound(err) && errors.As(err, &status) && status.Status().Details != nil && status.Status().Details.Name != "" {
		return nil, fmt.Errorf("node %s has no NodeDiskCapacity: its agent has never published one; the nodes that have one are listed by kubectl get ndc", node)
	}
	if err != nil {
		return nil, fmt.Errorf("reading NodeDiskCapacity %s: %w", node, err)
	}
	return &ndc, nil
}

// classes are all DiskClasses, by name.
func (a *api) classes(ctx context.Context) ([]diskv1alpha1.DiskClass, error) {
	var list diskv1alpha1.DiskClassList
	err := a.berth.Get().Resource(classes).Do(ctx).Into(&list)
	return list.Items, wrapList("DiskClasses", err)
}

// nodes are the names of all Nodes.
func (a *api) nodes(ctx context.Context) (map[string]bool, error) {
	nodes, err := listAll(ctx, a.chunk, metav1.ListOptions{}, func(ctx context.Context, o metav1.ListOptions) ([]corev1.Node, metav1.ListInterface, error) {
		list, err := a.core.CoreV1().Nodes().List(ctx, o)
		if err != nil {
			return nil, nil, wrapList("Nodes", err)
		}
		return list.Items, list, nil
	})
	names := make(map[string]bool, len(nodes))
	for i := range nodes {
		names[nodes[i].Name] = true
	}
	return names, err
}

// pods are the pods that a field selector selects, in all namespaces.
func (a *api) pods(ctx context.Context, namespace string, selector fields.Selector) ([]corev1.Pod, error) {
	return listAll(ctx, a.chunk, metav1.ListOptions{FieldSelector: selector.String()}, func(ctx context.Context, o metav1.ListOptions) ([]corev1.Pod, metav1.ListInterface, error) {
		list, err := a.core.CoreV1().Pods(namespace).List(ctx, o)
		if err != nil {
			return nil, nil, wrapList("pods", err)
		}
		return list.Items, list, nil
	})
}

func wrapList(what string, err error) error {
	if err != nil {
		return fmt.Errorf("reading %s: %w", what, err)
	}
	return nil
}
