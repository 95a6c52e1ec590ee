package ledger

import (
	"slices"
	"sync/atomic"

	"github.com/berthdev/berth/pkg/placement"
)

// Snapshot is one node at one moment. It never changes.
type Snapshot struct {
	// Node is what is free. It is never nil, and has no disks when nothing is free.
	Node *placement.Node
	// Revision of the capacity it was made from.
	Revision uint64
	// Published is false when the node has not published a capacity, or no longer does.
	Published bool
	// Registered is true when an agent is registered with the node's kubelet.
	Registered bool
	// Absent is true when there is no Node of that name: all disks are withheld.
	Absent bool
	// Problem says why the published capacity is invalid; empty when it is valid.
	Problem string

	// free is what is free of each class, as the index has it.
	free      []classFree
	published *published
	// unpublished are the records as far as the node has not published them, sorted by disk.
	unpublished []Record
	// withheld are disks that another node owns.
	withheld map[string]struct{}
	// lastFailure is the last error of Fit.
	lastFailure atomic.Pointer[fitFailure]
}

type fitFailure struct {
	request placement.Request
	err     error
}

// Check is Fit without the merit. Usually it makes no plan.
func (s *Snapshot) Check(requests []placement.Request) error {
	if fits, sure := s.quickCheck(requests); fits && sure {
		return nil
	}
	_, err := s.Fit(requests)
	return err
}

// quickCheck is Search.QuickCheck for requests without a Search.
func (s *Snapshot) quickCheck(requests []placement.Request) (fits, sure bool) {
	var total int64
	aparts := 0
	for i := range requests {
		if requests[i].Size <= 0 {
			// Placement returns the error.
			return false, false
		}
		total = placement.AddCapped(total, requests[i].Size)
		if requests[i].Apart {
			aparts++
		}
	}
	sure = aparts < 2
	for i := range requests {
		of := findClass(s.free, requests[i].Class)
		if of == nil {
			return false, true
		}
		if of.largest < requests[i].Size {
			if !s.Node.Pieces || !requests[i].Splits() || of.mostOnDisk() < requests[i].Size {
				return false, true
			}
			sure = false
		}
		sure = sure && total <= of.largest
	}
	return true, sure
}

// Fit returns the merit of placing the requests on the node, or placement's error. The last error is kept: many pods
// with the same request often fit nowhere, and to build the error costs more than the check. What fits is not kept,
// because it allocates nothing.
func (s *Snapshot) Fit(requests []placement.Request) (merit int64, err error) {
	if len(requests) != 1 {
		return Fit(s.Node, requests)
	}
	if last := s.lastFailure.Load(); last != nil && last.request == requests[0] {
		return 0, last.err
	}
	if merit, err = Fit(s.Node, requests); err != nil {
		s.lastFailure.Store(&fitFailure{request: requests[0], err: err})
	}
	return merit, err
}

// Fit returns the merit of placing the requests on the node, or placement's error.
func Fit(node *placement.Node, requests []placement.Request) (merit int64, err error) {
	var buffer [4]placement.Assignment
	plan, err := placement.Plan(buffer[:0], node, requests)
	if err != nil {
		return 0, err
	}
	return placement.Merit(node, requests, plan), nil
}

// withRecords returns the snapshot with further records, of volumes that it does not have yet. The result is the same
// as that of a computation from the start, and costs only what is new.
func (s *Snapshot) withRecords(records []Record) *Snapshot {
	out := &Snapshot{
		Node:     &placement.Node{Disks: slices.Clone(s.Node.Disks), Pieces: s.Node.Pieces},
		Revision: s.Revision, Published: s.Published, Absent: s.Absent, Problem: s.Problem,
		published: s.published, unpublished: slices.Clone(s.unpublished), withheld: s.withheld,
	}
	for _, r := range records {
		r, ok := s.published.unpublishedPart(r)
		if !ok {
			continue
		}
		at, _ := slices.BinarySearchFunc(out.unpublished, r, compareRecords)
		out.unpublished = slices.Insert(out.unpublished, at, r)
		for i := range out.Node.Disks {
			if d := &out.Node.Disks[i]; d.ID == r.Disk {
				d.Free = d.Free.Remove(r.Extent)
			}
		}
	}
	return out
}

// Without returns the node as if the volumes with these partitions were gone, whether published or only recorded. The
// space of a volume on a disk that takes no volumes does not come back.
func (s *Snapshot) Without(gone map[string]struct{}) *placement.Node {
	if len(gone) == 0 || s.published == nil {
		return s.Node
	}
	return s.published.node(s.unpublished, gone, s.withheld)
}

// Length is how many bytes the node publishes of a volume with these partitions, one for each piece; zero if it
// publishes none of them.
func (s *Snapshot) Length(partitions ...string) int64 {
	var sum int64
	for _, partition := range partitions {
		if _, v := s.published.volume(partition, ""); v != nil {
			sum += v.Extent.Len()
		}
	}
	return sum
}

// DeviceMapper reports whether the kernel of the node has the device mapper, which volumes of several pieces need.
func (s *Snapshot) DeviceMapper() bool { return s.published != nil && s.published.deviceMapper }

// IsMapped reports whether the node has attached the volume with that partition by the device mapper. Then it gets
// further pieces while it is used.
func (s *Snapshot) IsMapped(partition string) bool {
	_, v := s.published.volume(partition, "")
	return v != nil && v.Mapped
}

// Withheld reports whether the disk is out of service on the node because another node owns it.
func (s *Snapshot) Withheld(disk string) bool {
	_, withheld := s.withheld[disk]
	return withheld
}

// Wiping are the partitions of published volumes that only have to be zeroed. What [Snapshot.Without] gives back for
// them becomes free by itself. The map must not be changed.
func (s *Snapshot) Wiping() map[string]struct{} {
	if s.published == nil {
		return nil
	}
	return s.published.wiping
}
