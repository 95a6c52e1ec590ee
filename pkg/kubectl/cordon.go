package kubectl

import (
	"context"
	"fmt"
	"slices"

	"github.com/spf13/cobra"
	apiequality "k8s.io/apimachinery/pkg/api/equality"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/kubectl/inventory"
)

func newCordon(s *session) *cobra.Command {
	return s.newDiskCommand(diskCommand{
		use: "cordon", short: "Keep new volumes off a disk",
		long:    "Keep new volumes off a disk.\n\nIts volumes stay and are served. None grows there. To have them leave the disk, drain it.",
		example: "  kubectl berth cordon node-07 nvme1n1\n  kubectl berth cordon node-07 4ccf3293 --dry-run=server",
		run:     s.cordon,
	})
}

func newUncordon(s *session) *cobra.Command {
	return s.newDiskCommand(diskCommand{
		use: "uncordon", short: "Allow new volumes on a disk again",
		long:    "Allow new volumes on a disk again.\n\nA disk that is being drained goes on to be drained: see kubectl berth drain --undo.",
		example: "  kubectl berth uncordon node-07 nvme1n1",
		run:     s.uncordon,
	})
}

// diskCommand is a command that decides about one disk.
type diskCommand struct {
	use, short, long, example string
	run                       func(context.Context, *api, *change, *decisionAbout) error
	// losesData is true if data is lost.
	losesData bool
	// flags adds further flags.
	flags func(*cobra.Command)
}

// decisionAbout is the disk that a command decides about, as it was when the command began.
type decisionAbout struct {
	target
	ndc *diskv1alpha1.NodeDiskCapacity
	// disk is nil for one that only spec names.
	disk *inventory.Disk
	// before is what spec says of it.
	before diskv1alpha1.DiskDecision
}

// newDiskCommand is a command that decides about one disk.
func (s *session) newDiskCommand(d diskCommand) *cobra.Command {
	var c change
	cmd := &cobra.Command{
		Use: d.use + " NODE DISK", Short: d.short, Example: d.example, Args: cobra.RangeArgs(1, 2), ValidArgsFunction: s.completeDisks,
		Long: d.long + "\n\nThe disk is named by its device, its ID, or as much of the ID as no other disk of the node begins with.",
		RunE: s.connected(func(ctx context.Context, a *api, args []string) error {
			if err := c.check(); err != nil {
				return err
			}
			node, name, err := diskArguments(args)
			if err != nil {
				return err
			}
			about, err := a.about(ctx, node, name)
			if err != nil {
				return err
			}
			return d.run(ctx, a, &c, about)
		}),
	}
	c.add(cmd, d.losesData)
	if d.flags != nil {
		d.flags(cmd)
	}
	return cmd
}

// about reads a disk and what spec says of it.
func (a *api) about(ctx context.Context, node, name string) (*decisionAbout, error) {
	ndc, seen, err := a.node(ctx, node)
	if err != nil {
		return nil, err
	}
	found, err := findDisk(ndc, name)
	if err != nil {
		return nil, err
	}
	about := &decisionAbout{target: *found, ndc: ndc, before: ndc.Spec.Decision(found.id)}
	disks := inventory.Disks(ndc, seen)
	for i := range disks {
		if disks[i].ID == found.id {
			about.disk = &disks[i]
		}
	}
	return about, nil
}

// says names the disk for people.
func (d *decisionAbout) says() string {
	if d.disk == nil {
		return fmt.Sprintf("Disk %s of node %s, which the node does not have,", d.id, d.node)
	}
	return fmt.Sprintf("Disk %s (%s)", d.path(), joined(shortID(d.id), d.disk.Class, size(d.disk.Size)))
}

