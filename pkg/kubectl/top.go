package kubectl

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/berthdev/berth/pkg/kubectl/inventory"
	"github.com/berthdev/berth/pkg/kubectl/terminal"
)

// Orders of `top`: the disks, nodes or classes with the most of it are first.
const (
	topUse     = "use"
	topFree    = "free"
	topLargest = "largest"
	topFrag    = "frag"
	topVolumes = "volumes"
)

var topOrders = []string{topUse, topFree, topLargest, topFrag, topVolumes}

// topOptions are the flags of `top`.
type topOptions struct {
	nodes, classes []string
	sort           string
	limit          int
}

func newTop(s *session) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "top",
		Short: "List classes, nodes or disks by use",
		Long: "List classes, nodes or disks by use.\n\n" +
			"Sizes, and what follows from them, are those of the disks in service.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		s.newTopOf("classes", "class", "List the classes by use", "TopClass", func(d *inventory.Disk) string { return d.Class }),
		s.newTopOf("nodes", "node", "List the nodes by use", "TopNode", func(d *inventory.Disk) string { return d.Node }),
		s.newTopOf("disks", "disk", "List the disks by use", "TopDisk", (*inventory.Disk).Path),
	)
	return cmd
}

// newTopOf is a command that lists the sums of disks with the same key.
func (s *session) newTopOf(name, singular, short, kind string, key func(*inventory.Disk) string) *cobra.Command {
	form, o := newOutput(), &topOptions{}
	cmd := &cobra.Command{
		Use: name, Short: short, Args: cobra.NoArgs, Aliases: []string{singular},
		RunE: s.connected(func(ctx context.Context, a *api, _ []string) error {
			switch {
			case !slices.Contains(topOrders, o.sort):
				return fmt.Errorf("--sort is %q: it can be %s", o.sort, strings.Join(topOrders, ", "))
			case o.limit < 0:
				return fmt.Errorf("--limit is %d: it can be 0 for all, or how many lines there are at most", o.limit)
			}
			l, err := a.top(ctx, o, strings.ToUpper(singular), kind, key)
			if err != nil {
				return err
			}
			return form.write(s, l)
		}),
	}
	form.add(cmd)
	cmd.Flags().StringSliceVar(&o.nodes, "node", nil, "Only disks of these nodes.")
	cmd.Flags().StringSliceVar(&o.classes, "class", nil, "Only disks of these DiskClasses.")
	cmd.Flags().StringVar(&o.sort, "sort", topUse, "What the first ones have most of: "+strings.Join(topOrders, ", ")+".")
	cmd.Flags().IntVar(&o.limit, "limit", 0, "At most this many lines; 0 for all.")
	s.completeClasses(cmd)
	_ = cmd.RegisterFlagCompletionFunc("node", s.completeNodes)
	_ = cmd.RegisterFlagCompletionFunc("sort", cobra.FixedCompletions(topOrders, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// topRow is the sum of the disks with the same key.
type topRow struct {
	space

	name string
	sum  inventory.Sum
}

// top sums up the disks by key.
func (a *api) top(ctx context.Context, o *topOptions, heading, kind string, key func(*inventory.Disk) string) (*listing, error) {
	disks, err := a.disks(ctx, &selection{nodes: o.nodes})
	if err != nil {
		return nil, err
	}
	l := &listing{kind: kind, none: "No disks are listed.", table: &terminal.Table{Columns: []terminal.Column{
		{Name: heading, Shrink: 12}, {Name: "DISKS", Right: true}, {Name: "SIZE", Right: true}, {Name: "USED", Right: true}, {Name: "FREE", Right: true},
		{Name: "LARGEST", Right: true}, {Name: "PIECES", Right: true, Wide: true}, {Name: "FRAG", Right: true}, {Name: "VOL", Right: true},
	}}}
	for _, r := range topRows(disks, o, key) {
		l.names, l.items = append(l.names, r.name), append(l.items, r)
		l.table.AddTexts(r.name, r.disksText(), size(r.Size), percent(r.Used, r.Size), size(r.Free), size(r.Largest), strconv.Itoa(r.Pieces), dash(r.Fragmentation), strconv.Itoa(r.Volumes))
	}
	return l, nil
}

// topRows are the sums in their order.
func topRows(disks []inventory.Disk, o *topOptions, key func(*inventory.Disk) string) []*topRow {
	byKey := map[string]*topRow{}
	var rows []*topRow
	for i := range disks {
		d := &disks[i]
		name := key(d)
		if name == "" || len(o.nodes) > 0 && !slices.Contains(o.nodes, d.Node) || len(o.classes) > 0 && !slices.Contains(o.classes, d.Class) {
			continue
		}
		if byKey[name] == nil {
			byKey[name] = &topRow{name: name}
			rows = append(rows, byKey[name])
		}
		byKey[name].sum.Add(d)
	}
	for _, r := range rows {
		r.space = spaceOf(&r.sum)
	}
	slices.SortStableFunc(rows, func(a, b *topRow) int {
		return cmp.Or(cmp.Compare(b.rank(o.sort), a.rank(o.sort)), cmp.Compare(a.name, b.name))
	})
	if o.limit > 0 && len(rows) > o.limit {
		rows = rows[:o.limit]
	}
	return rows
}

// rank is the figure by which rows are sorted. One without it, such as a disk out of service, is the last.
func (r *topRow) rank(order string) float64 {
	switch order {
	case topFree:
		return float64(r.Free)
	case topLargest:
		return float64(r.Largest)
	case topVolumes:
		return float64(r.Volumes)
	case topFrag:
		if share, ok := r.sum.Fragmentation(); ok {
			return share
		}
		return -1
	}
	if r.Size == 0 {
		return -1
	}
	return float64(r.Used) / float64(r.Size)
}
