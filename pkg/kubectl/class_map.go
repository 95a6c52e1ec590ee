package kubectl

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/kubectl/diagram"
	"github.com/berthdev/berth/pkg/kubectl/inventory"
	"github.com/berthdev/berth/pkg/kubectl/terminal"
)

// Orders of `map --sort`.
const (
	sortNode    = "node"
	sortFrag    = "frag"
	sortLargest = "largest"
	sortFill    = "fill"
	sortFree    = "free"
)

func sortNames() []string { return []string{sortNode, sortFrag, sortLargest, sortFill, sortFree} }

// shownDisks is how many disks are drawn without --all, and fewestCells how short a drawing may be before columns are
// left out for it.
const (
	shownDisks  = 20
	fewestCells = 20
)

// fleet is what all nodes have published.
type fleet struct {
	nodes []diskv1alpha1.NodeDiskCapacity
	// exist are the Nodes.
	exist   map[string]bool
	disks   []inventory.Disk
	devices []inventory.Device
}

// fleet reads all nodes.
func (a *api) fleet(ctx context.Context) (*fleet, error) {
	f := &fleet{}
	group, groupCtx := errgroup.WithContext(ctx)
	group.Go(func() (err error) {
		f.nodes, err = a.capacities(groupCtx)
		return err
	})
	group.Go(func() (err error) {
		f.exist, err = a.nodes(groupCtx)
		return err
	})
	if err := group.Wait(); err != nil {
		return nil, err
	}
	slices.SortFunc(f.nodes, func(x, y diskv1alpha1.NodeDiskCapacity) int { return cmp.Compare(x.Name, y.Name) })
	for i := range f.nodes {
		ndc := &f.nodes[i]
		f.disks = append(f.disks, inventory.Disks(ndc, inventory.Context{NodeGone: !f.exist[ndc.Name], Withheld: withheldOn(ndc)})...)
		f.devices = append(f.devices, inventory.Devices(ndc)...)
	}
	return f, nil
}

// mapDisks draws a line for each disk.
func (s *session) mapDisks(ctx context.Context, a *api, out io.Writer, o mapOptions) error {
	to, err := s.terminal()
	if err != nil {
		return err
	}
	if !slices.Contains(sortNames(), o.sort) {
		return fmt.Errorf("--sort is %q: it can be %s", o.sort, strings.Join(sortNames(), ", "))
	}
	f, err := a.fleet(ctx)
	if err != nil {
		return err
	}
	lines := f.lines(o)
	if len(lines) == 0 {
		return errors.New(noDisks(o.class))
	}
	shown := lines
	if !o.all && len(lines) > shownDisks {
		shown = lines[:shownDisks]
	}
	if err := writeLines(out, to, shown, o.class == ""); err != nil {
		return err
	}
	if more := len(lines) - len(shown); more > 0 {
		_, err = fmt.Fprintf(out, "%d more: --all, or --sort frag|largest|fill|free to see first what matters\n", more)
	}
	return err
}

func noDisks(class string) string {
	if class == "" {
		return "no node has a disk of Berth or a candidate for one: kubectl berth get devices says why"
	}
	return fmt.Sprintf("no node has a disk of class %s or a candidate for one: kubectl berth get devices --class %s says why", class, class)
}

// line is a disk, or a device that may become one.
type line struct {
	inventory.Disk
	candidate bool
}

// lines are the disks of the class, and the candidates for it, in the order that the user wants.
func (f *fleet) lines(o mapOptions) []line {
	var lines []line
	for i := range f.disks {
		if d := f.disks[i]; o.class == "" || d.Class == o.class {
			lines = append(lines, line{Disk: d})
		}
	}
	for i := range f.devices {
		if d := &f.devices[i]; d.State == diskv1alpha1.DeviceCandidate && (o.class == "" || d.Class == o.class) {
			lines = append(lines, line{candidate: true, Disk: inventory.Disk{
				Node: d.Node, Device: d.Name, Class: d.Class, Size: d.Size, State: string(d.State),
			}})
		}
	}
	byNode := func(a, b *line) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Device, b.Device), cmp.Compare(a.ID, b.ID))
	}
	slices.SortFunc(lines, func(a, b line) int {
		var first int
		switch o.sort {
		case sortFrag:
			x, _ := a.Fragmentation()
			y, _ := b.Fragmentation()
			first = cmp.Compare(y, x)
		case sortLargest:
			first = cmp.Compare(b.Largest, a.Largest)
		case sortFree:
			first = cmp.Compare(b.Free, a.Free)
		case sortFill:
			first = cmp.Compare(b.fill(), a.fill())
		}
		return cmp.Or(first, byNode(&a, &b))
	})
	return lines
}

