package disk

import "github.com/berthdev/berth/test/space"

// Validate checks the invariants. Tests of other packages use test/space/snapshots, which imports this package.
func (s *Snapshot) Validate() error {
	d := space.Disk{Size: s.Size, Overhead: s.Overhead, Free: s.Free}
	for _, v := range s.Volumes {
		d.Volumes = append(d.Volumes, space.Volume{Partition: v.Partition, Index: v.Index, Extent: v.Extent})
		for _, p := range v.Pieces {
			d.Volumes = append(d.Volumes, space.Volume{Partition: p.Partition, Index: p.Index, Extent: p.Extent, Further: true})
		}
	}
	return d.Validate()
}
