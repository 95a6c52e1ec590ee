package kubectl

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/kubectl/diagram"
	"github.com/berthdev/berth/pkg/kubectl/inventory"
	"github.com/berthdev/berth/pkg/kubectl/terminal"
)

// mapNode draws the disks of a node, or one of them.
func (s *session) mapNode(ctx context.Context, a *api, out io.Writer, path string) error {
	to, err := s.terminal()
	if err != nil {
		return err
	}
	name, device := splitPath(path)
	ndc, about, err := a.node(ctx, name)
	if err != nil {
		return err
	}
	disks, err := disksNamed(inventory.Disks(ndc, about), name, device)
	if err != nil {
		return err
	}
	text := nodeMap(to, ndc, disks, about, s.now())
	_, err = io.WriteString(out, text)
	return err
}

// nodeMap is the drawing of disks of a node.
func nodeMap(to terminal.Terminal, ndc *diskv1alpha1.NodeDiskCapacity, disks []inventory.Disk, about inventory.Context, now time.Time) string {
	var b strings.Builder
	b.WriteString(nodeHeading(to, ndc, disks, about) + "\n")
	for _, c := range ndc.Status.Conditions {
		if c.Type != diskv1alpha1.ConditionReady && c.Status == metav1.ConditionTrue {
			b.WriteString(to.Mark(terminal.MarkWarning) + " " + c.Type + ": " + c.Message + "\n")
		}
	}
	var rows []diagram.Row
	density := false
	for i := range disks {
		row := disks[i].Draw(to.Width-2, glyphsOf(to), true)
		density = density || row.Crowded()
		rows = append(rows, row)
		b.WriteString("\n")
		writeDisk(&b, to, &disks[i], &row, now)
	}
	if len(disks) == 0 {
		b.WriteString("No disk of Berth: kubectl berth get devices --node " + ndc.Name + " says why.\n")
		return b.String()
	}
	b.WriteString("\n" + legend(to, rows, density) + "\n")
	return b.String()
}

// nodeHeading sums up the node.
func nodeHeading(to terminal.Terminal, ndc *diskv1alpha1.NodeDiskCapacity, disks []inventory.Disk, about inventory.Context) string {
	sum := inventory.SumOf(disks)
	var of []string
	for i := range disks {
		if c := disks[i].Class; c != "" && !slices.Contains(of, c) {
			of = append(of, c)
		}
	}
	slices.Sort(of)
	items := []string{ndc.Name, nodeState(ndc, about.NodeGone), strings.Join(of, ","), disksOf(&sum), size(sum.Size)}
	if sum.Size > 0 {
		items = append(items, "used "+percent(sum.Used(), sum.Size), "free "+freeIn(sum.Free, sum.Pieces))
	}
	if f, ok := sum.Fragmentation(); ok {
		items = append(items, "largest "+size(sum.Largest), fmt.Sprintf("frag %.2f", f))
	}
	return to.Wrap("  ", items...)
}

// disksOf is how many disks there are, and how many of them take no volumes.
func disksOf(sum *inventory.Sum) string {
	if out := sum.Disks - sum.InService; out > 0 {
		return fmt.Sprintf("%s (%d out)", plural(sum.Disks, "disk"), out)
	}
	return plural(sum.Disks, "disk")
}

// nodeState is Ready, or why the node is not.
func nodeState(ndc *diskv1alpha1.NodeDiskCapacity, gone bool) string {
	ready := conditionOf(ndc, diskv1alpha1.ConditionReady)
	switch {
	case gone:
		return inventory.StateNodeGone
	case ready == nil:
		return "Unknown"
	case ready.Status == metav1.ConditionTrue:
		return diskv1alpha1.ConditionReady
	}
	return ready.Reason
}

