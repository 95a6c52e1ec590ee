package kubectl

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/util/duration"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/kubectl/inventory"
	"github.com/berthdev/berth/pkg/kubectl/terminal"
)

// selection is the flags that select things.
type selection struct {
	nodes, classes, states []string
	owner                  string
}

// add adds the flags. Not all things have a class, an owner and states.
func (o *selection) add(s *session, cmd *cobra.Command, states []string, withOwner bool) {
	cmd.Flags().StringSliceVar(&o.nodes, "node", nil, "Only those on these nodes.")
	cmd.Flags().StringSliceVar(&o.classes, "class", nil, "Only those of these DiskClasses.")
	s.completeClasses(cmd)
	_ = cmd.RegisterFlagCompletionFunc("node", s.completeNodes)
	if states != nil {
		cmd.Flags().StringSliceVar(&o.states, "state", nil, "Only those in these states: "+strings.Join(states, ", ")+".")
		_ = cmd.RegisterFlagCompletionFunc("state", cobra.FixedCompletions(states, cobra.ShellCompDirectiveNoFileComp))
	}
	if withOwner {
		cmd.Flags().StringVar(&o.owner, "owner", "", "Only those of this pod or claim, as namespace/name, or of a namespace, as namespace/.")
	}
}

// selects reports whether something is selected. States are compared without regard to case.
func (o *selection) selects(node, class, state, owner string) bool {
	isState := func(want string) bool { return strings.EqualFold(want, state) }
	switch {
	case len(o.nodes) > 0 && !slices.Contains(o.nodes, node),
		len(o.classes) > 0 && !slices.Contains(o.classes, class),
		len(o.states) > 0 && !slices.ContainsFunc(o.states, isState):
		return false
	case o.owner == "":
		return true
	case strings.HasSuffix(o.owner, "/"):
		return strings.HasPrefix(owner, o.owner)
	}
	return owner == o.owner
}

// checkStates refuses a state that there is not: a mistake must not look like an empty list.
func (o *selection) checkStates(known []string) error {
	for _, state := range o.states {
		if !slices.ContainsFunc(known, func(k string) bool { return strings.EqualFold(k, state) }) {
			return fmt.Errorf("--state is %q: it can be %s", state, strings.Join(known, ", "))
		}
	}
	return nil
}

// States of the things that `get` lists.
var (
	deviceStates = []string{
		string(diskv1alpha1.DeviceInUse), string(diskv1alpha1.DeviceCandidate), string(diskv1alpha1.DeviceExcluded),
		string(diskv1alpha1.DeviceForeign), string(diskv1alpha1.DeviceBusy), string(diskv1alpha1.DeviceFailed),
	}
	diskStates = []string{
		string(diskv1alpha1.DiskReady), string(diskv1alpha1.DiskCordoned), string(diskv1alpha1.DiskDraining), string(diskv1alpha1.DiskFailed),
		inventory.StateShared, inventory.StateNodeGone,
	}
	volumeStates = []string{
		string(diskv1alpha1.PhaseReserved), string(diskv1alpha1.PhaseFormatted), string(diskv1alpha1.PhaseWiping),
		string(diskv1alpha1.PhaseCopying), inventory.StateOrphan,
	}
)

func newGet(s *session) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "get",
		Short: "List devices, disks, volumes, classes or wipes",
		Example: "  kubectl berth get disks --class ssd\n  kubectl berth get devices --state candidate\n" +
			"  kubectl berth get volumes --owner db/ -o wide\n  kubectl berth get wipes",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		s.newGetOf(getter{name: "devices", singular: "device", short: "List the whole block devices of nodes, and why each is used or not", states: deviceStates, list: s.getDevices}),
		s.newGetOf(getter{name: "disks", singular: "disk", short: "List the disks of Berth", states: diskStates, list: s.getDisks}),
		s.newGetOf(getter{name: "volumes", singular: "volume", short: "List the volumes on all disks", states: volumeStates, owner: true, list: s.getVolumes}),
		s.newGetOf(getter{name: "classes", singular: "class", short: "List the DiskClasses with the space that they have", list: s.getClasses}),
		s.newGetOf(getter{name: "wipes", singular: "wipe", short: "List the volumes that are being wiped", owner: true, list: s.getWipes}),
	)
	return cmd
}

