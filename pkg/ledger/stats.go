package ledger

import (
	"math"
	"slices"

	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/placement"
)

// ClassStats is what all nodes together have of a class. Disks that take no volumes, and nodes
// that are not believed, do not count.
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
	// Whole is the sum of each disk's largest free extent: Free, if no disk is fragmented.
	Whole int64
}

// Fragmentation is the part of the free space that lies outside of the largest free extent of
// its disk: 0 if every disk's free space is in one piece, towards 1 as it falls to pieces.
func (c *ClassStats) Fragmentation() float64 {
	if c.Free == 0 {
		return 0
	}
	return 1 - float64(c.Whole)/float64(c.Free)
}

// Stats is what operators see of the whole cluster.
type Stats struct {
	// Nodes that publish a capacity, and of these the ones that contradict themselves.
	Nodes, Contradictory int
	// Absent are those without a Node, which do not count otherwise.
	Absent int
	// Shared are the disks that are withheld because another node owns them.
	Shared  int
	Classes map[string]ClassStats
}

// Stats adds up all nodes. It goes through their snapshots and takes no lock, so that it
// does not hold up the scheduler. A node that changes meanwhile is as it was before or after.
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
			// Disks of a class need not be neighbours: a node counts at its first one.
			if !slices.ContainsFunc(s.Node.Disks[:i], func(other placement.Disk) bool { return other.Class == d.Class }) {
				c.Nodes++
			}
			c.Size = addCapped(c.Size, s.published.disk(d.ID).Size)
			c.Usable, c.Free, c.Whole = addCapped(c.Usable, d.Usable), addCapped(c.Free, total), addCapped(c.Whole, largest)
			c.Extents += d.Free.Len()
			c.Largest = max(c.Largest, largest)
			stats.Classes[d.Class] = c
		}
	})
	return stats
}

// addCapped: the disks of a cluster may hold more than can be counted.
func addCapped(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

// Each calls look for every node that the ledger knows of, without a lock.
func (l *Ledger) Each(look func(nodeName string, s *Snapshot)) {
	l.nodes.Range(func(name, n any) bool {
		look(name.(string), n.(*node).snapshot.Load())
		return true
	})
}

// Unpublished are the records of volumes that the node does not publish, or not as long as
// they were allowed to grow, sorted by disk. They must not be changed.
func (s *Snapshot) Unpublished() []Record { return s.pending }

// PublishedAt returns the place where the node publishes the volume; false if it does not, or is
// wiping it.
func (s *Snapshot) PublishedAt(partition string) (disk string, at extent.Extent, ok bool) {
	disk, v := s.published.volume(partition, "")
	if v == nil || v.Wiping {
		return "", extent.Extent{}, false
	}
	return disk, v.Extent, true
}
