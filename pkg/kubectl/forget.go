package kubectl

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/client-go/util/retry"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/kubectl/terminal"
)

func newForget(s *session) *cobra.Command {
	return s.newDiskCommand(diskCommand{
		use: "forget", short: "Have the agent forget a disk that is gone for good", losesData: true,
		long: "Have the agent forget a disk that is gone for good. The volumes on it are lost.\n\n" +
			"It is for a disk that no device of the node holds. Pods whose inline volumes were on it get new ones, empty. " +
			"PersistentVolumes of the disk stay until you delete them.",
		example: "  kubectl berth forget node-07 nvme1n1",
		run:     s.forget,
	})
}

func (s *session) forget(ctx context.Context, a *api, c *change, d *decisionAbout) error {
	if d.disk == nil {
		return fmt.Errorf("node %s does not have disk %s any more: kubectl berth uncordon %s %s takes it out of spec.disks", d.node, d.id, d.node, d.id)
	}
	if d.disk.State != string(diskv1alpha1.DiskFailed) {
		return fmt.Errorf("%s is %s: only a disk that is gone can be forgotten", d.path(), d.disk.State)
	}
	if i := slices.IndexFunc(d.ndc.Status.Devices, func(x diskv1alpha1.Device) bool { return x.Disk == d.id }); i >= 0 {
		return fmt.Errorf("%s is on device %s, which is there: take the drive out first, or repair it; it says: %s", d.path(), d.ndc.Status.Devices[i].Name, d.disk.Message)
	}
	to, err := s.terminal()
	if err != nil {
		return err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s is forgotten, and the %s on it lost:\n", d.says(), plural(d.disk.VolumeCount(), "volume"))
	table := &terminal.Table{NoHeaders: true, Indent: "  ", Columns: []terminal.Column{{Right: true}, {Shrink: 16}, {}, {Shrink: 16}}}
	for _, v := range d.disk.FirstPieces() {
		table.AddTexts(size(v.Whole()), ownerOf(v), kindOrState(v), v.Name)
	}
	_ = table.Write(&b, to)
	if err := c.confirm(ctx, s, b.String()); err != nil {
		return err
	}
	if err := a.annotateForget(ctx, c, d); err != nil {
		return err
	}
	_, err = fmt.Fprintf(s.Out, "Annotated NodeDiskCapacity %s with %s=%s%s.\n", d.node, diskv1alpha1.AnnotationForgetDisks, d.id, c.suffix())
	return err
}

// annotateForget adds the disk to those that the agent shall forget. The agent takes the annotation off when it has.
func (a *api) annotateForget(ctx context.Context, c *change, d *decisionAbout) error {
	return retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		ndc, err := a.capacity(ctx, d.node)
		if err != nil {
			return err
		}
		ids := strings.FieldsFunc(ndc.Annotations[diskv1alpha1.AnnotationForgetDisks], func(r rune) bool { return r == ',' || r == ' ' })
		if !slices.Contains(ids, d.id) {
			ids = append(ids, d.id)
		}
		_, err = a.patch(ctx, d.node, c, map[string]any{"metadata": map[string]any{
			"resourceVersion": ndc.ResourceVersion, "annotations": map[string]string{diskv1alpha1.AnnotationForgetDisks: strings.Join(ids, ",")},
		}})
		return err
	})
}