// getter is a command that lists one kind of things.
type getter struct {
	name, singular, short string
	states                []string
	owner                 bool
	list                  func(context.Context, *api, *selection) (*listing, error)
}

func (s *session) newGetOf(g getter) *cobra.Command {
	o, which := newOutput(), &selection{}
	cmd := &cobra.Command{
		Use: g.name, Short: g.short, Args: cobra.NoArgs, Aliases: []string{g.singular},
		RunE: s.connected(func(ctx context.Context, a *api, _ []string) error {
			if err := which.checkStates(g.states); err != nil {
				return err
			}
			l, err := g.list(ctx, a, which)
			if err != nil {
				return err
			}
			return o.write(s, l)
		}),
	}
	o.add(cmd)
	which.add(s, cmd, g.states, g.owner)
	return cmd
}

func (s *session) getDevices(ctx context.Context, a *api, which *selection) (*listing, error) {
	nodes, err := a.selected(ctx, which)
	if err != nil {
		return nil, err
	}
	l := &listing{kind: "Device", none: "No devices are listed.", table: &terminal.Table{Columns: []terminal.Column{
		{Name: "DEVICE", Shrink: 12}, {Name: "STATE"}, {Name: "SIZE", Right: true}, {Name: "CLASS"}, {Name: "TRANSPORT"}, {Name: "MODEL", Shrink: 12},
		{Name: "SERIAL", Wide: true}, {Name: "WWN", Wide: true}, {Name: "BY-ID", Wide: true}, {Name: "FINGERPRINT", Wide: true}, {Name: "REASON", Shrink: 16},
	}}}
	to, err := s.terminal()
	if err != nil {
		return nil, err
	}
	for i := range nodes {
		for _, d := range inventory.Devices(&nodes[i]) {
			if !which.selects(d.Node, d.Class, string(d.State), "") {
				continue
			}
			l.names, l.items = append(l.names, d.Path()), append(l.items, d)
			l.table.Add(append([]terminal.Cell{{Text: d.Path()}, deviceState(to, d.State)}, terminal.Cells(
				size(d.Size), d.Class, string(d.Transport), d.Model, d.Serial, d.WWN, d.ByID, d.Fingerprint, strings.Join(d.Reasons, "; "))...)...)
		}
	}
	return l, nil
}

// deviceState colors the states that an operator must look at.
func deviceState(to terminal.Terminal, state diskv1alpha1.DeviceState) terminal.Cell {
	switch state {
	case diskv1alpha1.DeviceFailed:
		return terminal.Cell{Text: to.PlainMark(terminal.MarkBad) + " " + string(state), Style: terminal.Bad}
	case diskv1alpha1.DeviceCandidate:
		return terminal.Cell{Text: to.PlainMark(terminal.MarkWarning) + " " + string(state), Style: terminal.Warning}
	case diskv1alpha1.DeviceInUse:
		return terminal.Cell{Text: string(state), Style: terminal.Good}
	}
	return terminal.Cell{Text: string(state)}
}

func (s *session) getDisks(ctx context.Context, a *api, which *selection) (*listing, error) {
	disks, err := a.disks(ctx, which)
	if err != nil {
		return nil, err
	}
	to, err := s.terminal()
	if err != nil {
		return nil, err
	}
	l := &listing{kind: "Disk", none: "No disks are listed: kubectl berth get devices says why none is taken.", table: &terminal.Table{Columns: []terminal.Column{
		{Name: "DISK", Shrink: 12}, {Name: "CLASS"}, {Name: "STATE"}, {Name: "SIZE", Right: true}, {Name: "USED", Right: true}, {Name: "FREE", Right: true},
		{Name: "LARGEST", Right: true}, {Name: "PIECES", Right: true, Wide: true}, {Name: "FRAG", Right: true}, {Name: "VOL", Right: true},
		{Name: "ID", Wide: true}, {Name: "MODEL", Wide: true}, {Name: "MESSAGE", Wide: true},
	}}}
	for i := range disks {
		d := &disks[i]
		if !which.selects(d.Node, d.Class, d.State, "") {
			continue
		}
		used, free, largest, frag := "-", "-", "-", "-"
		if d.InService() {
			used, free, largest = percent(d.Used(), d.Size), size(d.Free), size(d.Largest)
		}
		if f, ok := d.Fragmentation(); ok {
			frag = fmt.Sprintf("%.2f", f)
		}
		l.names, l.items = append(l.names, d.Path()), append(l.items, d)
		l.table.Add(append([]terminal.Cell{{Text: d.Path()}, {Text: d.Class}, stateCell(to, d.State)}, terminal.Cells(
			size(d.Size), used, free, largest, strconv.Itoa(d.Pieces), frag, strconv.Itoa(d.VolumeCount()),
			d.ID, d.Model, d.Message)...)...)
	}
	return l, nil
}

