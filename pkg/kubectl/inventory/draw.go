package inventory

import (
	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/kubectl/diagram"
)

// Draw draws the disk. With labels each volume begins with the label of its place in Volumes.
func (d *Disk) Draw(cells int, glyphs diagram.Glyphs, labels bool) diagram.Row {
	pieces := make([]diagram.Piece, 0, len(d.Extents)+len(d.Volumes))
	for _, e := range d.Extents {
		pieces = append(pieces, diagram.Piece{Start: e.Start, End: e.End, Kind: diagram.Free})
	}
	for i := range d.Volumes {
		v := &d.Volumes[i]
		p := diagram.Piece{Start: v.Start, End: v.Start + v.Length, Kind: d.kindOf(v)}
		if labels {
			p.Label = diagram.Label(i)
		}
		pieces = append(pieces, p)
	}
	return diagram.Draw(d.Size, pieces, cells, glyphs)
}

func (d *Disk) kindOf(v *Volume) diagram.Kind {
	switch {
	case d.State == string(diskv1alpha1.DiskFailed):
		return diagram.OutOfService
	case v.State == string(diskv1alpha1.PhaseWiping):
		return diagram.Wiping
	case v.State == string(diskv1alpha1.PhaseCopying):
		return diagram.Copying
	case v.State == StateOrphan:
		return diagram.Orphan
	}
	return diagram.Volume
}
