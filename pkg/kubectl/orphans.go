package kubectl

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/kubectl/inventory"
	"github.com/berthdev/berth/pkg/kubectl/terminal"
)

func newOrphans(s *session) *cobra.Command {
	form := newOutput()
	cmd := &cobra.Command{
		Use:   "orphans [NODE]",
		Short: "List the volumes without an owner, and decide about them",
		Long: "List the volumes without an owner, and decide about them.\n\n" +
			"A persistent volume without PersistentVolume is kept until an operator adopts or releases it. " +
			"The volume of a pod whose end was not seen is wiped after a grace period, unless reclaim is stopped.",
		Example: "  kubectl berth orphans\n  kubectl berth orphans node-07\n  kubectl berth orphans adopt pvc-3e2d5782 --storage-class berth-ssd\n" +
			"  kubectl berth orphans release pvc-3e2d5782\n  kubectl berth orphans confirm node-21 23",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: s.completeNodes,
		RunE: s.connected(func(ctx context.Context, a *api, args []string) error {
			return s.listOrphans(ctx, a, form, strings.Join(args, ""))
		}),
	}
	form.add(cmd)
	cmd.AddCommand(newOrphansAdopt(s), newOrphansRelease(s), newOrphansConfirm(s))
	return cmd
}

// orphan is a volume without an owner.
type orphan struct {
	*inventory.Volume `json:",inline"`
	// Reason says why the volume is kept, and Commands what an operator can do.
	Reason   string   `json:"reason"`
	Commands []string `json:"commands,omitempty"`
}

// orphansOf are those of a node.
func orphansOf(ndc *diskv1alpha1.NodeDiskCapacity, about inventory.Context) []orphan {
	stopped := conditionOf(ndc, diskv1alpha1.ConditionReclaimStopped)
	isStopped := stopped != nil && stopped.Status == metav1.ConditionTrue
	disks := inventory.Disks(ndc, about)
	var found []orphan
	inline := 0
	for i := range disks {
		for j := range disks[i].Volumes {
			v := &disks[i].Volumes[j]
			if v.State != inventory.StateOrphan {
				continue
			}
			if v.Owner == "" {
				v.Owner = madeFor(ndc, v.Name)
			}
			o := orphan{Volume: v}
			switch {
			case v.Kind == inventory.KindInline && isStopped:
				o.Reason = "its pod is gone, and reclaim is stopped"
				inline++
			case v.Kind == inventory.KindInline:
				o.Reason = "its pod is gone; it is wiped after the grace period, unless the pod comes back"
			case isAdoptable(v):
				o.Reason = "no PersistentVolume"
				o.Commands = []string{"kubectl berth orphans adopt " + v.Name, "kubectl berth orphans release " + v.Name}
			default:
				o.Reason = "its node does not know which volume it is"
			}
			found = append(found, o)
		}
	}
	for i := range found {
		if found[i].Kind == inventory.KindInline && isStopped {
			found[i].Commands = []string{fmt.Sprintf("kubectl berth orphans confirm %s %d", ndc.Name, inline)}
		}
	}
	return found
}

// madeFor is the claim for which a volume was made, as namespace/name. The list of allocations has no owner of a volume
// that has none, but the agent reads from the disk for which claim it was made, and says so in the condition.
func madeFor(ndc *diskv1alpha1.NodeDiskCapacity, volume string) string {
	c := conditionOf(ndc, diskv1alpha1.ConditionOrphanedVolumes)
	if c == nil {
		return ""
	}
	_, rest, _ := strings.Cut(c.Message, volume+" (made for claim ")
	owner, _, closed := strings.Cut(rest, ")")
	if !closed {
		return ""
	}
	return owner
}

// isAdoptable reports whether a PersistentVolume can be written for a volume: its ID is known, and names its partition.
func isAdoptable(v *inventory.Volume) bool {
	return v.Kind != inventory.KindInline && v.Name != v.Partition && diskv1alpha1.PartitionID(v.Name) == v.Partition
}

// orphans are those of one node, or of all if none is named.
func (a *api) orphans(ctx context.Context, node string) ([]orphan, error) {
	if node != "" {
		ndc, about, err := a.node(ctx, node)
		if err != nil {
			return nil, err
		}
		return orphansOf(ndc, about), nil
	}
	nodes, err := a.capacities(ctx)
	if err != nil {
		return nil, err
	}
	var found []orphan
	for i := range nodes {
		found = append(found, orphansOf(&nodes[i], inventory.Context{Withheld: withheldOn(&nodes[i])})...)
	}
	return found, nil
}

func (s *session) listOrphans(ctx context.Context, a *api, form *output, node string) error {
	orphans, err := a.orphans(ctx, node)
	if err != nil {
		return err
	}
	l := &listing{kind: "Orphan", none: "No volume is an orphan.", table: &terminal.Table{Columns: []terminal.Column{
		{Name: "DISK", Shrink: 12}, {Name: "WAS", Shrink: 12}, {Name: "KIND"}, {Name: "SIZE", Right: true}, {Name: "SINCE", Right: true},
		{Name: "VOLUME", Shrink: 14}, {Name: "PARTITION", Wide: true}, {Name: "KEPT BECAUSE", Shrink: 18},
	}}}
	for i := range orphans {
		o := &orphans[i]
		l.names, l.items = append(l.names, o.Name), append(l.items, o)
		l.table.AddTexts(o.Node+"/"+o.Device, dash(o.Owner), string(o.Kind), size(o.Length), sinceOf(o.OrphanedSince, s.now()), o.Name, o.Partition, o.Reason)
	}
	if err := form.write(s, l); err != nil || len(orphans) == 0 {
		return err
	}
	if f := *form.print.OutputFormat; f != "" && f != outputWide {
		return nil
	}
	return s.writeWhatToDo(orphans)
}

func sinceOf(at *time.Time, now time.Time) string {
	if at == nil {
		return "-"
	}
	return duration.HumanDuration(now.Sub(*at))
}

// writeWhatToDo writes the commands below the table, each once.
func (s *session) writeWhatToDo(orphans []orphan) error {
	to, err := s.terminal()
	if err != nil {
		return err
	}
	var lines []remark
	seen := map[string]bool{}
	for i := range orphans {
		o := &orphans[i]
		for _, command := range o.Commands {
			if seen[command] {
				continue
			}
			seen[command] = true
			lines = append(lines, remark{terminal.MarkWarning, o.Node, effectOf(command), command})
		}
	}
	var b strings.Builder
	writeLinesOf(&b, to, "WHAT TO DO", lines, true)
	_, err = fmt.Fprint(s.Out, b.String())
	return err
}

// effectOf says what a command of orphans does.
func effectOf(command string) string {
	switch {
	case strings.Contains(command, "adopt"):
		return "take it back, with its data:"
	case strings.Contains(command, "release"):
		return "or have it wiped:"
	}
	return "have them wiped, if the pods are really gone:"
}