func (s *session) getVolumes(ctx context.Context, a *api, which *selection) (*listing, error) {
	disks, err := a.disks(ctx, which)
	if err != nil {
		return nil, err
	}
	l := &listing{kind: "Volume", none: "No volumes are listed.", table: &terminal.Table{Columns: []terminal.Column{
		{Name: "DISK", Shrink: 12}, {Name: "OWNER", Shrink: 12}, {Name: "KIND"}, {Name: "STATE"}, {Name: "SIZE", Right: true}, {Name: "AT", Right: true},
		{Name: "CLASS", Wide: true}, {Name: "GROWS TO", Right: true, Wide: true}, {Name: "VOLUME", Wide: true}, {Name: "PARTITION", Wide: true},
	}}}
	for i := range disks {
		for j := range disks[i].Volumes {
			v := &disks[i].Volumes[j]
			if !which.selects(v.Node, v.Class, v.State, v.Owner) {
				continue
			}
			name := v.Name
			if v.Piece > 0 {
				name = v.Partition
			}
			l.names, l.items = append(l.names, name), append(l.items, v)
			l.table.AddTexts(disks[i].Path(), v.Owner, kindOf(v), v.State, size(v.Length), size(v.Start), v.Class, growsTo(v), v.Name, v.Partition)
		}
	}
	return l, nil
}

// kindOf is the kind of a volume, or of which volume it is a piece.
func kindOf(v *inventory.Volume) string {
	if v.Piece > 0 {
		return fmt.Sprintf("%s, piece %d", v.Kind, v.Piece)
	}
	return string(v.Kind)
}

// growsTo is up to which size a volume can grow.
func growsTo(v *inventory.Volume) string {
	switch {
	case v.GrowsTo > 0:
		return size(v.GrowsTo)
	case v.MovesTo > 0:
		return size(v.MovesTo) + " by a move"
	}
	return "-"
}

func (s *session) getWipes(ctx context.Context, a *api, which *selection) (*listing, error) {
	disks, err := a.disks(ctx, which)
	if err != nil {
		return nil, err
	}
	l := &listing{kind: "Wipe", none: "Nothing is being wiped.", table: &terminal.Table{Columns: []terminal.Column{
		{Name: "DISK", Shrink: 12}, {Name: "WAS", Shrink: 12}, {Name: "KIND"}, {Name: "POLICY"}, {Name: "SIZE", Right: true}, {Name: "WIPED", Right: true}, {Name: "VOLUME", Wide: true},
	}}}
	for i := range disks {
		for _, v := range disks[i].FirstPieces() {
			if v.State != string(diskv1alpha1.PhaseWiping) || !which.selects(v.Node, v.Class, "", v.Owner) {
				continue
			}
			policy, wiped := "-", "-"
			if v.WipePolicy != "" {
				policy, wiped = v.WipePolicy, percent(v.Wiped, v.Whole())
			}
			l.names, l.items = append(l.names, v.Name), append(l.items, v)
			l.table.AddTexts(disks[i].Path(), v.Owner, string(v.Kind), policy, size(v.Whole()), wiped, v.Name)
		}
	}
	return l, nil
}

// classRow is a DiskClass with the space of its disks.
type classRow struct {
	Name       string `json:"name"`
	Adoption   string `json:"adoption"`
	Nodes      int    `json:"nodes"`
	Candidates int    `json:"candidates"`
	space

	sum    inventory.Sum
	age    string
	object *diskv1alpha1.DiskClass
}

