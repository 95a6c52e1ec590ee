package kubectl

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/kubectl/inventory"
	"github.com/berthdev/berth/pkg/request"
)

// mapOptions are the flags of `map`.
type mapOptions struct {
	class, sort string
	all, watch  bool
	html        string
}

func newMap(s *session) *cobra.Command {
	var o mapOptions
	cmd := &cobra.Command{
		Use:   "map [NODE[/DEVICE]]",
		Short: "Draw disks: what is where, and what is free",
		Long: "Draw disks: what is where, and what is free.\n\n" +
			"With a node it draws each of its disks, and lists their volumes. Without one it draws a line for each disk of the cluster.",
		Example:           "  kubectl berth map\n  kubectl berth map --class ssd --sort largest\n  kubectl berth map node-07\n  kubectl berth map node-07/nvme0n1 --watch\n  kubectl berth map --html disks.html",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: s.completeNodes,
		RunE: s.connected(func(ctx context.Context, a *api, args []string) error {
			if o.html != "" {
				return s.writeMapPage(ctx, a, o, args)
			}
			return s.perhapsWatch(ctx, a, o.watch, func(ctx context.Context, out io.Writer) error {
				if len(args) == 1 {
					return s.mapNode(ctx, a, out, args[0])
				}
				return s.mapDisks(ctx, a, out, o)
			})
		}),
	}
	cmd.Flags().StringVar(&o.class, "class", "", "Only disks of this DiskClass.")
	cmd.Flags().StringVar(&o.sort, "sort", sortNode, "Order of the disks: node, or what matters first: frag, largest, fill or free.")
	cmd.Flags().BoolVar(&o.all, "all", false, "All disks, not only the first ones.")
	cmd.Flags().BoolVarP(&o.watch, "watch", "w", false, "Draw again after each change.")
	cmd.Flags().StringVar(&o.html, "html", "", "Write the drawing into this file, as a page that needs no other file.")
	s.completeClasses(cmd)
	_ = cmd.RegisterFlagCompletionFunc("sort", cobra.FixedCompletions(sortNames(), cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// node reads a node for its drawing.
func (a *api) node(ctx context.Context, name string) (*diskv1alpha1.NodeDiskCapacity, inventory.Context, error) {
	ndc, err := a.capacity(ctx, name)
	if err != nil {
		return nil, inventory.Context{}, err
	}
	about := inventory.Context{Withheld: withheldOn(ndc)}
	if _, err := a.core.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{}); apierrors.IsNotFound(err) {
		about.NodeGone = true
	}
	// The names of inline volumes are a convenience: without the right to read pods the drawing has none.
	pods, err := a.pods(ctx, metav1.NamespaceAll, fields.OneTermEqualSelector("spec.nodeName", name))
	if err != nil && !apierrors.IsForbidden(err) {
		return nil, about, err
	}
	about.InPod = namesInPods(pods)
	return ndc, about, nil
}

// namesInPods are the names of the pods' inline volumes, by volume ID.
func namesInPods(pods []corev1.Pod) map[string]string {
	names := map[string]string{}
	for i := range pods {
		volumes, err := request.FromPod(&pods[i])
		if err != nil {
			continue
		}
		for j := range volumes {
			names[volumes[j].ID] = volumes[j].Name
		}
	}
	return names
}

// withheldOn returns which disks of a node another one owns, by what the scheduler's leader has written to it.
func withheldOn(ndc *diskv1alpha1.NodeDiskCapacity) func(disk string) bool {
	shared := conditionOf(ndc, diskv1alpha1.ConditionDisksShared)
	owned := map[string]bool{}
	for _, id := range ndc.Spec.OwnedDisks {
		owned[id] = true
	}
	return func(disk string) bool { return shared != nil && shared.Status == metav1.ConditionTrue && !owned[disk] }
}

// conditionOf returns a condition of the node; nil if it has none of that type.
func conditionOf(ndc *diskv1alpha1.NodeDiskCapacity, kind string) *metav1.Condition {
	for i := range ndc.Status.Conditions {
		if c := &ndc.Status.Conditions[i]; c.Type == kind {
			return c
		}
	}
	return nil
}

// disksNamed are the disks of a node with that device or ID; all of them if device is empty.
func disksNamed(disks []inventory.Disk, node, device string) ([]inventory.Disk, error) {
	if device == "" {
		return disks, nil
	}
	for i := range disks {
		if disks[i].Device == device || disks[i].ID == device {
			return disks[i : i+1], nil
		}
	}
	return nil, fmt.Errorf("node %s has no disk of Berth on device %s: see kubectl berth get devices --node %s", node, device, node)
}