func writeDisk(b *strings.Builder, to terminal.Terminal, d *inventory.Disk, row *diagram.Row, now time.Time) {
	left := to.Wrap("  ", d.Device, d.Model, size(d.Size), d.Class, d.State)
	right := "takes no volumes"
	if d.InService() {
		right = "free " + freeIn(d.Free, d.Pieces)
	}
	last := left[strings.LastIndexByte(left, '\n')+1:]
	if room := to.Width - terminal.Columns(last) - terminal.Columns(right); room >= 2 {
		b.WriteString(left + strings.Repeat(" ", room) + right + "\n")
	} else {
		b.WriteString(left + "\n  " + right + "\n")
	}
	if d.Message != "" {
		b.WriteString(to.Mark(terminal.MarkBad) + " " + d.Message + "\n")
	}
	b.WriteString(paintCells(to, row.Cells) + "\n")
	if row.Crowded() {
		b.WriteString(paintCells(to, row.Density(glyphsOf(to))) + "\n")
	}
	b.WriteString(strings.TrimRight(" "+diagram.Scale(d.Size, to.Width-2, size), " ") + "\n")
	writeVolumes(b, to, d, now)
}

// writeVolumes lists the volumes of a disk with their labels.
func writeVolumes(b *strings.Builder, to terminal.Terminal, d *inventory.Disk, now time.Time) {
	table := &terminal.Table{NoHeaders: true, Indent: "  ", Columns: []terminal.Column{
		{}, {Right: true}, {Shrink: 12}, {}, {Shrink: 12},
	}}
	for i := range d.Volumes {
		v := &d.Volumes[i]
		table.Add(
			terminal.Cell{Text: diagram.Label(i), Style: terminal.Bold}, terminal.Cell{Text: size(v.Length)},
			terminal.Cell{Text: ownerOf(v)}, terminal.Cell{Text: kindOrState(v)}, terminal.Cell{Text: noteOn(v, now)},
		)
	}
	_ = table.Write(b, to)
}

// ownerOf names whose the volume is.
func ownerOf(v *inventory.Volume) string {
	switch {
	case v.Owner == "":
		return v.Name
	case v.InPod != "":
		return v.Owner + " " + v.InPod
	}
	return v.Owner
}

// kindOrState is what a volume in use was made for, or the state of another one.
func kindOrState(v *inventory.Volume) string {
	switch v.State {
	case string(diskv1alpha1.PhaseFormatted):
		return string(v.Kind)
	case string(diskv1alpha1.PhaseReserved), string(diskv1alpha1.PhaseWiping), string(diskv1alpha1.PhaseCopying), inventory.StateOrphan:
		return strings.ToLower(v.State)
	}
	return v.State
}

// noteOn is what else can be said of a volume.
func noteOn(v *inventory.Volume, now time.Time) string {
	switch {
	case v.Piece > 0:
		return fmt.Sprintf("piece %d of a volume of %s", v.Piece, size(v.Total))
	case v.State == string(diskv1alpha1.PhaseWiping) && v.WipePolicy != "":
		return v.WipePolicy + ", " + percent(v.Wiped, v.Whole())
	case v.State == string(diskv1alpha1.PhaseCopying):
		return percent(v.Copied, v.Length) + " copied"
	case v.State == inventory.StateOrphan:
		why := "no PersistentVolume"
		if v.Kind == inventory.KindInline {
			why = "its pod is gone"
		}
		return why + " since " + duration.HumanDuration(now.Sub(*v.OrphanedSince))
	case v.State == string(diskv1alpha1.PhaseReserved):
		return "not formatted yet"
	case v.GrowsTo > 0:
		return "can grow in place to " + size(v.GrowsTo)
	case v.MovesTo > 0:
		return "can grow by a move to " + size(v.MovesTo)
	case v.Kind == inventory.KindClaim:
		return "cannot grow"
	}
	return ""
}

// percent is a share, rounded down.
func percent(part, of int64) string {
	if of <= 0 {
		return "-"
	}
	return fmt.Sprintf("%d %%", int64(float64(part)/float64(of)*100))
}

// freeIn is free space and in how many pieces it is.
func freeIn(free int64, pieces int) string {
	if pieces > 1 {
		return fmt.Sprintf("%s in %d pieces", size(free), pieces)
	}
	return size(free)
}

// plural is a number with its noun.
func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