// classRows sums up the disks by class, with classes that have none and with classes that no longer exist.
func (s *session) classRows(f *fleet, existing []diskv1alpha1.DiskClass) []*classRow {
	rows := map[string]*classRow{}
	row := func(name string) *classRow {
		if rows[name] == nil {
			rows[name] = &classRow{Name: name}
		}
		return rows[name]
	}
	for i := range existing {
		c := &existing[i]
		r := row(c.Name)
		r.object, r.Adoption, r.age = c, string(c.Spec.Adoption), duration.HumanDuration(s.now().Sub(c.CreationTimestamp.Time))
	}
	nodes := map[string]map[string]bool{}
	for i := range f.disks {
		d := &f.disks[i]
		if d.Class == "" {
			continue
		}
		r := row(d.Class)
		r.sum.Add(d)
		if d.InService() {
			if nodes[d.Class] == nil {
				nodes[d.Class] = map[string]bool{}
			}
			nodes[d.Class][d.Node] = true
		}
	}
	for i := range f.devices {
		if d := &f.devices[i]; d.State == diskv1alpha1.DeviceCandidate && d.Class != "" {
			row(d.Class).Candidates++
		}
	}
	sorted := make([]*classRow, 0, len(rows))
	for name, r := range rows {
		r.Nodes, r.space = len(nodes[name]), spaceOf(&r.sum)
		sorted = append(sorted, r)
	}
	slices.SortFunc(sorted, func(a, b *classRow) int { return cmp.Compare(a.Name, b.Name) })
	return sorted
}

func (s *session) getClasses(ctx context.Context, a *api, which *selection) (*listing, error) {
	f, err := a.fleet(ctx)
	if err != nil {
		return nil, err
	}
	existing, err := a.classes(ctx)
	if err != nil {
		return nil, err
	}
	if len(which.nodes) > 0 {
		f.disks = slices.DeleteFunc(f.disks, func(d inventory.Disk) bool { return !slices.Contains(which.nodes, d.Node) })
		f.devices = slices.DeleteFunc(f.devices, func(d inventory.Device) bool { return !slices.Contains(which.nodes, d.Node) })
	}
	l := &listing{kind: "Class", none: "There is no DiskClass: no disk is used until one selects it.", table: &terminal.Table{Columns: []terminal.Column{
		{Name: "CLASS"}, {Name: "NODES", Right: true}, {Name: "DISKS", Right: true}, {Name: "SIZE", Right: true}, {Name: "USED", Right: true}, {Name: "FREE", Right: true},
		{Name: "LARGEST", Right: true}, {Name: "PIECES", Right: true}, {Name: "FRAG", Right: true}, {Name: "VOL", Right: true}, {Name: "CANDIDATES", Right: true},
		{Name: "ADOPTION", Wide: true}, {Name: "AGE", Wide: true},
	}}}
	for _, r := range s.classRows(f, existing) {
		if len(which.classes) > 0 && !slices.Contains(which.classes, r.Name) {
			continue
		}
		l.names, l.items = append(l.names, r.Name), append(l.items, r)
		l.table.AddTexts(r.Name, strconv.Itoa(r.Nodes), r.disksText(), size(r.Size), percent(r.Used, r.Size), size(r.Free), size(r.Largest),
			strconv.Itoa(r.Pieces), dash(r.Fragmentation), strconv.Itoa(r.Volumes), strconv.Itoa(r.Candidates), dash(r.Adoption), dash(r.age))
	}
	return l, nil
}

func dash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

// selected reads the nodes of a selection. A node alone is one request.
func (a *api) selected(ctx context.Context, which *selection) ([]diskv1alpha1.NodeDiskCapacity, error) {
	if len(which.nodes) == 0 || len(which.nodes) > 8 {
		return a.capacities(ctx)
	}
	var nodes []diskv1alpha1.NodeDiskCapacity
	for _, name := range which.nodes {
		ndc, err := a.capacity(ctx, name)
		if err != nil {
			return nil, err
		}
		nodes = append(nodes, *ndc)
	}
	return nodes, nil
}

// disks are those of the nodes of a selection.
func (a *api) disks(ctx context.Context, which *selection) ([]inventory.Disk, error) {
	if len(which.nodes) == 0 || len(which.nodes) > 8 {
		f, err := a.fleet(ctx)
		if err != nil {
			return nil, err
		}
		return f.disks, nil
	}
	var disks []inventory.Disk
	for _, name := range which.nodes {
		ndc, about, err := a.node(ctx, name)
		if err != nil {
			return nil, err
		}
		disks = append(disks, inventory.Disks(ndc, about)...)
	}
	return disks, nil
}