// decide changes what spec says of the disk. An entry that says nothing any more is taken out.
func (a *api) decide(ctx context.Context, c *change, t *target, edit func(*diskv1alpha1.DiskDecision)) error {
	return a.editSpec(ctx, t.node, c, func(ndc *diskv1alpha1.NodeDiskCapacity) (bool, error) {
		now := ndc.Spec.Decision(t.id)
		known := slices.ContainsFunc(ndc.Status.Disks, func(d diskv1alpha1.Disk) bool { return d.ID == t.id })
		if !known && now.ID == "" {
			return false, fmt.Errorf("node %s does not have disk %s any more: nothing was changed", t.node, t.id)
		}
		wanted := now
		wanted.ID = t.id
		edit(&wanted)
		at := slices.IndexFunc(ndc.Spec.Disks, func(d diskv1alpha1.DiskDecision) bool { return d.ID == t.id })
		// The entry may say more, such as compact, which stays.
		isEmpty := wanted == diskv1alpha1.DiskDecision{ID: t.id}
		switch {
		case isEmpty && at < 0, apiequality.Semantic.DeepEqual(wanted, now):
			return false, nil
		case isEmpty:
			ndc.Spec.Disks = slices.Delete(ndc.Spec.Disks, at, at+1)
		case at < 0:
			ndc.Spec.Disks = append(ndc.Spec.Disks, wanted)
		default:
			ndc.Spec.Disks[at] = wanted
		}
		return true, nil
	})
}

// decision is a change of what spec says of a disk, and what the user reads of it.
type decision struct {
	// plan is said before. done and has begin and end what is said afterwards.
	plan, done, has string
	edit            func(*diskv1alpha1.DiskDecision)
}

// confirmAndDecide asks the user, and changes what spec says of the disk.
func (s *session) confirmAndDecide(ctx context.Context, a *api, c *change, d *decisionAbout, w decision) error {
	if err := c.confirm(ctx, s, w.plan); err != nil {
		return err
	}
	if err := a.decide(ctx, c, &d.target, w.edit); err != nil {
		return err
	}
	_, err := fmt.Fprintf(s.Out, "%s %s: spec.disks of NodeDiskCapacity %s has %s %s%s.\n", w.done, d.path(), d.node, d.id, w.has, c.suffix())
	return err
}

func (s *session) cordon(ctx context.Context, a *api, c *change, d *decisionAbout) error {
	if d.before.Unschedulable {
		_, err := fmt.Fprintf(s.Out, "%s is cordoned already: nothing was changed.\n", d.says())
		return err
	}
	if d.disk == nil {
		return fmt.Errorf("node %s does not have disk %s any more: it can only be uncordoned", d.node, d.id)
	}
	plan := fmt.Sprintf("%s takes no new volumes from now on, and no volume grows there. It keeps its %s.\n", d.says(), plural(d.disk.VolumeCount(), "volume"))
	return s.confirmAndDecide(ctx, a, c, d, decision{plan, "Cordoned", "with unschedulable", func(w *diskv1alpha1.DiskDecision) { w.Unschedulable = true }})
}

func (s *session) uncordon(ctx context.Context, a *api, c *change, d *decisionAbout) error {
	switch {
	case !d.before.Unschedulable && d.before.Drain != nil:
		return fmt.Errorf("%s is being drained, and is not cordoned beside: kubectl berth drain %s %s --undo ends that", d.path(), d.node, d.nameInCommand())
	case !d.before.Unschedulable:
		_, err := fmt.Fprintf(s.Out, "%s is not cordoned: nothing was changed.\n", d.says())
		return err
	}
	plan := d.says() + " takes new volumes again.\n"
	switch {
	case d.before.Drain != nil:
		plan = d.says() + " is not cordoned any more, but it goes on to be drained, and takes no new volumes.\n"
	case d.disk == nil:
		plan = d.says() + " is not named in spec.disks any more.\n"
	}
	return s.confirmAndDecide(ctx, a, c, d, decision{plan, "Uncordoned", "without unschedulable", func(w *diskv1alpha1.DiskDecision) { w.Unschedulable = false }})
}

// nameInCommand is how a command names the disk.
func (t *target) nameInCommand() string {
	if t.device == "" {
		return t.id
	}
	return t.device
}
