package ledger

import (
	"slices"

	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/placement"
)

// ClassStats is the sum of a class over all nodes. Disks that take no volumes, and nodes with an invalid capacity, do
// not count.
type ClassStats struct {
	// Disks in service, on how many Nodes, and how many bytes they have.
	Disks, Nodes int
	Size         int64
	// Usable is how many bytes volumes could have if there were none.
	Usable int64
	// Free bytes, in how many Extents.
	Free    int64
	Extents int
	// Largest free extent, in bytes.
	Largest int64
	// SumOfLargest is the sum of each disk's largest free extent. It equals Free if no disk is fragmented.
	SumOfLargest int64
}

// Fragmentation is the part of the free space that lies outside of the largest free extent of its disk. It is 0 if
// every disk's free space is one extent, and gets close to 1 with many small ones.
func (c *ClassStats) Fragmentation() float64 {
	if c.Free == 0 {
		return 0
	}
	return 1 - float64(c.SumOfLargest)/float64(c.Free)
}

// Stats is the state of the whole cluster, for metrics.
type Stats struct {
	// Nodes that publish a capacity, and of these the ones whose capacity contradicts itself.
	Nodes, Contradictory int
	// Absent are nodes that publish and have no Node. They do not count otherwise.
	Absent int
	// Shared are the disks that are withheld because another node owns them.
	Shared  int
	Classes map[string]ClassStats
}

// Stats adds up all nodes. It reads their snapshots without a lock, so it does not delay the scheduler. A node that
// changes meanwhile counts as it was before or after.
func (l *Ledger) Stats() Stats {
	stats := Stats{Classes: map[string]ClassStats{}}
	l.Each(func(_ string, s *Snapshot) {
		if !s.Published {
			return
		}
		if s.Absent {
			stats.Absent++
			return
		}
		stats.Nodes++
		stats.Shared += len(s.withheld)
		if s.Problem != "" {
			stats.Contradictory++
		}
		for i := range s.Node.Disks {
			d := &s.Node.Disks[i]
			c := stats.Classes[d.Class]
			largest, total := d.Free.Largest().Len(), d.Free.Total()
			c.Disks++
			// Disks of a class need not be neighbors: a node counts at its first one.
			if !slices.ContainsFunc(s.Node.Disks[:i], func(other placement.Disk) bool { return other.Class == d.Class }) {
				c.Nodes++
			}
			c.Size = placement.AddCapped(c.Size, s.published.disk(d.ID).Size)
			c.Usable, c.Free, c.SumOfLargest = placement.AddCapped(c.Usable, d.Usable), placement.AddCapped(c.Free, total), placement.AddCapped(c.SumOfLargest, largest)
			c.Extents += d.Free.Len()
			c.Largest = max(c.Largest, largest)
			stats.Classes[d.Class] = c
		}
	})
	return stats
}

// Each calls look for every known node, without a lock.
func (l *Ledger) Each(look func(nodeName string, s *Snapshot)) {
	l.nodes.Range(func(name, n any) bool {
		look(name.(string), n.(*node).snapshot.Load())
		return true
	})
}

// Unpublished are the records that the node does not publish, or not in the length that they were allowed to grow to.
// They are sorted by disk and must not be changed.
func (s *Snapshot) Unpublished() []Record { return s.unpublished }

// PublishedAt returns the place where the node publishes the volume; false if it publishes none, or is wiping it.
func (s *Snapshot) PublishedAt(partition string) (disk string, at extent.Extent, ok bool) {
	disk, v := s.published.volume(partition, "")
	if v == nil || v.Wiping {
		return "", extent.Extent{}, false
	}
	return disk, v.Extent, true
}
