package kubectl

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/retry"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/pkg/kubectl/terminal"
)

func newRelease(s *session) *cobra.Command {
	var c change
	node := ""
	cmd := &cobra.Command{
		Use:   "release --node-gone NODE",
		Short: "Give up the persistent volumes of a node that is gone",
		Long: "Give up the persistent volumes of a node that is gone, with their claims.\n\n" +
			"It marks the PersistentVolumes and deletes their claims. The scheduler then removes the PersistentVolumes. " +
			"A StatefulSet makes claims and pods again on another node, with empty volumes. If the node comes back, the volumes are orphans there, with their data.\n\n" +
			"A node is gone if it has no Node. It is gone, too, if its Node is not ready and has the taint " + corev1.TaintNodeOutOfService + ".",
		Example: "  kubectl berth release --node-gone node-07 --dry-run=server",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := c.check(); err != nil {
				return err
			}
			if node == "" {
				return errors.New("name the node: kubectl berth release --node-gone NODE")
			}
			a, err := s.connect()
			if err != nil {
				return err
			}
			return s.releaseNode(cmd.Context(), a, &c, node)
		},
	}
	cmd.Flags().StringVar(&node, "node-gone", "", "The node.")
	c.add(cmd, true)
	_ = cmd.RegisterFlagCompletionFunc("node-gone", s.completeNodes)
	return cmd
}

// lostVolume is a PersistentVolume of a node that is gone, and its claim, if it has one.
type lostVolume struct {
	pv  *corev1.PersistentVolume
	pvc *corev1.PersistentVolumeClaim
}

func (s *session) releaseNode(ctx context.Context, a *api, c *change, node string) error {
	if err := a.checkGone(ctx, node); err != nil {
		return err
	}
	lost, err := a.lostVolumes(ctx, node)
	if err != nil {
		return err
	}
	if len(lost) == 0 {
		_, err := fmt.Fprintf(s.Out, "Node %s has no PersistentVolume: nothing was changed.\n", node)
		return err
	}
	to, err := s.terminal()
	if err != nil {
		return err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Node %s is gone. The %s on it given up, with their claims:\n", node, plural(len(lost), "persistent volume")+map[bool]string{true: " is", false: " are"}[len(lost) == 1])
	table := &terminal.Table{NoHeaders: true, Indent: "  ", Columns: []terminal.Column{{Right: true}, {Shrink: 16}, {}, {Shrink: 16}}}
	for _, v := range lost {
		capacity := v.pv.Spec.Capacity[corev1.ResourceStorage]
		table.AddTexts(size(capacity.Value()), cmp.Or(claim.Owner(v.pv), "-"), v.says(), v.pv.Name)
	}
	_ = table.Write(&b, to)
	b.WriteString("If the node comes back, they are orphans there.\n")
	if err := c.confirm(ctx, s, b.String()); err != nil {
		return err
	}
	// The user may have taken a while.
	if err := a.checkGone(ctx, node); err != nil {
		return err
	}
	for _, v := range lost {
		if err := a.releaseLost(ctx, c, &v); err != nil {
			return fmt.Errorf("%w. Run the command again to go on", err)
		}
	}
	_, err = fmt.Fprintf(s.Out, "Marked %s and deleted their claims. The scheduler removes them%s.\n", plural(len(lost), "PersistentVolume"), c.suffix())
	return err
}

// says is what is done about the claim.
func (v *lostVolume) says() string {
	switch {
	case v.pvc == nil:
		return "without claim"
	case v.pvc.DeletionTimestamp != nil:
		return "its claim is being deleted"
	}
	return "its claim is deleted"
}

// checkGone refuses a node that is not gone.
func (a *api) checkGone(ctx context.Context, node string) error {
	now, err := a.core.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("reading Node %s: %w", node, err)
	case claim.IsOutOfService(now):
		return nil
	}
	return fmt.Errorf("node %s is not gone: delete its Node, or taint it with %s if it is shut down", node, corev1.TaintNodeOutOfService)
}

// lostVolumes are the PersistentVolumes of a node.
func (a *api) lostVolumes(ctx context.Context, node string) ([]lostVolume, error) {
	volumes, err := a.volumes(ctx)
	if err != nil {
		return nil, err
	}
	claims, err := a.claims(ctx)
	if err != nil {
		return nil, err
	}
	var lost []lostVolume
	for i := range volumes {
		pv := &volumes[i]
		if !claim.IsOurs(pv) || pv.Labels[diskv1alpha1.LabelNode] != diskv1alpha1.NodeLabel(node) {
			continue
		}
		v := lostVolume{pv: pv}
		if at := slices.IndexFunc(claims, func(pvc corev1.PersistentVolumeClaim) bool { return claim.Has(pv, &pvc) }); at >= 0 {
			v.pvc = &claims[at]
		}
		lost = append(lost, v)
	}
	return lost, nil
}

// releaseLost marks a PersistentVolume, and deletes its claim.
func (a *api) releaseLost(ctx context.Context, c *change, v *lostVolume) error {
	err := retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		pv, err := a.core.CoreV1().PersistentVolumes().Get(ctx, v.pv.Name, metav1.GetOptions{})
		if err != nil || pv.UID != v.pv.UID || pv.Annotations[diskv1alpha1.AnnotationNodeGone] != "" {
			return err
		}
		patch, err := json.Marshal(map[string]any{
			"metadata": map[string]any{
				"uid": pv.UID, "resourceVersion": pv.ResourceVersion,
				"annotations": map[string]string{diskv1alpha1.AnnotationNodeGone: string(pv.Spec.PersistentVolumeReclaimPolicy)},
			},
			"spec": map[string]any{"persistentVolumeReclaimPolicy": corev1.PersistentVolumeReclaimRetain},
		})
		if err != nil {
			return err
		}
		_, err = a.core.CoreV1().PersistentVolumes().Patch(ctx, pv.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: fieldManager, DryRun: c.servers()})
		return err
	})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("marking PersistentVolume %s: %w", v.pv.Name, err)
	}
	if v.pvc == nil || v.pvc.DeletionTimestamp != nil {
		return nil
	}
	err = a.core.CoreV1().PersistentVolumeClaims(v.pvc.Namespace).Delete(ctx, v.pvc.Name, metav1.DeleteOptions{
		Preconditions: metav1.NewUIDPreconditions(string(v.pvc.UID)), DryRun: c.servers(),
	})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return fmt.Errorf("deleting claim %s/%s: %w", v.pvc.Namespace, v.pvc.Name, err)
	}
	return nil
}
