package ledger

import "github.com/berthdev/berth/pkg/placement"

// Snapshot is one node at one moment. It never changes.
type Snapshot struct {
	// Node is what is free; never nil, without disks when nothing is.
	Node *placement.Node
	// Revision of the capacity it was made from.
	Revision uint64
	// Published is false when the node has not published a capacity, or no longer does.
	Published bool
	// Problem says why a published capacity is not believed; empty when it is.
	Problem string

	published *published
	// pending are the records that the node has not published, sorted by disk.
	pending []Record
}

// Without returns the node as if the volumes with these partitions were gone, whether
// published or only recorded. The space of a volume on a disk that takes no volumes
// does not come back.
func (s *Snapshot) Without(gone map[string]struct{}) *placement.Node {
	if len(gone) == 0 || s.published == nil {
		return s.Node
	}
	return s.published.node(s.pending, gone)
}

// Wiping are the partitions of published volumes that are gone but for the zeroing: what
// [Snapshot.Without] gives back for them becomes free without anybody's doing. It must
// not be changed.
func (s *Snapshot) Wiping() map[string]struct{} {
	if s.published == nil {
		return nil
	}
	return s.published.wiping
}