// fill is the used share. Candidates have none.
func (l *line) fill() float64 {
	if l.candidate || l.Size == 0 {
		return -1
	}
	return float64(l.Used()) / float64(l.Size)
}

// Columns of the table of lines, and the order in which they are left out on a narrow terminal.
const (
	columnNode = iota
	columnDisk
	columnClass
	columnDrawing
	columnFree
	columnLargest
	columnFrag
	columnVolumes
	columnState
)

var dispensable = []int{columnFrag, columnVolumes, columnLargest, columnClass, columnFree}

func writeLines(out io.Writer, to terminal.Terminal, lines []line, withClass bool) error {
	table := &terminal.Table{Columns: []terminal.Column{
		{Name: "NODE", Shrink: 8}, {Name: "DISK"}, {Name: "CLASS", Wide: !withClass}, {},
		{Name: "FREE", Right: true}, {Name: "LARGEST", Right: true}, {Name: "FRAG", Right: true}, {Name: "VOL", Right: true}, {Name: "STATE"},
	}}
	for i := range lines {
		table.Add(lines[i].cells(to)...)
	}
	cells := fitDrawing(table, to)
	table.Columns[columnDrawing].Name = scaleOfShares(cells)
	for i := range lines {
		table.Rows[i][columnDrawing] = lines[i].drawing(to, cells)
	}
	return table.Write(out, to)
}

// fitDrawing leaves out columns until there is room for the drawing, and returns how many cells it has.
func fitDrawing(table *terminal.Table, to terminal.Terminal) int {
	for _, column := range dispensable {
		if room(table, to) >= fewestCells {
			break
		}
		table.Columns[column].Wide = true
	}
	return max(room(table, to), 8)
}

// room is how many cells are left beside the other columns.
func room(table *terminal.Table, to terminal.Terminal) int {
	used := 2 // the ends of the row
	for i, c := range table.Columns {
		if c.Wide {
			continue
		}
		width := terminal.Columns(c.Name)
		for _, row := range table.Rows {
			width = max(width, terminal.Columns(row[i].Text))
		}
		if i > 0 {
			used += 2
		}
		if i != columnDrawing {
			used += width
		}
	}
	return to.Width - used
}

// scaleOfShares is the heading of the drawing.
func scaleOfShares(cells int) string {
	const from, end = " 0 %", "100 % "
	if cells+2 < len(from)+len(end)+1 {
		return ""
	}
	return from + strings.Repeat(" ", cells+2-len(from)-len(end)) + end
}

// cells are those of the line in the table; that of the drawing is empty.
func (l *line) cells(to terminal.Terminal) []terminal.Cell {
	free, largest, frag := "-", "-", "-"
	if l.InService() {
		free, largest = size(l.Free), size(l.Largest)
		if f, ok := l.Fragmentation(); ok {
			frag = fmt.Sprintf("%.2f", f)
		}
	}
	return []terminal.Cell{
		{Text: l.Node}, {Text: l.Device}, {Text: l.Class}, {}, {Text: free}, {Text: largest}, {Text: frag},
		{Text: strconv.Itoa(l.VolumeCount())}, stateCell(to, l.State),
	}
}

// stateCell is a state with a mark, unless it is that of a disk in service.
func stateCell(to terminal.Terminal, state string) terminal.Cell {
	switch state {
	case string(diskv1alpha1.DiskReady):
		return terminal.Cell{Text: state, Style: terminal.Good}
	case string(diskv1alpha1.DiskFailed), inventory.StateNodeGone, inventory.StateShared:
		return terminal.Cell{Text: to.PlainMark(terminal.MarkBad) + " " + state, Style: terminal.Bad}
	}
	return terminal.Cell{Text: to.PlainMark(terminal.MarkWarning) + " " + state, Style: terminal.Warning}
}

func (l *line) drawing(to terminal.Terminal, cells int) terminal.Cell {
	if l.candidate {
		return terminal.Cell{Text: plainRow(to, diagram.Draw(l.Size, nil, cells, glyphsOf(to)).Cells)}
	}
	row := l.Draw(cells, glyphsOf(to), false)
	drawn := row.Cells
	if row.Crowded() {
		drawn = row.Density(glyphsOf(to))
	}
	return terminal.Cell{Text: plainRow(to, drawn), Painted: paintCells(to, drawn)}
}
