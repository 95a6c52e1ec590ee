package kubectl

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

func newCompact(s *session) *cobra.Command {
	undo := false
	return s.newDiskCommand(diskCommand{
		use: "compact", short: "Have the volumes of a disk moved together",
		long: "Have the volumes of a disk moved together, for a larger free extent.\n\n" +
			"Volumes of claims that no pod uses are moved towards the start of the disk, if its largest free extent grows by that. " +
			"It goes on until --undo: what cannot be moved now is moved when its pod ends.",
		example: "  kubectl berth compact node-07 nvme1n1 --dry-run=server\n  kubectl berth compact node-07 nvme1n1 --undo",
		run: func(ctx context.Context, a *api, c *change, d *decisionAbout) error {
			return s.compact(ctx, a, c, d, !undo)
		},
		flags: func(cmd *cobra.Command) {
			cmd.Flags().BoolVar(&undo, "undo", false, "End it. What has been moved stays where it is.")
		},
	})
}

func (s *session) compact(ctx context.Context, a *api, c *change, d *decisionAbout, wanted bool) error {
	switch {
	case d.before.Compact == wanted && wanted:
		_, err := fmt.Fprintf(s.Out, "%s is being compacted already: nothing was changed.\n", d.says())
		return err
	case d.before.Compact == wanted:
		_, err := fmt.Fprintf(s.Out, "%s is not being compacted: nothing was changed.\n", d.says())
		return err
	case wanted && d.disk == nil:
		return fmt.Errorf("node %s does not have disk %s any more: there is nothing to compact", d.node, d.id)
	case wanted && d.before.IsCordoned():
		return fmt.Errorf("%s takes no new volumes, and is not compacted: kubectl berth uncordon, or drain --undo, ends that", d.path())
	}
	plan, did := d.says()+" is not compacted any more. What has been moved stays where it is.\n", "Ended compacting"
	with := "without"
	if wanted {
		plan = fmt.Sprintf("Volumes of claims on %s are moved together while no pod uses them, if the largest free extent, %s now, grows by that.\n", d.path(), size(d.disk.Largest))
		did, with = "Compacting", "with"
	}
	if err := c.confirm(ctx, s, plan); err != nil {
		return err
	}
	if err := a.decide(ctx, c, &d.target, func(w *diskv1alpha1.DiskDecision) { w.Compact = wanted }); err != nil {
		return err
	}
	_, err := fmt.Fprintf(s.Out, "%s %s: spec.disks of NodeDiskCapacity %s has %s %s compact%s.\n", did, d.path(), d.node, d.id, with, c.suffix())
	return err
}
