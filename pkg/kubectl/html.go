package kubectl

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"html/template"
	"os"
	"path/filepath"
	"slices"
	"time"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/kubectl/diagram"
	"github.com/berthdev/berth/pkg/kubectl/inventory"
)

// pageText is the template of the page. It has its style in itself, and loads nothing.
//
//go:embed page.html
var pageText string

var pageTemplate = template.Must(template.New("page").Parse(pageText))

// page is what the template shows.
type page struct {
	Title, Made string
	Classes     []pageClass
	Kinds       []pageKind
	Nodes       []pageNode
}

type pageClass struct {
	Name, Size, Used, Free, Largest, Frag string
	Nodes, Disks, Volumes                 int
}

type pageKind struct{ Class, Name string }

type pageNode struct {
	Name  string
	Disks []pageDisk
}

type pageDisk struct {
	Device, Model, Class, State, Message, Size, Free, Largest string
	Bars                                                      []pageBar
	Volumes                                                   []pageVolume
}

// pageBar is a part of a drawing. Its width is in percent.
type pageBar struct {
	Kind, Title, Label string
	Width              float64
}

type pageVolume struct{ Label, Owner, Kind, Size, At, Note string }

// labelWidth is how wide a volume must be for its label, in percent.
const labelWidth = 1.5

// writeMapPage writes the drawing of the cluster, or of a node, into a file.
func (s *session) writeMapPage(ctx context.Context, a *api, o mapOptions, args []string) error {
	if o.watch {
		return errors.New("--html and --watch exclude each other")
	}
	f, err := a.fleet(ctx)
	if err != nil {
		return err
	}
	existing, err := a.classes(ctx)
	if err != nil {
		return err
	}
	var node, device string
	if len(args) == 1 {
		node, device = splitPath(args[0])
	}
	f.disks = slices.DeleteFunc(f.disks, func(d inventory.Disk) bool {
		return o.class != "" && d.Class != o.class || node != "" && d.Node != node || device != "" && d.Device != device && d.ID != device
	})
	if len(f.disks) == 0 {
		return errors.New(noDisks(o.class))
	}
	p := s.pageOf(f, existing)
	var text bytes.Buffer
	if err := pageTemplate.Execute(&text, p); err != nil {
		return fmt.Errorf("making the page: %w", err)
	}
	// The page names pods and claims: only its owner can read it.
	if err := os.WriteFile(filepath.Clean(o.html), text.Bytes(), 0o600); err != nil {
		return err
	}
	_, err = fmt.Fprintf(s.Out, "%s: %s on %s, %s\n", o.html, plural(len(f.disks), "disk"), plural(len(p.Nodes), "node"), plural(volumesOn(f.disks), "volume"))
	return err
}

// pageOf is what the page shows of the disks.
func (s *session) pageOf(f *fleet, existing []diskv1alpha1.DiskClass) page {
	p := page{Title: "Disks of Berth", Made: s.now().UTC().Format(time.RFC3339)}
	for _, r := range s.classRows(f, existing) {
		if r.Disks > 0 {
			p.Classes = append(p.Classes, pageClass{r.Name, size(r.Size), percent(r.Used, r.Size), size(r.Free), size(r.Largest), dash(r.Fragmentation), r.Nodes, r.Disks, r.Volumes})
		}
	}
	for _, k := range kinds {
		p.Kinds = append(p.Kinds, pageKind{kindClass(k.kind), k.name})
	}
	for i := range f.disks {
		d := &f.disks[i]
		if n := len(p.Nodes); n == 0 || p.Nodes[n-1].Name != d.Node {
			p.Nodes = append(p.Nodes, pageNode{Name: d.Node})
		}
		last := &p.Nodes[len(p.Nodes)-1]
		last.Disks = append(last.Disks, pageDiskOf(d, s.now()))
	}
	return p
}

func volumesOn(disks []inventory.Disk) int {
	n := 0
	for i := range disks {
		n += disks[i].VolumeCount()
	}
	return n
}

// kindClass is the name of a kind in the page's style.
func kindClass(k diagram.Kind) string {
	return map[diagram.Kind]string{
		diagram.Unusable: "unusable", diagram.Free: "free", diagram.Volume: "volume", diagram.Copying: "copying",
		diagram.Wiping: "wiping", diagram.Orphan: "orphan", diagram.OutOfService: "failed",
	}[k]
}

func pageDiskOf(d *inventory.Disk, now time.Time) pageDisk {
	out := pageDisk{
		Device: d.Device, Model: d.Model, Class: d.Class, State: d.State, Message: d.Message,
		Size: size(d.Size), Free: freeIn(d.Free, d.Pieces), Largest: size(d.Largest),
	}
	row := d.Draw(0, diagram.Unicode, true)
	next := 0
	for _, p := range row.Pieces {
		bar := pageBar{Kind: kindClass(p.Kind), Label: p.Label, Width: float64(p.End-p.Start) / float64(d.Size) * 100}
		bar.Title = size(p.End-p.Start) + " " + bar.Kind + " at " + size(p.Start)
		if p.Label != "" && next < len(d.Volumes) {
			v := &d.Volumes[next]
			next++
			bar.Title = ownerOf(v) + ": " + bar.Title
			out.Volumes = append(out.Volumes, pageVolume{p.Label, ownerOf(v), kindOrState(v), size(v.Length), size(v.Start), noteOn(v, now)})
		}
		if bar.Width < labelWidth {
			bar.Label = ""
		}
		out.Bars = append(out.Bars, bar)
	}
	return out
}
